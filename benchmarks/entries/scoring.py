"""Scores of masks: all five metrics, against MONAI one mask at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import plain, setups
from benchmarks.measure import Pair, Side
from benchmarks.setups import Settings
from echovlsm.evaluation.scoring import METRICS, score_table


def run(settings: Settings) -> Iterator[Pair]:
    """600 masks at 512 x 512."""
    count, size, part = (12, 96, 6) if settings.quick else (600, 512, 60)
    masks = setups.outlines(count, size)

    def run_ours() -> np.ndarray:
        rows = (({"mask": number}, *pair) for number, pair in enumerate(masks))
        return score_table(rows, size=size, progress=False)[list(METRICS)].to_numpy()

    def check(found: np.ndarray, wanted: np.ndarray) -> str:
        np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-5)
        far = float(np.abs(found[: len(wanted)] / wanted - 1).max())
        return f"all {len(METRICS)} metrics of {len(wanted)} masks equal to {far:.0e}"

    yield Pair(
        "scores",
        f"five metrics of {count} masks, {size} x {size}",
        "mask",
        Side("`score_table`", run_ours, count),
        Side(f"MONAI, one mask at a time ({part} of them)", lambda: plain.monai_scores(masks[:part]), part),
        check,
        target=10,
        repeats=settings.repeats(5),
        note=f"MONAI is timed on {part} of the masks; what counts is the time a mask.",
    )
