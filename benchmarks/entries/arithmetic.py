"""Settings that do not change what is computed, only how: which of two the package takes, and why."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import setups
from benchmarks.entries.training import RATE, step
from benchmarks.measure import Pair, Rate, Side, median_of
from benchmarks.setups import Settings
from echovlsm.base import paths
from echovlsm.synthesis.process import diffusion_loss
from echovlsm.synthesis.weights import load_denoiser
from echovlsm.training import loop as training


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """Each pair: the setting that differs from PyTorch's default, against the default."""
    quick = Settings(quick=True, threads=settings.threads)
    yield from _optimiser(settings, "full", setups.clipseg(settings, "unfrozen"))
    yield from _optimiser(settings, "tiny", setups.clipseg(quick, "unfrozen"))
    yield from _layout_of_cris(settings, "full", 1)
    yield from _layout_of_cris(quick, "tiny", 8)
    yield from _layout_of_unet(settings)
    yield from _modes(settings)
    yield from _half(settings)
    yield from _threads(settings)
    yield from _compiled(settings)


def _optimiser(settings: Settings, size: str, model: nn.Module) -> Iterator[Pair]:
    """AdamW's fused kernel against its loop over tensors."""
    torch.manual_seed(0)
    shapes = [value.shape for value in model.parameters() if value.requires_grad]
    start = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) * 1e-3 for shape in shapes]

    def steps(fused: bool) -> Any:
        values = [value.clone().requires_grad_(True) for value in start]
        for value, gradient in zip(values, gradients, strict=True):
            value.grad = gradient
        optimiser = torch.optim.AdamW(values, lr=RATE, weight_decay=1e-3, fused=fused or None)

        def one() -> list[Tensor]:
            optimiser.step()
            return values

        return one

    def check(found: list[Tensor], wanted: list[Tensor]) -> str:
        far = max(setups.apart(a.detach(), b.detach()) for a, b in zip(found, wanted, strict=True))
        assert far < 1e-6, far
        return f"parameters equal to {far:.0e} after a step"

    yield Pair(
        f"fused-adamw-{size}",
        f"AdamW step, {size} CLIPSeg, all parameters",
        "step",
        Side("fused", steps(True)),
        Side("loop over tensors (default)", steps(False)),
        check,
        repeats=settings.repeats(7),
        kind="choice",
        chosen="ours",
    )


def _layout_of_cris(settings: Settings, size: str, images: int) -> Iterator[Pair]:
    """CRIS's image encoder with channels last in memory."""
    model = setups.cris(settings).eval()
    other = copy.deepcopy(model)
    model.backbone.visual.to(memory_format=torch.channels_last)
    pixels = model.normalise(setups.triplets(model, images).images)

    @torch.inference_mode()
    def encode(net: nn.Module, layout: torch.memory_format) -> tuple[Tensor, ...]:
        return net.encode_image(pixels.contiguous(memory_format=layout))

    def check(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> str:
        pairs = list(zip(found, wanted, strict=True))
        return setups.assert_alike(*max(pairs, key=lambda pair: setups.apart(*pair)), "maps", 1e-4)

    yield Pair(
        f"channels-last-cris-{size}",
        f"image encoder of {size} CRIS, {model.image_size} px",
        "image",
        Side("channels last", lambda: encode(model, torch.channels_last), images),
        Side("channels first (default)", lambda: encode(other, torch.contiguous_format), images),
        check,
        repeats=settings.repeats(7),
        kind="choice",
        chosen="plain",
    )


def _layout_of_unet(settings: Settings) -> Iterator[Pair]:
    """A training step of the denoiser."""
    weights = paths.resolve("data/weights/sdm-tiny")
    batch = 2 if settings.quick else 8
    generator = torch.Generator().manual_seed(0)
    size = load_denoiser(weights)[0].config.image_size
    clean, noise = (torch.randn(batch, 1, size, size, generator=generator) for _ in range(2))
    maps = torch.randint(0, 5, (batch, size, size), generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)

    def steps(layout: torch.memory_format) -> Any:
        model, schedule = load_denoiser(weights)
        model = model.to(memory_format=layout).train()

        def one() -> Tensor:
            model.zero_grad()
            loss = diffusion_loss(model, schedule, clean, maps, t, noise)
            loss.mean().backward()
            return loss.detach()

        return one

    yield Pair(
        "channels-last-unet",
        f"denoiser of {size} px, forward and backward",
        "image",
        Side("channels last", steps(torch.channels_last), batch),
        Side("channels first (default)", steps(torch.contiguous_format), batch),
        lambda found, wanted: setups.assert_alike(found, wanted, "losses", 1e-4),
        repeats=settings.repeats(7),
        kind="choice",
        chosen="ours",
    )


def _modes(settings: Settings) -> Iterator[Pair]:
    """Inference mode against no_grad, where calls take the time: the tiny model."""
    model = setups.clipseg(Settings(quick=True), "unfrozen").eval()
    batch = setups.batch_of(setups.triplets(model, 1))
    pixels = model.normalise(batch["image"])

    def answers(mode: Any) -> Any:
        def one() -> Tensor:
            with mode():
                for _ in range(10):
                    found = model(pixels, batch["input_ids"], batch["attention_mask"])
            return found

        return one

    yield Pair(
        "inference-mode",
        "tiny CLIPSeg, one image, three prompts",
        "image",
        Side("inference mode", answers(torch.inference_mode), 10),
        Side("no_grad", answers(torch.no_grad), 10),
        lambda found, wanted: setups.assert_alike(found, wanted, "logits", 1e-6),
        repeats=settings.repeats(15),
        kind="choice",
        chosen="ours",
    )


def _half(settings: Settings) -> Iterator[Pair]:
    """bfloat16 on this processor: fast where it has instructions for it, slow where it must be imitated."""
    model = setups.clipseg(settings, "unfrozen").eval()
    batch = setups.batch_of(setups.triplets(model, 1))
    pixels = model.normalise(batch["image"])

    @torch.inference_mode()
    def answer(half: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(pixels, batch["input_ids"], batch["attention_mask"]).float()

    yield Pair(
        "bfloat16",
        "CLIPSeg, 352 px, one image, three prompts",
        "image",
        Side("bfloat16 autocast", lambda: answer(True)),
        Side("float32 (default)", lambda: answer(False)),
        lambda found, wanted: setups.assert_alike(found, wanted, "logits", 0.2),
        repeats=settings.repeats(3),
        kind="choice",
        chosen="plain",
        note="A choice of the user (`mixed_precision`): it rounds. The default is float32.",
    )


def _threads(settings: Settings) -> Iterator[Pair]:
    """Two threads against one, for a large and for a small model."""
    before = torch.get_num_threads()
    quick = Settings(quick=True)

    def with_threads(count: int, call: Any) -> Any:
        def one() -> Any:
            torch.set_num_threads(count)
            try:
                return call()
            finally:
                torch.set_num_threads(before)

        return one

    for size, where, images in (("full", settings, 1), ("tiny", quick, 8)):
        model = setups.clipseg(where, "unfrozen").train()
        batch, loss = setups.batch_of(setups.triplets(model, images)), training.make_loss()
        optimiser = training.make_optimiser(model, 0.0, 0.0)

        def call(
            model: Any = model, optimiser: Any = optimiser, batch: Any = batch, loss: Any = loss
        ) -> Tensor:
            return step(model, optimiser, batch, loss)[1]

        yield Pair(
            f"threads-{size}",
            f"training step, {size} CLIPSeg, {model.image_size} px",
            "image",
            Side("two threads", with_threads(2, call), images),
            Side("one thread", with_threads(1, call), images),
            lambda found, wanted: setups.assert_alike(found, wanted, "logits", 1e-3),
            repeats=settings.repeats(3 if size == "full" else 7),
            kind="choice",
            note="One job alone. Jobs side by side take one thread each (`threads=1`).",
        )


def _compiled(settings: Settings) -> Iterator[Pair | Rate]:
    """torch.compile on the demo's training step: what it saves a step, and what compiling costs."""
    model = setups.clipseg(Settings(quick=True), "unfrozen").train()
    part = setups.triplets(model, 2 if settings.quick else 8)
    batch, loss = setups.batch_of(part), training.make_loss()
    pixels, words = model.normalise(batch["image"]), (batch["input_ids"], batch["attention_mask"])
    compiled = model if settings.quick else torch.compile(model)

    def one(net: Any, owner: nn.Module = model, pixels: Tensor = pixels) -> tuple[Tensor, dict[str, Tensor]]:
        owner.zero_grad()
        logits = net(pixels, *words)
        masks = batch["masks"].flatten(0, 1)[:, None].to(logits.dtype)
        loss(logits.flatten(0, 1)[:, None], masks).backward()
        return logits.detach(), {n: p.grad.clone() for n, p in owner.named_parameters() if p.grad is not None}

    def check(found: tuple, wanted: tuple) -> str:
        # In float32 these gradients lie some 2e-2 from those in double precision in whatever order one sums:
        # compiling must not take them farther away.
        exact = copy.deepcopy(model).double()
        _, truth = one(exact, exact, pixels.double())
        far, near = (setups.gradients_apart(gradients, truth) for _, gradients in (found, wanted))
        assert far <= 1.2 * near, f"gradients: {far:.1e} from double precision, without compiling {near:.1e}"
        alike = setups.assert_alike(found[0], wanted[0], "logits", 1e-3)
        return f"{alike}, gradients {far:.0e} from double precision, without compiling {near:.0e}"

    clock = time.perf_counter()
    try:
        one(compiled)
    except Exception as error:  # no compiler, or a graph that it cannot make
        words_of_it = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
        yield Rate(
            "compile-failed",
            "compiling the training step failed",
            "s",
            [time.perf_counter() - clock],
            better="less",
            note=words_of_it,
        )
        return
    first = time.perf_counter() - clock
    pair = Pair(
        "compiled",
        "tiny CLIPSeg, forward and backward",
        "image",
        Side("torch.compile", lambda: one(compiled), len(part)),
        Side("eager (default)", lambda: one(model), len(part)),
        check,
        repeats=settings.repeats(9),
        kind="choice",
        chosen="plain",
        note="The first call compiles and is not counted here.",
    )
    yield pair
    saved = min(median_of(pair.plain.run, 3)) - min(median_of(pair.ours.run, 3))
    yield Rate("compile-seconds", "compiling that step", "s", [first], better="less")
    steps = first / saved if saved > 0 else float("inf")
    note = "" if saved > 0 else "inf: never, a compiled step takes no less."
    yield Rate(
        "compile-pays-after", "steps until compiling has paid", "steps", [steps], better="less", note=note
    )
