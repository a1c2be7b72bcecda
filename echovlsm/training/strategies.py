"""The study's strategies: which images a model learns from, and which weights it starts from.

- `zeroshot`: no training.
- `synthetic`: synthetic images only.
- `real`: images of the target cohort only.
- `synth-PT:real-FT`: a `synthetic` run goes on with images of the target cohort.
- `joint` (ours; the paper's section 5 proposes it): both at once, with the source named in the prompt.

The target is the cohort on which models are scored. It is called real as in the paper, whatever its kind: at
demo scale it is the phantom. Any cohort, or several, can be the synthetic source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from echovlsm.base import RunFolder, paths
from echovlsm.cohort import cohort_hash, is_synthetic, read_cohort
from echovlsm.models import REFERENCES, adapters
from echovlsm.prompts import level_for, prompts_for
from echovlsm.training.loop import fit
from echovlsm.training.triplets import Triplets, hold_out, make_triplets

if TYPE_CHECKING:
    from torch import nn

STRATEGIES: tuple[str, ...] = ("zeroshot", "synthetic", "real", "synth-PT:real-FT", "joint")
"""The paper's four, and ours."""

SOURCE_WORDS: dict[str, str] = {"real": "Real picture.", "synthetic": "Synthetic picture."}
"""What a joint prompt says of an image's source, after the paper's own words."""


class StrategyError(ValueError):
    """A strategy that cannot be carried out with the given level, cohorts or weights."""


# -- images ---------------------------------------------------------------------------------------------


def limit_patients(frames: pd.DataFrame, limits: Mapping[str, int], seed: int) -> pd.DataFrame:
    """Keep a random part of the patients of each split.

    Parameters
    ----------
    frames
        Frames table.
    limits
        Split to number of patients; 0, or a split that is not named: all of them.
    seed
        Seed of the draw. For one seed the smaller of two parts lies within the larger.

    Raises
    ------
    StrategyError
        A number is negative or more than there are.
    """
    keep = pd.Series(True, index=frames.index)
    for number, (split, count) in enumerate(limits.items()):
        if count == 0:
            continue
        patients = np.sort(frames.loc[frames["split"] == split, "patient"].unique())
        if not 0 < count <= len(patients):
            raise StrategyError(f"{split}: {count} patients of {len(patients)} cannot be taken; 0 takes all")
        drawn = np.random.default_rng((seed, number)).permutation(patients)[:count]
        keep &= (frames["split"] != split) | frames["patient"].isin(drawn)
    return frames[keep].reset_index(drop=True)


def read_target(parameters: Mapping[str, Any]) -> pd.DataFrame:
    """Frames of the target cohort as a training notebook's parameters ask for them.

    Of `parameters` are read: `cohort, cohort_split, holdout, holdout_seed, train_patients, val_patients` and
    `seed`.
    """
    folder = paths.resolve(parameters["cohort"])
    return divide_target(read_cohort(folder, split=parameters["cohort_split"]), parameters)


def divide_target(frames: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
    """The frames of a whole target cohort, as `read_target` divides and limits them."""
    frames = hold_out(frames, parameters["holdout"], parameters["holdout_seed"])
    limits = {"train": parameters["train_patients"], "val": parameters["val_patients"]}
    return limit_patients(frames, limits, parameters["seed"])


def read_synthetic(parameters: Mapping[str, Any]) -> list[pd.DataFrame]:
    """Frames of each synthetic source (`synthetic`: folders, separated by commas), limited as asked.

    Of `parameters` are read: `synthetic, synthetic_patients, val_patients, seed`.

    Raises
    ------
    StrategyError
        No source is named.
    """
    folders = [name.strip() for name in parameters["synthetic"].split(",") if name.strip()]
    if not folders:
        raise StrategyError("synthetic: no cohort is named; give a folder, or several separated by commas")
    limits = {"train": parameters["synthetic_patients"], "val": parameters["val_patients"]}
    return [limit_patients(read_cohort(paths.resolve(name)), limits, parameters["seed"]) for name in folders]


def needs_synthetic(strategy: str) -> bool:
    """Whether a strategy reads a synthetic cohort."""
    return strategy in ("synthetic", "synth-PT:real-FT", "joint")


def synthetic_level(level: str, sources: Sequence[pd.DataFrame]) -> str:
    """The level at which a model is pretrained that will be finetuned at `level` (paper, section 2.2)."""
    return level_for(level, all(map(is_synthetic, sources)))


def data_hashes(strategy: str, target: pd.DataFrame, sources: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Hashes of the images that a strategy's training reads, for `run.yaml`."""
    found = {} if strategy == "synthetic" else {"data_hash": cohort_hash(target)}
    if sources:
        found["synthetic_hash"] = "+".join(cohort_hash(frames) for frames in sources)
    return found


# -- triplets -------------------------------------------------------------------------------------------


def strategy_triplets(
    strategy: str,
    split: str,
    target: pd.DataFrame,
    sources: Sequence[pd.DataFrame],
    level: str,
    model: object,
    **options: Any,
) -> Triplets:
    """Triplets to learn from (``train``), to look at while training (``val``) or to score (``test``).

    Looks are at images of the kind that is learned from; at target images if both kinds are. Scores are
    always those of target images.

    Parameters
    ----------
    strategy
        One of `STRATEGIES`.
    split
        Split of the frames.
    target, sources
        Frames tables (`read_target`, `read_synthetic`).
    level
        Prompt level; synthetic images have P6 where target images have P7.
    model
        Gives tokenizer and image size.
    options
        Of `triplets.make_triplets`: `variant, missing, seed, augment, negatives, progress`. The reference
        without words gets no negatives.

    Raises
    ------
    StrategyError
        An unknown strategy, or level P7 of synthetic images only.
    """
    if strategy not in STRATEGIES:
        raise StrategyError(f"strategy: {strategy!r} is not known; choose one of {', '.join(STRATEGIES)}")
    if strategy == "synthetic" and synthetic_level(level, sources) != level:
        raise StrategyError(
            f"prompt: a synthetic cohort has no {level}: its images have no quality; take P6 (P5 + shape)"
        )
    if getattr(model, "name", "") in REFERENCES:
        options.pop("negatives", None)
    if strategy == "joint":
        parts = [(target, "real")]
        if split == "train":
            parts += [(frames, "synthetic") for frames in sources]
    elif strategy == "synthetic" and split != "test":
        parts = [(frames, None) for frames in sources]
    else:
        parts = [(target, None)]
    chosen = [(frames[frames["split"] == split], word) for frames, word in parts]
    if len(chosen) == 1 and chosen[0][1] is None:
        return make_triplets(chosen[0][0], level, model, **options)
    return combine(chosen, level, model, **options)


def combine(
    parts: Sequence[tuple[pd.DataFrame, str | None]],
    level: str,
    model: Any,
    *,
    missing: str = "error",
    **options: Any,
) -> Triplets:
    """Triplets of several frames tables, whose prompts name the source where a word is given.

    Parameters
    ----------
    parts
        Frames with their key of `SOURCE_WORDS`, or None.
    level, model, missing, options
        As for `strategy_triplets`.
    """
    tables, prompts = [], []
    for number, (frames, word) in enumerate(parts):
        own = level_for(level, is_synthetic(frames))
        written = prompts_for(frames, own, missing).assign(level=level)
        if word is not None:
            written["text"] = (written["text"] + f" {SOURCE_WORDS[word]}").str.strip()
        # two cohorts may have patients of one name
        for table, target in ((frames, tables), (written, prompts)):
            target.append(table.assign(patient=f"{number}:" + table["patient"].astype("string")))
    together = pd.concat(tables, ignore_index=True)
    return Triplets(
        together,
        pd.concat(prompts, ignore_index=True),
        model.tokenize,
        model.image_size,
        **options,
    )


# -- training -------------------------------------------------------------------------------------------


def train_run(
    record: RunFolder, net: nn.Module, train: Triplets, check: Triplets, parameters: Mapping[str, Any]
) -> pd.DataFrame:
    """Train a model in its run folder, or go on where it was interrupted; history and weights stay there.

    Parameters
    ----------
    record
        The run's folder, started.
    net
        The model, which ends with the weights asked for; low-rank adapters are merged into those on disk.
    train, check
        Triplets to learn from, and to look at while training.
    parameters
        Of a training notebook (`fit_settings`).

    Returns
    -------
    DataFrame
        As of `fit`.
    """
    history = fit(net, train, check, record / "state", **fit_settings(parameters))
    record.write_table("history.csv", history)
    record.save_weights(adapters.merge_lora(net))
    return history


def fit_settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook that `training.fit` takes."""
    names = (
        "epochs steps look_every keep batch_size learning_rate weight_decay dice_weight ce_weight schedule"
    )
    names += " plateau_factor plateau_patience patience mixed_precision seed"
    return {name: parameters[name] for name in names.split()}


def training_summary(history: pd.DataFrame, keep: str) -> dict[str, Any]:
    """What `run.yaml` tells of a training: epochs, the one whose weights were kept, its Dice, minutes."""
    kept = history.loc[history["val_dice"].idxmax()] if keep == "best" else history.iloc[-1]
    return {
        "epochs": len(history),
        "kept_epoch": int(kept["epoch"]),
        "val_dice": float(kept["val_dice"]),
        "training_minutes": float(history["seconds"].sum() / 60),
    }
