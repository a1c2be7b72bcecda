"""Clinical ends: volumes of bodies whose volume is known, agreement by hand, and no length without a size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from echovlsm.evaluation import clinical
from echovlsm.evaluation.clinical import (
    ClinicalError,
    clinical_table,
    ejection_fraction,
    measure,
    volume,
)


def half_ellipse(
    length: float, base: float, spacing: tuple[float, float], tilt: float = 0.0, atrium: bool = True
) -> np.ndarray:
    """Half an ellipse, apex up, `length` mm from valve plane to apex, `base` mm wide, an atrium below it."""
    side = 2.6 * max(length, base)
    rows, columns = (np.arange(round(side / step)) * step - side / 2 for step in spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    down, right = math.cos(tilt) * y - math.sin(tilt) * x, math.sin(tilt) * y + math.cos(tilt) * x
    labels = np.zeros(y.shape, dtype=np.uint8)
    labels[((down / length) ** 2 + (2 * right / base) ** 2 <= 1) & (down <= 0)] = 1
    if atrium:
        labels[((down / (0.6 * length)) ** 2 + (2 * right / base) ** 2 <= 1) & (down > 0)] = 3
    return labels


def half_ellipsoid(length: float, first: float, second: float) -> float:
    """Volume in ml of half an ellipsoid of revolution of such a length and base diameters (mm)."""
    return 2 / 3 * math.pi * length * first / 2 * second / 2 / 1000


@pytest.mark.parametrize("spacing", [(0.3, 0.3), (0.616, 0.616), (0.308, 0.154)])
@pytest.mark.parametrize("tilt", [0.0, 0.35])
def test_discs_of_an_ellipsoid(spacing: tuple[float, float], tilt: float) -> None:
    shapes = {
        "2CH": measure(half_ellipse(80, 50, spacing, tilt), spacing),
        "4CH": measure(half_ellipse(80, 40, spacing, -tilt), spacing),
    }
    found, method = volume(shapes)
    assert method == "biplane"
    assert found == pytest.approx(half_ellipsoid(80, 50, 40), rel=0.02)


@pytest.mark.parametrize("tilt", [0.0, 0.35])
def test_one_view_is_area_length(tilt: float) -> None:
    shape = measure(half_ellipse(80, 50, (0.5, 0.5), tilt), (0.5, 0.5))
    assert shape.area == pytest.approx(math.pi * 80 * 25 / 2, rel=0.01)
    assert shape.length == pytest.approx(80, rel=0.02)
    assert shape.diameters.sum() * shape.length / clinical.DISCS == pytest.approx(shape.area)
    found, method = volume({"4CH": shape})
    assert method == "area-length"
    # of half an ellipse the formula gives the half ellipsoid exactly
    assert found == pytest.approx(half_ellipsoid(80, 50, 50), rel=0.03)


def test_without_an_atrium_the_main_direction_counts() -> None:
    with_it, without = (
        measure(half_ellipse(80, 40, (0.5, 0.5), 0.2, atrium), (0.5, 0.5)) for atrium in (True, False)
    )
    assert without.length == pytest.approx(with_it.length, rel=0.05)


def test_a_stray_pixel_is_no_apex() -> None:
    labels = half_ellipse(80, 50, (0.5, 0.5))
    clean = measure(labels, (0.5, 0.5))
    labels[0, 0] = 1
    assert measure(labels, (0.5, 0.5)).length == clean.length


@pytest.mark.parametrize("spacing", [None, (pd.NA, pd.NA), (math.nan, 0.3), (0.0, 0.3), (1.0, 1.0), 0.3])
def test_no_size_no_volume(spacing: object) -> None:
    with pytest.raises(ClinicalError, match=r"2CH ED: .*leave this view out"):
        measure(half_ellipse(40, 30, (0.5, 0.5)), spacing, "patient0001 2CH ED")


def test_no_cavity_no_volume() -> None:
    with pytest.raises(ClinicalError, match="no left ventricular cavity"):
        measure(np.zeros((9, 9), dtype=np.uint8), (0.3, 0.3))
    with pytest.raises(ClinicalError, match="no view"):
        volume({})


def rows(patient: str, sizes: dict[str, tuple[float, float]], shrink: float) -> list[tuple[dict, np.ndarray]]:
    """A patient whose end-systolic cavity is `shrink` times as wide."""
    found = []
    for view, spacing in sizes.items():
        known = {"spacing_y": spacing[0], "spacing_x": spacing[1]}
        drawn = 0.5 if pd.isna(spacing[0]) else spacing[0]
        for phase, width in (("ED", 50.0), ("ES", 50.0 * shrink)):
            labels = half_ellipse(80, width, (drawn, drawn))
            found.append(({"patient": patient, "view": view, "phase": phase, **known}, labels))
    return found


def test_ejection_fraction_of_each_patient_by_what_is_known() -> None:
    unknown = (math.nan, math.nan)
    images = [
        *rows("a", {"2CH": (0.5, 0.5), "4CH": (0.5, 0.5)}, 0.7),
        *rows("b", {"2CH": unknown, "4CH": (0.5, 0.5)}, 0.7),
        *rows("c", {"2CH": unknown, "4CH": unknown}, 0.7),
    ]
    table = clinical_table(images).set_index("patient")
    assert list(table["method"]) == ["biplane", "area-length"]
    assert list(table["views"]) == ["2CH+4CH", "4CH"]
    # both diameters fall to 0.7 in either method: EF = 1 - 0.49
    assert table["ef_percent"].to_numpy() == pytest.approx(51, abs=1.5)
    assert table.attrs["left_out"] == ["c"]
    with pytest.raises(ClinicalError, match="no patient"):
        clinical_table(rows("c", {"4CH": unknown}, 0.7))


def test_a_cavity_that_was_not_found_is_no_number() -> None:
    images = rows("a", {"4CH": (0.5, 0.5)}, 0.7)
    images[1] = (images[1][0], np.zeros_like(images[1][1]))
    table = clinical_table(images)
    assert table["edv_ml"].notna().all()
    assert table[["esv_ml", "ef_percent"]].isna().all(axis=None)


def test_ejection_fraction() -> None:
    assert ejection_fraction(120, 48) == pytest.approx(60)
    with pytest.raises(ClinicalError, match="not positive"):
        ejection_fraction(0, 0)


def test_camus_gives_plausible_hearts_and_refuses_its_placeholders(shared: Path) -> None:
    """Reference masks of a few real patients: only the four-chamber view has a genuine pixel size."""
    from echovlsm.cohort.images import load_labels
    from echovlsm.cohort.read import read_cohort

    frames = read_cohort(shared / "camus")
    some = frames[frames["patient"].isin([f"patient{number:04d}" for number in (1, 2, 3, 4, 5, 39)])]
    table = clinical_table((row._asdict(), load_labels(row)) for row in some.itertuples())
    assert set(table["views"]) == {"4CH"}
    assert table.attrs["left_out"] == ["patient0039"]
    assert table["edv_ml"].between(40, 300).all()
    assert table["ef_percent"].between(15, 80).all()
