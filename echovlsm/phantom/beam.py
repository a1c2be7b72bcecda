"""The beam of the phantom's scanner: its grid, its point-spread function, and the sector that is shown.

An image is made as an imaging system makes it, in beam x range coordinates. Scatterers are complex
Gaussian noise whose strength is the tissue's echogenicity; the point-spread function is convolved with it
(Bamber and Dickinson 1980, "Ultrasonic B-scanning: a computer simulation", Phys Med Biol 25:463-479); the
envelope of the result is fully developed speckle with Rayleigh statistics, mean/sd = sqrt(pi / (4 - pi)) =
1.91 (Wagner et al. 1983, "Statistics of speckle in ultrasound B-scans", IEEE Trans Son Ultrason 30:156-163;
Goodman 2007, "Speckle Phenomena in Optics").
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft, sparse

RANGES, BEAMS = 352, 176
"""Samples along a beam (half a millimetre or less) and beams in the sector."""
ASPECT = 1.22
"""Width over height of every image: a sector of 75 degrees fills it, as in CAMUS."""


@dataclass(frozen=True)
class Beam:
    """Widths of one version's point-spread function: standard deviations of the echoes' amplitude."""

    pulse: float
    """Along the beam, mm."""
    angle: float
    """Across it in focus, degrees: diffraction spreads the beam by a constant angle."""
    out_of_focus: tuple[float, float]
    """What is added at a distance of one focal depth from the focus: in mm, and, before it, in degrees."""
    steered: bool
    """Whether the aperture looks shorter from the side: beams lie at equal steps of the angle's sine, and
    their width, the same in these steps, grows to the sector's edges."""


BEAM: dict[int, Beam] = {
    1: (_FIRST := Beam(pulse=0.45, angle=0.68, out_of_focus=(0.7, 0.0), steered=False)),
    2: Beam(pulse=0.259, angle=0.71, out_of_focus=(0.0, 1.2), steered=True),
    3: _FIRST,
}
"""The beam of each version of the phantom; that of version 2 is fitted to SIMUS (`data/results/phantom`)."""


@lru_cache(maxsize=32)
def polar_grid(opening: int, version: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit sector: `x`, `y` (RANGES, BEAMS) for depth 1, and the beam angles (BEAMS,) in radians; float32."""
    half = np.deg2rad(opening) / 2
    angles = np.linspace(-half, half, BEAMS, dtype=np.float32)
    if BEAM[version].steered:
        angles = np.arcsin(np.linspace(-np.sin(half), np.sin(half), BEAMS)).astype(np.float32)
    ranges = ((np.arange(RANGES) + 0.5) / RANGES).astype(np.float32)
    return np.outer(ranges, np.sin(angles)), np.outer(ranges, np.cos(angles)), angles


def sample_points(
    depth: float, opening: int, rng: np.random.Generator, version: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Where the samples under the beams lie: `x`, `y` (RANGES, BEAMS) in mm; float32.

    They are moved a little: trabeculae and the thickness of the slice make borders rough where annotators
    draw them smooth.
    """
    x, y, _ = polar_grid(opening, version)
    rough = _roughness(opening, version)
    rough_x, rough_y = (rough * smooth_field(rng, (24, 16), flat=True) for _ in range(2))
    return x * np.float32(depth) + rough_x, y * np.float32(depth) + rough_y


@lru_cache(maxsize=32)
def _roughness(opening: int, version: int) -> np.ndarray:
    """How far samples are moved, mm: more with depth."""
    x, y, _ = polar_grid(opening, version)
    return 0.4 + 0.7 * np.hypot(x, y)


@lru_cache(maxsize=32)
def image_grid(
    opening: int, size: int, version: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image of `size` rows over a sector of depth 1: where each pixel lies.

    Returns
    -------
    x, y : ndarray of float32 (H, W)
        For depth 1.
    inside : ndarray of bool (H, W)
        Whether it lies in the sector.
    coordinates : ndarray of float32 (2, inside.sum())
        Fractional row and column of the inside pixels in the polar grid.
    """
    height, width = image_shape(size)
    step = 1.0 / height
    x, y = np.meshgrid((np.arange(width) - (width - 1) / 2) * step, (np.arange(height) + 0.5) * step)
    radius, angle, half = np.hypot(x, y), np.arctan2(x, y), np.deg2rad(opening) / 2
    inside = (radius <= 1) & (np.abs(angle) <= half)
    rows = radius[inside] * RANGES - 0.5
    columns = (angle[inside] + half) / (2 * half) * (BEAMS - 1)
    if BEAM[version].steered:
        columns = (np.sin(angle[inside]) / np.sin(half) + 1) / 2 * (BEAMS - 1)
    coordinates = np.stack([rows, columns]).astype(np.float32)
    return x.astype(np.float32), y.astype(np.float32), inside, coordinates


def image_shape(size: int) -> tuple[int, int]:
    """(height, width) of an image of `size` rows."""
    return size, round(size * ASPECT)


def _lateral_sigma(depth: float, opening: int, resolution: float, version: int) -> np.ndarray:
    """Beam width (standard deviation, in beams) against range (RANGES,).

    Diffraction spreads the beam by a constant angle, so its width in millimetres grows with depth; out of
    focus the 20 mm aperture adds to it.
    """
    ranges, beam = (np.arange(RANGES) + 0.5) / RANGES * depth, BEAM[version]
    focus = 0.6 * depth
    far, near = beam.out_of_focus
    width = np.hypot(np.deg2rad(beam.angle) * ranges, far * np.abs(1 - ranges / focus))
    if near:
        width = np.hypot(width, np.deg2rad(near) * ranges * np.clip(1 - ranges / focus, 0, None))
    sector = 2 * np.sin(np.deg2rad(opening) / 2) if beam.steered else np.deg2rad(opening)
    return (resolution * width / ranges / sector * (BEAMS - 1)).clip(0.3, 12)


def envelope(
    strength: np.ndarray,
    rng: np.random.Generator,
    depth: float = 160.0,
    opening: int = 75,
    resolution: float = 1.0,
    coherent: np.ndarray | None = None,
    looks: int = 1,
    version: int = 1,
) -> np.ndarray:
    """Echo envelope of scatterers, before any compression.

    Complex Gaussian scatterers x strength, convolved with a Gaussian pulse along the beam and a Gaussian beam
    profile across it. The filters have unit noise gain: a homogeneous region of strength s has a Rayleigh
    envelope of mean square 2 s squared.

    Parameters
    ----------
    strength
        Amplitude of the scatterers, float32 (RANGES, BEAMS).
    rng
        Draws them.
    depth, opening
        Of the sector, in mm and degrees.
    resolution
        Factor on both widths of the point-spread function.
    coherent
        Specular echoes that are added, as `strength`.
    looks
        Above 1 the root of the mean intensity over independent looks is returned: frequency compounding, as
        scanners do it.
    version
        Of the phantom: a key of `BEAM`.

    Returns
    -------
    ndarray
        Float32 (RANGES, BEAMS).
    """
    transfers = transfer_functions(depth, opening, resolution, version)
    intensity = np.zeros((RANGES, BEAMS), np.float32)
    for _ in range(looks):
        noise = rng.standard_normal((2, RANGES, BEAMS), dtype=np.float32)
        noise *= strength
        if coherent is not None:
            noise[0] += coherent
        field = _filtered(noise[0], noise[1], *transfers)
        intensity += field.real**2 + field.imag**2
    return np.sqrt(intensity / looks)


def mean_envelope(
    strength: np.ndarray,
    depth: float,
    opening: int,
    resolution: float,
    coherent: np.ndarray,
    version: int = 1,
) -> np.ndarray:
    """Root of the mean intensity of `envelope` over all scatterers: the echoes without their interference."""
    transfers = transfer_functions(depth, opening, resolution, version)
    squared = [
        fft.fft(fft.ifft(one, axis=axis).real ** 2, axis=axis).real for axis, one in enumerate(transfers)
    ]
    incoherent = 2 * _filtered(strength**2, 0, *squared).real
    return np.sqrt(np.maximum(incoherent, 0) + _filtered(coherent, 0, *transfers).real ** 2)


def _filtered(
    real: np.ndarray, imaginary: np.ndarray | float, along: np.ndarray, across: np.ndarray
) -> np.ndarray:
    """Both parts of a field (RANGES, BEAMS) convolved by transfer functions: complex64 in the same shape."""
    field = np.zeros((along.shape[0], BEAMS), np.complex64)
    field.real[:RANGES], field.imag[:RANGES] = real, imaginary
    field = _scaled(fft.fft(field, axis=0, overwrite_x=True), along)
    field = fft.ifft(field, axis=0, overwrite_x=True)[:RANGES]
    field = _scaled(fft.fft(field, across.shape[1], axis=1), across)
    return fft.ifft(field, axis=1, overwrite_x=True)[:, :BEAMS]


def _scaled(field: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """`field` (complex64) times a real `factor`, in place: half the work of a product of complex numbers."""
    for part in (field.real, field.imag):
        part *= factor
    return field


@lru_cache(maxsize=8)
def transfer_functions(
    depth: float, opening: int, resolution: float, version: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Transfer functions of the pulse along the beam (rows, 1) and of the beam across (RANGES, columns)."""
    rows, columns = fft.next_fast_len(RANGES + 12), fft.next_fast_len(BEAMS + 24)
    pulse = BEAM[version].pulse * resolution / (depth / RANGES)
    along = _gaussian(np.full(1, pulse), rows).T
    return along, _gaussian(_lateral_sigma(depth, opening, resolution, version), columns)


def _gaussian(sigma: np.ndarray, count: int) -> np.ndarray:
    """Transfer functions (len(sigma), count) of Gaussians of `sigma` samples, unit noise gain; float32."""
    frequency = 2 * np.pi * fft.fftfreq(count)
    transfer = np.exp(-0.5 * (sigma[:, None] * frequency) ** 2)
    return (transfer / np.sqrt((transfer**2).mean(axis=1, keepdims=True))).astype(np.float32)


@lru_cache(maxsize=16)
def _cosines(count: int, terms: int) -> np.ndarray:
    """Cosine basis (count, terms)."""
    return np.cos(np.pi * np.outer((np.arange(count) + 0.5) / count, np.arange(terms)))


def smooth_field(rng: np.random.Generator, terms: tuple[int, int], flat: bool = False) -> np.ndarray:
    """Smooth random field (RANGES, BEAMS) of unit variance on average, from the lowest cosines; float32.

    Low cosines prevail, or all `terms` weigh the same if `flat`: a grain of one size.
    """
    weights = rng.standard_normal(terms, dtype=np.float32) * _falloff(terms, flat)
    # In double precision, so that images do not depend on how a processor or a number of threads sums; in
    # blocks so small that no BLAS starts threads, which would cost more than the product.
    blocks = _cosines(RANGES, terms[0]).reshape(-1, 32, terms[0])
    field = blocks @ weights.astype(np.float64) @ _cosines(BEAMS, terms[1]).T
    return field.reshape(RANGES, BEAMS).astype(np.float32)


@lru_cache(maxsize=32)
def _falloff(terms: tuple[int, int], flat: bool) -> np.ndarray:
    """Weights (terms) of the cosines of a smooth field of unit variance, float32."""
    falloff = 1 / np.hypot(1 + np.arange(terms[0])[:, None], 1 + np.arange(terms[1])[None])
    if flat:
        falloff = np.ones_like(falloff)
    return (falloff / np.sqrt((falloff**2).sum() / 3.5)).astype(np.float32)


def scan_convert(polar: np.ndarray, opening: int, size: int, version: int = 1) -> np.ndarray:
    """Sector image of `size` rows (uint8 (H, W), black outside) from polar grey levels (RANGES, BEAMS).

    Small images are averaged down from a finer one, as a viewer does, so that speckle does not alias.
    """
    factor = max(1, -(-192 // size))
    height, width = image_shape(size)
    fine_shape = image_shape(size * factor)
    image = _scan_weights(opening, size * factor, version) @ polar.ravel().astype(np.float64)
    image = image.astype(np.float32).reshape(fine_shape)
    if factor > 1:
        image = image[:, : fine_shape[1] // factor * factor]
        image = image.reshape(height, factor, -1, factor).mean(axis=(1, 3))
        missing = width - image.shape[1]
        image = np.pad(image, ((0, 0), (0, missing))) if missing > 0 else image[:, :width]
    return np.rint(image).astype(np.uint8)


@lru_cache(maxsize=32)
def _scan_weights(opening: int, size: int, version: int) -> sparse.csr_array:
    """Bilinear interpolation from the polar grid to an image of `size` rows, (H * W, RANGES * BEAMS).

    Every image of one opening and size has the same weights; pixels outside the sector have none.
    """
    inside, coordinates = image_grid(opening, size, version)[2:]
    limits = np.array([[RANGES - 1], [BEAMS - 1]])
    low = np.floor(coordinates).astype(int)
    share = coordinates.astype(np.float64) - low
    rows, columns = (np.clip(np.stack([low, low + 1]), 0, limits)).transpose(1, 0, 2)  # each (2, pixels)
    (row_share, column_share), pixels = share, np.flatnonzero(inside)
    weights = [
        (1 - row_share) * (1 - column_share),
        (1 - row_share) * column_share,
        row_share * (1 - column_share),
        row_share * column_share,
    ]
    sources = [rows[i] * BEAMS + columns[j] for i in (0, 1) for j in (0, 1)]
    values, (at, where) = np.concatenate(weights), (np.tile(pixels, 4), np.concatenate(sources))
    return sparse.csr_array((values, (at, where)), shape=(inside.size, RANGES * BEAMS))
