"""Acoustics of the phantom: from a map of tissues under the beams to grey levels in beam x range coordinates.

What tissues reflect, what the machine and the way to the heart add and take away, and the compression to grey
levels. Strengths are in decibel: 0 dB is white at neutral gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from echovlsm.cohort import masks
from echovlsm.phantom.anatomy import Tissue
from echovlsm.phantom.beam import BEAMS, RANGES, envelope, mean_envelope, polar_grid, smooth_field
from echovlsm.phantom.looks import LOOKS
from echovlsm.phantom.patient import Acquisition

# Echogenicity (dB) and acoustic impedance (arbitrary units; its steps make the specular echoes), per tissue.
_ECHO = {
    Tissue.SURROUNDINGS: (-35.5, 0.7),
    Tissue.LV_CAVITY: (-52.0, 0.0),
    Tissue.MYOCARDIUM: (-27.0, 0.8),
    Tissue.LEFT_ATRIUM: (-52.0, 0.0),
    Tissue.RIGHT_VENTRICLE: (-48.0, 0.0),
    Tissue.RIGHT_ATRIUM: (-51.0, 0.0),
    Tissue.RV_WALL: (-28.0, 0.7),
    Tissue.ATRIAL_WALL: (-31.0, 0.8),
    Tissue.PERICARDIUM: (-16.0, 1.8),
    Tissue.VALVE: (-23.0, 0.8),
    Tissue.PAPILLARY: (-34.0, 0.4),
    Tissue.ANNULUS: (-20.0, 1.0),
    Tissue.LUNG: (-38.0, 0.7),
}
ECHOGENICITY = np.array([_ECHO[t][0] for t in Tissue], np.float32)
_SOLID, _BLOOD = ECHOGENICITY > -40, ECHOGENICITY < -45
IMPEDANCE = np.array([_ECHO[t][1] for t in Tissue], np.float32)


@dataclass(frozen=True)
class System:
    """What image quality stands for, as imaging physics; all in dB unless said otherwise."""

    noise: float
    """Electronic noise at the probe; the time-gain compensation raises it with depth."""
    noise_rise: float
    """Rise of the noise from the probe to the deepest range."""
    haze: float
    """Side lobes and reverberation: a wide smear of the echoes, relative to them."""
    clutter: float
    """Near-field clutter at the probe."""
    clutter_depth: float
    """Depth over which it falls by 6 dB, mm."""
    dropout: float
    """Mean loss of walls parallel to the beam."""
    shadow: float
    """Mean loss behind ribs and lung at the sector's edges."""
    resolution: float
    """Factor on the width of the point-spread function."""
    contrast: float
    """Factor on the tissues' distance from the mean echogenicity: aberration washes it out."""
    gain_spread: float
    """Standard deviation of the median grey level that the operator sets by the gain."""


SYSTEMS: dict[str, System] = {
    "good": System(-55, 6, -23, -30, 8, 4.5, 5, 1.0, 1.0, 17.0),
    "medium": System(-53, 8, -20.5, -26, 11, 6.5, 8, 1.15, 0.92, 19.0),
    "poor": System(-50, 9, -17, -21, 14, 8.5, 11, 1.4, 0.84, 21.0),
}


@dataclass(frozen=True)
class Recording:
    """What the frames of one recording share; dB unless said otherwise, (RANGES, BEAMS) unless scalar."""

    system: System
    depth: float
    """Depth of the sector, mm."""
    opening: int
    """Opening of the sector, degrees."""
    echo: np.ndarray
    """Echogenicity of each tissue, (tissues,)."""
    outside: np.ndarray
    """Added to what is not the heart: cloudy tissue, a bright far wall, short streaks."""
    inside: np.ndarray
    """Added everywhere else."""
    atria: np.ndarray
    hinges: list[tuple[float, float, float, float]]
    """Size (mm), gain, offset in x and y (mm) of the bright tissue around each of the valve's two hinges."""
    texture: np.ndarray
    """Added to solid tissue."""
    trabeculae: np.ndarray
    """Added to the right ventricle."""
    dropout: np.ndarray
    """Loss of walls along the beam: their fibres do not face it; the septum, seen from both sides, less."""
    blood: np.ndarray
    """Added to the chambers: haze differs from place to place."""
    spots: tuple[np.ndarray, np.ndarray]
    """Places (shares of the cavity's pixels) and gains of small bright spots in the cavity."""
    near_field: np.ndarray
    """How much the near field washes tissues out, 0 to 1, (RANGES, 1)."""
    specular: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Factors on the amplitude of specular echoes."""
    attenuation: np.ndarray
    """Factor on amplitudes behind ribs and lung."""
    clutter: np.ndarray
    """Intensity of the near-field clutter."""
    noise: np.ndarray
    """Intensity of the electronic noise, (RANGES, 1)."""
    tilt: np.ndarray
    top: np.ndarray
    """Loss right at the probe, (RANGES, 1)."""
    dynamic: float
    """Dynamic range of the image."""
    target: float
    """Median grey level that the operator wants, 0 to 255."""
    version: int = 1
    """Of the phantom: whose beam it is."""
    speckle: bool = True
    """Whether echoes interfere and noise has a grain; without, both are their mean."""


@lru_cache(maxsize=4)
def draw_recording(
    taken: Acquisition, fibrosis: float, calcification: float, version: int, without: tuple[str, ...]
) -> Recording:
    """Draw what belongs to a recording: gain, surroundings, texture, shadows, noise. The last few are kept.

    `fibrosis` and `calcification` (dB) are added to the myocardium, and to valve and annulus. What `without`
    names is drawn as ever and then set aside, so that the rest stays.
    """
    recording = np.random.default_rng((taken.seed, 2))
    system, depth, opening = SYSTEMS[taken.quality], taken.depth, taken.opening
    angles = polar_grid(opening, version)[2]
    half = float(angles[-1])
    share = ((np.arange(RANGES) + 0.5) / RANGES).astype(np.float32)[:, None]
    ranges = share * depth

    echo = ECHOGENICITY.copy()
    echo += recording.normal(0, 1.3, len(echo)).astype(np.float32)
    echo[Tissue.MYOCARDIUM] += 0.8 * fibrosis
    echo[[Tissue.VALVE, Tissue.ANNULUS]] += calcification
    echo[_SOLID] = -29 + (echo[_SOLID] + 29) * system.contrast

    # what is not the heart: cloudy tissue, a bright far wall, short streaks
    cloud = 6.5 * smooth_field(recording, (7, 9))
    band_at = (
        0.93
        + 0.03 * recording.normal()
        + 0.03 * np.cos(angles * recording.uniform(1, 4) + recording.uniform(0, 6))
    )
    band = recording.uniform(2, 17) * np.exp(-(((share - band_at) / recording.uniform(0.02, 0.06)) ** 2))
    patchy = np.clip(0.6 + 0.7 * smooth_field(recording, (3, 8)), 0, 1.4)
    layers = smooth_field(recording, (34, 9), flat=True)
    outside = cloud + band * patchy + 3 * layers
    for _ in range(int(recording.integers(1, 5))):
        outside += _streak(recording, share, angles, half)
    atria = recording.normal(5, 4) + 0.9 * cloud
    hinges = [
        (
            recording.uniform(6, 17),
            max(0.0, recording.normal(7, 4.5) + 0.5 * calcification),
            recording.normal(0, 4),
            recording.normal(5, 5),
        )
        for _ in range(2)
    ]
    lumps = 0.75 * smooth_field(recording, (64, 40), flat=True) + 0.65 * smooth_field(
        recording, (26, 22), flat=True
    )  # texture of a few millimetres
    regions = smooth_field(recording, (9, 8))
    patch = np.clip(1.1 * smooth_field(recording, (7, 6)) + 0.9 + 1.3 * angles / half, -0.5, 2.8)
    blood = 4.5 * regions + recording.normal(3.5, 2)
    spots = int(recording.integers(0, 7))
    places, gains = recording.random(6), recording.uniform(8, 24, 6)
    near_field = recording.uniform(0.65, 1) * np.exp(-((ranges / 60) ** 2))
    loss = _shadows(recording, system, angles, half, share)
    if "shadows" in without:
        loss, patch = np.zeros_like(loss), np.zeros_like(patch)
    clutter = system.clutter - 6 * ranges / system.clutter_depth
    ripple = (
        recording.uniform(3, 10) * np.cos(2 * np.pi * ranges / recording.uniform(4, 9)) * np.exp(-ranges / 16)
    )
    near = 10 ** ((clutter + ripple + 3 * smooth_field(recording, (4, 6))) / 10)
    near += _reverberations(recording, ranges, angles, half, system.clutter)
    noise = system.noise + recording.normal(0, 1.5) + system.noise_rise * share
    rise = LOOKS[version].tilt + recording.normal(0, 3.5)
    tilt = rise * (share - 0.5) + 2.0 * smooth_field(recording, (3, 3))
    dynamic, target = recording.uniform(44, 56), recording.normal(87, system.gain_spread)
    if "gain" in without:
        tilt, dynamic, target = np.zeros_like(tilt), 50.0, 87.0
    return Recording(
        system=system,
        depth=depth,
        opening=opening,
        echo=echo,
        outside=outside,
        inside=0.25 * cloud,
        atria=atria,
        hinges=hinges,
        texture=4.6 * lumps + 4.4 * regions,
        trabeculae=6 * np.clip(lumps + 0.5 * regions, 0, 2),
        dropout=system.dropout * patch,
        blood=blood,
        spots=(places[:spots], gains[:spots]),
        near_field=near_field,
        specular=(
            10 ** ((-21 + 2 * lumps + 3 * regions) / 20),
            10 ** (-0.8 * system.dropout * patch / 20),
            np.clip((ranges - 25) / 45, 0.1, 1),  # the near field is out of focus
        ),
        attenuation=10 ** (-loss / 20),
        clutter=near,
        noise=(10 ** (noise / 10)).astype(np.float32),
        tilt=tilt,
        top=14 * np.exp(-ranges / 4),
        dynamic=dynamic,
        target=np.clip(target, 48, 140),
        version=version,
        speckle="speckle" not in without,
    )


def polar_image(
    tissue: np.ndarray,
    recording: Recording,
    frame: np.random.Generator,
    hinges: Sequence[tuple[float, float]],
    added: np.ndarray,
) -> np.ndarray:
    """Grey levels of a tissue map, in beam x range coordinates.

    Parameters
    ----------
    tissue
        `Tissue` values, uint8 (RANGES, BEAMS).
    recording
        What the frames of a recording share.
    frame
        Draws the speckle and noise.
    hinges
        The two of the mitral valve, x and y in mm.
    added
        To the echogenicity of each tissue, (tissues,) dB.

    Returns
    -------
    ndarray
        Float32 (RANGES, BEAMS), 0 to 255.
    """
    system, depth, opening = recording.system, recording.depth, recording.opening
    version = recording.version
    grid_x, grid_y, angles = polar_grid(opening, version)
    half = float(angles[-1])
    index = tissue.astype(np.intp)  # once, not at each look into a table of tissues
    solid = _SOLID[index]
    muscle = tissue == Tissue.MYOCARDIUM
    level = (recording.echo + added)[index]
    surroundings = (tissue == Tissue.SURROUNDINGS) | (tissue == Tissue.LUNG)
    level += np.where(surroundings, recording.outside, recording.inside)
    _add(level, recording.atria, (tissue == Tissue.LEFT_ATRIUM) | (tissue == Tissue.RIGHT_ATRIUM))
    # fat and fibrous tissue around the valve's hinges is often the brightest of the image
    x, y = grid_x * np.float32(depth), grid_y * np.float32(depth)
    for (hinge_x, hinge_y), (size, gain, off_x, off_y) in zip(hinges, recording.hinges, strict=True):
        far = ((x - (hinge_x + off_x)) ** 2 + (y - (hinge_y + off_y)) ** 2) / np.float32(size**2)
        _add(level, gain * np.exp(-far), solid)
    _add(level, recording.texture, solid)
    _add(level, recording.trabeculae, tissue == Tissue.RIGHT_VENTRICLE)
    # the middle of the wall, whose fibres run across the beam, is brighter than its inner and outer layer
    if muscle.any():
        rows, columns = masks.box(muscle)  # and as much around it as the filter reaches
        rows, columns = (
            slice(max(0, rows.start - 13), rows.stop + 13),
            slice(max(0, columns.start - 10), columns.stop + 10),
        )
        wall = muscle[rows, columns]
        middle = ndimage.gaussian_filter(wall.astype(np.float32), (5, 4), truncate=2.5)
        _add(level[rows, columns], 18 * (middle - 0.74), wall)
    walls = muscle | (tissue == Tissue.PERICARDIUM) | (tissue == Tissue.ATRIAL_WALL)
    np.subtract(level, recording.dropout, out=level, where=walls)
    # haze within the chambers differs from place to place; chordae and trabeculae are bright spots in it
    _add(level, recording.blood, _BLOOD[index])
    _add_spots(level, recording.spots, tissue == Tissue.LV_CAVITY)
    # the apex lies in the near field, where walls hardly stand out
    level += recording.near_field * (LOOKS[version].near - level)
    # the beam is thick across the plane: borders are crossed at several heights and look soft
    level = ndimage.gaussian_filter(level, (2.0 * system.resolution, 2.6 * system.resolution), truncate=2.5)

    # specular echoes: steps of impedance, seen where the boundary faces the beam
    smooth = ndimage.gaussian_filter(IMPEDANCE[index], (1.6, 0.9))
    share = ((np.arange(RANGES) + 0.5) / RANGES).astype(np.float32)[:, None]
    facing = np.abs(np.gradient(smooth, axis=0)) / (depth / RANGES)
    sideways = np.abs(np.gradient(smooth, axis=1)) / (share * depth * (2 * half / (BEAMS - 1)) + 0.5)
    specular = np.minimum(facing + 0.1 * sideways, 1.5)
    for factor in recording.specular:
        specular *= factor
    # few strong scatterers among many weak ones: K-distributed echoes, spotty as muscle is
    sparse_gain = np.sqrt(frame.standard_gamma(0.5, (RANGES, BEAMS), dtype=np.float32) / np.float32(0.5))
    amplitude = 10 ** (level / 20)
    if recording.speckle:
        np.multiply(amplitude, sparse_gain, out=amplitude, where=solid)
    amplitude += 0.7 * specular
    amplitude *= recording.attenuation
    # side lobes and reverberation smear strong echoes over neighbouring beams and ranges
    coarse = ndimage.gaussian_filter(np.square(amplitude[::4, ::2]), (7, 12), mode="nearest", truncate=2.5)
    haze = ndimage.uniform_filter1d(np.repeat(coarse, 4, axis=0), 5, axis=0, mode="nearest")
    haze = ndimage.uniform_filter1d(np.repeat(haze, 2, axis=1), 3, axis=1, mode="nearest")
    haze *= 10 ** (system.haze / 10)
    amplitude = np.sqrt(amplitude**2 + haze + recording.clutter).astype(np.float32)

    coherent = 0.5 * specular * recording.attenuation
    how = depth, opening, system.resolution, coherent
    if recording.speckle:
        echoes = envelope(amplitude, frame, *how, looks=3, version=version)
    else:
        echoes = mean_envelope(amplitude, *how, version=version)
    # the noise is finer than the speckle; a sample of the image holds about two independent values
    noise = frame.standard_gamma(2, (RANGES, BEAMS), dtype=np.float32) if recording.speckle else 2.0
    power = echoes**2 + noise * recording.noise

    decibel = 10 * np.log10(power + 1e-9) + recording.tilt - recording.top
    # the operator sets the gain by the look of the image: most of the way to the wanted median
    dynamic = recording.dynamic
    gain = float(dynamic * (recording.target / 255 - 1) - np.median(decibel[::4, ::2]))
    grey = 255 * (1 + (decibel + gain) / dynamic)
    knee = 30.0  # scanners bend the ends of the curve: nothing inside the sector is quite black
    dark = grey < knee
    grey[dark] = knee * np.exp(grey[dark] / knee - 1)
    return np.clip(grey, 2, 255).astype(np.float32)


def _add(level: np.ndarray, gain: np.ndarray, where: np.ndarray) -> None:
    """Add `gain` to `level` in place, `where` that is true."""
    np.add(level, gain, out=level, where=where)


def _reverberations(
    rng: np.random.Generator, ranges: np.ndarray, angles: np.ndarray, half: float, clutter: float
) -> np.ndarray:
    """Intensity (RANGES, BEAMS) of echoes bouncing between probe and chest wall: arcs in the near field."""
    intensity = np.zeros((RANGES, BEAMS), np.float32)
    first, step = rng.uniform(4, 9), rng.uniform(2.5, 5)
    strength, decay = clutter + rng.uniform(-4, 12), rng.uniform(1, 6)
    for k in range(5):
        at = first + k * step + rng.normal(0, 1.0)
        where, width = rng.normal(0, 0.5) * half, rng.uniform(0.25, 1.2) * half
        arc = np.exp(-(((ranges - at) / 0.7) ** 2)) * np.exp(-(((angles - where) / width) ** 2))
        intensity += 10 ** ((strength - decay * k + rng.normal(0, 3)) / 10) * arc.astype(np.float32)
    return intensity


def _add_spots(level: np.ndarray, spots: tuple[np.ndarray, np.ndarray], cavity: np.ndarray) -> None:
    """Add up to six small bright spots in the `cavity` (RANGES, BEAMS) bool to `level` (dB), in place."""
    where = np.flatnonzero(cavity)
    if len(where):
        spot = np.zeros(level.shape, np.float32)
        for place, gain in zip(*spots, strict=True):
            row, column = divmod(int(where[int(place * len(where))]), BEAMS)
            spot[max(0, row - 1) : row + 2, max(0, column - 2) : column + 3] = gain
        level += spot


def _streak(rng: np.random.Generator, share: np.ndarray, angles: np.ndarray, half: float) -> np.ndarray:
    """A short bright line (dB, (RANGES, BEAMS)), as from pleura, diaphragm or fascia."""
    at, where, slope = rng.uniform(0.3, 0.9), rng.uniform(-1, 1) * half, rng.normal(0, 0.35)
    thickness, width, gain = rng.uniform(0.003, 0.01), rng.uniform(0.04, 0.16), rng.uniform(4, 14)
    line = np.exp(-(((share - at - slope * (angles - where)) / thickness) ** 2))
    return (gain * line * np.exp(-(((angles - where) / width) ** 2))).astype(np.float32)


def _shadows(
    rng: np.random.Generator, system: System, angles: np.ndarray, half: float, share: np.ndarray
) -> np.ndarray:
    """Loss (dB, (RANGES, BEAMS)) behind ribs and lung: soft-edged, from some depth on, mostly at edges."""
    loss = np.zeros((RANGES, BEAMS), np.float32)
    for side in (-1, 1):
        strength = max(0.0, rng.normal(system.shadow, 4)) * (rng.random() < 0.75)
        edge, soft, start = rng.uniform(0.55, 1.05) * half, rng.uniform(0.04, 0.12), rng.uniform(0.05, 0.5)
        across = 1 / (1 + np.exp(-(side * angles - edge) / soft))
        loss += strength * across * (1 / (1 + np.exp(-(share - start) / 0.06)))
    # a narrow shadow inside the sector, now and then
    strength = rng.uniform(0, system.shadow) * (rng.random() < 0.4)
    where, width, start = rng.uniform(-0.8, 0.8) * half, rng.uniform(0.03, 0.09), rng.uniform(0.2, 0.7)
    loss += (
        strength * np.exp(-(((angles - where) / width) ** 2)) * (1 / (1 + np.exp(-(share - start) / 0.04)))
    )
    return loss
