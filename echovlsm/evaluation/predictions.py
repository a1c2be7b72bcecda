"""What a model answers about images, and the scores of its answers: a run's, or any model's.

Logits in, one row a mask out. `runs` makes a command of it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from echovlsm import STRUCTURES, models
from echovlsm.base import RunFolder, figures
from echovlsm.cohort import load_image, load_labels
from echovlsm.evaluation.scoring import PAPER_SIZE, score_table, to_mask
from echovlsm.training import predict, strategies

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

EPICARDIUM = "epicardium"
"""Name of the ventricular cavity and the myocardium together in tables of scores."""

IDENTITY: tuple[str, ...] = ("patient", "view", "phase", "split", "quality", "sex", "age")
"""Columns of the frames table that a row of scores carries."""

UNION = "their union"
"""Name of the three structures together in `prompt_dice`."""


def predict_images(
    model: nn.Module,
    frames: pd.DataFrame,
    prompt: str,
    strategy: str = "real",
    missing: str = "omit",
    batch_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """A model's answers to the first template variant of a prompt level, for every image and structure.

    Parameters
    ----------
    model, frames
        A vision-language model, or the reference without words; images with masks, of any split.
    prompt, missing
        Level; ``omit`` drops the clause of an attribute that the cohort lacks, ``error`` raises.
    strategy
        A model that learned from both sources (``joint``) is told that these images are of the target.
    batch_size
        Images at a time.

    Returns
    -------
    Tensor, Tensor
        Logits float32 (N, S, h, w) and reference labels uint8 (N, h, w), both at the model's size.
    """
    asked = frames.assign(split="test")
    asked.attrs = frames.attrs
    triplets = strategies.strategy_triplets(
        strategy, "test", asked, [], prompt, model, variant="0", missing=missing
    )
    return predict(model.eval(), triplets, batch_size, sys.stderr.isatty()), triplets.labels


def predict_run(
    run: RunFolder, frames: pd.DataFrame, missing: str = "omit", batch_size: int = 32
) -> tuple[Tensor, Tensor]:
    """What `predict_images` gives of a run's model, asked with the run's prompts."""
    trained = run.record["parameters"]
    model = models.load(trained["model"], run / "weights", "unfrozen")
    words = trained["prompt"], trained.get("strategy", "real"), missing
    return predict_images(model, frames, *words, batch_size)


def structure_masks(
    logits: Tensor, labels: np.ndarray, size: int | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, predicted and reference mask of each structure of an image, and of the epicardium.

    The epicardium is the ventricular cavity and the myocardium together, which challenges and cardiologists
    score where this project, as the paper, scores the ring. It has no part in any mean over structures.

    Parameters
    ----------
    logits, labels
        Answer float (S, h, w) and reference uint8 (H, W).
    size
        Side of the predicted masks in pixels; None for that of the reference, which always keeps its own.
    """
    found = to_mask(logits, size or labels.shape).numpy()
    for mask, (value, name) in zip(found, STRUCTURES.items(), strict=True):
        yield name, mask, labels == value
    yield EPICARDIUM, found[0] | found[1], (labels == 1) | (labels == 2)


def labels_of(logits: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """One label map uint8 `shape` from logits (S, h, w): of the structures found, the most probable."""
    import torch
    from torch.nn import functional

    found = to_mask(logits, shape)
    sure = functional.interpolate(
        logits[None].float().sigmoid(), size=shape, mode="bilinear", align_corners=False
    )[0]
    values = torch.tensor(list(STRUCTURES), dtype=torch.uint8)
    best = torch.where(found, sure, torch.zeros(())).max(dim=0)
    return torch.where(found.any(dim=0), values[best.indices], torch.zeros((), dtype=torch.uint8)).numpy()


def score_images(frames: pd.DataFrame, logits: Tensor, size: int = PAPER_SIZE, **names: str) -> pd.DataFrame:
    """Scores of answers about images, one row a mask: `IDENTITY`, structure, and `score_table`'s columns.

    Parameters
    ----------
    frames, logits
        Images with masks, and the answers float (N, S, h, w) in their order.
    size
        Side at which masks are compared, distances in its pixels; 0: native size, distances in millimetres.
    names
        Columns that come first and have one value, such as `strategy`.
    """

    def rows() -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, Any]]:
        for row, answers in zip(frames.itertuples(), logits, strict=True):
            known = names | {name: getattr(row, name) for name in IDENTITY}
            spacing = None if size else (row.spacing_y, row.spacing_x)
            for structure, *masks in structure_masks(answers, load_labels(row), size or None):
                yield {**known, "structure": structure}, *masks, spacing

    total = len(frames) * (len(STRUCTURES) + 1)
    return score_table(rows(), size=size or None, total=total, progress=sys.stderr.isatty())


def score_run(run: RunFolder, frames: pd.DataFrame, logits: Tensor, size: int = PAPER_SIZE) -> pd.DataFrame:
    """What `score_images` gives of a run's answers, with the run's settings, cohort and scale."""
    trained = run.record["parameters"]
    settings = {key: trained[key] for key in ("model", "prompt", "encoders", "seed") if key in trained}
    settings["strategy"] = trained.get("strategy", "real")
    table = score_images(frames, logits, size)
    return table.assign(**settings, cohort=frames.attrs["meta"]["name"], scale=run.record.get("scale"))


def prompt_dice(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Dice float32 (N, S) of every answer with each structure's reference, and with all together (`UNION`).

    `logits` and `labels` are those of `predict_images`.
    """
    from monai.metrics import compute_dice

    answers = to_mask(logits)
    wanted = {name: labels == value for value, name in STRUCTURES.items()} | {UNION: labels > 0}
    return {
        name: compute_dice(answers, reference[:, None].expand_as(answers), ignore_empty=False)
        for name, reference in wanted.items()
    }


def prompt_matrix(logits: Tensor, labels: Tensor) -> pd.DataFrame:
    """Does the mask follow the words? Means of `prompt_dice` over the images, float32.

    The index is `asked for` (structure); there is a column a structure, and `UNION`.
    """
    import pandas as pd

    means = {name: dice.mean(dim=0).numpy() for name, dice in prompt_dice(logits, labels).items()}
    return pd.DataFrame(means, index=pd.Index(list(STRUCTURES.values()), name="asked for"))


def worst_images(scores: pd.DataFrame, frames: pd.DataFrame, count: int = 4) -> pd.Series:
    """Mean Dice of the `count` worst images, the worst first; the index is their place in `frames`.

    `scores` has one row a mask of these images, of one run.
    """
    key = ["patient", "view", "phase"]
    means = scores.groupby(key)["dice"].mean().nsmallest(count)
    places = frames.reset_index(drop=True).reset_index().set_index(key)["index"]
    return means.set_axis(places.loc[means.index])


def plot_answers(dice: pd.Series, frames: pd.DataFrame, logits: Tensor, title: str) -> Figure:
    """Images side by side, reference solid and prediction dashed.

    `dice` is that of `worst_images`; `logits`, float (N, S, h, w), are the answers about all of `frames`.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(dice), figsize=(2.9 * len(dice), 3.5), squeeze=False)
    for axis, (place, value) in zip(axes[0], dice.items(), strict=True):
        row = frames.iloc[place]
        labels = load_labels(row)
        figures.show_image(axis, load_image(row), f"{row.patient} {row.view} {row.phase}: {value:.2f}")
        figures.outline_labels(axis, labels)
        answers = to_mask(logits[place], labels.shape).numpy()
        for answer, colour in zip(answers, figures.STRUCTURE_COLOURS.values(), strict=True):
            figures.outline(axis, answer, colour, dashed=True)
    figures.structure_legend(figure, {"reference": "-", "prediction": "--"})
    figures.heading(figure, title)
    return figure
