"""One call for all models."""

from __future__ import annotations

from pathlib import Path

from echovlsm.models.adapters import add_lora
from echovlsm.models.clipseg import CLIPSeg
from echovlsm.models.common import ENCODERS, MODELS, ModelError
from echovlsm.models.cris import CRIS
from echovlsm.models.reference import ReferenceUNet
from echovlsm.models.sizes import resize_input


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
        return ReferenceUNet.from_pretrained(weights, encoders)
    if name not in MODELS:
        raise ModelError(f"model: {name!r} is not known; choose one of {', '.join(MODELS)}")
    if encoders not in ENCODERS:
        raise ModelError(f"encoders: {encoders!r} is not known; choose one of {', '.join(ENCODERS)}")
    if encoders == "lora":
        return add_lora(load(name, weights, "frozen", image_size))
    if name == "cris":
        model = CRIS.from_pretrained(weights, encoders=encoders)
    else:
        model = CLIPSeg.from_pretrained(weights, encoders=encoders)
    if image_size == 0:
        return model

    return resize_input(model, image_size)
