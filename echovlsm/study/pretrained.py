"""The run on synthetic images that a finetuning starts from: found among the runs by its content, or made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm import models
from echovlsm.base import RunFolder, paths, provenance
from echovlsm.training import strategies

_LEARNED: tuple[str, ...] = (
    *("model", "encoders", "prompt", "variant", "missing", "augment", "epochs", "keep", "batch_size"),
    *("steps", "look_every"),
    *("learning_rate", "weight_decay", "dice_weight", "ce_weight", "schedule", "plateau_factor"),
    *("plateau_patience", "patience", "mixed_precision", "seed", "image_size"),
)
"""Parameters that decide what a run on given images and weights learns."""


def pretraining_content(parameters: Mapping[str, Any], sources: Sequence[pd.DataFrame]) -> str:
    """Short hash of all that decides what a run of the strategy `synthetic` learns."""
    learned = {name: parameters[name] for name in _LEARNED}
    if parameters.get("negatives"):  # without them the hash is that of runs before there were any
        learned["negatives"] = parameters["negatives"]
    learned["prompt"] = strategies.synthetic_level(parameters["prompt"], sources)
    learned["starts from"] = provenance.weights_hash(parameters["weights"])
    learned["learns from"] = strategies.data_hashes("synthetic", pd.DataFrame(), sources)
    learned["code"] = provenance.code_hash("training")
    return hashlib.sha256(json.dumps(learned, sort_keys=True).encode()).hexdigest()[:16]


def find_run(content: str, folder: str | Path = "runs") -> RunFolder | None:
    """A complete run in `folder`, at any depth, whose `content` is the one asked for and that has weights."""
    for path in sorted(paths.resolve(folder).rglob("run.yaml")):
        run = RunFolder(path.parent)
        if run.record.get("content") == content and run.complete and (run / "weights").is_dir():
            return run
    return None


def pretrained_run(
    parameters: Mapping[str, Any], sources: Sequence[pd.DataFrame], record: RunFolder
) -> RunFolder:
    """The run on synthetic images from which a finetuning starts: found by content, or else trained.

    Parameters
    ----------
    parameters
        Of the finetuning notebook; the synthetic run has the same but for the strategy and, at P7, the level.
    sources
        Frames of the synthetic cohorts.
    record
        The finetuning's run folder. A run that has to be trained goes into its folder ``pretraining``, where
        an interrupted one is resumed.
    """
    content = pretraining_content(parameters, sources)
    found = find_run(content)
    if found is not None:
        return found
    level = strategies.synthetic_level(parameters["prompt"], sources)
    changed = {**parameters, "strategy": "synthetic", "prompt": level, "run": ""}
    run = RunFolder(record / "pretraining")
    meta = sources[0].attrs["meta"]
    about = {"strategy": "synthetic", "cohort": meta["name"], "kind": meta["kind"], "content": content}
    about |= strategies.data_hashes("synthetic", pd.DataFrame(), sources)
    run.start(changed, redo=True, weights_hash=provenance.weights_hash(parameters["weights"]), **about)
    net = models.load(*(parameters[name] for name in ("model", "weights", "encoders", "image_size", "seed")))
    options = {"missing": parameters["missing"], "seed": parameters["seed"]}
    more = {"variant": parameters["variant"], "augment": parameters["augment"], **options}
    more["negatives"] = parameters.get("negatives", 0)
    train = strategies.strategy_triplets("synthetic", "train", pd.DataFrame(), sources, level, net, **more)
    check = strategies.strategy_triplets(
        "synthetic", "val", pd.DataFrame(), sources, level, net, variant="0", **options
    )
    history = strategies.train_run(run, net, train, check, parameters)
    run.finish(**strategies.training_summary(history, parameters["keep"]))
    run.discard("state")
    return run
