"""The semantic diffusion model in one place: train it, store it, sample from it.

The parts: `process` (noise schedule, loss, samplers by name), `train`, `weights`, `sampling`.
"""

from echovlsm.synthesis.process import PREDICTIONS, SCHEDULERS, diffusion_loss, make_scheduler, noise_schedule
from echovlsm.synthesis.sampling import ensure_cohort, sample, sample_cohort
from echovlsm.synthesis.train import train_diffusion
from echovlsm.synthesis.weights import WeightsError, load_checkpoint, load_denoiser, save_denoiser, trained_on

__all__ = [
    "PREDICTIONS",
    "SCHEDULERS",
    "WeightsError",
    "diffusion_loss",
    "ensure_cohort",
    "load_checkpoint",
    "load_denoiser",
    "make_scheduler",
    "noise_schedule",
    "sample",
    "sample_cohort",
    "save_denoiser",
    "train_diffusion",
    "trained_on",
]
