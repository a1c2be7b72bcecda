"""Cohorts: folders of echocardiograms, read into a frames table, checked, and written.

A cohort is a folder in the layout of the public CAMUS release: real, phantom and synthetic pictures share it,
and one reader serves them all (`echovlsm.cohort_check` has the layouts). The frames table, a row a picture:

| column | value |
| --- | --- |
| cohort | name in ``cohort.yaml``, else ``camus`` or ``camus-legacy`` |
| patient, view, phase, split | ``patient0001``, ``2CH``/``4CH``, ``ED``/``ES``, ``train``/``val``/``test`` |
| sex, age, quality | ``F``/``M``, whole years, ``good``/``medium``/``poor`` (quality belongs to the view) |
| image, labels | absolute paths; labels NA where there is no mask |
| height, width | of the upright picture, pixels |
| spacing_y, spacing_x | mm a pixel; NA where the header holds only the placeholder 1.0 x 1.0 |

Missing metadata is pandas NA, never a guess. ``frames.attrs`` holds ``meta`` (name, kind, origin, licence,
seed, parameters) and ``absent`` (patients listed in a split whose folder is not there).
"""

import gzip
import hashlib
import logging
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import PHASES, QUALITIES, SPLITS, VIEWS, __version__
from echovlsm import cohort_check as disk

CohortError = disk.CohortError
CohortWarning = disk.CohortWarning
PROBLEMS, KINDS = disk.PROBLEMS, disk.KINDS

_TYPES: dict[str, str] = {
    **dict.fromkeys(("cohort", "patient", "view", "phase", "split", "sex"), "string"),
    **{"age": "Int64", "quality": "string", "image": "string", "labels": "string"},
    **{"height": "int64", "width": "int64", "spacing_y": "Float64", "spacing_x": "Float64"},
}
COLUMNS: tuple[str, ...] = tuple(_TYPES)
"""Columns of the frames table, in order."""

_log = logging.getLogger(__name__)


def read_cohort(root: str | os.PathLike[str], split: str = "official", strict: bool = False) -> pd.DataFrame:
    """Read a cohort folder into the frames table (`COLUMNS`), sorted by patient, view, phase.

    Only headers are read. `root` is the public CAMUS release (or its ``database_nifti``), the old MetaImage
    release (or its ``training`` or ``testing``; an old testing patient is called ``testing_patientXXXX``,
    because that release counts from 0001 again), or a cohort of `write_cohort`.

    `split="official"` is the release's own: the subgroup files; for the old release, which has no validation
    group, train and test. `split="paper"` is that of Adhikari et al. 2023 (paper and released code), who
    used the old numbering: of 450 training patients the first 50 validate, the rest train; 50 others test.
    For the public release the old training numbering is inferred to be the public one without the testing
    patients, in order. That is not documented anywhere; age, sex and quality of patients 1-5 in the authors'
    prompts agree with it, but it first differs from the plain public numbering at patient 27.

    A broken frame, a patient in two splits or in none is left out with one CohortWarning; a wrong cfg value
    becomes NA with the same warning; a listed patient without a folder is left out and logged. `strict=True`
    runs `check_cohort` first and raises CohortError with every problem. CohortError also when nothing is
    left, when the folder is no whole cohort, or when `split` is unknown or means nothing for this cohort.
    """
    if split not in ("official", "paper"):
        raise CohortError(f"split is {split!r}; it must be 'official' or 'paper'")
    if strict:
        check_cohort(root, strict=True)
    layout = disk.find_layout(root)
    if split == "paper":
        _use_paper_split(layout)
    found, problems = disk.scan(layout, deep=False)
    absent = [str(p.patient) for p in problems if p.problem == "patient absent"]
    # these show in the table as NA, or in its attrs
    left_out = [p for p in problems if p.problem not in ("missing mask", "missing cfg", "patient absent")]
    remedy = f"echovlsm.cohort.check_cohort({str(layout.root)!r}) lists every problem"
    first = "".join(f" (first: {p.problem}: {p.file}: {p.detail})" for p in left_out[:1])
    if not found:
        raise CohortError(f"{layout.root}: no usable picture{first}; {remedy}")
    if left_out:
        text = f"{layout.root}: what {len(left_out)} problems affect was left out{first}; {remedy}"
        warnings.warn(text, CohortWarning, stacklevel=2)
    if absent:
        _log.warning("%s: %d listed patients have no folder and are left out", layout.root, len(absent))
    rows = [_row(layout, frame) for frame in found]
    frames = pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)
    frames = frames.sort_values(["patient", "view", "phase"], ignore_index=True)
    frames.attrs |= {"meta": layout.meta, "absent": absent}
    return frames


def _row(layout: disk.Layout, frame: disk.Found) -> dict[str, Any]:
    patient, view, phase, image, mask, header, info = frame
    spacing: tuple[float | None, float | None] = header.spacing_y, header.spacing_x
    # 1.0 x 1.0 is what a header holds when nobody knew; our writer then also leaves the unit out
    if spacing == (1.0, 1.0) and not (layout.own and header.in_mm):
        spacing = None, None
    place = (layout.meta["name"], patient, view, phase, layout.splits[patient])
    known = (info.get("Sex"), info.get("Age"), info.get("ImageQuality"))
    paths = (str(image), None if mask is None else str(mask))
    return dict(zip(COLUMNS, (*place, *known, *paths, header.height, header.width, *spacing), strict=True))


def _use_paper_split(layout: disk.Layout) -> None:
    if layout.own:
        raise CohortError(
            f"{layout.root}: split='paper' is defined by CAMUS's patient numbers, which the cohort "
            f"{layout.meta['name']!r} ({layout.meta['kind']}) does not have; use split='official'"
        )
    if layout.suffix == ".mhd":
        training = [p for p in layout.splits if not p.startswith(disk.LEGACY_TESTING)]
        first = {p for p in training if p <= "patient0050"}  # by number: right for a part of the release too
    else:
        listed = sorted(name for names in layout.listed.values() for name in names)
        if listed != [f"patient{i:04d}" for i in range(1, 501)] or len(layout.listed["test"]) != 50:
            raise CohortError(
                f"{layout.root / 'database_split'}: split='paper' needs the release's own lists "
                "(patient0001 to patient0500, 50 of them testing); restore them from the download"
            )
        testing = set(layout.listed["test"])
        training = [name for name in listed if name not in testing]
        first = set(training[:50])
    for name in training:
        if name in layout.splits:
            layout.splits[name] = "val" if name in first else "train"


def _field(row: Any, name: str) -> Any:
    try:
        return row[name] if isinstance(row, Mapping | pd.Series) else getattr(row, name)
    except (KeyError, AttributeError):
        raise CohortError(f"the row has no {name!r}; give a row of the frames table of read_cohort") from None


def load_image(row: Any) -> np.ndarray:
    """Picture of one row of the frames table (Series, namedtuple or mapping): uint8 (H, W), apex at the top.

    CohortError names the file if it is missing, broken, or holds anything but whole numbers in 0-255.
    """
    return disk.decode(Path(_field(row, "image")), 255)


def load_labels(row: Any) -> np.ndarray:
    """Mask of one row of the frames table: uint8 (H, W), 0 and the keys of `echovlsm.STRUCTURES`, upright.

    CohortError names the file if it is missing, broken, or holds anything but the whole numbers 0-3.
    """
    labels = _field(row, "labels")
    if pd.isna(labels):
        raise CohortError(
            f"{_field(row, 'image')}: this picture has no mask; leave out rows whose labels is NA"
        )
    return disk.decode(Path(labels), 3)


def cohort_hash(root_or_frames: str | os.PathLike[str] | pd.DataFrame) -> str:
    """Hash of a cohort's content for provenance: 16 hexadecimal digits of a SHA-256.

    It covers, for every row of the frames table in order of patient, view, phase: split, and the bytes of
    picture, mask and cfg as they lie on disk. It does not depend on where the folder lies, on
    ``cohort.yaml``, or on the order of the rows; of a folder it is that of ``read_cohort(root)``.
    """
    frames = root_or_frames if isinstance(root_or_frames, pd.DataFrame) else read_cohort(root_or_frames)
    total = hashlib.sha256()
    for row in frames.sort_values(["patient", "view", "phase"]).itertuples():
        image = Path(row.image)
        paths = [image] + ([] if pd.isna(row.labels) else [Path(row.labels)])
        paths += [disk.mhd_data_file(path)[0] for path in paths if path.suffix == ".mhd"]
        total.update(f"{row.patient} {row.view} {row.phase} {row.split}".encode())
        cfg = image.with_name(f"Info_{row.view}.cfg")
        for path in [*paths, cfg] if cfg.exists() else paths:
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def check_cohort(root: str | os.PathLike[str], strict: bool = False) -> pd.DataFrame:
    """List every problem of a cohort folder; every file is decoded.

    Parameters: `root`, as for `read_cohort`; `strict` raises CohortError with the whole list if there is any.
    Returns a DataFrame, one row a problem: problem (one of `PROBLEMS`), patient (NA when not about one),
    file (relative to the cohort's folder), detail. Raises CohortError when the folder is no cohort at all.
    """
    problems = disk.scan(disk.find_layout(root), deep=True)[1]
    problems.sort(key=lambda p: (p.patient or "", p.file or "", PROBLEMS.index(p.problem)))
    table = pd.DataFrame(problems, columns=list(disk.Problem._fields), dtype="string")
    if strict and problems:
        lines = [f"  {p.problem}: {p.file or p.patient}: {p.detail}" for p in problems]
        raise CohortError(f"{root}: {len(problems)} problems\n" + "\n".join(lines))
    return table


# --- writing ---------------------------------------------------------------------------------------------

_NEEDED = ("patient", "view", "phase", "split", "image", "labels")
_METADATA = ("sex", "age", "quality", "spacing_y", "spacing_x")
# the last three are columns of a frames table that the arrays and `meta` replace
_ALLOWED = (*_NEEDED, *_METADATA, "info", "provenance", "cohort", "height", "width")


def write_cohort(
    root: str | os.PathLike[str],
    frames_with_arrays: pd.DataFrame | Iterable[Mapping[str, Any]],
    meta: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a cohort that `read_cohort` reads, in the public CAMUS release's layout; all of it or nothing.

    Parameters
    ----------
    root: folder to make. An existing one is refused, unless `overwrite` is true and it holds a
        ``cohort.yaml``; it is then replaced at the very end.
    frames_with_arrays: a DataFrame or any iterable (a generator streams: one frame is in memory at a time)
        of mappings with patient, view, phase, split, image uint8 (H, W), labels uint8 (H, W) of 0-3; where
        known sex, age, quality (the same for both phases of a view), spacing_y, spacing_x (mm, both or
        none); and optionally info (dict, further lines of ``Info_{view}.cfg``, e.g. ``{"EF": 54.0}``) and
        provenance (dict, further columns of ``provenance.csv``). Columns cohort, height, width are ignored.
    meta: name, kind (real, phantom, synthetic), and where known origin, licence, seed, parameters.

    Files are gzipped NIfTI of uint8 (the release has float32 of the same whole numbers: four times the size
    for nothing), axes (x, y), affine diag(-spacing_x, -spacing_y, 1) as in the release. Spacing is stored as
    float32; an unknown one as 1.0 without a unit. The same input gives the same bytes.

    A temporary folder beside `root` is filled and renamed at the end, so a killed call leaves nothing that
    can be read; the next call removes its leftovers. Returns the absolute path of `root`. Raises CohortError,
    with nothing visible changed, for an unknown key or value, an array of another type or shape, a label
    above 3, a frame given twice, a patient in two splits, or a second process writing the same cohort.
    """
    root = Path(os.path.realpath(Path(root).expanduser()))
    header = _check_meta(meta)
    table = isinstance(frames_with_arrays, pd.DataFrame)
    rows = frames_with_arrays.to_dict("records") if table else frames_with_arrays
    root.parent.mkdir(parents=True, exist_ok=True)
    _recover(root)
    _refuse_existing(root, overwrite)
    with _partial_folder(root) as partial:
        writer = _Writer(partial)
        for number, row in enumerate(rows, start=1):
            try:
                writer.add(row)
            except CohortError as error:
                place = " ".join(str(row[k]) for k in _NEEDED[:3] if k in row)
                raise CohortError(f"frame {number} ({place}): {error}") from None
        writer.finish(header)
        _refuse_existing(root, overwrite)
        (partial / disk.INCOMPLETE).unlink()
        # A folder with files in it cannot be replaced in one step: the old one steps aside, and _recover
        # brings it back should the process die between the two renames.
        old = root.with_name(f".{root.name}.replaced-{uuid.uuid4().hex[:8]}")
        if root.exists():
            root.rename(old)
        partial.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    return root


def _refuse_existing(root: Path, overwrite: bool) -> None:
    if not root.exists():
        return
    if not overwrite:
        raise CohortError(f"{root}: exists already; choose another folder or give overwrite=True")
    if not (root / "cohort.yaml").is_file() and not (root.is_dir() and not any(root.iterdir())):
        raise CohortError(f"{root}: has no cohort.yaml, so it is not replaced; move it away yourself")


def _recover(root: Path) -> None:
    """Remove what killed writers of `root` left beside it; bring back a cohort that was being replaced."""
    import filelock

    for path in sorted(root.parent.iterdir()):
        if path.name.startswith(f".{root.name}.partial-"):
            try:
                # the operating system frees a killed process's lock, whatever way it died
                with filelock.FileLock(path / disk.INCOMPLETE, timeout=0):
                    pass
            except (filelock.Timeout, RuntimeError) as error:
                raise CohortError(f"{root}: another process is writing it ({path}); wait for it") from error
            shutil.rmtree(path)
        elif path.name.startswith(f".{root.name}.replaced-"):
            if root.exists():
                shutil.rmtree(path)
            else:
                path.rename(root)


@contextmanager
def _partial_folder(root: Path) -> Iterator[Path]:
    """A new folder beside `root`, marked incomplete and locked; removed at the end if it still is there."""
    import filelock

    partial = root.with_name(f".{root.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    lock = filelock.FileLock(partial / disk.INCOMPLETE, timeout=0)
    try:
        with lock:
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
            pattern, expected = disk.CFG_VALUES.get(key, ("[^\r\n]+", "one line"))
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
            raise CohortError(f"image {image.shape} and labels {labels.shape} differ in shape")
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
    import nibabel

    unknown = known["spacing_y"] is None
    y, x = (1.0, 1.0) if unknown else (known["spacing_y"], known["spacing_x"])
    image = nibabel.Nifti1Image(array.T, np.diag([-x, -y, 1.0, 1.0]))
    image.header.set_xyzt_units("unknown" if unknown else "mm")
    image.header["descrip"] = disk.MARK
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
