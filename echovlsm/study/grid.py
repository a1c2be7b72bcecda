"""The grid: models x prompts x strategies x encoders x seeds, each cell one run of notebooks 04 and 05.

A grid is a file in `notebooks/grids`: blocks of axes, the weights of each model, and parameters that all
cells share. Snakemake runs the cells (`snakemake grid`); here stands which there are, what each needs, what
they are likely to cost, and how their results become one table.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import RunFolder, files, paths
from echovlsm.evaluation import scoring
from echovlsm.prompts import level_for
from echovlsm.study.differences import UNEQUAL, difference, judge
from echovlsm.study.parameters import CHOICES

AXES: dict[str, str] = {
    "models": "model",
    "prompts": "prompt",
    "strategies": "strategy",
    "encoder_modes": "encoders",
    "seeds": "seed",
}
"""Axis as the command line names it to the notebooks' parameter. In the file the fourth is `encoders`."""

RECORDED_COSTS = "data/results/grid/costs.csv"
"""Seconds that a cell of the demo grid took, for where no cell of a grid has run yet."""

NO_WORDS = "no words"
"""What stands for the prompt of the text-blind reference in tables."""


class GridError(ValueError):
    """A grid file, an axis or a cell's results that cannot be used."""


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the grid."""

    model: str
    prompt: str
    strategy: str
    encoders: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell's run folder."""
        strategy = self.strategy.replace(":", "_")
        return f"{self.model}-{self.prompt}-{strategy}-{self.encoders}-seed{self.seed}"

    @property
    def pretraining(self) -> Cell | None:
        """The cell from which this one starts; synthetic cohorts have P6 where others have P7."""
        if self.strategy != "synth-PT:real-FT":
            return None
        level = level_for(self.prompt, synthetic=True)
        return Cell(self.model, level, "synthetic", self.encoders, self.seed)

    @property
    def notebooks(self) -> tuple[str, ...]:
        """What has to be executed, in order; nothing is trained for a zero-shot score."""
        return ("05_evaluation",) if self.strategy == "zeroshot" else ("04_training", "05_evaluation")


@dataclass(frozen=True)
class Grid:
    """The cells of a grid file, with the command line's axes, and their parameters.

    Attributes
    ----------
    file
        The grid file.
    cells
        In the file's order, each one after the one it starts from.
    parameters
        What all cells share beyond the profile.
    models
        Parameters of each model, its `weights` at least.
    strategies
        Parameters of some strategies, such as `steps`: those of a pretraining count in its finetuning's cost.
    """

    file: Path
    cells: tuple[Cell, ...]
    parameters: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    strategies: Mapping[str, Mapping[str, Any]]

    def parameters_of(self, cell: Cell, folder: str | Path) -> dict[str, Any]:
        """A cell's notebook parameters on top of the profile's; `folder` holds the run folders."""
        own = {name: getattr(cell, name) for name in AXES.values()}
        run = (Path(folder) / cell.name).as_posix()
        more = {**self.models[cell.model], **self.strategies.get(cell.strategy, {})}
        return {**self.parameters, **more, **own, "run": run}


def read_grid(file: str | Path, axes: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid file.

    Parameters
    ----------
    file
        A file of `notebooks/grids`.
    axes
        Axes of the command line (keys of `AXES`), as lists or as text with commas; each takes the place of
        that axis in every block but those of the text-blind reference, which has neither words nor encoders.

    Raises
    ------
    GridError
        The file is missing or not of this form, or an axis has a value that does not exist.
    """
    path = paths.resolve(file)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise GridError(f"grid: {path} does not exist; there are: {known}")
    content = files.read_yaml(path, GridError, "notebooks/grids/demo.yaml shows the form")
    content.setdefault("strategies", {})
    if set(content) != {"parameters", "models", "strategies", "blocks"}:
        raise GridError(
            f"grid: {path} must have the keys parameters, models and blocks; beyond them only strategies"
        )
    for name, kind in (("parameters", dict), ("models", dict), ("strategies", dict), ("blocks", list)):
        if not isinstance(content[name], kind):
            form = "names with values" if kind is dict else "a list of blocks"
            raise GridError(f"grid: {name} of {path} must be {form}; notebooks/grids/demo.yaml shows it")
    if content["strategies"]:
        _values("strategies", list(content["strategies"]), path)
    bare = [
        name
        for part in ("models", "strategies")
        for name, own in content[part].items()
        if not isinstance(own, dict)
    ]
    if bare:
        raise GridError(f"grid: {path} must give {bare[0]} names with values, a model its `weights` at least")
    asked = {name: _values(name, values, path) for name, values in (axes or {}).items()}
    cells: dict[Cell, None] = {}
    for block in content["blocks"]:
        lists = _axes_of(block, asked, content["models"], path)
        for model, prompt, strategy, encoders, seed in itertools.product(*lists):
            if strategy == "zeroshot" and seed != lists[-1][0]:
                continue  # nothing is drawn, so that a second seed would be the same
            level = level_for(prompt, synthetic=strategy == "synthetic")
            cell = Cell(model, level, strategy, encoders, seed)
            before = cell.pretraining
            if before is not None:
                cells.setdefault(before)
            cells.setdefault(cell)
    return Grid(path, tuple(cells), *(content[name] for name in ("parameters", "models", "strategies")))


def _axes_of(
    block: Mapping[str, Any], asked: Mapping[str, list[Any]], models: Mapping[str, Any], path: Path
) -> list[list[Any]]:
    in_file = {"encoder_modes": "encoders"}
    names = [in_file.get(name, name) for name in AXES]
    if not isinstance(block, dict) or set(block) != set(names):
        raise GridError(f"grid: a block of {path} must have exactly the keys {', '.join(names)}")
    lists = {axis: _values(axis, block[name], path) for axis, name in zip(AXES, names, strict=True)}
    blind = lists["models"] == ["unet"]
    for axis, values in asked.items():
        if axis == "models":
            lists[axis] = [model for model in values if (model == "unet") == blind]
        elif not (blind and axis in ("prompts", "encoder_modes")):
            lists[axis] = values
    if blind:
        lists["strategies"] = [name for name in lists["strategies"] if name != "zeroshot"]
    absent = [model for model in lists["models"] if model not in models]
    if absent:
        raise GridError(f"grid: {path} names no weights for {', '.join(absent)}; add them under models")
    return [lists[axis] for axis in AXES]


def _values(axis: str, values: Any, path: Path) -> list[Any]:
    if axis not in AXES:
        raise GridError(f"grid: {axis!r} is no axis; there are {', '.join(AXES)}")
    if isinstance(values, str):
        values = [value.strip() for value in values.split(",") if value.strip()]
    values = list(values) if isinstance(values, list | tuple) else [values]
    if axis == "seeds":
        try:
            values = [int(value) for value in values]
        except (TypeError, ValueError):
            raise GridError(f"grid: seeds {values} must be whole numbers") from None
    allowed = CHOICES.get(AXES[axis])
    strange = [value for value in values if allowed and value not in allowed]
    if strange:
        raise GridError(f"grid: {axis} {strange[0]!r} is not known; allowed: {', '.join(allowed)}")
    if not values:
        raise GridError(f"grid: {axis} is empty in {path}")
    return values


# -- costs ----------------------------------------------------------------------------------------------


def cell_seconds(run: RunFolder) -> float | None:
    """Seconds that a complete cell took, training and scoring; None where it is not complete."""
    record = run.record
    scored = record.get("evaluation", {}).get("seconds")
    if record.get("status") != "complete" or scored is None:
        return None
    trained = 0.0 if record.get("strategy") == "zeroshot" else record.get("seconds", 0.0)
    return float(trained) + float(scored)


def estimate(grid: Grid, folder: str | Path) -> pd.DataFrame:
    """What each cell took, or is likely to take.

    Complete cells of this grid tell most: the mean of those with the same model, strategy and encoders, else
    with the same model. Where there are none, the recorded times of the demo grid stand in as they are,
    though they are those of its few small pictures.

    Returns
    -------
    DataFrame
        One row a cell: `model, prompt, strategy, encoders, seed, done, seconds, source`; seconds NA where
        nothing is known.
    """
    rows = []
    for cell in grid.cells:
        known = cell_seconds(RunFolder(paths.resolve(folder) / cell.name))
        rows.append({name: getattr(cell, name) for name in AXES.values()} | {"seconds": known})
    table = pd.DataFrame(rows).astype({"seconds": "Float64"})
    table["done"] = table["seconds"].notna()
    table["source"] = table["done"].map({True: "measured", False: pd.NA})
    recorded = paths.resolve(RECORDED_COSTS)
    sources = {"this grid": table[table["done"]]}
    if recorded.is_file():
        sources["demo grid on record"] = pd.read_csv(recorded)
    for name, known in sources.items():
        for keys in (["model", "strategy", "encoders"], ["model"]):
            means = known.groupby(keys)["seconds"].mean().rename("guess").reset_index()
            guess = table[keys].merge(means, on=keys, how="left")["guess"].to_numpy()
            fill = table["seconds"].isna() & pd.notna(guess)
            table.loc[fill, "seconds"] = guess[fill]
            table.loc[fill, "source"] = name
    return table[[*AXES.values(), "done", "seconds", "source"]]


def cost_line(table: pd.DataFrame, cores: int = 1) -> str:
    """What of an `estimate` is still to run and what it would cost, in one line."""
    rest = table[~table["done"]]
    line = f"grid: {len(table)} cells, {len(rest)} to run"
    if rest.empty:
        return line
    known = rest["seconds"].dropna()
    if known.empty:
        return f"{line}; no times on record to tell the cost"
    sources = " and ".join(sorted(set(rest["source"].dropna())))
    minutes = known.sum() / 60
    text = f"{line}: about {minutes:.1f} minutes one after another, {minutes / cores:.1f} on {cores} cores"
    unknown = len(rest) - len(known)
    return f"{text} (times: {sources})" + (f"; {unknown} cells of unknown cost" if unknown else "")


# -- results --------------------------------------------------------------------------------------------


def collect(grid: Grid, folder: str | Path) -> dict[str, pd.DataFrame]:
    """The results of a grid's complete cells.

    Returns
    -------
    dict
        `scores` (one row a mask of the three structures; the text-blind reference has the prompt
        `NO_WORDS`), `histories` (one row an epoch, with the cell's columns), `cells` (one row a cell: its
        columns, `done`, `seconds`, `training_seconds`, `peak_memory_gib`, `name`). `scores.attrs` has
        `scale`, `cohort` and `kind`.

    Raises
    ------
    GridError
        No cell is complete, or two were made at different scales, on different pictures or with other code.
    """
    scores, histories, cells, first = [], [], [], None
    for cell in grid.cells:
        run = RunFolder(paths.resolve(folder) / cell.name)
        record, own = run.record, {name: getattr(cell, name) for name in AXES.values()}
        seconds = cell_seconds(run)
        about = own | {"name": cell.name, "done": seconds is not None, "seconds": seconds}
        for key in ("training_minutes", "peak_memory_gib", "date"):
            about[key] = record.get(key)
        cells.append(about)
        if seconds is None:
            continue
        same = {
            "scale": record.get("scale"),
            "scored pictures": record["evaluation"].get("data_hash"),
            "code": record.get("code_hash"),
        }
        first = first or (cell.name, same)
        for key, value in same.items():
            if value != first[1][key]:
                raise GridError(
                    f"grid: {cell.name} and {first[0]} differ in {key} ({value}, {first[1][key]}), so that "
                    f"they cannot stand in one table; run `snakemake grid` again"
                )
        remedy = f"delete {run.path} and run `snakemake grid` again"
        table = files.read_table(run / "scores.parquet", GridError, remedy, ("model", "prompt", "dice"))
        scores.append(scoring.three_structures(table))
        if cell.strategy != "zeroshot":
            history = files.read_table(run / "history.csv", GridError, remedy, ("epoch", "val_dice"))
            histories.append(history.assign(**own))
    if not scores:
        raise GridError(f"grid: no complete cell in {paths.resolve(folder)}; run `snakemake grid` first")
    table = pd.concat(scores, ignore_index=True)
    table["prompt"] = table["prompt"].mask(table["model"] == "unet", NO_WORDS)
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    return {"scores": table, "histories": history, "cells": pd.DataFrame(cells)}


def costs(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds by model, strategy and encoders of the complete cells, for `RECORDED_COSTS`."""
    done = cells[cells["done"]]
    return done.groupby(["model", "strategy", "encoders"], as_index=False)["seconds"].mean().round(2)


def gains(
    scores: pd.DataFrame, names: Sequence[str], base: str, column: str, by: Sequence[str]
) -> pd.DataFrame:
    """Values of a column less another, in each cell that has both with a common seed: one family.

    Parameters
    ----------
    scores
        Of `collect`.
    names, base
        Values of `column`; each of `names` less `base`.
    by
        Columns that make a cell.

    Returns
    -------
    DataFrame
        `column`, `by`, `dice` (mean of the former on the seeds that both have), and as of `judge`; empty
        where no cell has both.
    """
    rows = []
    for cell, part in scores.groupby(list(by), sort=False):
        arms = {
            name: own.groupby(["seed", "patient"])["dice"].mean().unstack("patient")
            for name, own in part.groupby(column)
        }
        for name in names:
            found = difference(arms[name], arms[base]) if {name, base} <= set(arms) else None
            if found:
                seeds = arms[name].index.intersection(arms[base].index)
                own = {column: name, **dict(zip(by, cell, strict=True))}
                rows.append({**own, "dice": float(arms[name].loc[seeds].to_numpy().mean()), **found})
    return judge(rows)


def at_equal_steps(table: pd.DataFrame, histories: pd.DataFrame) -> pd.DataFrame:
    """`gains` of strategies less `real`, where those of unequal steps are no findings.

    Parameters
    ----------
    table
        Of `gains`, by encoders, model and prompt.
    histories
        Of `collect`; the steps of a finetuning are its own and those of the strategy `synthetic`.

    Returns
    -------
    DataFrame
        The table with the verdict ``unequal steps`` where a strategy and `real` did not take equally many.
    """
    if table.empty:
        return table
    steps = histories.groupby(["encoders", "model", "strategy"])["step"].max().unstack("strategy")
    if (tuned := "synth-PT:real-FT") in steps:
        steps[tuned] += steps.get("synthetic", float("nan"))
    own = [steps.loc[(row.encoders, row.model), row.strategy] for row in table.itertuples()]
    plain = [steps.loc[(row.encoders, row.model), "real"] for row in table.itertuples()]
    equal = [one == other for one, other in zip(own, plain, strict=True)]
    return table.assign(verdict=table["verdict"].where(equal, UNEQUAL))


def runs_of(grid: Grid, folder: str | Path, **wanted: Any) -> Sequence[tuple[Cell, RunFolder]]:
    """The complete cells that have the wanted values, with their run folders."""
    found = []
    for cell in grid.cells:
        run = RunFolder(paths.resolve(folder) / cell.name)
        if all(getattr(cell, key) == value for key, value in wanted.items()) and cell_seconds(run):
            found.append((cell, run))
    return found
