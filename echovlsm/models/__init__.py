"""Vision-language segmentation models behind one call.

``load(name, weights, encoders)`` gives a model that is called as
``model(pixel_values (B, 3, H, W), input_ids (B, L), attention_mask) -> logits (B, H, W)``
and carries its own tokenizer and picture normalisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from echovlsm.models.clipseg import CLIPSeg
    from echovlsm.models.cris import CRIS
    from echovlsm.models.reference import ReferenceUNet

MODELS: tuple[str, ...] = ("clipseg", "cris")
"""Names that `load` knows."""

ENCODERS: tuple[str, ...] = ("frozen", "unfrozen", "lora")
"""How the two CLIP encoders take part in training."""


class ModelError(ValueError):
    """A model name, weights folder or input that cannot be used; the message names it and the remedy."""


def name_of(model: nn.Module, what: str) -> str:
    """``clipseg`` or ``cris``.

    Raises
    ------
    ModelError
        The model is neither; `what` names the parameter that asks for one with encoders.
    """
    name = getattr(model, "name", type(model).__name__)
    if name not in MODELS:
        raise ModelError(f"{what}: this needs the encoders of {' or '.join(MODELS)}; {name} has none")
    return name


def load(
    name: str, weights: str | Path, encoders: str = "unfrozen", image_size: int = 0
) -> CLIPSeg | CRIS | ReferenceUNet:
    """Load a vision-language segmentation model.

    Parameters
    ----------
    name
        One of `MODELS`; or ``unet``, the text-blind reference (`echovlsm.models.reference`), from its folder.
    weights
        A folder in Hugging Face layout (`config.json`, `model.safetensors`, tokenizer files) or a hub id
        such as ``CIDAS/clipseg-rd64-refined``. A path that exists, absolute or counted from the project's
        root, is always taken as a folder.
    encoders
        ``frozen`` trains what follows the encoders only; ``unfrozen`` trains the encoders too; ``lora``
        gives them low-rank adapters to train (`echovlsm.models.adapters`).
    image_size
        Side in pixels of the pictures to work with, which `save_pretrained` keeps; 0 for the weights' own
        (`echovlsm.models.sizes`).

    Raises
    ------
    ModelError
        Unknown name or encoder mode, weights that are not there, or a size that does not fit the model.
    """
    if name == "unet":
        from echovlsm.models.reference import ReferenceUNet

        return ReferenceUNet.from_pretrained(weights, encoders)
    if name not in MODELS:
        raise ModelError(f"model: {name!r} is not known; choose one of {', '.join(MODELS)}")
    if encoders not in ENCODERS:
        raise ModelError(f"encoders: {encoders!r} is not known; choose one of {', '.join(ENCODERS)}")
    if encoders == "lora":
        from echovlsm.models.adapters import add_lora

        return add_lora(load(name, weights, "frozen", image_size))
    if name == "cris":
        from echovlsm.models.cris import CRIS

        model = CRIS.from_pretrained(weights, encoders=encoders)
    else:
        from echovlsm.models.clipseg import CLIPSeg

        model = CLIPSeg.from_pretrained(weights, encoders=encoders)
    if image_size == 0:
        return model
    from echovlsm.models.sizes import resize_input

    return resize_input(model, image_size)
