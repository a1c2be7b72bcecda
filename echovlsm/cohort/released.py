"""The synthetic cohort that the authors of "Echo from Noise" released, read as a cohort.

Stojanovski et al. 2023, doi 10.5281/zenodo.7921055: images that their semantic diffusion model drew from
perturbed CAMUS labels. Layout, a folder each for 2CH_ED, 2CH_ES, 4CH_ED, 4CH_ES (any name is accepted)::

    <view>/{images,annotations,sector_annotations}/{training,validation,testing}/
        patientXXXX_{2CH,4CH}_{ED,ES}_{training,validation,testing}_{0..4}.png

The last number is the variant of the label; the authors' scripts can leave it out for testing images. Masks
are those of ``annotations``, or of ``sector_annotations`` where there are none. What a grey value of a mask
means is not stated and differs between the authors' scripts, so it is read off the masks of each folder
(`detect_order`) and stands in the frames table: `load_labels` goes by these two columns.

| column | value |
| --- | --- |
| label_order | ``camus`` (1 cavity, 2 myocardium, 3 atrium), ``sector`` (`labels.SECTOR_CLASSES`) |
| label_step | grey value of class 1, one of `STEPS` |
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from echovlsm import PHASES, VIEWS
from echovlsm.cohort import check as disk
from echovlsm.cohort.files import CohortError, RangeError, listed
from echovlsm.cohort.sectors import from_sector_map

if TYPE_CHECKING:
    import pandas as pd


ORDERS: tuple[str, ...] = ("camus", "sector")
STEPS: tuple[float, ...] = (1.0, 51.0, 63.75, 85.0)
"""Grey value of class 1: plain classes, fifths (the authors' visible labels), quarters (0, 63, 127, 191, 255)
and thirds (0, 85, 170, 255) of 255. Spread values may be rounded either way."""

META: dict[str, Any] = dict.fromkeys(disk.META_KEYS) | {
    "name": "synthetic-camus-released",
    "kind": "synthetic",
    "origin": "doi 10.5281/zenodo.7921055 (Stojanovski et al. 2023)",
}
SPLIT_FOLDERS: dict[str, str] = {"training": "train", "validation": "val", "testing": "test"}

_NAME = re.compile(
    rf"(?P<patient>patient\d+)_(?P<view>{'|'.join(VIEWS)})_(?P<phase>{'|'.join(PHASES)})"
    rf"_(?P<split>{'|'.join(SPLIT_FOLDERS)})(?:_(?P<variant>\d+))?\.png"
)
_MASKS = ("annotations", "sector_annotations")
_SAMPLE = 64  # masks of a folder that decide on its convention
_MAX_PIXELS = 4096 * 4096  # the release has 256 x 256; a png of kilobytes can unpack to gigabytes

_log = logging.getLogger(__name__)


# --- layout ----------------------------------------------------------------------------------------------


def is_released(root: str | os.PathLike[str]) -> bool:
    """Whether `root` is the released synthetic cohort, or one of its view folders."""
    return bool(_view_folders(_base(root)))


def _base(root: str | os.PathLike[str]) -> Path:
    return Path(root).expanduser().absolute()


def _view_folders(base: Path) -> list[Path]:
    if not base.is_dir() or (base / "database_nifti").is_dir():
        return []
    found = [
        folder
        for folder in (base, *sorted(base.iterdir()))
        if any((folder / "images" / split).is_dir() for split in SPLIT_FOLDERS)
        and any((folder / masks).is_dir() for masks in _MASKS)
    ]
    # the authors' scripts also gather everything in a folder of this name
    return [folder for folder in found if folder.name != "all_views"] or found


# --- files -----------------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    """PIL image, undecoded; CohortError if it is none, or too large."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is tighter
            image = Image.open(path, formats=("PNG",))
    except Exception as error:  # a broken file raises many kinds
        raise CohortError(f"{path}: cannot be read ({type(error).__name__}); copy it again") from error
    if image.width * image.height > _MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise CohortError(f"{path}: {size} pixels; refused, the release has 256 x 256")
    return image


def decode_png(path: Path, grey: bool = False) -> np.ndarray:
    """Decode a png of 8 bits: uint8 (H, W).

    Colours are turned to grey (luminance), as the authors do with what their model draws in three channels;
    with `grey`, for masks, the channels must be the same, or RangeError names the file. CohortError where it
    is broken, has more than 4096 x 4096 pixels or another type.
    """
    with _open(path) as image:
        if image.mode not in ("L", "RGB"):
            raise CohortError(
                f"{path}: png of type {image.mode}; export it with 8 bits a channel, grey or RGB, no palette"
            )
        try:
            values = np.array(image)
            if image.mode == "RGB" and not grey:
                values = np.array(image.convert("L"))
        except Exception as error:
            raise CohortError(f"{path}: cannot be read ({type(error).__name__}); copy it again") from error
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise RangeError(f"{path}: a mask in colour; its grey values are needed, export it as grey")
        values = np.ascontiguousarray(values[..., 0])
    return values


def _classes(values: np.ndarray, step: float) -> np.ndarray | None:
    """Classes of the grey values of a mask, or None where they are not multiples of `step`."""
    classes = np.rint(values / step)
    top = min(4, round(255 / step))
    if classes.size and (classes.max() > top or np.abs(values - classes * step).max() > (step > 1)):
        return None
    return classes.astype(np.uint8)


def load_released_labels(path: Path, order: str, step: float) -> np.ndarray:
    """The study's labels, uint8 (H, W) of 0-3, of one mask of the release.

    `order` and `step` are the columns label_order and label_step. RangeError names a file that holds another
    value than these allow, CohortError one that cannot be read.
    """
    if order not in ORDERS:
        raise CohortError(f"{path}: label_order is {order!r}; it must be one of {', '.join(ORDERS)}")
    values = decode_png(path, grey=True)
    classes = _classes(values, step)
    if classes is None or (order == "camus" and classes.max() > 3):
        raise RangeError(
            f"{path}: grey values {listed(values)} are not those of its folder ({order} order, "
            f"step {step:g}); correct the file, or give read_released(labels=...) if the order was mistaken"
        )
    return classes if order == "camus" else from_sector_map(classes, str(path))


# --- label convention --------------------------------------------------------------------------------------


def order_of(classes: np.ndarray) -> str | None:
    """Order of one mask's classes (H, W), 0-4: ``camus``, ``sector``, or None where it shows neither.

    Class 4 is there in sector order only. Otherwise 1, 2 and 3 must be there, and the class that surrounds
    the cavity (at least half of the pixels next to class 1) is the myocardium: 2 in CAMUS order, if it also
    is less than 60 % of all that is not 0; 3 in sector order, if class 2 also is larger than it.
    """
    from scipy.ndimage import binary_dilation

    area = np.bincount(classes.ravel(), minlength=5)
    if area[4]:
        return "sector"
    if not area[1:4].all():
        return None
    cavity = classes == 1
    around = classes[binary_dilation(cavity, np.ones((3, 3), bool)) & ~cavity]
    share = np.bincount(around, minlength=5) / max(1, around.size)
    if share[2] >= 0.5 and area[2] < 0.6 * area[1:].sum():
        return "camus"
    if share[3] >= 0.5 and area[2] > area[3]:
        return "sector"
    return None


def detect_order(
    masks: list[Path], where: Path, labels: Literal["detect", "camus", "sector"] = "detect"
) -> tuple[str, float]:
    """Label order and grey value of class 1 of a folder's masks, from 64 of them spread over the folder.

    Every mask that shows an order (`order_of`) must show the same one, and one must. CohortError, which says
    what was seen, where the order or the grey values are ambiguous; `labels` decides on the order by hand.
    """
    chosen = masks if len(masks) <= _SAMPLE else [masks[i * len(masks) // _SAMPLE] for i in range(_SAMPLE)]
    decoded = []
    for path in chosen:
        try:
            decoded.append(decode_png(path, grey=True))
        except CohortError as error:
            _log.debug("not used to detect the labels' order: %s", error)
    if not decoded:
        raise CohortError(f"{where}: none of {len(chosen)} masks can be read; copy the folder again")
    values = np.unique(np.concatenate([np.unique(mask) for mask in decoded]))
    steps = [step for step in STEPS if _classes(values, step) is not None]
    if values.max() <= 4:  # classes as they are; a spread of nothing but 0 is no spread
        steps = [1.0]
    if len(steps) != 1:
        why = "fit several spreads" if steps else "are neither classes 0-4 nor classes spread over 0-255"
        raise CohortError(
            f"{where}: the grey values {listed(values)} {why} (steps {', '.join(f'{s:g}' for s in STEPS)}); "
            "store the classes as 0, 1, 2, ..."
        )
    seen = Counter(order_of(_classes(mask, steps[0])) for mask in decoded)
    if labels != "detect":
        return labels, steps[0]
    certain = [order for order in ORDERS if seen[order]]
    if len(certain) != 1:
        raise CohortError(
            f"{where}: the label order is ambiguous, of {len(decoded)} masks with the grey values "
            f"{listed(values)} {seen['camus']} show CAMUS order (2 surrounds 1), {seen['sector']} sector "
            f"order (4 is there, or 3 surrounds 1), {seen[None]} neither; look at them and give "
            "echovlsm.cohort.released.read_released(root, labels='camus') or labels='sector'"
        )
    return certain[0], steps[0]


# --- reading -----------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    patient: str
    view: str
    phase: str
    split: str
    image: str
    labels: str | None
    height: int
    width: int
    label_order: str | None
    label_step: float | None


def read_released(
    root: str | os.PathLike[str],
    labels: Literal["detect", "camus", "sector"] = "detect",
    strict: bool = False,
) -> pd.DataFrame:
    """Frames table of the released synthetic cohort: `check.COLUMNS`, label_order, label_step.

    A patient of the table is a variant of a source patient, ``patient0001_validation_3``: the file's name
    without view and phase, with the split because the release numbers testing patients from 0001 again. The
    five variants of a source patient are not independent, and in one split. Splits are those of the folders,
    the paper's. In the authors' scripts the images of ``testing`` are real ones, copied from CAMUS. Sex, age,
    quality and spacing are NA.

    Parameters
    ----------
    root
        The folder that holds the view folders, or one view folder.
    labels
        The masks' order, or ``detect`` (`detect_order`).
    strict
        Whether to raise CohortError with every problem; else what is broken is left out with one warning.

    Raises
    ------
    CohortError
        `root` is not the release, nothing is left, a frame is there twice, or the labels' order is ambiguous.
    """
    import pandas as pd

    if labels not in ("detect", *ORDERS):
        raise CohortError(f"labels is {labels!r}; it must be 'detect', 'camus' or 'sector'")
    base = _base(root)
    rows, problems = _scan(base, labels, deep=strict)
    if strict:
        disk.refuse(base, problems)
    left_out = disk.tell(base, [p for p in problems if p.problem != "missing mask"], usable=bool(rows))
    types = disk.TYPES | {"label_order": "string", "label_step": "Float64"}
    frames = pd.DataFrame(rows).assign(cohort=META["name"]).reindex(columns=list(types)).astype(types)
    frames = frames.sort_values(["patient", "view", "phase"], ignore_index=True)
    frames.attrs |= {"meta": dict(META), "absent": {}, "left_out": left_out}
    return frames


def check_released(root: str | os.PathLike[str]) -> list[disk.Problem]:
    """Every problem of the released synthetic cohort, every file decoded, for `check_cohort`."""
    return _scan(_base(root), "detect", deep=True)[1]


def _scan(base: Path, labels: str, deep: bool) -> tuple[list[_Row], list[disk.Problem]]:
    folders = _view_folders(base)
    if not folders:
        raise CohortError(
            f"{base}: not the released synthetic cohort; give the folder that holds "
            "<view>/images/{training,validation,testing}/*.png and <view>/annotations/..."
        )
    rows: list[_Row] = []
    problems: list[disk.Problem] = []
    for folder in folders:
        for split in SPLIT_FOLDERS:
            if (folder / "images" / split).is_dir():
                found, wrong = _scan_folder(base, folder, split, labels, deep)
                rows += found
                problems += wrong
    taken: dict[tuple[str, str, str], str] = {}
    for row in rows:
        other = taken.setdefault(row[:3], row.image)
        if other != row.image:
            raise CohortError(f"{row.image}: the same frame as {other}; take one of the two away")
    return rows, problems


def _scan_folder(
    base: Path, folder: Path, split: str, labels: str, deep: bool
) -> tuple[list[_Row], list[disk.Problem]]:
    images = {path.name: path for path in sorted((folder / "images" / split).glob("*.png"))}
    kinds = [sorted((folder / kind / split).glob("*.png")) for kind in _MASKS]
    paths = next(filter(None, kinds), [])
    masks = {path.name: path for path in paths if _NAME.fullmatch(path.name)}
    order, step = detect_order(list(masks.values()), paths[0].parent, labels) if masks else (None, None)
    rows: list[_Row] = []
    problems: list[disk.Problem] = []

    def note(problem: str, patient: str | None, path: Path, detail: str) -> None:
        problems.append(disk.Problem(problem, patient, path.relative_to(base).as_posix(), detail))

    for name, path in images.items():
        match = _NAME.fullmatch(name)
        if not match or match["split"] != split:
            note("unreadable file", None, path, f"the name is not patientXXXX_2CH_ED_{split}_0.png")
            continue
        patient = "_".join(filter(None, match.group("patient", "split", "variant")))
        mask = masks.get(name)
        if mask is None:
            note("missing mask", patient, folder / _MASKS[0] / split / name, "no such file")
        sizes, usable = [], True
        for file in filter(None, (path, mask)):
            try:
                with _open(file) as header:
                    sizes.append((header.height, header.width))
                if deep and file is path:
                    decode_png(file)
                elif deep:
                    _check_mask(file, order, step)
            except CohortError as error:
                kind = "label out of range" if isinstance(error, RangeError) else "unreadable file"
                note(kind, patient, file, str(error))
                usable = False
        if usable and len(set(sizes)) > 1:
            note("shape mismatch", patient, mask, f"mask {sizes[1]}, image {sizes[0]} (height, width)")
            usable = False
        if usable:
            labelled = (str(mask), *sizes[0], order, step) if mask else (None, *sizes[0], None, None)
            rows.append(
                _Row(patient, match["view"], match["phase"], SPLIT_FOLDERS[split], str(path), *labelled)
            )
    for name in masks.keys() - images.keys():
        note("missing image", None, folder / "images" / split / name, "no such file")
    return rows, problems


def _check_mask(path: Path, order: str, step: float) -> None:
    """Decode a mask; RangeError if its values, or the order that it shows, are not its folder's."""
    load_released_labels(path, order, step)
    shown = order_of(_classes(decode_png(path, grey=True), step))
    if shown not in (None, order):
        raise RangeError(f"{path}: shows {shown} order, its folder {order} order; sort the masks")
