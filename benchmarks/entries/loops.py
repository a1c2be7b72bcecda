"""An epoch of the small model, with what surrounds the network: reading, tokens, clipping, optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import plain, setups
from benchmarks.entries.training import CLIP
from benchmarks.measure import Pair, Rate, Side, time_call
from benchmarks.setups import Settings
from echovlsm.training import features
from echovlsm.training import loop as training
from echovlsm.training.triplets import Batches, Triplets, whole_batch

RATE = 1e-5
"""Learning rate; low, so that the roundings in which both ways differ do not grow over an epoch."""

IMAGES = 96


def _ours(model: nn.Module, part: Triplets, size: int) -> Callable[[], float]:
    """An epoch of `fit`: the mean loss."""
    accelerator, bar = Accelerator(), tqdm(disable=True)
    with setups.own_cache():
        known = features.encode(model, part)
    optimiser, loss = training.make_optimiser(model, RATE, 1e-3), training.make_loss()
    batches = DataLoader(part, batch_sampler=Batches(len(part), size, 0), collate_fn=whole_batch)
    model.to(memory_format=torch.channels_last)

    def epoch() -> float:
        return training._train_epoch(
            accelerator, model, model, batches, optimiser, loss, CLIP, bar, None, known
        )

    return epoch


def _theirs(
    model: nn.Module, part: Triplets, size: int, forward: Callable[..., Tensor]
) -> Callable[[], float]:
    """The same batches by the plain loop; `forward` lets the encoders learn or not."""
    segmenter = model.segmenter
    learned = [value for value in segmenter.parameters() if value.requires_grad]
    optimiser, loss = torch.optim.AdamW(learned, lr=RATE, weight_decay=1e-3), training.make_loss()
    triplets = plain.Triplets(part, model)
    rows = Batches(len(part), size, 0)
    order = [[3 * image + place for _, image in row for place in range(3)] for row in rows]
    batches = DataLoader(triplets, batch_sampler=order)

    def epoch() -> float:
        return plain.epoch(forward, segmenter, optimiser, batches, loss, CLIP)

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
    tiny = Settings(quick=True)
    count, size = (8, 4) if settings.quick else (IMAGES, 8)
    epochs: dict[str, Callable[[], float]] = {}
    for encoders in ("frozen", "unfrozen"):
        model = setups.clipseg(tiny, encoders)
        other, part = copy.deepcopy(model), setups.triplets(model, count)
        forward = plain.clipseg_frozen if encoders == "frozen" else plain.clipseg_unfrozen
        ours, theirs = _ours(model, part, size), _theirs(other, part, size, forward)
        epochs |= {f"ours {encoders}": ours, f"plain {encoders}": theirs}
        batch = part.__getitems__(range(4))
        words = batch["input_ids"], batch["attention_mask"]

        def check(
            found: float,
            wanted: float,
            model: nn.Module = model,
            other: nn.Module = other,
            image: Tensor = batch["image"],
            words: tuple[Tensor, Tensor] = words,
        ) -> str:
            assert abs(found - wanted) < 1e-4 * abs(wanted), (found, wanted)
            with torch.no_grad():  # what both have become in their first epoch
                answers = [one.eval()(one.normalise(image), *words) for one in (model, other)]
            return setups.assert_alike(*answers, "mean loss, and logits after it,", 5e-3)

        frozen = encoders == "frozen"
        yield Pair(
            f"loop-{encoders}",
            f"tiny CLIPSeg, 96 px, an epoch, encoders {'frozen' if frozen else 'learning'}",
            "triplet",
            Side("`fit`'s epoch" + (", encoded before" if frozen else ""), ours, 3 * count),
            Side("triplets read, tokenised and encoded one by one", theirs, 3 * count),
            check,
            target=10 if frozen else None,
            repeats=settings.repeats(3),
            note=f"{3 * count} triplets, batches of {3 * size}, one thread; clipping and AdamW count.",
        )
    ratios = []
    for number in range(settings.repeats(3)):
        names = ("ours unfrozen", "plain frozen")[:: 1 if number % 2 else -1]
        seconds = {name: time_call(epochs[name])[0] for name in names}
        ratios.append(seconds["plain frozen"] / seconds["ours unfrozen"])
    yield Rate(
        "loop-learning-against-rest",
        "tiny CLIPSeg, 96 px, an epoch: encoders that learn, against the plain loop with encoders at rest",
        "times as fast",
        ratios,
        target=2,
        note="The two do not give the same: the plain loop computes no gradients of the encoders.",
    )
