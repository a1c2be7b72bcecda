"""What the records of the study's queue say, in numbers.

What a difference is, and when it is a finding, `echovlsm.study.differences` says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.study.differences import LEVEL, SEED, crossed, difference, interval, judge, weights
from echovlsm.study.plan import ALL, HELD_OUT, NOTHING, VALIDATION, Recipe, Run, study

BUDGET = {"model": "cris", "prompt": "P1", "encoders": "unfrozen"}
"""What all runs of the annotation budget share."""

ARMS: tuple[str, ...] = ("nothing", "phantom", "diffusion", "diffusion+phantom", "diffusion-few")

STRATEGIES: dict[str, str] = {
    "zeroshot": "zeroshot",
    "synthetic": "synthetic",
    "nothing": "real",
    "diffusion": "synth-PT:real-FT",
    "phantom": "phantom-PT:real-FT",
    "joint": "joint",
}
"""The paper's names (and ours) of the arms in its table."""

LEARNS_FROM_REAL: tuple[str, ...] = (NOTHING, "diffusion", "phantom")
"""Arms that are also run with few patients."""

BELOW = 0.01
"""How far below the final Dice of `real` the target of `convergence` lies."""

RESAMPLES = 2000
"""Bootstrap samples of `patients_saved`."""


class AnswerError(ValueError):
    """Records that cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Records:
    """The finished runs of the study.

    Parameters
    ----------
    folder
        Folder of the queue's records; it may be empty.
    recipe
        The recipe of the study; runs of other recipes only served to choose it.
    """

    folder: Path
    recipe: Recipe = field(default_factory=Recipe)

    @cached_property
    def found(self) -> dict[str, dict[str, Any]]:
        """Every record, by the name of its run."""
        read = {}
        for file in sorted(Path(self.folder).glob("*.json")):
            try:
                read[file.stem] = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise AnswerError(
                    f"{file}: not readable ({error}); restore it, or delete it and run it again"
                ) from error
        return read

    @cached_property
    def plan(self) -> list[Run]:
        """Every run of the study."""
        return study(self.recipe)

    @cached_property
    def missing(self) -> list[Run]:
        """Runs without a record."""
        return [run for run in self.plan if run.name not in self.found]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Finished runs of the plan: name, block, arm, model, encoders, prompt, patients, seed, choice."""
        keys = ("name", "block", "arm", "model", "encoders", "prompt", "patients", "seed", "choice")
        table = pd.DataFrame([{key: getattr(run, key) for key in keys} for run in self.plan])
        return table[table["name"].isin(self.found)].reset_index(drop=True)

    def scores(self, name: str, part: str = VALIDATION) -> pd.DataFrame:
        """Dice of a run, one row an image: `patient, view, phase` and a column a structure."""
        scores = self.found[name]["scores"][part]
        where = pd.DataFrame(
            [image.split() for image in scores["images"]], columns=["patient", "view", "phase"]
        )
        return where.join(pd.DataFrame(scores["dice"], dtype=float))

    def by_patient(self, name: str, part: str = VALIDATION, structures: Sequence[str] = ()) -> pd.Series:
        """Mean Dice of each scored patient over images and structures (by default the three)."""
        table = self.scores(name, part)
        return table.groupby("patient")[list(structures or STRUCTURES.values())].mean().mean(axis=1)

    def select(self, **where: Any) -> pd.DataFrame:
        """Finished runs, without those that chose the recipe, whose columns have these values."""
        chosen = self.runs[~self.runs["choice"]]
        for key, value in where.items():
            chosen = chosen[chosen[key] == value]
        return chosen

    def matrix(self, structures: Sequence[str] = (), **where: Any) -> pd.DataFrame:
        """Dice of one arm: a row a seed, a column a validation patient; empty where no run is finished."""
        rows = self.select(**where).sort_values("seed")
        pairs = zip(rows["seed"], rows["name"], strict=True)
        return pd.DataFrame({seed: self.by_patient(name, structures=structures) for seed, name in pairs}).T


# -- the annotation budget ------------------------------------------------------------------------------


def _sizes(records: Records, arm: str) -> list[int]:
    """The numbers of annotated patients, of one or more, with which an arm of the budget has been run."""
    return sorted(int(size) for size in records.select(arm=arm, **BUDGET)["patients"].unique() if size)


def budget_points(records: Records, structures: Sequence[str] = ()) -> pd.DataFrame:
    """Mean Dice of each arm and number of annotated patients, of all three structures or of some.

    Returns
    -------
    DataFrame
        `arm, patients, dice, low, high` (crossed bootstrap), `seeds`; no row where no run is finished.
    """
    rows = []
    for arm in ARMS:
        for patients in _sizes(records, arm):
            values = records.matrix(structures, arm=arm, patients=patients, **BUDGET)
            low, high = interval(crossed(values))
            dice = float(values.mean(axis=1).mean())
            row = {"arm": arm, "patients": patients, "dice": dice, "low": low, "high": high}
            rows.append(row | {"seeds": len(values)})
    return pd.DataFrame(rows)


def budget_gains(records: Records) -> pd.DataFrame:
    """What each kind of synthetic images adds at each number of patients, at equal steps: one family."""
    rows = []
    for arm in ARMS[1:]:
        for patients in _sizes(records, arm):
            first, second = (records.matrix(arm=name, patients=patients, **BUDGET) for name in (arm, NOTHING))
            if found := difference(first, second):
                rows.append({"arm": arm, "patients": patients, **found})
    return judge(rows)


def _worth(sizes: np.ndarray, dice: np.ndarray, reached: float) -> float:
    """Patients without synthetic images that give a Dice; inf beyond the largest size, the smallest below it.

    The Dice of `sizes` is made to rise (isotonic regression), and read in the logarithm of patients.
    """
    from scipy.optimize import isotonic_regression

    rising = isotonic_regression(dice).x
    if reached > rising[-1]:
        return math.inf
    if reached <= rising[0]:
        return float(sizes[0])
    at = int(np.searchsorted(rising, reached, side="left"))
    share = (reached - rising[at - 1]) / (rising[at] - rising[at - 1])
    logs = np.log(sizes[[at - 1, at]])
    return float(np.exp(logs[0] + share * (logs[1] - logs[0])))


def patients_saved(records: Records) -> pd.DataFrame:
    """How many annotated patients without synthetic images give what an arm gives with fewer.

    Returns
    -------
    DataFrame
        `arm, patients`, `worth` (patients; inf: more than the largest size tried), its interval `low, high`,
        and `seeds` (the fewest of any point it rests on); bootstrapped with the whole curve. Empty until the
        curve without synthetic images has all its sizes.
    """
    plain = {size: records.matrix(arm=NOTHING, patients=size, **BUDGET) for size in _sizes(records, NOTHING)}
    if set(plain) != {run.patients for run in records.plan if run.arm == NOTHING and run.part == "budget"}:
        return pd.DataFrame()
    sizes = np.array(list(plain))
    rng = np.random.default_rng(SEED)
    scored = weights(rng, plain[sizes[0]].shape[1], RESAMPLES)

    def samples(values: pd.DataFrame) -> np.ndarray:
        """The mean, and then bootstrapped means that share the draw of scored patients."""
        table = values.to_numpy(dtype=float)
        seeds = weights(rng, len(table), RESAMPLES)
        return np.concatenate([[table.mean()], ((seeds @ table) * scored).sum(axis=1)])

    curve = np.stack([samples(values) for values in plain.values()], axis=1)
    rows = []
    for arm in ARMS[1:]:
        for patients in _sizes(records, arm):
            values = records.matrix(arm=arm, patients=patients, **BUDGET)
            worth = [_worth(sizes, *pair) for pair in zip(curve, samples(values), strict=True)]
            low, high = np.quantile(worth[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
            row = {"arm": arm, "patients": patients, "worth": worth[0]}
            row |= {"low": float(low), "high": float(high)}
            rows.append(row | {"seeds": min(len(values), *map(len, plain.values()))})
    return pd.DataFrame(rows)


# -- the paper's table ----------------------------------------------------------------------------------


def _prompt_name(prompt: str) -> str:
    """P7 as P7*: without what the copy of CAMUS lacks it says structure, view, phase and shape."""
    return {"P7": "P7*"}.get(prompt, prompt)


def _whole(arm: str) -> dict[str, Any]:
    """Which runs of an arm the table has: those with all patients."""
    return {"arm": arm} | ({"patients": ALL} if arm in LEARNS_FROM_REAL else {})


def table_cells(records: Records, encoders: str = "unfrozen") -> pd.DataFrame:
    """Mean Dice of every cell of the table that is planned with `encoders`.

    Returns
    -------
    DataFrame
        `model, strategy, prompt, dice, seeds, planned`; the Dice is NaN where no run is finished.
    """
    planned = Counter(
        (run.model, run.arm, run.prompt)
        for run in records.plan
        if run.arm in STRATEGIES and run.encoders == encoders and not run.choice
        if run.patients == ALL or run.arm not in LEARNS_FROM_REAL
    )
    rows = []
    for (model, arm, prompt), count in planned.items():
        values = records.matrix(model=model, prompt=prompt, encoders=encoders, **_whole(arm))
        row = {"model": model, "strategy": STRATEGIES[arm], "prompt": _prompt_name(prompt)}
        row["dice"] = float(values.to_numpy().mean()) if len(values) else math.nan
        rows.append(row | {"seeds": len(values), "planned": count})
    return pd.DataFrame(rows)


def study_cells(records: Records) -> pd.DataFrame:
    """Mean Dice of every run of the paper's strategies at all patients, as the ledger of claims wants it.

    Returns
    -------
    DataFrame
        `scale, cohort, split, model, prompt, encoders, seed, strategy, dice` (a fraction), `masks`.
    """
    rows = []
    for row in records.select().to_dict("records"):
        strategy = STRATEGIES.get(row["arm"])
        if strategy is None or (row["arm"] in LEARNS_FROM_REAL and row["patients"] != ALL):
            continue
        record, dice = records.found[row["name"]], records.scores(row["name"])[list(STRUCTURES.values())]
        known = {key: record[key] for key in ("scale", "cohort", "model", "encoders", "seed")}
        values = {"strategy": strategy, "dice": float(dice.to_numpy().mean()), "masks": dice.size}
        rows.append({**known, "split": "val", "prompt": _prompt_name(row["prompt"]), **values})
    return pd.DataFrame(rows)


def table_gains(records: Records) -> pd.DataFrame:
    """Each strategy against `real` of the same model and prompt: one family."""
    rows = []
    for (model, prompt), _ in records.select(encoders="unfrozen").groupby(["model", "prompt"], sort=False):
        where = {"model": model, "prompt": prompt, "encoders": "unfrozen"}
        real = records.matrix(**_whole(NOTHING), **where)
        for arm in ("diffusion", "phantom", "joint", "synthetic"):
            if found := difference(records.matrix(**_whole(arm), **where), real):
                cell = {"model": model, "strategy": STRATEGIES[arm], "prompt": _prompt_name(prompt)}
                rows.append(cell | found)
    return judge(rows)


def worth_of_words(records: Records) -> pd.DataFrame:
    """More words against P1, and the best worded model against the reference without words: one family.

    All are trained on real images alone. The shape word of P7* is read off the reference mask, so that
    P7* - P1 contains a part of the answer; P3 - P1 does not.
    """

    def real(model: str, prompt: str) -> pd.DataFrame:
        return records.matrix(model=model, prompt=prompt, encoders="unfrozen", **_whole(NOTHING))

    rows = []
    worded = {model: real(model, "P1") for model in ("cris", "clipseg")}
    for model, base in worded.items():
        for prompt in ("P0", "P2", "P3", "P7"):
            if found := difference(real(model, prompt), base):
                rows.append({"model": model, "comparison": f"{_prompt_name(prompt)} − P1", **found})
    there = {model: values for model, values in worded.items() if len(values)}
    if there:
        best = max(there, key=lambda model: there[model].to_numpy().mean())
        if found := difference(there[best], real("unet", "P1")):
            rows.append({"model": best, "comparison": "P1 − reference without words", **found})
    return judge(rows)


# -- convergence ----------------------------------------------------------------------------------------


def steps_to(curve: Sequence[float], steps: Sequence[int], target: float) -> float:
    """The first look from which the Dice stays at or above `target`; inf where it never does."""
    below = np.flatnonzero(np.asarray(curve) < target)
    first = below[-1] + 1 if len(below) else 0
    return float(steps[first]) if first < len(steps) else math.inf


def convergence(records: Records) -> pd.DataFrame:
    """Steps to the final Dice of `real` less `BELOW`, on the held-out patients, at equal looks.

    Returns
    -------
    DataFrame
        One row a model, prompt, strategy and seed: `target`, `real` (steps of `real`, of both cycles),
        `alone` (steps of the second cycle only, as the paper counts), `whole` (with those of the first) and
        the ratios `faster_alone` and `faster_whole`; inf: not reached.
    """
    rows = []
    cells = records.select(encoders="unfrozen", patients=ALL)
    for (model, prompt, seed), part in cells.groupby(["model", "prompt", "seed"], sort=False):
        arms = dict(zip(part["arm"], part["name"], strict=True))
        if NOTHING not in arms:
            continue
        first, second = records.found[arms[NOTHING]]["cycles"]
        steps = [*first["step"], *(first["steps"] + step for step in second["step"])]
        target = second["dice"][-1] - BELOW
        real = steps_to([*first["dice"], *second["dice"]], steps, target)
        for arm in ("diffusion", "phantom"):
            if arm not in arms:
                continue
            before, after = records.found[arms[arm]]["cycles"]
            alone = steps_to(after["dice"], after["step"], target)
            row = {"model": model, "prompt": _prompt_name(prompt), "seed": seed}
            row |= {"strategy": STRATEGIES[arm], "target": target, "real": real, "alone": alone}
            whole = alone + before["steps"]
            rows.append(row | {"whole": whole, "faster_alone": real / alone, "faster_whole": real / whole})
    names = "model prompt seed strategy target real alone whole faster_alone faster_whole"
    return pd.DataFrame(rows, columns=names.split())


# -- the recipe -----------------------------------------------------------------------------------------


def doubling(records: Records) -> pd.DataFrame:
    """Dice on the held-out patients against all steps, one seed: what the choice of the recipe rests on.

    Returns
    -------
    DataFrame
        One row a run: `arm, patients, steps, rate, image_size, dice` (mean of the held-out patients).
    """
    rows = []
    for run in records.plan:
        usual = run.part == "budget" and run.seed == 0 and run.patients in (5, 25, ALL)
        trial = run.part in ("recipe", "doubling")
        if run.name in records.found and (trial or (usual and run.arm in (NOTHING, "phantom"))):
            dice = float(records.by_patient(run.name, HELD_OUT).mean())
            row = {"arm": run.arm, "patients": run.patients, "steps": run.steps, "rate": run.recipe.rate}
            rows.append(row | {"image_size": run.recipe.image_size, "dice": dice})
    names = ["arm", "patients", "steps", "rate", "image_size", "dice"]
    return pd.DataFrame(rows, columns=names).sort_values(names[:3], ignore_index=True)
