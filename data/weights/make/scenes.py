"""Procedurally drawn scenes with referring captions: what the tiny models see instead of the web.

CLIP and CLIPSeg learned from photographs with captions, which no repository can carry, so the tiny models
learn from scenes drawn here: shapes with textures, colours, sizes and places, and captions that
refer to one of them ("the striped ring on the left"). No heart occurs in them, and no word for the heart, its
parts or ultrasound, so a zero-shot score of a tiny model on echocardiograms really is zero-shot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 15),
    "dark grey": (70, 70, 70),
    "grey": (125, 125, 125),
    "light grey": (180, 180, 180),
    "white": (240, 240, 240),
    "red": (205, 40, 40),
    "green": (45, 150, 60),
    "blue": (45, 75, 200),
    "yellow": (230, 205, 50),
    "orange": (235, 135, 35),
    "purple": (130, 60, 160),
    "brown": (120, 80, 45),
    "pink": (235, 150, 185),
}
GREYS: tuple[str, ...] = ("black", "dark grey", "grey", "light grey", "white")
TEXTURES: tuple[str, ...] = ("plain", "striped", "checkered", "dotted", "speckled", "shaded")
SIZES: tuple[str, ...] = ("small", "medium", "large")
PLACES: tuple[str, ...] = ("left", "right", "top", "bottom", "centre", "top left", "bottom right")
HEART_WORDS: frozenset[str] = frozenset(
    (
        *("heart", "hearts", "cardiac", "left-ventricle", "ventricle", "ventricular", "atrium", "atrial"),
        *("myocardium", "cavity", "chamber", "valve", "ultrasound", "echo", "echocardiogram", "diastole"),
        *("systole", "cycle", "blood", "medical", "doctor", "hospital", "patient", "scan"),
    )
)
"""Words kept out of everything that the text encoder sees in pretraining."""


def _superellipse(u: np.ndarray, v: np.ndarray, power: float) -> np.ndarray:
    return np.abs(u) ** power + np.abs(v) ** power - 1


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) * 1.0 + v * 0.5 - 0.5, -v - 1)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    upright = np.maximum(np.abs(u) / 0.3, np.abs(v))
    level = np.maximum(np.abs(u), np.abs(v) / 0.3)
    return np.minimum(upright, level) - 1


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(u**2 + v**2 - 1, 0.8 - ((u - 0.55) ** 2 + v**2))


def _arch(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.sqrt(u**2 + np.minimum(v, 0) ** 2)
    return np.maximum.reduce([radius - 1, 0.55 - radius, v - 0.9])


_SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float]] = {
    "circle": (lambda u, v: _superellipse(u, v, 2), 1.0),
    "oval": (lambda u, v: _superellipse(u, v, 2), 0.55),
    "square": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.85, 1.0),
    "rectangle": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.95, 0.5),
    "bar": (lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 1, 0.2),
    "triangle": (_triangle, 1.0),
    "diamond": (lambda u, v: np.abs(u) + np.abs(v) - 1, 0.75),
    "ring": (lambda u, v: np.abs(np.sqrt(u**2 + v**2) - 0.78) - 0.22, 1.0),
    "cross": (_cross, 1.0),
    "crescent": (_crescent, 1.0),
    "arch": (_arch, 1.0),
}
SHAPES: tuple[str, ...] = tuple(_SHAPES)


@dataclass(frozen=True)
class Thing:
    """One drawn object: the words that describe it and where it is visible."""

    shape: str
    texture: str
    colour: str
    size: str
    place: str
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image uint8 (3, H, W) with captions and the bool (H, W) mask that each of them names."""

    image: np.ndarray
    captions: list[str]
    masks: np.ndarray


def _texture(name: str, u: np.ndarray, v: np.ndarray, rng: Rng) -> np.ndarray:
    """Multiplier field around 1 for a texture, in the object's own coordinates."""
    step = rng.uniform(2.0, 4.0)
    if name == "striped":
        return np.where(np.sin(np.pi * step * (u + v)) > 0, 1.25, 0.6)
    if name == "checkered":
        return np.where(np.sin(np.pi * step * u) * np.sin(np.pi * step * v) > 0, 1.25, 0.6)
    if name == "dotted":
        return np.where(
            np.cos(2 * np.pi * step * u / 1.5) + np.cos(2 * np.pi * step * v / 1.5) > 0.9, 0.4, 1.1
        )
    if name == "speckled":
        return rng.rayleigh(0.8, u.shape)
    if name == "shaded":
        return np.clip(1 + 0.5 * (u * rng.choice([-1, 1]) + v * rng.choice([-1, 1])), 0.3, 1.7)
    return np.ones_like(u)


def _blur(field: np.ndarray, passes: int) -> np.ndarray:
    """Cheap binomial blur along the last two axes."""
    for _ in range(passes):
        for axis in (-2, -1):
            field = 0.25 * np.roll(field, 1, axis) + 0.5 * field + 0.25 * np.roll(field, -1, axis)
    return field


def _place(x: float, y: float) -> str:
    across = "left" if x < 0.38 else "right" if x > 0.62 else ""
    down = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    return " ".join(word for word in (down, across) if word) or "centre"


def draw_scene(seed: int | tuple[int, ...], size: int = 96, captions: int = 3) -> Scene:
    """Draw one scene, the same for the same seed.

    Parameters
    ----------
    seed
        Anything `numpy.random.default_rng` takes.
    size
        Side of the square image in pixels.
    captions
        How many (caption, mask) pairs to return. Some name something that is absent: their mask is empty.
    """
    rng = np.random.default_rng(seed)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    grey = rng.random() < 0.5
    names = GREYS if grey else tuple(COLOURS)
    canvas, background = _background(rng, names, x, y)
    things: list[Thing] = []
    nested = rng.random() < 0.35
    centre = rng.uniform(0.35, 0.65, 2)
    for index in range(int(rng.integers(2, 6))):
        colour = str(rng.choice([name for name in names if name != background]))
        things = _draw_thing(
            canvas, things, colour, rng, x, y, centre if nested and index < 3 else None, index
        )
    things = [thing for thing in things if thing.mask.sum() >= 12 * (size / 96) ** 2]
    canvas = _degrade(canvas, rng, grey)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    texts, masks = _refer(things, captions, rng, size)
    return Scene(image, texts, masks)


def _background(rng: Rng, names: tuple[str, ...], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, str]:
    name = str(rng.choice(names))
    texture = _texture(str(rng.choice(TEXTURES)), (x - 0.5) * 3, (y - 0.5) * 3, rng)
    soft = 1 + 0.35 * (texture - 1)
    return np.array(COLOURS[name], dtype=np.float32)[:, None, None] * soft, name


def _draw_thing(
    canvas: np.ndarray,
    things: list[Thing],
    colour: str,
    rng: Rng,
    x: np.ndarray,
    y: np.ndarray,
    centre: np.ndarray | None,
    index: int,
) -> list[Thing]:
    """Paint one object over the canvas and cut it out of the objects below."""
    shape, texture = str(rng.choice(SHAPES)), str(rng.choice(TEXTURES))
    boundary, aspect = _SHAPES[shape]
    if centre is None:
        cx, cy = rng.uniform(0.12, 0.88, 2)
        radius = rng.uniform(0.07, 0.3)
    else:  # nested: each next object sits inside the last
        (cx, cy), radius = centre + rng.normal(0, 0.02, 2), rng.uniform(0.3, 0.45) * 0.55**index
    angle = rng.uniform(-0.4, 0.4) + (np.pi / 2) * rng.integers(0, 4) * (rng.random() < 0.5)
    u0, v0 = (x - cx) / radius, (y - cy) / radius
    u = u0 * np.cos(angle) + v0 * np.sin(angle)
    v = (v0 * np.cos(angle) - u0 * np.sin(angle)) / (aspect * rng.uniform(0.9, 1.1))
    mask = boundary(u, v) <= 0
    paint = np.array(COLOURS[colour], dtype=np.float32)[:, None, None] * _texture(texture, u, v, rng)
    canvas[:] = np.where(mask, paint, canvas)
    size = "small" if radius < 0.14 else "large" if radius > 0.24 else "medium"
    below = [Thing(t.shape, t.texture, t.colour, t.size, t.place, t.mask & ~mask) for t in things]
    return [*below, Thing(shape, texture, colour, size, _place(float(cx), float(cy)), mask)]


def _degrade(canvas: np.ndarray, rng: Rng, grey: bool) -> np.ndarray:
    """Lighting, blur, additive and multiplicative noise, as photographs have them."""
    canvas = canvas * rng.uniform(0.7, 1.15)
    if rng.random() < 0.5:
        canvas = _blur(canvas, int(rng.integers(1, 4)))
    shape = (1 if grey else 3, *canvas.shape[1:])
    if rng.random() < 0.4:
        grain = _blur(rng.rayleigh(0.8, shape).astype(np.float32), int(rng.integers(0, 2)))
        canvas = canvas * (1 + rng.uniform(0.3, 1.0) * (grain - 1))
    return canvas + rng.normal(0, rng.uniform(1, 14), shape)


_OPENINGS: tuple[str, ...] = (
    "",
    "a ",
    "the ",
    "a photo of a ",
    "a picture of the ",
    "find the ",
    "this is a ",
)
_ENDINGS: tuple[str, ...] = ("", "", ".", " in the picture", " of the scene", " in this scene.", " in view")


def _describe(thing: Thing, rng: Rng) -> tuple[str, dict[str, str]]:
    """A description and the attributes that it commits to."""
    attributes = {"shape": thing.shape}
    for name in ("texture", "colour", "size", "place"):
        if rng.random() < 0.45:
            attributes[name] = getattr(thing, name)
    if len(attributes) > 1 and rng.random() < 0.15:
        attributes.pop("shape")  # "the red thing"
    noun = attributes.get("shape", str(rng.choice(["thing", "object", "region", "area"])))
    before = [attributes[name] for name in ("size", "texture", "colour") if name in attributes]
    style = rng.random()
    if style < 0.6 or not before:
        phrase = " ".join([*before, noun])
    elif style < 0.8:
        phrase = f"{noun} that is {' and '.join(before)}"
    else:
        phrase = f"{noun} of {' '.join(before)} kind"
    if "place" in attributes:
        where = attributes["place"]
        phrase += rng.choice(
            [f" at the {where}", f" on the {where}", f" in the {where} of the picture", f", {where}"]
        )
    return phrase, attributes


def _refer(things: list[Thing], count: int, rng: Rng, size: int) -> tuple[list[str], np.ndarray]:
    """Captions with the union of all objects that each one fits."""
    texts: list[str] = []
    masks = np.zeros((count, size, size), dtype=bool)
    order = rng.permutation(len(things)) if things else []
    for slot in range(count):
        absent = not things or rng.random() < 0.1
        if absent:
            words = (
                str(rng.choice(options)) for options in (SHAPES, TEXTURES, tuple(COLOURS), SIZES, PLACES)
            )
            phrase, attributes = _describe(Thing(*words, mask=masks[slot]), rng)
        else:
            phrase, attributes = _describe(things[order[slot % len(order)]], rng)
        for thing in things:
            if all(getattr(thing, name) == value for name, value in attributes.items()):
                masks[slot] |= thing.mask
        text = f"{rng.choice(_OPENINGS)}{phrase}{rng.choice(_ENDINGS)}"
        texts.append(text[0].upper() + text[1:] if rng.random() < 0.5 else text)
    return texts, masks
