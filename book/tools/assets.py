"""Drawings of the book that are made by the project's own tools: the landing page's image.

    python -m book.tools.assets

writes `book/_static/hero.html`. It is committed, because it changes only when the phantom does.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from echovlsm import STRUCTURES
from echovlsm.base import figures, files, paths
from echovlsm.phantom import draw_cohort_patient, simulate
from echovlsm.prompts import make_prompt

SEED, PATIENT, VIEW, PHASE = 0, 3, "4CH", "ED"
"""The image of the landing page: a patient of good image quality, all four chambers seen."""


def outline_path(mask: np.ndarray, tolerance: float = 0.6) -> str:
    """The border of a mask (H, W) as an SVG path, in pixels, simplified to within `tolerance`."""
    from skimage.measure import approximate_polygon, find_contours

    pieces = []
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        points = approximate_polygon(contour, tolerance) - 0.5  # padding, then pixel centres
        if len(points) > 3:
            pieces.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points[:-1]) + "Z")
    return "".join(pieces)


def hero() -> str:
    """The landing page's image and sentences as HTML; `explorer.js` lights up what a sentence names."""
    patient = draw_cohort_patient(SEED, PATIENT)
    phantom = simulate(patient, VIEW, PHASE, seed=SEED, size=448)
    height, width = phantom.image.shape
    buffer = io.BytesIO()
    Image.fromarray(phantom.image).save(buffer, format="WEBP", quality=72)
    address = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    outlines, buttons = [], []
    for number, (value, name) in enumerate(STRUCTURES.items()):
        ink, lit = figures.STRUCTURE_COLOURS[name], number == 0
        path = outline_path(phantom.labels == value)
        state = ' class="lit"' if lit else ""
        outlines.append(f'<path data-structure="{name}"{state} style="--ink: {ink}" d="{path}"/>')
        text = html.escape(make_prompt(name, "P2", 0, view=VIEW))
        pressed = str(lit).lower()
        buttons.append(
            f'<button type="button" data-structure="{name}" aria-pressed="{pressed}" style="--ink: {ink}">'
            f"{text}</button>"
        )
    label = "A simulated echocardiogram in four-chamber view with the outlines of " + ", ".join(
        STRUCTURES.values()
    )
    return "\n".join(
        [
            '<div class="hero">',
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">',
            f'<image width="{width}" height="{height}" href="{address}"/>',
            *outlines,
            "</svg>",
            '<div class="hero-words">',
            "<p>Choose a sentence:</p>",
            *buttons,
            '<p class="hero-note">A simulated image with its reference masks. '
            'Models answer in the <a href="../notebooks/08_explorer.html">explorer</a>.</p>',
            "</div>",
            "</div>",
            "",
        ]
    )


def write(folder: Path) -> Path:
    """Write `hero.html` into a folder, whole or not at all."""
    target = folder / "hero.html"
    with files.appearing(target) as partial:
        partial.write_text(hero())
    return target


if __name__ == "__main__":
    print(write(paths.project_root() / "book" / "_static"))
