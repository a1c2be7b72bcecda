"""Sampling from the semantic diffusion model: label maps in, pictures or a whole synthetic cohort out.

The schedulers are those of diffusers, chosen by name. A cohort is drawn batch by batch; each finished batch
is on disk, so a killed call goes on where it was, and the cohort in the end is the same to the last byte.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from echovlsm.base import files, paths, provenance
from echovlsm.cohort import CohortError, cohort_hash, read_cohort, sectors, write_cohort
from echovlsm.synthesis.labels import perturbed_maps
from echovlsm.synthesis.process import (
    SCHEDULERS,
    make_scheduler,
    set_steps,
    to_pictures,
)
from echovlsm.synthesis.unet import DROPPED, ConditionError, SemanticUNet
from echovlsm.synthesis.weights import load_denoiser

CACHE_BYTES = 2**30
"""Scale and shift of a batch are computed once if they take no more memory than this."""


@torch.no_grad()
def sample(
    model: SemanticUNet,
    schedule: Any,
    maps: np.ndarray,
    seeds: Sequence[int],
    *,
    scheduler: str = "dpm-solver++",
    steps: int = 20,
    guidance: float = 1.0,
    mixed_precision: str = "no",
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Draw one picture for each label map.

    Parameters
    ----------
    model, schedule
        What `load_denoiser` gives.
    maps
        Sector maps, uint8 (B, S, S), of the model's size and classes.
    seeds
        One a picture: start and all further noise of a picture depend on its seed alone.
    scheduler, steps
        A name that `make_scheduler` knows, and its number of steps; ``heun`` evaluates the network nearly
        twice a step.
    guidance
        1 follows the label map as trained; above 1 the difference to a dropped label map is stretched by this
        factor, at twice the cost (Ho & Salimans 2021).
    mixed_precision
        ``no`` or ``bf16``, which is faster where the processor has it, and rounds.
    on_step
        Called after each evaluation of the network.

    Returns
    -------
    ndarray
        Pictures uint8 (B, S, S).

    Raises
    ------
    ConditionError, ValueError
        A label map of another size or with an unknown class; not one seed a map; an unknown scheduler.
    """
    size = model.config.image_size
    if maps.ndim != 3 or maps.shape[1:] != (size, size):
        raise ConditionError(f"maps: {maps.shape}; the model draws (N, {size}, {size}): resize the maps")
    if len(seeds) != len(maps):
        raise ValueError(f"seeds: {len(seeds)} for {len(maps)} label maps; give one a map")
    if steps < 1:
        raise ValueError(f"steps: {steps}; give at least 1")
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    solver = make_scheduler(scheduler, schedule)
    set_steps(solver, steps)
    condition = _condition(model, torch.as_tensor(maps).to(device))
    empty = _condition(model, torch.full_like(torch.as_tensor(maps[:1]).long(), DROPPED).to(device))
    channels = model.config.in_channels
    shape = (1, channels, size, size)
    x = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    x = x.to(device, memory_format=torch.channels_last) * float(solver.init_noise_sigma)
    whole = scheduler == "ddpm"  # the only one that uses a learned variance
    noisy = scheduler in ("ddpm", "ddim", "sde-dpm-solver++")
    for t in solver.timesteps:
        scaled = solver.scale_model_input(x, t)
        times = torch.full((len(x),), float(t), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            output = model(scaled, times, condition)
            if guidance != 1:
                dropped = model(scaled, times, _expand(empty, len(x)))
                output[:, :channels] = torch.lerp(dropped[:, :channels], output[:, :channels], guidance)
        output = output.float() if whole else output[:, :channels].float()
        extra = {"generator": generators} if noisy else {}
        x = solver.step(output, t, x, **extra).prev_sample
        if on_step:
            on_step()
    return to_pictures(x)


def _condition(model: SemanticUNet, maps: Tensor) -> Any:
    """Scale and shift for all steps at once, or the label maps where that takes too much memory."""
    labels = maps.long()
    return model.modulate(labels) if model.modulation_bytes(len(labels)) <= CACHE_BYTES else labels


def _expand(condition: Any, count: int) -> Any:
    return condition.expand(count, -1, -1) if torch.is_tensor(condition) else condition


# -- a whole cohort -------------------------------------------------------------------------------------


def sample_cohort(
    root: str | Path,
    frames: pd.DataFrame,
    weights: str | Path,
    *,
    variants: int = 5,
    scheduler: str = "dpm-solver++",
    steps: int = 20,
    guidance: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val"),
    mixed_precision: str = "no",
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Draw a synthetic cohort from the perturbed labels of another cohort.

    Parameters
    ----------
    root
        Folder to make. Finished batches wait in a hidden folder beside it until all are there.
    frames
        Frames table of the source cohort; pictures without a mask are left out.
    weights
        Folder of `save_denoiser`.
    variants
        Perturbations a label (published: 5); see `echovlsm.synthesis.labels.perturbed_maps`.
    scheduler, steps, guidance, mixed_precision
        As in `sample`.
    batch_size
        Pictures drawn together; what they look like may depend on it in the last bit.
    seed
        Of perturbation and noise.
    splits
        Splits of the source to draw from; a synthetic patient keeps its source's split.
    overwrite
        Replace a cohort that is there.

    Returns
    -------
    Path
        The cohort's folder. Its `provenance.csv` says for each picture: source cohort, patient, view and
        phase, variant, redraws, seed, scheduler, steps, guidance, weights. Sex and age are the source
        patient's; the quality is unknown. Patient ``patient0007`` gives ``patient0007-0`` and so on.

    Raises
    ------
    LabelMapError, ConditionError, WeightsError, CohortError
        A label map, the weights or a folder cannot be used.
    echovlsm.base.files.InUseError, echovlsm.base.files.FullDiskError
        Another process draws this cohort; there is no room, and the finished batches are kept.
    ValueError
        There is no picture in `splits`, or the hidden folder holds batches of other settings.
    """
    from accelerate import Accelerator

    root = Path(root)
    _refuse(root, overwrite)
    chosen, settings = _settings(
        frames,
        weights,
        variants=variants,
        scheduler=scheduler,
        steps=steps,
        guidance=guidance,
        batch_size=batch_size,
        seed=seed,
        splits=splits,
        mixed_precision=mixed_precision,
    )
    source = frames.attrs.get("meta", {})
    model, schedule = load_denoiser(weights)
    model = model.to(Accelerator().device, memory_format=torch.channels_last)
    conditions = perturbed_maps(chosen, variants, model.config.image_size, seed)
    work = _work_folder(root)
    with _working_in(work):
        _refuse(root, overwrite)  # another process may have drawn it meanwhile
        _same_settings(work, settings)
        batches = range(0, len(conditions), batch_size)
        done = [start for start in batches if _batch_file(work, start).is_file()]
        bar = tqdm(
            total=len(conditions),
            initial=min(len(done) * batch_size, len(conditions)),
            desc="synthetic pictures",
            unit="picture",
            disable=not progress,
        )
        for start in batches:
            if start in done:
                continue
            records = conditions[start : start + batch_size]
            maps = np.stack([record.sector_map for record in records])
            for record, sector_map in zip(records, maps, strict=True):
                sectors.check_sector_map(
                    sector_map, model.config.image_size, _source_name(chosen.iloc[record.row])
                )
            clock = time.perf_counter()
            images = sample(
                model,
                schedule,
                maps,
                [_picture_seed(seed, start + place) for place in range(len(maps))],
                scheduler=scheduler,
                steps=steps,
                guidance=guidance,
                mixed_precision=mixed_precision,
            )
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


def _refuse(root: Path, overwrite: bool) -> None:
    if root.exists() and not overwrite:
        write_cohort(root, [], {"name": root.name, "kind": "synthetic"})  # refuses in its own words


def ensure_cohort(root: str | Path, frames: pd.DataFrame, weights: str | Path, **options: Any) -> bool:
    """Draw a synthetic cohort unless one made from the same source, weights and settings is there.

    One made otherwise is replaced, if it says itself that it is synthetic. Parameters as for `sample_cohort`.
    Returns whether anything was drawn.
    """

    root = paths.resolve(root)
    asked = _settings(frames, weights, **options)[1]

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
    # What an interrupted call with other settings left is of no use any more.
    work = _work_folder(root)
    if (work / "settings.json").is_file():
        with _working_in(work):
            file = work / "settings.json"
            if file.is_file() and json.loads(file.read_text()) != asked:
                shutil.rmtree(work)
    try:
        sample_cohort(root, frames, weights, overwrite=root.exists(), **options)
    except CohortError:
        if is_there():  # another process has drawn it meanwhile
            return False
        raise
    return True


def _settings(
    frames: pd.DataFrame,
    weights: str | Path,
    *,
    variants: int = 5,
    scheduler: str = "dpm-solver++",
    steps: int = 20,
    guidance: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    splits: Sequence[str] = ("train", "val"),
    mixed_precision: str = "no",
    **_: Any,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The frames to draw from, and all that decides what a cohort looks like."""

    counts = (
        ("variants", variants, 1),
        ("steps", steps, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    )
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"{name}: {value}; give at least {least}")
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler: {scheduler!r} is not known; choose one of {', '.join(SCHEDULERS)}")
    chosen = frames[frames["split"].isin(list(splits)) & frames["labels"].notna()].reset_index(drop=True)
    if chosen.empty:
        raise ValueError(f"frames: no picture with a mask in {', '.join(splits)}; choose other `splits`")
    return chosen, {
        **{"scheduler": scheduler, "steps": steps, "guidance": float(guidance), "seed": seed},
        **{"variants": variants, "batch_size": batch_size, "mixed_precision": mixed_precision},
        **{
            "splits": list(splits),
            "weights": provenance.weights_hash(weights),
            "source": cohort_hash(chosen),
        },
        "code": provenance.code_hash("synthesis"),
    }


def _picture_seed(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _source_name(row: pd.Series) -> str:
    return f"{row['patient']} {row['view']} {row['phase']}"


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


def _same_settings(work: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix batches of two settings."""
    file = work / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text())
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            raise ValueError(
                f"{work}: holds unfinished batches with another {other[0]} ({before.get(other[0])!r}, now "
                f"{settings[other[0]]!r}); draw with the same settings to go on, or delete that folder"
            )
        return
    with files.appearing(file) as partial:
        partial.write_text(json.dumps(settings))


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
                    "seed": _picture_seed(settings["seed"], place),
                    **{name: settings[name] for name in ("scheduler", "steps", "guidance", "weights")},
                },
            }
