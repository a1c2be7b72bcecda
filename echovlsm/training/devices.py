"""A GPU works while the processor goes on: data lie on it where they fit, and copies to it do not wait.

**What still waits for the GPU**, and why (`python -m benchmarks.gpu --only waits` counts it):

- the losses of a round, once, when the round is over: history and progress bar show them;
- loss and Dice of a look, once, for the same reason;
- the model on its way to the GPU, once a training;
- a checkpoint, which is on disk before training goes on; the best weights too;
- `predict`, once a batch: answers are compared on the processor, and those of a cohort need not fit the GPU;
- kept features of a cohort too large for the GPU (`FREE_SHARE`), once a batch: they are read from disk;
- `encode` and `encode_prompts`, once a chunk, before the first step: what they find is kept on disk;
- the denoiser's losses, once a check; its samples, once a batch, when they become images; samplers that add
  noise, once a step: an image's noise is drawn on the processor, so that it is the same on every machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

FREE_SHARE = 0.25
"""Share of a GPU's free memory that data may take for good."""


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may stay on `device`; always where that is no GPU."""
    return device.type != "cuda" or size <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]


def put(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`; to a GPU from pinned memory, so that the processor does not wait for the copy."""
    device = torch.device(device)
    if values.device == device:
        return values
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers too small to matter (below 1.2e-38) are zero here; a processor is many times slower on them.

    A well trained model's attention is full of them, and so are the gradients that pass it.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
