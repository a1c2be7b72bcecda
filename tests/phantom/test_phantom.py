"""The phantom simulator: its statistics, its anatomy, its labels, and the cohort that it writes."""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from echovlsm import PHASES, QUALITIES, VIEWS
from echovlsm.evaluation.clinical import ejection_fraction, measure, volume
from echovlsm.phantom import acoustics, anatomy, beam
from echovlsm.phantom import cohort as phantom
from echovlsm.phantom.anatomy import Tissue, heart_coordinates
from echovlsm.phantom.beam import BEAMS, RANGES, image_shape
from echovlsm.phantom.patient import Patient

SEED = 20
Frames = dict[tuple[str, str], phantom.Phantom]


def _frames(patient: Patient, seed: int, size: int = 192) -> Frames:
    return {
        (v, p): phantom.simulate(patient, v, p, 100 * seed + 10 * i + j, size)
        for i, v in enumerate(VIEWS)
        for j, p in enumerate(PHASES)
    }


def _volume(frames: Frames, phase: str) -> float:
    """Biplane volume of the cavity, mL, measured on the label maps as the study measures it."""
    shown = {view: frames[view, phase] for view in VIEWS}
    return volume({view: measure(f.labels, (f.spacing, f.spacing), view) for view, f in shown.items()})[0]


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [phantom.draw_cohort_patient(SEED, i) for i in range(30)]


@pytest.fixture(scope="module")
def images(patients: list[Patient]) -> list[Frames]:
    return [_frames(p, i) for i, p in enumerate(patients)]


def test_homogeneous_speckle_is_rayleigh() -> None:
    """Wagner et al. 1983: mean/sd of a fully developed speckle envelope is 1.91."""
    rng = np.random.default_rng(1)
    strength = np.full((RANGES, BEAMS), 0.3, np.float32)
    for resolution in (1.0, 1.4):
        envelopes = np.stack([beam.envelope(strength, rng, resolution=resolution) for _ in range(8)])
        inner = envelopes[:, 30:-10, 15:-15]  # away from the edges of the field
        assert inner.mean() / inner.std() == pytest.approx(1.913, rel=0.03)
        assert (inner**2).mean() == pytest.approx(2 * 0.3**2, rel=0.03), "filters must have unit noise gain"
        top, bottom = inner[:, :100], inner[:, -100:]
        assert (top**2).mean() == pytest.approx((bottom**2).mean(), rel=0.1), (
            "speckle must not fade with depth"
        )


def test_compounding_lowers_speckle_contrast() -> None:
    strength = np.ones((RANGES, BEAMS), np.float32)
    one = beam.envelope(strength, np.random.default_rng(1))
    four = beam.envelope(strength, np.random.default_rng(1), looks=4)
    assert four.mean() / four.std() > 1.7 * one.mean() / one.std()


def test_speckle_widens_with_depth_in_millimetres() -> None:
    envelope = beam.envelope(
        np.ones((RANGES, BEAMS), np.float32), np.random.default_rng(2), depth=160, opening=75
    )

    def grain(rows: slice) -> float:
        """Correlation length across the beams, mm."""
        part = envelope[rows] - envelope[rows].mean()
        lags = [(part[:, : BEAMS - k] * part[:, k:]).mean() / (part**2).mean() for k in range(12)]
        middle = (rows.start + rows.stop) / 2 / RANGES * 160
        return float(np.interp(-0.5, -np.array(lags), np.arange(12)) * np.deg2rad(75) / (BEAMS - 1) * middle)

    near, middle, deep = (grain(slice(at - 30, at + 30)) for at in (120, 210, 320))
    assert near < middle < deep


def test_cavity_is_smaller_and_wall_thicker_in_systole(images: list[Frames]) -> None:
    for i, frames in enumerate(images):
        for view in VIEWS:
            ed, es = frames[view, "ED"], frames[view, "ES"]
            assert (es.labels == 1).sum() < (ed.labels == 1).sum(), f"patient {i} {view}"
            assert es.heart.wall > ed.heart.wall
            assert es.heart.la_length > ed.heart.la_length, "the atrium fills in systole"
            assert es.heart.length < ed.heart.length, "the valve plane descends"


def test_ejection_fraction_of_labels_is_the_drawn_one(patients: list[Patient], images: list[Frames]) -> None:
    drawn = np.array([p.ejection_fraction for p in patients])
    measured = np.array([ejection_fraction(_volume(f, "ED"), _volume(f, "ES")) for f in images])
    assert np.ptp(drawn) > 30, "the sample must hold low and normal ejection fractions"
    assert np.abs(measured - drawn).max() < 3
    assert abs((measured - drawn).mean()) < 1


def test_volumes_lie_in_a_plausible_range(images: list[Frames]) -> None:
    volumes = [_volume(frames, "ED") for frames in images]
    assert 70 < np.median(volumes) < 130  # mL; Lang et al. 2015: 106 +- 22 in men, 76 +- 15 in women
    assert min(volumes) > 35
    assert max(volumes) < 260


def test_intensity_order_in_aggregate(patients: list[Patient], images: list[Frames]) -> None:
    for quality in QUALITIES:
        shown = [
            f
            for p, frames in zip(patients, images, strict=True)
            for (v, _), f in frames.items()
            if p.views[v].quality == quality
        ]
        assert len(shown) >= 8
        cavity, wall, pericardium = (
            np.median(np.concatenate([f.image[(f.tissue == t) & (f.image > 0)] for f in shown]))
            for t in (Tissue.LV_CAVITY, Tissue.MYOCARDIUM, Tissue.PERICARDIUM)
        )
        assert cavity + 10 < wall < pericardium, quality


def test_quality_lowers_contrast(patients: list[Patient]) -> None:
    """The same hearts and recordings, with nothing but the quality changed."""
    contrast = {}
    for quality in QUALITIES:
        values = []
        for i, patient in enumerate(patients[:12]):
            view = VIEWS[i % 2]
            views = {v: replace(a, quality=quality) for v, a in patient.views.items()}
            f = phantom.simulate(replace(patient, views=views), view, "ED", i, 192)
            wall, cavity = (f.image[(f.tissue == t) & (f.image > 0)].astype(float) for t in (2, 1))
            values.append((wall.mean() - cavity.mean()) / np.sqrt((wall.var() + cavity.var()) / 2))
        contrast[quality] = np.mean(values)
    assert contrast["good"] > 1.15 * contrast["medium"]
    assert contrast["medium"] > 1.15 * contrast["poor"]
    assert contrast["poor"] > 0.2, "a poor image still shows something"


def test_label_geometry(images: list[Frames]) -> None:
    for i, frames in enumerate(images):
        for key, f in frames.items():
            where = f"patient {i} {key}"
            assert set(np.unique(f.labels)) == {0, 1, 2, 3}, where
            rows = {}
            for label in (1, 2, 3):
                parts, count = ndimage.label(f.labels == label, np.ones((3, 3)))
                sizes = np.bincount(parts.ravel())[1:]
                assert sizes.max() >= 0.995 * sizes.sum(), f"{where}: label {label} in {count} parts"
                rows[label] = ndimage.center_of_mass(f.labels == label)[0]
            assert rows[2] < rows[3], where
            assert rows[1] < rows[3], where


def test_myocardium_is_open_at_the_base_and_the_atrium_lies_behind_the_valve(images: list[Frames]) -> None:
    for i, frames in enumerate(images):
        for key, f in frames.items():
            height, width = f.labels.shape
            x, y = np.meshgrid(
                (np.arange(width) - (width - 1) / 2) * f.spacing, (np.arange(height) + 0.5) * f.spacing
            )
            u, q = heart_coordinates(f.heart, x, y)
            assert q[f.labels == 1].min() > 0, f"patient {i} {key}: cavity behind the valve plane"
            assert q[f.labels == 3].max() <= 0, f"patient {i} {key}: atrium before the valve plane"
            on_axis = (np.abs(u) < 0.35 * f.heart.base_ratio * f.heart.width) & (np.abs(q) < 8)
            assert not (f.labels[on_axis] == 2).any(), f"patient {i} {key}: wall across the valve"
            apex = (np.abs(u) < 3) & (q > f.heart.length + 2) & (q < f.heart.length + 0.6 * f.heart.apex_wall)
            assert (f.labels[apex] == 2).all(), f"patient {i} {key}: no wall at the apex"


def test_context_belongs_to_the_view(images: list[Frames]) -> None:
    right = [Tissue.RIGHT_VENTRICLE, Tissue.RIGHT_ATRIUM]
    shown = {v: np.mean([np.isin(f[v, "ED"].tissue, right).any() for f in images]) for v in VIEWS}
    assert shown == {"2CH": 0.0, "4CH": 1.0}


def test_image_is_a_sector(images: list[Frames]) -> None:
    for frames in images[:5]:
        for f in frames.values():
            assert f.image.shape == f.labels.shape == f.tissue.shape == image_shape(192) == (192, 234)
            assert f.image.dtype == f.labels.dtype == np.uint8
            assert f.image[0, 0] == f.image[0, -1] == f.image[-1, 0] == 0, "black outside the sector"
            inside = f.image[100:180, 100:130]
            assert (inside > 0).all(), "nothing inside the sector is quite black"
            assert 0.40 < (f.image == 0).mean() < 0.62


def test_sex_and_age_are_causes() -> None:
    drawn = [phantom.draw_cohort_patient(1, i) for i in range(1500)]
    normal = [p for p in drawn if p.condition == "normal"]
    men, women = ([p for p in normal if p.sex == s] for s in "MF")
    assert np.mean([p.lv_diameter for p in men]) - np.mean([p.lv_diameter for p in women]) == pytest.approx(
        5.2, abs=1
    )
    assert np.mean([p.lv_diameter for p in men]) == pytest.approx(50.2, abs=0.8)
    assert np.mean([p.ejection_fraction for p in women]) == pytest.approx(64, abs=1)
    old, young = [p for p in drawn if p.age >= 70], [p for p in drawn if p.age < 50]
    for cause in ("wall_thickness", "la_length", "fibrosis", "calcification"):
        assert np.mean([getattr(p, cause) for p in old]) > np.mean([getattr(p, cause) for p in young]), cause
    qualities = [a.quality for p in drawn for a in p.views.values()]
    shares = [qualities.count(q) / len(qualities) for q in QUALITIES]
    assert shares == pytest.approx([0.35, 0.46, 0.19], abs=0.03)


def test_fibrosis_brightens_the_wall(patients: list[Patient]) -> None:
    for i, patient in enumerate(patients[:3]):
        dim, bright = (
            phantom.simulate(replace(patient, fibrosis=x), "4CH", "ED", i, 128) for x in (0.0, 6.0)
        )
        wall = (dim.tissue == Tissue.MYOCARDIUM) & (dim.image > 0)
        cavity = dim.tissue == Tissue.LV_CAVITY
        step = [f.image[wall].mean() - f.image[cavity].mean() for f in (dim, bright)]
        assert step[1] > step[0] + 2


def test_simulation_is_deterministic(patients: list[Patient]) -> None:
    first, again, other = (phantom.simulate(patients[0], "4CH", "ED", s, 128) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.image != other.image).mean() > 0.3, "another seed must give other speckle"
    assert phantom.draw_cohort_patient(SEED, 7) == patients[7]
    assert phantom.draw_cohort_patient(SEED + 1, 7) != patients[7]


def test_the_echoes_are_those_that_the_image_is_made_of(patients: list[Patient]) -> None:
    frame = phantom.simulate(patients[4], "4CH", "ED", 8, 128)
    image = beam.scan_convert(frame.echoes, patients[4].views["4CH"].opening, 128)
    np.testing.assert_array_equal(image, frame.image)


@pytest.mark.parametrize("size", [32, 64, 96, 200, 256])
def test_size_changes_the_spacing_and_not_the_heart(patients: list[Patient], size: int) -> None:
    f = phantom.simulate(patients[2], "4CH", "ED", 1, size)
    reference = phantom.simulate(patients[2], "4CH", "ED", 1, 192)
    assert f.image.shape == image_shape(size)
    assert f.spacing * size == pytest.approx(patients[2].views["4CH"].depth)
    area, expected = ((p.labels == 1).sum() * p.spacing**2 for p in (f, reference))
    assert area == pytest.approx(expected, rel=0.05)
    assert f.image[f.image > 0].mean() == pytest.approx(reference.image[reference.image > 0].mean(), rel=0.08)


def test_bad_parameters_are_named(patients: list[Patient], tmp_path) -> None:
    with pytest.raises(ValueError, match="view='3CH'"):
        phantom.simulate(patients[0], "3CH", "ED", 1)
    with pytest.raises(ValueError, match="phase='ed'"):
        phantom.simulate(patients[0], "2CH", "ed", 1)
    with pytest.raises(ValueError, match="size=8"):
        phantom.simulate(patients[0], "2CH", "ED", 1, size=8)
    for wrong, name in (
        ({"patients": 0}, "patients=0"),
        ({"size": 8}, "size=8"),
        ({"splits": (0.5, 0.5, 0.5)}, "splits="),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
    ):
        with pytest.raises(ValueError, match=name):
            phantom.write_phantom_cohort(tmp_path / "c", **{"patients": 2, "seed": 1, **wrong})
    assert not (tmp_path / "c").exists()


def _digest(row, load_image, load_labels) -> str:
    return hashlib.sha256(load_image(row).tobytes() + load_labels(row).tobytes()).hexdigest()


def test_written_cohort_is_read_back(tmp_path) -> None:
    from echovlsm.cohort import read as cohort
    from echovlsm.cohort.images import load_image, load_labels

    big = phantom.write_phantom_cohort(
        tmp_path / "big", 10, seed=5, size=64, splits=(0.5, 0.2, 0.3), progress=False
    )
    small = phantom.write_phantom_cohort(tmp_path / "small", 3, seed=5, size=64, progress=False, workers=1)
    frames, few = cohort.read_cohort(big), cohort.read_cohort(small)
    assert len(frames) == 40
    assert frames.groupby("split")["patient"].nunique().to_dict() == {"train": 5, "val": 2, "test": 3}
    assert (frames.groupby("patient")["split"].nunique() == 1).all()
    assert set(frames["quality"]) <= set(QUALITIES)
    # patient i is the same whatever the number of patients, of processes, and the split
    for number in ("patient0001", "patient0003"):
        for view in VIEWS:
            a, b = (
                next(r for _, r in t.iterrows() if (r.patient, r["view"], r.phase) == (number, view, "ES"))
                for t in (frames, few)
            )
            assert (a.sex, a.age, a.quality) == (b.sex, b.age, b.quality)
            digests = [_digest(r, load_image, load_labels) for r in (a, b)]
            assert digests[0] == digests[1]
            patient = phantom.draw_cohort_patient(5, int(number[-4:]) - 1)
            assert a.age == patient.age
            assert a.spacing_y == a.spacing_x == pytest.approx(patient.views[view].depth / 64)


def test_processes_change_nothing(tmp_path) -> None:
    """The same files, byte by byte, however many processes draw them."""
    from echovlsm.cohort import read as cohort

    one, two = (
        phantom.write_phantom_cohort(tmp_path / f"{n}", 9, seed=2, size=32, progress=False, workers=n)
        for n in (1, 2)
    )
    assert cohort.cohort_hash(one) == cohort.cohort_hash(two)


def test_a_frame_does_not_depend_on_the_frames_drawn_before(patients: list[Patient]) -> None:
    """Both phases share what belongs to the recording; drawing one must not change it."""
    acoustics.draw_recording.cache_clear()
    alone = phantom.simulate(patients[3], "2CH", "ES", 1, 128)
    acoustics.draw_recording.cache_clear()
    phantom.simulate(patients[3], "2CH", "ED", 0, 128)
    np.testing.assert_array_equal(phantom.simulate(patients[3], "2CH", "ES", 1, 128).image, alone.image)
    np.testing.assert_array_equal(phantom.simulate(patients[3], "2CH", "ES", 1, 128).image, alone.image)


def test_the_number_of_threads_changes_no_field() -> None:
    script = (
        "import hashlib, numpy as np\nfrom echovlsm.phantom.beam import smooth_field\n"
        "field = smooth_field(np.random.default_rng(1), (64, 40), flat=True)\n"
        "print(hashlib.sha256(field.tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2, 3)
    }
    assert len(digests) == 1


def test_smooth_fields_are_sums_of_cosines() -> None:
    field = beam.smooth_field(np.random.default_rng(4), (5, 3), flat=True)
    weights = np.random.default_rng(4).standard_normal((5, 3), dtype=np.float32) / np.sqrt(15 / 3.5)
    y, x = (np.arange(RANGES)[:, None] + 0.5) / RANGES, (np.arange(BEAMS)[None] + 0.5) / BEAMS
    expected = sum(
        weights[i, j] * np.cos(np.pi * i * y) * np.cos(np.pi * j * x) for i in range(5) for j in range(3)
    )
    np.testing.assert_allclose(field, expected, atol=1e-5)


def test_envelope_is_that_of_filtered_complex_noise() -> None:
    """The plain way: complex scatterers, one transform over both directions a row of the sector."""
    strength = np.random.default_rng(3).uniform(0.1, 1, (RANGES, BEAMS)).astype(np.float32)
    coherent = np.zeros_like(strength)
    coherent[150, 40:120] = 3
    found = beam.envelope(strength, np.random.default_rng(5), 150, 72, 1.2, coherent, looks=2)
    along, across = beam.transfer_functions(150, 72, 1.2)
    rng, intensity = np.random.default_rng(5), 0
    for _ in range(2):
        noise = rng.standard_normal((2, RANGES, BEAMS), dtype=np.float32)
        field = np.zeros((len(along), across.shape[1]), complex)
        field[:RANGES, :BEAMS] = (noise[0] + 1j * noise[1]) * strength + coherent
        field = np.fft.ifft(np.fft.fft(field, axis=0) * along, axis=0)[:RANGES]
        field = np.fft.ifft(np.fft.fft(field, axis=1) * across, axis=1)[:, :BEAMS]
        intensity = intensity + np.abs(field) ** 2
    np.testing.assert_allclose(found, np.sqrt(intensity / 2), atol=1e-4)


@pytest.mark.parametrize("opening", [66, 75])
def test_scan_conversion_interpolates_between_beams(opening: int) -> None:
    polar = np.random.default_rng(6).uniform(2, 255, (RANGES, BEAMS)).astype(np.float32)
    inside, coordinates = beam.image_grid(opening, 256)[2:]
    expected = np.zeros(inside.shape)
    expected[inside] = ndimage.map_coordinates(polar, coordinates, order=1, mode="nearest")
    found = beam.scan_convert(polar, opening, 256)
    assert np.abs(found - expected).max() <= 0.5 + 1e-4


def test_a_points_tissue_does_not_depend_on_the_other_points(patients: list[Patient]) -> None:
    """Most tissues are tried only where they may lie; the places found must be the right ones."""
    rng = np.random.default_rng(7)
    for patient in patients[:6]:
        for view in VIEWS:
            for phase in PHASES:
                heart = anatomy.make_heart(patient, view, phase)
                x, y = rng.uniform((-90, 0), (90, 170), (4000, 2)).astype(np.float32).T
                together = anatomy.tissue_map(heart, x, y)
                parts = [anatomy.tissue_map(heart, x[i::7], y[i::7]) for i in range(7)]
                for i, part in enumerate(parts):
                    np.testing.assert_array_equal(part, together[i::7])


def test_leaflets_are_found_wherever_their_points_lie() -> None:
    du, q = (v.ravel() for v in np.meshgrid(np.linspace(-60, 60, 481), np.linspace(-60, 60, 481)))
    for angle in (0.11, 0.3, 0.7, 1.25):
        for size in (8.0, 20.0, 40.0):
            sin, cos = np.sin(angle), np.cos(angle)
            along = du * cos + q * sin
            across = q * cos - du * sin + 0.35 * along * (along / size - 1) * sin
            expected = np.flatnonzero((along > -1) & (along < size) & (np.abs(across) < 1.3))
            found = anatomy._leaflet(np.arange(du.size), du, q, angle, size, 1.3)
            np.testing.assert_array_equal(found, expected)
            # the map tries only what lies so high
            assert q[found].min() > -3
            assert q[found].max() < size + 3


def test_anatomy_lies_near_published_proportions(images: list[Frames]) -> None:
    """Area shares of the structures in apical images, as in CAMUS (medians about 8, 8 and 5 %)."""
    medians = [
        np.median([100 * (f.labels == k).mean() for fs in images for f in fs.values()]) for k in (1, 2, 3)
    ]
    assert medians == pytest.approx([8.3, 8.3, 4.9], abs=1.3)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """A killed writer leaves neither a cohort nor processes that wait for work for ever."""
    script = (
        "import sys\nfrom echovlsm.phantom import write_phantom_cohort\n"
        "if __name__ == '__main__':\n    write_phantom_cohort(sys.argv[1], 400, seed=0, progress=False,"
        " workers=2)\n"
    )
    source = tmp_path / "draw.py"
    source.write_text(script)
    process = subprocess.Popen([sys.executable, str(source), str(tmp_path / "cohort")])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    workers: list[str] = []
    for _ in range(300):
        workers = children.read_text().split()
        if len(workers) >= 2:
            break
        time.sleep(0.1)
    assert len(workers) >= 2
    time.sleep(1)  # let them start their watch
    process.kill()
    process.wait()
    for _ in range(100):
        alive = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    assert not (tmp_path / "cohort").exists()
