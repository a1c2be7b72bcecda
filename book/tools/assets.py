"""The landing page's image: `python -m book.tools.assets` writes `book/_static/hero.html`.

It is committed, because it changes only when the phantom does.
"""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

from echovlsm import STRUCTURES
from echovlsm.base import figures, files, paths
from echovlsm.phantom import draw_cohort_patient, simulate
from echovlsm.prompts import make_prompt

SEED, PATIENT, VIEW, PHASE = 0, 3, "4CH", "ED"
"""The image of the landing page: a patient of good image quality, all four chambers seen."""


def outline_path(mask: np.ndarray) -> str:
    """The border of a mask (H, W) as an SVG path in pixels, simplified."""
    pieces = []
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        points = approximate_polygon(contour, 0.6) - 0.5  # padding, then pixel centres
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
    for value, name in STRUCTURES.items():
        path, text = outline_path(phantom.labels == value), html.escape(make_prompt(name, "P2", 0, view=VIEW))
        state, pressed = (' class="lit"', "true") if value == 1 else ("", "false")
        about = f'data-structure="{name}"'
        ink = f'style="--ink: {figures.STRUCTURE_COLOURS[name]}"'
        outlines.append(f'<path {about}{state} {ink} d="{path}"/>')
        buttons.append(f'<button type="button" {about} aria-pressed="{pressed}" {ink}>{text}</button>')
    names = ", ".join(STRUCTURES.values())
    label = f"A simulated echocardiogram in four-chamber view with the outlines of {names}"
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


if __name__ == "__main__":
    with files.appearing(paths.project_root() / "book" / "_static" / "hero.html") as partial:
        partial.write_text(hero())
