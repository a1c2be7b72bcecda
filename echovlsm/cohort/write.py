"""Writing a cohort folder: every frame checked, the whole folder or nothing. `check` has the layout."""

import gzip
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import PHASES, QUALITIES, SPLITS, VIEWS, __version__
from echovlsm.base import files
from echovlsm.cohort import check as disk
from echovlsm.cohort import files as cohort_files
from echovlsm.cohort.files import CohortError

_NEW, _OLD = "new", "old"
_NEEDED = ("patient", "view", "phase", "split", "image", "labels")
_METADATA = ("sex", "age", "quality", "spacing_y", "spacing_x")
# the last five are columns of a frames table that the arrays and `meta` replace
_IGNORED = ("cohort", "height", "width", "label_order", "label_step")
_ALLOWED = (*_NEEDED, *_METADATA, "info", "provenance", *_IGNORED)


def write_cohort(
    root: str | os.PathLike[str],
    frames_with_arrays: pd.DataFrame | Iterable[Mapping[str, Any]],
    meta: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a cohort for `read_cohort`, in the public CAMUS release's layout; all or nothing.

    Parameters
    ----------
    root
        Folder to make. An existing one is refused, unless `overwrite` is true and it holds a ``cohort.yaml``;
        it is then replaced at the very end.
    frames_with_arrays
        A DataFrame or any iterable (a generator streams: one frame is in memory at a time) of mappings with
        patient, view, phase, split, image uint8 (H, W), labels uint8 (H, W) of 0-3; where known sex, age,
        quality (the same for both phases of a view), spacing_y, spacing_x (mm, both or none); and optionally
        info (dict, further lines of ``Info_{view}.cfg``, e.g. ``{"EF": 54.0}``) and provenance (dict, further
        columns of ``provenance.csv``). Other columns of a frames table are ignored.
    meta
        name, kind (real, phantom, synthetic), and where known origin, licence, seed, parameters.

    Returns
    -------
    Path
        Absolute, of `root`.

    Raises
    ------
    CohortError
        An unknown key or value, an array of another type or shape, a label above 3, a frame given twice, a
        patient in two splits, or a second process writing the same cohort; nothing visible has changed.
    FullDiskError
        There is no room; likewise.

    Notes
    -----
    Files are gzipped NIfTI of uint8 (the release has float32 of the same whole numbers: four times the size
    for nothing), axes (x, y), affine diag(-spacing_x, -spacing_y, 1) as in the release. Spacing is stored as
    float32; an unknown one as 1.0 without a unit. The same input gives the same bytes.

    A folder beside `root` is filled and renamed at the end, so a killed call leaves nothing that can be read
    as a cohort; the next call removes its leftovers.
    """
    root = Path(os.path.realpath(Path(root).expanduser()))
    header = _check_meta(meta)
    table = isinstance(frames_with_arrays, pd.DataFrame)
    rows = frames_with_arrays.to_dict("records") if table else frames_with_arrays
    with files.room(root), _work_folder(root) as work:
        _refuse_existing(root, overwrite)
        writer = _Writer(work / _NEW)
        for number, row in enumerate(rows, start=1):
            try:
                writer.add(row)
            except CohortError as error:
                place = " ".join(str(row[k]) for k in _NEEDED[:3] if k in row)
                raise CohortError(f"frame {number} ({place}): {error}") from None
        writer.finish(header)
        _refuse_existing(root, overwrite)
        (work / _NEW / disk.INCOMPLETE).unlink()
        # a folder with files in it cannot be replaced in one step
        if root.exists():
            root.rename(work / _OLD)
        try:
            (work / _NEW).rename(root)
        except OSError:
            if not root.exists():
                raise
            raise CohortError(f"{root}: another process has just written it; read that one") from None
    return root


def _refuse_existing(root: Path, overwrite: bool) -> None:
    if not root.exists():
        return
    if not overwrite:
        raise CohortError(f"{root}: exists already; choose another folder or give overwrite=True")
    if not (root / "cohort.yaml").is_file() and not (root.is_dir() and not any(root.iterdir())):
        raise CohortError(f"{root}: has no cohort.yaml, so it is not replaced; move it away yourself")


@contextmanager
def _work_folder(root: Path) -> Iterator[Path]:
    """A folder beside `root` in which this call alone works: a new cohort in it, and the one it replaces.

    The operating system frees a killed writer's lock, whatever way it died, and its folder is taken over.
    """
    work = root.with_name(f".{root.name}.partial")
    told = f"{root}: no folder can be made there"
    files.make_folder(work, CohortError, told, "choose another place")
    busy = CohortError(f"{root}: another process is writing it ({work}); wait for it")
    try:
        if not files.hold(work, wait=0):
            raise busy
    except files.InUseError as error:
        raise busy from error
    try:
        _bring_back(root, work)
        for left in (work / _NEW, work / _OLD):
            files.remove(left)
        (work / _NEW).mkdir()
        (work / _NEW / disk.INCOMPLETE).touch()
        yield work
    finally:
        try:
            _bring_back(root, work)
            shutil.rmtree(work, ignore_errors=True)
        finally:
            files.release(work)


def _bring_back(root: Path, work: Path) -> None:
    """Bring back a cohort that stood aside for one that never took its place."""
    if (work / _OLD).exists() and not root.exists():
        (work / _OLD).rename(root)


def _plain(value: Any) -> Any:
    """Numpy scalars, tuples and paths as what YAML knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, os.PathLike) else value


def _check_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    import yaml

    disk.check_meta(meta, "meta")
    unknown = [key for key in meta if key not in disk.META_KEYS]
    if unknown:
        raise CohortError(f"meta: {unknown[0]!r} is unknown; the keys are {', '.join(disk.META_KEYS)}")
    header = {key: _plain(meta[key]) for key in disk.META_KEYS if meta.get(key) is not None}
    try:
        yaml.safe_dump(header)
    except yaml.YAMLError as error:
        raise CohortError(f"meta: {error}; use only numbers, texts, lists and dicts") from error
    return header


class _Writer:
    """Checks frames one by one and writes them under `folder`; `finish` writes all the rest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits: dict[str, str] = {}
        self.people: dict[str, dict[str, Any]] = {}
        self.cfgs: dict[tuple[str, str], dict[str, Any]] = {}  # lines of Info_{view}.cfg
        self.provenance: dict[tuple[str, str, str], dict[str, Any]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        missing, unknown = [k for k in _NEEDED if k not in row], [k for k in row if k not in _ALLOWED]
        if missing or unknown:
            wrong = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is unknown"
            raise CohortError(f"{wrong}; the keys are {', '.join(_ALLOWED)}")
        patient, view, phase, split, image, labels = (row[k] for k in _NEEDED)
        if not isinstance(patient, str) or not disk.PATIENT_NAME.fullmatch(patient):
            raise CohortError(f"patient is {patient!r}; it must be letters, digits, '-' and '_'")
        for name, value, valid in (("view", view, VIEWS), ("phase", phase, PHASES), ("split", split, SPLITS)):
            if value not in valid:
                raise CohortError(f"{name} is {value!r}; it must be one of {', '.join(valid)}")
        if (patient, view, phase) in self.provenance:
            raise CohortError("this frame was given before; patient, view, phase must be unique")
        if self.splits.setdefault(patient, split) != split:
            raise CohortError(f"the patient is in {self.splits[patient]} and in {split}; choose one")
        known, info = _check_metadata(row), _check_dict(row, "info", ("Sex", "Age", "ImageQuality"))
        quality = known["quality"].capitalize() if known["quality"] else None
        cfg = {"Sex": known["sex"], "Age": known["age"], "ImageQuality": quality, **info}
        for key, value in info.items():
            pattern, expected = cohort_files.CFG_VALUES.get(key, ("[^\r\n]+", "one line"))
            if ":" in key or not key.isprintable() or not re.fullmatch(pattern, str(value)):
                raise CohortError(f"info: {key!r} is {value!r}; expected {expected}, and no ':' in the key")
        # both phases share one Info_{view}.cfg; sex and age also agree between the views
        shared, person = self.cfgs.setdefault((patient, view), dict(cfg)), self.people.setdefault(patient, {})
        known_person = {key: cfg[key] for key in ("Sex", "Age") if cfg[key] is not None}
        for other, mine in ((shared, cfg), (person, known_person)):
            for key, value in mine.items():
                if value != other.setdefault(key, value):
                    raise CohortError(f"{key} is {value}, but {other[key]} in another frame of this patient")
        for name, array in (("image", image), ("labels", labels)):
            if (
                not isinstance(array, np.ndarray)
                or array.dtype != np.uint8
                or array.ndim != 2
                or not array.size
            ):
                form = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
                raise CohortError(f"{name} is {form}; it must be a numpy array uint8 (H, W)")
        if image.shape != labels.shape:
            raise CohortError(
                f"image {image.shape} and labels {labels.shape} differ in shape; bring both to one size"
            )
        if labels.max() > 3:
            raise CohortError(f"labels go up to {labels.max()}; only 0-3 have a meaning")
        extra = _check_dict(row, "provenance", ("patient", "view", "phase"))
        self.provenance[patient, view, phase] = {"patient": patient, "view": view, "phase": phase, **extra}
        folder = self.folder / "database_nifti" / patient
        folder.mkdir(parents=True, exist_ok=True)
        for array, end in ((image, ""), (labels, "_gt")):
            _write_nifti(folder / f"{patient}_{view}_{phase}{end}.nii.gz", array, known)

    def finish(self, header: dict[str, Any]) -> None:
        import yaml

        if not self.splits:
            raise CohortError("there is no frame to write; a cohort needs at least one")
        for (patient, view), cfg in self.cfgs.items():
            text = "".join(f"{key}: {value}\n" for key, value in cfg.items() if value is not None)
            (self.folder / "database_nifti" / patient / f"Info_{view}.cfg").write_text(text, encoding="utf-8")
        (self.folder / "database_split").mkdir()
        for split, name in disk.SPLIT_FILES.items():
            text = "".join(f"{p}\n" for p in sorted(self.splits) if self.splits[p] == split)
            (self.folder / "database_split" / name).write_text(text, encoding="utf-8")
        table = pd.DataFrame([self.provenance[frame] for frame in sorted(self.provenance)])
        if len(table.columns) > 3:
            table.to_csv(self.folder / "provenance.csv", index=False, lineterminator="\n")
        counts = {"frames": len(self.provenance), "patients": len(self.splits), "echovlsm": __version__}
        text = yaml.safe_dump(header | counts, sort_keys=False, allow_unicode=True)
        (self.folder / "cohort.yaml").write_text(text, encoding="utf-8")


def _check_dict(row: Mapping[str, Any], name: str, taken: tuple[str, ...]) -> dict[str, Any]:
    value = row.get(name)
    if value is None or value is pd.NA or value != value:  # a NaN where a DataFrame has no dict
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.strip() for key in value):
        raise CohortError(f"{name} must be a dict with texts as keys")
    if set(taken) & set(value):
        raise CohortError(f"{name}: {', '.join(taken)} have keys of their own; take them out or rename them")
    return _plain(value)


def _check_metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `_METADATA` of a row as plain Python values, None where they are NA."""
    known = {key: None if pd.isna(row.get(key)) else _plain(row[key]) for key in _METADATA}
    for key, value in known.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good, expected = {
            "sex": (value in ("F", "M"), "F or M"),
            "quality": (value in QUALITIES, ", ".join(QUALITIES)),
            "age": (number and 0 <= value <= 120 and value == int(value), "whole years, 0 to 120"),
        }.get(key, (number and 1e-6 < value < 1e6, "a positive number of mm"))
        if value is not None and not good:
            raise CohortError(f"{key} is {value!r}; it must be {expected}, or NA")
    if (known["spacing_y"] is None) != (known["spacing_x"] is None):
        raise CohortError("only one of spacing_y and spacing_x is given; give both or none")
    return known | {"age": None if known["age"] is None else int(known["age"])}


def _write_nifti(path: Path, array: np.ndarray, known: Mapping[str, Any]) -> None:
    header = _nifti_header(array.shape, known["spacing_y"], known["spacing_x"])
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=6, mtime=0))


@lru_cache(maxsize=64)
def _nifti_header(shape: tuple[int, int], spacing_y: float | None, spacing_x: float | None) -> bytes:
    """What a NIfTI file of uint8 (H, W) holds before its values; making it costs as much as compressing."""
    import nibabel

    unknown = spacing_y is None
    y, x = (1.0, 1.0) if unknown else (spacing_y, spacing_x)
    # (x, y) in Fortran order is (H, W) in C order
    image = nibabel.Nifti1Image(np.zeros(shape[::-1], np.uint8), np.diag([-x, -y, 1.0, 1.0]))
    image.header.set_xyzt_units("unknown" if unknown else "mm")
    image.header["descrip"] = cohort_files.MARK
    return image.to_bytes()[: -shape[0] * shape[1]]
