"""Causes of the phantom: who the patient is and how the images were recorded.

A `Patient` holds causes only: sex, age, chamber sizes, ejection fraction, image quality, probe.
Normal ranges: Lang et al. 2015, "Recommendations for cardiac chamber quantification by echocardiography in
adults", J Am Soc Echocardiogr 28:1-39. The mix of patients (a hospital's, with many reduced ejection
fractions) and of image qualities follows CAMUS: Leclerc et al. 2019, IEEE Trans Med Imaging 38:2198-2210.
"""

from dataclasses import dataclass, replace

import numpy as np

from echovlsm import QUALITIES, VIEWS
from echovlsm.phantom.versions import TUNED

QUALITY_SHARES: tuple[float, float, float] = (0.35, 0.46, 0.19)
"""Shares of good, medium and poor images, about those of CAMUS (Leclerc et al. 2019, table I)."""
CONDITIONS: tuple[str, ...] = ("normal", "reduced", "hypertrophic")
CONDITION_SHARES: tuple[float, float, float] = (0.42, 0.40, 0.18)


@dataclass(frozen=True)
class Acquisition:
    """How one view of a patient was recorded; ED and ES are frames of the same recording and share it."""

    quality: str
    """One of `echovlsm.QUALITIES`."""
    depth: float
    """Depth of the sector, mm."""
    opening: int
    """Full opening angle of the sector, whole degrees."""
    tilt: float
    """Angle of the LV's long axis to the sector's axis, radians; positive turns the base to the right."""
    apex_x: float
    """Offset of the apex from the sector's axis, mm."""
    apex_depth: float
    """Depth of the outside of the apex, mm."""
    foreshortening: float
    """Seen length over true length of the LV, at most 1: the plane misses the true apex a little."""
    seed: int
    """Seed of what belongs to this recording and no named cause: surroundings, shadows, gain."""
    shape: int
    """Seed of the shapes of walls, valve and chambers."""


@dataclass(frozen=True)
class Patient:
    """The causes of a patient's four images. Lengths in mm, fractions in percent, age in years."""

    sex: str
    """`F` or `M`."""
    age: int
    condition: str
    """One of `CONDITIONS`."""
    body: float
    """Body size, a standard score within the sex."""
    lv_length: float
    """LV cavity from the valve plane to the apex at end-diastole."""
    lv_diameter: float
    """LV internal diameter at end-diastole (LVIDd)."""
    wall_thickness: float
    """Mean thickness of the compact wall at end-diastole."""
    ejection_fraction: float
    la_length: float
    """Left atrium from the valve plane to the roof at end-systole, when it is largest."""
    la_diameter: float
    """Largest width of the left atrium at end-systole."""
    rv_diameter: float
    fibrosis: float
    """Added echogenicity of the myocardium, dB: grows with age and with a hypertrophied wall."""
    calcification: float
    """Added echogenicity of valve and annulus, dB: grows with age."""
    sphericity: float
    """Bluntness of the apex, 0 (pointed) to 1 (blunt)."""
    views: dict[str, Acquisition]


def _truncated(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    """Normal value; clipped, so that the count of random numbers drawn never depends on their values."""
    return float(np.clip(rng.normal(mean, sd), low, high))


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient's causes.

    Sizes depend on sex (Lang et al. 2015: LVIDd 50.2 +- 4.1 mm in men, 45.0 +- 3.6 in women; biplane EF
    62 +- 5 % and 64 +- 5 %; wall 6-10 and 6-9 mm) and on age (wall, atrium and fibrosis grow). The wall and
    the atrium are drawn somewhat larger than those ranges, since CAMUS contours enclose trabeculae and the
    epicardial border. `reduced` patients have a dilated ventricle and a low ejection fraction,
    `hypertrophic` ones a thick wall. Sonographers choose the depth to fit the heart; it follows its size.
    """
    sex = "M" if rng.random() < 0.62 else "F"
    age = round(_truncated(rng, 63, 15, 20, 94))
    condition = CONDITIONS[int(rng.choice(3, p=CONDITION_SHARES))]
    body = _truncated(rng, 0, 1, -2.2, 2.2)
    man, older = sex == "M", (age - 50) / 10
    reduced, thick = condition == "reduced", condition == "hypertrophic"

    diameter = (50.2 if man else 45.0) + (4.1 if man else 3.6) * (
        0.6 * body + 0.8 * _truncated(rng, 0, 1, -2, 2)
    )
    diameter += 5.0 * reduced - 2.5 * thick + rng.normal(0, 2.5) * reduced
    length = (82.0 if man else 74.5) + 6.0 * (0.6 * body + 0.8 * _truncated(rng, 0, 1, -2, 2)) + 3.5 * reduced
    wall = (11.2 if man else 10.2) + 0.25 * older + _truncated(rng, 0, 0.9, -1.8, 1.8) + 3.2 * thick
    normal_ef = (62 if man else 64) + _truncated(rng, 0, 5, -10, 10)
    low_ef = _truncated(rng, 37, 8, 18, 54)
    ef = low_ef if reduced else normal_ef
    la_length = (46.0 if man else 44.0) + 2.0 * body + 1.6 * older + 4.0 * reduced + 2.5 * thick
    la_length = float(np.clip(la_length + rng.normal(0, 5.0), 32, 76))
    la_diameter = float(np.clip(0.86 * la_length + rng.normal(0, 3.5), 27, 62))
    fibrosis = max(0.0, 0.7 * older + 1.5 * thick + rng.normal(0, 0.7))
    calcification = max(0.0, 1.3 * (age - 58) / 10 + rng.normal(0, 1.0))
    rv_diameter = (33.0 if man else 30.0) + 2.0 * body + _truncated(rng, 0, 3, -6, 6)
    sphericity = float(np.clip(rng.uniform(0, 0.75) + 0.25 * reduced, 0, 1))

    base_quality = QUALITIES[int(rng.choice(3, p=QUALITY_SHARES))]
    views = {}
    for view in VIEWS:
        own_quality = QUALITIES[int(rng.choice(3, p=QUALITY_SHARES))]
        quality = base_quality if rng.random() < 0.7 else own_quality  # keeps the shares: both have them
        apex_depth = _truncated(rng, 20.0, 5.5, 9, 36)
        opening = int(rng.integers(72, 77)) if rng.random() < 0.8 else int(rng.integers(66, 72))
        depth = 17 + length + 0.55 * la_length + 0.55 * apex_depth + _truncated(rng, 14, 11, -12, 40)
        views[view] = Acquisition(
            quality=quality,
            depth=float(np.clip(depth, 120, 205)),
            opening=opening,
            tilt=_truncated(rng, 0.05 if view == "4CH" else 0.09, 0.10, -0.22, 0.34),
            apex_x=_truncated(rng, 1.5, 4.0, -9, 11),
            apex_depth=apex_depth,
            foreshortening=1 - abs(_truncated(rng, 0, 0.05, -0.12, 0.12)),
            seed=(seed := int(rng.integers(2**31))),
            shape=seed,
        )
    return Patient(
        sex=sex,
        age=age,
        condition=condition,
        body=body,
        lv_length=float(np.clip(length, 58, 108)),
        lv_diameter=float(np.clip(diameter, 36, 72)),
        wall_thickness=float(np.clip(wall, 7, 18)),
        ejection_fraction=float(np.clip(ef, 15, 75)),
        la_length=la_length,
        la_diameter=la_diameter,
        rv_diameter=float(rv_diameter),
        fibrosis=float(fibrosis),
        calcification=float(calcification),
        sphericity=sphericity,
        views=views,
    )


TYPICAL: dict[str, float] = {
    "lv_length": 80.6,
    "lv_diameter": 49.6,
    "wall_thickness": 11.6,
    "ejection_fraction": 52.9,
    "la_length": 49.2,
    "la_diameter": 42.1,
    "rv_diameter": 32.0,
    "sphericity": 0.47,
}
"""Means of what is drawn: the one heart of patients without anatomical variation."""
TYPICAL_DEPTH = 150.0
"""Likewise of the sector's depth, mm."""


def without_variation(patient: Patient, without: tuple[str, ...]) -> Patient:
    """The patient with the typical heart, or depth, where `without` names ``anatomy`` or ``gain``.

    How the heart lies in the sector stays, and so does the room that the sonographer left around it.
    """
    views = patient.views
    if "anatomy" in without:
        longer = TYPICAL["lv_length"] - patient.lv_length + 0.55 * (TYPICAL["la_length"] - patient.la_length)
        views = {
            view: replace(scan, shape=0, depth=float(np.clip(scan.depth + longer, 120, 205)))
            for view, scan in views.items()
        }
        patient = replace(patient, condition=CONDITIONS[0], **TYPICAL)
    if "gain" in without:
        views = {view: replace(scan, depth=TYPICAL_DEPTH) for view, scan in views.items()}
    return replace(patient, views=views)


def of_version(patient: Patient, version: int) -> Patient:
    """The patient as a version of the phantom images it: up to version 2 as drawn, in 3 with CAMUS's spread.

    On masks of CAMUS's training patients, as shares of the image, hearts, atria and the depth of the sector
    differ more from each other, and the heart lies elsewhere in 2CH.
    """
    if version < TUNED:
        return patient
    rng = np.random.default_rng([patient.views[VIEWS[0]].seed, 3])
    size, atrium = np.exp(rng.normal(0, 0.07)), np.exp(rng.normal((0.0, -0.08), 0.13))
    views = {}
    for view in VIEWS:
        scan, two = patient.views[view], view == "2CH"
        views[view] = replace(
            scan,
            depth=float(np.clip(scan.depth * np.exp(rng.normal(0.02, 0.11)), 105, 230)),
            tilt=scan.tilt + (0.045 if two else 0.0),
            apex_x=scan.apex_x + (-6.0 if two else 1.5),
        )
    return replace(
        patient,
        lv_length=patient.lv_length * size,
        lv_diameter=patient.lv_diameter * size,
        la_length=patient.la_length * atrium[0],
        la_diameter=patient.la_diameter * atrium[1],
        views=views,
    )
