"""The queue of runs on real hearts: one command starts it, goes on with it, and says what is left.

    echovlsm study --cohort /path/to/CAMUS_public

Each finished run is a file of its own in `data/results/camus/study`: parameters, patients, looks and scores,
no image and no weights. Several of these commands may work on one queue at a time. What is not passed on
(denoisers, synthetic cohorts, weights) lies in `runs/study` and is made again where it is missing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from echovlsm import models
from echovlsm.base import files, paths, provenance
from echovlsm.cohort import cohort_hash, load_labels, read_cohort
from echovlsm.evaluation import predictions, score_table
from echovlsm.phantom import versions, write_phantom_cohort
from echovlsm.study.plan import (
    ALL,
    BOTH,
    HELD_OUT,
    PHANTOM,
    PHANTOMS,
    SDM,
    VALIDATION,
    WEIGHTS,
    Cycle,
    Recipe,
    Run,
    Source,
    blocks,
    digest,
    study,
)
from echovlsm.synthesis import sample_cohort, trial
from echovlsm.training import Triplets, fit, hold_out, make_triplets, predict, strategies

if TYPE_CHECKING:
    from torch import nn

SCORES: dict[str, int] = {"dice": 4, "hausdorff95": 1, "assd": 2}
"""What a record says of each mask, and in how many decimals; distances in pixels of the compared masks."""

_ABOUT = ("block", "arm", "model", "encoders", "prompt", "patients", "seed", "choice")

LEFT_OUT: tuple[str, ...] = ("sex", "age", "quality")
"""Words that are left out: the working copy of CAMUS has them for five patients only."""

SYNTHETIC_IMAGES = 4 * ALL
"""Images of every synthetic source: as many as there are annotated ones."""

SDM_STEPS, SDM_SETTINGS = 900, {"batch_size": 16, "learning_rate": 6e-4}
SAMPLER, SAMPLING_STEPS = "sde-dpm-solver++", 16
SDM_WEIGHTS = "data/weights/sdm-tiny"
PHANTOM_SEED, PHANTOM_SIZE = 17, 128

SECONDS_A_STEP: dict[str, float] = {"cris": 0.15, "clipseg": 0.2, "unet": 0.06}
"""Of one thread, where no record tells."""


class QueueError(ValueError):
    """A cohort, block or folder that cannot be used; the message names the remedy."""


class Study:
    """The images, and the folder in which the runs are made.

    Parameters
    ----------
    cohort
        Folder of CAMUS.
    folder
        Where cycles, denoisers and synthetic cohorts lie.
    records
        Where records lie.
    recipe
        By default the study's.

    Raises
    ------
    QueueError
        The cohort has no training or no validation patients with masks.
    """

    def __init__(
        self, cohort: str | Path, folder: str | Path, records: str | Path, recipe: Recipe | None = None
    ) -> None:
        recipe = recipe or Recipe()
        self.folder, self.records = paths.resolve(folder), paths.resolve(records)
        frames = read_cohort(paths.resolve(cohort))
        meta = frames.attrs["meta"]
        frames = frames[frames["labels"].notna()].reset_index(drop=True)
        frames[list(LEFT_OUT)] = pd.NA
        divided = hold_out(frames, recipe.holdout, recipe.holdout_seed)
        self.parts = {
            "train": divided[divided["split"] == "train"],
            HELD_OUT: divided[divided["split"] == "val"],
            VALIDATION: frames[frames["split"] == "val"],
        }
        for name, part in self.parts.items():
            if part.empty:
                raise QueueError(f"--cohort: {cohort} has no {name} patient with a mask")
            part = part.reset_index(drop=True)
            part.attrs["meta"] = meta
            self.parts[name] = part
        self.cohort = meta["name"]
        self.data_hash = cohort_hash(frames)
        self._triplets: dict[tuple[Any, ...], Triplets] = {}
        self._phantoms: dict[str, pd.DataFrame] = {}

    # -- what cycles learn from -----------------------------------------------------------------------

    def real(self, source: Source) -> pd.DataFrame:
        """The images of a few, or all, training patients."""
        pool = self.parts["train"]
        count = 0 if source.patients >= pool["patient"].nunique() else source.patients
        few = strategies.limit_patients(pool, {"train": count}, source.seed)
        few.attrs = pool.attrs
        return few

    def phantom(self, kind: str = PHANTOM) -> pd.DataFrame:
        """A phantom cohort, a key of `PHANTOMS`, drawn where it is missing."""
        if kind in self._phantoms:
            return self._phantoms[kind]
        root, (version, without) = self.folder / "cohorts" / kind, PHANTOMS[kind]
        with files.only_one(self.folder / "cohorts", wait=600):
            if not root.is_dir():
                how = {"seed": PHANTOM_SEED, "size": PHANTOM_SIZE, "splits": (1.0, 0.0, 0.0), "workers": 1}
                write_phantom_cohort(root, SYNTHETIC_IMAGES // 4, **how, version=version, without=without)
        frames = read_cohort(root)
        versions.require_phantom(frames.attrs["meta"], version, without, root)
        return self._phantoms.setdefault(kind, frames)

    def diffusion(self, source: Source) -> pd.DataFrame:
        """Images drawn from the perturbed labels of a few patients, by a denoiser that learned from them."""
        learned = Source("real", source.patients, source.seed)
        root = self.folder / "cohorts" / f"{SDM}-{learned.name}"
        if not root.is_dir():
            real = self.real(learned)
            seen = pd.concat([real, self.parts[HELD_OUT]], ignore_index=True)
            seen.attrs = real.attrs
            work = self.folder / "denoisers" / learned.name
            settings = {"steps": SDM_STEPS, **SDM_SETTINGS, "seed": source.seed}
            weights = trial.denoiser_for(SDM_WEIGHTS, work, seen, "weights", **settings)
            how = {"scheduler": SAMPLER, "steps": SAMPLING_STEPS, "seed": source.seed, "splits": ("train",)}
            sample_cohort(root, real, weights, variants=-(-SYNTHETIC_IMAGES // len(real)), **how)
        frames = read_cohort(root)
        # the first variants of every label, and of the last variant as many as are needed
        frames = frames.assign(variant=frames["patient"].str.rsplit("-", n=1).str[-1].astype(int))
        kept = frames.sort_values("variant", kind="stable").head(SYNTHETIC_IMAGES).drop(columns="variant")
        kept = kept.reset_index(drop=True)
        kept.attrs = frames.attrs
        return kept

    def sources(self, source: Source) -> list[tuple[pd.DataFrame, str | None]]:
        """Frames of a source, with the word that a joint prompt has for them."""
        drawn = Source(SDM, source.patients, source.seed)
        if source.kind == "real":
            return [(self.real(source), None)]
        if source.kind in PHANTOMS:
            return [(self.phantom(source.kind), None)]
        if source.kind == SDM:
            return [(self.diffusion(drawn), None)]
        if source.kind == BOTH:
            return [(self.diffusion(drawn), None), (self.phantom(), None)]
        if source.kind == "joint":
            return [(self.real(Source("real", ALL)), "real"), (self.diffusion(drawn), "synthetic")]
        raise QueueError(f"source: {source.kind!r} is not known")

    def learning(self, cycle: Cycle, model: nn.Module, recipe: Recipe) -> Triplets:
        """What a cycle learns from."""
        parts = self.sources(cycle.source)
        how = {"missing": "omit", "seed": cycle.seed, "augment": recipe.augment, "variant": "random"}
        if len(parts) > 1 or parts[0][1]:
            return strategies.combine(parts, cycle.prompt, model, **how)
        frames = parts[0][0]
        return make_triplets(frames, strategies.synthetic_level(cycle.prompt, [frames]), model, **how)

    def checking(self, part: str, run: Run, model: nn.Module) -> Triplets:
        """Images to look at, or to score, as triplets that are kept."""
        word = "real" if run.arm == "joint" else None
        key = (part, run.prompt, run.model, model.image_size, word)
        if key not in self._triplets:
            how = {"missing": "omit", "variant": "0"}
            frames = self.parts[part]
            self._triplets[key] = (
                strategies.combine([(frames, word)], run.prompt, model, **how)
                if word
                else make_triplets(frames, run.prompt, model, **how)
            )
        return self._triplets[key]

    # -- cycles -----------------------------------------------------------------------------------------

    def starting(self, run: Run, before: Path | None, seed: int) -> nn.Module:
        """A model at the beginning of a cycle."""
        weights = before / "weights" if before else WEIGHTS[run.model]
        return models.load(run.model, weights, run.encoders, run.recipe.image_size, seed)

    def train(self, run: Run, cycle: Cycle) -> Path:
        """The folder of a cycle, which is trained now, after those before it, if it is not there.

        Raises
        ------
        echovlsm.base.files.InUseError
            Another process trains it.
        """
        made_from = {**run.made_from(cycle), **self._begins_with(run)}
        target = (
            self.folder / "cycles" / f"{cycle.model}-{cycle.prompt}-{cycle.source.name}-{digest(made_from)}"
        )
        if target.is_dir():
            return target
        before = self.train(run, cycle.before) if cycle.before else None
        state = target.with_name(f"{target.name}-state")
        with files.only_one(state, wait=0.1):
            if target.is_dir():
                return target
            recipe = run.recipe
            provenance.set_up(1, cycle.seed)
            model = self.starting(run, before, run.seed)
            learning, checking = self.learning(cycle, model, recipe), self.checking(HELD_OUT, run, model)
            options = {"steps": cycle.steps, "look_every": recipe.look_every, "batch_size": recipe.batch_size}
            options |= {"learning_rate": recipe.rate, "weight_decay": recipe.weight_decay, "seed": cycle.seed}
            history = fit(model, learning, checking, state, schedule="cosine", **options)
            told = {
                **asdict(cycle.source),
                "steps": cycle.steps,
                "seed": cycle.seed,
                "images": len(learning),
                "content": [cohort_hash(frames) for frames, _ in self.sources(cycle.source)],
                "patients_seen": self._patients(cycle.source),
                "seconds": round(float(history["seconds"].sum()), 1),
                "step": history["step"].tolist(),
                "train_loss": [round(value, 4) for value in history["train_loss"]],
                "dice": [round(value, 4) for value in history["val_dice"]],
            }
            with files.appearing(target) as partial:
                model.save_pretrained(partial / "weights")
                (partial / "cycle.json").write_text(json.dumps(told))
        shutil.rmtree(state, ignore_errors=True)
        return target

    def _patients(self, source: Source) -> list[str]:
        """Annotated patients that a source rests on, where they are a choice."""
        if source.kind == PHANTOM or not 0 < source.patients < ALL:
            return []
        return sorted(self.real(Source("real", source.patients, source.seed))["patient"].unique())

    def _begins_with(self, run: Run) -> dict[str, str]:
        return {"data_hash": self.data_hash, "weights_hash": provenance.weights_hash(WEIGHTS[run.model])}

    # -- runs -------------------------------------------------------------------------------------------

    def record_of(self, run: Run) -> Path:
        """The file of a run."""
        return self.records / f"{run.name}.json"

    def carry_out(self, run: Run) -> dict[str, Any]:
        """Train and score a run and write its record; one that is there is read."""
        file, begins = self.record_of(run), self._begins_with(run)
        if file.is_file():
            record = json.loads(file.read_text())
            if other := [name for name, value in begins.items() if record[name] != value]:
                raise QueueError(f"{file}: was made with another {other[0]}; name another --records folder")
            return record
        clock = time.perf_counter()
        folders = [self.train(run, cycle) for cycle in run.cycles]
        provenance.set_up(1, run.seed)
        model = self.starting(run, folders[-1] if folders else None, run.seed).eval()
        parts = (HELD_OUT,) if run.choice else (HELD_OUT, VALIDATION)
        cycles = [json.loads((folder / "cycle.json").read_text()) for folder in folders]
        record = {
            **{key: getattr(run, key) for key in _ABOUT},
            "scale": "demo",
            "cohort": self.cohort,
            "recipe": asdict(run.recipe),
            **begins,
            "cycles": cycles,
            "scores": {part: self.scores(run, part, model) for part in parts},
            "training_seconds": round(sum(cycle["seconds"] for cycle in cycles), 1),
            "peak_memory_gib": provenance.peak_memory(),
            "commit": provenance.commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": provenance.device_name(),
            "packages": provenance.package_versions(),
            "seconds": round(time.perf_counter() - clock, 1),
        }
        with files.appearing(file) as partial:
            partial.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n")
        return record

    def scores(self, run: Run, part: str, model: nn.Module) -> dict[str, Any]:
        """Scores of a part's masks: who they are, and a list a structure for each of `SCORES`."""
        frames, size = self.parts[part], run.recipe.score_size
        logits = predict(model, self.checking(part, run, model))

        def rows() -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
            for place, (row, answer) in enumerate(zip(frames.itertuples(), logits, strict=True)):
                for structure, *masks in predictions.structure_masks(answer, load_labels(row), size):
                    yield {"structure": structure, "place": place}, *masks

        found = score_table(rows(), size=size, progress=False)
        names = frames["patient"] + " " + frames["view"] + " " + frames["phase"]
        kept: dict[str, Any] = {"images": names.tolist()}
        for score, digits in SCORES.items():
            table = found.pivot(index="place", columns="structure", values=score).round(digits)
            kept[score] = {
                name: [None if np.isnan(value) else value for value in table[name].tolist()]
                for name in found["structure"].unique()
            }
        return kept


# -- the command ------------------------------------------------------------------------------------------


def left(work: Sequence[Run], there: Study, rates: dict[str, float]) -> pd.DataFrame:
    """How many runs of each block are done, and how many minutes the others take on one thread."""
    counted: set[str] = set()
    rows = []
    for block in blocks(work):
        mine = [run for run in work if run.block == block]
        todo = [run for run in mine if not there.record_of(run).is_file()]
        seconds = 0.0
        for run, cycle in ((one, cycle) for one in todo for cycle in one.cycles):
            key = digest(run.made_from(cycle))
            if key not in counted:
                counted.add(key)
                seconds += cycle.steps * rates[run.model] * (run.recipe.image_size / 64) ** 2
        done = len(mine) - len(todo)
        rows.append({"block": block, "runs": len(mine), "done": done, "minutes": seconds / 60})
    return pd.DataFrame(rows)


def measured_rates(there: Study) -> dict[str, float]:
    """Seconds a step of each model, from the records that this kind of device made."""
    found: dict[str, list[float]] = {}
    device = provenance.device_name()
    for file in there.records.glob("*.json"):
        record = json.loads(file.read_text())
        if record["device"] == device and record["recipe"]["image_size"] == 64 and record["cycles"]:
            steps = sum(cycle["steps"] for cycle in record["cycles"])
            found.setdefault(record["model"], []).append(record["training_seconds"] / steps)
    return SECONDS_A_STEP | {model: float(np.median(values)) for model, values in found.items()}


def work_through(there: Study, wanted: Sequence[Run], until: float) -> None:
    """Carry out the runs that have no record; one that another process is at is left to it."""
    taken = True
    while taken:
        taken = False
        for run in wanted:
            if there.record_of(run).is_file():
                there.carry_out(run)  # only sees that it is of these data and weights
                continue
            if time.monotonic() > until:
                return
            try:
                print(f"{datetime.now(UTC):%H:%M} {run.name}", flush=True)
                there.carry_out(run)
            except files.InUseError:
                taken = True
        if taken:
            time.sleep(20)


def chosen(block: str = "") -> list[Run]:
    """The runs of some blocks, or parts, named with commas between them; of all where none is named."""
    work = study()
    known = blocks(work) + sorted({run.part for run in work})
    asked = [name for name in block.split(",") if name] or known
    if unknown := [name for name in asked if name not in known]:
        raise QueueError(f"--block: {unknown[0]!r} is not known; choose of {', '.join(known)}")
    return [run for run in work if run.block in asked or run.part in asked]
