"""The explorer in a published page, which `book/_static/explorer.js` brings to life.

No kernel and no network: answers computed beforehand lie in the page, and a model that answers any sentence
beside it (`export`). Only images of artificial cohorts are put there: real ones are not ours to publish.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from echovlsm import STRUCTURES
from echovlsm.base import figures
from echovlsm.evaluation import dice
from echovlsm.explorer.asking import Explorer, level_names
from echovlsm.explorer.images import LEAST_SHARE, ExplorerError, Key, encode, paint
from echovlsm.explorer.sentences import OTHER_WORDS, SOMETHING_ELSE

ARTIFICIAL = ("phantom", "synthetic")
"""Kinds of cohort that show nobody: only their images, and what learned from them, go into a page."""
MAX_SIDE = 96
"""Side in pixels of the probabilities in the page; larger models are averaged down to it."""
MAX_BYTES = 2_500_000
"""What one page may hold."""
_WORDS = ("other words", "free words", "nonsense")


def answers(
    explorer: Explorer,
    keys: Sequence[Key],
    *,
    scale: str,
    nets: Mapping[str, str] | None = None,
    live: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the page needs, as plain values.

    Parameters
    ----------
    nets
        Model's name in the explorer to the name in the page; by default all under their own.
    live
        The first model as it lies beside the page (`export.write_model`), so that a reader may type.

    Returns
    -------
    dict
        `note`, `least` (`LEAST_SHARE`), `live`, `stills` (shown without JavaScript: title, image, text),
        `structures` (name, short, colour), `nets`, `levels` (label), `images` (title; pixels, labels: data
        addresses of PNG files at the same size; sentences: a list per level with one per structure; maps: a
        PNG per model, probabilities times 255, levels and structures below one another).

    Raises
    ------
    ExplorerError
        The cohort is real, or an image has no reference.
    """
    kind = explorer.meta.get("kind")
    if kind not in ARTIFICIAL:
        raise ExplorerError(
            f"cohort: {explorer.meta.get('name', '?')} is {kind or 'of unknown kind'}; "
            "images go into a page only from a phantom or synthetic cohort: use the live explorer"
        )
    shown = dict(nets or {name: name for name in explorer.nets})
    labels = {level: level_names()[level] for level in explorer.levels}
    labels |= dict(zip(_WORDS, ("in other words", "a description", "something else"), strict=True))
    note = figures.scale_note(scale, str(explorer.meta.get("name")), str(kind))
    return _payload(note, list(shown.values()), live) | {
        "stills": [
            _still(explorer, key, name, next(iter(shown))) for key in keys for name in STRUCTURES.values()
        ],
        "levels": list(labels.values()),
        "images": [_image(explorer, key, list(shown), list(labels)) for key in keys],
    }


def without_images(net: str, live: Mapping[str, Any]) -> dict[str, Any]:
    """What `answers` gives, for a model beside the page that has no image to show: the reader brings one."""
    return _payload(f"{net}, without images", [net], live) | {"stills": [], "levels": [], "images": []}


def _payload(note: str, nets: list[str], live: Mapping[str, Any] | None) -> dict[str, Any]:
    structures = [
        {"name": name, "short": figures.SHORT_NAMES[name], "colour": figures.STRUCTURE_COLOURS[name]}
        for name in STRUCTURES.values()
    ]
    return {"note": note, "least": LEAST_SHARE, "live": live, "structures": structures, "nets": nets}


def _still(explorer: Explorer, key: Key, structure: str, net: str) -> dict[str, str]:
    """One answer as an image, for readers without JavaScript."""
    image, text = explorer.image(key), explorer.prompt(key, structure, "P1")
    mask, truth = explorer.ask(key, text, net).mask(), image.reference(structure)
    painted = paint(image.pixels, figures.STRUCTURE_COLOURS[structure], mask=mask, truth=truth)
    told = "" if truth is None else f" Dice {dice(mask, truth):.3f}."
    address = _address(painted, "WEBP")
    return {"title": " ".join(key), "image": address, "text": f"“{text}”{told}"}


def _image(explorer: Explorer, key: Key, nets: Sequence[str], levels: Sequence[str]) -> dict[str, Any]:
    image = explorer.image(key)
    if image.labels is None:
        raise ExplorerError(f"{' '.join(key)} has no reference mask; choose an image that has one")
    sentences = [[_sentence(explorer, key, name, level) for name in STRUCTURES.values()] for level in levels]
    said = [f"{name} {value}" for name, value in image.known.items() if name in ("sex", "age", "quality")]
    maps = [
        np.concatenate([_small(explorer, key, text, net) for row in sentences for text in row])
        for net in nets
    ]
    return {
        "title": f"{' '.join(key)}" + (f" ({', '.join(said)})" if said else ""),
        "pixels": _address(image.pixels),
        "labels": _address(image.labels * 80),
        "sentences": sentences,
        "maps": [_address(each) for each in maps],
    }


def _sentence(explorer: Explorer, key: Key, structure: str, level: str) -> str:
    if level == _WORDS[2]:
        return SOMETHING_ELSE[0]
    if level in _WORDS:
        return OTHER_WORDS[structure][_WORDS.index(level)]
    return explorer.prompt(key, structure, level)


def _small(explorer: Explorer, key: Key, text: str, net: str) -> np.ndarray:
    """Probabilities as uint8 (S, S), S at most `MAX_SIDE`."""
    values = explorer.small_map(key, text, net)
    if values.shape[0] > MAX_SIDE:
        small = Image.fromarray(values).resize((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
        values = np.asarray(small)
    return (values * 255).round().astype(np.uint8)


def _address(pixels: np.ndarray, kind: str = "PNG") -> str:
    """A data address of an image file."""
    content = encode(pixels, kind, optimize=True) if kind == "PNG" else encode(pixels, kind, quality=60)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(content).decode()


def page(payload: Mapping[str, Any]) -> str:
    """The HTML that `explorer.js` brings to life.

    Raises
    ------
    ExplorerError
        It would be larger than `MAX_BYTES`.
    """
    # `<` cannot end the script element early when it is written like this.
    values = {name: value for name, value in payload.items() if name != "stills"}
    data = json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    stills = "".join(
        f'<figure><img src="{still["image"]}" alt="{html.escape(still["title"] + ": " + still["text"])}">'
        f"<figcaption>{html.escape(still['text'])}</figcaption></figure>"
        for still in payload["stills"]
    )
    text = (
        '<div class="echovlsm-explorer">'
        f'<script type="application/json">{data}</script>'
        "<p>This explorer runs in a published page. In JupyterLab use the live one above.</p>"
        "<noscript><p>Without JavaScript it shows these answers, the reference in white.</p>"
        f'<div class="explorer-stills">{stills}</div></noscript>'
        f"<p class='explorer-note'>{html.escape(str(payload['note']))}</p></div>"
    )
    if len(text) > MAX_BYTES:
        raise ExplorerError(
            f"images: {len(payload['images'])} take {len(text):,} bytes, but a page may hold "
            f"{MAX_BYTES:,}; show fewer"
        )
    return text
