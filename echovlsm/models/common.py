"""Which models there are, told without loading one.

A model is one file of this room, and the file's name is the model's. It declares its class in one line:
``Model = MyModel`` where the model reads words (`echovlsm.models.base.VisionLanguageModel`),
``Reference = MyNet`` where it does not (`echovlsm.models.unet`). Nothing else lists it.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any


def _declared(word: str) -> tuple[str, ...]:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(file.stem for file in sources if re.search(rf"^{word} = ", file.read_text("utf-8"), re.M))


MODELS: tuple[str, ...] = _declared("Model")
"""Names of the vision-language models."""

REFERENCES: tuple[str, ...] = _declared("Reference")
"""Names of the references, which read no words."""

ENCODERS: tuple[str, ...] = ("frozen", "unfrozen", "lora")
"""How the two encoders take part in training."""


class ModelError(ValueError):
    """A model name, weights folder or input that cannot be used; the message names it and the remedy."""


def class_of(name: str) -> Any:
    """The class of a model.

    Raises
    ------
    ModelError
        No file declares that name.
    """
    if name not in (*MODELS, *REFERENCES):
        raise ModelError(f"model: {name!r} is not known; choose one of {', '.join(MODELS)}")
    module = importlib.import_module(f"{__package__}.{name}")
    return module.Model if name in MODELS else module.Reference
