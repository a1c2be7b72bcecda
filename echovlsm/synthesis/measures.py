"""Measures of one set of echocardiograms, or between two; `echovlsm.synthesis.fidelity` tabulates them.

Images are log-compressed to 8 bits, so nothing here is an echo amplitude. Fully developed speckle has a
Rayleigh amplitude of SNR (mean / sd) 1.91 (Wagner et al. 1983); after log compression its sd is 5.57 dB
whatever the mean (23.7 grey levels where 255 of them span 60 dB), and so the grey-level SNR of `local_snr`
rises with gain and falls with contrast. Read it against the source's, not against 1.91: higher than there
means smoother tissue (speckle lost) or the same speckle at a higher gain, lower means noise or a lower gain;
the tissue's grey levels tell the two apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.cohort import resize_image, sectors

TISSUES: dict[int, str] = {value: name for value, name in enumerate(sectors.SECTOR_CLASSES) if value}
"""Sector class to tissue; 0 is outside the sector."""
CAVITY, BACKGROUND, MYOCARDIUM = 1, 2, 3
ROUNDING = 1 / 12
"""Variance in grey levels squared of rounding to 8 bits: nothing below it is measured."""
COPY_RATIO, COPY_NEIGHBOURS, COPY_LEVELS = 0.5, 50, 1.0
"""What `nearest_training` calls a copy."""


class FidelityError(ValueError):
    """Images, maps or features that cannot be compared; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A set of echocardiograms.

    Parameters
    ----------
    images
        Grey levels, uint8 (N, H, W).
    maps
        Sector maps, uint8 (N, H, W): 0 outside the sector, else the keys of `TISSUES`.
    patients
        N patient ids (for a synthetic image, of its source patient), so that halves and random subsets keep
        patients whole; None takes each image as its own patient.
    labels
        The study's labels, uint8 (N, H, W), 0 and the keys of `echovlsm.STRUCTURES`: for label agreement.

    Raises
    ------
    FidelityError
        No images, another dtype or shape than above, maps or labels of another size, an unknown class.
    """

    images: np.ndarray
    maps: np.ndarray
    patients: Sequence[Hashable] | None = None
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        check_maps(self.maps, "maps", max(TISSUES), self.images)
        if self.labels is not None:
            check_maps(self.labels, "labels", max(STRUCTURES), self.images)
        if self.patients is not None and len(self.patients) != len(self.images):
            raise FidelityError(f"patients: {len(self.patients)} ids for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def groups(self) -> np.ndarray:
        """Patient numbers, int (N,)."""
        import pandas as pd

        return np.arange(len(self)) if self.patients is None else pd.factorize(np.asarray(self.patients))[0]


def grey_counts(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Pixels of each image by sector class and grey level: int64 (N, 5, 256)."""
    check_images(images)
    check_maps(maps, "maps", max(TISSUES), images)
    classes = max(TISSUES) + 1
    return np.stack(
        [
            np.bincount((labels.astype(np.int64) * 256 + image).ravel(), minlength=classes * 256)
            for image, labels in zip(images, maps, strict=True)
        ]
    ).reshape(len(images), classes, 256)


def tissue_histograms(
    images: np.ndarray, maps: np.ndarray, bins: int = 64
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges (bins + 1,) in grey levels, and for each tissue a histogram (bins,) of its pixels in all images.

    A histogram sums to 1, or is NaN where no image has the tissue; `bins` divides 256.
    """
    pooled = _rebin(grey_counts(images, maps).sum(axis=0), bins)
    edges = np.linspace(0, 256, bins + 1)
    return edges, {name: _fractions(pooled[value]) for value, name in TISSUES.items()}


def pooled_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Wasserstein distance in grey levels between pooled counts (N, 256); NaN where either has none."""
    from scipy.stats import wasserstein_distance

    first, second = first.sum(axis=0), second.sum(axis=0)
    if not first.any() or not second.any():
        return math.nan
    levels = np.arange(256)
    return float(wasserstein_distance(levels, levels, first, second))


def gcnr(first: np.ndarray, second: np.ndarray, bins: int = 32) -> np.ndarray:
    """Generalised contrast-to-noise ratio of two tissues: 1 - overlap of their histograms, float (N,).

    Rodriguez-Molares et al. 2020, IEEE Trans Ultrason Ferroelectr Freq Control 67:745-759: 0 where the
    tissues are indistinguishable, 1 where they are disjoint, NaN where an image lacks one. Log compression
    does not change it. Few pixels in many bins overlap less than their distributions do, so bins are wide:
    with 32 bins two samples of 500 pixels of one distribution score about 0.1 instead of 0.

    `first`, `second` are counts of grey levels of each tissue, (N, 256): `grey_counts(...)[:, CAVITY]`.
    """
    return 1 - np.minimum(_fractions(_rebin(first, bins)), _fractions(_rebin(second, bins))).sum(axis=-1)


def local_snr(images: np.ndarray, maps: np.ndarray, tissue: int, window: int = 5) -> np.ndarray:
    """Grey-level SNR of a tissue: the median over small windows of mean / sd, an image at a time.

    A window counts if it lies wholly in the tissue and at most a fifth of its pixels are black or white,
    where speckle is clipped away. The median leaves out edges and specular echoes; windows are too small for
    slow changes of gain to count as speckle, and, where a speckle grain is not small against them, too small
    for its whole sd: the SNR then comes out higher. The sd is at least that of rounding.

    Parameters
    ----------
    images, maps
        Images and sector maps, uint8 (N, H, W); the module says how log compression bears on the result.
    tissue
        A key of `TISSUES`.
    window
        Side of the window in pixels, odd.

    Returns
    -------
    ndarray
        Float (N,); NaN where no window fits.
    """
    from scipy.ndimage import uniform_filter

    check_images(images)
    check_maps(maps, "maps", max(TISSUES), images)
    if tissue not in TISSUES:
        raise FidelityError(f"tissue: {tissue!r} is none of {list(TISSUES)}")
    if window < 3 or window % 2 == 0:
        raise FidelityError(f"window: {window!r} is not an odd number from 3")
    result = np.full(len(images), np.nan)
    pixels = window**2
    for index, (image, labels) in enumerate(zip(images, maps, strict=True)):
        stack = np.stack([labels == tissue, (image == 0) | (image == 255), image, image.astype(float) ** 2])
        inside, clipped, mean, square = uniform_filter(
            stack.astype(float), (1, window, window), mode="constant"
        )
        fits = (inside > 1 - 0.5 / pixels) & (clipped <= 0.2 + 0.5 / pixels)
        if fits.any():
            variance = (square[fits] - mean[fits] ** 2) * pixels / (pixels - 1)
            result[index] = np.median(mean[fits] / np.sqrt(np.maximum(variance, ROUNDING)))
    return result


def sample_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Wasserstein distance of two samples (N,), (M,), without NaN; NaN where nothing is left of either."""
    from scipy.stats import wasserstein_distance

    first, second = first[~np.isnan(first)], second[~np.isnan(second)]
    return float(wasserstein_distance(first, second)) if len(first) and len(second) else math.nan


def radial_spectrum(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power spectrum of images uint8 (N, H, W) averaged over directions, an image at a time.

    The image's mean is taken off, a Hann window applied and the power divided by the window's, so that
    white noise of variance s² is flat at 10 log10(s²) dB. Power below rounding noise is set to it. Decibels
    averaged over images lie below the decibels of the averaged power in the few-pixel inner rings; between
    two sets this cancels.

    Returns
    -------
    frequencies
        Float (K,) in cycles/pixel (times H: cycles/image), the centres of min(H, W) // 2 rings up to 0.5
        less the innermost, which holds the mean.
    power
        Float (N, K) in dB of grey levels squared.
    """
    from scipy import fft

    check_images(images)
    height, width = images.shape[1:]
    if min(height, width) < 8:
        raise FidelityError(f"images: {height} x {width} is too small for a spectrum; 8 pixels at least")
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    radius = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None])
    rings = min(height, width) // 2
    ring = np.minimum((radius * 2 * rings).astype(int), rings)  # the corners beyond 0.5 are left out
    # half the plane is transformed: its columns stand for two, but the first and an even width's last
    twice = np.full(radius.shape, 2.0)
    twice[:, 0] = 1
    if width % 2 == 0:
        twice[:, -1] = 1
    total = np.bincount(ring.ravel(), twice.ravel(), rings + 1)
    power = np.empty((len(images), rings + 1))
    for index, image in enumerate(images):
        spectrum = fft.rfft2((image - image.mean()) * window)
        energy = twice * (spectrum.real**2 + spectrum.imag**2)
        power[index] = np.bincount(ring.ravel(), energy.ravel(), rings + 1)
    power /= np.maximum(total, 1) * (window**2).sum()
    frequencies = (np.arange(rings) + 0.5) / (2 * rings)
    return frequencies[1:], 10 * np.log10(np.maximum(power[:, 1:rings], ROUNDING))


def spectrum_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Mean difference in dB of the mean spectra of images (N, K), (M, K), over frequencies."""
    return float(np.abs(first.mean(axis=0) - second.mean(axis=0)).mean())


def own_kernel(features: np.ndarray) -> float:
    """Mean of KID's kernel over pairs of unequal rows of features (n, D), n >= 2: a term of `squared_mmd`."""
    values, n = _kernel(features, features), len(features)
    return float((values.sum() - values.trace()) / (n * (n - 1)))


def squared_mmd(first: np.ndarray, second: np.ndarray, second_own: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of features (m, D), (n, D) under KID's kernel.

    k(x, y) = (x·y / D + 1)³ as in Binkowski et al. 2018 ("Demystifying MMD GANs"); the estimator is that of
    Gretton et al. 2012 ("A kernel two-sample test"). A negative value is chance. `second_own` is `own_kernel`
    of the second where it is known: of one large set against many small ones it is nearly all the work.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise FidelityError(f"features: {first.shape} and {second.shape} are not (N, D) of one D")
    m, n = len(first), len(second)
    if min(m, n) < 2:
        raise FidelityError(f"features: {m} and {n} images; the distance needs two of each")
    within = own_kernel(first) + (own_kernel(second) if second_own is None else second_own)
    return float(within - 2 * _kernel(first, second).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, float), np.asarray(b, float)
    return (a @ b.T / a.shape[1] + 1) ** 3


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W) reduced to 32 x 32 by antialiased resizing: float32 (N, 1024)."""
    check_images(images)
    return np.stack([resize_image(image, 32).numpy().ravel() for image in images]).astype(np.float32)


class Nearest(NamedTuple):
    """For each image: distance to the nearest training image, its index, and whether it is a copy; (N,)."""

    distance: np.ndarray
    index: np.ndarray
    copy: np.ndarray


def nearest_training(
    images: np.ndarray,
    training: np.ndarray,
    same: np.ndarray | None = None,
    metric: str = "rmse",
) -> Nearest:
    """Find each image's nearest training image.

    A copy is nearer than half the mean distance to its 50 nearest training images (Carlini et al. 2023,
    "Extracting Training Data from Diffusion Models"), or within one grey level: near one image, not near all
    of them. Distances of synthetic images somewhat below those of held-out ones are not yet copying: a
    synthetic image shares its (perturbed) label map with a training image, a held-out one does not.

    Parameters
    ----------
    images, training
        `thumbnails` or features, (N, D) and (M, D).
    same
        bool (N, M), pairs that do not count (one patient's); None counts all.
    metric
        ``rmse`` (grey levels for thumbnails) or ``cosine`` (1 - cosine, for features).
    """
    from scipy.spatial.distance import cdist

    if images.shape[1:] != training.shape[1:] or not len(images) or not len(training):
        raise FidelityError(f"images and training: {images.shape} and {training.shape} do not compare")
    if metric not in ("rmse", "cosine"):
        raise FidelityError(f"metric: {metric!r} is neither 'rmse' nor 'cosine'")
    table = cdist(images, training, "euclidean" if metric == "rmse" else "cosine").clip(0)
    if metric == "rmse":
        table /= math.sqrt(training.shape[1])
    if same is not None:
        table[same] = np.inf
    near = np.sort(table, axis=1)[:, :COPY_NEIGHBOURS]
    if not np.isfinite(near[:, 0]).all():
        raise FidelityError(f"training: no image to compare image {near[:, 0].argmax()} with")
    copy = near[:, 0] < COPY_RATIO * near.mean(axis=1, where=np.isfinite(near))
    if metric == "rmse":
        copy |= near[:, 0] < COPY_LEVELS
    return Nearest(near[:, 0], table.argmin(axis=1), copy)


def _rebin(counts: np.ndarray, bins: int) -> np.ndarray:
    if bins < 1 or 256 % bins:
        raise FidelityError(f"bins: {bins!r} does not divide 256")
    return counts.reshape(*counts.shape[:-1], bins, -1).sum(axis=-1)


def _fractions(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=-1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def check_images(images: np.ndarray) -> None:
    """FidelityError unless `images` are uint8 (N, H, W), at least one."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 3:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise FidelityError(f"images: {found}; uint8 (N, H, W) was expected")
    if not images.size:
        raise FidelityError(f"images: {images.shape} holds no image")


def check_maps(maps: np.ndarray, name: str, highest: int, images: np.ndarray) -> None:
    """FidelityError unless `maps` are whole numbers from 0 to `highest` in the shape of `images`."""
    if not isinstance(maps, np.ndarray) or not np.issubdtype(maps.dtype, np.integer):
        raise FidelityError(f"{name}: whole numbers (N, H, W) were expected")
    if maps.shape != images.shape:
        raise FidelityError(f"{name}: {maps.shape} does not match {images.shape}")
    if maps.size and (maps.min() < 0 or maps.max() > highest):
        raise FidelityError(f"{name}: classes {maps.min()} to {maps.max()}; 0 to {highest} are known")
