"""Vision-language segmentation models behind one call.

``load(name, weights, encoders)`` gives a model that is called as
``model(pixel_values (B, 3, H, W), input_ids (B, L), attention_mask) -> logits (B, H, W)``
and carries its own tokenizer and picture normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

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
