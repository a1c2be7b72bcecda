"""Hold the phantom's beam against SIMUS, and put both on record: `beam.csv` and `speckle.csv`.

    python -m benchmarks.phantom.simus            # both; five minutes of one core
    python -m benchmarks.phantom.simus --phantom  # the phantom's rows alone, in seconds

SIMUS simulates the waves of a transducer's elements (Garcia 2022, Comput Methods Programs Biomed 218:106726);
PyMUST (LGPL, a development extra) is its Python port. Here it is a cardiac phased array of 64 elements over
19.2 mm at 2.5 MHz that focuses every line at 96 mm, as the phantom does in a sector of 160 mm, and receives
with delay and sum. The phantom is that of a good image, and its numbers are measured as those of SIMUS are.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import fft, optimize, special, stats

from benchmarks.phantom import FOLDER, put_on_record
from echovlsm.base import paths
from echovlsm.phantom import beam
from echovlsm.phantom.versions import VERSIONS

SPEED = 1540.0  # m/s
DEPTH, OPENING = 160.0, 75
"""The sector whose beam is compared, in mm and degrees."""
FOCUS = 0.6 * DEPTH
SIMUS, PHANTOM = "SIMUS", "phantom {version}"
"""Sources of rows."""
DISTINCT = sorted({beam.BEAM[version]: version for version in reversed(VERSIONS)}.values())
"""Versions with a beam of their own."""
DEPTHS, ANGLES, PERIODS = (30, 50, 80, 110, 140), (0, 15, 30, 36), 2
"""Of the point targets, in mm and degrees; periods of the transmitted pulse at the centre frequency."""
OTHER_PULSES = (1, 3)
"""Tried at 80 mm: how long a scanner's pulse is, is its own choice."""
BLOCKS = ((80, 0), (80, 30), (130, 0))
"""Middles of the blocks of scatterers, 20 mm deep and 20 degrees wide."""


Echoes = tuple[np.ndarray, float, float]
"""Echoes of one target or block (ranges, angles), and the steps in mm and degrees."""


# -- SIMUS --------------------------------------------------------------------------------------------------


class Array:
    """The phased array in SIMUS, with a pulse of some periods.

    SIMUS leaves room in time for echoes from the probe on. Those here come from a few centimetres, so that
    its frequencies may lie `coarse` times further apart: the echoes then stand at their time modulo a shorter
    period, and the work is so many times less.
    """

    def __init__(self, periods: int, coarse: float) -> None:
        import pymust

        self.pymust, self.coarse, self.param = pymust, coarse, pymust.getparam("P4-2v")
        self.param.fc, self.param.c, self.param.TXnow = 2.5e6, SPEED, periods
        self.param.fs = 4 * self.param.fc

    def line(self, place: np.ndarray, strength: np.ndarray, angle: float, ranges: np.ndarray) -> np.ndarray:
        """Complex echoes at `ranges` (mm) of a line at `angle` (rad), scatterers at `place` (2, N; mm)."""
        param, options = self.param, self.pymust.utils.Options()
        options.WaitBar, options.FrequencyStep, options.dBThresh = False, self.coarse, -60
        delays = self.pymust.txdelay(FOCUS / 1000 * np.sin(angle), FOCUS / 1000 * np.cos(angle), param)
        x, z = place[..., None] / 1000
        _, spectrum = self.pymust.simus(x, z, strength[:, None], delays, param, options)
        # its frequencies end at twice the centre's: with zeros after them the signal is analytic and finer
        count = 16 * (len(spectrum) - 1)
        echoes, rate = fft.ifft(np.conj(spectrum), count, axis=0), count * 2 * param.fc / (len(spectrum) - 1)
        elements = (np.arange(param.Nelements) - (param.Nelements - 1) / 2) * param.pitch
        r = ranges[:, None] / 1000
        back = np.hypot(r * np.sin(angle) - elements, r * np.cos(angle))
        start = np.interp(0, elements, np.ravel(delays))
        at = (start + (r + back) / SPEED) * rate
        low = np.floor(at).astype(int)
        share, columns = at - low, np.arange(param.Nelements)
        parts = (echoes[(low + after) % count, columns] for after in (0, 1))
        return sum(part * weight for part, weight in zip(parts, (1 - share, share), strict=True)).sum(axis=1)


def simus_target(depth: float, angle: float, periods: int) -> Echoes:
    """A point target's complex echoes."""
    array = Array(periods, coarse=2 + depth / 30)
    ranges = depth + np.arange(-60, 61) * 0.05
    step = 0.3 if depth >= 80 else 0.45
    angles = angle + np.arange(-9, 10) * step
    place = depth * np.array([[np.sin(np.deg2rad(angle))], [np.cos(np.deg2rad(angle))]])
    lines = [array.line(place, np.ones(1), np.deg2rad(a), ranges) for a in angles]
    return np.stack(lines, axis=1), 0.05, step


def simus_block(depth: float, angle: float, seed: int) -> Echoes:
    """Complex echoes of a block of equal scatterers of either sign, twelve a resolution cell."""
    rng, array = np.random.default_rng(seed), Array(PERIODS, coarse=2.5)
    cell = 0.6 * np.deg2rad(1.75 / np.cos(np.deg2rad(angle))) * depth
    count = int(12 * 20 * np.deg2rad(20) * depth / cell)
    r = np.sqrt(rng.uniform((depth - 10) ** 2, (depth + 10) ** 2, count))
    a = np.deg2rad(angle + rng.uniform(-10, 10, count))
    ranges, angles = depth + np.arange(-8, 8, 0.15), angle + np.arange(-16, 17) * 0.45
    place, strength = np.stack([r * np.sin(a), r * np.cos(a)]), rng.choice([-1.0, 1.0], count)
    lines = [array.line(place, strength, np.deg2rad(one), ranges) for one in angles]
    return np.stack(lines, axis=1), 0.15, 0.45


# -- the phantom --------------------------------------------------------------------------------------------


def phantom_target(version: int, depth: float, angle: float) -> Echoes:
    """A point target's echoes, eight times finer than the phantom's own samples."""
    along, across = beam.transfer_functions(DEPTH, OPENING, 1.0, version)
    row = round(depth / DEPTH * beam.RANGES - 0.5)
    echoes = np.outer(_finer(along[:, 0]), _finer(across[row]))
    return echoes, DEPTH / beam.RANGES / 8, _beam_step(version, angle) / 8


def phantom_block(version: int, depth: float, angle: float, seed: int) -> Echoes:
    """The envelope of homogeneous tissue around a place."""
    ones = np.ones((beam.RANGES, beam.BEAMS), np.float32)
    envelope = beam.envelope(ones, np.random.default_rng(seed), DEPTH, OPENING, version=version)
    ranges = (np.arange(beam.RANGES) + 0.5) / beam.RANGES * DEPTH
    angles = np.rad2deg(beam.polar_grid(OPENING, version)[2])
    part = envelope[np.abs(ranges - depth) < 8][:, np.abs(angles - angle) < 6.5]
    return part, DEPTH / beam.RANGES, _beam_step(version, angle)


def _finer(transfer: np.ndarray) -> np.ndarray:
    """Point-spread function of a transfer function, eight values a sample, its peak in the middle."""
    half, count = len(transfer) // 2, 8 * len(transfer)
    spectrum = np.zeros(count)
    spectrum[: half + 1], spectrum[-half + 1 :] = transfer[: half + 1], transfer[-half + 1 :]
    return fft.fftshift(fft.ifft(spectrum).real)


def _beam_step(version: int, angle: float) -> float:
    """Degrees between neighbouring beams at an angle."""
    angles = np.rad2deg(beam.polar_grid(OPENING, version)[2].astype(float))
    return float(np.interp(angle, angles, np.gradient(angles)))


# -- measures of either -------------------------------------------------------------------------------------


def width(profile: np.ndarray) -> float:
    """Full width at half maximum of a profile around its peak, in samples."""
    profile = profile / profile.max()
    peak, below = int(profile.argmax()), np.flatnonzero(profile < 0.5)
    left, right = below[below < peak].max(), below[below > peak].min()
    first = left + (0.5 - profile[left]) / (profile[left + 1] - profile[left])
    return float(right - (0.5 - profile[right]) / (profile[right - 1] - profile[right]) - first)


def target_widths(echoes: np.ndarray, step_mm: float, step_deg: float) -> tuple[float, float]:
    """Axial (mm) and lateral (degrees) width at half maximum of a point target's envelope."""
    shown = np.abs(echoes)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    return width(shown[:, column]) * step_mm, width(shown[row]) * step_deg


def expected_cell(echoes: np.ndarray, step_mm: float, step_deg: float) -> tuple[float, float]:
    """Axial (mm) and lateral (degrees) size of the speckle cell that a point-spread function makes.

    The autocovariance of fully developed speckle's intensity is the squared autocorrelation of a point's
    echoes (Wagner et al. 1983); the envelope's is nearly the same.
    """
    found = np.abs(_correlation(echoes)) ** 2
    row, column = np.unravel_index(found.argmax(), found.shape)
    return width(found[:, column]) * step_mm, width(found[row]) * step_deg


def _correlation(values: np.ndarray) -> np.ndarray:
    """Autocorrelation at all lags, lag 0 in the middle."""
    shape = [fft.next_fast_len(2 * n) for n in values.shape]
    return fft.fftshift(fft.ifft2(np.abs(fft.fft2(values, shape)) ** 2))


def speckle(blocks: Sequence[Echoes]) -> dict[str, float]:
    """Statistics of fully developed speckle in blocks of one place, a slow change of gain taken off.

    Returns
    -------
    dict
        `cell_axial_mm`, `cell_lateral_deg`: width at half maximum of the envelope's autocovariance.
        `nakagami`: m, 1 for Rayleigh. `ratio`: mean over sd, 1.91 for Rayleigh. `ks`: Kolmogorov-Smirnov
        distance of one sample a cell, `samples` of them, from the Rayleigh law of the same mean square; of 95
        in 100 such samples of that law it is below `ks_95`.
    """
    covariance, cells, values = 0, [], []
    (_, step_mm, step_deg), *_ = blocks
    levelled = [_levelled(np.abs(echoes)) for echoes, *_ in blocks]
    for envelope in levelled:
        pairs = np.maximum(_correlation(np.ones(envelope.shape)).real, 1)
        covariance = covariance + _correlation(envelope - envelope.mean()).real / pairs
        values.append(envelope.ravel())
    row, column = (n // 2 for n in covariance.shape)
    near_row, near_column = (n // 3 for n in levelled[0].shape)
    axial = width(covariance[row - near_row : row + near_row + 1, column])
    lateral = width(covariance[row, column - near_column : column + near_column + 1])
    for envelope in levelled:
        cells.append(envelope[:: int(np.ceil(1.2 * axial)), :: int(np.ceil(1.2 * lateral))].ravel())
    one, every = np.concatenate(cells), np.concatenate(values)
    mean_log = np.log(every**2 / (every**2).mean()).mean()
    rng = np.random.default_rng(0)
    return {
        "cell_axial_mm": axial * step_mm,
        "cell_lateral_deg": lateral * step_deg,
        "nakagami": optimize.brentq(lambda m: np.log(m) - special.digamma(m) + mean_log, 0.05, 50),
        "ratio": every.mean() / every.std(),
        "ks": _from_rayleigh(one),
        "ks_95": float(np.quantile([_from_rayleigh(rng.rayleigh(size=len(one))) for _ in range(400)], 0.95)),
        "samples": len(one),
    }


def _levelled(envelope: np.ndarray) -> np.ndarray:
    """An envelope of mean square 1, without the part of its log that is quadratic in either direction."""
    rows, columns = (np.linspace(-1, 1, n) for n in envelope.shape)
    terms = [np.outer(rows**i, columns**j).ravel() for i, j in ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2))]
    trend, log = np.stack(terms, axis=1), np.log(envelope.ravel().astype(float))
    fitted = trend @ np.linalg.lstsq(trend, log, rcond=None)[0]
    envelope = envelope / np.exp(fitted).reshape(envelope.shape)
    return envelope / np.sqrt((envelope**2).mean())


def _from_rayleigh(values: np.ndarray) -> float:
    scale = np.sqrt((values**2).mean() / 2)
    return float(stats.kstest(values, stats.rayleigh(scale=scale).cdf).statistic)


# -- on record ----------------------------------------------------------------------------------------------


def rows_of(
    source: str, target: Callable[..., Echoes], block: Callable[..., Echoes]
) -> tuple[list[dict], list[dict]]:
    """Rows of both tables, of `target(depth, angle)` and `block(depth, angle, seed)`."""
    targets = [
        {"source": source, "depth_mm": depth, "angle_deg": angle, "periods": PERIODS}
        | dict(zip(("axial_mm", "lateral_deg"), target_widths(*target(depth, angle)), strict=True))
        for depth in DEPTHS
        for angle in ANGLES
    ]
    speckles = []
    for depth, angle in BLOCKS:
        expected = expected_cell(*target(depth, angle))
        row = {"source": source, "depth_mm": depth, "angle_deg": angle}
        row |= dict(zip(("psf_axial_mm", "psf_lateral_deg"), expected, strict=True))
        speckles.append(row | speckle([block(depth, angle, seed) for seed in range(2)]))
    return targets, speckles


def phantom_rows(version: int) -> tuple[list[dict], list[dict]]:
    """Rows of both tables of one version of the phantom; it has no pulse of so many periods."""
    source = PHANTOM.format(version=version)
    targets, speckles = rows_of(
        source,
        lambda depth, angle: phantom_target(version, depth, angle),
        lambda depth, angle, seed: phantom_block(version, depth, angle, seed),
    )
    return [row | {"periods": None} for row in targets], speckles


def simus_rows() -> tuple[list[dict], list[dict]]:
    """Rows of both tables of SIMUS."""
    logging.disable(logging.WARNING)  # PyMUST warns of coarse frequencies by a call that fails
    targets, speckles = rows_of(SIMUS, lambda d, a: simus_target(d, a, PERIODS), simus_block)
    for periods in OTHER_PULSES:
        axial, lateral = target_widths(*simus_target(80, 0, periods))
        row = {"source": SIMUS, "depth_mm": 80, "angle_deg": 0, "periods": periods}
        targets.append(row | {"axial_mm": axial, "lateral_deg": lateral})
    return targets, speckles


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--phantom", action="store_true", help="keep the rows of SIMUS that are on record")
    only_phantom = parser.parse_args().phantom
    tables = (
        [pd.read_csv(paths.resolve(FOLDER) / f"{name}.csv") for name in ("beam", "speckle")]
        if only_phantom
        else []
    )
    found = [table[table["source"] == SIMUS].to_dict("records") for table in tables] or simus_rows()
    for name, rows, *more in zip(("beam", "speckle"), found, *map(phantom_rows, DISTINCT), strict=True):
        table = pd.DataFrame([*rows, *(row for part in more for row in part)])
        told = {"pymust": importlib.metadata.version("pymust")} if not only_phantom else {}
        print(put_on_record(name, table.astype({"periods": "Int64"}) if name == "beam" else table, **told))


if __name__ == "__main__":
    main()
