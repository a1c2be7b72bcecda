"""Another input size for a model: its learned positions interpolated once, so that it may learn at that size.

Both models interpolate their position embeddings in every forward pass, so they take other sizes as they are;
here the interpolated ones become the parameters. The outputs at the new size stay what they were (but for
rounding), and the size is saved with the weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from echovlsm.models.common import ModelError, name_of
from echovlsm.models.cris_clip import resize_positions


def resize_input(model: nn.Module, image_size: int) -> nn.Module:
    """Make `model` one for square pictures of side `image_size`, in place; its own size changes nothing.

    Parameters
    ----------
    model
        CLIPSeg or CRIS, without adapters.
    image_size
        Side in pixels: a multiple of CLIPSeg's patch size, or of 32 for CRIS.

    Returns
    -------
    Module
        `model`.

    Raises
    ------
    ModelError
        The side does not fit the model, or the model is of another kind.
    """
    name = name_of(model, "image_size")
    step = 32 if name == "cris" else int(model.segmenter.config.vision_config.patch_size)
    if image_size < step or image_size % step:
        what = "sides" if name == "cris" else f"patches of {step} pixels, so sides"
        raise ModelError(f"image_size: {image_size}; this {name} needs {what} that are multiples of {step}")
    if image_size == model.image_size:
        return model
    if name == "cris":
        _resize_cris(model, image_size)
    else:
        _resize_clipseg(model, image_size)
    model.image_size = image_size
    return model


def _resize_clipseg(model: nn.Module, image_size: int) -> None:
    vision = model.segmenter.clip.vision_model.embeddings
    grid = image_size // vision.patch_size
    old = vision.position_embedding.weight
    positions = _interpolate(old.detach(), grid)
    vision.position_embedding = nn.Embedding.from_pretrained(positions, freeze=not old.requires_grad)
    vision.position_ids = torch.arange(len(positions), device=old.device).expand(1, -1)
    vision.image_size, vision.num_patches, vision.num_positions = image_size, grid**2, grid**2 + 1
    model.segmenter.config.vision_config.image_size = image_size


def _resize_cris(model: nn.Module, image_size: int) -> None:
    pool = model.backbone.visual.attnpool
    old = pool.positional_embedding
    positions = _interpolate(old.detach(), image_size // 32)
    pool.positional_embedding = nn.Parameter(positions, requires_grad=old.requires_grad)
    model.config = replace(model.config, image_resolution=image_size, image_size=image_size)


def _interpolate(embedding: torch.Tensor, grid: int) -> torch.Tensor:
    """Position embedding (1 + g * g, C) for `grid` x `grid` places; the class token's row stays."""
    places = resize_positions(embedding, (grid, grid))
    return torch.cat([embedding[:1], places.flatten(1).T]).contiguous()
