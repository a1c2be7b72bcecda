"""An epoch of the small model, with what surrounds the network: reading, tokens, clipping, optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import plain, setups
from benchmarks.entries.training import CLIP, gradients
from benchmarks.measure import Pair, Rate, Side, time_call
from benchmarks.setups import Settings
from echovlsm.training import devices, features
from echovlsm.training import loop as training
from echovlsm.training.triplets import Batches, Triplets, whole_batch

RATE = 0.0
"""Learning rate: all is computed, and both ways stay at the same weights, so that their gradients compare."""

IMAGES = 96


def _ours(model: nn.Module, part: Triplets, size: int) -> Callable[[], float]:
    """An epoch of `fit`: the mean loss."""
    accelerator, bar = Accelerator(), tqdm(disable=True)
    with setups.own_cache():
        known = features.encode(model, part)
    optimiser, loss = training.make_optimiser(model, RATE, 1e-3), training.make_loss()
    batches = DataLoader(part, batch_sampler=Batches(len(part), size, 0), collate_fn=whole_batch)
    model.to(memory_format=torch.channels_last)

    @devices.without_denormals()
    def epoch() -> float:
        return training._train_epoch(
            accelerator, model, model, batches, optimiser, loss, CLIP, bar, None, known
        )

    return epoch


def _theirs(model: nn.Module, part: Triplets, size: int, at_rest: bool) -> Callable[[int], float]:
    """The same batches by the plain loop, so many triplets at a time in the network."""
    segmenter = model.segmenter
    learned = [value for value in segmenter.parameters() if value.requires_grad]
    optimiser, loss = torch.optim.AdamW(learned, lr=RATE, weight_decay=1e-3), training.make_loss()
    rows = Batches(len(part), size, 0)
    order = [[3 * image + place for _, image in row for place in range(3)] for row in rows]
    batches = DataLoader(plain.Triplets(part, model), batch_sampler=order)
    forward = plain.clipseg_frozen if at_rest else plain.clipseg_unfrozen

    def epoch(at_a_time: int) -> float:
        return plain.epoch(forward, segmenter, optimiser, batches, loss, CLIP, at_a_time)

    return epoch


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """Frozen and learning encoders, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _run(settings)
    finally:
        torch.set_num_threads(threads)


def _run(settings: Settings) -> Iterator[Pair | Rate]:
    count, size = (8, 4) if settings.quick else (IMAGES, 8)
    ways: dict[str, Any] = {}
    for encoders in ("frozen", "unfrozen"):
        model = setups.clipseg(Settings(quick=True), encoders)
        other, part = copy.deepcopy(model), setups.triplets(model, count)
        frozen = encoders == "frozen"
        ours, theirs = _ours(model, part, size), _theirs(other, part, size, frozen)
        ways |= {f"ours {encoders}": ours, f"plain {encoders}": theirs}

        def check(found: float, wanted: float, model: nn.Module = model, other: nn.Module = other) -> str:
            assert abs(found - wanted) < 1e-4 * abs(wanted), (found, wanted)
            mine, plain_ones = gradients(model.segmenter), gradients(other.segmenter)
            # what trained weights still have to learn nearly cancels
            return f"mean loss equal, {setups.assert_same_gradients(mine, plain_ones, 5e-2)}"

        for at_a_time, how in ((1, "one by one"), (3 * size, "in batches")):
            yield Pair(
                f"loop-{encoders}" + ("" if at_a_time == 1 else "-batch"),
                f"tiny CLIPSeg, 96 px, an epoch, encoders {'frozen' if frozen else 'learning'}, "
                f"against triplets {how}",
                "triplet",
                Side("`fit`'s epoch" + (", encoded before" if frozen else ""), ours, 3 * count),
                Side(f"read, tokenised and encoded {how}", lambda t=theirs, n=at_a_time: t(n), 3 * count),
                check,
                target=10 if frozen and at_a_time == 1 else None,
                repeats=settings.repeats(3),
                note=f"{3 * count} triplets, {3 * size} a step, one thread; clipping and AdamW count.",
            )
    ratios = []
    for number in range(settings.repeats(3)):
        calls = [ways["ours unfrozen"], lambda: ways["plain frozen"](1)]
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which] = time_call(calls[which])[0]
        ratios.append(seconds[1] / seconds[0])
    yield Rate(
        "loop-learning-against-rest",
        "tiny CLIPSeg, 96 px, an epoch: encoders that learn, against the plain loop with encoders at rest",
        "times as fast",
        ratios,
        target=2,
        note="The two do not give the same: the plain loop computes no gradients of the encoders.",
    )
