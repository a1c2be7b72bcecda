"""The table of the ablation, on made-up records whose truth is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.phantom.ablation import ablation, tuned
from echovlsm import STRUCTURES
from echovlsm.phantom.versions import INGREDIENTS
from echovlsm.study.answers import Records
from echovlsm.study.plan import HELD_OUT, NOTHING, PHANTOM, TUNED, VALIDATION, Run, study

COUNTS = "phantom-without-speckle"
"""The arm that loses 4 points; the others lose nothing, but tuned phantoms gain 3."""


def _write(folder: Path, runs: list[Run]) -> Records:
    """Records of ten held-out patients with two images each."""
    folder.mkdir()
    for run in runs:
        rng = np.random.default_rng((run.seed, run.patients, len(run.arm)))
        dice = 0.7 - 0.04 * (run.arm == COUNTS) - 0.1 * (run.arm == NOTHING) + 0.03 * (run.arm == TUNED)
        values = dice + 0.05 * np.sin(np.repeat(np.arange(10), 2)) + rng.normal(0, 0.004, 20)
        images = [f"patient{i:04d} {view} ED" for i in range(10) for view in ("2CH", "4CH")]
        part = {"images": images, "dice": {name: values.tolist() for name in STRUCTURES.values()}}
        scores = {HELD_OUT: part} if run.choice else {HELD_OUT: part, VALIDATION: part}
        record = {"scores": scores, "cycles": [], "recipe": asdict(run.recipe)}
        (folder / f"{run.name}.json").write_text(json.dumps(record))
    return Records(folder)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    few = [r for r in study() if r.part == "budget" and r.patients == 5 and r.arm in (PHANTOM, NOTHING)]
    return [*few, *(run for run in study() if run.part == "ablation")]


def test_what_counts_is_found_and_nothing_else(runs: list[Run], tmp_path: Path) -> None:
    table = ablation(_write(tmp_path / "all", runs))
    assert len(table) == 2 * len(INGREDIENTS) + 1
    lower = table[table["verdict"] == "lower"]
    assert set(zip(lower["without"], lower["patients"], strict=True)) == {
        ("speckle", 0),
        ("speckle", 5),
        (PHANTOM, 5),
    }
    found = table.set_index(["without", "patients"])["gain"]
    assert found["speckle", 0] == pytest.approx(-0.04, abs=0.005)
    assert found[PHANTOM, 5] == pytest.approx(-0.1, abs=0.005)
    assert table["seeds"].min() == 3


def test_rows_wait_for_their_runs(runs: list[Run], tmp_path: Path) -> None:
    assert ablation(_write(tmp_path / "none", [])).empty
    without = [run for run in runs if (run.arm, run.patients) != (PHANTOM, 0)]
    assert set(ablation(_write(tmp_path / "few", without))["patients"]) == {5}
    budget = [run for run in runs if run.part == "budget"]
    assert ablation(_write(tmp_path / "budget", budget)).empty, "nothing was left out yet"
    one = ablation(_write(tmp_path / "one", [run for run in runs if run.seed == 0]))
    assert set(one["verdict"]) == {"one seed"}


def test_tuned_phantoms_are_held_against_the_others_and_against_none(tmp_path: Path) -> None:
    few = [r for r in study() if r.part == "budget" and r.patients in (5, 25) and r.arm in (PHANTOM, NOTHING)]
    runs = [*few, *(run for run in study() if run.part == "tuned")]
    assert not any(run.choice for run in runs), "validation patients score them"
    table = tuned(_write(tmp_path / "all", runs)).set_index(["against", "patients"])
    assert set(table.index) == {(PHANTOM, 0), *((arm, n) for arm in (PHANTOM, NOTHING) for n in (5, 25))}
    assert table["gain"].xs(PHANTOM).to_numpy() == pytest.approx(0.03, abs=0.005)
    assert table["gain"].xs(NOTHING).to_numpy() == pytest.approx(0.13, abs=0.005)
    assert set(table["verdict"]) == {"higher"}
    assert set(table["seeds"]) == {3}
