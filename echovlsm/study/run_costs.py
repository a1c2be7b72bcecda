"""What a run will cost, before it starts: memory and time from a few measured steps, and space on the disk.

A training step is taken at two batch sizes, on noise; what lies between and beyond them is a straight line.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from echovlsm.base import paths
from echovlsm.training import make_loss, make_optimiser

SPARE = 0.9
"""Share of the free memory that a run may take."""

_GIB = 2**30


class Check(NamedTuple):
    """One thing looked at: what, what was found, whether a run can go on with it, and what to do if not."""

    check: str
    value: str
    ok: bool
    remedy: str = ""


def line(error: object) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them learn."""
    sizes = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def process_memory() -> int:
    """Bytes that this process holds now."""
    return psutil.Process().memory_info().rss


def device_type() -> str:
    """The kind of device that Accelerate chooses: `cpu`, `cuda` and others."""
    from accelerate import PartialState

    return PartialState().device.type


# -- measured steps ---------------------------------------------------------------------------------------


def measure_steps(
    model: nn.Module,
    texts: Sequence[str],
    batches: Sequence[int] = (1, 2),
    *,
    mixed_precision: str = "no",
    reuse: bool = False,
) -> pd.DataFrame:
    """Take a training step of each batch size twice, and see what the second one takes.

    The weights stay as they are, as the learning rate is 0; running statistics of batch normalisation do not.

    Parameters
    ----------
    model
        Of `echovlsm.models`; afterwards it is on the device that Accelerate chooses.
    texts
        Prompts, three in a row for each image.
    batches
        Numbers of images.
    mixed_precision
        ``no``, ``bf16``, or on a GPU ``fp16``.
    reuse
        Whether frozen encoders encode beforehand, as `echovlsm.training.features` does.

    Returns
    -------
    DataFrame
        One row a batch size: `batch`; `seconds` of a training step; `check_seconds` of a validation step;
        `memory`, bytes. A GPU tells what it held. A CPU cannot, so there it is weights, gradients, AdamW's
        two moments and everything that the backward pass keeps.
    """
    kind = device_type()
    model.to(kind)
    optimiser = make_optimiser(model, learning_rate=0.0, weight_decay=0.0)
    ids, mask = model.tokenize(list(texts[: 3 * max(batches)]))
    rows = []
    for batch in batches:
        for _ in range(2):  # AdamW's moments and the allocators' pools are made by the first
            measured = _measure(model, optimiser, batch, (ids, mask), kind, mixed_precision, reuse)
        rows.append((batch, *measured))
    return pd.DataFrame(rows, columns=["batch", "seconds", "check_seconds", "memory"])


def _measure(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: int,
    words: tuple[Tensor, Tensor],
    kind: str,
    mixed_precision: str,
    reuse: bool,
) -> tuple[float, float, float]:
    loss, side = make_loss(), model.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, side, side), generator=generator, dtype=torch.uint8).to(kind)
    masks = (torch.rand(3 * batch, 1, side, side, generator=generator) > 0.5).float().to(kind)
    rows = torch.arange(3 * batch) % len(words[0])
    ids, mask = (values[rows].view(batch, 3, -1).to(kind) for values in words)
    distinct = torch.arange(min(len(rows), len(words[0])))
    known = {"repeats": (distinct.to(kind), rows.to(kind))}
    if reuse:
        with torch.no_grad():
            encoded = model.encode_image(model.normalise(images))
            known["features"] = tuple(encoded), model.text_features(ids.flatten(0, 1), mask.flatten(0, 1))
    kept = _Kept(model)
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def answer() -> Tensor:
        with _autocast(kind, mixed_precision):
            logits = model(images if reuse else model.normalise(images), ids, mask, **known)
        return loss(logits.float().flatten(0, 1)[:, None], masks)

    model.train()
    clock = _now(kind)
    with nullcontext() if kind == "cuda" else kept.watch():
        value = answer()
    value.backward()
    optimiser.step()
    optimiser.zero_grad()
    seconds = _now(kind) - clock
    total, learned = count_parameters(model)
    memory = torch.cuda.max_memory_allocated() if kind == "cuda" else 4 * total + 12 * learned + kept.bytes
    model.eval()
    clock = _now(kind)
    with torch.no_grad():
        answer()
    return seconds, _now(kind) - clock, memory


class _Kept:
    """Counts the bytes that a forward pass keeps for the backward pass, besides the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._seen.values())

    def watch(self) -> AbstractContextManager:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def _now(kind: str) -> float:
    if kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _autocast(kind: str, mixed_precision: str) -> AbstractContextManager:
    if mixed_precision == "no":
        return nullcontext()
    return torch.autocast(kind, dtype=torch.float16 if mixed_precision == "fp16" else torch.bfloat16)


def extrapolate(table: pd.DataFrame, column: str, batch: float) -> float:
    """A column of `measure_steps` at another batch size, on the line through its first and last row."""
    first, last = table.iloc[0], table.iloc[-1]
    slope = max(0.0, (last[column] - first[column]) / (last["batch"] - first["batch"]))
    return float(last[column] + slope * (batch - last["batch"]))


# -- what follows from them -------------------------------------------------------------------------------


def check_costs(
    values: Mapping[str, Any],
    model: nn.Module,
    texts: Sequence[str],
    counts: Mapping[str, int],
    room: float,
    held: float,
    batches: tuple[int, int] | None,
) -> list[Check]:
    """Disk, memory and time.

    Parameters
    ----------
    values, model, texts, counts
        Of `dry_run.settings`, `check_weights`, `check_prompts` and `count_images`.
    room
        Bytes that the cache may take.
    held
        Bytes that the process holds without the model.
    batches
        Batch sizes at which steps are measured; None measures none.
    """
    # as `echovlsm.training.features` decides
    reuse = values["encoders"] == "frozen" and not values["augment"]
    features = 0.0
    if reuse:
        one = feature_bytes(model)
        features = sum(one * counts[part] for part in ("train", "val") if one * counts[part] <= room)
        reuse = one * counts["train"] <= room
    trained, images = values["strategy"] != "zeroshot", sum(counts.values())
    found = [disk_needed(model, trained, 2 * images * model.image_size**2 + features)]
    if not trained:
        return [*found, Check("time", f"nothing to train, {counts['test']} images to score", True)]
    if batches is None:
        return found
    on_cpu, precision, how = device_type() == "cpu", values["mixed_precision"], ""
    if on_cpu and precision == "fp16":  # refused elsewhere; what the machine can do is measured all the same
        precision, how = "no", " (measured in float32)"
    elif not on_cpu:
        how = " (from small batches, which use a GPU badly)"
    try:
        table = measure_steps(model, texts, batches, mixed_precision=precision, reuse=reuse)
    except (RuntimeError, ValueError) as error:
        remedy = f"a training step of {' or '.join(map(str, batches))} images failed: {line(error)}"
        return [*found, Check("memory", "not measured", False, remedy)]
    batch = min(values["batch_size"], max(counts["train"], counts["before"], 1))
    held = held + 2 * images * model.image_size**2 if on_cpu else 0.0
    memory = memory_needed(table, batch, held, model)
    found.append(memory._replace(value=memory.value + (how if on_cpu else "")))
    parts = [(counts["train"], counts["val"])]
    if counts["before"]:
        parts.insert(0, (counts["before"], counts["before_val"]))
    epochs, patience = values["epochs"], values["patience"]
    if values["steps"]:  # what lies between two looks stands for an epoch
        batch, epochs = values["batch_size"], values["steps"] // values["look_every"]
        parts, patience = [(values["look_every"] * batch, check) for _, check in parts], epochs
    told = time_needed(table, batch, parts, epochs, patience)
    return [*found, Check("time", f"{told}{how}", True)]


def memory_needed(table: pd.DataFrame, batch: int, held: float, model: nn.Module) -> Check:
    """What a training at `batch` images a step holds, against what the device has to give.

    `table` is of `measure_steps`; `held`: bytes that the process holds beside the model.
    """
    there, needed = device_memory(), held + extrapolate(table, "memory", batch)
    total, learned = count_parameters(model)
    told = (
        f"at least {needed / _GIB:.1f} of {there / _GIB:.1f} GiB: weights {4 * total / _GIB:.2f}, gradients "
        f"{4 * learned / _GIB:.2f}, AdamW {8 * learned / _GIB:.2f}, the rest mostly for {batch} images"
    )
    if needed <= SPARE * there:
        return Check("memory", told, True)
    fixed = held + extrapolate(table, "memory", 0)
    slope = extrapolate(table, "memory", 1) - extrapolate(table, "memory", 0)
    most = int((SPARE * there - fixed) // slope) if slope > 0 else 0
    remedy = f"batch_size={most} would fit" if most > 0 else "not one image fits; take a GPU"
    return Check("memory", told, False, remedy)


def time_needed(
    table: pd.DataFrame, batch: int, parts: Sequence[tuple[int, int]], epochs: int, patience: int
) -> str:
    """How long a training takes, in words.

    Parameters
    ----------
    table
        Of `measure_steps`.
    batch
        Images a step.
    parts
        Images to learn from and to choose the epoch by, of each training in turn: a finetuning comes after
        the training that it starts from.
    epochs, patience
        At most `epochs`; without any progress training ends `patience` after the first.
    """
    step, check = (extrapolate(table, column, batch) for column in ("seconds", "check_seconds"))
    told, total = [], 0.0
    for train, val in parts:
        steps, checks = -(-train // batch), -(-val // batch)
        total += steps * step + checks * check
        told.append(f"{steps} steps of {span(step)}")
    text = f"an epoch of {' and '.join(told)}: {span(total)}; "
    least = min(epochs, patience + 1)
    if least < epochs:
        text += f"{span(least * total)} for {least} epochs, the fewest, "
    return f"{text}{span(epochs * total)} for {epochs}"


def span(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def device_memory() -> float:
    """Bytes that the device has to give to this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(psutil.virtual_memory().available + process_memory())


def disk_needed(model: nn.Module, trained: bool, kept: float) -> Check:
    """Space for weights and the state of a training, beside `kept` bytes of images and features."""
    total, learned = count_parameters(model)
    weights = 4 * total if trained else 0
    # The state of an epoch is whole before that of the last one goes; the best weights lie beside them.
    state = 2 * (weights + 8 * learned) + weights if trained else 0
    needed = weights + state + kept
    place = paths.project_root() / "runs"
    free = shutil.disk_usage(next(part for part in (place, *place.parents) if part.exists())).free
    told = f"{needed / _GIB:.1f} of {free / _GIB:.0f} GiB while it runs, {weights / _GIB:.1f} afterwards"
    fits = needed < free
    return Check("disk", told, fits, "" if fits else "free some space, or put the project on a larger disk")


def feature_bytes(model: nn.Module) -> int:
    """Bytes of what frozen encoders make of one image, as `echovlsm.training.features` keeps it."""
    image = torch.zeros((1, model.image_size, model.image_size), dtype=torch.uint8)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        values = model.encode_image(model.normalise(image))
    model.train(was_training)
    return int(sum(4 * np.prod(value.shape) for value in values))
