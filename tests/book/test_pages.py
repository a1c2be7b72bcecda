"""Prose pages say what the code does: their examples run, their tables are computed, their scripts submit."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from book.tools import assets as book_assets
from book.tools import reliability as book_reliability
from book.tools import tables as book_tables
from book.tools.freshness import BookError, PageFacts
from echovlsm import STRUCTURES
from echovlsm.prompts.templates import make_prompt
from echovlsm.study import answers
from echovlsm.study.answers import figures
from tests.conftest import ROOT

PAGES = sorted((ROOT / "book").glob("*.md"))


def _environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def test_the_example_of_another_structure_runs(tmp_path: Path) -> None:
    """The page's own code, with fewer patients and epochs."""
    text = (ROOT / "book" / "adapt.md").read_text()
    blocks = re.findall(r"<!-- example -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    code = "\n".join(blocks)
    small = code.replace("PATIENTS, EPOCHS = 60, 15", "PATIENTS, EPOCHS = 5, 1")
    assert len(blocks) == 5
    assert small != code
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights").symlink_to(ROOT / "data" / "weights")
    environment = _environment(ECHOVLSM_ROOT=str(tmp_path), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", small],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    meta = yaml.safe_load((tmp_path / "data/cohorts/right-ventricle/cohort.yaml").read_text())
    assert meta["name"] == "right-ventricle"
    assert (tmp_path / "runs/right-ventricle/weights/model.safetensors").is_file()
    assert len(re.findall(r"^(?:Right|The cavity|Left).* \d\.\d\d$", done.stdout, flags=re.MULTILINE)) == 3


def test_the_landing_page_shows_the_reference_masks_and_the_authors_sentences() -> None:
    page = (ROOT / "book" / "_static" / "hero.html").read_text()
    assert len(page) < 60_000
    for name in STRUCTURES.values():
        text = make_prompt(name, "P2", 0, view=book_assets.VIEW)
        assert f'data-structure="{name}" aria-pressed=' in page
        assert f">{text}</button>" in page
    paths = re.findall(r'<path data-structure="[^"]*"[^>]* d="([^"]+)"', page)
    fresh = re.findall(r'<path data-structure="[^"]*"[^>]* d="([^"]+)"', book_assets.hero())
    assert len(paths) == 3
    assert paths == fresh, "the phantom has changed: python -m book.tools.assets"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_terms_are_in_the_glossary(path: Path) -> None:
    glossary = (ROOT / "book" / "glossary.md").read_text()
    known = set(re.findall(r"^([^\s:#`|].*)$", glossary, flags=re.MULTILINE))
    used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`<>]+)>?`", path.read_text())
    assert set(used) <= known


def test_every_notebook_page_is_listed_with_its_question_and_finding() -> None:
    notebook = nbformat.v4.new_notebook()
    words = "# T\n\n**The question.** Does it\nwork {footcite:p}`wang2022cris`?\n\n**What to expect.** Yes."
    notebook.cells = [nbformat.v4.new_markdown_cell(words)]
    page = "notebooks/01_x"
    facts = [PageFacts(page, scale="demo", cohort="phantom-demo (phantom)")]
    table = book_tables.questions({page: notebook}, facts)
    assert table.splitlines()[-1] == "| {doc}`/notebooks/01_x` | Does it work? | – | – |"
    shown = {"text/markdown": "- It does,\n  by 3 | 4.\n- Another point."}
    output = nbformat.v4.new_output("execute_result", shown)
    cell = nbformat.v4.new_code_cell("Markdown(...)", outputs=[output], metadata={"tags": ["finding"]})
    notebook.cells.append(cell)
    row = book_tables.questions({page: notebook}, facts).splitlines()[-1]
    assert row.endswith("| It does, by 3 \\| 4. | phantom-demo (phantom), demo scale |")


def test_the_first_page_says_that_there_is_no_answer_yet(tmp_path: Path) -> None:
    box = book_tables.found(tmp_path, {}, [])
    assert "No answer on real hearts yet: 0 of" in box
    assert box.count("\n- ") == 1


def test_the_first_page_draws_the_budget_that_is_on_record(tmp_path: Path) -> None:
    drawing = tmp_path / "budget.svg"
    assert book_tables.budget(tmp_path, drawing) == ""
    assert not drawing.exists(), "no records, no figure"
    told = book_tables.budget(ROOT, drawing)
    assert told.startswith(":::{figure} budget.svg\n")
    assert "<svg" in drawing.read_text()
    points = answers.budget_points(answers.Records(ROOT / book_tables.STUDY))
    single = (points["seeds"] == 1).sum()
    assert (f"one training, which is no finding ({single} of {len(points)} points)" in told) == (single > 0)
    title = figures.budget_title(answers.budget_gains(answers.Records(ROOT / book_tables.STUDY)))
    assert f":alt: {title}" in told, "the title is what was found"
    assert re.search(r"\d+ of the study's \d+ runs are on record", told)
    assert "cohort: camus (real)" in told
    assert "{doc}`chapter 09 </notebooks/09_real_hearts>`" in told


def test_the_first_page_tells_findings_with_interval_cohort_and_link() -> None:
    page, phantom = "notebooks/06_results", "notebooks/11_phantom"
    notebooks = {}
    for name, told in ((page, "- Words help."), (phantom, "- Speckle teaches.\n- Context does not.")):
        output = nbformat.v4.new_output("execute_result", {"text/markdown": told})
        cell = nbformat.v4.new_code_cell("x", outputs=[output], metadata={"tags": ["finding"]})
        notebooks[name] = nbformat.v4.new_notebook(cells=[cell])
    facts = [PageFacts(page, scale="smoke", cohort="phantom-smoke (phantom)")]
    points = book_tables.found(ROOT, notebooks, facts).split("\n- ")[1:]
    assert len(points) == 6
    assert points.pop(2) == f"Speckle teaches. ({{doc}}`chapter 11 </{phantom}>`)"
    for point in points:
        assert re.search(r"\(\{doc\}`chapter \d\d </notebooks/\w+>`\)$", point.split("\n:::")[0])
    for point in points[1:4]:
        assert re.search(r"95 % interval over patients [-+\d.]+ to [-+\d.]+", point.replace("\n", " "))
        assert "patients of" in point
    assert points[4].startswith(
        "On phantom-smoke (phantom), smoke scale, which says nothing about hearts: Words"
    )


def test_the_first_page_names_the_scale_of_this_copy() -> None:
    facts = [
        PageFacts("notebooks/01_x", scale="demo", cohort="c (phantom)", state="fresh"),
        PageFacts("notebooks/02_x", scale="demo", cohort="c (phantom)", state="stale"),
        PageFacts("notebooks/09_x", scale="demo", cohort="as recorded in data", state="fresh"),
        PageFacts("notebooks/08_x", state="not executed"),
    ]
    told = book_tables.scales(facts)
    assert "{doc}`02 </notebooks/02_x>` at demo scale on c (phantom);" in told
    assert "{doc}`09 </notebooks/09_x>` from results on record;" in told
    assert told.endswith("{doc}`08 </notebooks/08_x>` not executed.")


def test_the_rehearsal_is_that_on_record() -> None:
    table = book_tables.rehearsal(ROOT)
    assert "not a result" in table
    assert {"| clipseg |", "| cris |"} <= set(re.findall(r"^\| \w+ \|", table, flags=re.MULTILINE))
    assert "| memory |" in table


def _record(root: Path, name: str, dice: list[float], **columns: list[object]) -> None:
    folder = root / "data" / "results" / name
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({"kind": "real", "scale": "demo", "cohort": "camus"}))
    table = pd.DataFrame({"strategy": "real", "patient": [f"p{i}" for i in range(len(dice))], "dice": dice})
    table = table.assign(
        **{"view": "2CH", "phase": "ED", "sex": None, "age": None, "quality": None} | columns
    )
    before = table.assign(strategy="zeroshot", dice=0.99)
    pd.concat([before, table]).to_parquet(folder / "scores.parquet")


def test_groups_are_told_apart_and_gaps_are_said(tmp_path: Path) -> None:
    assert "nothing to report by group" in book_tables.groups(tmp_path)
    _record(tmp_path, "worse", [0.1, 0.2, 0.3, 0.4])
    sex, ages = ["F", "F", "M", "M"], [30, 70, 70, 80]
    _record(tmp_path, "better", [0.5, 0.7, 0.8, 1.0], sex=sex, age=ages)
    told = book_tables.groups(tmp_path)
    assert "`better`" in told
    assert "| sex | F | 2 | 0.600 |" in told
    assert "| age group | 65 to 129 | 3 | 0.833 |" in told
    assert "do not say quality, so" in told
    assert "0.99" not in told


def test_an_unknown_mark_is_an_error() -> None:
    with pytest.raises(BookError, match=r"book/x: no table 'nothing' to put there; there are: status"):
        book_tables.fill("<!-- generated: nothing -->", {"status": str}, "book/x")


# -- for maintainers ----------------------------------------------------------------------------------------

RELIABILITY = ROOT / book_reliability.FOLDER


def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_a_test_that_exists() -> None:
    page = (ROOT / "book" / "maintainers.md").read_text()
    rows = [
        line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 1
    ]
    promises = [row for row in rows if not row[0].startswith(("| **", "| ---", "| promise"))]
    assert len(promises) >= 30
    for promise, keepers in promises:
        named = re.findall(r"`(tests/\w+/test_\w+\.py)::(\w+)`", keepers)
        assert named, promise
        for file, name in named:
            assert name in _functions(ROOT / file), f"{promise}: {file} has no {name}"


def test_without_a_record_the_page_says_what_makes_it(tmp_path: Path) -> None:
    for name, table in book_reliability.TABLES.items():
        told = table(tmp_path)
        command = re.search(r"`(?:python -m |make )([\w.-]+)", told)
        assert command, name
        module = ROOT / Path(*command[1].split("."))
        is_target = re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert is_target or module.is_dir() or module.with_suffix(".py").is_file(), command[1]


def _reliability(root: Path) -> Path:
    folder = root / book_reliability.FOLDER
    folder.mkdir(parents=True)
    common = {"seed": 1, "half_written": None, "equal": True}
    kill = {"stage": "training", "at": "moment", "found": "epoch 2 of 5", "workers_ended": True, **common}
    wrong = {**kill, "at": "step", "found": "started", "half_written": "history.csv", "equal": False}
    grid = {**kill, "stage": "grid", "found": "grid 1: 1 of 2 cells done"}
    pd.DataFrame([kill, kill, wrong, grid]).to_csv(folder / "faults.csv", index=False)
    disk = {"stage": "scoring", "kibibytes": 8, "needed_kibibytes": 40, "error": "FullDiskError", **common}
    silent = {**disk, "kibibytes": 20, "names_folder": True, "names_remedy": False}
    disk |= {"names_folder": True, "names_remedy": True}
    pd.DataFrame([disk, silent]).to_csv(folder / "disk.csv", index=False)
    pair = {"stage": "sampling", "first": "worked", "second": "worked", **common}
    others = ({**pair, "first": "said so"}, {**pair, "second": "failed: OSError"})
    pd.DataFrame([pair, *others]).to_csv(folder / "concurrency.csv", index=False)
    change = {
        "file": "echovlsm/scoring.py",
        "line": 7,
        "original": "a < b",
        "mutated": "a <= b",
        "caught": True,
    }
    pd.DataFrame([change, {**change, "caught": False}]).to_csv(folder / "mutations.csv", index=False)
    (folder / "coverage.csv").write_text("module,lines,reached\na.py,10,5\nb.py,30,30\nnone.py,0,0\n")
    (folder / "coverage.yaml").write_text(yaml.safe_dump({"commit": "abc", "tests": "all"}))
    run = {"python": "3.13.0", "tests": "all", "passed": 5, "failed": 1, "skipped": 0, "date": "2026-01-01"}
    run |= {"failures": ["tests.test_x::test_y"], "note": "no GPU"}
    (folder / "latest.yaml").write_text(yaml.safe_dump({"newest": run}))
    (folder / "latest.csv").write_text("package,locked,newest\nnumpy,2.4.6,2.5.0\n")
    about = {
        "training": {
            "date": "2026-01-01T00:00",
            "commit": "abc",
            "python": "3.11.7",
            "seed": 1,
            "scale": "smoke",
        }
    }
    (folder / "about.yaml").write_text(yaml.safe_dump({"faults": about}))
    return root


def test_what_was_done_to_break_it_is_counted(tmp_path: Path) -> None:
    told = {name: table(_reliability(tmp_path / name)) for name, table in book_reliability.TABLES.items()}
    assert "4 kills: 3 came out the same" in told["faults"]
    assert "1 left something half-written" in told["faults"]
    assert "| 2 | 1 | epoch 2 of 5: 2; started: 1 | 1 | 2 of 3 |" in told["faults"]
    assert "| 1 | – | 1 of 2 cells done: 1 | 0 | 1 of 1 |" in told["faults"]
    assert "Made: 2026-01-01, commit abc" in told["faults"]
    assert "| 2 (20% to 50%) | 1 of 2 | 0 | 0 | 2 of 2 |" in told["disks"]
    assert "| 3 | 1 | 1 | 1 | 0 | 3 of 3 |" in told["pairs"]
    assert "1 of 2 changed lines were noticed" in told["mutations"]
    assert "a &#60;= b | **no** |" in told["mutations"]
    assert "87.5% of 40 lines in 2 modules" in told["reached"]
    assert told["reached"].index("| a.py | 10 | 50% |") < told["reached"].index("| b.py | 30 | 100% |")
    assert "| newest | 3.13.0 | all | 5 | 1 | 0 | 2026-01-01 |" in told["latest"]
    assert "failed is tests.test_x::test_y" in told["latest"]
    assert "| numpy | 2.4.6 | 2.5.0 |" in told["latest"]


def test_enough_was_killed_and_all_came_out_the_same() -> None:
    """What stands on record; a change that breaks it shows when the record is made again."""
    table = pd.read_csv(RELIABILITY / "faults.csv")
    counts = table[table["at"] == "moment"].groupby("stage").size()
    assert (counts[["phantom", "sampling", "training", "scoring", "grid"]] >= 20).all()
    assert table["equal"].all()
    assert table["half_written"].isna().all()
    disk = pd.read_csv(RELIABILITY / "disk.csv")
    clear = disk["names_folder"] & disk["names_remedy"]
    assert (clear | disk["error"].isna()).all()
    assert disk["equal"].all()
    pairs = pd.read_csv(RELIABILITY / "concurrency.csv")
    assert pairs[["first", "second"]].isin(["worked", "said so"]).all(axis=None)
    assert (pairs[["first", "second"]] == "worked").any(axis=1).all()
    assert pairs["equal"].all()


def test_the_tests_reach_nine_of_ten_lines() -> None:
    """What stands on record; `make coverage` makes it again."""
    file = RELIABILITY / "coverage.csv"
    if not file.is_file():
        pytest.skip("nothing on record: make coverage")
    table = pd.read_csv(file)
    assert table["reached"].sum() >= 0.9 * table["lines"].sum()


# -- cluster ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the project for Snakemake."""
    for name in ("Snakefile", "_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "data").mkdir()
    for name in ("echovlsm", "book", "cluster", "data/weights", "data/results", "data/published"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _snakemake(root: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", *words, "--config", "scale=smoke", "threads=1"]
    environment = _environment(ECHOVLSM_ROOT=str(root), PYTHONPATH=str(ROOT), **more)
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_the_workflow_runs_through_a_submit_script(site: Path) -> None:
    """One real job, submitted, executed in a process of its own, and seen to be done."""
    target = "runs/smoke/phantom-smoke/01_cohort/01_cohort.ipynb"
    done = _snakemake(site, target, "--profile", "cluster/standin")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (site / target).is_file()
    assert (site / ".snakemake" / "standin.log").read_text() == "rule=cohort threads=1 gpus=0\n"


def test_each_job_that_trains_asks_for_one_gpu(site: Path) -> None:
    """The whole study is submitted to a shell that makes the files and runs nothing."""
    shell = site / "pretend"
    shell.write_text(
        '#!/bin/bash\nfor f in $(python3 "$STANDIN_READ" "$1"); do\n'
        '    mkdir -p "$(dirname "$f")"; touch "$f"\ndone\n'
    )
    shell.chmod(0o755)
    reader = site / "read.py"
    reader.write_text(
        "import json, re, sys\n"
        "text = open(sys.argv[1]).read()\n"
        "job = json.loads(re.search(r'# properties = (.*)', text)[1])\n"
        "done = re.findall(r'[^\\s\"\\']*\\.jobfinished', text)\n"
        "print(*job['output'], *done)\n"
    )
    more = {"STANDIN_SHELL": str(shell), "STANDIN_READ": str(reader)}
    done = _snakemake(site, "study", "--profile", "cluster/standin", "--jobs", "8", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (site / ".snakemake" / "standin.log").read_text().splitlines()
    asked = [dict(word.split("=") for word in line.split()) for line in lines]
    gpus = {job["rule"]: job["gpus"] for job in asked}
    expected = {"cell", "train", "evaluate", "synthesis"}
    assert {rule for rule, count in gpus.items() if count == "1"} == expected & set(gpus)
    assert {"cohort", "prompts", "results"} <= {rule for rule, count in gpus.items() if count == "0"}
    assert set(gpus.values()) == {"0", "1"}


def test_the_slurm_profile_asks_for_what_the_page_says() -> None:
    profile = yaml.safe_load((ROOT / "cluster" / "slurm" / "config.yaml").read_text())
    assert profile["executor"] == "slurm"
    assert profile["retries"] >= 1
    assert {"slurm_partition", "runtime", "mem_mb"} <= set(profile["default-resources"])
    page = (ROOT / "book" / "cluster.md").read_text()
    for path in re.findall(r"--profile (cluster/\w+)", page):
        assert (ROOT / path / "config.yaml").is_file()


def _array(
    folder: Path, index: str, *words: str, **more: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The job array's script with a `python` that writes down what it is called with."""
    fake = folder / "python"
    fake.write_text('#!/bin/bash\necho "$@" >> "$CALLS"\n')
    fake.chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    more |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "SLURM_ARRAY_TASK_ID": index}
    command = ["bash", str(ROOT / "cluster" / "seeds.sbatch"), *words]
    done = subprocess.run(command, env=_environment(**more), capture_output=True, text=True, check=False)
    return done, calls.read_text().splitlines()


def test_an_array_trains_and_scores_one_seed_a_task(tmp_path: Path) -> None:
    done, calls = _array(tmp_path, "1", "camus", "/some/where", "-p", "prompt", "P3")
    assert done.returncode == 0, done.stderr
    assert [call.split()[3] for call in calls] == [
        "notebooks/04_training.ipynb",
        "notebooks/05_evaluation.ipynb",
    ]
    end = "-f notebooks/profiles/camus.yaml -p cohort /some/where -p seed 43 -p prompt P3"
    assert all(call.endswith(end) for call in calls)
    assert "-p seed 7 " in f"{_array(tmp_path, '0', 'demo', 'x', SEEDS='7 8')[1][0]} "


def test_an_array_longer_than_its_seeds_or_without_a_cohort_stops(tmp_path: Path) -> None:
    done, calls = _array(tmp_path, "3", "camus", "/some/where")
    assert done.returncode != 0
    assert "longer than SEEDS" in done.stderr
    assert calls == []
    assert "name a cohort folder" in _array(tmp_path, "0", "camus")[0].stderr
