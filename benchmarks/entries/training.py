"""CLIPSeg at full size: a training step a triplet, and how near it comes to the machine's rate."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import plain, setups
from benchmarks.measure import Pair, Rate, Side, matrix_rate, median_of
from benchmarks.setups import Settings
from echovlsm.training import features
from echovlsm.training import loop as training

CLIP = 0.5
RATE = 1e-5


def step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    loss: nn.Module,
    known: features.Features | None = None,
) -> tuple[float, Tensor]:
    """One step of `echovlsm.training` on a batch: loss, and logits (N, H, W)."""
    value, logits = training._loss_and_logits(model, model, batch, loss, known)
    optimiser.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    return float(value.detach()), logits.detach().flatten(0, 1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients there are, by the parameter's name."""
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def _pair(settings: Settings, encoders: str) -> Iterator[Pair]:
    ours = setups.clipseg(settings, encoders).train()
    theirs = copy.deepcopy(ours.segmenter)
    if encoders == "unfrozen":
        theirs.requires_grad_(True)
    part = setups.triplets(ours, 2)
    batch, loss = setups.batch_of(part), training.make_loss()
    rows = setups.one_by_one(ours, batch)
    with setups.own_cache():
        known = features.encode(ours, part)
    assert (known is None) == (encoders == "unfrozen")
    optimiser = training.make_optimiser(ours, RATE, 1e-3)
    learned = [value for value in theirs.parameters() if value.requires_grad]
    plain_optimiser = torch.optim.AdamW(learned, lr=RATE, weight_decay=1e-3)
    forward = plain.clipseg_frozen if encoders == "frozen" else plain.clipseg_unfrozen

    def run_ours() -> tuple[float, Tensor]:
        return step(ours, optimiser, batch, loss, known)

    def run_plain() -> tuple[float, Tensor]:
        return plain.training_step(forward, theirs, plain_optimiser, rows, loss, CLIP)

    near = 5e-2 if settings.quick else 1e-3  # what trained weights still have to learn nearly cancels

    def check(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> str:
        # after the first step of either the gradients are still there
        logits = setups.assert_alike(found[1], wanted[1], "logits", 1e-3)
        assert abs(found[0] - wanted[0]) < 1e-4 * abs(wanted[0]), (found[0], wanted[0])
        return f"{logits}, {setups.assert_same_gradients(gradients(ours.segmenter), gradients(theirs), near)}"

    frozen = encoders == "frozen"
    shared = "encoded once for the cohort" if frozen else "encoded once for its structures"
    yield Pair(
        f"clipseg-{encoders}",
        f"CLIPSeg, 352 px, training step, encoders {'frozen' if frozen else 'learning'}",
        "triplet",
        Side(f"images {shared}", run_ours, len(rows)),
        Side("one triplet after the other", run_plain, len(rows)),
        check,
        target=8 if frozen else 1.8,
        repeats=settings.repeats(7 if frozen else 3),
        note="Two images, six triplets with six prompts; forward, backward, clipping and one AdamW step.",
    )
    if not frozen:
        yield from _batched(settings, ours, optimiser, theirs, plain_optimiser, batch, loss)
        yield from _share_of_peak(settings, run_ours)


def _batched(
    settings: Settings, ours: nn.Module, optimiser: Any, theirs: nn.Module, other: Any, batch: Any, loss: Any
) -> Iterator[Pair]:
    """The stricter plain way: all triplets in one batch, in which each image stands three times."""
    rows = setups.one_by_one(ours, batch)
    theirs.load_state_dict(ours.segmenter.state_dict())  # both have made steps of their own
    whole = [tuple(torch.cat(parts) for parts in zip(*rows, strict=True))]

    def check(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> str:
        return setups.assert_alike(found[1], wanted[1], "logits", 1e-3)

    yield Pair(
        "clipseg-unfrozen-batch",
        "CLIPSeg, 352 px, training step, encoders learning, against one batch of triplets",
        "triplet",
        Side("images encoded once for its structures", lambda: step(ours, optimiser, batch, loss), len(rows)),
        Side(
            "all triplets in one batch",
            lambda: plain.training_step(plain.clipseg_unfrozen, theirs, other, whole, loss, CLIP),
            len(rows),
        ),
        check,
        repeats=settings.repeats(3),
        note="As above, but the plain way has its triplets in a batch, the images repeated.",
    )


def _share_of_peak(settings: Settings, run: Any) -> Iterator[Rate]:
    """Floating-point operations of a step, per second, and their share of what a large product reaches."""
    operations = count_operations(run)
    clocks = median_of(run, settings.repeats(2))
    speeds = [operations / seconds / 1e9 for seconds in clocks]
    peak = matrix_rate(256 if settings.quick else 2048)
    middle = sorted(peak)[len(peak) // 2]
    note = "Operations counted by PyTorch's FlopCounterMode, attention included, forward and backward."
    yield Rate("matrix-product", "float32 matrix product, 2048 x 2048", "GFLOP/s", peak)
    yield Rate("clipseg-operations", "CLIPSeg training step, encoders learning", "GFLOP/s", speeds, note=note)
    yield Rate(
        "clipseg-share",
        "share of the matrix product's rate that the training step reaches",
        "share",
        [speed / middle for speed in speeds],
        note="Everything counts as time: optimiser, clipping, normalisation.",
    )


def count_operations(run: Any) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    on_cpu = torch.ops.aten  # PyTorch knows the counts of these, but not under their names on a processor
    known = {
        on_cpu._scaled_dot_product_flash_attention_for_cpu: forward,
        on_cpu._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        run()
    return counter.get_total_flops()


def _small(settings: Settings) -> Iterator[Pair]:
    """The demo's own model, where not arithmetic but calls take the time."""
    quick = Settings(quick=True, threads=settings.threads)
    ours = setups.clipseg(quick, "unfrozen").train()
    theirs = copy.deepcopy(ours.segmenter).requires_grad_(True)
    part = setups.triplets(ours, 8)
    batch, loss = setups.batch_of(part), training.make_loss()
    rows = setups.one_by_one(ours, batch)
    optimiser = training.make_optimiser(ours, RATE, 1e-3)
    other = torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=1e-3)
    yield Pair(
        "clipseg-tiny-unfrozen",
        "tiny CLIPSeg, 96 px, training step, encoders learning",
        "triplet",
        Side("images encoded once for its structures", lambda: step(ours, optimiser, batch, loss), len(rows)),
        Side(
            "one triplet after the other",
            lambda: plain.training_step(plain.clipseg_unfrozen, theirs, other, rows, loss, CLIP),
            len(rows),
        ),
        lambda found, wanted: setups.assert_alike(found[1], wanted[1], "logits", 1e-3),
        repeats=settings.repeats(9),
        note="Eight images, the demo's batch.",
    )


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """All pairs of training."""
    torch.manual_seed(0)
    yield from _pair(settings, "frozen")
    yield from _pair(settings, "unfrozen")
    yield from _small(settings)
    yield from _first_time(settings)


def _first_time(settings: Settings) -> Iterator[Rate]:
    """What encoding an image once costs, so that a reader can tell when it has paid."""
    model = setups.clipseg(settings, "frozen")
    part = setups.triplets(model, 2)
    seconds = []
    for _ in range(settings.repeats(2)):
        with setups.own_cache(kept=False):
            clock = time.perf_counter()
            features.encode(model, part) if settings.quick else _encode(model, part)
            seconds.append((time.perf_counter() - clock) / len(part))
    note = "Paid once for a cohort and its prompts; weights, images and size are the key."
    yield Rate(
        "clipseg-encode-once", "encoding an image and its prompts", "s", seconds, better="less", note=note
    )


def _encode(model: nn.Module, part: Any) -> None:
    with torch.no_grad():
        model.encode_image(model.normalise(part.images))
        model.text_features(part.input_ids, part.attention_mask)
