"""Synthesis: annotated images in, a synthetic cohort with its labels out (notebook 02).

`labels` perturbs hearts, `unet` and `process` are denoiser and noise, `train` and `sampling` use both,
`fidelity` says how near the images come, `trial` puts a denoiser to the test of notebook 02. Begin with
`sampling.sample_cohort`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["fidelity", "labels", "plots", "sampling", "trial", "unet", "weights"],
    submod_attrs={"sampling": ["sample_cohort"], "train": ["train_diffusion"]},
)
