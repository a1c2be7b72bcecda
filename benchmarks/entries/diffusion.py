"""Drawing an image by diffusion: our sampler against the thousand steps of DDPM."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import plain, setups
from benchmarks.measure import Pair, Side
from benchmarks.setups import Settings
from echovlsm.base import paths
from echovlsm.synthesis.labels import PerturbedMaps
from echovlsm.synthesis.process import TRAINING_STEPS, sample
from echovlsm.synthesis.weights import load_denoiser

STEPS = 20


def run(settings: Settings) -> Iterator[Pair]:
    """Images of 96 px by the small network that comes with the project."""
    weights = paths.resolve("data/weights/sdm-tiny")
    model, schedule = load_denoiser(weights)
    other, _ = load_denoiser(weights)
    model.to(memory_format=torch.channels_last).eval()
    other.eval()
    frames = setups.cohort(1, 128)
    found = PerturbedMaps(frames, 1, model.config.image_size, 0)
    maps = np.stack([one.sector_map for one in found])
    seeds = list(range(len(maps)))
    calls = 2 if settings.quick else 20
    steps = 2 if settings.quick else STEPS

    def check(ours: np.ndarray, theirs: np.ndarray) -> str:
        assert ours.shape == theirs.shape == maps.shape
        labels = torch.as_tensor(maps).long()
        x = torch.randn((len(maps), 1, *maps.shape[1:]), generator=torch.Generator().manual_seed(0))
        times = torch.full((len(x),), 500.0)
        with torch.no_grad():
            known = model(x, times, model.modulate(labels))
            return setups.assert_alike(
                known, other(x, times, labels), "what the network says in a step", 1e-4
            )

    yield Pair(
        "diffusion",
        f"an image of {model.config.image_size} px by diffusion",
        "image",
        Side(
            f"DPM-Solver++, {steps} steps",
            lambda: sample(model, schedule, maps, seeds, steps=steps),
            len(maps),
        ),
        Side(
            f"DDPM, {TRAINING_STEPS} steps",
            lambda: plain.ddpm(other, schedule, maps, 0, calls),
            len(maps),
            scale=TRAINING_STEPS / calls,
        ),
        check,
        repeats=settings.repeats(5),
        note=f"Of DDPM's {TRAINING_STEPS} steps {calls} are timed and the rest is reckoned from them: "
        "all call the network once. The images are other samples; notebook 02 compares their quality.",
    )
