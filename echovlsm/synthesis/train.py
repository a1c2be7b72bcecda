"""Training of the semantic diffusion model: moving average, dropped labels, several processes, resumable.

A share of the label maps is dropped, for classifier-free guidance (Ho & Salimans 2021). What a step learns
is a function of seed and step alone, so that a killed training goes on as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from echovlsm.synthesis.process import TRAINING_STEPS, diffusion_loss, noise_schedule, to_model
from echovlsm.synthesis.unet import DROPPED, ConditionError, SemanticUNet
from echovlsm.training import Checkpoints, devices

HISTORY_COLUMNS: tuple[str, ...] = ("step", "loss", "val_loss", "learning_rate", "seconds")


def train_diffusion(
    model: SemanticUNet,
    images: np.ndarray,
    maps: np.ndarray,
    folder: str | Path,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    steps: int = 4000,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    warm_up: int = 0,
    cosine: bool = False,
    weight_decay: float = 0.0,
    gradient_clip: float = 1.0,
    ema_decay: float = 0.9999,
    label_dropout: float = 0.1,
    prediction: str = "epsilon",
    mixed_precision: str = "no",
    check_every: int = 500,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train `model` in place and leave the moving average of its weights in it.

    With several processes (Accelerate's launcher) each learns its part of every batch.

    Parameters
    ----------
    model
        With twice the output channels its variance is learned too.
    images, maps
        Images uint8 (N, S, S) and their label maps uint8 (N, S, S) of the model's classes.
    folder
        Where `history.csv` and the checkpoint live; an interrupted run of the same settings found there goes
        on from its last check and ends like an uninterrupted one.
    validation
        Images and maps whose loss is reported at each check, always at the same steps and noise.
    steps, batch_size
        Optimiser steps, and images a step over all processes.
    learning_rate, warm_up, cosine
        AdamW; linear warm-up over `warm_up` steps, then constant or falling to zero as a cosine.
    ema_decay
        Decay of the moving average (diffusers' `EMAModel`).
    label_dropout
        Share of the images that are learned without their label map.
    mixed_precision
        ``no``, ``fp16`` (GPU) or ``bf16``.

    Returns
    -------
    DataFrame
        One row a check: step, loss (mean since the last check), val_loss (of the averaged weights; NaN
        without `validation`), learning_rate, seconds since the last check.

    Raises
    ------
    ConditionError
        A label map has a class that the model does not know, or another size or count than the images.
    FloatingPointError
        The loss is not finite.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    for name, pair in (("images, maps", (images, maps)), ("validation", validation)):
        if pair is not None:
            _check_pairs(model, *pair, name)
    for name, count in (("steps", steps), ("batch_size", batch_size), ("check_every", check_every)):
        if count < 1:
            raise ValueError(f"{name}: {count}; give at least 1")
    settings = {
        **{"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "warm_up": warm_up},
        **{"cosine": cosine, "weight_decay": weight_decay, "gradient_clip": gradient_clip},
        **{"ema_decay": ema_decay, "label_dropout": label_dropout, "prediction": prediction},
        **{"mixed_precision": mixed_precision, "check_every": check_every, "seed": seed},
        "model": str(model.config),
        "data": hashlib.sha256(images.tobytes() + maps.tobytes()).hexdigest()[:16],
    }
    schedule = noise_schedule(prediction, model.config.learned_variance)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(seed)
    AcceleratorState._reset_state()  # else the precision is that of whatever ran before in this process
    accelerator = Accelerator(mixed_precision=mixed_precision)
    bare = model.to(accelerator.device, memory_format=torch.channels_last)
    on_gpu = accelerator.device.type == "cuda"  # where many small operations cost more than what they do
    optimiser = torch.optim.AdamW(
        bare.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=on_gpu or None
    )
    form = "cosine" if cosine else "constant_with_warmup"
    rates = get_scheduler(form, optimiser, num_warmup_steps=warm_up, num_training_steps=steps)
    ema = EMAModel(bare.parameters(), decay=ema_decay, foreach=on_gpu)
    wrapped, optimiser = accelerator.prepare(bare, optimiser)
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size: {batch_size} is no multiple of {accelerator.num_processes} processes")
    settings["processes"] = accelerator.num_processes
    states = Checkpoints(folder, accelerator)
    history = _resume(states, folder, settings, accelerator, ema, rates)
    done = history[-1]["step"] if history else 0

    bar = tqdm(
        total=steps, initial=done, desc="steps", disable=not progress or not accelerator.is_main_process
    )
    clock, seen = time.perf_counter(), []
    for step in range(done, steps):
        wrapped.train()
        clean, label_maps, t, noise = _draw(
            images, maps, model.config.in_channels, batch_size, label_dropout, seed, step, accelerator
        )
        with accelerator.autocast():
            losses = diffusion_loss(wrapped, schedule, clean, label_maps, t, noise)
        optimiser.zero_grad()
        accelerator.backward(losses.mean())
        accelerator.clip_grad_norm_(bare.parameters(), gradient_clip)
        optimiser.step()
        rates.step()
        ema.step(bare.parameters())
        seen.append(losses.detach().mean())
        bar.update()
        if (step + 1) % check_every and step + 1 < steps:
            continue
        own = torch.tensor(_sum(seen) / len(seen), device=accelerator.device)
        mean = float(accelerator.reduce(own, "mean"))
        if not math.isfinite(mean):
            raise FloatingPointError(
                "train_diffusion: the loss is not finite; lower learning_rate or use bf16"
            )
        val_loss = _validate(bare, ema, schedule, validation, batch_size, accelerator)
        row = step + 1, mean, val_loss, rates.get_last_lr()[0], time.perf_counter() - clock
        history.append(dict(zip(HISTORY_COLUMNS, row, strict=True)))
        kept = {"history": history, "rates": rates.state_dict(), "settings": settings}
        states.save(kept, step + 1, lambda to: torch.save(ema.state_dict(), to / "ema.pt"))
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        clock, seen = time.perf_counter(), []
    bar.close()
    states.end()
    ema.copy_to(bare.parameters())
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.free_memory()
    AcceleratorState._reset_state()
    bare.eval()
    return pd.DataFrame(history, columns=list(HISTORY_COLUMNS))


def _check_pairs(model: SemanticUNet, images: np.ndarray, maps: np.ndarray, name: str) -> None:
    size, known = model.config.image_size, model.config.num_classes
    if not len(images):
        raise ConditionError(f"{name}: no image; check the cohort and its splits")
    if images.shape != maps.shape or images.shape[1:] != (size, size):
        raise ConditionError(
            f"{name}: maps {maps.shape} for images {images.shape}; both must be (N, {size}, {size}) here"
        )
    wrong = np.flatnonzero((maps >= known).reshape(len(maps), -1).any(axis=1))
    if len(wrong):
        raise ConditionError(
            f"{name}: image {wrong[0]} has class {maps[wrong[0]].max()}; the model knows 0 to {known - 1}"
        )


def _draw(
    images: np.ndarray,
    maps: np.ndarray,
    channels: int,
    batch_size: int,
    dropout: float,
    seed: int,
    step: int,
    accelerator: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What this process learns in a step: a function of seed, step and process alone."""
    count, process = len(images), accelerator.process_index
    places = np.arange(step * batch_size, (step + 1) * batch_size)[process :: accelerator.num_processes]
    epochs = {
        epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in set(places // count)
    }
    picked = [epochs[place // count][place % count] for place in places]
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + process)
    clean = to_model(images[picked], channels)
    labels = torch.as_tensor(maps[picked]).long()
    dropped = torch.rand(len(picked), generator=generator) < dropout
    labels[dropped] = DROPPED
    t = torch.randint(0, TRAINING_STEPS, (len(picked),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    return tuple(devices.put(part, accelerator.device) for part in (clean, labels, t, noise))


@torch.no_grad()
def _validate(
    model: nn.Module, ema: Any, schedule: Any, pairs: Any, batch_size: int, accelerator: Any
) -> float:
    """Mean squared-error loss of the averaged weights, at evenly spread steps and fixed noise."""
    if pairs is None or not accelerator.is_main_process:
        return math.nan
    images, maps = pairs
    generator = torch.Generator().manual_seed(0)
    model.eval()
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    sums = []
    for start in range(0, len(images), batch_size):
        clean = to_model(images[start : start + batch_size], model.config.in_channels)
        labels = torch.as_tensor(maps[start : start + batch_size]).long()
        t = (torch.arange(start, start + len(clean)) * TRAINING_STEPS) // len(images)
        noise = torch.randn(clean.shape, generator=generator)
        batch = (devices.put(part, accelerator.device) for part in (clean, labels, t, noise))
        with accelerator.autocast():
            sums.append(diffusion_loss(model, schedule, *batch).sum())
    ema.restore(model.parameters())
    return _sum(sums) / len(images)


def _sum(values: list[Tensor]) -> float:
    """One after the other: from Python 3.12 on `sum` rounds otherwise."""
    total = 0.0
    for value in torch.stack(values).tolist():
        total += value
    return total


def _resume(
    states: Checkpoints, folder: Path, settings: dict[str, Any], accelerator: Any, ema: Any, rates: Any
) -> list[dict[str, float]]:
    """Restore weights, optimiser, average and learning rate from `folder`; return the history so far."""
    found = states.saved()
    if found is None:
        return []
    saved, checkpoint = found
    before = saved["settings"]
    if before != settings:
        name = next(name for name in settings if before.get(name) != settings[name])
        raise ValueError(
            f"{folder}: holds a training with another {name} ({before.get(name)!r}, now {settings[name]!r}); "
            "name another folder, or delete this one"
        )
    accelerator.load_state(checkpoint)
    ema.load_state_dict(torch.load(checkpoint / "ema.pt", map_location="cpu", weights_only=True))
    ema.to(accelerator.device)
    rates.load_state_dict(saved["rates"])
    return saved["history"]
