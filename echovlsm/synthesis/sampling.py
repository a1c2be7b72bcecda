"""A synthetic cohort: the labels of another cohort are perturbed, and an image drawn for each.

It is drawn batch by batch; each finished batch is on disk, so that a killed call goes on where it was, and
the cohort in the end is the same to the last byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from echovlsm.base import files, paths, provenance
from echovlsm.cohort import CohortError, cohort_hash, read_cohort, sectors, write_cohort
from echovlsm.synthesis.labels import PerturbedMaps
from echovlsm.synthesis.process import SCHEDULERS, sample
from echovlsm.synthesis.weights import load_denoiser

SETTINGS = "settings.json"
"""Name of the file in the hidden folder that says how its batches are drawn."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a synthetic cohort is drawn; ValueError for what makes no sense.

    Parameters
    ----------
    scheduler, steps, guidance, mixed_precision
        As in `sample`.
    seed
        Of perturbation and noise.
    variants
        Perturbations a label (published: 5).
    batch_size
        Images drawn together; what they look like may depend on it in the last bit.
    splits
        Splits of the source to draw from; a synthetic patient keeps its source's split.
    """

    scheduler: str = "dpm-solver++"
    steps: int = 20
    guidance: float = 1.0
    seed: int = 0
    variants: int = 5
    batch_size: int = 16
    mixed_precision: str = "no"
    splits: Sequence[str] = ("train", "val")

    def __post_init__(self) -> None:
        for name, least in (("variants", 1), ("steps", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}; give at least {least}")
        if self.scheduler not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            raise ValueError(f"scheduler: {self.scheduler!r} is not known; choose one of {known}")
        object.__setattr__(self, "guidance", float(self.guidance))
        object.__setattr__(self, "splits", list(self.splits))

    def choose(self, frames: pd.DataFrame) -> pd.DataFrame:
        """The frames to draw from; ValueError where there are none."""
        chosen = frames[frames["split"].isin(self.splits) & frames["labels"].notna()].reset_index(drop=True)
        if chosen.empty:
            there = ", ".join(self.splits)
            raise ValueError(f"frames: no image with a mask in {there}; choose other `splits`")
        return chosen

    def on_record(self, chosen: pd.DataFrame, weights: str | Path) -> dict[str, Any]:
        """All that decides what a cohort looks like."""
        return {
            **dataclasses.asdict(self),
            "weights": provenance.weights_hash(weights),
            "source": cohort_hash(chosen),
            "code": provenance.code_hash("synthesis"),
        }


def sample_cohort(
    root: str | Path,
    frames: pd.DataFrame,
    weights: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = True,
    **how: Any,
) -> Path:
    """Draw a synthetic cohort from the perturbed labels of another cohort.

    Parameters
    ----------
    root
        Folder to make. Finished batches wait in a hidden folder beside it until all are there.
    frames
        Frames table of the source cohort; images without a mask are left out.
    weights
        Folder of `save_denoiser`.
    overwrite
        Replace a cohort that is there.
    progress
        Show a bar.
    how
        Fields of `Drawing`.

    Returns
    -------
    Path
        The cohort's folder. Its `provenance.csv` says for each image where it comes from and how it was
        drawn. Sex and age are the source patient's; the quality is unknown. Patient ``patient0007`` gives
        ``patient0007-0`` and so on.

    Raises
    ------
    LabelMapError, ConditionError, WeightsError, CohortError
        A label map, the weights or a folder cannot be used.
    echovlsm.base.files.InUseError, echovlsm.base.files.FullDiskError
        Another process draws this cohort; there is no room, and the finished batches are kept.
    ValueError
        A setting makes no sense, there is no image in `splits`, or the hidden folder holds batches of other
        settings.
    """
    from accelerate import Accelerator

    root, drawing = Path(root), Drawing(**how)
    _refuse(root, overwrite)
    chosen = drawing.choose(frames)
    settings = drawing.on_record(chosen, weights)
    source = frames.attrs.get("meta", {})
    model, schedule = load_denoiser(weights)
    model = model.to(Accelerator().device, memory_format=torch.channels_last)
    size, seed, batch_size = model.config.image_size, drawing.seed, drawing.batch_size
    conditions = PerturbedMaps(chosen, drawing.variants, size, seed)
    options = {name: settings[name] for name in ("scheduler", "steps", "guidance", "mixed_precision")}
    work = _work_folder(root)
    with _working_in(work):
        _refuse(root, overwrite)  # another process may have drawn it meanwhile
        _same_settings(work, settings)
        batches = range(0, len(conditions), batch_size)
        missing = [start for start in batches if not _batch_file(work, start).is_file()]
        bar = tqdm(
            total=len(conditions),
            initial=min((len(batches) - len(missing)) * batch_size, len(conditions)),
            desc="synthetic images",
            unit="image",
            disable=not progress,
        )
        for start in missing:
            records = [conditions[i] for i in range(start, min(start + batch_size, len(conditions)))]
            maps = np.stack([record.sector_map for record in records])
            clock = time.perf_counter()
            seeds = [_image_seed(seed, start + place) for place in range(len(maps))]
            images = sample(model, schedule, maps, seeds, **options)
            redraws = np.array([record.redraws for record in records])
            _save_batch(work, start, images, maps, redraws, time.perf_counter() - clock)
            bar.update(len(maps))
        bar.close()
        meta = {
            "name": root.name,
            "kind": "synthetic",
            "origin": f"semantic diffusion model, from the labels of {source.get('name', 'a cohort')}",
            "licence": source.get("licence"),
            "seed": seed,
            "parameters": {**{k: v for k, v in settings.items() if k != "seed"}, "seconds": _seconds(work)},
        }
        write_cohort(root, _rows(work, batches, chosen, settings), meta, overwrite=overwrite)
        shutil.rmtree(work)
    return root


def ensure_cohort(
    root: str | Path, frames: pd.DataFrame, weights: str | Path, *, progress: bool = True, **how: Any
) -> bool:
    """Draw a synthetic cohort unless one made from the same source, weights and settings is there.

    Returns whether anything was drawn. A cohort made otherwise is replaced, if it says itself that it is
    synthetic. Parameters and errors as for `sample_cohort`.
    """
    root, drawing = paths.resolve(root), Drawing(**how)
    asked = drawing.on_record(drawing.choose(frames), weights)

    def is_there() -> bool:
        if not root.exists():
            return False
        meta = read_cohort(root).attrs["meta"]
        if meta.get("kind") != "synthetic" or "weights" not in (meta.get("parameters") or {}):
            raise CohortError(f"{root}: holds a {meta.get('kind')} cohort; name another folder to draw into")
        made = {**meta["parameters"], "seed": meta.get("seed")}
        return {key: made.get(key) for key in asked} == asked

    if is_there():
        return False
    # what an interrupted call with other settings left is of no use any more
    work = _work_folder(root)
    if (work / SETTINGS).is_file():
        with _working_in(work):
            if _settings_in(work) not in (None, asked):
                shutil.rmtree(work)
    try:
        sample_cohort(root, frames, weights, overwrite=root.exists(), progress=progress, **how)
    except CohortError:
        if is_there():  # another process has drawn it meanwhile
            return False
        raise
    return True


def _refuse(root: Path, overwrite: bool) -> None:
    if root.exists() and not overwrite:
        write_cohort(root, [], {"name": root.name, "kind": "synthetic"})  # refuses in its own words


def _image_seed(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _work_folder(root: Path) -> Path:
    return root.parent / f".{root.name}.sampling"


@contextlib.contextmanager
def _working_in(work: Path) -> Iterator[None]:
    """Hold the hidden folder; one without a batch goes again, as no other call is to find it."""
    with files.only_one(work):
        try:
            yield
        finally:
            if work.is_dir() and not any(work.glob("batch-*.npz")):
                shutil.rmtree(work, ignore_errors=True)


def _settings_in(work: Path) -> dict[str, Any] | None:
    file = work / SETTINGS
    return json.loads(file.read_text()) if file.is_file() else None


def _same_settings(work: Path, settings: dict[str, Any]) -> None:
    """Note the settings of the batches; refuse to mix those of two."""
    before = _settings_in(work)
    if before is None:
        with files.appearing(work / SETTINGS) as partial:
            partial.write_text(json.dumps(settings))
        return
    other = next((key for key in settings if before.get(key) != settings[key]), None)
    if other:
        raise ValueError(
            f"{work}: holds unfinished batches with another {other} ({before.get(other)!r}, now "
            f"{settings[other]!r}); draw with the same settings to go on, or delete that folder"
        )


def _batch_file(work: Path, start: int) -> Path:
    return work / f"batch-{start:07d}.npz"


def _seconds(work: Path) -> float:
    """How long the network drew, over all calls that had a part in it."""
    total = 0.0
    for file in work.glob("batch-*.npz"):
        with np.load(file, allow_pickle=False) as batch:
            total += float(batch["seconds"])
    return round(total, 1)


def _save_batch(
    work: Path, start: int, images: np.ndarray, maps: np.ndarray, redraws: np.ndarray, seconds: float
) -> None:
    with files.appearing(_batch_file(work, start)) as partial, open(partial, "wb") as stream:
        np.savez(stream, images=images, maps=maps, redraws=redraws, seconds=seconds)


def _rows(
    work: Path, batches: range, chosen: pd.DataFrame, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The cohort's frames, one after the other."""
    source = chosen.attrs.get("meta", {}).get("name")
    for start in batches:
        with np.load(_batch_file(work, start), allow_pickle=False) as batch:
            arrays = {name: batch[name] for name in ("images", "maps", "redraws")}
        for place, (image, sector_map, redraws) in enumerate(zip(*arrays.values(), strict=True), start):
            row, variant = divmod(place, settings["variants"])
            frame = chosen.iloc[row]
            size = len(image)
            spacing = {
                f"spacing_{axis}": float(frame[f"spacing_{axis}"]) * int(frame[side]) / size
                for axis, side in (("y", "height"), ("x", "width"))
                if pd.notna(frame[f"spacing_{axis}"])
            }
            origin = {f"source_{name}": str(frame[name]) for name in ("patient", "view", "phase")}
            yield {
                "patient": f"{frame['patient']}-{variant}",
                **{name: frame[name] for name in ("view", "phase", "split", "sex", "age")},
                "image": image,
                "labels": sectors.from_sector_map(sector_map),
                **spacing,
                "provenance": {
                    "source_cohort": source,
                    **origin,
                    "variant": variant,
                    "redraws": int(redraws),
                    "seed": _image_seed(settings["seed"], place),
                    **{name: settings[name] for name in ("scheduler", "steps", "guidance", "weights")},
                },
            }
