"""One call for all models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from echovlsm.models.adapters import add_lora
from echovlsm.models.common import ENCODERS, REFERENCES, ModelError, class_of

if TYPE_CHECKING:
    from echovlsm.models.base import VisionLanguageModel
    from echovlsm.models.unet import ReferenceUNet


def load(
    name: str, weights: str | Path, encoders: str = "unfrozen", image_size: int = 0, seed: int = 0
) -> VisionLanguageModel | ReferenceUNet:
    """Load a segmentation model.

    Parameters
    ----------
    name
        One of `MODELS`, or of `REFERENCES`: ``unet``, which is text-blind.
    weights
        A folder in Hugging Face layout (`config.json`, `model.safetensors`, tokenizer files) or a hub id
        such as ``CIDAS/clipseg-rd64-refined``. A path that exists, absolute or counted from the project's
        root, is always taken as a folder. Empty for a reference: random weights.
    encoders
        ``frozen`` trains what follows the encoders only; ``unfrozen`` trains the encoders too; ``lora``
        gives them low-rank adapters to train (`echovlsm.models.adapters`).
    image_size
        Side in pixels of the images to work with, which `save_pretrained` keeps; 0 for the weights' own. A
        reference takes it where its weights are random.
    seed
        Of random weights.

    Raises
    ------
    ModelError
        Unknown name or encoder mode, weights that are not there, or a size that does not fit the model.
    """
    kind = class_of(name)
    if name in REFERENCES:
        if not str(weights):
            return kind.fresh(image_size or 96, seed=seed)
        return kind.from_pretrained(weights, encoders)
    if encoders not in ENCODERS:
        raise ModelError(f"encoders: {encoders!r} is not known; choose one of {', '.join(ENCODERS)}")
    adapted = encoders == "lora"
    model = kind.from_pretrained(weights, "frozen" if adapted else encoders)
    if image_size:
        model.resize(image_size)
    return add_lora(model) if adapted else model
