"""Which cells a grid has, what each needs, and what it cost or is likely to cost.

A grid is a file in `notebooks/grids`: blocks of axes, the weights of each model, and parameters that all
cells share. Each cell is one run of notebooks 04 and 05.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import RunFolder, files, paths
from echovlsm.prompts import level_for
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

_KEYS = {"parameters": dict, "models": dict, "strategies": dict, "blocks": list}
_FORM = "notebooks/grids/demo.yaml shows the form"


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
    cells
        In the file's order, each one after the one it starts from.
    parameters
        What all cells share beyond the profile.
    models
        Parameters of each model, its `weights` at least.
    strategies
        Parameters of some strategies, such as `steps`: those of a pretraining count in its finetuning's cost.
    """

    cells: tuple[Cell, ...]
    parameters: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    strategies: Mapping[str, Mapping[str, Any]]

    def parameters_of(self, cell: Cell, folder: str | Path) -> dict[str, Any]:
        """A cell's notebook parameters on top of the profile's; `folder` holds the run folders."""
        run = (Path(folder) / cell.name).as_posix()
        more = {**self.models[cell.model], **self.strategies.get(cell.strategy, {})}
        return {**self.parameters, **more, **vars(cell), "run": run}


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
    content = files.read_yaml(path, GridError, _FORM)
    content.setdefault("strategies", {})
    if set(content) != set(_KEYS):
        raise GridError(
            f"grid: {path} must have the keys parameters, models and blocks; beyond them only strategies"
        )
    for name, kind in _KEYS.items():
        if not isinstance(content[name], kind):
            form = "names with values" if kind is dict else "a list of blocks"
            raise GridError(f"grid: {name} of {path} must be {form}; {_FORM}")
    if content["strategies"]:
        _values("strategies", list(content["strategies"]), path)
    for name, own in (content["models"] | content["strategies"]).items():
        if not isinstance(own, dict):
            raise GridError(
                f"grid: {path} must give {name} names with values, a model its `weights` at least"
            )
    asked = {name: _values(name, values, path) for name, values in (axes or {}).items()}
    cells: dict[Cell, None] = {}  # in order, none twice
    for block in content["blocks"]:
        lists = _axes_of(block, asked, content["models"], path)
        for model, prompt, strategy, encoders, seed in itertools.product(*lists):
            if strategy == "zeroshot" and seed != lists[-1][0]:
                continue  # nothing is drawn, so that a second seed would be the same
            level = level_for(prompt, synthetic=strategy == "synthetic")
            cell = Cell(model, level, strategy, encoders, seed)
            if cell.pretraining is not None:
                cells.setdefault(cell.pretraining)
            cells.setdefault(cell)
    return Grid(tuple(cells), content["parameters"], content["models"], content["strategies"])


def _axes_of(
    block: Mapping[str, Any], asked: Mapping[str, list[Any]], models: Mapping[str, Any], path: Path
) -> list[list[Any]]:
    names = {axis: "encoders" if axis == "encoder_modes" else axis for axis in AXES}
    if not isinstance(block, dict) or set(block) != set(names.values()):
        raise GridError(f"grid: a block of {path} must have exactly the keys {', '.join(names.values())}")
    lists = {axis: _values(axis, block[name], path) for axis, name in names.items()}
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
    return list(lists.values())


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


def runs_of(grid: Grid, folder: str | Path, **wanted: Any) -> list[tuple[Cell, RunFolder]]:
    """The complete cells that have the wanted values, with their run folders."""
    every = ((cell, RunFolder(paths.resolve(folder) / cell.name)) for cell in grid.cells)
    return [
        (cell, run)
        for cell, run in every
        if all(getattr(cell, key) == value for key, value in wanted.items()) and cell_seconds(run)
    ]


def estimate(grid: Grid, folder: str | Path) -> pd.DataFrame:
    """What each cell took, or is likely to take.

    Complete cells of this grid tell most: the mean of those with the same model, strategy and encoders, else
    with the same model. Where there are none, the recorded times of the demo grid stand in as they are,
    though they are those of its few small images.

    Returns
    -------
    DataFrame
        One row a cell: `model, prompt, strategy, encoders, seed, done, seconds, source`; seconds NA where
        nothing is known.
    """
    known = [cell_seconds(RunFolder(paths.resolve(folder) / cell.name)) for cell in grid.cells]
    table = pd.DataFrame(list(map(vars, grid.cells)))
    table = table.assign(done=False, seconds=pd.array(known, dtype="Float64"))
    table["done"] = table["seconds"].notna()
    table["source"] = table["done"].map({True: "measured", False: pd.NA})
    sources = {"this grid": table[table["done"]]}
    recorded = paths.resolve(RECORDED_COSTS)
    if recorded.is_file():
        sources["demo grid on record"] = pd.read_csv(recorded)
    for name, costs in sources.items():
        for keys in (["model", "strategy", "encoders"], ["model"]):
            means = costs.groupby(keys)["seconds"].mean().rename("guess").reset_index()
            guess = table[keys].merge(means, on=keys, how="left")["guess"].to_numpy()
            fill = table["seconds"].isna() & pd.notna(guess)
            table.loc[fill, "seconds"] = guess[fill]
            table.loc[fill, "source"] = name
    return table


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
