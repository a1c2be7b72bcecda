"""Runs: a folder that says how its numbers came about.

A run folder holds `run.yaml` (every parameter, versions, commit, device, data and weights hashes, scale),
`history.csv`, `scores.parquet`, `weights/` in Hugging Face layout and the executed notebooks. A complete run
is skipped, an interrupted one resumes, and a folder made with other parameters is refused or made again.
One process works in a run folder; a second one says so and stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from echovlsm import files
from echovlsm.files import read_yaml
from echovlsm.parameters import check_parameters, profile_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunError", "RunFolder", "check_parameters", "project_root", "resolve", "run_path", "set_up"]

_NOT_COUNTED = {
    *(
        "book",
        "book_assets",
        "book_reliability",
        "book_tables",
        "execute",
        "figures",
        "files",
        "freshness",
        "grid",
    ),
    *("grid_figures", "parameters", "pretraining", "runs", "scenes", "warm"),
    *("dry_run", "dry_run_checks", "full_weights", "rehearsal", "run_costs"),
}
# These chapters change no run of a notebook: the published scores, the explorer, real hearts, the costs.
_CHAPTER = (
    *(
        "plan",
        "queue",
        "answer",
        "published",
        "claims",
        "explorer",
        "real_",
        "clinical",
        "evaluate",
    ),
    "benchmark",
)
_CONFIGS = ("config.json", "scheduler_config.json")
_RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "monai",
    "numpy",
    "scipy",
    "pandas",
    "nibabel",
    "papermill",
)


class RunError(RuntimeError):
    """A run folder that cannot be used as asked."""


def project_root() -> Path:
    """The folder of `_config.yml`: ECHOVLSM_ROOT, or above the working folder, or above the package."""
    named = os.environ.get("ECHOVLSM_ROOT")
    if named:
        return Path(named)
    for start in (Path.cwd(), Path(__file__).parent):
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / "_config.yml").is_file() and (folder / "notebooks").is_dir():
                return folder
    return Path.cwd()


def resolve(path: str | Path, root: Path | None = None) -> Path:
    """A path as the parameters mean it: absolute, from home, or relative to the project's root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (root or project_root()) / path


# -- provenance -----------------------------------------------------------------------------------------


def commit() -> str:
    """Short hash of the commit, with `+` when tracked files differ from it; `unknown` without git."""
    try:
        options = {"cwd": project_root(), "capture_output": True, "text": True, "check": True}
        head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], **options
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def package_versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES},
    }


def device_name() -> str:
    """The accelerator's name, or the processor with its number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return cpu_name(torch.get_num_threads())


def cpu_name(threads: int | None) -> str:
    """The processor with its number of threads, where that is known."""
    return "CPU" if not threads else f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def peak_memory() -> float:
    """The most memory that this process has held so far, GiB; that of the accelerator where there is one."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def code_hash() -> str:
    """Short sha256 of the package's modules that numbers depend on (not those that only draw or publish)."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if path.stem not in _NOT_COUNTED and not path.stem.startswith(_CHAPTER):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def weights_hash(weights: str | Path) -> str:
    """Short sha256 of a weights folder's tensors and config; for a hub id, the id itself."""
    if not str(weights):
        return "random"
    folder = resolve(weights)
    if not folder.is_dir():
        return f"hub:{weights}"
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"} or p.name in _CONFIGS
    ):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def set_up(threads: int, seed: int, mixed_precision: str = "no") -> None:
    """Fix thread count and seeds, which together make a CPU run repeat bit by bit.

    Raises
    ------
    RunError
        This machine cannot compute in `mixed_precision`.
    """
    import torch
    from accelerate.utils import set_seed

    check_precision(mixed_precision)
    if threads > 0:
        torch.set_num_threads(threads)
    set_seed(seed)


def check_precision(mixed_precision: str) -> None:
    """Refuse ``fp16`` where there is no GPU: Accelerate would train in float32 and say nothing.

    Raises
    ------
    RunError
        Names the parameter and what to choose.
    """
    if mixed_precision != "fp16":
        return
    from accelerate import PartialState

    if PartialState().device.type == "cpu":
        raise RunError(
            "mixed_precision: fp16 needs a GPU, and there is none here; choose bf16, which processors "
            "compute too, or no"
        )


# -- run folders ----------------------------------------------------------------------------------------


class RunFolder:
    """One run's folder.

    Parameters
    ----------
    path
        The folder; relative paths count from the project's root.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = resolve(path)
        self._opened = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this object was made, for a run's own account of its time."""
        return round(time.perf_counter() - self._opened, 2)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record(self) -> dict[str, Any]:
        """What `run.yaml` says; empty before the run was started.

        Raises
        ------
        RunError
            The file is broken.
        """
        file = self / "run.yaml"
        remedy = "copy the run again, or delete this file to make the run from its start"
        try:
            record = read_yaml(file, RunError, remedy) if file.is_file() else {}
        except RunError:
            if file.is_file():
                raise
            record = {}  # deleted in between: another process makes this run again
        for name in ("parameters", "evaluation"):
            if not isinstance(record.get(name, {}), dict):
                raise RunError(f"{file}: `{name}` holds no names with values; {remedy}")
        return record

    @property
    def complete(self) -> bool:
        """Whether the run ended."""
        return self.record.get("status") == "complete"

    def start(self, parameters: Mapping[str, Any], *, redo: bool = False, **provenance: Any) -> bool:
        """Open the run for writing.

        Parameters
        ----------
        parameters
            Every parameter of the notebook.
        redo
            What to do with a folder whose run had other parameters, data, weights or code: make it again, or
            refuse.
        provenance
            What else must be equal and belongs in `run.yaml`, such as `data_hash` and `weights_hash`.

        Returns
        -------
        bool
            True if there is work to do (from the start, or from where an equal run was interrupted), False if
            an equal run is complete.

        Raises
        ------
        RunError
            The folder holds another run and `redo` is false.
        echovlsm.files.InUseError
            Another process works in the folder. This one does so from here to `finish`, or to its end.
        """
        asked = {"parameters": dict(parameters), "code_hash": code_hash(), **provenance}
        if self._found(asked, redo) == "complete":
            return False
        self._make_folder()
        files.hold(self.path)
        try:
            found = self._found(asked, redo)  # the process that was waited for may have ended it
            if found != "complete":
                self._begin(asked, parameters.get("scale"), anew=found == "other")
                return True
        except BaseException:
            files.release(self.path)
            raise
        files.release(self.path)
        return False

    def _found(self, asked: Mapping[str, Any], redo: bool) -> str:
        """What of the run asked for is here: `complete`, `started`, or `other` (or nothing)."""
        before = self.record
        differences = _differences(before, asked) if before else []
        if differences and not redo:
            raise RunError(
                f"{self.path} holds a run made otherwise ({'; '.join(differences)}): name another `run` "
                "folder, delete this one, or set redo=true"
            )
        if differences or not before:
            return "other"
        return "complete" if before.get("status") == "complete" else "started"

    def _begin(self, asked: Mapping[str, Any], scale: Any, *, anew: bool) -> None:
        if anew:
            self._empty()
        values = {
            "status": "started",
            "scale": scale,
            **asked,
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device_name(),
            "packages": package_versions(),
        }
        self.write_yaml("run.yaml", values)

    def _empty(self) -> None:
        """Delete what an earlier run left here, its record last, and nothing that is not a run's.

        Notebooks stay, as one may be executing into this folder.
        """
        for pattern in (
            "state",
            "weights",
            "weights.partial*",
            "sdm",
            "sdm-state",
            "sdm.partial",
            "segmenter-*",
        ):
            for folder in self.path.glob(pattern):
                shutil.rmtree(folder)
        for pattern in ("*.csv", "*.parquet", "*.partial", "run.yaml"):
            for file in self.path.glob(pattern):
                file.unlink()

    def require(
        self, name: str, notebook: str, parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The record of a complete run that holds `name` and was made with `parameters`.

        Raises
        ------
        RunError
            The run is missing, unfinished (the message names the notebook that makes it), or another one.
        """
        if not self.complete or not (self / name).exists():
            state = "is not finished" if self.record else "does not exist"
            raise RunError(
                f"run: {self.path} {state}; run notebooks/{notebook}.ipynb with these parameters first"
            )
        made = self.record["parameters"]
        other = {key: made.get(key) for key, value in (parameters or {}).items() if made.get(key) != value}
        if other:
            raise RunError(f"run: {self.path} was made with {other}; give these values, or name another run")
        return self.record

    def finish(self, **results: Any) -> None:
        """Mark the run as complete, add `results`, time and peak memory to `run.yaml`, free the folder."""
        spent = {"peak_memory_gib": peak_memory(), "seconds": self.seconds}
        self.note(**{**spent, **results, "status": "complete"})
        files.release(self.path)

    def evaluation_suffix(self, settings: Mapping[str, Any]) -> str:
        """Empty for the run's first way of scoring; for any other a name that keeps its results apart."""
        before = self.record.get("evaluation", {}).get("parameters", {})
        if all(before.get(key, value) == value for key, value in settings.items()):
            return ""
        return "-" + "-".join(Path(str(value)).name for value in settings.values())

    def note(self, **results: Any) -> None:
        """Add `results` to `run.yaml` and leave its status."""
        self._make_folder()
        with files.only_one(self.path):  # from reading to writing
            self.write_yaml("run.yaml", {**self.record, **results})

    def put_on_record(self, results: str | Path) -> Path:
        """Copy what may be published of a complete, evaluated run: scores, history, record; no weights.

        Parameters
        ----------
        results
            Folder of recorded runs, such as `data/results/camus`; the run gets a folder in it.
        """
        record = self.require("scores.parquet", "05_evaluation")
        where = {"cohort", "run"}  # paths of one machine tell another nothing
        for part in (record, record["evaluation"]):
            part["parameters"] = {key: value for key, value in part["parameters"].items() if key not in where}
        target = RunFolder(resolve(results) / self.path.name)
        (target / "run.yaml").unlink(missing_ok=True)  # until all is there, nothing counts
        for name in ("history.csv", "scores.parquet", "prompt_matrix.csv"):
            files.copy(self / name, target / name)
        target.write_yaml("run.yaml", record)
        return target.path

    def discard(self, name: str) -> None:
        """Delete a working folder of the run, such as the training state, once it is not needed."""
        shutil.rmtree(self / name, ignore_errors=True)

    def write_yaml(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a YAML file that appears whole or not at all."""
        with self._appear(name) as partial:
            partial.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as `.csv` or `.parquet`, whole or not at all."""
        with self._appear(name) as partial:
            if name.endswith(".parquet"):
                table.to_parquet(partial, index=False)
            else:
                table.to_csv(partial, index=False)

    def save_weights(self, model: Any) -> None:
        """Write the model's Hugging Face folder as `weights/`, whole or not at all."""
        with self._appear("weights") as partial:
            model.save_pretrained(partial)

    def _make_folder(self) -> None:
        told = f"run: the folder {self.path} cannot be made"
        files.make_folder(self.path, RunError, told, "name another `run` folder")

    @contextlib.contextmanager
    def _appear(self, name: str) -> Iterator[Path]:
        """Where to write what then appears whole under `name`, by one process at a time."""
        self._make_folder()
        with files.only_one(self.path), files.appearing(self / name) as partial:
            yield partial


def _differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What sets an earlier run apart from the one asked for, in words; execution details do not count."""
    ignored = {"threads", "run", "redo", "progress", "parameters"}
    there, now = (
        {**record.get("parameters", {}), **{key: record.get(key) for key in asked}}
        for record in (before, asked)
    )
    return [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in {**there, **now}
        if key not in ignored and there.get(key) != now.get(key)
    ]


def run_path(
    profile: str, cohort: str | Path, model: str, prompt: str, strategy: str, encoders: str, seed: int
) -> Path:
    """Where a cell of the study lives.

    ``runs/<profile>/<cohort>/<model>-<prompt>-<strategy>-<encoders>-seed<seed>``
    """
    name = f"{model}-{prompt}-{strategy.replace(':', '_')}-{encoders}-seed{seed}"
    return resolve("runs") / profile / Path(cohort).name / name


def may_draw_phantom(make_phantom: bool | None, cohort: str, profile: str) -> bool:
    """Whether a phantom may be drawn where there is no cohort.

    `make_phantom` decides; where it is None, a phantom belongs in the profile's own cohort alone: any other
    folder that is not there is a typing error.
    """
    if make_phantom is not None:
        return make_phantom
    own = profile_of(profile).get("cohort")
    return own is not None and resolve(cohort).resolve() == resolve(own).resolve()


def main(arguments: list[str] | None = None) -> None:
    """Command line: put a run on record."""
    import argparse

    parser = argparse.ArgumentParser(
        description="Copy a run's scores, history and record to a folder of results."
    )
    parser.add_argument("run", type=Path, help="run folder of an evaluated training")
    parser.add_argument("results", type=Path, help="folder of recorded runs, such as data/results/camus")
    options = parser.parse_args(arguments)
    print(RunFolder(options.run).put_on_record(options.results))


if __name__ == "__main__":
    main()
