"""Tests and intervals of plain numbers against SciPy, textbook examples, and what they say of themselves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from echovlsm.evaluation.inference import bootstrap_interval, holm, paired_test


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_paired_test_is_scipys_wilcoxon(alternative: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80) + 0.05
    ours, theirs = paired_test(a, b, alternative), stats.wilcoxon(a, b, alternative=alternative)
    assert ours["p"] == pytest.approx(theirs.pvalue)
    assert ours["statistic"] == theirs.statistic
    assert ours["n"] == 80
    assert ours["mean_difference"] == pytest.approx(a.mean() - b.mean())
    assert ours["median_difference"] == pytest.approx(np.median(a - b))


def test_rank_biserial_by_hand() -> None:
    """Differences 1, -2, 3, 4, 0: the zero drops out, ranks 1 to 4, (1 + 3 + 4 - 2) / 10."""
    result = paired_test([2, 1, 5, 9, 7], [1, 3, 2, 5, 7])
    assert result["effect_size"] == pytest.approx(0.6)
    assert result["statistic"] == 2  # the smaller rank sum: that of the one negative difference
    # of the 16 equally likely signs, 3 have a negative rank sum of 2 or less: {}, {1}, {2}
    assert result["p"] == pytest.approx(2 * 3 / 16)
    assert result["n"] == 5


def test_effect_size_changes_sign_with_the_order_and_reaches_its_ends() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 40))
    assert paired_test(a, b)["effect_size"] == pytest.approx(-paired_test(b, a)["effect_size"])
    assert paired_test(b + 0.1, b)["effect_size"] == pytest.approx(1)


def test_no_difference_anywhere() -> None:
    result = paired_test([0.5, 0.7, 0.0], [0.5, 0.7, 0.0])
    assert (result["p"], result["effect_size"], result["mean_difference"], result["n"]) == (1, 0, 0, 3)


def test_pairs_that_are_none() -> None:
    a = pd.Series([1.0, 2.0, 3.0], index=["x", "y", "z"])
    with pytest.raises(ValueError, match="indices differ"):
        paired_test(a, a.loc[["y", "x", "z"]])
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired_test([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="b: 2 of 3 values are NaN"):
        paired_test([1, 2, 3], [1, np.nan, np.nan])
    with pytest.raises(ValueError, match="alternative"):
        paired_test([1], [2], "bigger")


def test_holm_on_a_textbook_example() -> None:
    """0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 from the smallest up, then monotone."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6, 0.5]) == pytest.approx([1, 1, 1])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match="p_values"):
        holm([0.1, np.nan])


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = rng.beta(0.3, 3, size=8)
        rejected = np.zeros(8, bool)
        for step, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (8 - step):
                break
            rejected[place] = True
        assert ((holm(p) <= 0.05) == rejected).all()


def test_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for run in range(300):
        low, high = bootstrap_interval(rng.normal(5, 2, 60), level=0.9, resamples=1000, seed=run)
        hits += low <= 5 <= high
    assert 0.85 <= hits / 300 <= 0.95


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(4).normal(0.8, 0.1, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def _correlated(
    rng: np.random.Generator, patients: int = 50, masks: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    own = rng.normal(0, 0.05, patients).repeat(masks)
    return 0.85 + own + rng.normal(0, 0.03, patients * masks), np.arange(patients).repeat(masks)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_patient_bootstrap_is_wider_where_masks_are_alike(statistic: str) -> None:
    values, patients = _correlated(np.random.default_rng(5))
    by_patient = np.diff(bootstrap_interval(values, patients, resamples=2000, statistic=statistic))[0]
    by_mask = np.diff(bootstrap_interval(values, resamples=2000, statistic=statistic))[0]
    assert by_patient > 1.8 * by_mask


def test_only_the_patient_bootstrap_covers_where_masks_are_alike() -> None:
    rng = np.random.default_rng(6)
    hits = {"patient": 0, "mask": 0}
    for run in range(200):
        values, patients = _correlated(rng, patients=40)
        for unit, groups in (("patient", patients), ("mask", None)):
            low, high = bootstrap_interval(values, groups, resamples=500, seed=run)
            hits[unit] += low <= 0.85 <= high
    assert hits["patient"] >= 176  # 88 % of 200, for a nominal 95 %
    assert hits["mask"] <= 140


def test_fast_mean_is_the_cluster_bootstrap_spelled_out() -> None:
    """Groups of unequal size: the mean over the masks of the drawn patients, here as a general function."""
    rng = np.random.default_rng(7)
    values, groups = rng.random(30), np.array(list("aaaaaaaaaaabbbbbbcccdddddddeee"))
    fast = bootstrap_interval(values, groups, resamples=4000)
    plain = bootstrap_interval(values, groups, resamples=4000, statistic=lambda drawn: float(drawn.mean()))
    assert fast == pytest.approx(plain, abs=1e-12)
    shuffled = rng.permutation(30)
    assert bootstrap_interval(values[shuffled], groups[shuffled], resamples=4000) == pytest.approx(
        fast, abs=0.02
    )


def test_interval_refuses_what_it_cannot_use() -> None:
    assert np.isnan(bootstrap_interval([0.1, 0.2], ["a", "a"])).all()
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        bootstrap_interval([0.1, np.nan])
    with pytest.raises(ValueError, match="groups: 1 values have none"):
        bootstrap_interval([0.1, 0.2], ["a", None])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([0.1, 0.2], level=95)
    with pytest.raises(ValueError, match="statistic"):
        bootstrap_interval([0.1, 0.2], statistic="mode")


def test_bounds_of_what_is_a_probability() -> None:
    for level in (0, 1):
        with pytest.raises(ValueError, match="level"):
            bootstrap_interval([0.1, 0.2], level=level)
    assert holm([0.0, 1.0]) == pytest.approx([0, 1])
    for wrong in ([-0.01], [1.01], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="p_values"):
            holm(wrong)


def test_two_groups_are_enough_for_an_interval_and_each_value_needs_one() -> None:
    assert bootstrap_interval([1.0, 1.0, 3.0], ["a", "a", "b"], resamples=400) == (1.0, 3.0)
    with pytest.raises(ValueError, match="groups: 2 labels for 3 values"):
        bootstrap_interval([1.0, 1.0, 3.0], ["a", "b"])
    for wrong in ([], [[0.1, 0.2]]):
        with pytest.raises(ValueError, match="values: one dimension"):
            bootstrap_interval(wrong)
    with pytest.raises(ValueError, match="values: 1 of 2"):
        bootstrap_interval([0.1, np.inf])


def test_a_wider_level_gives_a_wider_interval_and_the_default_is_95_percent() -> None:
    values = np.random.default_rng(0).random(30)
    narrow, usual, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.95, 0.99))
    assert wide[0] < usual[0] < narrow[0] < narrow[1] < usual[1] < wide[1]
    assert bootstrap_interval(values) == usual
    assert bootstrap_interval(values, statistic="median") != usual
