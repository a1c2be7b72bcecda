"""Clinical ends of a segmentation: area and volume of the left ventricular cavity, and ejection fraction.

Volumes follow the recommendations of the ASE and EACVI (Lang et al. 2015, doi 10.1016/j.echo.2014.10.003):

- biplane method of discs (modified Simpson): 20 discs between apex and valve plane, each an ellipse whose
  diameters are seen in the apical two- and four-chamber view;
- area-length method of a single view, V = 8 A^2 / (3 pi L), where only one view has a known pixel size.

Every length needs a pixel size. A placeholder is refused: a volume from it is no volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from echovlsm import PHASES, STRUCTURES, VIEWS
from echovlsm.cohort import masks
from echovlsm.evaluation.scoring import pixel_size

if TYPE_CHECKING:
    import pandas as pd

DISCS: int = 20
"""Number of discs of the method of discs."""

_CAVITY, _ATRIUM = (
    next(value for value, name in STRUCTURES.items() if name == wanted)
    for wanted in ("left ventricular cavity", "left atrium cavity")
)


class ClinicalError(ValueError):
    """Masks or a pixel size from which no clinical measure can be had."""


class Shape(NamedTuple):
    """A cavity in one view: area in mm^2, length in mm, diameters of `DISCS` discs in mm, apex last."""

    area: float
    length: float
    diameters: np.ndarray


def check_spacing(spacing: Any, where: str = "spacing") -> tuple[float, float]:
    """The (height, width) of a pixel in millimetres; ClinicalError where it is missing, not positive, or the
    1.0 x 1.0 that headers hold when nobody knew.
    """
    known = pixel_size(spacing)
    if known is None:
        raise ClinicalError(
            f"{where}: {spacing!r} is no pixel size in millimetres, so there is no area, volume or ejection "
            "fraction; leave this view out, or give the release whose headers have the size"
        )
    if known == (1.0, 1.0):
        raise ClinicalError(
            f"{where}: 1.0 x 1.0 mm is the placeholder of a header whose pixel size is unknown; leave this "
            "view out, or give the release whose headers have the size"
        )
    return known


def measure(labels: np.ndarray, spacing: Any, where: str = "labels") -> Shape:
    """Area, long axis and diameters of the left ventricular cavity of one view.

    The long axis runs from the middle of the valve plane, where cavity and atrium touch, to the farthest
    point of the cavity, the apex; where no atrium touches, along the cavity's main direction. The discs cut
    the whole cavity across that axis in equal steps, so that they hold all of its area.

    Parameters
    ----------
    labels
        Label map, integer (H, W); of cavity and atrium only the largest part counts.
    spacing
        (height, width) of a pixel in millimetres.
    where
        What the error names.

    Raises
    ------
    ClinicalError
        No cavity, or no genuine pixel size.
    """
    height, width = check_spacing(spacing, where)
    # a stray pixel must not become the apex
    cavity, atrium = (
        masks.largest_part(np.asarray(labels) == value, diagonals=False) for value in (_CAVITY, _ATRIUM)
    )
    if not cavity.any():
        raise ClinicalError(f"{where}: no left ventricular cavity, so there is no volume; leave it out")
    points = np.argwhere(cavity) * (height, width)
    across = _axis(points, cavity, atrium, (height, width))
    along = points @ across
    # pixels reach half their extent beyond their centres
    reach = 0.5 * (abs(across[0]) * height + abs(across[1]) * width)
    low, high = along.min() - reach, along.max() + reach
    length = float(high - low)
    shares = _shares((along - low) / length * DISCS, 2 * reach / length * DISCS)
    area = len(points) * height * width
    return Shape(area, length, shares * height * width / (length / DISCS))


def volume(shapes: Mapping[str, Shape]) -> tuple[float, str]:
    """Volume of the cavity in ml, and the method: biplane from both views, area-length from one."""
    known = [shapes[view] for view in VIEWS if view in shapes]
    if not known:
        raise ClinicalError("no view with a genuine pixel size: there is no volume")
    if len(known) == 1:
        (one,) = known
        return 8 * one.area**2 / (3 * math.pi * one.length) / 1000, "area-length"
    first, second = known
    step = max(first.length, second.length) / DISCS
    return float(math.pi / 4 * (first.diameters * second.diameters).sum() * step) / 1000, "biplane"


def ejection_fraction(end_diastolic: float, end_systolic: float) -> float:
    """Ejection fraction in percent from two volumes; ClinicalError where the first is not positive."""
    if not end_diastolic > 0:
        raise ClinicalError(
            f"end-diastolic volume {end_diastolic!r}: not positive, so nothing is ejected of it"
        )
    return 100 * (end_diastolic - end_systolic) / end_diastolic


def clinical_table(images: Iterable[tuple[Mapping[str, Any], np.ndarray]]) -> pd.DataFrame:
    """Volumes and ejection fraction of every patient.

    Parameters
    ----------
    images
        (row, labels): `row` of the frames table; `labels` (H, W) on the grid whose pixel size that is. A view
        counts where both phases have a genuine size.

    Returns
    -------
    DataFrame
        One row a patient: `patient, method, views, edv_ml, esv_ml, ef_percent, area_ed_cm2, area_es_cm2` (of
        the last view in `views`). Patients without any view of known size are left out: `attrs["left_out"]`
        has their names. A cavity that is missing gives NaN.

    Raises
    ------
    ClinicalError
        No patient has a view of known size.
    """
    import pandas as pd

    found: dict[str, dict[tuple[str, str], Shape | None]] = {}
    for row, labels in images:
        patient = found.setdefault(str(row["patient"]), {})
        try:
            spacing = check_spacing((row["spacing_y"], row["spacing_x"]))
        except ClinicalError:
            continue
        where = f"{row['patient']} {row['view']} {row['phase']}"
        empty = not (np.asarray(labels) == _CAVITY).any()
        patient[row["view"], row["phase"]] = None if empty else measure(labels, spacing, where)
    rows, left_out = [], []
    for name, shapes in found.items():
        views = [view for view in VIEWS if all((view, phase) in shapes for phase in PHASES)]
        if views:
            rows.append({"patient": name, **_of_patient(shapes, views)})
        else:
            left_out.append(name)
    if not rows:
        raise ClinicalError(
            "no patient has a view whose pixel size is known in both phases: there is no volume to compare"
        )
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _of_patient(shapes: Mapping[tuple[str, str], Shape | None], views: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": "area-length" if len(views) == 1 else "biplane",
        "views": "+".join(views),
    }
    volumes = {}
    for phase in PHASES:
        seen = {view: shapes[view, phase] for view in views}
        last = seen[views[-1]]
        volumes[phase] = math.nan if None in seen.values() else volume(seen)[0]
        row[f"area_{phase.lower()}_cm2"] = last.area / 100 if last else math.nan
    row |= {f"{name}_ml": volumes[phase] for name, phase in (("edv", "ED"), ("esv", "ES"))}
    known = not any(math.isnan(value) for value in volumes.values())
    row["ef_percent"] = ejection_fraction(volumes["ED"], volumes["ES"]) if known else math.nan
    return row


def _axis(
    points: np.ndarray, cavity: np.ndarray, atrium: np.ndarray, spacing: tuple[float, float]
) -> np.ndarray:
    """Unit vector (y, x) of the long axis, from valve plane to apex; `points` (n, 2) in millimetres."""
    from scipy.ndimage import binary_dilation

    near = np.ones((3, 3), dtype=bool)
    plane = cavity & binary_dilation(atrium, near, iterations=2)
    if plane.any():
        middle = (np.argwhere(plane) * spacing).mean(axis=0)
        direction = points[((points - middle) ** 2).sum(axis=1).argmax()] - middle
    else:
        centred = points - points.mean(axis=0)
        direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        direction = -direction if direction[0] > 0 else direction  # the apex is at the top
    length = float(np.linalg.norm(direction))
    return direction / length if length > 0 else np.array([-1.0, 0.0])


def _shares(places: np.ndarray, extent: float) -> np.ndarray:
    """How many pixels lie in each of `DISCS` unit steps; one of `extent` counts in all that it touches."""
    counts = np.zeros(DISCS)
    parts = 8
    for part in range(parts):
        shifted = places + ((part + 0.5) / parts - 0.5) * extent
        counts += np.bincount(np.clip(shifted.astype(int), 0, DISCS - 1), minlength=DISCS) / parts
    return counts
