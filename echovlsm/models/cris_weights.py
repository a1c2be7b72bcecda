"""Reading weights into CRIS: safely, under the original's names, with one error for all that is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from echovlsm.base import paths
from echovlsm.models.common import ModelError
from echovlsm.models.cris_clip import resize_positions

_POSITIONS = "visual.attnpool.positional_embedding"
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_SHOWN = 8


def strip_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop ``module.``, which data parallel training puts before every name."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return dict(tensors)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors` or a pickle of plain tensors, alone or under ``state_dict``.

    Raises
    ------
    ModelError
        The file is missing, holds something else than tensors, or cannot be read without running its code.
    """
    path = paths.resolve(file)
    if not path.is_file():
        raise ModelError(f"weights: the file {file} does not exist")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return strip_module(load_file(path))
        except SafetensorError as error:
            raise ModelError(
                f"weights: {file} is no whole safetensors file ({error}); copy it again"
            ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of a TorchScript archive, which is refused below
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file, or only part of one, raises many kinds
        if "TorchScript" in str(error):
            raise ModelError(
                f"weights: {file} is a TorchScript archive, which holds code and is not opened here. Take "
                "the same weights as safetensors, or, if you trust it, write them once with "
                "safetensors.torch.save_file(dict(torch.jit.load(file).state_dict()), 'RN50.safetensors')"
            ) from error
        raise ModelError(
            f"weights: {file} cannot be read with weights_only ({_first_line(error)}). Copy it again, or "
            "save its state dict alone as safetensors"
        ) from error
    tensors = saved.get("state_dict", saved) if isinstance(saved, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"weights: {file} holds no state dict: names with tensors are expected")
    return strip_module(tensors)


def fit_clip(tensors: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """CLIP's tensors without its settings, the attention pool's positions resized to `grid` x `grid`."""
    kept = {name: value for name, value in tensors.items() if name not in _NOT_WEIGHTS}
    positions = kept.get(_POSITIONS)
    if positions is not None and positions.ndim == 2 and len(positions) != grid**2 + 1:
        places = resize_positions(positions.float(), (grid, grid))
        kept[_POSITIONS] = torch.cat([positions[:1].float(), places.flatten(1).T])
    return kept


def load_strictly(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, may_lack: str | None = None
) -> None:
    """Put `tensors` into `model`; every name and shape has to fit.

    Parameters
    ----------
    model
        Any module; tensors of 16 bits are widened to its own type.
    tensors
        Its state dict.
    source
        Where they come from, for the error.
    may_lack
        Names that start with this may be absent and keep their values.

    Raises
    ------
    ModelError
        Missing or unknown names, or other shapes: all in one message. The model is then unchanged.
    """
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in tensors and not (may_lack and n.startswith(may_lack))]
    unknown = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    wrong = [f"{len(names)} {kind}: {_list(names)}" for kind, names in found.items() if names]
    if wrong:
        raise ModelError(
            f"weights: {source} does not fit the configuration; tensors {'; '.join(wrong)}. Give the "
            "configuration that the weights were made with"
        )
    model.load_state_dict(dict(tensors), strict=False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
