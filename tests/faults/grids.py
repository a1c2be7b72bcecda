"""The grid, killed with everything below it and asked for again, until it is done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .processes import ask, descendants
from .stages import ROOT, digest, record, table, tensors

GRID = "runs/smoke/phantom-smoke/grid"
SAID = "said.log"
COHORT = "runs/smoke/phantom-smoke/01_cohort/01_cohort.ipynb"
AXES = (*("models=clipseg", "prompts=P3", "strategies=zeroshot,real", "encoder_modes=unfrozen", "seeds=31"),)
CELLS = ("clipseg-P3-zeroshot-unfrozen-seed31", "clipseg-P3-real-unfrozen-seed31")


def make_project(root: Path) -> None:
    """A copy of the project, with the phantom cohort of smoke scale drawn and looked at."""
    root.mkdir(parents=True)
    for name in ("Snakefile", "_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    for name in ("profiles", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (root / "data").mkdir()
    for name in ("echovlsm", "book", "cluster", "data/weights", "data/results"):
        (root / name).symlink_to(ROOT / name)
    _finish(root, COHORT)


def _command(*words: str) -> list[str]:
    settings = ["--config", "scale=smoke", "threads=1", *AXES]
    return [sys.executable, "-m", "snakemake", "--cores", "1", *words, *settings]


def _environment(root: Path) -> dict[str, str]:
    own = {"ECHOVLSM_ROOT": str(root), "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    return os.environ | own | {"PYTHONPATH": str(ROOT), "ECHOVLSM_CACHE": str(root / "runs" / "cache")}


def _finish(root: Path, *words: str) -> float:
    clock = time.perf_counter()
    done = subprocess.run(
        _command(*words), cwd=root, env=_environment(root), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"snakemake {' '.join(words)}: {done.stderr[-2000:]}")
    return time.perf_counter() - clock


def _copy(source: Path, target: Path) -> None:
    """A project with the times of its files, by which Snakemake tells what is to be done."""
    shutil.copytree(source, target, symlinks=True)


def results(root: Path) -> dict[str, Any]:
    """What all cells give."""
    found = {}
    for name in CELLS:
        found |= {f"{name}/{key}": value for key, value in _cell(root / GRID / name).items()}
    return found


def _cell(run: Path) -> dict[str, Any]:
    import yaml

    found = {"run.yaml": record(yaml.safe_load((run / "run.yaml").read_text()))}
    for name in ("history.csv", "scores.parquet", "prompt_matrix.csv"):
        if name != "history.csv" or "zeroshot" not in run.name:
            found[name] = table(run / name)
    if "zeroshot" not in run.name:
        found["model.safetensors"] = tensors(run / "weights" / "model.safetensors")
        found["config.json"] = digest(run / "weights" / "config.json")
    return found


def parts(root: Path) -> dict[str, Any]:
    """Of an unfinished grid, what reads as whole."""
    import nbformat
    import yaml

    found: dict[str, Any] = {}
    for name in CELLS:
        run = root / GRID / name
        for file in ("history.csv", "scores.parquet", "prompt_matrix.csv"):
            if (run / file).is_file():
                found[f"{name}/{file}"] = table(run / file)
        if (run / "weights").is_dir():
            found[f"{name}/model.safetensors"] = tensors(run / "weights" / "model.safetensors")
        if (run / "run.yaml").is_file() and yaml.safe_load((run / "run.yaml").read_text()).get("evaluation"):
            found |= {f"{name}/{key}": value for key, value in _cell(run).items()}
        for notebook in run.glob("0?_*.ipynb"):
            if not notebook.name.endswith(".failed.ipynb"):
                nbformat.read(notebook, as_version=4)
    return found


def state(root: Path) -> str:
    """How many cells are done, and begun."""
    done = sum((root / GRID / name / "05_evaluation.ipynb").is_file() for name in CELLS)
    begun = sum((root / GRID / name / "run.yaml").is_file() for name in CELLS) - done
    return f"{done} of {len(CELLS)} cells done" + (f", {begun} begun" if begun > 0 else "")


def kills(place: Path, count: int, seed: int, log: Path) -> Iterator[dict[str, Any]]:
    """Kill `count` times. A grid is killed again and again until it ends; then another one begins.

    Moments are uniform over the time that the whole grid takes once its first cell has begun. All processes
    below the command are killed with it. What a killed grid ends with counts for each of its kills.
    """
    make_project(place / "project")
    _copy(place / "project", place / "whole")
    process = _start(place / "whole")
    if not _cell_begins(process, place / "whole"):
        raise RuntimeError(
            f"the undisturbed grid began no cell: {(place / 'whole' / SAID).read_text()[-2000:]}"
        )
    clock = time.perf_counter()
    if process.wait():
        raise RuntimeError(f"the undisturbed grid failed: {(place / 'whole' / SAID).read_text()[-2000:]}")
    seconds = time.perf_counter() - clock
    reference = ask(lambda: results(place / "whole"), log)
    rng, done, number = random.Random(f"{seed} grid"), 0, 0
    while done < count:
        number += 1
        root, rows, ended = place / f"grid-{number}", [], False
        _copy(place / "project", root)
        while not ended and done + len(rows) < count:
            share = rng.random()
            ended = not _kill(root, share * seconds)
            if ended:
                break
            found = ask(lambda root=root: state(root), log)
            there = ask(lambda root=root: parts(root), log)
            half = [name for name, value in there.items() if value != reference.get(name)]
            rows.append(
                {
                    "stage": "grid",
                    "seed": seed,
                    "kill": done + len(rows) + 1,
                    "at": "moment",
                    "share": round(share, 4),
                    "seconds": round(share * seconds, 3),
                    "killed": "everything",
                    "found": f"grid {number}: {found}",
                    "half_written": "; ".join(half),
                }
            )
        said, equal = "", False
        try:
            _unlock(root)
            _finish(root, "grid")
            equal = ask(lambda root=root: results(root), log) == reference
        except RuntimeError as error:
            said = str(error)
        done += len(rows)
        for row in rows:
            yield row | {"equal": equal, "said": said, "workers_ended": True}
        shutil.rmtree(root)


def _unlock(root: Path) -> None:
    done = subprocess.run(
        _command("grid", "--unlock"), cwd=root, env=_environment(root), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"snakemake --unlock: {done.stderr[-2000:]}")


def _start(root: Path) -> subprocess.Popen[bytes]:
    with open(root / SAID, "wb") as said:
        return subprocess.Popen(
            _command("grid"),
            cwd=root,
            env=_environment(root),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def _cell_begins(process: subprocess.Popen[bytes], root: Path) -> bool:
    """Wait for the first cell; False if the command ended without one."""
    while "rule cell:" not in (root / SAID).read_text():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def _kill(root: Path, moment: float) -> bool:
    """Kill the grid and all below it some seconds after its first cell began; False if it had ended."""
    shutil.rmtree(root / ".snakemake" / "locks", ignore_errors=True)  # what --unlock does, in no time
    process = _start(root)
    if not _cell_begins(process, root):
        return False
    try:
        process.wait(moment)
        return False
    except subprocess.TimeoutExpired:
        pass
    os.kill(process.pid, signal.SIGSTOP)  # so that it starts nothing while what is below it is counted
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    return True
