"""What the dry run looks at: one function a subject, each with rows of the table of checks."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES, models
from echovlsm.base import RunFolder, paths, provenance
from echovlsm.cohort import (
    CohortError,
    is_synthetic,
    load_image,
    load_labels,
    read_cohort,
)
from echovlsm.models import ModelError
from echovlsm.prompts import attributes_of, level_for, prompts_for
from echovlsm.study.run_costs import Check, count_parameters, line
from echovlsm.training import strategies

if TYPE_CHECKING:
    from torch import nn

_LEARNING = ("real", "synth-PT:real-FT", "joint")  # strategies that learn from the target's images
_SAMPLE = 40  # images whose shapes are named for the length of prompts
_DECODED = 200  # masks of a synthetic cohort that are decoded


def _spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spaced."""
    if len(table) <= count:
        return table
    return table.iloc[np.linspace(0, len(table) - 1, count).astype(int)]


# -- machine ----------------------------------------------------------------------------------------------


def check_machine(values: Mapping[str, Any]) -> list[Check]:
    """Device and precision, and what lies in the run folder already."""
    found = [Check("device", provenance.device_name(), True)]
    precision = values["mixed_precision"]
    try:
        provenance.check_precision(precision)
        found.append(Check("precision", precision, True))
    except provenance.RunError as error:
        found.append(Check("precision", precision, False, str(error)))
    names = ("profile", "cohort", "model", "prompt", "strategy", "encoders", "seed")
    run = RunFolder(values["run"] or paths.run_path(*(values[name] for name in names)))
    told = {
        "": "nothing there yet",
        "started": "begun before; goes on if the settings are the same",
        "complete": "complete; not trained again if the settings are the same",
    }
    state = run.record.get("status", "")
    return [*found, Check("run folder", f"{run.path.name}: {told.get(state, state)}", True)]


# -- cohorts ----------------------------------------------------------------------------------------------


def _needed(values: Mapping[str, Any]) -> set[str]:
    """The official splits of the target from which a run reads images."""
    needed = {values["evaluate_on"]}
    if values["strategy"] in _LEARNING:
        needed |= {"train"} if values["holdout"] else {"train", "val"}
    return needed


def check_cohort(values: Mapping[str, Any]) -> tuple[list[Check], pd.DataFrame | None]:
    """The target cohort: readable, complete, every structure drawn, what is known of patients and pixels.

    Returns
    -------
    list of Check
        All that was looked at.
    DataFrame or None
        The frames that a run reads, split as it splits them, those to be scored as ``test``; None where there
        are none.
    """
    folder = paths.resolve(values["cohort"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            everything = read_cohort(folder, split=values["cohort_split"])
        divided = strategies.divide_target(everything, values)
        limits = {values["evaluate_on"]: values["test_patients"]}
        scored = strategies.limit_patients(everything, limits, 0)
    except (CohortError, ValueError) as error:
        return [Check("cohort", "cannot be used", False, line(error))], None
    meta, needed = everything.attrs["meta"], _needed(values)
    patients = everything.groupby("split")["patient"].nunique()
    told = ", ".join(f"{patients.get(split, 0)} {split}" for split in ("train", "val", "test"))
    lacking = sorted(split for split in needed if not patients.get(split, 0))
    remedy = f"there is no {' and no '.join(lacking)} patient, but the run needs some" if lacking else ""
    if values["evaluate_on"] in lacking:
        remedy += "; where the testing patients are not on disk, evaluate_on=val scores the others"
    kind = f"{meta['name']} ({meta['kind']})"
    found = [Check("cohort", f"{kind}: {told} patients", not lacking, remedy)]
    found += _absent(everything, needed)
    left_out = everything.attrs["left_out"]
    if left_out:
        found.append(Check("broken files", f"{len(left_out)} reports", False, line(left_out[0])))

    learned = divided[divided["split"].isin(("train", "val") if values["strategy"] in _LEARNING else ())]
    scored = scored[scored["split"] == values["evaluate_on"]].assign(split="test")
    frames = pd.concat([learned, scored], ignore_index=True)
    frames.attrs = everything.attrs
    if frames.empty:
        return found, None
    images = frames.drop_duplicates("image").reset_index(drop=True)
    parts = frames.groupby("split")["patient"].nunique()
    words = {"train": "to learn from", "val": "to choose the epoch by", "test": "to score"}
    told = ", ".join(f"{parts[split]} {words[split]}" for split in words if split in parts)
    each = images.groupby("patient").size()
    odd = each[each != 4]
    remedy = f"{odd.index[0]} has {odd.iloc[0]}: copy the missing files" if len(odd) else ""
    value = f"{told}; {len(images)} images"
    value += f", {len(odd)} patients without all four" if len(odd) else ", four a patient"
    found.append(Check("patients", value, odd.empty, remedy))
    found.append(_masks(images, "structures"))
    found += _metadata(values, images)
    return found, frames


def _absent(everything: pd.DataFrame, needed: set[str]) -> list[Check]:
    """Patients that a split file lists and whose folder is not there."""
    absent = everything.attrs["absent"]
    if not absent:
        return [Check("absent patients", "none", True)]
    counts = Counter(absent.values())
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    ok = not needed & set(counts)
    remedy = "" if ok else f"the run needs them; copy their folders, the first is {next(iter(absent))}"
    return [Check("absent patients", f"{told} listed without a folder", ok, remedy)]


def _masks(images: pd.DataFrame, name: str, most: int | None = None) -> Check:
    """Decode images and masks, all or at most so many: which structures do they show?"""
    from tqdm import tqdm

    without = images[images["labels"].isna()]
    if len(without):
        value = f"{len(without)} of {len(images)} images have no mask"
        remedy = f"copy the masks; the first that lacks is that of {without['image'].iloc[0]}"
        return Check(name, value, False, remedy)
    rows = _spread(images, most or len(images))
    shown: Counter[int] = Counter()
    for row in tqdm(rows.itertuples(), total=len(rows), desc=name, disable=None, leave=False):
        try:
            load_image(row)
            shown.update(int(value) for value in np.unique(load_labels(row)))
        except CohortError as error:
            return Check(name, "a file cannot be read", False, line(error))
    looked = f"{len(rows)} masks" if len(rows) == len(images) else f"{len(rows)} of {len(images)} masks"
    missing = [structure for value, structure in STRUCTURES.items() if not shown[value]]
    if missing:
        remedy = "labels must be those of CAMUS: 1 cavity, 2 myocardium, 3 atrium"
        return Check(name, f"no {' and no '.join(missing)} in {looked}", False, remedy)
    few = ", ".join(f"{s} in {shown[v]}" for v, s in STRUCTURES.items() if shown[v] < len(rows))
    return Check(name, f"{looked}: {few}" if few else f"all {len(STRUCTURES)} in {looked}", True)


def _metadata(values: Mapping[str, Any], images: pd.DataFrame) -> list[Check]:
    """What is not known of patients, and of the pixels' size."""
    absent = {name: int(images[name].isna().sum()) for name in ("sex", "age", "quality")}
    told = ", ".join(f"{count} without {name}" for name, count in absent.items() if count)
    value = f"{told} of {len(images)} images" if told else "sex, age and quality of all"
    level, synthetic = values["prompt"], is_synthetic(images)
    wanting = [name for name in attributes_of(level_for(level, synthetic), synthetic) if absent.get(name)]
    ok = not wanting or values["missing"] == "omit"
    remedy = ""
    if not ok:
        remedy = f"{level} says {' and '.join(wanting)}: bring the Info_*.cfg files, or set missing to omit"
    elif wanting:
        value += f"; {level} leaves these clauses out"
    metadata = Check("metadata", value, ok, remedy)
    unknown = int(images[["spacing_y", "spacing_x"]].isna().any(axis=1).sum())
    ok = values["score_size"] > 0 or not unknown
    value = f"known of {len(images) - unknown} of {len(images)} images"
    value += f"; scored at {values['score_size']} pixels, without it" if values["score_size"] else ""
    remedy = "" if ok else "distances in mm need it: bring images with their size, or set score_size to 512"
    return [metadata, Check("pixel size", value, ok, remedy)]


def check_synthetic(values: Mapping[str, Any]) -> tuple[list[Check], list[pd.DataFrame]]:
    """What the strategy asks for besides the target: synthetic cohorts, and a level that they have."""
    strategy = values["strategy"]
    if not strategies.needs_synthetic(strategy):
        return [Check("strategy", f"{strategy}: needs no synthetic cohort", True)], []
    try:
        sources = strategies.read_synthetic(values)
    except (CohortError, ValueError) as error:
        remedy = f"{line(error)}; notebook 02 draws one, or name another: synthetic=FOLDER"
        return [Check("strategy", f"{strategy}: a synthetic cohort cannot be used", False, remedy)], []
    found = []
    level = strategies.synthetic_level(values["prompt"], sources)
    if strategy == "synthetic" and level != values["prompt"]:
        remedy = f"synthetic images have no quality and no {values['prompt']}; take P6, which adds the shape"
        found.append(Check("level", values["prompt"], False, remedy))
    for frames in sources:
        meta, splits = frames.attrs["meta"], frames["split"].value_counts()
        asked = ("train",) if strategy == "joint" else ("train", "val")
        lacking = [split for split in asked if not splits.get(split, 0)]
        told = ", ".join(f"{splits.get(split, 0)} {split}" for split in ("train", "val"))
        remedy = f"there is no {' and no '.join(lacking)} image; draw the cohort again" if lacking else ""
        value = f"{strategy} with {meta['name']} ({meta['kind']}): {told} images"
        found.append(Check("strategy", value, not lacking, remedy))
        wanted = frames[frames["split"].isin(("train", "val"))].reset_index(drop=True)
        if len(wanted):
            found.append(_masks(wanted, "synthetic masks", _DECODED))
    return found, sources


def count_images(
    values: Mapping[str, Any], frames: pd.DataFrame | None, sources: Sequence[pd.DataFrame]
) -> dict[str, int]:
    """How many images a run learns from in its longest training, chooses the epoch by, and scores."""

    def count(tables: Sequence[pd.DataFrame], split: str) -> int:
        return sum(int((table["split"] == split).sum()) for table in tables)

    target, strategy = [] if frames is None else [frames], values["strategy"]
    trained = strategy != "zeroshot"
    learned = {"synthetic": sources, "joint": [*target, *sources]}.get(strategy, target)
    checked = sources if strategy == "synthetic" else target
    before = sources if strategy == "synth-PT:real-FT" else []
    return {
        "train": count(learned, "train") if trained else 0,
        "val": count(checked, "val") if trained else 0,
        "test": count(target, "test"),
        "before": count(before, "train"),
        "before_val": count(before, "val"),
    }


# -- weights and words ------------------------------------------------------------------------------------


def check_weights(values: Mapping[str, Any]) -> tuple[list[Check], nn.Module | None]:
    """Load the weights as the run would, every tensor; a hub id only from what was fetched before."""
    weights, name = str(values["weights"]), values["model"]
    place: str | Path | None = weights
    if weights and _is_hub_id(weights):
        place = _kept_hub_folder(weights)
        if place is None:
            remedy = (
                f"{weights} is a hub id and not on this machine: fetch it once where there is a network "
                f"(`hf download {weights}`), or give a folder: --weights FOLDER"
            )
            return [Check("weights", "not here", False, remedy)], None
    try:
        model = models.load(name, place, values["encoders"], values["image_size"], values["seed"])
    except (ModelError, OSError, RuntimeError, ValueError) as error:
        remedy = line(error)
        if name == "cris" and not paths.resolve(place).is_dir():
            remedy += "; `echovlsm weights convert` makes one from the original file"
        return [Check("weights", "cannot be loaded", False, remedy)], None
    total, learned = count_parameters(model)
    told = f"{name}, {total / 1e6:.1f} million parameters, {learned / 1e6:.1f} of them learn"
    told += f" (encoders {values['encoders']}), {model.image_size} pixels"
    return [Check("weights", told, True)], model


def _is_hub_id(weights: str) -> bool:
    """As the models decide: whatever is no folder and looks like no path."""
    path = paths.resolve(weights)
    return not (
        path.exists() or weights.startswith((".", "/", "~", "data/", "runs/")) or weights.count("/") > 1
    )


def _kept_hub_folder(repository: str) -> Path | None:
    """Where a hub repository that was fetched before lies on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def check_prompts(
    values: Mapping[str, Any], frames: pd.DataFrame | None, sources: Sequence[pd.DataFrame], model: nn.Module
) -> tuple[list[Check], list[str]]:
    """Write and tokenise all prompts of the run: none is too long, none has a token the model does not know.

    Where a level names shapes, those of some images stand for all.

    Returns
    -------
    list of Check
        The row.
    list of str
        The prompts of an image after the other, one for each structure; empty where they cannot be written.
    """
    level, texts, part = values["prompt"], [], False
    tables = [(table, "synthetic") for table in sources] + ([] if frames is None else [(frames, "real")])
    try:
        for table, word in tables:
            own = strategies.synthetic_level(level, [table])
            rows = table.drop_duplicates("image")
            if own in ("P6", "P7"):  # P6 of synthetic cohorts names shapes
                part = part or len(rows) > _SAMPLE
                rows = _spread(rows, _SAMPLE)
            rows = rows.reset_index(drop=True)
            rows.attrs = table.attrs
            written = prompts_for(rows, own, values["missing"])
            written = written[written["structure"].isin(STRUCTURES.values())]
            own_texts = written.sort_values(["patient", "view", "phase", "variant"], kind="stable")["text"]
            if values["strategy"] == "joint":
                own_texts = (own_texts + f" {strategies.SOURCE_WORDS[word]}").str.strip()
            texts += own_texts.tolist()
        ids, mask = model.tokenize(list(dict.fromkeys(texts)))
    except (ValueError, RuntimeError) as error:
        return [Check("prompts", level, False, line(error))], []
    rows, positions = _text_limits(model)
    longest = int(mask.sum(dim=1).max())
    value = f"{level}: {len(ids)} different, the longest {longest} of {positions} tokens"
    value += f" (of {_SAMPLE} images a cohort)" if part else ""
    highest = int(ids.max())
    if rows and highest >= rows:
        remedy = f"token {highest} has no row among {rows}; give weights and tokenizer that belong together"
        return [Check("prompts", value, False, remedy)], []
    return [Check("prompts", value, True)], texts


def _text_limits(model: nn.Module) -> tuple[int, int]:
    """Rows of the token embedding, and the most tokens of a prompt; 0 for a model that reads no words."""
    if model.name == "clipseg":
        text = model.segmenter.config.text_config
        return text.vocab_size, text.max_position_embeddings
    if model.name == "cris":
        return model.config.vocab_size, model.config.word_len
    return 0, 1
