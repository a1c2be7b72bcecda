"""Procedurally drawn scenes with referring captions: what the tiny models see instead of the web.

CLIP and CLIPSeg learned from natural pictures with captions. Neither can be carried in a repository, so the
tiny models learn from scenes drawn here: shapes with textures, colours, sizes and places, and captions that
refer to some of them ("the striped ring on the left", "the wall of the largest oval"). Most scenes are grey,
grainy and of low contrast, and many shapes are hollow: a thin wall around an inside that may look just like
the ground. Some scenes belong to families, each with its own things under names of made-up words, as the
images of a study share their structures. No heart occurs in any, and no word for the heart, its parts or
ultrasound, so a zero-shot score of a tiny model on echocardiograms really is zero-shot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
PARTS: dict[str, tuple[str, ...]] = {
    "wall": ("wall", "rim", "border", "shell"),
    "inside": ("inside", "interior", "hollow", "space inside"),
}
"""Words for the two parts of a hollow object."""
RANKS: tuple[str, ...] = ("leftmost", "rightmost", "topmost", "lowest", "smallest", "largest")
HEART_WORDS: frozenset[str] = frozenset(
    [
        "heart",
        "hearts",
        "cardiac",
        "left-ventricle",
        "ventricle",
        "ventricular",
        "atrium",
        "atrial",
        "myocardium",
        "cavity",
        "chamber",
        "valve",
        "ultrasound",
        "echo",
        "echocardiogram",
        "diastole",
        "systole",
        "cycle",
        "blood",
        "medical",
        "doctor",
        "hospital",
        "patient",
        "scan",
    ]
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
HOLLOW: tuple[str, ...] = ("circle", "oval", "square", "rectangle", "triangle", "diamond")
"""Shapes that may be drawn as a wall around an inside."""


@dataclass(frozen=True)
class Thing:
    """One drawn object, or one part of a hollow one: the words that describe it and where it is visible."""

    shape: str
    texture: str
    colour: str
    size: str
    place: str
    part: str
    mask: np.ndarray
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ranks: tuple[str, ...] = ()
    name: str = ""

    def fits(self, attributes: dict[str, str]) -> bool:
        """Whether all of a caption's words are true of it."""
        return all(
            value in self.ranks if name == "rank" else getattr(self, name) == value
            for name, value in attributes.items()
        )


@dataclass(frozen=True)
class Scene:
    """An image uint8 (3, H, W) with captions and the bool (H, W) mask that each of them names."""

    image: np.ndarray
    captions: list[str]
    masks: np.ndarray
    hints: np.ndarray
    """What is there, in no words: uint8 (4, H, W), the image before noise, what is solid, wall, inside."""


def _pick(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]  # rng.choice would make an array of them first


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


def _blur(field: np.ndarray, down: int, across: int) -> np.ndarray:
    """Cheap binomial blur along the last two axes, so many passes each."""
    for axis, passes in ((-2, down), (-1, across)):
        for _ in range(passes):
            field = 0.25 * np.roll(field, 1, axis) + 0.5 * field + 0.25 * np.roll(field, -1, axis)
    return field


def _wave(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """A smooth field between -1 and 1."""
    across, down = rng.normal(0, 0.8, 2)
    return np.sin(2 * np.pi * (across * x + down * y + rng.random()))


def _place(x: float, y: float) -> str:
    across = "left" if x < 0.38 else "right" if x > 0.62 else ""
    down = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    return " ".join(word for word in (down, across) if word) or "centre"


def draw_scene(
    seed: int | tuple[int, ...], size: int = 96, captions: int = 4, family: int | None = None
) -> Scene:
    """Draw one scene, the same for the same seed.

    Parameters
    ----------
    seed
        Anything `numpy.random.default_rng` takes.
    size
        Side of the square image in pixels.
    captions
        How many (caption, mask) pairs to return. Some name something that is absent: their mask is empty.
    family
        Number of a family: its scenes hold the same things in much the same places, and each thing has a name
        of made-up words instead of a description. Without, things and places are drawn anew.
    """
    rng = np.random.default_rng(seed)
    plan = rng if family is None else np.random.default_rng((family, 0))
    looseness = 0.0 if family is None else 0.1
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    if family is not None:
        x, y = _move(x, y, rng)
    bend = rng.uniform(0, 0.05) if rng.random() < 0.7 else 0.0  # outlines are seldom ideal curves
    x, y = x + bend * _wave(x, y, rng), y + bend * _wave(x, y, rng)
    grey = plan.random() < (0.7 if family is None else 0.9)
    names = GREYS if grey else tuple(COLOURS)
    canvas, background = _background(plan, rng, names, x, y, 1 if grey else 3)
    things: list[Thing] = []
    nested = plan.random() < 0.35
    centre = plan.uniform(0.35, 0.65, 2)
    for index in range(int(plan.integers(2, 6 if family is None else 5))):
        colours = [name for name in names if name != background]
        inner = centre if nested and index < 3 else None
        things = _draw_thing(canvas, things, colours, background, plan, rng, looseness, x, y, inner, index)
    if family is not None:
        context, *own = _names(family, len(things))
        things = [replace(thing, name=name) for thing, name in zip(things, own, strict=True)]
    hints = np.zeros((4, size, size), dtype=np.uint8)
    hints[0] = np.clip(canvas.mean(axis=0), 0, 255)
    for thing in things:
        hints[1 + ("", *PARTS).index(thing.part)][thing.mask] = 255
    canvas, seen = _degrade(canvas, rng, grey, x, y)
    things = [replace(thing, mask=thing.mask & seen) for thing in things]
    things = _rank([thing for thing in things if thing.mask.sum() >= 12 * (size / 96) ** 2])
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    if family is None:
        texts, masks = _refer(things, captions, rng, size)
    else:
        texts, masks = _call(things, context, captions, rng, size)
    return Scene(np.repeat(image, 3 // len(image), axis=0), texts, masks, hints)


def _move(x: np.ndarray, y: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates turned, scaled and shifted a little about the centre."""
    angle, scale = rng.normal(0, 0.2), np.exp(rng.normal(0, 0.15))
    across, down = rng.normal(0, 0.06, 2) + 0.5
    u, v = (x - across) / scale, (y - down) / scale
    return u * np.cos(angle) + v * np.sin(angle) + 0.5, v * np.cos(angle) - u * np.sin(angle) + 0.5


def _names(family: int, count: int) -> list[str]:
    """A name for the family's whole and for each of its things, of made-up words that they share."""
    rng = np.random.default_rng((family, 1))

    def word() -> str:
        letters = ("bdfgklmnprstvz", "aeiou", ("", "l", "n", "r"))
        return "".join(_pick(rng, options) for _ in range(rng.integers(2, 4)) for options in letters)

    context, *pool = (word() for _ in range(5))
    names = [context]
    while len(names) <= count:
        name = " ".join(rng.permutation(pool)[: rng.integers(1, 4)])
        if name not in names:
            names.append(name)
    return names


def _background(
    plan: Rng, rng: Rng, names: tuple[str, ...], x: np.ndarray, y: np.ndarray, channels: int
) -> tuple[np.ndarray, str]:
    name = _pick(plan, names)
    texture = _texture(_pick(plan, TEXTURES), (x - 0.5) * 3, (y - 0.5) * 3, rng)
    soft = 1 + 0.35 * (texture - 1)
    return _colour(name, channels) * soft, name


def _colour(name: str, channels: int) -> np.ndarray:
    return np.array(COLOURS[name][:channels], dtype=np.float32)[:, None, None]


def _draw_thing(
    canvas: np.ndarray,
    things: list[Thing],
    colours: list[str],
    background: str,
    plan: Rng,
    rng: Rng,
    looseness: float,
    x: np.ndarray,
    y: np.ndarray,
    centre: np.ndarray | None,
    index: int,
) -> list[Thing]:
    """Paint one object over the canvas and cut it out of the objects below."""
    hollow = plan.random() < 0.5
    shape = _pick(plan, HOLLOW if hollow else SHAPES)
    boundary, aspect = _SHAPES[shape]
    if centre is None:
        cx, cy = plan.uniform(0.12, 0.88, 2)
        radius = plan.uniform(0.07, 0.3) + 0.08 * hollow
    else:  # nested: each next object sits inside the last
        (cx, cy), radius = centre + plan.normal(0, 0.02, 2), plan.uniform(0.3, 0.45) * 0.55**index
    angle = plan.uniform(-0.4, 0.4) + (np.pi / 2) * plan.integers(0, 4) * (plan.random() < 0.5)
    if looseness:
        radius *= np.exp(rng.normal(0, looseness))
        cx, cy = np.add((cx, cy), rng.normal(0, looseness * radius, 2))
        angle, aspect = angle + rng.normal(0, looseness), aspect * np.exp(rng.normal(0, looseness))
    u0, v0 = (x - cx) / radius, (y - cy) / radius
    u = u0 * np.cos(angle) + v0 * np.sin(angle)
    v = v0 * np.cos(angle) - u0 * np.sin(angle)
    aspect *= plan.uniform(0.85, 1.15)
    whole = boundary(u, v / aspect) <= 0
    size = "small" if radius < 0.14 else "large" if radius > 0.24 else "medium"
    parts = {"": whole}
    if hollow:
        wall = plan.uniform(0.15, 0.5) * aspect  # as thick on all sides
        wall *= np.exp(rng.normal(0, looseness))
        inside = boundary(u / (1 - wall), v / (aspect - wall)) <= 0
        if plan.random() < 0.3:  # open on one side
            closed = v < plan.uniform(0, 0.6) * aspect
            whole, inside = whole & closed, inside & closed
        parts = {"wall": whole & ~inside, "inside": inside}
    below = [replace(thing, mask=thing.mask & ~whole) for thing in things]
    used = ""
    for part, mask in parts.items():
        colour = _pick(plan, colours)
        texture = "plain" if len(canvas) == 1 and plan.random() < 0.5 else _pick(plan, TEXTURES)
        if part == "inside" and used != background and plan.random() < 0.5:
            colour = background  # then only the wall tells the inside from the ground
        elif colour == used:
            colour = _pick(plan, [name for name in colours if name != used])
        used = colour
        paint = _colour(colour, len(canvas)) * _texture(texture, u, v / aspect, rng)
        np.copyto(canvas, paint, where=mask)
        position = (float(cx), float(cy), radius)
        place = _place(float(cx), float(cy))
        below.append(Thing(shape, texture, colour, size, place, part, mask, position))
    return below


def _degrade(
    canvas: np.ndarray, rng: Rng, grey: bool, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lighting, blur, additive and multiplicative noise: images are not drawings; and what can be seen."""
    canvas = canvas * rng.uniform(0.7, 1.15)
    shape = (1 if grey else 3, *canvas.shape[1:])
    seen = np.ones(canvas.shape[1:], dtype=bool)
    if rng.random() < 0.5:
        canvas = _blur(canvas, *rng.integers(1, 5, 2))
    if rng.random() < (0.6 if grey else 0.2):  # gain that differs over the image
        canvas = canvas * np.exp(rng.uniform(0.1, 0.7) * _wave(x, y, rng))
    if rng.random() < (0.4 if grey else 0.1):  # low contrast
        middle = rng.uniform(30, 160)
        canvas = middle + rng.uniform(0.5, 0.9) * (canvas - middle)
    if rng.random() < (0.8 if grey else 0.3):  # grain, often longer one way than the other
        grain = _blur(rng.rayleigh(0.8, shape).astype(np.float32), *rng.integers(0, 3, 2))
        grain = (grain - 1) * (0.5 / grain.std())
        canvas = np.maximum(canvas, 0) * np.maximum(1 + rng.uniform(0.1, 0.7) * grain, 0)
    if grey and rng.random() < 0.4:  # compression: differences in the dark grow
        strength = rng.uniform(1, 8)
        canvas = 255 * np.log1p(strength * np.clip(canvas, 0, 255) / 255) / np.log1p(strength)
    if rng.random() < (0.4 if grey else 0.1):  # dark corners
        power, level = rng.uniform(2, 8), rng.uniform(0, 0.2)
        cx, cy, across, down = rng.uniform((0.4, 0.4, 0.4, 0.4), (0.6, 0.6, 0.65, 0.65))
        edge = _superellipse((x - cx) / across, (y - cy) / down, power)
        seen = edge <= 0
        canvas = canvas * (level + (1 - level) * np.clip(0.5 - edge * rng.uniform(1, 10), 0, 1))
    return canvas + rng.normal(0, rng.uniform(1, 14), shape), seen


def _rank(things: list[Thing]) -> list[Thing]:
    """Say which object lies furthest to each side, and which is the smallest and the largest."""
    if not things:
        return things
    positions = np.array([thing.position for thing in things])
    ends = zip(positions.min(0), positions.max(0), strict=True)
    extremes = [value for pair in ends for value in pair]
    return [
        replace(
            thing,
            ranks=tuple(
                name
                for name, axis, extreme in zip(RANKS, (0, 0, 1, 1, 2, 2), extremes, strict=True)
                if thing.position[axis] == extreme
            ),
        )
        for thing in things
    ]


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


def _attributes(thing: Thing, rng: Rng) -> dict[str, str]:
    """Some of what is true of a thing, enough to say a sentence."""
    names = ("texture", "colour", "size", "place")
    chosen = {"shape": thing.shape}
    chosen |= {name: getattr(thing, name) for name in names if rng.random() < 0.35}
    if thing.part and rng.random() < 0.8:
        chosen["part"] = thing.part
    if thing.ranks and rng.random() < 0.2:
        chosen["rank"] = _pick(rng, thing.ranks)
    if len(chosen) > 1 and rng.random() < 0.25:
        chosen.pop("shape")  # "the red thing"
    return chosen


def _describe(attributes: dict[str, str], rng: Rng) -> str:
    """A phrase that says these attributes and nothing else."""
    noun = attributes.get("shape") or _pick(rng, ("thing", "object", "region", "area"))
    own = [attributes[name] for name in ("texture", "colour") if name in attributes]
    whole = [attributes[name] for name in ("rank", "size") if name in attributes]
    if "part" in attributes:
        part = _pick(rng, PARTS[attributes["part"]])
        if not whole and "shape" not in attributes:
            phrase = " ".join([*own, part])
        else:
            phrase = " ".join([*own, part, _pick(rng, ("of the", "of a", "in the")), *whole, noun])
    else:
        before, style = [*whole, *own], rng.random()
        if style < 0.6 or not before:
            phrase = " ".join([*before, noun])
        elif style < 0.8:
            phrase = f"{noun} that is {' and '.join(before)}"
        else:
            phrase = f"{noun} of {' '.join(before)} kind"
    if "place" in attributes:
        forms = (" at the {}", " on the {}", " in the {}", ", {}")
        phrase += _pick(rng, forms).format(attributes["place"])
    return phrase


_OPTIONS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "texture": TEXTURES,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "place": PLACES,
    "part": tuple(PARTS),
    "rank": RANKS,
}


def _refer(things: list[Thing], count: int, rng: Rng, size: int) -> tuple[list[str], np.ndarray]:
    """Captions with the union of all objects that each one fits."""
    texts: list[str] = []
    masks = np.zeros((count, size, size), dtype=bool)
    order = rng.permutation(len(things))
    for slot in range(count):
        if things:
            attributes = _attributes(things[order[slot % len(order)]], rng)
        else:
            attributes = {"shape": _pick(rng, SHAPES), "colour": _pick(rng, _OPTIONS["colour"])}
        if rng.random() < 0.2:  # one word changed: most often nothing fits then
            name = _pick(rng, tuple(attributes))
            attributes[name] = _pick(rng, _OPTIONS[name])
        for thing in things:
            if thing.fits(attributes):
                masks[slot] |= thing.mask
        text = _describe(attributes, rng)
        if len(attributes) < 4:  # all of a batch are padded to its longest
            text = f"{_pick(rng, _OPENINGS)}{text}{_pick(rng, _ENDINGS)}"
        texts.append(text[0].upper() + text[1:] if rng.random() < 0.5 else text)
    return texts, masks


_FRAMES: tuple[str, ...] = (
    "{} of the {}.",
    "{} in the {}.",
    "the {} of a {}",
    "{}, {}",
    "{} in the {} in view",
    "{}",
)


def _call(things: list[Thing], context: str, count: int, rng: Rng, size: int) -> tuple[list[str], np.ndarray]:
    """Captions that call a family's things by their names."""
    texts: list[str] = []
    masks = np.zeros((count, size, size), dtype=bool)
    order = rng.permutation(len(things))
    for slot in range(count):
        if not things or rng.random() < 0.1:  # something of another family
            whole, name = _names(int(rng.integers(1000, 100_000)), 1)
        else:
            thing = things[order[slot % len(order)]]
            whole, name, masks[slot] = context, thing.name, thing.mask
        text = _pick(rng, _FRAMES).format(name, whole)
        texts.append(text[0].upper() + text[1:] if rng.random() < 0.5 else text)
    return texts, masks
