"""What `echovlsm.study.dry_run` looks at: one function a subject, each with rows of the table of checks."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from echovlsm.study import run_costs
from echovlsm.training import strategies

if TYPE_CHECKING:
    from torch import nn

_LEARNING = ("real", "synth-PT:real-FT", "joint")  # strategies that learn from the target's pictures
_SAMPLE = 40  # pictures whose shapes are named for the length of prompts


class Check(NamedTuple):
    """One thing looked at: what, what was found, whether a run can go on with it, and what to do if not."""

    check: str
    value: str
    ok: bool
    remedy: str = ""


def _line(error: object) -> str:
    return " ".join(str(error).split())


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
    state = run.record.get("status", "nothing there yet") if run.record else "nothing there yet"
    told = {
        "started": "begun before; goes on if the settings are the same",
        "complete": "complete; not trained again if the settings are the same",
    }
    return [*found, Check("run folder", f"{run.path.name}: {told.get(state, state)}", True)]


# -- cohorts ----------------------------------------------------------------------------------------------


def _needed(values: Mapping[str, Any]) -> set[str]:
    """The official splits of the target from which a run reads pictures."""
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
        The frames that a run reads, split as it splits them and with the column `scored`; None where there
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
        return [Check("cohort", "cannot be used", False, _line(error))], None
    meta, needed = everything.attrs["meta"], _needed(values)
    found = []
    patients = everything.groupby("split")["patient"].nunique()
    told = ", ".join(f"{patients.get(split, 0)} {split}" for split in ("train", "val", "test"))
    lacking = sorted(split for split in needed if not patients.get(split, 0))
    remedy = f"there is no {' and no '.join(lacking)} patient, but the run needs some"
    if values["evaluate_on"] in lacking:
        remedy += "; where the testing patients are not on disk, evaluate_on=val scores the others"
    kind = f"{meta['name']} ({meta['kind']})"
    found.append(Check("cohort", f"{kind}: {told} patients", not lacking, remedy if lacking else ""))
    found += _absent(everything, needed)
    left_out = everything.attrs["left_out"]
    if left_out:
        found.append(Check("broken files", f"{len(left_out)} reports", False, _line(left_out[0])))

    learned = divided[divided["split"].isin(("train", "val") if values["strategy"] in _LEARNING else ())]
    scored = scored[scored["split"] == values["evaluate_on"]].assign(split="test")
    frames = pd.concat([learned.assign(scored=False), scored.assign(scored=True)], ignore_index=True)
    frames.attrs = everything.attrs
    if frames.empty:
        return found, None
    pictures = frames.drop_duplicates("image").reset_index(drop=True)
    parts = frames.groupby("split")["patient"].nunique()
    words = {"train": "to learn from", "val": "to choose the epoch by", "test": "to score"}
    told = ", ".join(f"{parts[split]} {words[split]}" for split in words if split in parts)
    odd = pictures.groupby("patient").size()
    odd = odd[odd != 4]
    remedy = f"{odd.index[0]} has {odd.iloc[0]}: copy the missing files" if len(odd) else ""
    value = f"{told}; {len(pictures)} pictures"
    value += f", {len(odd)} patients without all four" if len(odd) else ", four a patient"
    found.append(Check("patients", value, odd.empty, remedy))
    found += _masks(pictures, "structures")
    found += _metadata(values, pictures)
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


def _masks(pictures: pd.DataFrame, name: str, sample: int = 0) -> list[Check]:
    """Decode pictures and masks: all of them, or an evenly spaced sample; which structures they show."""
    from tqdm import tqdm

    without = int(pictures["labels"].isna().sum())
    if without:
        first = pictures.loc[pictures["labels"].isna(), "image"].iloc[0]
        value = f"{without} of {len(pictures)} pictures have no mask"
        return [Check(name, value, False, f"copy the masks; the first that lacks is that of {first}")]
    rows = pictures
    if 0 < sample < len(pictures):
        rows = pictures.iloc[np.linspace(0, len(pictures) - 1, sample).astype(int)]
    shown: Counter[int] = Counter()
    bar = tqdm(rows.itertuples(), total=len(rows), desc=name, disable=not sys.stderr.isatty(), leave=False)
    for row in bar:
        try:
            load_image(row)
            shown.update(int(value) for value in np.unique(load_labels(row)))
        except CohortError as error:
            return [Check(name, "a file cannot be read", False, _line(error))]
    looked = f"{len(rows)} masks" if rows is pictures else f"{len(rows)} of {len(pictures)} masks"
    missing = [structure for value, structure in STRUCTURES.items() if not shown[value]]
    few = [f"{s} in {shown[v]}" for v, s in STRUCTURES.items() if 0 < shown[v] < len(rows)]
    value = f"no {' and no '.join(missing)} in {looked}" if missing else f"all {len(STRUCTURES)} in {looked}"
    value = f"{looked}: {', '.join(few)}" if few and not missing else value
    remedy = "labels must be those of CAMUS: 1 cavity, 2 myocardium, 3 atrium" if missing else ""
    return [Check(name, value, not missing, remedy)]


def _metadata(values: Mapping[str, Any], pictures: pd.DataFrame) -> list[Check]:
    """What is not known of patients, and of the pixels' size."""

    names = ("sex", "age", "quality")
    absent = {name: int(pictures[name].isna().sum()) for name in names}
    told = ", ".join(f"{count} without {name}" for name, count in absent.items() if count)
    value = f"{told} of {len(pictures)} pictures" if told else "sex, age and quality of all"
    level, synthetic = values["prompt"], is_synthetic(pictures)
    said = attributes_of(level_for(level, synthetic), synthetic)
    wanting = [name for name in said if absent.get(name)]
    ok = not wanting or values["missing"] == "omit"
    remedy = ""
    if not ok:
        remedy = f"{level} says {' and '.join(wanting)}: bring the Info_*.cfg files, or set missing to omit"
    elif wanting:
        value += f"; {level} leaves these clauses out"
    found = [Check("metadata", value, ok, remedy)]
    unknown = int(pictures[["spacing_y", "spacing_x"]].isna().any(axis=1).sum())
    ok = values["score_size"] > 0 or not unknown
    value = f"known of {len(pictures) - unknown} of {len(pictures)} pictures"
    value += f"; scored at {values['score_size']} pixels, without it" if values["score_size"] else ""
    remedy = "" if ok else "distances in mm need it: bring pictures with their size, or set score_size to 512"
    return [*found, Check("pixel size", value, ok, remedy)]


def check_synthetic(values: Mapping[str, Any]) -> tuple[list[Check], list[pd.DataFrame]]:
    """What the strategy asks for besides the target: synthetic cohorts, and a level that they have."""
    strategy = values["strategy"]
    if not strategies.needs_synthetic(strategy):
        return [Check("strategy", f"{strategy}: needs no synthetic cohort", True)], []
    try:
        sources = strategies.read_synthetic(values)
    except (CohortError, ValueError) as error:
        remedy = f"{_line(error)}; notebook 02 draws one, or name another: synthetic=FOLDER"
        return [Check("strategy", f"{strategy}: a synthetic cohort cannot be used", False, remedy)], []
    found = []
    level = strategies.synthetic_level(values["prompt"], sources)
    if strategy == "synthetic" and level != values["prompt"]:
        remedy = (
            f"synthetic pictures have no quality and no {values['prompt']}; take P6, which adds the shape"
        )
        found.append(Check("level", values["prompt"], False, remedy))
    for frames in sources:
        meta, splits = frames.attrs["meta"], frames["split"].value_counts()
        lacking = [split for split in ("train", "val") if not splits.get(split, 0)]
        lacking = [split for split in lacking if split == "train" or strategy != "joint"]
        told = ", ".join(f"{splits.get(split, 0)} {split}" for split in ("train", "val"))
        remedy = f"there is no {' and no '.join(lacking)} picture; draw the cohort again" if lacking else ""
        value = f"{strategy} with {meta['name']} ({meta['kind']}): {told} pictures"
        found.append(Check("strategy", value, not lacking, remedy))
        wanted = frames[frames["split"].isin(("train", "val"))].reset_index(drop=True)
        if len(wanted):
            found += _masks(wanted, "synthetic masks", sample=200)
    return found, sources


def count_pictures(
    values: Mapping[str, Any], frames: pd.DataFrame | None, sources: Sequence[pd.DataFrame]
) -> dict[str, int]:
    """How many pictures a run learns from in its longest training, chooses the epoch by, and scores."""

    def count(tables: Sequence[pd.DataFrame], split: str) -> int:
        return sum(int((table["split"] == split).sum()) for table in tables)

    target, strategy = [] if frames is None else [frames], values["strategy"]
    learned = {"synthetic": sources, "joint": [*target, *sources]}.get(strategy, target)
    checked = sources if strategy == "synthetic" else target
    before = count(sources, "train") if strategy == "synth-PT:real-FT" else 0
    return {
        "train": 0 if strategy == "zeroshot" else count(learned, "train"),
        "val": 0 if strategy == "zeroshot" else count(checked, "val"),
        "test": count(target, "test"),
        "before": before,
        "before_val": count(sources, "val") if before else 0,
    }


# -- weights and words ------------------------------------------------------------------------------------


def check_weights(values: Mapping[str, Any]) -> tuple[list[Check], nn.Module | None]:
    """Load the weights as the run would, every tensor; a hub id only from what was fetched before."""

    weights, name = str(values["weights"]), values["model"]
    place: str | Path = weights
    if weights and _is_hub_id(weights):
        kept = _kept_hub_folder(weights)
        if kept is None:
            remedy = (
                f"{weights} is a hub id and not on this machine: fetch it once where there is a network "
                f"(`hf download {weights}`), or give a folder: --weights FOLDER"
            )
            return [Check("weights", "not here", False, remedy)], None
        place = kept
    try:
        model = models.load(name, place, values["encoders"], values["image_size"], values["seed"])
    except (ModelError, OSError, RuntimeError, ValueError) as error:
        remedy = _line(error)
        if name == "cris" and not paths.resolve(place).is_dir():
            remedy += "; `echovlsm weights convert` makes one from the original file"
        return [Check("weights", "cannot be loaded", False, remedy)], None
    total, learned = run_costs.count_parameters(model)
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

    Where a level names shapes, those of some pictures stand for all.

    Returns
    -------
    list of Check
        The row.
    list of str
        The prompts of a picture after the other, one for each structure; empty where they cannot be written.
    """

    level, texts, part = values["prompt"], [], False
    tables = [(table, "synthetic") for table in sources] + ([] if frames is None else [(frames, "real")])
    try:
        for table, word in tables:
            own = strategies.synthetic_level(level, [table])
            rows = table.drop_duplicates("image")
            if own in ("P6", "P7") and len(rows) > _SAMPLE:  # P6 of synthetic cohorts names shapes
                part, at = True, np.linspace(0, len(rows) - 1, _SAMPLE).astype(int)
                rows = rows.iloc[at]
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
        return [Check("prompts", level, False, _line(error))], []
    rows, positions = _text_limits(model)
    longest = int(mask.sum(dim=1).max())
    value = f"{level}: {len(ids)} different, the longest {longest} of {positions} tokens"
    value += f" (of {_SAMPLE} pictures a cohort)" if part else ""
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


# -- costs ------------------------------------------------------------------------------------------------


def check_costs(
    values: Mapping[str, Any],
    model: nn.Module,
    texts: Sequence[str],
    counts: Mapping[str, int],
    room: float,
    held: float,
    batches: tuple[int, int] | None = (1, 2),
) -> list[Check]:
    """Disk, memory and time.

    Parameters
    ----------
    values, model, texts
        Of `settings`, `check_weights` and `check_prompts`.
    counts
        Of `count_pictures`.
    room
        Bytes that the cache may take.
    held
        Bytes that the process holds without the model.
    batches
        Batch sizes at which steps are measured; None measures none.
    """

    # as `echovlsm.training.features` decides
    reuse = values["encoders"] == "frozen" and not values["augment"]
    features = 0.0
    if reuse:
        one = run_costs.feature_bytes(model)
        features = sum(one * counts[part] for part in ("train", "val") if one * counts[part] <= room)
        reuse = one * counts["train"] <= room
    pictures = sum(counts.values())
    found = [Check("disk", *run_costs.disk_needed(values, model, pictures, features))]
    if values["strategy"] == "zeroshot":
        return [*found, Check("time", f"nothing to train, {counts['test']} pictures to score", True)]
    if batches is None:
        return found
    on_cpu, precision, how = run_costs.device_type() == "cpu", values["mixed_precision"], ""
    if on_cpu and precision == "fp16":  # refused above; what the machine can do is measured all the same
        precision, how = "no", " (measured in float32)"
    elif not on_cpu:
        how = " (from small batches, which use a GPU badly)"
    try:
        table = run_costs.measure_steps(model, texts, batches, mixed_precision=precision, reuse=reuse)
    except (RuntimeError, ValueError) as error:
        remedy = f"a training step of {' or '.join(map(str, batches))} pictures failed: {_line(error)}"
        return [*found, Check("memory", "not measured", False, remedy)]
    most = max(counts["train"], counts["before"], 1)
    batch = min(values["batch_size"], most)
    held = held + 2 * pictures * model.image_size**2 if on_cpu else 0.0
    there = run_costs.device_memory()
    value, ok, remedy = run_costs.memory_needed(table, batch, held, there, model)
    found.append(Check("memory", f"{value}{how if on_cpu else ''}", ok, remedy))
    parts = [(counts["train"], counts["val"])]
    if counts["before"]:
        parts.insert(0, (counts["before"], counts["before_val"]))
    epochs, patience = values["epochs"], values["patience"]
    if values["steps"]:  # what lies between two looks stands for an epoch
        batch, epochs = values["batch_size"], values["steps"] // values["look_every"]
        parts, patience = [(values["look_every"] * batch, check) for _, check in parts], epochs
    told = run_costs.time_needed(table, batch, parts, epochs, patience)
    return [*found, Check("time", f"{told}{how}", True)]
