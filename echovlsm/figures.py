"""One look for all figures: colours, style, overlays, and the stamp that tells scale and cohort.

Colours are Okabe and Ito's, safe for colour-blind readers. A structure, a strategy and a model keep theirs
everywhere. Backgrounds stay white so that figures are legible in the book's dark theme as well.
"""

from __future__ import annotations

from collections.abc import Mapping

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
}


def use_style() -> None:
    """Set the project's matplotlib style."""
    mpl.rcParams.update(_STYLE)


def stamp(figure: Figure, scale: str, cohort: str, kind: str) -> None:
    """Write scale and cohort under a figure; below full scale, or on artificial pictures, say what it is not.

    Parameters
    ----------
    figure
        The figure; call this last.
    scale
        ``smoke``, ``demo`` or ``full``.
    cohort, kind
        The cohort's name, and ``real``, ``phantom`` or ``synthetic``.
    """
    figure.supxlabel(scale_note(scale, cohort, kind), fontsize=8, color="#555555", x=0.01, ha="left")


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


def show_picture(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Draw one grey picture without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9, fontweight="normal")
    axes.axis("off")


def outline(axes: Axes, mask: np.ndarray, colour: str, dashed: bool = False) -> None:
    """Draw the border of a mask (H, W) over a picture of the same size; an empty mask draws nothing."""
    if np.any(mask) and not np.all(mask):
        axes.contour(
            mask.astype(float),
            levels=[0.5],
            colors=[colour],
            linewidths=1.3,
            linestyles="--" if dashed else "-",
        )


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
    """Legend of the structures' colours above the pictures; `extra` maps labels to line styles."""
    handles = [
        Line2D([], [], color=colour, label=SHORT_NAMES[name]) for name, colour in STRUCTURE_COLOURS.items()
    ]
    handles += [
        Line2D([], [], color="#333333", linestyle=style, label=label)
        for label, style in (extra or {}).items()
    ]
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
    axes.set_xticks(
        range(matrix.shape[1]),
        [SHORT_NAMES.get(name, name) for name in matrix.columns],
        rotation=20,
        ha="right",
    )
    axes.set_yticks(range(matrix.shape[0]), [SHORT_NAMES.get(name, name) for name in matrix.index])
    axes.grid(False)
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        colour = "white" if value < low + 0.55 * (high - low) else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
    axes.set_title(title)
