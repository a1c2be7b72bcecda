"""The diffusion process (Ho et al. 2020; Nichol & Dhariwal 2021): noise schedule, loss, and drawing images.

Cosine schedule, 1000 steps. The network predicts the noise (as published), or v (Salimans & Ho 2022), which
small networks learn better; with twice the output channels it also learns the variance by the hybrid loss.
Schedules and samplers are those of diffusers, chosen by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echovlsm.synthesis.unet import DROPPED, ConditionError, SemanticUNet

TRAINING_STEPS = 1000
"""Steps of the diffusion process."""

PREDICTIONS: tuple[str, ...] = ("epsilon", "v_prediction")
"""What the network predicts."""

SCHEDULERS: tuple[str, ...] = ("ddpm", "ddim", "dpm-solver++", "sde-dpm-solver++", "heun")
"""Names that `make_scheduler` knows."""

EDM_SIGMA = 80.0
"""Highest noise level of EDM (Karras et al. 2022, table 1), for images in -1 to 1."""

CACHE_BYTES = 2**30
"""Scale and shift of a batch are computed once if they take no more memory than this."""


def noise_schedule(prediction: str = "epsilon", learned_variance: bool = False) -> Any:
    """The cosine schedule of 1000 steps as diffusers' `DDPMScheduler`."""
    from diffusers import DDPMScheduler

    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction: {prediction!r} is not known; choose one of {', '.join(PREDICTIONS)}")
    return DDPMScheduler(
        num_train_timesteps=TRAINING_STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        variance_type="learned_range" if learned_variance else "fixed_small",
    )


def to_model(images: np.ndarray | Tensor, channels: int = 1) -> Tensor:
    """Grey images uint8 (N, H, W) to float32 (N, channels, H, W) in -1 to 1, the channels alike."""
    return (torch.as_tensor(images)[:, None].float() / 127.5 - 1).expand(-1, channels, -1, -1)


def to_images(samples: Tensor) -> np.ndarray:
    """Samples (N, C, H, W) in -1 to 1 to grey images uint8 (N, H, W): mean over channels, clipped."""
    values = (samples.float().mean(dim=1).clamp(-1, 1) + 1) * 127.5
    return values.round().to(torch.uint8).cpu().numpy()


def diffusion_loss(
    model: nn.Module, schedule: Any, clean: Tensor, maps: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """Loss of each image: squared error, plus a term of the bound where the variance is learned.

    The hybrid loss is equation 16 of Nichol & Dhariwal 2021 with the bound's term of a random step, in bits,
    weighted by T / 1000 as in their code; it reaches the variance only.

    Parameters
    ----------
    model, schedule
        `SemanticUNet`, or its wrapper in several processes; `noise_schedule` with its prediction type.
    clean, noise
        Images in -1 to 1 and standard normal noise, (B, C, H, W).
    maps, t
        Label maps, integer (B, H, W), and timesteps, integer (B,).
    """
    noisy = schedule.add_noise(clean, noise, t)
    output = model(noisy, t, maps).float()
    channels = clean.shape[1]
    mean, spread = output[:, :channels], output[:, channels:]
    velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(clean, noise, t) if velocity else noise
    loss = ((mean - target) ** 2).flatten(1).mean(dim=1)
    if spread.shape[1]:
        bound = _bound_term(schedule, clean, noisy, t, mean.detach(), spread)
        loss = loss + bound * TRAINING_STEPS / 1000
    return loss


def _bound_term(
    schedule: Any, clean: Tensor, noisy: Tensor, t: Tensor, mean: Tensor, spread: Tensor
) -> Tensor:
    """One term of the variational bound, in bits, (B,): only the variance learns from it."""
    steps = _of_steps(schedule, noisy.device, noisy.dtype)
    signal, spoilt, keep, move, high, low = steps[:, t, None, None, None]
    if schedule.config.prediction_type == "v_prediction":
        guess = signal * noisy - spoilt * mean
    else:
        guess = (noisy - spoilt * mean) / signal
    model_mean = keep * guess.clamp(-1, 1) + move * noisy
    true_mean = keep * clean + move * noisy
    share = (spread + 1) / 2
    model_log = share * high + (1 - share) * low
    # gradients are summed in the order in which this is computed
    divergence = 0.5 * (
        model_log - low - 1 + (low - model_log).exp() + (true_mean - model_mean) ** 2 * (-model_log).exp()
    )
    first = (t == 0).view(-1, 1, 1, 1)
    likelihood = -_log_likelihood(clean, model_mean, (0.5 * model_log).exp())
    return torch.where(first, likelihood, divergence).flatten(1).mean(dim=1) / math.log(2)


@lru_cache(maxsize=4)
def _of_steps(schedule: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What the bound needs to know of each step, (6, steps): how much of a noisy image is signal, and noise;
    how much of the image and of the noisy one the posterior's mean keeps; its variance's bounds, as logs.
    """
    with torch.inference_mode(False):
        # betas and alphas stay on the processor; others of the schedule wander
        betas = schedule.betas.double()
        cumulative = schedule.alphas.cumprod(dim=0).double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
        variance = betas * (1 - before) / (1 - cumulative)
        # the first step's posterior has no variance: guided diffusion takes the second's
        low = torch.cat([variance[1:2], variance[1:]]).log()
        keep = betas * before.sqrt() / (1 - cumulative)
        move = (1 - before) * (1 - betas).sqrt() / (1 - cumulative)
        known = (cumulative.sqrt(), (1 - cumulative).sqrt(), keep, move, betas.log(), low)
        return torch.stack(known).to(device, dtype)


def _log_likelihood(clean: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log probability of 8-bit grey levels under a Gaussian, as the mass of each level's interval."""
    upper = torch.special.ndtr((clean - mean + 1 / 255) / deviation)
    lower = torch.special.ndtr((clean - mean - 1 / 255) / deviation)
    mass = torch.where(clean < -0.999, upper, torch.where(clean > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def make_scheduler(name: str, schedule: Any) -> Any:
    """A diffusers scheduler that samples what `schedule` (`noise_schedule`) trained; ValueError if unknown.

    ``ddpm`` (ancestral), ``ddim`` (deterministic), ``dpm-solver++`` (second order, multistep; Lu et al.
    2022), ``sde-dpm-solver++`` (the same for the stochastic equation: fresh noise at each step), or ``heun``
    (second order, at the noise levels of EDM; Karras et al. 2022).
    """
    import diffusers

    config = schedule.config
    if name == "ddpm":
        return diffusers.DDPMScheduler.from_config(config, timestep_spacing="trailing")
    common = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
    }
    if name == "ddim":
        return diffusers.DDIMScheduler(**common, set_alpha_to_one=True, timestep_spacing="trailing")
    # The cosine schedule goes on to sigma 20,000; EDM starts at 80, where no signal is left either.
    sigma = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    betas = schedule.betas[sigma <= EDM_SIGMA].numpy()
    common |= {"num_train_timesteps": len(betas), "trained_betas": betas}
    if name.endswith("dpm-solver++"):
        # Steps uniform in the log signal-to-noise ratio, as its authors have them. With steps uniform in time
        # the last one starts at sigma 0.08 and wipes out all texture fainter than that.
        kind = name.replace("dpm-solver", "dpmsolver")
        return diffusers.DPMSolverMultistepScheduler(**common, algorithm_type=kind, use_lu_lambdas=True)
    if name == "heun":
        return diffusers.HeunDiscreteScheduler(**common, use_karras_sigmas=True, clip_sample=True)
    raise ValueError(f"scheduler: {name!r} is not known; choose one of {', '.join(SCHEDULERS)}")


def set_steps(solver: Any, steps: int) -> None:
    """Choose a solver's number of steps, its times those of its noise levels.

    The multistep solvers cut their times to whole steps and leave the noise levels where they were, between
    two. The network would be told up to a whole step too little, and at 200 steps 28 times the same twice.
    """
    solver.set_timesteps(steps)
    if hasattr(solver, "sigmas") and not solver.timesteps.is_floating_point():
        levels = solver.alphas_cumprod.double().numpy()
        logs = np.log((1 - levels) / levels) / 2  # linear between two steps, as the solvers have it
        times = np.interp(solver.sigmas[:-1].double().log().numpy(), logs, np.arange(len(logs)))
        solver.timesteps = torch.from_numpy(times)


@torch.no_grad()
def sample(
    model: SemanticUNet,
    schedule: Any,
    maps: np.ndarray,
    seeds: Sequence[int],
    *,
    scheduler: str = "dpm-solver++",
    steps: int = 20,
    guidance: float = 1.0,
    mixed_precision: str = "no",
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Draw one image for each label map: uint8 (B, S, S).

    Parameters
    ----------
    model, schedule
        What `load_denoiser` gives.
    maps
        Sector maps, uint8 (B, S, S), of the model's size and classes.
    seeds
        One an image: start and all further noise of an image depend on its seed alone.
    scheduler, steps
        A name that `make_scheduler` knows, and its number of steps; ``heun`` evaluates the network nearly
        twice a step.
    guidance
        1 follows the label map as trained; above 1 the difference to a dropped label map is stretched by this
        factor, at twice the cost (Ho & Salimans 2021).
    mixed_precision
        ``no`` or ``bf16``, which is faster where the processor has it, and rounds.
    on_step
        Called after each evaluation of the network.

    Raises
    ------
    ConditionError, ValueError
        A label map of another size or with an unknown class; not one seed a map; an unknown scheduler.
    """
    size = model.config.image_size
    if maps.ndim != 3 or maps.shape[1:] != (size, size):
        raise ConditionError(f"maps: {maps.shape}; the model draws (N, {size}, {size}): resize the maps")
    if len(seeds) != len(maps):
        raise ValueError(f"seeds: {len(seeds)} for {len(maps)} label maps; give one a map")
    if steps < 1:
        raise ValueError(f"steps: {steps}; give at least 1")
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    solver = make_scheduler(scheduler, schedule)
    set_steps(solver, steps)
    labels = torch.as_tensor(maps).long()
    model.check_classes(labels)
    condition = _condition(model, labels.to(device))
    empty = _condition(model, torch.full_like(labels[:1], DROPPED).to(device))
    channels = model.config.in_channels
    shape = (1, channels, size, size)
    x = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    x = x.to(device, memory_format=torch.channels_last) * float(solver.init_noise_sigma)
    whole = scheduler == "ddpm"  # the only one that uses a learned variance
    noisy = scheduler in ("ddpm", "ddim", "sde-dpm-solver++")
    for t in solver.timesteps:
        scaled = solver.scale_model_input(x, t)
        times = torch.full((len(x),), float(t), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            output = model(scaled, times, condition)
            if guidance != 1:
                dropped = model(scaled, times, _expand(empty, len(x)))
                output[:, :channels] = torch.lerp(dropped[:, :channels], output[:, :channels], guidance)
        output = output.float() if whole else output[:, :channels].float()
        extra = {"generator": generators} if noisy else {}
        x = solver.step(output, t, x, **extra).prev_sample
        if on_step:
            on_step()
    return to_images(x)


def _condition(model: SemanticUNet, labels: Tensor) -> Any:
    """Scale and shift for all steps at once, or the label maps where that takes too much memory."""
    return model.modulate(labels) if model.modulation_bytes(len(labels)) <= CACHE_BYTES else labels


def _expand(condition: Any, count: int) -> Any:
    return condition.expand(count, -1, -1) if torch.is_tensor(condition) else condition
