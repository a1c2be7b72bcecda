"""Augmented training: a batch at a time on plain tensors against MONAI's transforms, image by image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.entries.training import RATE, step
from benchmarks.measure import Pair, Rate, Side, time_call
from benchmarks.setups import LEVEL, Settings, cohort
from echovlsm import models
from echovlsm.base import paths
from echovlsm.training import loop as training
from echovlsm.training.augmentation import draw_change
from echovlsm.training.triplets import make_triplets

BATCH = 8


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """An epoch of the tiny CRIS at 64 px, one thread."""
    torch.set_num_threads(1)
    model = models.load("cris", paths.resolve("data/weights/cris-tiny"), "unfrozen", 64).train()
    frames = cohort(2 if settings.quick else 8, 128)
    optimiser, loss = training.make_optimiser(model, RATE, 1e-3), training.make_loss()
    parts = {
        name: make_triplets(frames, LEVEL, model, variant=0, augment=name != "plain")
        for name in ("plain", "ours")
    }

    def batches(name: str) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(frames), BATCH):
            yield parts[name].__getitems__(range(start, min(start + BATCH, len(frames))))

    def by_monai() -> Iterator[dict[str, Tensor]]:
        still = parts["plain"]
        for batch in batches("plain"):
            pairs = [
                plain.changed_by_monai(still.images[index], still.labels[index], change(int(index)))
                for index in batch["index"]
            ]
            labels = torch.stack([label for _, label in pairs])
            masks = torch.stack([labels == value for value in still.values], dim=1).float()
            yield batch | {"image": torch.stack([image for image, _ in pairs]), "masks": masks}

    def change(index: int):
        return draw_change(parts["ours"]._draw(0, index)[1], 64)

    def epoch(found: Iterator[dict[str, Tensor]]) -> list[Tensor]:
        images = []
        for batch in found:
            step(model, optimiser, batch, loss)
            images.append(torch.Tensor(batch["image"].float()))
        return images

    def check(found: list[Tensor], wanted: list[Tensor]) -> str:
        apart = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
        assert apart <= 1, f"grey levels differ by {apart}"
        return "images equal within one grey level"

    yield Pair(
        "augmented-epoch",
        "CRIS, 64 px, an augmented epoch on one thread",
        "image",
        Side("a batch at a time", lambda: epoch(batches("ours")), len(frames)),
        Side("MONAI, image by image", lambda: epoch(by_monai()), len(frames)),
        check,
        repeats=settings.repeats(5),
        note="MONAI's transforms return MetaTensors, through which every operation of the step then passes.",
    )
    shares = []
    for _ in range(settings.repeats(7) + 1):
        augmented, _found = time_call(lambda: epoch(batches("ours")))
        still, _found = time_call(lambda: epoch(batches("plain")))
        shares.append(augmented / still)
    yield Rate(
        "augmented-share",
        "an augmented epoch of CRIS at 64 px over a plain one, one thread",
        "share",
        shares[1:] or shares,
        target=1.15,
        better="less",
        note="The two epochs take turns.",
    )
