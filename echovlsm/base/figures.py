"""One look for all figures: colours, style, overlays, and the stamp that tells scale and cohort.

Colours are Okabe and Ito's, safe for colour-blind readers. A structure, a strategy and a model keep theirs
everywhere. Backgrounds stay white so that figures are legible in the book's dark theme as well.
"""

from __future__ import annotations

import contextlib
import io
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from echovlsm import STRUCTURES

STRUCTURE_COLOURS: dict[str, str] = {
    "left ventricular cavity": "#56B4E9",
    "myocardium": "#E69F00",
    "left atrium cavity": "#CC79A7",
}
STRATEGY_COLOURS: dict[str, str] = {
    "zeroshot": "#7F7F7F",
    "synthetic": "#009E73",
    "real": "#0072B2",
    "synth-PT:real-FT": "#D55E00",
    "joint": "#000000",
}
SAMPLER_COLOURS: dict[str, str] = {
    "ddpm": "#000000",
    "ddim": "#E69F00",
    "dpm-solver++": "#56B4E9",
    "sde-dpm-solver++": "#009E73",
    "heun": "#CC79A7",
}
MODEL_NAMES: dict[str, str] = {"clipseg": "CLIPSeg", "cris": "CRIS", "unet": "U-Net"}
SHORT_NAMES: dict[str, str] = {
    "left ventricular cavity": "LV cavity",
    "myocardium": "myocardium",
    "left atrium cavity": "LA cavity",
}

_STYLE: Mapping[str, object] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "image.cmap": "gray",
    "svg.hashsalt": "echovlsm",  # the same figure gives the same file
}
MAX_VECTOR_POINTS = 4000
"""A figure that holds images, or more points than this, is published as pixels only."""


def use_style() -> None:
    """Set the project's matplotlib style."""
    mpl.rcParams.update(_STYLE)


def stamp(figure: Figure, scale: str, cohort: str, kind: str) -> None:
    """Write scale and cohort under a figure; below full scale, or on artificial images, say what it is not.

    Call this last. In a notebook the figure's output then carries a text for those who do not see it
    (`describe`), and is kept as a vector drawing too where it holds no image. `cohort` and `kind` are the
    cohort's name, and ``real``, ``phantom`` or ``synthetic``.
    """
    figure.supxlabel(scale_note(scale, cohort, kind), fontsize=8, color="#555555", x=0.01, ha="left")
    _publish_with_text()


def scale_note(scale: str, cohort: str, kind: str) -> str:
    """One line that a figure or table carries: scale, cohort, and what it must not be read as."""
    note = f"scale: {scale} · cohort: {cohort} ({kind})"
    if kind != "real":
        return f"{note} · shows that the machinery works, says nothing about hearts"
    if scale != "full":
        return f"{note} · a small model: not a result of the full study"
    return note


def heading(figure: Figure, text: str) -> None:
    """The finding that a figure of several panels states, above all of them."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


def describe(figure: Figure) -> str:
    """What a figure says, in one line for a screen reader, read from the figure itself.

    Heading, titles of the panels, labels of the first panel that has some, names in legends, stamp.
    """
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc=place) for axes in panels for place in ("left", "center", "right")]
    parts = [figure.get_suptitle(), "; ".join(dict.fromkeys(filter(None, titles)))]
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels]
    across, up = next((pair for pair in labels if any(pair)), ("", ""))
    parts.append(", ".join(filter(None, (across and f"across: {across}", up and f"upwards: {up}"))))
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in panels))]
    names = [text.get_text() for legend in legends for text in legend.get_texts()]
    parts.append(f"shown: {', '.join(dict.fromkeys(names))}" if names else "")
    parts.append(figure.get_supxlabel())
    return " ".join(". ".join(part.strip().rstrip(".") for part in parts if part.strip()).split()) + "."


def _is_drawing(figure: Figure) -> bool:
    """Whether a figure is lines and text, few enough to be a vector drawing."""
    if any(axes.images for axes in figure.axes):
        return False
    points = sum(len(line.get_xdata()) for axes in figure.axes for line in axes.lines)
    points += sum(len(part.get_offsets()) for axes in figure.axes for part in axes.collections)
    return points <= MAX_VECTOR_POINTS


def _png(figure: Figure) -> tuple[str, dict[str, Any]]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return b64encode(buffer.getvalue()).decode(), {"alt": describe(figure)}


def _svg(figure: Figure) -> tuple[str, dict[str, Any]] | None:
    if not _is_drawing(figure):
        return None
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": _STYLE["svg.hashsalt"]}):  # another library may have reset it
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue(), {"alt": describe(figure)}


def _publish_with_text() -> None:
    """Have this kernel put `describe` into the metadata of each figure that it shows; elsewhere nothing.

    Called with every stamp: the inline backend forgets foreign printers when it starts.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from IPython import get_ipython

        formatters = get_ipython().display_formatter.formatters
        formatters["image/png"].for_type(Figure, _png)
        formatters["image/svg+xml"].for_type(Figure, _svg)


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Draw one grey image without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9, fontweight="normal", parse_math=False)  # words may hold a dollar
    axes.axis("off")


def outline(axes: Axes, mask: np.ndarray, colour: str, dashed: bool = False) -> None:
    """Draw the border of a mask (H, W) over an image of the same size; an empty mask draws nothing."""
    if np.any(mask) and not np.all(mask):
        style = "--" if dashed else "-"
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.3, linestyles=style)


def outline_labels(axes: Axes, labels: np.ndarray, dashed: bool = False) -> None:
    """Draw the borders of all three structures of a label map, the cavity above the wall around it."""
    for value in (2, 3, 1):
        outline(axes, labels == value, STRUCTURE_COLOURS[STRUCTURES[value]], dashed)


def show_sector_map(axes: Axes, sector_map: np.ndarray, title: str = "") -> None:
    """Draw a sector map uint8 (H, W): structures in their colours, the sector grey, black outside."""
    cavity, wall, atrium = (STRUCTURE_COLOURS[name] for name in STRUCTURES.values())
    colours = np.array([mpl.colors.to_rgb(c) for c in ("#000000", cavity, "#555555", wall, atrium)])
    axes.imshow(colours[sector_map], interpolation="nearest")
    axes.set_title(title, fontsize=9, fontweight="normal")
    axes.axis("off")


def structure_legend(figure: Figure, extra: Mapping[str, str] | None = None) -> None:
    """Legend of the structures' colours above the images; `extra` maps labels to line styles."""
    lines = [(SHORT_NAMES[name], colour, "-") for name, colour in STRUCTURE_COLOURS.items()]
    lines += [(label, "#333333", style) for label, style in (extra or {}).items()]
    handles = [Line2D([], [], label=label, color=colour, linestyle=style) for label, colour, style in lines]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8)


def plot_history(history: pd.DataFrame) -> Figure:
    """Loss and validation Dice over epochs, with the epoch whose weights were kept."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(history["epoch"], history["train_loss"], color="#000000", label="training")
    left.plot(history["epoch"], history["val_loss"], color="#000000", linestyle="--", label="validation")
    left.set(xlabel="epoch", ylabel="loss (Dice + cross entropy)")
    left.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    best = history.loc[history["val_dice"].idxmax()]
    right.plot(history["epoch"], history["val_dice"], color=STRATEGY_COLOURS["real"])
    right.plot(best["epoch"], best["val_dice"], "o", color=STRATEGY_COLOURS["real"])
    right.set(xlabel="epoch", ylabel="mean validation Dice", ylim=(0, 1))
    first, last = history["train_loss"].iloc[[0, -1]]
    left.set_title(f"Training loss went from {first:.2f} to {last:.2f}")
    right.set_title(f"Best validation Dice {best['val_dice']:.3f} at epoch {int(best['epoch'])}")
    return figure


def plot_matrix(axes: Axes, matrix: pd.DataFrame, title: str, limits: tuple[float, float] = (0, 1)) -> None:
    """A small annotated matrix with row and column names; values written with two decimals."""
    low, high = limits
    axes.imshow(matrix.to_numpy(), cmap="cividis", vmin=low, vmax=high)
    columns, rows = (
        [SHORT_NAMES.get(name, name) for name in names] for names in (matrix.columns, matrix.index)
    )
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        colour = "white" if value < low + 0.55 * (high - low) else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_title(title)
