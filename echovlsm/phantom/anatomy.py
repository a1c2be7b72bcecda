"""Anatomy of the phantom: the heart that a patient's causes make, in millimetres.

A `Heart` is the geometry of one view and phase, and `tissue_map` says which tissue lies at any point of the
image plane. World coordinates: x to the image's right, y into the body, probe at (0, 0). Heart coordinates: q
is the height over the valve plane towards the apex, u the offset from the long axis to the image's right.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from echovlsm import VIEWS
from echovlsm.phantom.patient import Patient


class Tissue(IntEnum):
    """Tissue at a point. 1, 2 and 3 are the labels of CAMUS; everything else is unlabelled context."""

    SURROUNDINGS = 0
    LV_CAVITY = 1
    MYOCARDIUM = 2
    LEFT_ATRIUM = 3
    RIGHT_VENTRICLE = 4
    RIGHT_ATRIUM = 5
    RV_WALL = 6
    ATRIAL_WALL = 7
    PERICARDIUM = 8
    VALVE = 9
    PAPILLARY = 10
    ANNULUS = 11
    LUNG = 12


@dataclass(frozen=True)
class Walls:
    """How contours and tissues lie around the chambers; lengths in mm."""

    side: float = 1.0
    """Factor on the thickness of the side walls."""
    skirt: float = 0.0
    """How far they reach below the valve plane, beyond a little that all do."""
    pericardium: tuple[float, float] = (2.2, 2.2)
    """Thickness of the pericardium, left and right."""
    atrial: float = 2.5
    """Thickness of the atrium's wall and what shines around it."""


WALLS: dict[int, dict[str, Walls]] = {
    1: dict.fromkeys(VIEWS, Walls()),
    2: dict.fromkeys(VIEWS, Walls()),
    3: {
        "2CH": Walls(side=1.27, skirt=3.5, pericardium=(9.0, 4.0), atrial=11.0),
        "4CH": Walls(side=1.0, skirt=3.0, pericardium=(2.2, 6.0), atrial=10.0),
    },
}
"""Of each version and view; those of version 3 follow masks and images of CAMUS."""


@dataclass(frozen=True)
class Heart:
    """Geometry of one view and phase; lengths in mm, angles in radians."""

    view: str
    phase: str
    apex_x: float
    apex_y: float
    tilt: float
    length: float
    width: float
    """Largest width of the LV cavity."""
    wall: float
    apex_wall: float
    base_ratio: float
    """Width at the valve over the largest width."""
    bluntness: float
    share_left: float
    """Share of the width left of the long axis: a straight septum takes less than half."""
    slope: float
    """Slope of the valve plane."""
    bend: tuple[float, float, float, float]
    """Amplitudes (mm) and phases of the sideways bend of the long axis, which leaves widths untouched."""
    la_length: float
    la_width: float
    la_bend: float
    la_shape: tuple[float, float, float, float]
    """Factors on the left atrium's half-widths, left and right; roundness of its roof and the right one's."""
    rv_width: float
    rv_length: float
    tricuspid: float
    """Height of the tricuspid over the mitral plane."""
    tricuspid_seen: bool
    """Whether the plane cuts the tricuspid leaflets."""
    leaflets: tuple[float, float]
    """Angles of the left and right mitral leaflet to the valve plane."""
    leaflet_size: tuple[float, float, float]
    """Seen lengths of the two leaflets over their full length, and their half-thickness in mm."""
    papillary: tuple[float, float, float]
    """Height share, side offset share and size (mm) of the papillary muscle seen in the cavity."""
    walls: Walls


_T = np.linspace(0, 1, 129)
_BEND_ROWS, _PROFILE_ROWS = np.linspace(-150, 250, 401), np.linspace(-120, 160, 561)
"""Heights over the valve plane, mm, at which the bend of the axis and the profiles are tabulated."""


def _profile(t: np.ndarray, base_ratio: float, bluntness: float, widest: float = 0.36) -> np.ndarray:
    """Half-width of a chamber over its largest, against the height share t (0 base, 1 tip)."""
    below = 1 - (1 - base_ratio) * (np.clip(widest - t, 0, None) / widest) ** 2
    above = np.clip(1 - (np.clip(t - widest, 0, None) / (1 - widest)) ** (1.75 + 0.9 * bluntness), 0, None)
    return below * above ** (0.62 - 0.12 * bluntness)


def make_heart(
    patient: Patient,
    view: str,
    phase: str,
    jitter: tuple[float, float, float] = (0, 0, 0),
    version: int = 1,
) -> Heart:
    """Geometry of a view and phase.

    End-systole follows from end-diastole: the valve plane descends in proportion to the ejection fraction,
    the cavity narrows until its disc volume is (1 - EF) of the diastolic one, the wall thickens by half of
    what conservation of its volume would ask, and the atrium lengthens with the descending valve plane.
    The outside of the apex stays where it is.

    Parameters
    ----------
    patient
        The causes.
    view, phase
        2CH or 4CH; ED or ES.
    jitter
        Moves the probe: x (mm), depth (mm), tilt (radians).
    version
        Of the phantom: whose walls it has.
    """
    acquisition = patient.views[view]
    shape = np.random.default_rng([acquisition.shape, 1])  # same shape in both phases of the recording
    base_ratio = float(np.clip(shape.normal(0.80, 0.05), 0.66, 0.92))
    bluntness = float(np.clip(patient.sphericity + shape.normal(0, 0.12), 0, 1.1))
    share_left = float(np.clip(shape.normal(0.47 if view == "4CH" else 0.5, 0.03), 0.4, 0.58))
    slope = float(np.clip(shape.normal(-0.02 if view == "4CH" else 0.16, 0.09), -0.25, 0.36))
    bend = tuple(float(v) for v in (*shape.normal(0, (1.2, 0.7)), *shape.uniform(0, 2 * np.pi, 2)))
    view_width = float(np.clip(shape.normal(1, 0.04), 0.9, 1.1))
    la_bend = float(shape.normal(0.02, 0.10))
    la_width_factor = float(np.clip(shape.normal(1, 0.07), 0.85, 1.15))
    leaflet_size = tuple(float(v) for v in shape.uniform((0.45, 0.45, 0.6), (1.0, 1.0, 1.3)))
    la_shape = tuple(
        float(v) for v in np.clip(shape.normal((1, 1, 2.4, 2.4), (0.1, 0.1, 0.5, 0.6)), 0.75, 3.6)
    )
    leaflet = shape.uniform(size=4)
    tricuspid_seen = bool(shape.random() < 0.6)
    papillary = (
        float(shape.uniform(0.42, 0.62)),
        float(shape.choice([-1, 1, 1]) * 0.78),
        float(shape.uniform(0, 7.5)),
    )
    tricuspid = float(np.clip(shape.normal(6, 2), 2, 10))
    rv_share = float(shape.uniform(0.72, 0.9))
    walls = WALLS[version][view]

    ef = patient.ejection_fraction / 100
    length = patient.lv_length * acquisition.foreshortening
    width = 0.93 * patient.lv_diameter * view_width
    wall, base = patient.wall_thickness, base_ratio
    la_length, la_width, rv_width = (
        patient.la_length,
        patient.la_diameter * la_width_factor,
        patient.rv_diameter,
    )
    if phase == "ES":
        es_length = length * (1 - 0.30 * ef)
        es_base = min(0.97, base_ratio + 0.08)  # the annulus narrows less than the middle
        discs_es, discs_ed = ((_profile(_T, r, bluntness) ** 2).mean() for r in (es_base, base_ratio))
        share = discs_es / discs_ed
        es_width = width * np.sqrt((1 - ef) / (es_length / length * share))
        ring = (width / 2 + wall) ** 2 - (width / 2) ** 2
        conserved = np.sqrt((es_width / 2) ** 2 + ring * length / es_length) - es_width / 2
        wall += 0.5 * max(0.0, conserved - wall)
        rv_width *= 1 - 0.25 * ef
        length, width, base = es_length, float(es_width), es_base
        angles = (0.16 + 0.16 * leaflet[0], 0.16 + 0.16 * leaflet[1])
    else:
        descent = 0.30 * ef * length
        la_length = max(20.0, la_length - 0.72 * descent)
        la_width *= 0.9
        angles = (0.35 + 0.9 * leaflet[2], 0.35 + 0.9 * leaflet[3])
    apex_wall = 0.92 * wall
    return Heart(
        view=view,
        phase=phase,
        apex_x=acquisition.apex_x + jitter[0],
        apex_y=acquisition.apex_depth + apex_wall + jitter[1],
        tilt=acquisition.tilt + jitter[2],
        length=length,
        width=width,
        wall=wall * walls.side,
        apex_wall=apex_wall,
        base_ratio=base,
        bluntness=bluntness,
        share_left=share_left,
        slope=slope,
        bend=bend,
        la_length=la_length,
        la_width=la_width,
        la_bend=la_bend,
        la_shape=la_shape,
        rv_width=rv_width,
        rv_length=rv_share * length,
        tricuspid=tricuspid,
        tricuspid_seen=tricuspid_seen,
        leaflets=angles,
        leaflet_size=leaflet_size,
        papillary=papillary,
        walls=walls,
    )


def _dome(a: np.ndarray, mouth: float, widest: float, roundness: float = 2.4, at: float = 0.45) -> np.ndarray:
    """Half-width of an atrium against its depth share: the mouth (annulus), the belly, the round roof."""
    opening = mouth + (widest - mouth) * np.sin(np.clip(a / at, 0, 1) * (np.pi / 2))
    roof = np.clip(1 - (np.clip(a - at, 0, None) / (1 - at)) ** roundness, 0, None) ** 0.5
    return opening * roof


def _leaflet(
    where: np.ndarray, du: np.ndarray, q: np.ndarray, angle: float, size: float, thickness: float
) -> np.ndarray:
    """Points of a thin curved flap hinged at du = 0, q = 0, rising at `angle` towards positive du.

    `du` and `q` are the points' coordinates, `where` their places in the map; returns those of the flap.
    """
    margin = 3 + 0.1 * size
    near = np.flatnonzero((du > -margin) & (du < size + margin))  # few points: not every one need be tried
    du, q, sin, cos = du[near], q[near], float(np.sin(angle)), float(np.cos(angle))
    along = du * cos + q * sin
    across = q * cos - du * sin + 0.35 * along * (along / size - 1) * sin
    return where[near[(along > -1) & (along < size) & (np.abs(across) < thickness)]]


def heart_coordinates(heart: Heart, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World points (mm) to (u, q): offset right of the bent long axis, height over the valve plane."""
    sin, cos = np.float32(np.sin(heart.tilt)), np.float32(np.cos(heart.tilt))
    dx, dy = x - np.float32(heart.apex_x), y - np.float32(heart.apex_y)
    u = dx * cos - dy * sin
    v = heart.length - (dx * sin + dy * cos)
    u -= _bend(heart, v)
    return u, v - np.float32(heart.slope) * u


def _bend(heart: Heart, v: np.ndarray) -> np.ndarray:
    """Sideways shift (mm, float32) of the long axis at heights `v`: as by `np.interp`, in half the time."""
    a1, a2, p1, p2 = heart.bend
    shift = a1 * np.sin(2 * np.pi * _BEND_ROWS / 95 + p1) + a2 * np.sin(2 * np.pi * _BEND_ROWS / 41 + p2)
    height = np.clip(v, _BEND_ROWS[0], _BEND_ROWS[-1], dtype=float) - _BEND_ROWS[0]
    below = height.astype(np.intp)  # rows are a millimetre apart
    height -= below
    height *= np.diff(shift).take(below, mode="clip")
    height += shift.take(below)
    return height.astype(np.float32)


def hinge_points(heart: Heart) -> list[tuple[float, float]]:
    """World coordinates (x, y in mm) of the mitral valve's left and right hinge."""
    sin, cos = np.sin(heart.tilt), np.cos(heart.tilt)
    points = []
    for share in (-heart.share_left, 1 - heart.share_left):
        u = share * heart.width * heart.base_ratio
        down = heart.length - heart.slope * u
        points.append(
            (float(heart.apex_x + u * cos + down * sin), float(heart.apex_y - u * sin + down * cos))
        )
    return points


def tissue_map(heart: Heart, x: np.ndarray, y: np.ndarray, context: bool = True) -> np.ndarray:
    """Tissue at world points: uint8 array of `Tissue` values, in the shape of `x` and `y` (mm).

    Without `context` nothing but surroundings lies around the labelled structures.
    """
    u, q = (v.ravel() for v in heart_coordinates(heart, x, y))
    left, right = heart.share_left * heart.width, (1 - heart.share_left) * heart.width
    rows = _PROFILE_ROWS
    position = ((q + 120) * 2).astype(np.intp)

    def lookup(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).take(position, mode="clip")

    cavity = _profile(np.clip(rows / heart.length, 0, 1), heart.base_ratio, heart.bluntness)
    cavity = cavity.astype(np.float32)
    outer_share = np.clip(rows / (heart.length + heart.apex_wall), 0, 1)
    outer_cavity = _profile(outer_share, heart.base_ratio, heart.bluntness)
    outer_wall = heart.wall * (1 - outer_share**5) ** 0.5
    outer_l, outer_r = lookup(-(outer_cavity * left + outer_wall)), lookup(outer_cavity * right + outer_wall)

    mouth_l, mouth_r = heart.base_ratio * left, heart.base_ratio * right
    a = np.clip(-rows / heart.la_length, 0, 1)
    factor_l, factor_r, roof, _ = heart.la_shape
    belly_l, belly_r = (
        max(heart.la_width / 2 * factor_l, mouth_l),
        max(heart.la_width / 2 * factor_r, mouth_r),
    )
    ua = u + np.float32(heart.la_bend) * q
    above = q > 0

    tissue = np.zeros(u.shape, np.uint8)

    def paint(where: np.ndarray, value: Tissue) -> None:
        np.copyto(tissue, np.uint8(value), where=where)

    if context:
        paint((u > outer_r + 7) & (q > -5), Tissue.LUNG)
        # pericardium: a thin shell around the wall, free side only in 4CH, and behind the atrium
        shell = heart.walls.pericardium
        in_shell = (q > -4) & (q < 0.8 * heart.length) & (u < outer_r + shell[1])
        in_shell &= u > (outer_l if heart.view == "4CH" else outer_l - shell[0])
        paint(in_shell, Tissue.PERICARDIUM)
        thick = heart.walls.atrial
        below = ~above & (q > -heart.la_length - 2 * thick)
        a_out = np.clip(-rows / (heart.la_length + thick), 0, 1)
        out_l = lookup(-_dome(a_out, mouth_l + thick, belly_l + thick, roof))
        out_r = lookup(_dome(a_out, mouth_r + thick, belly_r + thick, roof))
        paint(below & (ua > out_l) & (ua < out_r), Tissue.ATRIAL_WALL)
        if heart.view == "4CH":
            _paint_right_heart(paint, tissue, heart, u, ua, q, outer_l, lookup, rows)

    # the wall ends a little below the hinge, slanted as it is drawn
    base_end = heart.walls.skirt - 2.5 + 0.12 * np.abs(u)
    wall = (
        (u > outer_l)
        & (u < outer_r)
        & (q > -np.maximum(base_end, 0.0))
        & (q < heart.length + heart.apex_wall)
    )
    paint(wall, Tissue.MYOCARDIUM)
    if context:
        near = np.flatnonzero((np.abs(q) < 4.1) & ~wall)
        u_near, q_near = u[near], q[near]
        hinge = np.minimum(np.hypot(u_near + mouth_l + 2.5, q_near), np.hypot(u_near - mouth_r - 2.5, q_near))
        tissue[near[hinge < 4.0]] = Tissue.ANNULUS
    atrium = ~above & (q > -heart.la_length)
    atrium &= ua > lookup(-_dome(a, mouth_l, belly_l, roof))
    atrium &= ua < lookup(_dome(a, mouth_r, belly_r, roof))
    paint(atrium, Tissue.LEFT_ATRIUM)
    in_cavity = above & (q < heart.length) & (u > lookup(-cavity * left)) & (u < lookup(cavity * right))
    paint(in_cavity, Tissue.LV_CAVITY)
    height, side, size = heart.papillary
    side_u = side * (right if side > 0 else left)
    near = np.flatnonzero(in_cavity & (np.abs(q - height * heart.length) < 1.7 * size))
    muscle = np.hypot((u[near] - side_u) / 0.55, (q[near] - height * heart.length) / 1.6) < size
    tissue[near[muscle]] = Tissue.PAPILLARY
    span = mouth_l + mouth_r
    reach = 0.54 * span
    near = np.flatnonzero((in_cavity | atrium) & (q > -3) & (q < reach / float(np.cos(0.35)) + 3))
    for side, du in enumerate((u[near] + mouth_l, mouth_r - u[near])):
        angle, seen = heart.leaflets[side], heart.leaflet_size[side]
        full = reach / float(np.cos(angle)) if heart.phase == "ES" else reach
        length = full * (0.5 + 0.5 * seen if heart.phase == "ES" else seen)
        tissue[_leaflet(near, du, q[near], angle, length, heart.leaflet_size[2])] = Tissue.VALVE
    return tissue.reshape(x.shape)


def _paint_right_heart(paint, tissue, heart, u, ua, q, septum, lookup, rows) -> None:
    """Right ventricle, right atrium and their walls, left of the `septum` (4CH only), painted in place."""
    s = np.clip((rows - heart.tricuspid) / heart.rv_length, 0, 1)
    free = septum - lookup(heart.rv_width * np.clip(1 - s**1.6, 0, None) ** 0.7)
    inside = (q > heart.tricuspid) & (q < heart.tricuspid + heart.rv_length) & (u < septum)
    paint(inside & (u > free - 6.5), Tissue.PERICARDIUM)
    paint(inside & (u > free - 4.5), Tissue.RV_WALL)
    paint(inside & (u > free), Tissue.RIGHT_VENTRICLE)
    base_wall = heart.base_ratio * heart.share_left * heart.width + heart.wall
    width = float(np.clip(heart.rv_width + base_wall - heart.la_width / 2 - 4, 24, 52))
    length = 0.92 * heart.la_length + heart.tricuspid
    a = np.clip((heart.tricuspid - rows) / length, 0, 1)
    belly = lookup(_dome(a, 0.43 * width, 0.5 * width, heart.la_shape[3]))
    a_out = np.clip((heart.tricuspid - rows) / (length + 2.5), 0, 1)
    belly_out = lookup(_dome(a_out, 0.43 * width + 2.5, 0.5 * width + 2.5, heart.la_shape[3]))
    centre = -0.5 * (heart.la_width + width) - 4.5 - 0.02 * q
    offset = np.abs(ua - centre)
    below = (q <= heart.tricuspid) & (q > heart.tricuspid - length - 2.5)
    paint(below & (offset < belly_out), Tissue.ATRIAL_WALL)
    paint(below & (q > heart.tricuspid - length) & (offset < belly), Tissue.RIGHT_ATRIUM)
    if not heart.tricuspid_seen:
        return
    reach = 0.5 * heart.rv_width
    height = q - heart.tricuspid
    near = np.flatnonzero((u < septum) & (height > -3) & (height < reach + 3))
    u, height, hinge = u[near], height[near], septum[near]
    for du, angle in ((hinge - u, heart.leaflets[0]), (u - hinge + heart.rv_width, heart.leaflets[1])):
        tissue[_leaflet(near, du, height, 0.7 * angle, reach, 0.6)] = Tissue.VALVE
