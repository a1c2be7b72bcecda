"""How cost grows: with images, with prompts, with pixels; the tiny CLIPSeg, and what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import setups
from benchmarks.entries.training import RATE, step
from benchmarks.measure import Growth, time_call
from benchmarks.setups import Settings
from echovlsm import models
from echovlsm.base import paths
from echovlsm.evaluation.scoring import score_table
from echovlsm.prompts.templates import make_prompts
from echovlsm.training import loop as training
from echovlsm.training.triplets import whole_batch


def _tiny(image_size: int = 0) -> torch.nn.Module:
    return models.load("clipseg", paths.resolve("data/weights/clipseg-tiny"), "unfrozen", image_size)


def _timed(settings: Settings, runs_of: dict[float, object]) -> dict[float, list[float]]:
    """Seconds at each amount; the amounts in turn, so that a slow moment meets all."""
    for call in runs_of.values():
        call()
    seconds: dict[float, list[float]] = {amount: [] for amount in runs_of}
    for _ in range(settings.repeats(5)):
        for amount, call in runs_of.items():
            seconds[amount].append(time_call(call)[0])
    return seconds


def run(settings: Settings) -> Iterator[Growth]:
    """Seconds at amounts that double."""
    yield from _with_images(settings)
    yield from _with_prompts(settings)
    yield from _with_pixels(settings)


def _with_images(settings: Settings) -> Iterator[Growth]:
    amounts = (2, 4) if settings.quick else (8, 16, 32, 64)
    model = _tiny()
    parts = {amount: setups.triplets(model, amount) for amount in amounts}
    loss = training.make_loss()
    optimiser = training.make_optimiser(model, RATE, 1e-3)

    def epoch(part: object) -> None:
        model.train()
        for batch in torch.utils.data.DataLoader(part, batch_size=8, collate_fn=whole_batch):
            step(model, optimiser, batch, loss)

    learn = {amount: (lambda part=part: epoch(part)) for amount, part in parts.items()}
    yield Growth("an epoch of training", "images", _timed(settings, learn))
    answer = {amount: (lambda part=part: training.predict(model, part)) for amount, part in parts.items()}
    yield Growth("predicting", "images", _timed(settings, answer))
    size = 96 if settings.quick else 512
    masks = setups.outlines(3 * max(amounts), size)

    def score(count: int) -> None:
        score_table((({"mask": n}, *masks[n]) for n in range(3 * count)), size=size, progress=False)

    yield Growth("scoring", "images", _timed(settings, {n: (lambda n=n: score(n)) for n in amounts}))
    frames = setups.cohort(-(-max(amounts) // 4), 128)
    levels = ("P1", "P2", "P3", "P4", "P5")
    write = {n: (lambda n=n: make_prompts(frames.iloc[:n], levels=levels)) for n in amounts}
    yield Growth("prompts without shapes", "images", _timed(settings, write))


def _with_prompts(settings: Settings) -> Iterator[Growth]:
    amounts = (1, 2) if settings.quick else (1, 3, 6, 12, 24, 48)
    model = _tiny().eval()
    part = setups.triplets(model, 4)
    batch = setups.batch_of(part)
    pixels = model.normalise(batch["image"])

    @torch.inference_mode()
    def ask(count: int) -> None:
        where = torch.arange(count) % part.input_ids.shape[0]
        words = (
            values[where].expand(len(pixels), -1, -1) for values in (part.input_ids, part.attention_mask)
        )
        model(pixels, *words)

    note = "Four images, so many prompts of each."
    yield Growth(
        "predicting", "prompts per image", _timed(settings, {n: (lambda n=n: ask(n)) for n in amounts}), note
    )


def _with_pixels(settings: Settings) -> Iterator[Growth]:
    sides = (64, 96) if settings.quick else (64, 96, 128, 192, 256)
    learn, answer = {}, {}
    loss = training.make_loss()
    for side in sides:
        model = _tiny(side).train()
        optimiser = training.make_optimiser(model, RATE, 1e-3)
        part = setups.triplets(model, 4)
        batch = setups.batch_of(part)
        other = _tiny(side)
        learn[side**2] = lambda m=model, o=optimiser, b=batch: step(m, o, b, loss)
        answer[side**2] = lambda m=other, p=part: training.predict(m, p)
    note = "Four images; attention looks at all pairs of places, so that it grows with the square of pixels."
    yield Growth("a training step", "pixels per image", _timed(settings, learn), note)
    yield Growth("predicting", "pixels per image", _timed(settings, answer), note)
