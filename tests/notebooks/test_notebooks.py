"""The study's notebooks: their shape, and what they give when executed at smoke scale."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from echovlsm.study.execution import LEFT_OUT
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GRID = "runs/smoke/phantom-smoke/grid"
CELL = "runs/smoke/phantom-smoke/clipseg-P1-real-unfrozen-seed42"


def _environment(root: Path) -> dict[str, str]:
    return os.environ | {"ECHOVLSM_ROOT": str(root), "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}


def _snakemake(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    return subprocess.run(
        command, cwd=root, env=_environment(root), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which notebooks can run without touching this one."""
    root = tmp_path_factory.mktemp("project")
    for name in ("Snakefile", "_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    shutil.copytree(
        ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    (root / "data").mkdir()
    for name in ("echovlsm", "book", "cluster", "data/weights", "data/results"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope="session")
def study(project: Path) -> Path:
    """The whole study at smoke scale, executed by Snakemake."""
    result = _snakemake(project, "study", "--config", "scale=smoke", "threads=1")
    assert result.returncode == 0, result.stderr[-4000:]
    return project


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_share_one_skeleton(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    first, parameters, check = notebook.cells[:3]
    assert first.source.startswith("# ")
    assert "**The question.**" in first.source
    assert "**What to expect.**" in first.source
    assert parameters.metadata["tags"] == ["parameters"]
    assert f'page = begin(globals(), "{path.stem}")' in check.source
    titles = [
        line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
    ]
    for title in ("## What we saw", "## Try it yourself", "## References"):
        assert title in titles
    assert sum(line.startswith("# ") for line in titles) == 1
    code = [cell for cell in notebook.cells[2:] if cell.cell_type == "code"]
    lengths = sorted(len(cell.source.splitlines()) for cell in code)
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[-1] <= 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_hidden_only_prints_a_sentence(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if "hide-input" in cell.metadata.get("tags", []):
            assert "Markdown(" in cell.source, cell.source
            assert len(cell.source.splitlines()) <= 5, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_is_typed_and_explained(path: Path) -> None:
    source = nbformat.read(path, as_version=4).cells[1].source
    for line in source.splitlines():
        assert ": " in line.split("=")[0], line
        assert "  # " in line, line


def test_the_study_leaves_a_complete_run(study: Path) -> None:
    run = yaml.safe_load((study / CELL / "run.yaml").read_text())
    assert (run["status"], run["scale"], run["kind"], run["strategy"]) == (
        "complete",
        "smoke",
        "phantom",
        "real",
    )
    assert run["parameters"]["prompt"] == "P1"
    assert {"data_hash", "weights_hash", "code_hash", "commit", "device", "packages", "date"} <= set(run)
    history = pd.read_csv(study / CELL / "history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert (study / CELL / "weights" / "model.safetensors").is_file()
    assert not (study / CELL / "state").exists()
    assert not list((study / "runs").rglob("*.failed.ipynb"))


def test_scores_have_one_row_a_mask_and_strategy(study: Path) -> None:
    scores = pd.read_parquet(study / CELL / "scores.parquet")
    counts = pd.read_csv(study / "runs/smoke/phantom-smoke/01_cohort/counts.csv").set_index("split")
    keys = ["strategy", "patient", "view", "phase", "structure"]
    assert len(scores) == 2 * 4 * counts.loc["test", "images"]
    assert not scores.duplicated(keys).any()
    assert scores["dice"].between(0, 1).all()
    means = scores[scores["structure"] != "epicardium"].groupby("strategy")["dice"].mean()
    assert means["real"] > means["zeroshot"]
    run = yaml.safe_load((study / CELL / "run.yaml").read_text())
    assert run["evaluation"]["dice"]["real"] == pytest.approx(means["real"])


def test_the_prompt_matrix_compares_every_prompt_with_every_structure(study: Path) -> None:
    matrix = pd.read_csv(study / CELL / "prompt_matrix.csv", index_col=0)
    assert matrix.shape == (3, 3)
    assert list(matrix.index) == list(matrix.columns)
    assert matrix.stack().between(0, 1).all()


def test_figures_of_executed_notebooks_carry_scale_and_cohort(study: Path) -> None:
    for executed in (study / "runs").rglob("*.ipynb"):
        notebook = nbformat.read(executed, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.output_type == "error"]
        drawing = [
            c.source
            for c in notebook.cells
            if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))
        ]
        few = executed.stem == "03_prompts" or LEFT_OUT in [cell.source for cell in notebook.cells]
        assert drawing or few
        assert all("page.stamp(" in source for source in drawing)


def test_the_executed_notebooks_become_pages_without_a_warning(study: Path, tmp_path: Path) -> None:
    """Headings, citations and outputs of the real notebooks, not of stand-ins."""
    from book.tools import build as book

    found = [path for path in (study / "runs").rglob("*.ipynb") if "grid" not in path.parts]
    executed = {f"notebooks/{path.stem}": path for path in found}
    assert set(executed) == set(book.notebook_pages(study))
    index = book.build("smoke", executed, tmp_path / "book", root=study)
    for page in executed:
        html = (index.parent / f"{page}.html").read_text()
        assert "Executed " in html
        assert "stale" not in html.split('class="freshness')[1]
        assert '<img alt="' in html or page.endswith("06_results") or "_images/" in html


def test_a_finished_study_is_not_run_again(study: Path) -> None:
    result = _snakemake(study, "study", "-n", "--config", "scale=smoke", "threads=1")
    assert "Nothing to be done" in result.stdout + result.stderr


def test_outputs_marked_as_deterministic_repeat(study: Path) -> None:
    """nbval executes the executed notebook once more and compares the cells tagged for it."""
    executed = study / "runs/smoke/phantom-smoke/03_prompts/03_prompts.ipynb"
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "-q", str(executed)]
    result = subprocess.run(
        command, cwd=study, env=_environment(study), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    tagged = [
        c
        for c in nbformat.read(executed, as_version=4).cells
        if "nbval-check-output" in c.metadata.get("tags", [])
    ]
    assert tagged
    assert all(cell.outputs for cell in tagged)


@pytest.mark.parametrize("arguments", [("-p", "promt", "P1"), ("-p", "prompt", "P9"), ("-y", "epochs: many")])
def test_papermill_by_hand_stops_at_a_wrong_parameter(
    project: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    out = tmp_path / "out.ipynb"
    source = project / "notebooks" / "04_training.ipynb"
    command = [sys.executable, "-m", "papermill", str(source), str(out), "--cwd", str(project), *arguments]
    result = subprocess.run(
        command, cwd=project, env=_environment(project), capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "ParameterError" in result.stderr
    if "promt" in arguments:
        assert "did you mean `prompt`?" in result.stderr
    executed = [
        c for c in json.loads(out.read_text())["cells"] if c["cell_type"] == "code" and c["execution_count"]
    ]
    assert not [cell for cell in executed if "import matplotlib" in "".join(cell["source"])]


def test_cris_with_adapters_trains_and_is_evaluated(study: Path) -> None:
    """Model and encoder mode are parameters like any other; adapters end in the weights."""
    cell = "runs/smoke/phantom-smoke/cris-P1-real-lora-seed42"
    settings = ["-p", "model", "cris", "-p", "weights", "data/weights/cris-tiny", "-p", "encoders", "lora"]
    for notebook in ("04_training", "05_evaluation"):
        command = [
            sys.executable,
            "-m",
            "echovlsm",
            "execute",
            f"notebooks/{notebook}.ipynb",
            f"{cell}/{notebook}.ipynb",
        ]
        chosen = settings if notebook == "04_training" else [*settings[:3], *settings[6:]]
        command += ["-f", "notebooks/profiles/smoke.yaml", *chosen, "-p", "threads", "1"]
        done = subprocess.run(
            command, cwd=study, env=_environment(study), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    scores = pd.read_parquet(study / cell / "scores.parquet")
    assert set(scores["strategy"]) == {"zeroshot", "real"}
    tensors = (study / cell / "weights" / "model.safetensors").read_bytes()
    assert b"lora_" not in tensors


def _dates(root: Path) -> dict[str, str]:
    """When each complete cell of the grid was made."""
    records = {p: yaml.safe_load(p.read_text()) for p in (root / GRID).glob("*/run.yaml")}
    return {p.parent.name: r["date"] for p, r in records.items() if r.get("evaluation")}


def test_the_grid_has_every_cell_and_finds_pretrained_runs(study: Path) -> None:
    from echovlsm.study.grid import read_grid

    cells = read_grid(study / "notebooks/grids/smoke.yaml").cells
    assert {cell.name for cell in cells} == set(_dates(study))
    tuned = study / GRID / "clipseg-P7-synth-PT_real-FT-unfrozen-seed1"
    before = study / GRID / "clipseg-P6-synthetic-unfrozen-seed1"
    records = [yaml.safe_load((run / "run.yaml").read_text()) for run in (tuned, before)]
    assert records[0]["pretrained"] == records[1]["content"]
    assert not (tuned / "pretraining").exists()
    assert records[0]["peak_memory_gib"] > 0
    assert not (study / GRID / "clipseg-P0-zeroshot-unfrozen-seed1" / "weights").exists()


def test_the_papers_tables_come_from_the_cells(study: Path) -> None:
    folder = study / "runs/smoke/06_results"
    scores = pd.read_parquet(folder / "scores.parquet")
    options = {"index_col": ["model", "strategy"], "keep_default_na": False}
    table = pd.read_csv(folder / "table_unfrozen.csv", **options)
    own = scores.query("model == 'clipseg' and strategy == 'real' and prompt == 'P7'")["dice"]
    assert table.loc[("clipseg", "real"), "P7"] == f"{100 * own.mean():.2f} ± {100 * own.std():.2f}"
    assert table.loc[("clipseg", "synthetic"), "P7"] == "N/A"
    assert table.loc[("clipseg", "synthetic"), "P6"] != "N/A"
    empty = pd.read_csv(folder / "empty_prompt.csv")
    assert {"their union", "myocardium"} <= set(empty.columns)
    effects = pd.read_csv(folder / "word_effects.csv")
    assert {"structure", "view", "phase", "sex", "age", "quality", "shape"} == set(effects["swapped"])


def test_a_killed_grid_runs_only_what_is_missing(study: Path) -> None:
    part = ["grid", "--config", "scale=smoke", "threads=1", "models=clipseg", "prompts=P1", "strategies=real"]
    part += ["seeds=11,12,13,14", "encoder_modes=unfrozen"]
    before = _dates(study)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *part]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, cwd=study, env=_environment(study), start_new_session=True, **quiet)
    new: set[str] = set()
    limit = time.monotonic() + 300
    while len(new) < 2 and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.1)
        new = set(_dates(study)) - set(before)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = _dates(study)
    assert 2 <= len(set(done) - set(before)) < 4

    unlock = _snakemake(study, *part, "--unlock")
    assert unlock.returncode == 0, unlock.stderr[-2000:]
    told = _snakemake(study, *part, "-n")
    missing = 4 - len(set(done) - set(before))
    assert f"{missing} to run" in told.stderr
    again = _snakemake(study, *part)
    assert again.returncode == 0, again.stderr[-3000:]
    after = _dates(study)
    assert len(set(after) - set(before)) == 4
    finished = {name: date for name, date in done.items() if after[name] == date}
    # the cell that was scored when the kill came may have been executed to its end once more
    assert len(set(done) - set(finished)) <= 1


def test_a_dead_cell_takes_no_other_with_it(study: Path) -> None:
    content = yaml.safe_load((study / "notebooks/grids/smoke.yaml").read_text())
    content["models"]["cris"]["weights"] = "data/weights/nowhere"
    (study / "notebooks/grids/broken.yaml").write_text(yaml.safe_dump(content))
    axes = ["models=cris,clipseg", "prompts=P1", "strategies=real", "encoder_modes=unfrozen", "seeds=21"]
    result = _snakemake(
        study, "grid", "--config", "scale=smoke", "threads=1", "grid=notebooks/grids/broken.yaml", *axes
    )
    (study / "notebooks/grids/broken.yaml").unlink()
    assert result.returncode != 0
    assert "data/weights/nowhere does not exist" in result.stdout + result.stderr
    made = {name for name in _dates(study) if name.endswith("seed21")}
    assert made == {"clipseg-P1-real-unfrozen-seed21"}


def test_a_batch_run_stops_before_the_kernel_starts(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "echovlsm",
        "execute",
        "notebooks/04_training.ipynb",
        str(out),
        "-p",
        "promt",
        "P1",
    ]
    result = subprocess.run(
        command, cwd=project, env=_environment(project), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "did you mean `prompt`?" in result.stderr
    assert not list(tmp_path.iterdir())


def test_snakemake_refuses_an_unknown_parameter(project: Path) -> None:
    result = _snakemake(project, "study", "-n", "--config", "scale=smoke", "promt=P1")
    assert result.returncode != 0
    assert "did you mean `prompt`?" in result.stdout + result.stderr


def test_snakemake_takes_no_folder_for_a_number(project: Path) -> None:
    part = ("study", "-n", "-p", "--config", "scale=smoke")
    result = _snakemake(project, *part, "cohort=2023_01")
    assert result.returncode != 0
    assert "`cohort` is '2023_01', which Snakemake reads as 202301" in result.stdout + result.stderr
    result = _snakemake(project, *part, "cohort=./2023_01")
    assert result.returncode == 0, result.stderr
    assert "-p cohort ./2023_01" in result.stdout + result.stderr


def test_a_typing_error_draws_no_phantom(project: Path, tmp_path: Path) -> None:
    (tmp_path / "camus").mkdir()
    cohort, out = tmp_path / "camsu", tmp_path / "out.ipynb"
    command = [
        sys.executable,
        "-m",
        "echovlsm",
        "execute",
        "notebooks/01_cohort.ipynb",
        str(out),
        "--no-progress",
    ]
    command += ["-f", "notebooks/profiles/smoke.yaml", "-p", "cohort", str(cohort)]
    result = subprocess.run(
        command, cwd=project, env=_environment(project), capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"the nearest folder there is: {tmp_path / 'camus'};" in result.stderr
    assert not cohort.exists()
    assert not out.exists()
