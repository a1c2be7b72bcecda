"""The answers of the study, on made-up records whose truth is known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from echovlsm import STRUCTURES
from echovlsm.study import answers, differences
from echovlsm.study.answers import figures, words
from echovlsm.study.answers import records as answers_records
from echovlsm.study.plan import (
    ALL,
    HELD_OUT,
    NOTHING,
    SIZES,
    VALIDATION,
    Recipe,
    Run,
    study,
)

NAMES = [*STRUCTURES.values(), "epicardium"]


def _dice(run: Run, patients: np.ndarray) -> np.ndarray:
    """Made-up truth: more patients help, phantoms are worth 2 points at 5 and 25, seeds differ."""
    base = 0.70 + 0.02 * math.log2(max(run.patients, 1) / 5 if run.patients else 1)
    gain = {"phantom": 0.02 if run.patients in (5, 25) else 0.0, "diffusion": -0.01}.get(run.arm, 0.0)
    rng = np.random.default_rng((run.seed, run.patients, len(run.arm)))
    return base + gain + 0.002 * run.seed + 0.02 * np.sin(patients) + rng.normal(0, 0.003, len(patients))


def write(folder: Path, runs: list[Run], curve: dict[str, list[float]] | None = None) -> answers.Records:
    """Records of `runs`, six scored patients with two images each."""
    folder.mkdir(exist_ok=True)
    for run in runs:
        patients = np.repeat(np.arange(6), 2)
        images = [f"patient{number:04d} {view} ED" for number in range(6) for view in ("2CH", "4CH")]
        dice = _dice(run, patients)
        shifts = dict(zip(NAMES, (0.0, -0.05, 0.05, 0.3), strict=True))
        part = {"images": images, "dice": {name: (dice + shift).tolist() for name, shift in shifts.items()}}
        looks = (curve or {}).get(run.arm, [0.5, 0.6, 0.7, 0.8])
        cycles = [
            {
                "steps": cycle.steps,
                "step": np.linspace(0, cycle.steps, len(looks) + 1)[1:].tolist(),
                "dice": looks,
            }
            for cycle in run.cycles
        ]
        scores = {HELD_OUT: part} if run.choice else {HELD_OUT: part, VALIDATION: part}
        record = {"scores": scores, "cycles": cycles, "recipe": asdict(run.recipe), "device": "CPU, 1 thread"}
        (folder / f"{run.name}.json").write_text(json.dumps(record))
    return answers.Records(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> answers.Records:
    """Every run of the study."""
    return write(tmp_path_factory.mktemp("records"), study())


def test_the_mean_of_a_patient_leaves_the_epicardium_out(whole: answers.Records) -> None:
    run = next(run for run in whole.plan if run.part == "budget")
    found = whole.by_patient(run.name)
    expected = pd.Series(_dice(run, np.repeat(np.arange(6), 2))).groupby(np.repeat(np.arange(6), 2)).mean()
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), atol=1e-9)
    assert whole.by_patient(run.name, structures=["epicardium"]).mean() == pytest.approx(
        expected.mean() + 0.3
    )


def test_the_crossed_bootstrap_has_the_spread_of_both_draws() -> None:
    rng = np.random.default_rng(0)
    seeds, patients = rng.normal(0, 0.03, (40, 1)), rng.normal(0, 0.05, (1, 60))
    values = pd.DataFrame(seeds + patients)
    spread = differences.crossed(values, 4000).std()
    assert spread == pytest.approx(math.hypot(seeds.std() / 40**0.5, patients.std() / 60**0.5), rel=0.06)
    assert differences.crossed(values.iloc[:1], 4000).std() == pytest.approx(
        patients.std() / 60**0.5, rel=0.06
    )


def test_a_gain_is_a_finding_only_with_its_interval_and_every_seed(whole: answers.Records) -> None:
    gains = answers.budget_gains(whole).set_index(["arm", "patients"])
    for size in (5, 25):
        assert gains.loc[("phantom", size), "verdict"] == "higher"
        assert gains.loc[("phantom", size), "gain"] == pytest.approx(0.02, abs=0.003)
        assert gains.loc[("phantom", size), "seeds"] == 5
    assert (gains.loc["phantom"].drop([5, 25])["verdict"] == "no difference shown").all()
    assert gains.loc[("diffusion-few", 100), "verdict"] == "one seed"
    assert (gains["p_holm"] >= gains["p"]).all()
    gap = pd.DataFrame(np.full((3, 8), 0.01))
    gap.iloc[2] = -0.0001
    row = differences.difference(gap, 0 * gap)
    assert not row["one_sign"]
    assert differences.judge([row])["verdict"].tolist() == ["no difference shown"]


def test_differences_are_of_common_seeds(whole: answers.Records) -> None:
    five = whole.matrix(arm="phantom", patients=5, **answers_records.BUDGET)
    assert differences.difference(five, five.iloc[:3])["seeds"] == 3
    assert differences.difference(five.iloc[:2], five.iloc[3:]) is None


@pytest.mark.parametrize(
    ("reached", "expected"), [(0.70, 10.0), (0.65, 5.0), (0.725, 10 * 2**0.5), (0.9, math.inf), (0.75, 20.0)]
)
def test_a_dice_is_worth_so_many_patients(reached: float, expected: float) -> None:
    sizes, dice = np.array([5, 10, 20]), np.array([0.68, 0.70, 0.75])
    assert answers_records._worth(sizes, dice, reached) == pytest.approx(expected)


def test_patients_saved_follow_the_whole_curve(whole: answers.Records) -> None:
    saved = answers.patients_saved(whole).set_index(["arm", "patients"])
    # two points are one doubling of patients in the made-up truth
    row = saved.loc[("phantom", 5)]
    assert row["low"] < 10 < row["high"]
    assert row["worth"] == pytest.approx(10, rel=0.2)
    assert saved["high"].max() == math.inf
    assert saved.loc[("diffusion", 5), "worth"] == 5


def test_a_curve_with_holes_saves_no_patients(tmp_path: Path) -> None:
    runs = [run for run in study() if run.part == "budget" and run.patients in (5, 25)]
    records = write(tmp_path / "few", runs)
    assert answers.patients_saved(records).empty
    assert set(answers.budget_points(records)["patients"]) == {5, 25}
    assert "`table` lacks 52 of 52" in words.left_out(records)
    assert f"By device: {len(records.found)} on CPU, 1 thread." in words.left_out(records)


def test_cells_that_were_not_run_are_shown_as_none(tmp_path: Path, whole: answers.Records) -> None:
    empty = answers.Records(tmp_path)
    cells = answers.table_cells(empty)
    assert cells["dice"].isna().all()
    assert answers.budget_gains(empty).empty
    filled = answers.table_cells(whole)
    assert filled["dice"].notna().all()
    assert (filled["seeds"] == filled["planned"]).all()
    prompts = set(filled.loc[filled["strategy"] == "synthetic", "prompt"])
    assert "P7*" not in prompts
    assert set(filled.loc[filled["model"] == "unet", "strategy"]) == {
        *("synthetic", "real", "synth-PT:real-FT", "phantom-PT:real-FT"),
    }


def test_steps_are_those_from_which_the_dice_stays() -> None:
    steps = [100, 200, 300, 400]
    assert answers_records.steps_to([0.5, 0.9, 0.7, 0.85], steps, 0.8) == 400
    assert answers_records.steps_to([0.9, 0.9, 0.9, 0.9], steps, 0.8) == 100
    assert answers_records.steps_to([0.9, 0.9, 0.9, 0.7], steps, 0.8) == math.inf


def test_convergence_counts_pretraining_or_not_and_censors(tmp_path: Path) -> None:
    curve = {
        NOTHING: [0.5, 0.6, 0.7, 0.8],
        "phantom": [0.7, 0.795, 0.8, 0.8],
        "diffusion": [0.1, 0.2, 0.3, 0.4],
    }
    runs = [run for run in study() if run.patients == ALL and run.seed == 0 and run.prompt == "P1"]
    found = answers.convergence(write(tmp_path / "curves", runs, curve))
    found = found[found["model"] == "cris"].set_index("strategy")
    recipe = Recipe()
    phantom = found.loc["phantom-PT:real-FT"]
    assert phantom["real"] == recipe.first + recipe.second
    assert phantom["alone"] == recipe.second / 2
    assert phantom["whole"] == recipe.first + recipe.second / 2
    assert phantom["faster_whole"] == pytest.approx(4 / 3)
    assert found.loc["synth-PT:real-FT", "alone"] == math.inf
    assert found.loc["synth-PT:real-FT", "faster_alone"] == 0


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "cris.json").write_text("{")
    with pytest.raises(answers_records.AnswerError, match=r"cris\.json"):
        _ = answers.Records(tmp_path).found


def test_sentences_name_gains_with_their_intervals(whole: answers.Records) -> None:
    sentences = words.budget_sentences(whole)
    assert sentences[0].startswith("Pretraining on phantoms, which need no annotation, raises Dice by +")
    assert "shows no difference at 10, 50, 100, 360 annotated patients" in sentences[0]
    assert not any("the same few" in sentence and "100" in sentence for sentence in sentences)
    assert set(SIZES) == set(answers.budget_points(whole)["patients"])
    headline = words.headline(whole)
    assert headline.startswith("Yes, where annotations are few")
    assert "none is shown with 10, 50, 100, 360" in headline
    assert len(words.findings(whole)) >= 7


@pytest.mark.parametrize(
    ("looks", "lead"),
    [([0.8] * 4, "What"), ([0.1, 0.2, 0.3, 0.8], "Pretraining saved"), ([0.1] * 4, "What")],
)
def test_the_lead_on_convergence_is_one_that_every_run_bears(
    looks: list[float], lead: str, tmp_path: Path
) -> None:
    """`real` arrives at the last of its 8 looks; a pretrained run at the 5th, the last or never."""
    runs = [run for run in study() if run.part == "table" and run.model == "cris" and run.prompt == "P1"]
    runs += [run for run in study() if run.part == "budget" and run.patients == ALL]
    curve = {"nothing": [0.1, 0.2, 0.3, 0.8], "diffusion": looks, "phantom": looks}
    assert words.convergence_sentence(write(tmp_path, runs, curve)).startswith(lead)


def test_without_records_nothing_is_claimed(tmp_path: Path) -> None:
    empty = answers.Records(tmp_path)
    assert words.findings(empty) == []
    assert words.headline(empty).startswith("No answer on real hearts yet: 0 of")
    one = [run for run in study() if run.part == "budget" and run.seed == 0]
    assert words.findings(write(tmp_path / "one", one)) == []


def test_a_sentence_of_a_part_of_the_seeds_says_so(whole: answers.Records, tmp_path: Path) -> None:
    two = [run for run in study() if run.part == "budget" and run.seed < 2]
    (first, *_) = words.budget_sentences(write(tmp_path, two))
    assert "; so far 2 of 3 to 5 seeds)" in first
    headline = words.headline(answers.Records(tmp_path))
    assert headline.startswith("A first answer on real hearts (")
    assert "so far 2 of 3 to 5 seeds" in headline
    assert first not in words.what_we_saw(answers.Records(tmp_path)), "it is in the headline"
    told = words.findings(whole)
    assert words.what_we_saw(whole)[1:] == [one for one in told if words.WORDS["phantom"] not in one]
    assert "so far" not in words.budget_sentences(whole)[0]


def test_tables_for_a_page_have_words_and_no_nan(whole: answers.Records, tmp_path: Path) -> None:
    shown = words.paper_shape(answers.table_cells(whole))
    assert shown.loc[("CRIS", "synthetic"), "P7*"] == "N/A"
    assert float(shown.loc[("CRIS", "real"), "P1"]) == pytest.approx(82, abs=3)
    empty = words.paper_shape(answers.table_cells(answers.Records(tmp_path)))
    assert set(empty.loc[("CLIPSeg", "real")]) == {"–"}
    frozen = words.paper_shape(answers.table_cells(whole, "frozen"))
    assert list(frozen) == ["P1"]
    assert set(frozen.index.get_level_values("model")) == {"CLIPSeg", "CRIS"}
    assert set(words.paper_shape(answers.table_cells(answers.Records(tmp_path), "frozen"))["P1"]) == {"–"}
    gains = words.readable(answers.budget_gains(whole), ["arm", "patients"])
    assert gains["gain"].str.fullmatch(r"[+-]\d+\.\d|0\.0").all()
    assert [words.points(value) for value in (0.012, -0.0003, -0.001)] == ["+1.2", "0.0", "-0.1"]
    steps = words.readable_steps(answers.convergence(whole))
    assert not steps.isna().any().any()
    assert figures.budget_title(answers.budget_gains(whole)).endswith("5, 25 annotated patients (5 seeds)")
    assert figures.doubling_title(whole).startswith("Twice the steps add")


def test_the_trial_of_a_larger_image_is_told_if_it_is_there(whole: answers.Records, tmp_path: Path) -> None:
    told = words.recipe_sentences(whole)
    assert "96 pixels a side 2,400 steps" in told
    assert "2.25 times the cost" in told
    assert "CLIPSeg has a learning rate of its own" in told
    assert re.search(r"0\.\d{3} with 0\.002, 0\.\d{3} with 0\.001", told), told
    assert "not fully trained" not in told, "as many patients, as good"
    assert "not fully trained" not in " ".join(words.table_sentences(whole))
    small = [run for run in study() if run.recipe.image_size == 64 and run.part != "rates"]
    assert words.recipe_sentences(write(tmp_path / "small", small)) == ""


def test_a_model_that_still_gains_is_not_told_as_trained(
    whole: answers.Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is trained is what the longest run on record adds to that of half its steps."""
    for dice, told in (({2400: 0.80, 4800: 0.82, 9600: 0.83}, True), ({4800: 0.82, 9600: 0.824}, False)):
        monkeypatch.setattr(words, "_held_out", lambda _, run, dice=dice: dice.get(run.steps, 0.8))
        sentences = " ".join([*words.table_sentences(whole), words.recipe_sentences(whole)])
        assert sentences.count("not fully trained") == 2 * told
        assert ("0.820 after 4,800 (+2.0), 0.830 after 9,600 (+1.0)" in sentences) == told


def test_trials_alone_do_not_say_what_more_steps_add(tmp_path: Path) -> None:
    """Until runs of the recipe's own steps are on record there is nothing that twice the steps add to."""
    trials = [run for run in study() if run.part in ("recipe", "doubling")]
    phantom = [r for r in study() if r.part == "budget" and r.seed == 0 and r.arm == "phantom"]
    for name, runs in (("trials", trials), ("phantom", [*trials, *phantom])):
        title = figures.doubling_title(write(tmp_path / name, runs))
        assert title.startswith("Trials of one seed each"), title


def said(figure: Figure) -> str:
    """A figure's title, wherever the style puts it."""
    axes = figure.axes[0]
    return (axes.get_title(loc="left") + axes.get_title()).replace("\n", " ")


def test_figures_are_drawn_from_whole_and_from_few_records(whole: answers.Records, tmp_path: Path) -> None:
    few = write(tmp_path / "few", [run for run in study() if run.seed == 0 and run.part == "budget"])
    for records in (whole, few):
        cavity = answers.budget_points(records, ["left ventricular cavity"])
        gains = answers.budget_gains(records)
        figure = answers.plot_budget(answers.budget_points(records), gains, cavity)
        assert figure.axes[0].get_legend_handles_labels()[1]
        assert said(figure) == figures.budget_title(gains)
        alone = answers.plot_budget(answers.budget_points(records), gains)
        assert len(alone.axes) == 1
        title = said(answers.plot_gains(gains))
        assert title.startswith("Phantoms first gain most with ") == (records is whole), title
        title = said(answers.plot_worth(answers.patients_saved(records)))
        assert title.startswith("5 patients with phantoms first" if records is whole else "On the line")
        answers.plot_doubling(records, answers.doubling(records))
        arrived = answers.convergence(records)
        if len(arrived):
            shown = arrived[(arrived["model"] == "cris") & (arrived["prompt"] == "P1")]
            title = said(answers.plot_curves(words.learning_curves(records), shown))
            steps = f"{shown['real'].median():,.0f}"
            assert f"real {steps}, " in title, title
    plt.close("all")


def test_the_main_run_stands_beside_the_reference_that_took_as_many_steps(tmp_path: Path) -> None:
    known = {"prompt": "P1", "strategy": "real", "seed": 42, "view": "2CH", "phase": "ED"}
    rng = np.random.default_rng(0)
    for model, mean in (("cris", 0.90), ("unet", 0.92)):
        rows = [
            {**known, "model": model, "patient": f"p{number}", "structure": name, "dice": dice}
            for number in range(8)
            for name, dice in zip(NAMES, mean + rng.normal(0, 0.002, len(NAMES)), strict=True)
        ]
        folder = tmp_path / f"{model}-P1-real-unfrozen-seed42"
        folder.mkdir()
        pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
        told = answers.main_sentence(tmp_path, "cris-P1-real-unfrozen-seed42")
        assert ("which reads no words" in told) == (model == "unet"), told
    assert "mean Dice 0.900" in told
    assert re.search(r"0\.92\d, a difference of -2\.\d points \(-2\.", told), told
    (tmp_path / "unet-P1-real-unfrozen-seed42").rename(tmp_path / "unet-P1-real-unfrozen-seed7")
    assert "U-Net" not in answers.main_sentence(tmp_path, "cris-P1-real-unfrozen-seed42"), "another training"
