"""What lies in a cohort folder and whether it is sound: layouts, and every problem found.

The layouts known:

- the public CAMUS release: ``database_nifti/patientXXXX/patientXXXX_{2CH,4CH}_{ED,ES}[_gt].nii.gz`` with
  ``Info_{view}.cfg`` beside them, and ``database_split/subgroup_{training,validation,testing}.txt``; also
  with plain ``.nii``;
- our own cohorts: the same, and a ``cohort.yaml`` that says what the images are;
- the old CAMUS release: ``training/patientXXXX/patientXXXX_{view}_{phase}[_gt].mhd`` with ``.raw``, and
  optionally ``testing/``, whose patients are numbered from 0001 again.

Source: Leclerc et al. 2019, doi 10.1109/TMI.2019.2900516, and the two releases themselves.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from echovlsm import PHASES, VIEWS
from echovlsm.base import files
from echovlsm.cohort.files import NIFTI, CohortError, Header, RangeError, decode, parse_cfg, read_header

KINDS: tuple[str, ...] = ("real", "phantom", "synthetic")
META_KEYS: tuple[str, ...] = ("name", "kind", "origin", "licence", "seed", "parameters")
INCOMPLETE = ".incomplete"  # lies in a cohort folder for as long as it is being written
SPLIT_FILES: dict[str, str] = {
    "train": "subgroup_training.txt",
    "val": "subgroup_validation.txt",
    "test": "subgroup_testing.txt",
}
PATIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LEGACY_TESTING = "testing_"  # keeps old testing patient 1 apart from old training patient 1

PROBLEMS: dict[str, str] = {
    "missing mask": "copy it again, or use the image where no mask is needed",
    "missing image": "copy the cohort again",
    "shape mismatch": "copy both again, or export the mask at the image's size",
    "label out of range": "",
    "image out of range": "",
    "unreadable file": "",
    "file twice": "take one of the two away",
    "unlikely pixel size": "export it again with the pixel's size in mm; it is NA until then",
    "missing cfg": "copy it again; without it sex, age and quality are NA",
    "malformed cfg": "correct the line, or take it out: the value is then NA",
    "malformed split file": "correct the line; each holds one patient's folder name",
    "patient in two splits": "take it out of one of them",
    "patient absent": "copy its folder, or take it off the list",
    "patient in no split": "add it to one file of database_split, or move its folder away",
}
"""Every value of the column `problem` of `check_cohort`, and what to do if `detail` does not say it."""

TYPES: dict[str, str] = {
    **dict.fromkeys(("cohort", "patient", "view", "phase", "split", "sex"), "string"),
    **{"age": "Int64", "quality": "string", "image": "string", "labels": "string"},
    **{"height": "int64", "width": "int64", "spacing_y": "Float64", "spacing_x": "Float64"},
}
"""Pandas types of the frames table."""
COLUMNS: tuple[str, ...] = tuple(TYPES)
"""Columns of the frames table, in order."""

_ORIGIN = "CAMUS, Leclerc et al. 2019, doi 10.1109/TMI.2019.2900516: "


class CohortWarning(UserWarning):
    """A cohort was read, but something in it was left out."""


class Problem(NamedTuple):
    """One thing wrong in a cohort; `file` is relative to the cohort's root, `problem` one of `PROBLEMS`."""

    problem: str
    patient: str | None
    file: str | None
    detail: str

    def __str__(self) -> str:
        remedy = PROBLEMS[self.problem]
        return f"{self.problem}: {self.file or self.patient}: {self.detail}" + (
            f"; {remedy}" if remedy else ""
        )


def refuse(root: str | os.PathLike[str], problems: list[Problem]) -> None:
    """Raise CohortError with every problem, if there is any."""
    if problems:
        raise CohortError("\n  ".join([f"{root}: {len(problems)} problems", *map(str, problems)]))


def tell(root: Path, left_out: list[Problem], usable: bool) -> list[str]:
    """Warn the reader's caller of what was left out; CohortError where nothing `usable` is left."""
    first = "".join(f" (first: {problem})" for problem in left_out[:1])
    remedy = f"echovlsm.cohort.check_cohort({str(root)!r}) lists every problem"
    if not usable:
        raise CohortError(f"{root}: no usable image{first}; {remedy}")
    if not left_out:
        return []
    text = f"{root}: what {len(left_out)} problems affect was left out{first}; {remedy}"
    warnings.warn(text, CohortWarning, stacklevel=3)
    return [text]


@dataclass
class Layout:
    """Where a cohort's files lie, found from its folder alone."""

    root: Path
    suffixes: tuple[str, ...]  # ends of its files' names: `NIFTI`, or ".mhd"
    own: bool
    meta: dict[str, Any]
    folders: dict[str, Path] = field(default_factory=dict)  # patient -> folder
    splits: dict[str, str] = field(default_factory=dict)  # patient -> train | val | test
    listed: dict[str, list[str]] = field(default_factory=dict)  # split -> patients, as the files have it
    expected_frames: int | None = None
    problems: list[Problem] = field(default_factory=list)

    def file_of(self, stem: Path) -> Path:
        """The file of an image or a mask, whether there is one or not."""
        paths = [stem.with_name(stem.name + suffix) for suffix in self.suffixes]
        return next((path for path in paths if path.exists()), paths[0])

    def note(self, problem: str, patient: str | None, path: Path, detail: str) -> None:
        """Remember one problem."""
        self.problems.append(Problem(problem, patient, path.relative_to(self.root).as_posix(), detail))


# --- layouts ---------------------------------------------------------------------------------------------


def find_layout(root: str | os.PathLike[str], loose: bool = False) -> Layout:
    """The layout of `root`; CohortError, which names the remedy, where it is none of them or unfinished.

    With `loose` also a folder of NIfTI patients with whatever subgroup files there are, or none.
    """
    base = Path(root).expanduser().absolute()
    if not base.is_dir():
        raise CohortError(
            f"{base}: no such folder; {nearest_folder(base)}; give the folder that holds database_nifti/ or "
            "training/"
        )
    if base.name == "database_nifti":
        base = base.parent
    if (base / INCOMPLETE).exists():
        raise CohortError(f"{base}: not a whole cohort, writing it never finished; write it again")
    nifti = base / "database_nifti"
    if loose and any((inner := nifti if nifti.is_dir() else base).glob("*/*_[24]CH_E[DS].nii*")):
        return _loose_layout(base, inner)
    if nifti.is_dir():
        return _nifti_layout(base)
    if base.name in ("training", "testing") and any(base.glob("patient*/*.mhd")):
        return _legacy_layout(base.parent, (base.name,))
    if any(base.glob("training/patient*/*.mhd")) or any(base.glob("testing/patient*/*.mhd")):
        return _legacy_layout(base, ("training", "testing"))
    inner = [p.parent for d in ("database_nifti", "training") for p in sorted(base.glob(f"*/{d}"))]
    hint = f"; did you mean {inner[0]}?" if inner else ""
    raise CohortError(
        f"{base}: neither database_nifti/ (public CAMUS release, EchoVLSM cohort) nor "
        f"training/patientXXXX/*.mhd (old CAMUS release) is here{hint}"
    )


def nearest_folder(path: Path) -> str:
    """What is there in place of a folder that is not: one with nearly its name, else the one above."""
    above = next(parent for parent in path.parents if parent.is_dir())
    sought = path.relative_to(above).parts[0]
    near = difflib.get_close_matches(sought, [p.name for p in above.iterdir() if p.is_dir()], n=1)
    return f"the nearest folder there is: {above / near[0] if near else above}"


def camus_meta(name: str, release: str) -> dict[str, Any]:
    """What `cohort.yaml` would say of a CAMUS release."""
    given = {"name": name, "kind": "real", "origin": _ORIGIN + release, "licence": "CC BY-NC-SA 4.0"}
    return dict.fromkeys(META_KEYS) | given


def _open_nifti(base: Path, inner: Path) -> Layout:
    """The layout of the patients' folders in `inner`, without their splits."""
    own, expected = (base / "cohort.yaml").is_file(), None
    meta = camus_meta("camus", "public NIfTI release")
    if own:
        meta, expected = read_meta(base / "cohort.yaml")
    folders = {p.name: p for p in sorted(inner.iterdir()) if p.is_dir() and PATIENT_NAME.fullmatch(p.name)}
    return Layout(base, NIFTI, own, meta, folders, expected_frames=expected)


def _loose_layout(base: Path, inner: Path) -> Layout:
    layout = _open_nifti(base, inner)
    layout.expected_frames = None
    layout.folders = {name: p for name, p in layout.folders.items() if any(p.glob(f"{name}_*.nii*"))}
    layout.splits = dict.fromkeys(layout.folders)
    for split, file in SPLIT_FILES.items():
        listed = base / "database_split" / file
        patients = read_list(listed) if listed.is_file() else []
        layout.splits |= {patient: split for patient in patients if patient in layout.folders}
    return layout


def _nifti_layout(base: Path) -> Layout:
    split_dir = base / "database_split"
    missing = [name for name in SPLIT_FILES.values() if not (split_dir / name).is_file()]
    if missing:
        raise CohortError(
            f"{split_dir}: {', '.join(missing)} not found; database_split/ of the CAMUS download "
            f"must lie beside database_nifti/ ({base})"
        )
    layout = _open_nifti(base, base / "database_nifti")
    where: dict[str, list[str]] = {}
    for split, file_name in SPLIT_FILES.items():
        path = split_dir / file_name
        layout.listed[split] = []
        for name in read_list(path):
            if PATIENT_NAME.fullmatch(name):  # also keeps "../elsewhere" out
                layout.listed[split].append(name)
                where.setdefault(name, []).append(split)
            else:
                layout.note("malformed split file", None, path, f"{name!r} is not a patient's folder name")
    for name, splits in where.items():
        lists = " and ".join(SPLIT_FILES[s] for s in splits)
        folder = base / "database_nifti" / name
        if len(splits) > 1:
            layout.note("patient in two splits", name, folder, f"listed in {lists}")
        elif name in layout.folders:
            layout.splits[name] = splits[0]
        if name not in layout.folders:
            layout.note("patient absent", name, folder, f"listed in {lists}, but its folder is absent")
    for name, folder in layout.folders.items():
        if name not in where:
            layout.note("patient in no split", name, folder, "listed in no file of database_split")
    return layout


def read_list(path: Path) -> list[str]:
    """The different lines of a subgroup file, in order; what is no text shows in them as such."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return list(dict.fromkeys(filter(None, map(str.strip, lines))))


def _legacy_layout(base: Path, parts: tuple[str, ...]) -> Layout:
    layout = Layout(base, (".mhd",), False, camus_meta("camus-legacy", "old MetaImage release"))
    for part, prefix, split in (("training", "", "train"), ("testing", LEGACY_TESTING, "test")):
        if part in parts:
            for folder in sorted((base / part).glob("patient*")):
                if folder.is_dir() and PATIENT_NAME.fullmatch(folder.name):
                    layout.folders[prefix + folder.name] = folder
                    layout.splits[prefix + folder.name] = split
    return layout


def check_meta(meta: Any, where: str) -> None:
    """CohortError unless `meta` has a known kind, and a name that no page or figure reads as markup."""
    if not isinstance(meta, Mapping) or not isinstance(meta.get("name"), str) or not meta["name"].strip():
        raise CohortError(f"{where}: name is missing; give the cohort a name")
    if not meta["name"].isprintable() or set(meta["name"]) & set("<>`{}|$\\"):
        raise CohortError(
            f"{where}: name is {meta['name']!r}; it must be one line without < > ` {{ }} | $ \\: choose "
            "another name (a cohort made by this project is named after its folder)"
        )
    if meta.get("kind") not in KINDS:
        raise CohortError(f"{where}: kind is {meta.get('kind')!r}; it must be one of {', '.join(KINDS)}")


def read_meta(path: Path) -> tuple[dict[str, Any], int | None]:
    """The `META_KEYS` of a ``cohort.yaml`` (None when left out) and the number of frames it counts."""
    content = files.read_yaml(path, CohortError, "copy it again from where the cohort came")
    check_meta(content, str(path))
    frames = content.get("frames")
    return {key: content.get(key) for key in META_KEYS}, frames if isinstance(frames, int) else None


# --- scan --------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """One frame whose files are there and agree."""

    patient: str
    view: str
    phase: str
    image: Path
    labels: Path | None
    header: Header
    info: dict[str, Any]


def scan(layout: Layout, deep: bool) -> tuple[list[Found], list[Problem]]:
    """Every usable frame of a patient with one split, and all problems; `deep` decodes every file."""
    frames: list[Found] = []
    layout.problems, before = list(layout.problems), layout.problems  # a layout may be scanned twice
    testing = [folder for name, folder in layout.folders.items() if name.startswith(LEGACY_TESTING)]
    masks_in_testing = any(any(folder.glob("*_gt.mhd")) for folder in testing)
    images = 0
    for patient, folder in sorted(layout.folders.items()):
        # the old release came without the masks of its testing patients
        masked = masks_in_testing or folder not in testing
        for view in VIEWS:
            stems = {phase: folder / f"{folder.name}_{view}_{phase}" for phase in PHASES}
            found = {phase: _scan_frame(layout, patient, stems[phase], masked, deep) for phase in PHASES}
            count = sum(layout.file_of(stem).exists() for stem in stems.values())
            images += count
            cfg, info = folder / f"Info_{view}.cfg", {}
            if cfg.exists():
                info, wrong = parse_cfg(cfg)
                for detail in wrong:
                    layout.note("malformed cfg", patient, cfg, detail)
            elif count:
                layout.note("missing cfg", patient, cfg, "no such file")
            if patient in layout.splits:
                frames += [Found(patient, view, phase, *f, info) for phase, f in found.items() if f]
    if layout.expected_frames not in (None, images):
        detail = f"cohort.yaml counts {layout.expected_frames} images, {images} are here"
        layout.note("missing image", None, layout.root / "cohort.yaml", detail)
    problems, layout.problems = layout.problems, before
    return frames, problems


def _scan_frame(
    layout: Layout, patient: str, stem: Path, masked: bool, deep: bool
) -> tuple[Path, Path | None, Header] | None:
    both = stem, stem.with_name(f"{stem.name}_gt")
    image, mask = map(layout.file_of, both)
    for one, path in zip(both, (image, mask), strict=True):
        for other in (one.with_name(one.name + suffix) for suffix in layout.suffixes):
            if other != path and other.exists():
                layout.note("file twice", patient, other, f"{path.name} is there too, and that one is read")
    has_image, has_mask = image.exists(), mask.exists()
    if not has_image and (has_mask or not layout.own):
        layout.note("missing image", patient, image, "no such file")
    if has_image and not has_mask and masked:
        layout.note("missing mask", patient, mask, "no such file")
    headers: dict[Path, Header] = {}
    usable = has_image
    for path, top, kind in ((image, 255, "image out of range"), (mask, 3, "label out of range")):
        if path.exists():
            try:
                headers[path] = read_header(path)
                if deep:
                    decode(path, top)
            except CohortError as error:
                name = kind if isinstance(error, RangeError) else "unreadable file"
                layout.note(name, patient, path, str(error))
                usable = False
    if any(header.by_us for header in headers.values()) and not layout.own:  # else it would pass for CAMUS
        raise CohortError(f"{layout.root}: written by EchoVLSM, but cohort.yaml is missing; copy it whole")
    if image in headers and headers[image].doubt:
        layout.note("unlikely pixel size", patient, image, headers[image].doubt)
    if len(headers) == 2 and headers[mask][:2] != headers[image][:2]:
        detail = f"mask {headers[mask][:2]}, image {headers[image][:2]} (height, width)"
        layout.note("shape mismatch", patient, mask, detail)
        usable = False
    return (image, mask if has_mask else None, headers[image]) if usable else None
