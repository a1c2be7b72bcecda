"""Frozen encoders encode once: what they make of a cohort's images and prompts is kept on disk.

Encoders that do not learn give the same for an image in every epoch, every seed and every run. Entries of
`echovlsm.base.cache` hold it, found by the encoders' weights, images, prompts, size and precision; batches
of a training read what they need from a memory map.
"""

from __future__ import annotations

import copy
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from echovlsm.base import cache, files, provenance
from echovlsm.models import adapters
from echovlsm.training import devices

if TYPE_CHECKING:
    from echovlsm.training.triplets import Triplets

_CHUNK, _PROMPTS = 16, 64


class Features:
    """What frozen encoders made of triplets.

    Parameters
    ----------
    images
        Arrays with one row an image: what the model's ``encode_image`` gives.
    prompts
        Arrays with one row a distinct prompt: what its ``text_features`` gives.
    """

    def __init__(self, images: list[np.ndarray], prompts: list[np.ndarray]) -> None:
        self.images, self.prompts = images, [torch.from_numpy(np.array(array)) for array in prompts]

    def to(self, device: torch.device) -> Features:
        """The same on a GPU; itself on a processor, or where they do not fit."""
        size = sum(values.nbytes for values in (*self.images, *self.prompts))
        if device.type == "cpu" or not devices.fits(size, device):
            return self
        moved = copy.copy(self)
        moved.images = [_on(device, array) for array in self.images]
        moved.prompts = [values.to(device) for values in self.prompts]
        return moved

    def of(self, batch: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Features of the images (B, ...) and of their prompts (B S, ...), on the batch's device."""
        text = batch["text"].reshape(-1)
        images = tuple(_rows(values, batch["index"]) for values in self.images)
        return images, tuple(_rows(values, text) for values in self.prompts)


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """An array on a device, read from its file piece by piece."""
    whole = torch.empty(array.shape, dtype=torch.from_numpy(np.array(array[:0])).dtype, device=device)
    for start in range(0, len(array), _CHUNK):
        rows = slice(start, start + _CHUNK)
        whole[rows] = torch.from_numpy(np.array(array[rows])).to(device)
    return whole


def _rows(values: np.ndarray | Tensor, index: Tensor) -> Tensor:
    """Rows of what lies on the device of `index`, or on the processor."""
    if torch.is_tensor(values) and values.device == index.device:
        return values[index]
    return devices.put(torch.as_tensor(values[index.cpu().numpy()]), index.device)


class Read(Features):
    """Prompts encoded once, images when they are asked for: of a model that could learn, and does not now.

    Parameters
    ----------
    model
        Encodes the images.
    prompts
        As of `Features`.
    """

    def __init__(self, model: nn.Module, prompts: list[np.ndarray]) -> None:
        super().__init__([], prompts)
        self.model = model

    def of(self, batch: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """As of `Features`."""
        images = self.model.encode_image(self.model.normalise(batch["image"]))
        return tuple(images), super().of(batch)[1]


def encode_prompts(model: nn.Module, triplets: Triplets) -> Features | None:
    """Encode each distinct prompt of `triplets` once, for a model that does not learn while it is used.

    None where the model reads no prompts.
    """
    if not hasattr(model, "text_features"):
        return None
    device, parts = model.image_mean.device, []
    with torch.inference_mode():
        for start in range(0, len(triplets.input_ids), _PROMPTS):
            rows = slice(start, start + _PROMPTS)
            words = (values[rows].to(device) for values in (triplets.input_ids, triplets.attention_mask))
            parts.append([value.cpu().numpy() for value in model.text_features(*words)])
    return Read(model, [np.concatenate(values) for values in zip(*parts, strict=True)]).to(device)


def encode(
    model: nn.Module,
    triplets: Triplets,
    autocast: AbstractContextManager | None = None,
    precision: str = "no",
) -> Features | None:
    """Encode all images and prompts of `triplets`, or find them encoded.

    Parameters
    ----------
    model
        A model of `echovlsm.models`, on its device.
    triplets
        Images and prompts.
    autocast, precision
        The context in which training computes, and its name.

    Returns
    -------
    Features or None
        None where the encoders learn, images are augmented, or the cache has no room: then the model
        encodes in each step.
    """
    if getattr(model, "encoders", "") != "frozen" or triplets.augmented:
        return None
    was_training = model.training
    model.eval()
    with torch.inference_mode(), autocast or nullcontext():
        found = _encode(model, triplets, precision)
    model.train(was_training)
    return found


def _encode(model: nn.Module, triplets: Triplets, precision: str) -> Features | None:
    device = model.image_mean.device

    def images_of(rows: slice) -> list[Tensor]:
        pixels = model.normalise(triplets.images[rows].to(device))
        return [value.float() for value in model.encode_image(pixels)]

    def prompts_of(rows: slice) -> list[Tensor]:
        ids, mask = (values[rows].to(device) for values in (triplets.input_ids, triplets.attention_mask))
        values = model.text_features(ids, mask)
        return [value if value.dtype == torch.bool else value.float() for value in values]

    known = (*_weights_key(model), torch.__version__, precision)
    ids, mask = triplets.input_ids.numpy(), triplets.attention_mask.numpy()
    parts = (
        ("pictures", images_of, len(triplets.images), (triplets.images.numpy(),)),
        ("prompts", prompts_of, len(triplets.input_ids), (ids, mask)),
    )
    found = []
    for name, compute, count, content in parts:
        first = [value.cpu().numpy() for value in compute(slice(0, 1))]
        size = count * sum(value.nbytes for value in first)
        if size > cache.bound():
            return None
        key = cache.key_of(name, *known, *content)
        with tempfile.TemporaryDirectory(prefix=cache.PARTIAL, dir=_large(size)) as scratch:
            make = partial(_all, compute, count, first, scratch, size)
            try:
                entry = cache.arrays(f"features-{name}", key, make, size)
            except files.FullDiskError:
                return None  # as where the cache has no room
        found.append([entry[str(number)] for number in range(len(first))])
    return Features(*found)


def _all(compute, count: int, first: list[np.ndarray], scratch: str, size: int) -> dict[str, np.ndarray]:
    """Everything that `compute` makes of `count` rows; beyond a gigabyte in files instead of memory."""
    whole = {}
    for number, value in enumerate(first):
        shape = (count, *value.shape[1:])
        file = f"{scratch}/{number}.npy"
        large = size > 1e9
        whole[str(number)] = _large_array(file, value.dtype, shape) if large else np.empty(shape, value.dtype)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        for number, value in enumerate(compute(rows)):
            whole[str(number)][rows] = value.cpu().numpy()
    return whole


def _large_array(file: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file that has its room: writing to a map beyond the end of a disk kills the process."""
    with files.room(Path(file).parent):
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, os.path.getsize(file))
    return array


def _large(size: int) -> str | None:
    where = cache.folder()
    if size <= 1e9 or where is None:
        return None
    where.mkdir(parents=True, exist_ok=True)
    return str(where)


def _weights_key(model: nn.Module) -> tuple[object, ...]:
    """What the encoders' answers depend on besides their inputs: weights, configuration, code."""
    tensors = {**adapters.encoders_of(model).state_dict(), "mean": model.image_mean, "std": model.image_std}
    content = [part for name, value in sorted(tensors.items()) for part in (name, value.cpu().numpy())]
    return model.name, repr(model.settings), provenance.code_hash("training"), cache.key_of(*content)
