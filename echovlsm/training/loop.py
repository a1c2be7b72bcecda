"""Training of a vision-language segmentation model on triplets (paper, section 3.2 "Implementation details").

AdamW, reduce on plateau, gradient clipping, early stopping on the validation Dice, Dice + cross-entropy loss.
Accelerate chooses device, precision and processes. After each epoch (or look) the whole state is on disk; a
killed run continues from there and, with the same thread count, ends with the same history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from echovlsm.base import files, provenance
from echovlsm.training.checkpoints import Checkpoints
from echovlsm.training.devices import without_denormals
from echovlsm.training.features import Features, encode, encode_prompts
from echovlsm.training.triplets import Batches, Triplets, whole_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

HISTORY_COLUMNS = ("epoch", "step", "train_loss", "val_loss", "val_dice", "learning_rate", "seconds")

SCHEDULES: tuple[str, ...] = ("plateau", "cosine")
"""How the learning rate falls; see `fit`."""

KEPT: tuple[str, ...] = ("last", "best")
"""Whose weights a training leaves; see `fit`."""

CACHED_PIXELS = 350_000
"""Pixels of all images that `predict` takes at a time on a processor."""

WARM_UP = 0.03
"""Share of the steps in which the rate of a cosine schedule rises."""


def make_loss(dice_weight: float = 1.0, ce_weight: float = 0.25) -> nn.Module:
    """Dice + cross entropy on logits (N, 1, H, W) against masks of the same shape; always in float32.

    MONAI's `DiceCELoss` with one output channel takes the binary cross entropy; in MONAI 1.2.0, which the
    paper's code pinned, the softmax over that one channel made this half identically zero. A mask of 512 x
    512 pixels has a larger sum than a half can hold.
    """
    from monai.losses import DiceCELoss

    class Float32Loss(DiceCELoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input.float(), target.float())

    return Float32Loss(sigmoid=True, lambda_dice=dice_weight, lambda_ce=ce_weight)


def make_optimiser(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what learns in `model`; by its fused kernel, which gives the same in fewer passes."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay, fused=True)


def cosine_rate(share: float, peak: float) -> float:
    """Learning rate after `share` (0-1) of all steps: a linear rise to `peak`, then half a cosine to zero."""
    if share < WARM_UP:
        return peak * share / WARM_UP
    return peak * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def _check_schedule(schedule: str, plateau_factor: float, plateau_patience: int, patience: int) -> None:
    """Raise ValueError for an unknown schedule, or a plateau after which no epoch has the lower rate."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: {schedule!r} is not known; choose one of {', '.join(SCHEDULES)}")
    if not 0 < plateau_factor < 1:
        raise ValueError(f"plateau_factor: {plateau_factor}; the rate falls by a factor between 0 and 1")
    # the rate falls after one epoch more than plateau_patience, and one more has to follow at that rate
    if schedule == "plateau" and patience < plateau_patience + 2:
        raise ValueError(
            f"patience: {patience}; training would stop before an epoch at the lower rate, which a "
            f"plateau_patience of {plateau_patience} brings after {plateau_patience + 1} epochs without "
            f"progress; give a patience of at least {plateau_patience + 2}, or schedule='cosine'"
        )


@without_denormals()
def fit(
    model: nn.Module,
    triplets: Triplets,
    validation: Triplets,
    folder: str | Path,
    *,
    epochs: int = 1000,
    steps: int = 0,
    look_every: int = 100,
    keep: str = "last",
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    dice_weight: float = 1.0,
    ce_weight: float = 0.25,
    gradient_clip: float = 0.5,
    schedule: str = "plateau",
    plateau_factor: float = 0.1,
    plateau_patience: int = 5,
    patience: int = 20,
    min_delta: float = 1e-4,
    mixed_precision: str = "no",
    seed: int = 42,
    progress: bool = True,
) -> pd.DataFrame:
    """Train `model` in place and return the history.

    Parameters
    ----------
    model
        Called as ``model(pixel_values (B, 3, H, W), input_ids (B, S, L), attention_mask)``.
    triplets, validation
        Images to learn from, and to look at after each epoch.
    folder
        Where `history.csv`, the checkpoint and the best weights live. If it holds an interrupted run, that
        run continues.
    epochs, patience, min_delta
        At most `epochs`; stop when the validation Dice has not risen by `min_delta` for `patience` epochs.
    steps, look_every
        Where `steps` is not 0: exactly so many optimiser steps of `batch_size` images each, whatever the
        number of images, with a look at `validation` every `look_every` steps; `epochs` and `patience` are
        not used.
    keep
        Whose weights the model holds in the end: ``last``, or ``best``: those of the best validation Dice.
    schedule
        ``plateau``, or ``cosine``: step by step from `learning_rate` to zero over `epochs` or `steps`, after
        a short rise.
    plateau_factor, plateau_patience
        Of ``plateau``: learning rate times `plateau_factor` when the validation Dice stalls for
        `plateau_patience` epochs.
    mixed_precision
        ``no``, ``fp16`` (GPU) or ``bf16``; one process cannot change it between two calls.

    Returns
    -------
    DataFrame
        One row an epoch, or a look: epoch (number of the row, from 1), step (taken so far), train_loss,
        val_loss, val_dice (mean over masks, at model size), learning_rate, seconds. On a CPU all but
        `seconds` repeat exactly at the same seed and thread count, on a GPU up to rounding.

    Raises
    ------
    FloatingPointError
        The training loss is not finite.
    ValueError
        `schedule` or `keep` is not known, a count is below 1, `steps` is no multiple of `look_every`, the
        learning rate is negative, or the settings of a plateau contradict each other.
    echovlsm.base.provenance.RunError
        `mixed_precision` is ``fp16``, and there is no GPU.
    echovlsm.base.files.InUseError
        Another process trains in `folder`.
    echovlsm.base.files.FullDiskError
        There is no room for the state; the one before is kept.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, set_seed

    _check_schedule(schedule, plateau_factor, plateau_patience, patience)
    if keep not in KEPT:
        raise ValueError(f"keep: {keep!r} is not known; choose one of {', '.join(KEPT)}")
    provenance.check_precision(mixed_precision)
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("look_every", look_every)):
        if count < 1:
            raise ValueError(f"{name}: {count}; give at least 1")
    if steps < 0 or steps % look_every:
        raise ValueError(
            f"steps: {steps} is no multiple of look_every ({look_every}); give one, or 0 for epochs"
        )
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise ValueError(f"learning_rate: {learning_rate}; give a number of at least 0")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    copies = DataLoaderConfiguration(non_blocking=torch.cuda.is_available())
    accelerator = Accelerator(mixed_precision=mixed_precision, dataloader_config=copies)
    optimiser = make_optimiser(model, learning_rate, weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser,
        mode="max",
        factor=plateau_factor,
        patience=plateau_patience,
        threshold=min_delta,
        threshold_mode="abs",
    )
    sampler = Batches(len(triplets), batch_size, seed, look_every if steps else 0)
    training, checking = (
        _loader(part, accelerator.device, **how)
        for part, how in ((triplets, {"batch_sampler": sampler}), (validation, {"batch_size": batch_size}))
    )
    rounds = steps // look_every or epochs
    patience = rounds if steps else patience
    # convolutions, most of a step, are a fifth faster so; optimiser states take their weights' layout
    bare = model.to(memory_format=torch.channels_last)
    model, optimiser, training, checking = accelerator.prepare(model, optimiser, training, checking)
    loss = make_loss(dice_weight, ce_weight)

    # By epoch the same: what frozen encoders make of an image is computed once, before the first.
    kept = (encode(bare, part, accelerator.autocast(), mixed_precision) for part in (triplets, validation))
    learned, checked = (one and one.to(accelerator.device) for one in kept)
    states, best_weights = Checkpoints(folder, accelerator), folder / "best.safetensors"
    history, mark, stale = [], -1.0, 0
    if found := states.saved():
        saved, at = found
        accelerator.load_state(at)
        plateau.load_state_dict(saved["plateau"])
        history, mark, stale = saved["history"], saved["mark"], saved["stale"]
    best = max((row["val_dice"] for row in history), default=-1.0)
    bar = tqdm(
        total=rounds,
        initial=len(history),
        desc="looks" if steps else "epochs",
        disable=not progress or not accelerator.is_main_process,
    )
    for number in range(len(history) + 1, rounds + 1):
        if stale >= patience:
            break
        clock = time.perf_counter()
        sampler.start_round(number)
        rate = optimiser.param_groups[0]["lr"]
        rates = None
        if schedule == "cosine":
            # a function of the step alone, so that a resumed run needs to remember nothing
            total, before = rounds * len(training), (number - 1) * len(training)
            rates = [cosine_rate((before + step + 1) / total, learning_rate) for step in range(len(training))]
            rate = max(rates)
        train_loss = _train_epoch(
            accelerator, model, bare, training, optimiser, loss, gradient_clip, bar, rates, learned
        )
        val_loss, val_dice = _check_epoch(accelerator, model, bare, checking, loss, checked)
        if schedule == "plateau":
            plateau.step(val_dice)
        seconds = time.perf_counter() - clock
        row = (number, number * len(training), train_loss, val_loss, val_dice, rate, seconds)
        history.append(dict(zip(HISTORY_COLUMNS, row, strict=True)))
        if keep == "best" and val_dice > best:
            best = val_dice
            if accelerator.is_main_process:
                tensors = {key: value.contiguous().cpu() for key, value in bare.state_dict().items()}
                with files.appearing(best_weights) as partial:
                    save_file(tensors, partial)
        # stopping asks for more than a rounding above the last mark
        mark, stale = (val_dice, 0) if val_dice > mark + min_delta else (mark, stale + 1)
        kept = {"history": history, "mark": mark, "stale": stale, "plateau": plateau.state_dict()}
        states.save(kept, number)
        bar.update()
        bar.set_postfix(loss=f"{train_loss:.3f}", val_dice=f"{val_dice:.3f}", refresh=False)
    bar.close()
    if keep == "best" and best_weights.is_file():
        bare.load_state_dict(load_file(best_weights))
    states.end()
    accelerator.free_memory()
    bare.to(memory_format=torch.contiguous_format)  # as safetensors wants them
    return pd.DataFrame(history, columns=list(HISTORY_COLUMNS))


def _loader(part: Triplets, device: torch.device, **how: object) -> DataLoader:
    """Batches of `part`, made on `device` where its images fit; else copied there from pinned memory."""
    part = part.to(device)
    pinned = device.type == "cuda" and part.images.device.type == "cpu"
    return DataLoader(part, collate_fn=whole_batch, pin_memory=pinned, **how)


def _loss_and_logits(
    model: nn.Module, bare: nn.Module, batch: dict[str, Tensor], loss: nn.Module, features: Features | None
) -> tuple[Tensor, Tensor]:
    logits = _logits(model, bare, batch, features).float()
    flat = (-1, 1, *logits.shape[-2:])
    return loss(logits.reshape(flat), batch["masks"].reshape(flat)), logits


def _logits(model: nn.Module, bare: nn.Module, batch: dict[str, Tensor], features: Features | None) -> Tensor:
    words = batch["input_ids"], batch["attention_mask"]
    if features is None:
        repeats = (batch["distinct"], batch["where"]) if "distinct" in batch else None
        return model(bare.normalise(batch["image"]), *words, repeats=repeats)
    return model(batch["image"], *words, features=features.of(batch))


def _train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    bare: nn.Module,
    batches: DataLoader,
    optimiser: torch.optim.Optimizer,
    loss: nn.Module,
    gradient_clip: float,
    bar: tqdm,
    rates: list[float] | None,
    features: Features | None,
) -> float:
    """One round of steps, at `rates` where the schedule is a cosine: the mean loss."""
    model.train()
    learning = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    losses, counts = [], []
    for number, batch in enumerate(batches, start=1):
        if rates:
            for group in optimiser.param_groups:
                group["lr"] = rates[number - 1]
        value, _ = _loss_and_logits(model, bare, batch, loss, features)
        _learn(accelerator, value, learning, optimiser, gradient_clip)
        losses.append(value.detach())
        counts.append(len(batch["index"]))
        bar.set_postfix(batch=f"{number}/{len(batches)}", refresh=False)
        bar.update(0)
    total, count = 0.0, sum(counts)
    for value, images in zip(torch.stack(losses).tolist(), counts, strict=True):
        total += value * images
    if not math.isfinite(total):
        raise FloatingPointError(
            "training: the loss is not finite; lower learning_rate or set mixed_precision to no"
        )
    totals = accelerator.reduce(torch.tensor([total, count], device=accelerator.device))
    return float(totals[0] / totals[1])


def _learn(
    accelerator: Accelerator,
    value: Tensor,
    learning: list[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    gradient_clip: float,
) -> None:
    """One step of the optimiser on a loss."""
    optimiser.zero_grad()
    accelerator.backward(value)
    if accelerator.sync_gradients:
        accelerator.clip_grad_norm_(learning, gradient_clip)
    optimiser.step()


@torch.inference_mode()
def _check_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    bare: nn.Module,
    batches: DataLoader,
    loss: nn.Module,
    features: Features | None,
) -> tuple[float, float]:
    """Mean loss and mean Dice of a look."""
    model.eval()
    losses, dices = [], []
    for batch in batches:
        value, logits = _loss_and_logits(model, bare, batch, loss, features)
        dice = _dice(logits > 0, batch["masks"])
        weighted = value.detach().reshape(1).expand(len(batch["index"]))
        dice, weighted = accelerator.gather_for_metrics((dice.mean(dim=1), weighted))
        losses.append(weighted)
        dices.append(dice)
    return float(torch.cat(losses).mean()), float(torch.cat(dices).mean())


def _dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Dice (B, S) of masks bool and 0/1 float (B, S, H, W); 1 where both are empty.

    As MONAI's `compute_dice`, which asks each mask by itself whether it is empty.
    """
    both, one, other = (masks.sum(dim=(2, 3)).float() for masks in (found * wanted, found, wanted))
    return torch.where(one + other > 0, 2 * both / (one + other), 1.0)


@without_denormals()
def predict(
    model: nn.Module,
    triplets: Triplets,
    batch_size: int = 32,
    progress: bool = False,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """What a model answers.

    Parameters
    ----------
    model, triplets
        Model and images with their prompts.
    batch_size
        Images at a time, at most; fewer on a processor where they are large, as maps that leave its caches
        cost time.
    progress
        Whether to show a bar.
    rows
        Some of the images, by place; all by default.

    Returns
    -------
    Tensor
        Logits float32 (N, S, H, W) at model size, one channel a structure, on the CPU, in order.
    """
    from accelerate import Accelerator

    device = Accelerator().device
    if device.type == "cpu":
        batch_size = min(batch_size, max(1, CACHED_PIXELS // model.image_size**2))
    model = model.to(device).eval()
    features = encode(model, triplets) or encode_prompts(model, triplets)
    chosen = triplets if rows is None else Subset(triplets, list(rows))
    parts = []
    with torch.inference_mode():
        loader = DataLoader(chosen, batch_size=batch_size, collate_fn=whole_batch)
        for batch in tqdm(loader, desc="predicting", disable=not progress):
            inputs = {name: values.to(device) for name, values in batch.items() if name != "masks"}
            parts.append(_logits(model, model, inputs, features).float().cpu())
    return torch.cat(parts)  # outside, so that it is a tensor like any other
