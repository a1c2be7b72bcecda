"""The shape of a structure as a visual question answering model names it (paper, section 2.2).

The model sees the image with a green box round the structure; `echovlsm.prompts.shapes` has the other way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echovlsm.cohort import masks

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = Literal["circle", "triangle", "oval", "square", "rectangle"]
SHAPES: tuple[Shape, ...] = ("circle", "triangle", "oval", "square", "rectangle")
QUESTION = "What is the shape of the {structure} in the green box?"

Ask = Callable[["Image", str], str]

_ANSWERS: dict[str, Shape] = {name: name for name in SHAPES} | {
    "circular": "circle",
    "round": "circle",
    "triangular": "triangle",
    "ellipse": "oval",
    "elliptical": "oval",
    "rectangular": "rectangle",
}


class ShapeError(ValueError):
    """A shape that cannot be named: an empty mask, an answer that names none, a model that cannot answer."""


def draw_box(image: np.ndarray, mask: np.ndarray) -> Image:
    """The image, uint8 (H, W), in RGB with a green box just outside the mask (H, W).

    Raises
    ------
    ShapeError
        An empty mask, or one of another size than the image.
    """
    from PIL import Image as PILImage
    from PIL import ImageDraw

    mask = checked_mask(mask)
    if image.shape != mask.shape:
        raise ShapeError(f"image {image.shape} and mask {mask.shape} differ in size")
    shown = PILImage.fromarray(np.asarray(image, dtype=np.uint8)).convert("RGB")
    width = max(1, round(min(image.shape) / 200))
    rows, columns = masks.box(mask)
    # Pillow draws the line inwards from the corners given
    left, top = max(0, columns.start - width), max(0, rows.start - width)
    right = min(image.shape[1], columns.stop + width) - 1
    bottom = min(image.shape[0], rows.stop + width) - 1
    ImageDraw.Draw(shown).rectangle((left, top, right, bottom), outline=(0, 255, 0), width=width)
    return shown


def ask_shape(ask: Ask, image: np.ndarray, mask: np.ndarray, structure: str) -> Shape:
    """Ask a model for the shape of one structure, with the paper's question, and read its answer."""
    return read_answer(ask(draw_box(image, mask), QUESTION.format(structure=structure)))


def read_answer(answer: str) -> Shape:
    """Which of the five names an answer says; ShapeError where it says none, or more than one."""
    named = {_ANSWERS[word] for word in re.findall(r"[a-z]+", answer.lower()) if word in _ANSWERS}
    if len(named) != 1:
        what = "names no shape" if not named else f"names {len(named)} shapes"
        raise ShapeError(f"the answer {answer!r} {what} of {', '.join(SHAPES)}")
    return named.pop()


def load_vqa(model: str | os.PathLike[str]) -> Ask:
    """Load a visual question answering model: a function of (image, question) that returns the answer.

    `model` is a hub id or a folder, with the processor's files. Models made for the task (ViLT, BLIP) run
    through `AutoModelForVisualQuestionAnswering`, vision-language models that generate text through the
    pipeline `image-text-to-text`.

    Raises
    ------
    ShapeError
        Transformers cannot load it or its processor; the reason is in the message. Some processors need
        torchvision, which this project does not install.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        architecture = (config.architectures or [""])[0]
        return _load_vqa_model(model) if "QuestionAnswering" in architecture else _load_vqa_pipeline(model)
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ShapeError(
            f"{os.fspath(model)} cannot be loaded for visual question answering by Transformers: {told}; "
            "give another model, or take backend='geometry'"
        ) from error


def _load_vqa_model(model: str | os.PathLike[str]) -> Ask:
    import torch
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

    processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    network = AutoModelForVisualQuestionAnswering.from_pretrained(model, trust_remote_code=False).eval()

    def ask(image: Image, question: str) -> str:
        inputs = processor(images=image, text=question, return_tensors="pt")
        with torch.inference_mode():
            if network.can_generate() or hasattr(network, "text_decoder"):
                return processor.batch_decode(
                    network.generate(**inputs, max_new_tokens=20), skip_special_tokens=True
                )[0]
            # a classifier over the answers of its training set
            return network.config.id2label[network(**inputs).logits[0].argmax().item()]

    return ask


def _load_vqa_pipeline(model: str | os.PathLike[str]) -> Ask:
    from transformers import pipeline

    generate = pipeline("image-text-to-text", model=os.fspath(model), trust_remote_code=False)
    chats = getattr(generate.processor, "chat_template", None) is not None

    def ask(image: Image, question: str) -> str:
        question = f"{question} Answer with one word: {', '.join(SHAPES)}." if chats else question
        if chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            answer: Any = generate(
                text=[{"role": "user", "content": content}], max_new_tokens=20, return_full_text=False
            )
        else:
            answer = generate(images=image, text=question, max_new_tokens=20)
        return str(answer[0]["generated_text"]).removeprefix(question)

    return ask


def checked_mask(mask: np.ndarray) -> np.ndarray:
    """A mask as bool (H, W); ShapeError where it is empty, not two-dimensional, or has other values."""
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ShapeError(f"a mask has the shape (height, width), not {array.shape}")
    if array.dtype != bool:
        if not ((array == 0) | (array == 1)).all():
            raise ShapeError("a mask holds only 0 and 1: choose one structure (labels == value)")
        array = array == 1
    if not array.any():
        raise ShapeError("the mask is empty: there is no shape to name")
    return array
