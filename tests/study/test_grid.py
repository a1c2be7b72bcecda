"""The grid: which cells there are, what they need and cost, and how their results become one table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from echovlsm import STRUCTURES
from echovlsm.base.run_folder import RunFolder
from echovlsm.evaluation import statistics
from echovlsm.study import grid
from echovlsm.study.differences import UNEQUAL
from echovlsm.study.grid import Cell, read_grid
from echovlsm.study.grid.cells import GridError
from echovlsm.study.grid.results import NO_WORDS, told_of_verdicts
from tests.conftest import ROOT

DEMO = ROOT / "notebooks" / "grids" / "demo.yaml"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A grid file of few cells."""
    block = {
        "models": ["clipseg"],
        "prompts": ["P0", "P7"],
        "strategies": ["zeroshot", "synthetic", "real", "synth-PT:real-FT"],
        "encoders": ["unfrozen"],
        "seeds": [1, 2],
    }
    models = {"clipseg": {"weights": "here", "learning_rate": 0.5}, "unet": {"weights": ""}}
    blind = {**block, "models": ["unet"], "prompts": ["P1"], "strategies": ["real"]}
    path = tmp_path / "small.yaml"
    content = {"parameters": {"epochs": 3}, "models": models, "blocks": [block, blind]}
    path.write_text(yaml.safe_dump(content))
    return path


def _complete(folder: Path, cell: Cell, dice: float, **changes: object) -> None:
    """A complete run of `cell` with one patient's three masks."""
    run = RunFolder(folder / cell.name)
    own = {"model": cell.model, "prompt": cell.prompt, "strategy": cell.strategy, "encoders": cell.encoders}
    rows = [
        {
            "patient": "a",
            "view": "2CH",
            "phase": "ED",
            "structure": name,
            "dice": dice,
            **own,
            "seed": cell.seed,
        }
        for name in STRUCTURES.values()
    ]
    run.write_table("scores.parquet", pd.DataFrame(rows))
    history = {"epoch": [1], "train_loss": [1.0], "val_loss": [1.0], "val_dice": [dice], "seconds": [2.0]}
    run.write_table("history.csv", pd.DataFrame(history))
    record = {
        "status": "complete",
        "scale": "smoke",
        "strategy": cell.strategy,
        "code_hash": "c",
        "seconds": 8.0,
        "evaluation": {"data_hash": "d", "seconds": 2.0},
    }
    run.write_yaml("run.yaml", {**record, **changes})


def test_the_demo_grid_has_what_the_paper_compares() -> None:
    cells = read_grid(DEMO).cells
    assert len(set(cells)) == len(cells)
    words = [cell for cell in cells if cell.model != "unet"]
    assert {cell.model for cell in words} == {"clipseg", "cris"}
    assert {"P0", "P1", "P7"} <= {cell.prompt for cell in words}
    assert {cell.strategy for cell in words} == set(statistics.STRATEGY_ORDER)
    assert {cell.encoders for cell in words} == {"frozen", "unfrozen"}
    for strategy in ("real", "synth-PT:real-FT", "joint"):
        seeds = {c.seed for c in words if (c.strategy, c.encoders, c.prompt) == (strategy, "unfrozen", "P7")}
        assert len(seeds) >= 2
    assert {cell.strategy for cell in cells if cell.model == "unet"} >= {"real", "synthetic"}


def test_a_finetuning_comes_after_the_run_it_starts_from(small: Path) -> None:
    cells = read_grid(small, {"strategies": "synth-PT:real-FT"}).cells
    for cell in cells:
        before = cell.pretraining
        if before is not None and cell.model != "unet":
            assert cells.index(before) < cells.index(cell)
    at_p7 = Cell("clipseg", "P7", "synth-PT:real-FT", "unfrozen", 1)
    assert at_p7.pretraining == Cell("clipseg", "P6", "synthetic", "unfrozen", 1)
    assert Cell("clipseg", "P7", "real", "unfrozen", 1).pretraining is None


def test_nothing_is_asked_twice(small: Path) -> None:
    cells = read_grid(small).cells
    zeroshot = [cell for cell in cells if cell.strategy == "zeroshot"]
    assert [(cell.prompt, cell.seed) for cell in zeroshot] == [("P0", 1), ("P7", 1)]
    assert all(cell.notebooks == ("05_evaluation",) for cell in zeroshot)
    assert not [cell for cell in cells if cell.strategy == "synthetic" and cell.prompt == "P7"]
    assert len(set(cells)) == len(cells)


def test_axes_of_the_command_line_replace_those_of_the_file(small: Path) -> None:
    asked = {"prompts": "P1,P3", "seeds": 7, "strategies": ["real"]}
    cells = read_grid(small, asked).cells
    assert {(cell.model, cell.prompt, cell.seed) for cell in cells} == {
        ("clipseg", "P1", 7),
        ("clipseg", "P3", 7),
        ("unet", "P1", 7),
    }
    assert {cell.model for cell in read_grid(small, {"models": "unet"}).cells} == {"unet"}


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"prompts": "P9"}, "prompts 'P9'"),
        ({"strategies": "guess"}, "strategies 'guess'"),
        ({"seeds": "one"}, "whole numbers"),
        ({"colours": "red"}, "no axis"),
        ({"models": "cris"}, "no weights for cris"),
        ({"prompts": " , "}, "prompts is empty"),
    ],
)
def test_a_wrong_axis_is_named(small: Path, axes: dict[str, object], told: str) -> None:
    with pytest.raises(GridError, match=told):
        read_grid(small, axes)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"nowhere\.yaml does not exist"):
        read_grid(tmp_path / "nowhere.yaml")
    (tmp_path / "odd.yaml").write_text("blocks: []\n")
    with pytest.raises(GridError, match="parameters, models and blocks"):
        read_grid(tmp_path / "odd.yaml")


def test_a_cell_takes_what_is_shared_what_is_the_models_and_what_is_its_own(small: Path) -> None:
    cells = read_grid(small)
    cell = Cell("clipseg", "P0", "real", "unfrozen", 2)
    values = cells.parameters_of(cell, "runs/x/grid")
    assert values["epochs"] == 3
    assert (values["weights"], values["learning_rate"]) == ("here", 0.5)
    assert (values["prompt"], values["strategy"], values["seed"]) == ("P0", "real", 2)
    assert values["run"] == "runs/x/grid/clipseg-P0-real-unfrozen-seed2"


def test_cost_is_told_from_the_cells_that_ran(small: Path, tmp_path: Path) -> None:
    cells = read_grid(small, {"strategies": "real"})  # clipseg P0 P7, unet, two seeds each
    ran = Cell("clipseg", "P0", "real", "unfrozen", 1)
    _complete(tmp_path, ran, 0.5)
    table = grid.estimate(cells, tmp_path)
    rest = table[~table["done"]]
    assert table["done"].sum() == 1
    assert (rest.loc[rest["model"] == "clipseg", "seconds"] == 10.0).all()
    line = grid.cost_line(table[table["model"] == "clipseg"], cores=2)
    assert "4 cells, 3 to run" in line
    assert "0.5 minutes one after another, 0.2 on 2 cores" in line


def test_an_unfinished_cell_costs_and_is_left_out(small: Path, tmp_path: Path) -> None:
    cells = read_grid(small, {"models": "clipseg", "strategies": "real", "prompts": "P0"})
    one, two = cells.cells
    _complete(tmp_path, one, 0.5)
    _complete(tmp_path, two, 0.7, status="started")
    results = grid.collect(cells, tmp_path)
    assert list(results["cells"]["done"]) == [True, False]
    assert set(results["scores"]["seed"]) == {1}
    assert [cell for cell, _ in grid.runs_of(cells, tmp_path, prompt="P0")] == [one]
    assert grid.runs_of(cells, tmp_path, prompt="P1") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale": "full"}, "scale"),
        ({"code_hash": "other"}, "code"),
        ({"evaluation": {"data_hash": "other", "seconds": 1.0}}, "scored images"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(
    small: Path, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    cells = read_grid(small, {"models": "clipseg", "strategies": "real", "prompts": "P0"})
    _complete(tmp_path, cells.cells[0], 0.5)
    _complete(tmp_path, cells.cells[1], 0.7, **changes)
    with pytest.raises(GridError, match=f"differ in {told}"):
        grid.collect(cells, tmp_path)


def test_the_reference_has_a_column_of_its_own(small: Path, tmp_path: Path) -> None:
    cells = read_grid(small, {"strategies": "real", "prompts": "P0", "seeds": 1})
    for cell, dice in zip(cells.cells, (0.5, 0.9), strict=True):
        _complete(tmp_path, cell, dice)
    table = statistics.summary_table(grid.collect(cells, tmp_path)["scores"])
    assert table.loc[("unet", "real"), NO_WORDS].startswith("90.00")
    assert table.loc[("unet", "real"), "P0"] == statistics.ABSENT
    assert table.loc[("clipseg", "real"), "P0"].startswith("50.00")


def test_an_empty_grid_says_what_to_do(small: Path, tmp_path: Path) -> None:
    with pytest.raises(GridError, match="snakemake grid"):
        grid.collect(read_grid(small), tmp_path)


def test_a_strategy_has_parameters_of_its_own(small: Path) -> None:
    small.write_text(small.read_text() + "strategies:\n  synthetic: {steps: 80}\n")
    cells = read_grid(small, {"strategies": "synth-PT:real-FT", "models": "clipseg"})
    steps = {cell.strategy: cells.parameters_of(cell, "x").get("steps") for cell in cells.cells}
    assert steps == {"synthetic": 80, "synth-PT:real-FT": None}
    small.write_text(small.read_text().replace("synthetic: {steps", "guess: {steps"))
    with pytest.raises(GridError, match="'guess' is not known"):
        read_grid(small)


def _scores(gain: float, seeds: tuple[int, ...]) -> pd.DataFrame:
    """Scores of `real`, and of `joint` that is better by `gain`; patients differ, and so do seeds."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(30):
        level, off = rng.uniform(0.6, 0.8), rng.normal(0, 0.01)
        for seed in seeds:
            for strategy, more in (("real", 0.0), ("joint", gain + off + 0.001 * seed)):
                about = {"model": "cris", "prompt": "P1", "seed": seed, "strategy": strategy}
                rows.append({**about, "patient": f"p{patient}", "dice": level + more})
    return pd.DataFrame(rows)


def test_a_gain_is_a_finding_over_patients_and_seeds_only() -> None:
    names, by = ["joint", "synthetic"], ["model", "prompt"]
    found = grid.gains(_scores(0.05, (1, 2)), names, "real", "strategy", by)
    assert found["strategy"].tolist() == ["joint"]  # no cell has the other
    row = found.iloc[0]
    assert row["verdict"] == "higher"
    assert row["low"] > 0
    assert row["gain"] == pytest.approx(0.05, abs=0.01)
    alone = grid.gains(_scores(0.05, (1,)), names, "real", "strategy", by).iloc[0]
    assert alone["verdict"] == "one seed"
    none = grid.gains(_scores(0.0, (-1, 1)), names, "real", "strategy", by).iloc[0]
    assert none["verdict"] == "no difference shown"
    assert grid.gains(_scores(0.05, (1,)), ["synthetic"], "real", "strategy", by).empty


def test_a_gain_at_unequal_steps_is_no_finding() -> None:
    """The steps of a pretraining count: those of the strategy `synthetic`."""
    same = {"encoders": "unfrozen", "model": "cris", "verdict": "higher"}
    strategies = ("joint", "synth-PT:real-FT", "synthetic")
    table = pd.DataFrame([{**same, "strategy": name} for name in strategies])
    steps = {"real": 8, "joint": 8, "synth-PT:real-FT": 4, "synthetic": 4}
    rows = [{**same, "strategy": name, "step": step} for name, steps in steps.items() for step in (1, steps)]
    assert grid.at_equal_steps(table, pd.DataFrame(rows))["verdict"].tolist() == [
        "higher",
        "higher",
        UNEQUAL,
    ]
    alone = pd.DataFrame(rows)[lambda rows: rows["strategy"] != "synthetic"]
    found = grid.at_equal_steps(table[:2], alone)["verdict"].tolist()
    assert found == ["higher", UNEQUAL], "a pretraining that is not there is not taken for none"


def test_verdicts_are_counted_in_words() -> None:
    verdicts = ["lower", "no difference shown", "lower", UNEQUAL]
    told = told_of_verdicts(pd.DataFrame({"verdict": verdicts}))
    assert told == "lower in 2, no difference shown in 1, unequal steps in 1 of 4 comparisons"
