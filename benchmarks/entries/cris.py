"""CRIS at full size: scoring a triplet."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import plain, setups
from benchmarks.measure import Pair, Side
from benchmarks.setups import Settings
from echovlsm.training import loop as training


def run(settings: Settings) -> Iterator[Pair]:
    """Scoring by `training.predict` against one triplet after the other."""
    model = setups.cris(settings).eval()
    other = copy.deepcopy(model)
    part = setups.triplets(model, 8, view="4CH")
    rows = setups.one_by_one(other, setups.batch_of(part))

    def run_ours() -> Tensor:
        return training.predict(model, part).flatten(0, 1)

    @torch.no_grad()
    def run_plain() -> Tensor:
        return torch.cat([plain.cris(other, pixels, ids, mask) for pixels, ids, mask, _ in rows])

    yield Pair(
        "cris-scoring",
        "CRIS, 416 px, logits of triplets",
        "triplet",
        Side("backbone once per image, text once per prompt", run_ours, len(rows)),
        Side("one triplet after the other", run_plain, len(rows)),
        lambda found, wanted: setups.assert_alike(found, wanted, "logits", 1e-3),
        target=2,
        repeats=settings.repeats(5),
        note="Eight images of four patients, 24 triplets with six prompts.",
    )
