"""The explorer in the published book, which `book/_static/explorer.js` brings to life.

No kernel and no network: answers computed beforehand lie in the page, and a model that answers any sentence
beside it (`export`). Only pictures of artificial cohorts are put there, as the licence of real ones
is not ours to give.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from echovlsm import STRUCTURES
from echovlsm.base import figures
from echovlsm.evaluation import dice
from echovlsm.explorer.asking import Explorer, level_names, paint
from echovlsm.explorer.pictures import LEAST_SHARE, ExplorerError, Key
from echovlsm.explorer.sentences import OTHER_WORDS, SOMETHING_ELSE

if TYPE_CHECKING:
    import pandas as pd

ARTIFICIAL = ("phantom", "synthetic")
"""Kinds of cohort that show nobody: only their pictures, and what learned from them, go into a page."""
MAX_SIDE = 96
"""Side in pixels of the probabilities in the page; larger models are averaged down to it."""
MAX_BYTES = 2_500_000
"""What one page may hold."""
_WORDS = ("other words", "free words", "nonsense")


def choose_pictures(frames: pd.DataFrame, count: int = 4, first: Key | None = None) -> list[Key]:
    """Pictures that differ: other patients, and as far as possible other views, phases and qualities.

    A page opens on the first of them: the one named, or the cohort's first.
    """
    chosen: list[Key] = []
    seen: list[tuple[str, ...]] = []
    columns = ("patient", "view", "phase", "quality")
    rows = [tuple(str(getattr(row, name, "")) for name in columns) for row in frames.itertuples()]
    while rows and len(chosen) < count:

        def new(row: tuple[str, ...]) -> int:
            return sum(4 * (row[0] != other[0]) + sum(map(str.__ne__, row[1:], other[1:])) for other in seen)

        opening = first is not None and not chosen
        best = next(row for row in rows if row[:3] == first) if opening else max(rows, key=new)
        rows.remove(best)
        seen.append(best)
        chosen.append((best[0], best[1], best[2]))
    return chosen


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
    explorer
        The models and the cohort.
    keys
        Pictures to publish.
    scale
        Scale of the run, for the stamp.
    nets
        Model's name in the explorer to the name in the page; by default all under their own.
    live
        The first model as it lies beside the page (`export.write_model`), so that a reader may type.

    Returns
    -------
    dict
        `note`, `least` (`LEAST_SHARE`), `live`, `stills` (shown without JavaScript: title, image, text),
        `structures` (name, short, colour), `nets`, `levels` (label), `pictures` (title, image,
        labels: data addresses of PNG files at the same size; sentences: one list a level, one a structure;
        maps: one PNG a model, probabilities times 255, levels and structures below one another).

    Raises
    ------
    ExplorerError
        The cohort is real: its pictures are not ours to publish; or a picture has no reference.
    """
    kind = explorer.meta.get("kind")
    if kind not in ARTIFICIAL:
        raise ExplorerError(
            f"cohort: {explorer.meta.get('name', '?')} is {kind or 'of unknown kind'}; "
            "pictures go into a page only from a phantom or synthetic cohort: use the live explorer"
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
        "pictures": [_picture(explorer, key, list(shown), list(labels)) for key in keys],
    }


def without_images(net: str, live: Mapping[str, Any]) -> dict[str, Any]:
    """What `answers` gives, for a model beside the page that has no image to show: the reader brings one."""
    return _payload(f"{net}, without images", [net], live) | {"stills": [], "levels": [], "pictures": []}


def _payload(note: str, nets: list[str], live: Mapping[str, Any] | None) -> dict[str, Any]:
    structures = [
        {"name": name, "short": figures.SHORT_NAMES[name], "colour": figures.STRUCTURE_COLOURS[name]}
        for name in STRUCTURES.values()
    ]
    return {"note": note, "least": LEAST_SHARE, "live": live, "structures": structures, "nets": nets}


def _still(explorer: Explorer, key: Key, structure: str, net: str) -> dict[str, str]:
    """One answer as an image, for readers without JavaScript."""
    picture, text = explorer.picture(key), explorer.prompt(key, structure, "P1")
    mask, truth = explorer.ask(key, text, net).mask(), picture.reference(structure)
    painted = paint(picture.image, figures.STRUCTURE_COLOURS[structure], mask=mask, truth=truth)
    buffer = io.BytesIO()
    Image.fromarray(painted).save(buffer, format="WEBP", quality=60)
    told = "" if truth is None else f" Dice {dice(mask, truth):.3f}."
    address = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"title": " ".join(key), "image": address, "text": f"“{text}”{told}"}


def _picture(explorer: Explorer, key: Key, nets: Sequence[str], levels: Sequence[str]) -> dict[str, Any]:
    picture = explorer.picture(key)
    if picture.labels is None:
        raise ExplorerError(f"{' '.join(key)} has no reference mask; choose a picture that has one")
    sentences = [[_sentence(explorer, key, name, level) for name in STRUCTURES.values()] for level in levels]
    said = [f"{name} {value}" for name, value in picture.known.items() if name in ("sex", "age", "quality")]
    return {
        "title": f"{' '.join(key)}" + (f" ({', '.join(said)})" if said else ""),
        "image": _address(picture.image),
        "labels": _address(picture.labels * 80),
        "sentences": sentences,
        "maps": [
            _address(np.concatenate([_small(explorer, key, text, net) for row in sentences for text in row]))
            for net in nets
        ],
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


def _address(pixels: np.ndarray) -> str:
    """A grey uint8 (H, W) picture as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
            f"pictures: {len(payload['pictures'])} take {len(text):,} bytes, but a page may hold "
            f"{MAX_BYTES:,}; show fewer"
        )
    return text
