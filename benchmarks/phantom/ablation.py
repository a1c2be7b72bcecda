"""What of the phantom makes it a good training source, put on record: `ablation.csv` and `tuned.csv`.

    python -m benchmarks.phantom.ablation [--records data/results/camus/study]

Of the study's records, with no or few real patients: pretraining on phantoms without one ingredient against
pretraining on whole ones, on the held-out patients; and pretraining on phantoms that were tuned on CAMUS
against those that were not, and against none, on the validation patients. Differences, intervals and verdicts
are those of `echovlsm.study.answers`; each table is one family.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.phantom import put_on_record
from echovlsm.base import paths
from echovlsm.study.answers import Records
from echovlsm.study.differences import difference, judge
from echovlsm.study.plan import HELD_OUT, NOTHING, PHANTOM, TUNED, VALIDATION, WITHOUT

SCORED: dict[str, str] = {"ablation": HELD_OUT, "tuned": VALIDATION}
"""Parts of the study, each with a table of its name, and who is scored; other runs are the budget's."""


def dice_of(records: Records, table: str, arm: str, patients: int) -> pd.DataFrame:
    """Dice that a table compares: a row a seed, a column a patient; empty where no run is finished."""
    runs = records.runs
    mine = runs[(runs["arm"] == arm) & (runs["patients"] == patients)]
    mine = mine[mine["block"].str.split("-").str[0].isin((table, "budget"))].sort_values("seed")
    return pd.DataFrame(
        {run.seed: records.by_patient(run.name, SCORED[table]) for run in mine.itertuples()}
    ).T.rename_axis("seed")


def compare(records: Records, table: str, arm: str, other: str, patients: int) -> dict[str, Any] | None:
    """Mean Dice of an arm and of another, and their `difference`; None where they share no finished seed."""
    first, second = (dice_of(records, table, one, patients) for one in (arm, other))
    found = None if first.empty or second.empty else difference(first, second)
    if not found:
        return None
    same = second.loc[first.index.intersection(second.index)]
    means = {"dice": first.loc[same.index].to_numpy().mean(), "other": same.to_numpy().mean()}
    return {"patients": patients, **means, **found}


def ablation(records: Records) -> pd.DataFrame:
    """A row an ingredient and number of patients, and one for no phantom at all; none where a run is missing.

    Returns
    -------
    DataFrame
        `without, patients, dice, other` (mean Dice without the ingredient and with all of them), and of
        `differences.judge`: `gain` (without less whole: below zero where the ingredient counts) and the rest.
    """
    arms = {name: kind for kind, name in WITHOUT.items()} | {PHANTOM: NOTHING}
    tried = [(name, arm, patients) for patients in (0, 5) for name, arm in arms.items()]
    rows = [({"without": name}, compare(records, "ablation", arm, PHANTOM, n)) for name, arm, n in tried]
    told = [named | found for named, found in rows if found]
    return judge(told if any(row["without"] != PHANTOM for row in told) else [])


def tuned(records: Records) -> pd.DataFrame:
    """A row a number of patients and what tuned phantoms are held against; none where a run is missing.

    Returns
    -------
    DataFrame
        `against` (``phantom`` or ``nothing``), `patients, dice, other`, and of `differences.judge`.
    """
    tried = [(other, patients) for patients in (0, 5, 25) for other in (PHANTOM, NOTHING)]
    rows = [({"against": other}, compare(records, "tuned", TUNED, other, n)) for other, n in tried]
    return judge([named | found for named, found in rows if found])


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", default="data/results/camus/study", help="folder of the study's records")
    records = Records(Path(paths.resolve(parser.parse_args().records)))
    for name, table in (("ablation", ablation(records)), ("tuned", tuned(records))):
        planned = [run for run in records.plan if run.part == name]
        if table.empty:
            print(f"no comparison yet: `echovlsm study --block {name}` makes {len(planned)} runs")
            continue
        done = sum(run.name in records.found for run in planned)
        print(put_on_record(name, table, runs=done, planned=len(planned), scored=SCORED[name]))


if __name__ == "__main__":
    main()
