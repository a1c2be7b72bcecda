"""Files and settings as people have them: faults reported of readers, metrics and tools of this trade.

Each was turned into a small input, and stands here with others of its kind. What is refused is refused by
name, with the remedy; the catalogue of bad input (`workflow/test_bad_input.py`) holds one of each.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from echovlsm import models
from echovlsm.base.files import read_json, read_table
from echovlsm.cohort.check import CohortWarning
from echovlsm.cohort.files import CohortError, RangeError
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import check_cohort, legacy_testing_map, read_cohort
from echovlsm.evaluation import statistics
from echovlsm.evaluation.scoring import DISTANCES, score_table
from echovlsm.study.parameters import (
    ParameterError,
    as_typed,
    check_parameters,
    coerce,
    may_draw_phantom,
    parameters_for,
    read_profile,
)
from echovlsm.synthesis.weights import WeightsError, load_denoiser
from echovlsm.training.loop import fit
from echovlsm.training.triplets import make_triplets
from tests.conftest import ROOT, WEIGHTS
from tests.workflow.test_bad_input import cut, snapshot, spoil_json

BOM = b"\xef\xbb\xbf"
SIZE = (20, 16)  # height, width; not square: an axis mixed up changes the shape


def some_image() -> np.ndarray:
    """Grey values uint8 that use the whole range."""
    values = np.random.default_rng(1).integers(0, 256, SIZE).astype(np.uint8)
    values[0, :2] = 0, 255
    return values


def some_labels() -> np.ndarray:
    """A mask uint8 with all labels."""
    labels = np.zeros(SIZE, np.uint8)
    labels[2:8, 1:9], labels[8:12, 1:9], labels[12:18, 8:14] = 1, 2, 3
    return labels


def nifti(
    path: Path,
    values: np.ndarray,
    *,
    stored: Any = None,
    pixel: tuple[float, float] = (0.308, 0.308),
    unit: str | int = "mm",
    slope: float | None = None,
    inter: float = 0.0,
) -> Path:
    """A NIfTI file with the header's fields as given; `stored` and `slope`: type and scale factor on disk."""
    image = nibabel.Nifti1Image(
        values.T, np.diag([-pixel[1], -pixel[0], 1.0, 1.0]), dtype=stored or values.dtype
    )
    if isinstance(unit, str):
        image.header.set_xyzt_units(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytearray(image.to_bytes())
    head = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    if isinstance(unit, int):
        head["xyzt_units"] = unit
    if slope is not None:
        head["scl_slope"], head["scl_inter"] = slope, inter
    content[:348] = head.binaryblock
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def release(root: Path, patients: int = 1, suffix: str = ".nii.gz") -> Path:
    """A folder in the public release's layout, all patients in training."""
    names = [f"patient{number + 1:04d}" for number in range(patients)]
    (root / "database_split").mkdir(parents=True)
    for part in ("training", "validation", "testing"):
        listed = "".join(f"{name}\n" for name in names) if part == "training" else ""
        (root / f"database_split/subgroup_{part}.txt").write_text(listed)
    for name in names:
        for view in ("2CH", "4CH"):
            folder = root / "database_nifti" / name
            for phase in ("ED", "ES"):
                nifti(folder / f"{name}_{view}_{phase}{suffix}", some_image())
                nifti(folder / f"{name}_{view}_{phase}_gt{suffix}", some_labels())
            (folder / f"Info_{view}.cfg").write_text("Sex: F\nAge: 61\nImageQuality: Good\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return release(tmp_path / "camus")


@pytest.fixture
def image(folder: Path) -> Path:
    return folder / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"


@pytest.fixture
def mask(image: Path) -> Path:
    return image.with_name("patient0001_2CH_ED_gt.nii.gz")


def first(root: Path) -> Any:
    """The row of the first image."""
    return read_cohort(root).iloc[0]


# --- the size of a pixel -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel", "unit", "expected"),
    [
        ((308.0, 308.0), "micron", 0.308),
        ((0.000308, 0.000308), "meter", 0.308),
        ((0.308, 0.308), "mm", 0.308),
        ((0.308, 0.308), "unknown", 0.308),
        ((0.308, 0.308), 5, 0.308),  # a code without a meaning
        ((0.001, 0.001), "meter", 1.0),  # a true millimetre, not the placeholder
        ((1.0, 1.0), "unknown", None),
        ((1.0, 1.0), "micron", None),
    ],
)
def test_a_pixel_has_its_size_in_any_unit(
    folder: Path, image: Path, pixel: tuple[float, float], unit: str | int, expected: float | None
) -> None:
    nifti(image, some_image(), pixel=pixel, unit=unit)
    row = first(folder)
    assert (row.spacing_y, row.spacing_x) == (expected, expected) if expected else pd.isna(row.spacing_y)
    assert check_cohort(folder).empty


@pytest.mark.parametrize(
    ("pixel", "unit"),
    [
        ((308.0, 308.0), "unknown"),
        ((0.000308, 0.000308), "unknown"),
        ((308.0, 308.0), 7),
        ((308.0, 308.0), "mm"),
        ((0.308, 0.308), "micron"),
        ((0.308, 308.0), "unknown"),
    ],
)
def test_a_size_that_no_pixel_has_is_a_problem_and_no_spacing(
    folder: Path, image: Path, pixel: tuple[float, float], unit: str | int
) -> None:
    nifti(image, some_image(), pixel=pixel, unit=unit)
    (problem,) = check_cohort(folder).itertuples()
    assert (problem.problem, problem.file) == ("unlikely pixel size", image.relative_to(folder).as_posix())
    assert f"{pixel[0]:g}" in problem.detail
    with pytest.warns(CohortWarning, match=r"unlikely pixel size.*export it again with the pixel's size"):
        frames = read_cohort(folder)
    assert frames[["spacing_y", "spacing_x"]].isna().sum().tolist() == [1, 1]
    assert np.array_equal(load_image(frames.iloc[0]), some_image())


@pytest.mark.parametrize(("unit", "side"), [("um", 308.0), ("mm", 0.308), ("cm", 0.0308), ("", 0.308)])
def test_a_metaimage_may_name_its_unit_too(tmp_path: Path, unit: str, side: float) -> None:
    import SimpleITK as sitk  # noqa: N813

    path = tmp_path / "training/patient0001/patient0001_2CH_ED.mhd"
    path.parent.mkdir(parents=True)
    picture = sitk.GetImageFromArray(some_image()[None])
    picture.SetSpacing((side, side, 1.0))
    sitk.WriteImage(picture, str(path))
    if unit:
        path.write_text(path.read_text().replace("ElementType", f"DistanceUnits = {unit}\nElementType"))
    with pytest.warns(CohortWarning):  # the other images of the patient are not there
        row = first(tmp_path)
    assert (row.spacing_y, row.spacing_x) == (0.308, 0.308)


def test_native_camus_with_nan_as_scale_factor_and_float32_values_reads_as_ever(
    folder: Path, image: Path
) -> None:
    nifti(image, some_image().astype(np.float32), slope=float("nan"), inter=float("nan"))
    row = first(folder)
    assert (row.spacing_y, row.spacing_x) == (0.308, 0.308)
    assert np.array_equal(load_image(row), some_image())
    assert check_cohort(folder).empty


# --- small text files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_text_files_of_a_windows_editor_are_read_as_without_the_mark(
    folder: Path, mark: bytes, end: bytes
) -> None:
    for path in (*folder.rglob("*.cfg"), *folder.rglob("subgroup_*.txt")):
        path.write_bytes(mark + path.read_bytes().replace(b"\n", end))
    meta = {"name": "mine", "kind": "real"}
    (folder / "cohort.yaml").write_bytes(
        mark + yaml.safe_dump(meta, sort_keys=False).encode().replace(b"\n", end)
    )
    assert check_cohort(folder).empty
    for split in ("official", "any"):
        frames = read_cohort(folder, split=split)
        assert len(frames) == 4
        assert frames[["sex", "age", "quality", "split"]].drop_duplicates().values.tolist() == [
            ["F", 61, "good", "train"]
        ]
        assert frames.attrs["meta"]["name"] == "mine"


def test_the_first_testing_patient_survives_the_mark(folder: Path) -> None:
    names = [f"patient{number:04d}" for number in range(1, 51)]
    (folder / "database_split/subgroup_testing.txt").write_bytes(BOM + "\r\n".join(names).encode())
    assert legacy_testing_map(folder).tolist() == names


def test_profiles_tables_and_json_survive_the_mark(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(BOM + b"profile: mine\r\nseed: 3\r\n")
    assert read_profile(tmp_path / "mine.yaml") == {"profile": "mine", "seed": 3}
    (tmp_path / "table.csv").write_bytes(BOM + b"epoch,loss\r\n1,0.5\r\n")
    assert read_table(tmp_path / "table.csv", ValueError, "", ("epoch", "loss")).values.tolist() == [[1, 0.5]]
    (tmp_path / "config.json").write_bytes(BOM + b'{"a": 1}')
    assert read_json(tmp_path / "config.json", ValueError, "") == {"a": 1}


# --- what a file holds -------------------------------------------------------------------------------------


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
RGBA = np.dtype([*RGB.descr, ("A", "u1")])


@pytest.mark.parametrize("kind", [RGB, RGBA, np.dtype("complex64")])
@pytest.mark.parametrize("of_mask", [False, True])
def test_a_file_in_colour_is_one_row_of_the_check(
    folder: Path, image: Path, mask: Path, kind: np.dtype, of_mask: bool
) -> None:
    path = mask if of_mask else image
    nifti(path, np.zeros(SIZE, kind))
    (problem,) = check_cohort(folder).itertuples()
    assert (problem.problem, problem.file) == ("unreadable file", path.relative_to(folder).as_posix())
    assert "export it in grey" in problem.detail
    with pytest.warns(CohortWarning, match="export it in grey"):
        frames = read_cohort(folder)
    assert len(frames) == 3


@pytest.mark.parametrize("channels", [3, 4])
def test_channels_in_place_of_slices_are_named(folder: Path, image: Path, channels: int) -> None:
    nifti(image, np.zeros((channels, *SIZE), np.uint8))
    assert "export one frame in grey" in check_cohort(folder).detail.item()


@pytest.mark.parametrize(
    ("stored", "slope", "inter"),
    [
        (np.int16, 3 / 65000, 1.5),
        (np.uint8, 3 / 255, 0.0),
        (np.float64, 1.00000002, 0.0),
        (np.int16, 0.5, 0.0),
        (np.int32, 1e-4, -1.0),
    ],
)
def test_labels_behind_a_scale_factor_are_rounded(
    folder: Path, mask: Path, stored: type, slope: float, inter: float
) -> None:
    values = (some_labels() - inter) / slope
    raw = values if stored is np.float64 else np.rint(values)
    nifti(mask, raw.astype(stored), slope=slope, inter=inter)
    labels = load_labels(first(folder))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, some_labels())
    assert check_cohort(folder).empty


def test_labels_that_nibabel_itself_spread_over_an_integer_type_are_rounded(folder: Path, mask: Path) -> None:
    values = some_labels().T * 1.00000002
    array = nibabel.Nifti1Image(values, np.diag([-0.308, -0.308, 1.0, 1.0]))
    array.set_data_dtype(np.int16)
    nibabel.save(array, mask)
    assert float(nibabel.load(mask).header["scl_slope"]) != 1  # else this would test nothing
    assert np.array_equal(load_labels(first(folder)), some_labels())


def test_grey_values_behind_a_scale_factor_are_rounded(folder: Path, image: Path) -> None:
    slope = np.float32(255 / 65535)
    nifti(image, np.rint(some_image() / slope).astype(np.uint16), slope=float(slope))
    assert np.array_equal(load_image(first(folder)), some_image())


@pytest.mark.parametrize(
    ("slope", "inter", "shown"), [(0.35, 0.0, "0.35"), (2.0, 0.0, "6"), (1.0, 0.5, "3.5")]
)
def test_a_scale_factor_that_gives_no_labels_is_named(
    folder: Path, mask: Path, slope: float, inter: float, shown: str
) -> None:
    nifti(mask, some_labels().astype(np.int16), slope=slope, inter=inter)
    (detail,) = check_cohort(folder).detail
    assert f"the scale factor {slope:g} and the intercept {inter:g}" in detail
    assert shown in detail
    assert "export whole numbers without a scale factor" in detail


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0, 85, 170, 255], "labels times 85: divide"),
        ([0, 0, 0, 255], "255 looks like one structure"),
        ([0, 64, 128, 192], "labels times 64: divide"),
        ([0, 127, 255, 0], "labels times 127.5: divide"),
        ([0, 100, 200, 0], "labels times 100: divide"),
        ([0, 0, 170, 255], "labels times 85: divide"),
        ([0, 1 / 3, 2 / 3, 1], "labels times 0.333333: divide"),
        ([0, 1, 2, 4], "to 4, expected labels 0-3; correct the file"),
        ([0, 0, 0, 4], "to 4, expected labels 0-3; correct the file"),
        ([0, 17, 40, 99], "to 99, expected labels 0-3; correct the file"),
    ],
)
def test_labels_that_were_multiplied_are_refused_with_the_likely_factor(
    folder: Path, mask: Path, values: list[float], told: str
) -> None:
    kind = np.float32 if any(value % 1 for value in values) else np.uint8
    nifti(mask, np.array(values)[some_labels()].astype(kind))
    with pytest.raises(RangeError, match=r"patient0001_2CH_ED_gt\.nii\.gz") as caught:
        load_labels(first(folder))
    assert told in str(caught.value)


@pytest.mark.parametrize(("factor", "kind"), [(1 / 255, np.float32), (257.0, np.uint16)])
def test_grey_values_of_another_range_are_refused_with_the_likely_factor(
    folder: Path, image: Path, factor: float, kind: type
) -> None:
    nifti(image, (some_image() * factor).astype(kind))
    (detail,) = check_cohort(folder).detail
    assert f"look like grey values times {factor:.6g}: divide" in detail


# --- compressed or not -------------------------------------------------------------------------------------


def test_a_file_says_itself_whether_it_is_compressed(folder: Path, image: Path, mask: Path) -> None:
    expected = read_cohort(folder)
    image.write_bytes(gzip.decompress(image.read_bytes()))  # uncompressed, but named .nii.gz
    mask.with_suffix("").write_bytes(mask.read_bytes())  # compressed, but named .nii
    mask.unlink()
    assert check_cohort(folder).empty
    frames = read_cohort(folder)
    assert frames.drop(columns="labels").equals(expected.drop(columns="labels"))
    assert np.array_equal(load_image(frames.iloc[0]), some_image())
    assert np.array_equal(load_labels(frames.iloc[0]), some_labels())


@pytest.mark.parametrize("split", ["official", "any"])
def test_a_cohort_of_plain_nifti_is_read(tmp_path: Path, split: str) -> None:
    root = release(tmp_path / "plain", 2, ".nii")
    assert check_cohort(root).empty
    frames = read_cohort(root, split=split)
    assert len(frames) == 8
    assert np.array_equal(load_labels(frames.iloc[7]), some_labels())
    assert len(make_triplets(frames, "P1", models.load("clipseg", WEIGHTS), seed=1)) == 8


@pytest.mark.parametrize("keep", [100, 348, -1])
def test_a_plain_file_cut_off_is_named(tmp_path: Path, keep: int) -> None:
    root = release(tmp_path / "plain", suffix=".nii")
    path = root / "database_nifti/patient0001/patient0001_2CH_ED.nii"
    path.write_bytes(path.read_bytes()[:keep])
    (problem,) = check_cohort(root).itertuples()
    assert (problem.problem, problem.file) == ("unreadable file", path.relative_to(root).as_posix())
    assert "copy it again" in problem.detail


def test_of_two_files_for_one_image_the_releases_own_is_read_and_that_is_said(
    folder: Path, image: Path
) -> None:
    nifti(image.with_suffix(""), np.zeros(SIZE, np.uint8))
    assert check_cohort(folder).problem.tolist() == ["file twice"]
    with pytest.warns(CohortWarning, match=r"file twice.*take one of the two away"):
        assert np.array_equal(load_image(first(folder)), some_image())


# --- what a command line means -----------------------------------------------------------------------------


INNOCENT = [
    "2023_01",
    "no",
    "on",
    "1e3",
    "12:30",
    "null",
    "~",
    "007",
    "0x1F",
    "2023-01-05",
    "a: b",
    "a #b",
    ".5",
]
INNOCENT += ["1_000", "[1]", "{a: 1}", "'q'", " x ", "True", "3.10", "nan", "!tag x", "&a x", "*a"]


@pytest.mark.parametrize("text", INNOCENT)
def test_a_text_reaches_the_notebook_as_it_was_typed(text: str) -> None:
    given = parameters_for(ROOT / "notebooks/04_training.ipynb", {}, {"cohort": text, "epochs": "3"})
    assert given == {"cohort": text, "epochs": 3}


@pytest.mark.parametrize("text", INNOCENT)
def test_snakemake_gives_the_text_that_was_typed_or_an_error(text: str) -> None:
    from snakemake.cli import parse_config

    words = ["snakemake", "study", "--config", f"cohort={text}", "epochs=3", "models="]
    read = parse_config(words[3:])
    declared = {"cohort": "str", "epochs": "int", "models": "str"}
    meant = text.strip("'")  # quotes around it are Snakemake's own
    if str(read["cohort"]) != meant:
        with pytest.raises(
            ParameterError, match=r"which Snakemake reads as .*; begin a folder's name with \./"
        ):
            as_typed(read, words, declared)
        read = parse_config([f"cohort=./{text}", "epochs=3", "models="])
        words[3] = f"cohort=./{text}"
        meant = f"./{text}"
    if str(read["cohort"]) == meant:  # "./a #b" loses its end in YAML even so
        values = coerce(as_typed(read, words, declared), declared)
        assert values == {"cohort": meant, "epochs": 3, "models": ""}


@pytest.mark.parametrize(
    ("typed", "arrives"), [("seeds=1", "1"), ("seeds=1,2", "1,2"), ("seeds=202301", "202301")]
)
def test_a_job_of_a_cluster_gets_what_the_first_process_read(typed: str, arrives: str) -> None:
    from snakemake.cli import parse_config
    from snakemake.common import dict_to_key_value_args

    read = parse_config([typed])
    words = dict_to_key_value_args(read, repr_obj=True)
    assert as_typed(read, [typed], {"seeds": "str"}) == {"seeds": arrives}
    assert as_typed(parse_config(words), words, {"seeds": "str"}) == {"seeds": arrives}


def test_a_folder_that_papermill_took_for_a_number_is_refused() -> None:
    namespace: dict[str, Any] = {"In": ["", "# Parameters\ncohort = 202301"]}
    exec('profile: str = "demo"\ncohort: str = "x"\ncohort = 202301', namespace)
    with pytest.raises(ParameterError, match="`cohort` must be str, not int 202301; put it in quotes"):
        check_parameters(namespace)


# --- a folder that is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_phantom", "cohort", "profile", "expected"),
    [
        (None, "data/cohorts/phantom-demo", "demo", True),
        (None, "./data/cohorts/../cohorts/phantom-demo", "demo", True),
        (None, str(ROOT / "data/cohorts/phantom-demo"), "demo", True),
        (None, "data/cohorts/phantom-dmeo", "demo", False),
        (None, "data/cohorts/camsu", "smoke", False),
        (None, "data/cohorts/phantom-demo", "no-such-profile", False),
        (True, "data/cohorts/another", "demo", True),
        (False, "data/cohorts/phantom-demo", "demo", False),
        (False, "data/cohorts/camus", "camus", False),
    ],
)
def test_a_phantom_is_drawn_at_the_profiles_own_place_or_by_name(
    make_phantom: bool | None, cohort: str, profile: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOVLSM_ROOT", str(ROOT))
    assert may_draw_phantom(make_phantom, cohort, profile) is expected


@pytest.mark.parametrize(
    ("asked", "near"), [("camsu", "camus"), ("Camus_", "camus"), ("camsu/deep/er", "camus")]
)
def test_a_typing_error_is_answered_with_the_nearest_folder(folder: Path, asked: str, near: str) -> None:
    with pytest.raises(CohortError, match=f"no such folder; the nearest folder there is: .*/{near};"):
        read_cohort(folder.parent / asked)


def test_where_nothing_is_like_it_the_folder_above_is_named(folder: Path) -> None:
    with pytest.raises(CohortError, match=f"the nearest folder there is: {folder.parent};"):
        read_cohort(folder.parent / "hearts" / "2024")


# --- settings that contradict each other -------------------------------------------------------------------


@pytest.mark.parametrize(("patience", "plateau"), [(3, 5), (3, 3), (4, 3), (20, 19), (1, 0)])
def test_a_plateau_that_helps_nobody_is_said_before_training(
    tmp_path: Path, patience: int, plateau: int
) -> None:
    with pytest.raises(
        ValueError, match=rf"patience: {patience}; .* give a patience of at least {plateau + 2}"
    ):
        fit(None, None, None, tmp_path, patience=patience, plateau_patience=plateau)
    assert not list(tmp_path.iterdir())


def test_the_least_patience_lets_the_rate_fall_and_an_epoch_follow(
    phantom_frames: pd.DataFrame, tmp_path: Path
) -> None:
    model = models.load("clipseg", WEIGHTS, "frozen", image_size=32)
    parts = [
        phantom_frames[phantom_frames["split"] == part].reset_index(drop=True) for part in ("train", "val")
    ]
    train, check = (make_triplets(part, "P1", model, seed=1) for part in parts)
    options = {"learning_rate": 1e-4, "min_delta": 1.0, "seed": 1, "progress": False}
    history = fit(model, train, check, tmp_path, epochs=9, patience=3, plateau_patience=1, **options)
    assert len(history) == 4
    assert history["learning_rate"].tolist() == pytest.approx([1e-4, 1e-4, 1e-4, 1e-5])


@pytest.mark.parametrize("factor", [1.0, 1.5, 0.0, float("nan")])
def test_a_rate_that_would_not_fall_is_said_before_training(tmp_path: Path, factor: float) -> None:
    with pytest.raises(ValueError, match=r"plateau_factor: .* between 0 and 1"):
        fit(None, None, None, tmp_path, plateau_factor=factor)


# --- weights and their configuration -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "here", "there"),
    [("num_classes", 6, 5), ("num_classes", 4, 5), ("spade_hidden", 16, 24), ("num_res_blocks", 2, 1)],
)
def test_the_field_that_does_not_fit_the_weights_is_named(
    tmp_path: Path, field: str, here: int, there: int
) -> None:
    weights = Path(shutil.copytree(ROOT / "data" / "weights" / "sdm-tiny", tmp_path / "sdm"))
    spoil_json(weights / "config.json", **{field: here})
    told = rf"the configuration has {field} {here}, these weights have {there}; "
    with pytest.raises(WeightsError, match=told):
        load_denoiser(weights)


def test_two_fields_that_do_not_fit_are_not_guessed(tmp_path: Path) -> None:
    weights = Path(shutil.copytree(ROOT / "data" / "weights" / "sdm-tiny", tmp_path / "sdm"))
    spoil_json(weights / "config.json", num_classes=7, spade_hidden=8)
    with pytest.raises(
        WeightsError, match=r"sdm/model\.safetensors: 0 tensors .*\(24, 5, 3, 3\) for \(8, 7, 3, 3\)"
    ):
        load_denoiser(weights)


# --- means of distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "masks"), [(2, 4), (0, 3), (3, 3), (1, 3)])
def test_a_mean_of_distances_says_over_how_many_masks_it_is(found: int, masks: int) -> None:
    truth = np.zeros((12, 12), bool)
    truth[3:8, 3:8] = True
    rows = [
        ({"patient": f"p{number}", "structure": "s"}, np.roll(truth, 2, axis=1) & (number < found), truth)
        for number in range(masks)
    ]
    scores = score_table(rows, size=None, progress=False)
    (row,) = statistics.mean_scores(scores, "structure").to_dict("records")
    assert row["distances over"] == f"{found} of {masks}"
    assert row["empty predictions"] == masks - found
    # the mean itself is over those that have a distance, and the Dice over all
    assert row["hausdorff"] == pytest.approx(2) if found else np.isnan(row["hausdorff"])
    assert row["dice"] == pytest.approx(found / masks * scores["dice"].max())
    named = scores.assign(model="m", strategy="real", prompt="P1")
    for measure in DISTANCES:
        (told,) = statistics.summary_table(named, value=measure, percent=False).to_numpy().ravel()
        assert told.endswith(f" ({found} of {masks})") == (found < masks)


def test_no_page_shows_a_mean_of_distances_by_itself() -> None:
    """Pages take such means from `mean_scores`, whose table has the numbers of masks in it."""
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = [
            "".join(c["source"])
            for c in json.loads(notebook.read_text())["cells"]
            if c["cell_type"] == "code"
        ]
        for cell in code:
            if "hausdorff95" in cell or "assd" in cell:
                assert "mean_scores(" in cell, f"{notebook.name}:\n{cell}"


# --- all at once -------------------------------------------------------------------------------------------


def _packed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def labels_or_image(path: Path) -> np.ndarray:
    return some_labels() if "_gt" in path.name else some_image()


SPOILT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "microns without a unit": (
        "unlikely pixel size",
        lambda p: nifti(p, some_image(), pixel=(308, 308), unit=0),
    ),
    "microns called millimetres": ("unlikely pixel size", lambda p: nifti(p, some_image(), pixel=(308, 308))),
    "metres without a unit": (
        "unlikely pixel size",
        lambda p: nifti(p, some_image(), pixel=(3e-4, 3e-4), unit=0),
    ),
    "colours": ("unreadable file", lambda p: nifti(p, np.zeros(SIZE, RGB))),
    "colours and alpha": ("unreadable file", lambda p: nifti(p, np.zeros(SIZE, RGBA))),
    "complex numbers": ("unreadable file", lambda p: nifti(p, np.zeros(SIZE, np.complex64))),
    "a scale factor": ("range", lambda p: nifti(p, labels_or_image(p).astype(np.int16), slope=0.35)),
    "an intercept": ("range", lambda p: nifti(p, labels_or_image(p).astype(np.int16), slope=1.0, inter=0.5)),
    "labels times 85": ("label", lambda p: nifti(p, some_labels() * np.uint8(85))),
    "one structure as 255": ("label", lambda p: nifti(p, (some_labels() == 1) * np.uint8(255))),
    "label 4": ("label", lambda p: nifti(p, some_labels() + np.uint8(1))),
    "grey values of 0-1": ("image", lambda p: nifti(p, (some_image() / 255).astype(np.float32))),
    "Hounsfield units": ("image", lambda p: nifti(p, np.full(SIZE, -1024, np.int16))),
    "interpolated": ("range", lambda p: nifti(p, labels_or_image(p) * np.float32(0.9))),
    "NaN": ("range", lambda p: nifti(p, np.full(SIZE, np.nan, np.float32))),
    "a film": ("unreadable file", lambda p: nifti(p, np.zeros((5, *SIZE), np.uint8))),
    "no byte": ("unreadable file", lambda p: p.write_bytes(b"")),
    "one byte": ("unreadable file", lambda p: p.write_bytes(b"\x1f")),
    "a page of a server": ("unreadable file", lambda p: p.write_text("<html>Not found</html>" * 99)),
    "cut in the middle": ("unreadable file", lambda p: cut(p)),
    "fewer pixels": ("unreadable file", lambda p: _packed(p, lambda content: content[:-9])),
    "plain and cut": ("unreadable file", lambda p: p.write_bytes(gzip.decompress(p.read_bytes())[:-9])),
    "a wrong checksum": ("unreadable file", lambda p: _flip(p, -6)),
    "another size": ("shape mismatch", lambda p: nifti(p, labels_or_image(p)[:-3])),
    "not compressed": ("", lambda p: p.write_bytes(gzip.decompress(p.read_bytes()))),
    "microns": ("", lambda p: nifti(p, labels_or_image(p), pixel=(308, 308), unit="micron")),
    "rounded labels": ("", lambda p: nifti(p, labels_or_image(p) * 1.000001)),
}
"""What is done to a file, and what the check says of it: nothing where it is read as meant."""


def test_a_folder_in_which_every_second_file_is_spoilt_is_listed_whole_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    """Of each kind one image and one mask where that makes sense, each of a pair of its own."""
    jobs = [(name, end) for name, (kind, _) in SPOILT.items() for end in ("", "_gt") if _fits(kind, end)]
    root = release(tmp_path / "spoilt", -(-len(jobs) // 4))
    stems = [path for path in sorted(root.rglob("*_E[DS].nii.gz"))]
    expected = {}
    for (name, end), stem in zip(jobs, stems, strict=False):
        path = stem.with_name(stem.name.replace(".nii.gz", f"{end}.nii.gz"))
        kind, spoil = SPOILT[name]
        spoil(path)
        if kind:
            kind = ("label" if end else "image") if kind == "range" else kind
            kind = f"{kind} out of range" if kind in ("label", "image") else kind
            # of a pair that differs in size the mask is named
            file = path if kind != "shape mismatch" else stem.with_name(stem.name.replace(".nii", "_gt.nii"))
            expected[file.relative_to(root).as_posix()] = kind
    cfgs = sorted(root.rglob("*.cfg"))[::2]
    for number, path in enumerate(cfgs):
        kind = (None, "malformed cfg", "malformed cfg", "missing cfg")[number % 4]
        texts = (BOM + path.read_bytes(), b"Sex F\n", b"Age: \xff\xfe\n", b"")
        path.write_bytes(texts[number % 4])
        if kind == "missing cfg":
            path.unlink()
        if kind:
            expected[path.relative_to(root).as_posix()] = kind
    listed = root / "database_split/subgroup_training.txt"
    listed.write_bytes(BOM + listed.read_bytes().replace(b"\n", b"\r\n") + b"../outside\r\n")
    expected[listed.relative_to(root).as_posix()] = "malformed split file"
    before = snapshot(root)
    table = check_cohort(root)
    assert dict(zip(table["file"], table["problem"], strict=True)) == expected
    assert table["detail"].str.len().gt(0).all()
    assert snapshot(root) == before
    with pytest.warns(CohortWarning, match="problems affect was left out"):
        frames = read_cohort(root)
    assert len(frames) >= len(stems) - len(expected)
    assert snapshot(root) == before


def _fits(kind: str, end: str) -> bool:
    """Whether a way of spoiling makes sense for an image (`end` empty) or a mask."""
    return {"unlikely pixel size": end == "", "image": end == "", "label": end == "_gt"}.get(kind, True)
