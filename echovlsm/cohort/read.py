"""Cohorts: folders of echocardiograms, read into a frames table and checked.

A cohort is a folder in the layout of the public CAMUS release: real, phantom and synthetic images share it,
and one reader serves them all (`check` has the layouts). The frames table, one row per image:

| column | value |
| --- | --- |
| cohort | name in ``cohort.yaml``, else ``camus`` or ``camus-legacy`` |
| patient, view, phase, split | ``patient0001``, ``2CH``/``4CH``, ``ED``/``ES``, ``train``/``val``/``test`` |
| sex, age, quality | ``F``/``M``, whole years, ``good``/``medium``/``poor`` (quality belongs to the view) |
| image, labels | absolute paths; labels NA where there is no mask |
| height, width | of the upright image, pixels |
| spacing_y, spacing_x | mm a pixel; NA where the header holds the placeholder 1.0 x 1.0, or no likely size |

Missing metadata is pandas NA, never a guess. ``frames.attrs`` holds ``meta`` (name, kind, origin, licence,
seed, parameters), ``absent`` (patients whose folder is not there, and the split that lists each) and
``left_out`` (the warning of what was left out, if any).
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.cohort import check as disk
from echovlsm.cohort import files as cohort_files
from echovlsm.cohort import released
from echovlsm.cohort.files import CohortError

_log = logging.getLogger(__name__)


def read_cohort(root: str | os.PathLike[str], split: str = "official", strict: bool = False) -> pd.DataFrame:
    """Read a cohort folder into the frames table (`check.COLUMNS`), sorted by patient, view, phase.

    Only headers are read. A broken frame, a patient in two splits or in none is left out with one warning; a
    wrong cfg value or an unlikely pixel size becomes NA with the same warning; a listed patient without a
    folder is left out and logged.

    Parameters
    ----------
    root
        The public CAMUS release (or its ``database_nifti``), the old MetaImage release (or its ``training``
        or ``testing``; an old testing patient is called ``testing_patientXXXX``, because that release counts
        from 0001 again), a cohort of `write_cohort`, or the released synthetic cohort (`released`: two more
        columns, and both splits are the same).
    split
        ``official``: the release's own, by its subgroup files; for the old release, which has no validation
        group, train and test. ``paper``: that of Adhikari et al. 2023 (see the notes). ``any``: of a folder
        of patients whose subgroup files are absent or incomplete, also one that holds the patients' folders
        directly; a patient in no list has the split NA.
    strict
        Whether to run `check_cohort` first and to raise CohortError with every problem.

    Raises
    ------
    CohortError
        Nothing is left, the folder is no whole cohort, or `split` is unknown or means nothing for it.

    Notes
    -----
    The paper and its code used the old numbering: of 450 training patients the first 50 validate, the rest
    train; 50 others test. For the public release the old training numbering is inferred to be the public one
    without the testing patients, in order. That is not documented anywhere; age, sex and quality of patients
    1-5 in the authors' prompts agree with it, but it first differs from the plain public numbering at patient
    27.
    """
    if split not in ("official", "paper", "any"):
        raise CohortError(f"split is {split!r}; it must be 'official', 'paper' or 'any'")
    if released.is_released(root):
        return released.read_released(root, strict=strict)
    if strict:
        check_cohort(root, strict=True)
    layout = disk.find_layout(root, loose=split == "any")
    if split == "paper":
        _use_paper_split(layout)
    found, problems = disk.scan(layout, deep=False)
    listed = {patient: split for split, patients in layout.listed.items() for patient in patients}
    absent = {p.patient: listed[p.patient] for p in problems if p.problem == "patient absent"}
    # these show in the table as NA, or in its attrs
    left_out = [p for p in problems if p.problem not in ("missing mask", "missing cfg", "patient absent")]
    told = disk.tell(layout.root, left_out, usable=bool(found))
    if absent:
        _log.warning("%s: %d listed patients have no folder and are left out", layout.root, len(absent))
    rows = [_row(layout, frame) for frame in found]
    frames = pd.DataFrame(rows, columns=list(disk.COLUMNS)).astype(disk.TYPES)
    frames = frames.sort_values(["patient", "view", "phase"], ignore_index=True)
    frames.attrs |= {"meta": layout.meta, "absent": absent, "left_out": told}
    return frames


def is_synthetic(frames: pd.DataFrame) -> bool:
    """Whether a frames table is of a synthetic cohort: its images then have no quality."""
    return (frames.attrs.get("meta") or {}).get("kind") == "synthetic"


def _row(layout: disk.Layout, frame: disk.Found) -> dict[str, Any]:
    patient, view, phase, image, mask, header, info = frame
    spacing: tuple[float | None, float | None] = header.spacing_y, header.spacing_x
    # 1.0 x 1.0 is what a header holds when nobody knew; our writer then also leaves the unit out
    if spacing == (1.0, 1.0) and header.in_mm and not layout.own:
        spacing = None, None
    place = (layout.meta["name"], patient, view, phase, layout.splits[patient])
    known = (info.get("Sex"), info.get("Age"), info.get("ImageQuality"))
    paths = (str(image), None if mask is None else str(mask))
    return dict(
        zip(disk.COLUMNS, (*place, *known, *paths, header.height, header.width, *spacing), strict=True)
    )


def _use_paper_split(layout: disk.Layout) -> None:
    if layout.own:
        raise CohortError(
            f"{layout.root}: split='paper' is defined by CAMUS's patient numbers, which the cohort "
            f"{layout.meta['name']!r} ({layout.meta['kind']}) does not have; use split='official'"
        )
    if ".mhd" in layout.suffixes:
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


def cohort_hash(root_or_frames: str | os.PathLike[str] | pd.DataFrame) -> str:
    """Hash of a cohort's content for provenance: 16 hexadecimal digits of a SHA-256.

    It covers, for every row of the frames table in order of patient, view, phase: split, and the bytes of
    image, mask and cfg; not where the folder lies, ``cohort.yaml`` or the order of the rows.
    """
    frames = root_or_frames if isinstance(root_or_frames, pd.DataFrame) else read_cohort(root_or_frames)
    total = hashlib.sha256()
    for row in frames.sort_values(["patient", "view", "phase"]).itertuples():
        image = Path(row.image)
        paths = [image] + ([] if pd.isna(row.labels) else [Path(row.labels)])
        paths += [cohort_files.mhd_data_file(path)[0] for path in paths if path.suffix == ".mhd"]
        total.update(f"{row.patient} {row.view} {row.phase} {row.split}".encode())
        cfg = image.with_name(f"Info_{row.view}.cfg")
        for path in [*paths, cfg] if cfg.exists() else paths:
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def check_cohort(root: str | os.PathLike[str], strict: bool = False) -> pd.DataFrame:
    """List every problem of a cohort folder; every file is decoded.

    Parameters
    ----------
    root
        As for `read_cohort`.
    strict
        Whether to raise CohortError with the whole list if there is any.

    Returns
    -------
    DataFrame
        One row per problem: problem (of `check.PROBLEMS`), patient (NA when not about one), file (relative
        to the cohort's folder), detail.

    Raises
    ------
    CohortError
        The folder is no cohort at all.
    """
    found = released.is_released(root)
    problems = released.check_released(root) if found else disk.scan(disk.find_layout(root), deep=True)[1]
    order = list(disk.PROBLEMS)
    problems.sort(key=lambda p: (p.patient or "", p.file or "", order.index(p.problem)))
    table = pd.DataFrame(problems, columns=list(disk.Problem._fields), dtype="string")
    if strict:
        disk.refuse(root, problems)
    return table


def legacy_testing_map(root: str | os.PathLike[str]) -> pd.Series:
    """Old testing number to patient of the public release: the i-th is the i-th of the testing subgroup.

    The old release numbers its testing patients 1-50 again; the public one gives all 500 one numbering. Each
    published score tells the true area of its mask, and the areas of old testing patient i agree best with
    those of the i-th listed patient: for all 50 a mean difference (share of the image) below 0.003, the next
    best patient above 0.0036. That is an earlier finding, not computed here; `published.scores` does it
    again where the testing images are.

    Parameters
    ----------
    root
        The public release (or its folder `database_split`); only `subgroup_testing.txt` is read.

    Returns
    -------
    Series of str
        Index `legacy_test_patient` (`patient0001`...), name `patient`.

    Raises
    ------
    CohortError
        The list is absent or not of 50 different patients.
    """
    folder = Path(root).expanduser()
    places = folder, folder / "database_split", folder.parent / "database_split"
    found = [file for place in places if (file := place / disk.SPLIT_FILES["test"]).is_file()]
    if not found:
        raise CohortError(
            f"root: {folder} has no database_split/subgroup_testing.txt; give the folder of the public CAMUS "
            "release (in notebook 07 the parameter `camus`)"
        )
    names = disk.read_list(found[0])
    if len(names) != 50 or not all(re.fullmatch(r"patient\d{4}", name) for name in names):
        told = f"root: {found[0]} lists {len(names)} patients, not CAMUS's 50"
        raise CohortError(f"{told}; restore it from the download")
    index = pd.Index([f"patient{i:04d}" for i in range(1, 51)], name="legacy_test_patient")
    return pd.Series(names, index=index, name="patient")
