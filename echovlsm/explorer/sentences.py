"""Sixty sentences that never change, and what a model outlines for each of them.

Twenty name a structure in the templates' words, twenty in other words, and twenty are about something else:
none of their nouns is among those that training may draw (`echovlsm.prompts.other_sentences`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from echovlsm.base import files, paths
from echovlsm.evaluation import bootstrap_interval, dice
from echovlsm.explorer.asking import Explorer
from echovlsm.explorer.images import LEAST_SHARE, ExplorerError, Key, sector

_FRAMES = (
    *("{} of the heart.", "{} in the cardiac ultrasound.", "{} of the heart", "{} in the cardiac ultrasound"),
    *("{} of the heart in the cardiac ultrasound.", "{}.", "{}"),
)
RIGHT_WORDS: Mapping[str, Sequence[str]] = {
    name: tuple(frame.format(name.capitalize()) for frame in _FRAMES[:count])
    for name, count in (("left ventricular cavity", 7), ("myocardium", 7), ("left atrium cavity", 6))
}
"""A structure's name as in training, in the templates' frames or none, with and without a full stop."""
OTHER_WORDS: Mapping[str, Sequence[str]] = {
    "left ventricular cavity": (
        "Left ventricle.",
        "The chamber that pumps blood into the body.",
        "LV cavity.",
        "Cavity of the left ventricle.",
        "The blood pool of the left ventricle.",
        "The inside of the left ventricle in the echocardiogram.",
        "The main pumping chamber.",
    ),
    "myocardium": (
        "Heart muscle.",
        "The wall around the left ventricle.",
        "Myocardial tissue.",
        "Muscular wall of the heart.",
        "Cardiac muscle.",
        "Left ventricular wall.",
        "The muscle around the cavity.",
    ),
    "left atrium cavity": (
        "Left atrium.",
        "The chamber that fills from the lungs.",
        "Left atrial cavity.",
        "LA cavity.",
        "The atrium of the heart.",
        "The upper left chamber.",
    ),
}
"""Sentences that no template has, for each structure; a page shows the first two."""
SOMETHING_ELSE: Sequence[str] = (
    "A cat on a sofa.",
    "A red bicycle.",
    "The moon over the sea.",
    "An old guitar.",
    "Two dogs in the snow.",
    "A cup of tea.",
    "Pizza with olives.",
    "The bridge across the river.",
    "The tallest tree in the garden.",
    "A letter from my grandmother.",
    "airplane",
    "Window of the kitchen",
    "Democracy.",
    "Left shoe of the heart.",
    "Elephant in the cardiac ultrasound.",
    "Violin cavity of the heart.",
    "Gallbladder.",
    "Thyroid gland in the cardiac ultrasound.",
    "Spleen of the heart.",
    "Left kidney.",
)
"""Sentences about what no image of the heart shows; a page shows the first."""
KINDS: Mapping[str, Sequence[tuple[str | None, str]]] = {
    **{
        kind: [(name, text) for name, texts in said.items() for text in texts]
        for kind, said in (("right words", RIGHT_WORDS), ("other words", OTHER_WORDS))
    },
    "something else": [(None, text) for text in SOMETHING_ELSE],
}
"""Kind of sentence to pairs of the structure that it names, if any, and the sentence."""

RECORD = "data/results/explorer"
"""Answers of a run on record that learned without sentences about something else."""


def try_sentences(ask: Explorer, net: str | None = None) -> pd.DataFrame:
    """Ask a model, by default the first, all sixty sentences about every image that has a reference.

    Returns
    -------
    DataFrame
        One row per image and sentence: `patient, view, phase, kind, structure, sentence, outlined` (1.0 where
        the answer is at least `LEAST_SHARE` of the sector, else 0.0), `dice` (NaN for something else).
    """
    asked = [(kind, *pair) for kind, pairs in KINDS.items() for pair in pairs]
    texts = [text for _, _, text in asked]
    rows = []
    for key in ask.keys:
        image = ask.image(key)
        if image.labels is None:
            continue
        seen = sector(image.pixels)
        for (kind, name, text), answer in zip(asked, ask.ask_all(key, texts, net), strict=True):
            mask = answer.mask()
            score = dice(mask, image.reference(name)) if name else math.nan
            rows.append((*key, kind, name, text, float(mask[seen].mean() >= LEAST_SHARE), score))
    columns = ["patient", "view", "phase", "kind", "structure", "sentence", "outlined", "dice"]
    return pd.DataFrame(rows, columns=columns)


def median_image(tried: pd.DataFrame) -> Key:
    """The image whose mean Dice under the right words is the median of all, of an even number the lower."""
    right = tried[tried["kind"] == "right words"]
    means = right.groupby(["patient", "view", "phase"], sort=False)["dice"].mean().sort_values(kind="stable")
    return means.index[(len(means) - 1) // 2]


def by_patient(tried: pd.DataFrame) -> pd.DataFrame:
    """Means of `try_sentences` by kind and patient: `kind, patient, outlined, dice`."""
    return tried.groupby(["kind", "patient"], sort=False)[["outlined", "dice"]].mean().reset_index()


def recorded(data_hash: str) -> pd.DataFrame | None:
    """`by_patient` of the run on record; None where it was asked about other images than those hashed."""
    about, remedy = paths.resolve(RECORD) / "about.yaml", "restore it from the repository"
    if not about.is_file() or files.read_yaml(about, ExplorerError, remedy).get("data_hash") != data_hash:
        return None
    columns = ("kind", "patient", "outlined", "dice")
    table = files.read_table(about.with_name("sentences.csv"), ExplorerError, remedy, columns)
    return table.astype({"patient": str})


def compare(now: pd.DataFrame, before: pd.DataFrame | None = None) -> pd.DataFrame:
    """Means by kind of sentence, and what has changed.

    Parameters
    ----------
    now, before
        Tables of `by_patient`, of the same patients.

    Returns
    -------
    DataFrame
        One row per kind: `outlined` and `dice` (NaN for something else); with `before` also
        `outlined_before`, `outlined_change`, `outlined_low`, `outlined_high` (95 % interval of the change,
        over patients), and the same of Dice.
    """
    rows = {}
    for kind, part in now.set_index("patient").groupby("kind", sort=False):
        row = part[["outlined", "dice"]].mean().to_dict()
        if before is not None:
            then = before[before["kind"] == kind].set_index("patient")
            for name in ("outlined", "dice"):
                change = (part[name] - then[name]).dropna()
                low, high = bootstrap_interval(change) if len(change) else (math.nan, math.nan)
                row |= {f"{name}_before": then[name].mean(), f"{name}_change": change.mean()}
                row |= {f"{name}_low": low, f"{name}_high": high}
        rows[kind] = row
    return pd.DataFrame(rows).T


def told(compared: pd.DataFrame) -> str:
    """The table of `compare` as a sentence."""
    right, words, other = (compared.loc[kind] for kind in KINDS)
    changed = "dice_change" in compared
    before = f" ({other['outlined_before']:.1%} without negatives in training)" if changed else ""
    text = (
        f"Asked about something else, the model outlines something in {other['outlined']:.1%} of the answers"
        f"{before}; mean Dice is {right['dice']:.3f} under right words and {words['dice']:.3f} under other "
        "words."
    )
    if changed:
        text += (
            f" Without negatives the two were {right['dice_before']:.3f} and {words['dice_before']:.3f}"
            f" (change under right words {right['dice_change']:+.3f}, 95% interval"
            f" over patients {right['dice_low']:+.3f} to {right['dice_high']:+.3f}; one training each)."
        )
    return text
