"""Statistics: against SciPy, hand-computed cases and simulated data with a known answer."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from echovlsm.evaluation.statistics import (
    agreement,
    compare,
    epochs_to_reach,
    holm,
    mean_scores,
    summary,
    summary_table,
)


def test_epochs_to_reach() -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2, 3, 4], "val_dice": [0.5, 0.8, 0.7, 0.9], "seconds": [10.0, 11.0, 12.0, 13.0]}
    )
    assert epochs_to_reach(history, 0.8) == {"epoch": 2, "seconds": 21.0}
    assert epochs_to_reach(history.iloc[::-1], 0.85) == {"epoch": 4, "seconds": 46.0}
    never = epochs_to_reach(history, 0.95)
    assert never["epoch"] is pd.NA
    assert never["seconds"] is pd.NA
    with pytest.raises(ValueError, match="seconds"):
        epochs_to_reach(history.drop(columns="seconds"), 0.5)


def _scores(seeds: tuple[int, ...] = (1, 2, 3)) -> pd.DataFrame:
    """Two models, two prompts, two strategies; `real` is 0.1 better for P1 of the first model, else equal."""
    rng = np.random.default_rng(8)
    base = pd.DataFrame(
        [
            (patient, view, structure)
            for patient in (f"p{number:02d}" for number in range(20))
            for view in ("2CH", "4CH")
            for structure in ("myocardium", "left atrium cavity")
        ],
        columns=["patient", "view", "structure"],
    ).assign(phase="ED", cohort="phantom", encoders="unfrozen")
    base["level"] = rng.normal(0.7, 0.05, 20).repeat(4)
    tables = []
    for model, prompt, strategy, seed in (
        (m, p, s, n)
        for m in ("clipseg", "cris")
        for p in ("P1", "P3")
        for s in ("real", "synthetic")
        for n in seeds
    ):
        gain = 0.1 if (model, prompt, strategy) == ("clipseg", "P1", "real") else 0.0
        dice = base["level"] + gain + rng.normal(0, 0.02, len(base))
        tables.append(base.assign(model=model, prompt=prompt, strategy=strategy, seed=seed, dice=dice))
    return pd.concat(tables, ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)


def test_compare_finds_the_one_difference() -> None:
    table = compare(_scores(), "real", "synthetic").set_index(["model", "prompt"])
    assert list(table.index) == [("clipseg", "P1"), ("clipseg", "P3"), ("cris", "P1"), ("cris", "P3")]
    assert (table["masks"] == 80).all()
    assert (table["patients"] == 20).all()
    assert (table["seeds"] == 3).all()
    found = table.loc[("clipseg", "P1")]
    assert found["low"] < 0.1 < found["high"]
    assert found["p_patient_holm"] < 1e-3
    assert found["effect_patient"] == pytest.approx(1)
    assert 0 < found["seed_sd"] < 0.01
    others = table.drop(("clipseg", "P1"))
    assert (others["p_patient_holm"] > 0.05).all()
    assert (others["difference"].abs() < 0.01).all()
    for unit in ("mask", "patient"):
        assert table[f"p_{unit}_holm"].to_numpy() == pytest.approx(holm(table[f"p_{unit}"]))


def test_compare_agrees_with_pairs_made_by_hand() -> None:
    scores = _scores((1, 2))
    cell = scores[(scores["model"] == "cris") & (scores["prompt"] == "P3")]
    wide = cell.pivot_table(
        index=["patient", "view", "structure"], columns=["strategy", "seed"], values="dice"
    )
    per_seed = wide["real"].mean() - wide["synthetic"].mean()
    masks = wide["real"].mean(axis=1), wide["synthetic"].mean(axis=1)
    patients = [values.groupby("patient").mean() for values in masks]
    row = compare(scores, "real", "synthetic", ("model", "prompt")).iloc[3]
    assert row["p_mask"] == pytest.approx(stats.wilcoxon(*masks).pvalue)
    assert row["p_patient"] == pytest.approx(stats.wilcoxon(*patients).pvalue)
    assert row["difference"] == pytest.approx(per_seed.mean())
    assert row["seed_sd"] == pytest.approx(abs(per_seed[1] - per_seed[2]) / np.sqrt(2))


def test_more_seeds_do_not_make_more_masks() -> None:
    scores = _scores((1,))
    again = pd.concat([scores, scores.assign(seed=2)], ignore_index=True)
    one, two = (compare(table, "real", "synthetic") for table in (scores, again))
    for column in ("p_mask", "p_patient", "low", "high", "masks"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy())
    assert one["seed_sd"].isna().all()
    assert two["seed_sd"].to_numpy() == pytest.approx(0)


def test_compare_uses_common_seeds_and_names_the_cells_it_leaves_out() -> None:
    scores = _scores((1, 2))
    gone = (scores["strategy"] == "real") & (scores["seed"] == 2) & (scores["model"] == "clipseg")
    absent = (scores["strategy"] == "real") & (scores["model"] == "cris") & (scores["prompt"] == "P3")
    table = compare(scores[~gone & ~absent], "real", "synthetic")
    assert list(table["seeds"]) == [1, 1, 2]
    assert table.attrs["left_out"] == ["model cris, prompt P3"]


def test_compare_refuses_ambiguous_scores() -> None:
    scores = _scores((1,))
    both = pd.concat([scores, scores.assign(encoders="frozen")], ignore_index=True)
    with pytest.raises(ValueError, match=r"occur twice.*encoders"):
        compare(both, "real", "synthetic")
    assert len(compare(both, "real", "synthetic", ("model", "prompt", "encoders"))) == 8
    assert set(
        compare(both, "frozen", "unfrozen", ("model", "prompt", "strategy"), column="encoders")["p_mask"]
    ) == {1.0}
    with pytest.raises(ValueError, match="'joint' is not in the scores"):
        compare(scores, "joint", "real")
    real = scores.index[scores["strategy"] == "real"]
    with pytest.raises(ValueError, match="1 masks are scored for only one"):
        compare(scores.drop(index=real[0]), "real", "synthetic")


def test_summary_table_has_the_papers_shape() -> None:
    scores = pd.DataFrame(
        [
            ("clipseg", strategy, prompt, f"p{patient}", dice)
            for strategy, prompt, values in (
                ("synth-PT:real-FT", "P1", (0.9, 0.8)),
                ("real", "P1", (0.7, 0.9)),
                ("real", "P0", (0.5, 0.5)),
                ("zeroshot", "P1", (0.0, 0.02)),
            )
            for patient, dice in enumerate(values)
        ],
        columns=["model", "strategy", "prompt", "patient", "dice"],
    )
    table = summary_table(scores)
    assert list(table.columns) == ["P0", "P1"]
    assert list(table.index.get_level_values("strategy")) == ["zeroshot", "real", "synth-PT:real-FT"]
    assert table.loc[("clipseg", "real"), "P1"] == "80.00 ± 14.14"
    assert table.loc[("clipseg", "zeroshot"), "P0"] == "N/A"
    assert summary_table(scores, percent=False, digits=3).loc[("clipseg", "real"), "P1"] == "0.800 ± 0.141"
    with pytest.raises(ValueError, match="several kinds of encoders"):
        summary_table(scores.assign(encoders=["frozen", "unfrozen"] * 4))
    with pytest.raises(ValueError, match="no column hausdorff"):
        summary_table(scores, value="hausdorff")


def test_summary_counts_what_it_leaves_out() -> None:
    scores = _scores((1,))
    scores["hausdorff"] = scores["dice"].where(scores.index % 4 != 0)
    table = summary(scores, ("model", "strategy"), "hausdorff", resamples=500)
    assert (table["n"] + table["missing"] == 160).all()
    assert table["missing"].sum() == len(scores) // 4
    assert ((table["low"] < table["mean"]) & (table["mean"] < table["high"])).all()
    cell = scores[(scores["model"] == "cris") & (scores["strategy"] == "real")]["hausdorff"].dropna()
    row = table.set_index(["model", "strategy"]).loc[("cris", "real")]
    assert (row["mean"], row["sd"]) == pytest.approx((cell.mean(), cell.std()))


def test_a_mean_distance_says_over_how_many_masks_it_is() -> None:
    scores = pd.DataFrame(
        {
            "structure": ["myocardium", "left atrium cavity"] * 2 + ["myocardium"],
            "dice": [0.8, 0.6, 0.0, 0.8, 0.4],
            "assd": [2.0, 3.0, np.nan, 5.0, 4.0],
            "empty_pred": [False, False, True, False, False],
        }
    )
    table = mean_scores(scores)
    assert list(table.index) == ["myocardium", "left atrium cavity"]
    assert table["dice"].tolist() == pytest.approx([0.4, 0.7])
    assert table["assd"].tolist() == pytest.approx([3.0, 4.0])
    assert table["distances over"].tolist() == ["2 of 3", "2 of 2"]
    assert table["empty predictions"].tolist() == [1, 0]
    assert mean_scores(scores, "structure").equals(table)
    with pytest.raises(ValueError, match="empty_pred"):
        mean_scores(scores.drop(columns="empty_pred"))


def test_patients_of_two_cohorts_are_not_one() -> None:
    scores = _scores((1,))
    other = pd.concat([scores, scores.assign(cohort="camus")], ignore_index=True)
    assert (summary(other, ("model",), resamples=100)["patients"] == 40).all()


def test_the_papers_table_from_the_authors_scores(shared: Path) -> None:
    """Released per-mask scores of the unfrozen encoders give the paper's printed means and deviations."""
    with gzip.open(shared / "published" / "scores_per_image.csv.gz") as file:
        scores = pd.read_csv(file).rename(columns={"legacy_test_patient": "patient", "label": "structure"})
    scores = scores[scores["model"].isin(["CLIPSeg", "CRIS"])].assign(dice=lambda t: t["dice"] / 100)
    printed = pd.read_csv(shared / "published" / "paper_tables.csv")
    printed = printed[printed["encoders"] == "unfrozen"].set_index(["model", "strategy", "prompt"])
    ours = summary_table(scores)
    agree = [
        ours.loc[(model, strategy), prompt] == f"{printed.loc[(model, strategy, prompt), 'dice_mean']:.2f} ± "
        f"{printed.loc[(model, strategy, prompt), 'dice_sd']:.2f}"
        for model, strategy in ours.index
        for prompt in ours.columns
        if ours.loc[(model, strategy), prompt] != "N/A"
    ]
    assert np.mean(agree) > 0.9


def test_agreement_by_hand() -> None:
    found = agreement([50.0, 60.0, 40.0, np.nan], [52.0, 61.0, 45.0, 50.0])
    assert (found["n"], found["left_out"]) == (3, 1)
    assert found["bias"] == pytest.approx(8 / 3)
    assert found["sd"] == pytest.approx(np.std([2, 1, 5], ddof=1))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * found["sd"])
    assert found["mean_absolute"] == pytest.approx(8 / 3)
    assert found["correlation"] == pytest.approx(np.corrcoef([50, 60, 40], [52, 61, 45])[0, 1])
    with pytest.raises(ValueError, match="three at least"):
        agreement([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="one value a patient"):
        agreement([1.0, 2.0, 3.0], [1.0, 2.0])


# --- edges: a change of the module here went unnoticed by the tests above ----------------------------------


def _cell(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"model": "m", "strategy": "real", "prompt": "P1", "cohort": "c", **columns})


def test_a_summary_of_few_values_says_only_what_they_tell() -> None:
    scores = pd.concat(
        [
            _cell(patient=["p", "q"], dice=[0.2, 0.4]),
            _cell(patient=["p", "q"], dice=[0.6, np.nan]).assign(prompt="P2"),
            _cell(patient=["p"], dice=[np.nan]).assign(prompt="P3"),
            _cell(patient=["p"], dice=[0.5]).assign(prompt=None),
        ],
        ignore_index=True,
    )
    table = summary(scores, "prompt", resamples=200)
    assert list(table.index) == [0, 1, 2, 3]
    assert list(table["prompt"])[:3] == ["P1", "P2", "P3"]
    assert table["prompt"].isna().tolist() == [False, False, False, True]
    assert table["mean"].tolist() == pytest.approx([0.3, 0.6, np.nan, 0.5], nan_ok=True)
    assert table["sd"].tolist() == pytest.approx([np.sqrt(0.02), np.nan, np.nan, np.nan], nan_ok=True)
    assert table["n"].tolist() == [2, 1, 0, 1]
    assert table["missing"].tolist() == [0, 1, 1, 0]
    assert table["patients"].tolist() == [2, 1, 0, 1]
    assert table["low"].isna().tolist() == [False, True, True, True]
    assert (table["low"][0], table["high"][0]) == (0.2, 0.4)
    with pytest.raises(ValueError, match="no column patient"):
        summary(scores.drop(columns="patient"), "prompt")
    with pytest.raises(ValueError, match="the table is empty"):
        summary(scores[:0], "prompt")


def test_values_of_a_category_that_do_not_occur_make_no_cells() -> None:
    scores = _scores((1,))
    kinds = {name: pd.CategoricalDtype([*scores[name].unique(), "never"]) for name in ("model", "prompt")}
    named = scores.astype(kinds)
    assert len(summary(named, ("model", "prompt"), resamples=50)) == 4
    assert len(compare(named, "real", "synthetic", resamples=50)) == 4
    assert summary_table(named, ("model", "strategy")).shape == (4, 2)


def test_strategies_stand_in_the_papers_order_and_all_else_in_the_alphabets() -> None:
    order = ["zeroshot", "synthetic", "real", "synth-PT:real-FT", "joint"]
    scores = pd.concat(
        [_cell(patient=["p", "q"], dice=[0.5, 0.6]).assign(strategy=name) for name in sorted(order)]
    )
    assert list(summary(scores, "strategy", resamples=50)["strategy"]) == order
    table = summary_table(scores, "strategy")
    assert list(table.index) == order
    assert table.loc["real", "P1"] == "55.00 ± 7.07"
    turned = summary_table(scores, "prompt", "strategy", percent=False, digits=3)
    assert list(turned.columns) == order
    assert turned.loc["P1", "joint"] == "0.550 ± 0.071"


def test_a_cell_of_one_mask_has_no_spread_and_encoders_may_be_columns() -> None:
    one = _cell(patient=["p"], dice=[0.5], encoders="frozen")
    assert summary_table(one).loc[("m", "real"), "P1"] == "50.00"
    both = pd.concat([one, one.assign(encoders="unfrozen", dice=0.75)])
    by_encoders = summary_table(both, ("model",), "encoders")
    assert by_encoders.loc["m"].tolist() == ["50.00", "75.00"]
    assert len(summary_table(both, ("model", "encoders"))) == 2
    assert summary_table(one.assign(dice=np.nan)).loc[("m", "real"), "P1"] == "N/A (0 of 1)"
    with pytest.raises(ValueError, match="the table is empty"):
        summary_table(one[:0])


def test_a_comparison_has_its_columns_in_order_and_its_rows_numbered() -> None:
    scores = _scores((1, 2)).query("model == 'cris'")
    table = compare(scores, "real", "synthetic", "prompt", resamples=50)
    assert list(table.index) == [0, 1]
    expected = "prompt a b masks patients seeds mean_a mean_b difference low high seed_sd p_mask p_mask_holm "
    expected += "effect_mask p_patient p_patient_holm effect_patient"
    assert " ".join(table.columns) == expected
    assert set(table["a"]) == {"real"}
    assert set(table["b"]) == {"synthetic"}
    assert (table["mean_a"] - table["mean_b"]).to_numpy() == pytest.approx(table["difference"].to_numpy())
    assert (table["effect_mask"].abs() <= 1).all()


def test_a_comparison_refuses_what_would_be_no_comparison() -> None:
    scores = _scores((1,))
    with pytest.raises(ValueError, match="by: strategy is what is compared"):
        compare(scores, "real", "synthetic", ("model", "strategy"))
    with pytest.raises(ValueError, match="no column hausdorff"):
        compare(scores, "real", "synthetic", value="hausdorff")
    apart = scores.assign(seed=scores["strategy"].map({"real": 1, "synthetic": 2}))
    with pytest.raises(ValueError, match=r"no cell of model, prompt has both real and synthetic"):
        compare(apart, "real", "synthetic")
    gone = scores.assign(dice=scores["dice"].mask(scores.index == 0))
    with pytest.raises(ValueError, match="NaN"):
        compare(gone, "real", "synthetic")
    again = pd.concat([scores, scores[:1]])
    with pytest.raises(ValueError, match="1 masks occur twice for one seed; drop the repeated rows"):
        compare(again, "real", "synthetic")


def test_a_mask_that_one_seed_lacks_is_no_mask_of_the_comparison() -> None:
    """A value for one of two seeds would be a mean over other seeds than its neighbours'."""
    scores = _scores((1, 2))
    one = scores[(scores["seed"] == 2) & (scores["strategy"] == "real") & (scores["model"] == "cris")].index[
        0
    ]
    with pytest.raises(ValueError, match="NaN"):
        compare(scores.drop(index=one), "real", "synthetic")


def test_scores_without_seeds_or_cohort_compare_as_they_are() -> None:
    scores = _scores((1,))
    table = compare(scores, "real", "synthetic", resamples=50)
    bare = compare(scores.drop(columns=["seed", "cohort"]), "real", "synthetic", resamples=50)
    pd.testing.assert_frame_equal(table, bare)
    assert (bare["seeds"] == 1).all()
