"""Folders and files of weights: found, read safely, and written, with one error for all that is wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from echovlsm.base import files, paths
from echovlsm.models.common import ModelError

_SHOWN = 8


def local_folder(weights: str | Path) -> Path | None:
    """The folder that `weights` names; None where it can only be a hub id.

    Raises
    ------
    ModelError
        It is a path, and no folder is there.
    """
    folder, weights = paths.resolve(weights), str(weights)
    if folder.is_dir():
        return folder
    if weights.startswith((".", "/", "~", "data/", "runs/")) or weights.count("/") > 1:
        raise ModelError(f"weights: the folder {weights} does not exist; give one that does, or a hub id")
    return None


def write_network(folder: str | Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, then `config.json`, into `folder`, each whole or not at all."""
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with files.appearing(folder / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    with files.appearing(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
