"""What of the phantom makes it a good training source, put on record: `ablation.csv`.

    python -m benchmarks.phantom.ablation [--records data/results/camus/study]

Of the study's records: pretraining on phantoms without one ingredient against pretraining on the whole ones,
with no and with 5 real patients, on the held-out patients. Differences, intervals and verdicts are those of
`echovlsm.study.answers`, all of the table one family.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.phantom import put_on_record
from echovlsm.base import paths
from echovlsm.phantom.versions import INGREDIENTS
from echovlsm.study.answers import Records
from echovlsm.study.differences import difference, judge
from echovlsm.study.plan import HELD_OUT, NOTHING, PHANTOM, WITHOUT

PARTS = ("ablation", "budget")
"""Parts of the study that the runs belong to; those of the whole phantom with 5 patients are the budget's."""


def dice_of(records: Records, arm: str, patients: int) -> pd.DataFrame:
    """Dice on the held-out patients: a row a seed, a column a patient; empty where no run is finished."""
    runs = records.runs
    mine = runs[(runs["arm"] == arm) & (runs["patients"] == patients)]
    mine = mine[mine["block"].str.split("-").str[0].isin(PARTS)].sort_values("seed")
    return pd.DataFrame(
        {run.seed: records.by_patient(run.name, HELD_OUT) for run in mine.itertuples()}
    ).T.rename_axis("seed")


def ablation(records: Records) -> pd.DataFrame:
    """A row an ingredient and number of patients, and one for no phantom at all; none where a run is missing.

    Returns
    -------
    DataFrame
        `without, patients, dice, whole` (mean Dice without the ingredient and with all of them), and of
        `differences.judge`: `gain` (without less whole: below zero where the ingredient counts) and the rest.
    """
    rows = []
    arms = {name: kind for kind, name in WITHOUT.items()} | {PHANTOM: NOTHING}
    for patients in (0, 5):
        whole = dice_of(records, PHANTOM, patients)
        for name, arm in arms.items():
            dice = dice_of(records, arm, patients)
            found = None if whole.empty or dice.empty else difference(dice, whole)
            if found:
                same = whole.loc[dice.index.intersection(whole.index)]
                means = {"dice": dice.to_numpy().mean(), "whole": same.to_numpy().mean()}
                rows.append({"without": name, "patients": patients, **means, **found})
    return judge(rows)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", default="data/results/camus/study", help="folder of the study's records")
    records = Records(Path(paths.resolve(parser.parse_args().records)))
    table = ablation(records)
    if table.empty:
        wanted = f"{2 * len(INGREDIENTS) + 1} runs a seed"
        raise SystemExit(
            f"no run of the ablation is on record: `echovlsm study --block ablation` makes {wanted}"
        )
    planned = [run for run in records.plan if run.part == PARTS[0]]
    done = sum(run.name in records.found for run in planned)
    print(put_on_record("ablation", table, runs=done, planned=len(planned), scored=HELD_OUT))


if __name__ == "__main__":
    main()
