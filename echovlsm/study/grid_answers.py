"""What the models of a grid's cells answer: masks of a run, of the empty prompt, and of false words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from monai.metrics import compute_dice
from torch import Tensor

from echovlsm import STRUCTURES, models
from echovlsm.base import RunFolder
from echovlsm.cohort import load_image, load_labels
from echovlsm.evaluation import to_mask, word_effects
from echovlsm.study.grid import Cell
from echovlsm.training import Triplets, predict, strategies

Runs = Sequence[tuple[Cell, RunFolder]]


def answers_of(
    cell: Cell, run: RunFolder, frames: pd.DataFrame, split: str, missing: str = "error"
) -> tuple[Tensor, Triplets]:
    """Logits (N, 3, H, W) of a cell's model at its own size for all images of a split, and the triplets."""
    net = models.load(cell.model, run / "weights").eval()
    triplets = strategies.strategy_triplets(
        cell.strategy, split, frames, [], cell.prompt, net, variant="0", missing=missing
    )
    return predict(net, triplets), triplets


def union_dice(logits: Tensor, triplets: Triplets) -> dict[str, float]:
    """Dice of the first prompt's masks with each structure's, and with the union of all; of empty prompts."""
    masks = to_mask(logits)
    targets = {name: triplets.labels == value for value, name in STRUCTURES.items()}
    targets["their union"] = triplets.labels > 0
    return {
        name: compute_dice(masks[:, :1], mask[:, None], ignore_empty=False).mean().item()
        for name, mask in targets.items()
    }


def false_words(
    runs: Runs, frames: pd.DataFrame, patients: int = 0, missing: str = "error"
) -> tuple[str, pd.DataFrame]:
    """What false words change in the cells with the most words and open encoders.

    Parameters
    ----------
    runs
        Of `grid.runs_of`; the text-blind reference is left out.
    frames
        Images to ask about, of the first `patients` patients by name; 0: all.

    Returns
    -------
    level : str
        The highest prompt level of the runs.
    effects : DataFrame
        Of `evaluation.word_effects`, with `model` and `seed`; empty where no level has words.
    """
    worded = [(cell, run) for cell, run in runs if cell.model != "unet"]
    level = max((cell.prompt for cell, _ in worded), default="P0")
    kept = sorted(frames["patient"].unique())[: patients or None]
    asked = frames[frames["patient"].isin(kept)].reset_index(drop=True)
    asked.attrs = frames.attrs
    parts = [pd.DataFrame()]
    for cell, run in worded:
        if (cell.prompt, cell.encoders) == (level, "unfrozen") and level != "P0":
            net = models.load(cell.model, run / "weights").eval()
            found = word_effects(net, asked, cell.prompt, missing=missing, size=None)
            parts.append(found.assign(model=cell.model, seed=cell.seed))
    return level, pd.concat(parts, ignore_index=True)


def beside_masks(
    frames: pd.DataFrame, logits: Tensor, chosen: Mapping[int, str] | Sequence[int]
) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(caption, image, labels, answers bool (3, H, W)) of some images, by place, for the figures."""
    captions = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen, "")
    rows = []
    for place, caption in captions.items():
        labels = load_labels(frames.iloc[place])
        answers = to_mask(logits[place][None], size=labels.shape)[0].numpy()
        rows.append((caption, load_image(frames.iloc[place]), labels, answers))
    return rows
