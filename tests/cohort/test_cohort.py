"""Cohorts: reading the three layouts, checking, writing, and what a kill leaves behind."""

import gzip
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from echovlsm.cohort.check import COLUMNS, PROBLEMS, CohortWarning
from echovlsm.cohort.files import CohortError
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import check_cohort, cohort_hash, read_cohort
from echovlsm.cohort.write import write_cohort

META = {
    "name": "little",
    "kind": "phantom",
    "seed": 3,
    "licence": "MIT",
    "parameters": {"size": np.int64(24)},
}
H, W = 24, 18  # not square: an axis mixed up changes the shape


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image without any symmetry and a mask with all four labels."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (H, W)).astype(np.uint8)
    image[0, :5] = 255  # the top left corner
    labels = np.zeros((H, W), np.uint8)
    labels[2:8, 1:9], labels[8:12, 1:9], labels[12:20, 10:17] = 1, 2, 3
    return image, labels


def frames(patients: int = 3) -> Iterator[dict[str, Any]]:
    for i in range(patients):
        for view in ("2CH", "4CH"):
            for phase in ("ED", "ES"):
                image, labels = drawn(4 * i + 2 * (view == "4CH") + (phase == "ES"))
                yield {
                    "patient": f"patient{i + 1:04d}",
                    "view": view,
                    "phase": phase,
                    "split": ("train", "val", "test")[i % 3],
                    "sex": "FM"[i % 2],
                    "age": 40 + i,
                    "quality": "good" if view == "2CH" else "medium",
                    "spacing_y": 0.3,
                    "spacing_x": 0.7,
                    "image": image,
                    "labels": labels,
                    "info": {"EF": 54.5},
                    "provenance": {"source": f"drawn {i}"},
                }


def frame(**changes: Any) -> dict[str, Any]:
    return next(frames()) | changes


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "little", frames(), META)


def save_release_nifti(path: Path, array: np.ndarray, spacing: float = 0.5) -> None:
    """As in the public release: float32, axes (x, y), affine diag(-, -, +)."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing, -spacing, 1, 1])
    nibabel.save(nibabel.Nifti1Image(array.T.astype(np.float32), affine), path)


def make_release(root: Path, patients: dict[str, str], spacing: float = 0.5) -> Path:
    (root / "database_split").mkdir(parents=True)
    for split, name in (("train", "training"), ("val", "validation"), ("test", "testing")):
        listed = "".join(f"{p}\n" for p, s in patients.items() if s == split)
        (root / f"database_split/subgroup_{name}.txt").write_text(listed)
    for number, patient in enumerate(patients):
        for view in ("2CH", "4CH"):
            for phase in ("ED", "ES"):
                stem = root / f"database_nifti/{patient}/{patient}_{view}_{phase}"
                for array, end in zip(drawn(number), ("", "_gt"), strict=True):
                    save_release_nifti(stem.with_name(stem.name + end + ".nii.gz"), array, spacing)
            (stem.parent / f"Info_{view}.cfg").write_text("ED: 1\nSex: M\nAge: 60\nImageQuality: Poor\n")
    return root


def make_legacy(root: Path, parts: dict[str, list[str]], masks: bool = True) -> Path:
    import SimpleITK as sitk  # noqa: N813

    for part, patients in parts.items():
        for seed, patient in enumerate(patients):
            folder = root / part / patient
            folder.mkdir(parents=True)
            for view in ("2CH", "4CH"):
                for phase in ("ED", "ES"):
                    for array, end in zip(drawn(seed), ("", "_gt"), strict=True):
                        if end == "" or masks:
                            image = sitk.GetImageFromArray(array[None])
                            image.SetSpacing((0.308, 0.154, 1.54))
                            sitk.WriteImage(image, str(folder / f"{patient}_{view}_{phase}{end}.mhd"))
                (folder / f"Info_{view}.cfg").write_text("Sex: F\nAge: 33\nImageQuality: Good\nLVef: 63.2\n")
    return root


# --- real data -------------------------------------------------------------------------------------------


def test_camus_working_copy(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = read_cohort(shared / "camus")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 1800
    assert table.groupby("split").patient.nunique().to_dict() == {"train": 400, "val": 50}
    assert len(table.attrs["absent"]) == 50
    assert len([r for r in caplog.records if "50 listed patients" in r.getMessage()]) == 1
    assert table.attrs["meta"]["kind"] == "real"
    assert set(table.cohort) == {"camus"}
    two, four = table[table["view"] == "2CH"], table[table["view"] == "4CH"]
    assert two.spacing_y.isna().all()
    assert two.spacing_x.isna().all()
    assert four[four.spacing_y.isna()].patient.unique().tolist() == ["patient0039"]
    assert four.spacing_y.dropna().unique().tolist() == [0.616]
    assert table.labels.notna().all()
    known = table[table.patient == "patient0004"].set_index(["view", "phase"])
    assert known.quality.to_dict() == {
        ("2CH", "ED"): "good",
        ("2CH", "ES"): "good",
        ("4CH", "ED"): "medium",
        ("4CH", "ES"): "medium",
    }
    assert known.age.tolist() == [79] * 4
    assert known.sex.tolist() == ["F"] * 4
    assert table[table.patient == "patient0006"][["sex", "age", "quality"]].isna().all(axis=None)
    assert read_cohort(shared / "camus/database_nifti").equals(table)


def test_camus_images_are_upright(shared: Path) -> None:
    """Apex at the top: the sector is narrow there, the ventricle lies above the atrium."""
    table = read_cohort(shared / "camus")
    for row in table.iloc[2::181].itertuples():
        image, labels = load_image(row), load_labels(row)
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape == labels.shape == (row.height, row.width)
        inside = (image > 0).sum(axis=1)
        assert inside[: row.height // 6].mean() < 0.5 * inside[row.height // 2]
        assert np.nonzero(labels == 1)[0].mean() < np.nonzero(labels == 3)[0].mean()


def test_legacy_release(shared: Path) -> None:
    table = read_cohort(shared / "camus_legacy")
    assert len(table) == 8
    assert set(table.spacing_y) == {0.154}
    assert set(table.spacing_x) == {0.308}
    assert set(table.split) == {"train"}
    assert set(read_cohort(shared / "camus_legacy/training", split="paper").split) == {"val"}
    assert check_cohort(shared / "camus_legacy").empty
    # the public release halved the rows; what the working copy keeps of 4CH is half of that in both axes
    public = read_cohort(shared / "camus").set_index(["patient", "view", "phase"])
    for row in table[table["view"] == "4CH"].itertuples():
        height, width = load_image(row).shape
        other = public.loc[(row.patient, row.view, row.phase)]
        assert abs(height / 4 - other.height) <= 1
        assert abs(width / 2 - other.width) <= 1
        assert np.isclose(other.spacing_y / row.spacing_y, 4)


def test_paper_split_agrees_with_the_authors_prompts(shared: Path) -> None:
    """The authors' first 50 old patients are our validation patients; those with metadata must agree."""
    from num2words import num2words

    table = read_cohort(shared / "camus", split="paper")
    val = sorted(table[table.split == "val"].patient.unique())
    assert table.groupby("split").patient.nunique().to_dict() == {"train": 400, "val": 50}
    assert val[:26] == [f"patient{i:04d}" for i in range(1, 27)]
    assert val[26] == "patient0028"  # 27 is a testing patient
    assert val[-1] == "patient0054"
    prompts: dict[tuple[str, str, str], set[str]] = {}
    for item in json.loads((shared / "published/prompts_camus_val.json").read_text()):
        patient, view, phase = Path(item["img_name"]).stem.split("_")
        prompts.setdefault((patient, view, phase), set()).add(item["prompts"]["p6"][0])
    old = {new: f"patient{i:04d}" for i, new in enumerate(val, start=1)}
    compared = 0
    for row in table[table.patient.isin(val) & table.age.notna()].itertuples():
        sex = {"F": "female", "M": "male"}[row.sex]
        end = f" {num2words(row.age)}-year-old {sex} with {row.quality} image quality."
        texts = prompts[old[row.patient], row.view, row.phase]
        assert texts
        assert all(text.endswith(end) for text in texts)
        compared += 1
    assert compared == 20
    assert len({key[0] for key in prompts}) == len(val)


# --- layouts, without real data --------------------------------------------------------------------------


def test_release_layout_and_its_traps(tmp_path: Path) -> None:
    root = make_release(tmp_path / "r", {"patient0001": "train", "patient0002": "val", "patient0003": "test"})
    shutil.rmtree(root / "database_nifti/patient0003")
    (root / "database_nifti/patient0002/Info_4CH.cfg").unlink()
    table = read_cohort(root)
    assert len(table) == 8
    assert table.attrs["absent"] == {"patient0003": "test"}
    assert table.height.unique().tolist() == [H]
    assert table.width.unique().tolist() == [W]
    assert table.spacing_y.unique().tolist() == [0.5]
    assert table.age.isna().sum() == 2
    np.testing.assert_array_equal(load_image(table.iloc[5]), drawn(1)[0])
    np.testing.assert_array_equal(load_labels(table.iloc[5].to_dict()), drawn(1)[1])


def test_placeholder_spacing_is_unknown(tmp_path: Path) -> None:
    table = read_cohort(make_release(tmp_path / "r", {"patient0001": "train"}, spacing=1.0))
    assert table.spacing_y.isna().all()
    assert table.spacing_y.dtype == "Float64"


def test_missing_splits_name_the_remedy(tmp_path: Path) -> None:
    root = make_release(tmp_path / "r", {"patient0001": "train"})
    shutil.rmtree(root / "database_split")
    for path in (root, root / "database_nifti"):
        with pytest.raises(CohortError, match="database_split/ of the CAMUS download must lie beside"):
            read_cohort(path)


def test_unknown_folder_names_the_near_one(tmp_path: Path) -> None:
    root = make_release(tmp_path / "download", {"patient0001": "train"})
    with pytest.raises(CohortError, match=f"did you mean {re.escape(str(root))}"):
        read_cohort(tmp_path)
    with pytest.raises(CohortError, match="no such folder"):
        read_cohort(tmp_path / "nowhere")


def test_legacy_testing_patients_stay_apart(tmp_path: Path) -> None:
    root = make_legacy(tmp_path, {"training": ["patient0001", "patient0051"], "testing": ["patient0001"]})
    for mask in (root / "testing").glob("*/*_gt.*"):
        mask.unlink()  # as that release came
    table = read_cohort(root)
    splits = table.groupby("patient").split.first().to_dict()
    assert splits == {"patient0001": "train", "patient0051": "train", "testing_patient0001": "test"}
    assert table[table.split == "test"].labels.isna().all()
    with pytest.raises(CohortError, match="has no mask"):
        load_labels(table[table.split == "test"].iloc[0])
    np.testing.assert_array_equal(load_image(table.iloc[4]), drawn(1)[0])
    assert check_cohort(root).empty
    paper = read_cohort(root, split="paper").groupby("patient").split.first().to_dict()
    assert paper == {"patient0001": "val", "patient0051": "train", "testing_patient0001": "test"}


@pytest.mark.parametrize("name", ["../secret.raw", "/etc/hostname", "LIST", "a%03d.raw", "link.raw"])
def test_mhd_may_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    root = make_legacy(tmp_path / "r", {"training": ["patient0001"]})
    (root / "training/secret.raw").write_bytes(bytes(H * W))
    header = root / "training/patient0001/patient0001_2CH_ED.mhd"
    (header.parent / "link.raw").symlink_to("../secret.raw")
    header.write_text(
        re.sub("ElementDataFile = .*", lambda _: f"ElementDataFile = {name}", header.read_text())
    )
    with pytest.warns(CohortWarning, match="check_cohort"):
        table = read_cohort(root)
    assert len(table) == 3
    assert "refused" in check_cohort(root).detail[0]


def test_truncated_raw_is_found(tmp_path: Path) -> None:
    root = make_legacy(tmp_path, {"training": ["patient0001"]})
    raw = root / "training/patient0001/patient0001_4CH_ES.raw"
    raw.write_bytes(raw.read_bytes()[:-7])
    assert check_cohort(root).problem.tolist() == ["unreadable file"]
    with pytest.warns(CohortWarning, match="truncated"):
        assert len(read_cohort(root)) == 3


def test_paper_split_needs_camus(tmp_path: Path, cohort: Path) -> None:
    with pytest.raises(CohortError, match=r"'little' \(phantom\) does not have"):
        read_cohort(cohort, split="paper")
    with pytest.raises(CohortError, match="release's own lists"):
        read_cohort(make_release(tmp_path / "r", {"patient0001": "train"}), split="paper")
    with pytest.raises(CohortError, match="'papr'"):
        read_cohort(cohort, split="papr")


# --- writing ---------------------------------------------------------------------------------------------


def test_round_trip(cohort: Path) -> None:
    table = read_cohort(cohort, strict=True)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 12
    for row, given in zip(table.itertuples(), frames(), strict=True):
        for key in ("patient", "view", "phase", "split", "sex", "age", "quality", "spacing_y", "spacing_x"):
            assert getattr(row, key) == given[key]
        np.testing.assert_array_equal(load_image(row), given["image"])
        np.testing.assert_array_equal(load_labels(row), given["labels"])
        assert (row.height, row.width) == (H, W)
    assert table.attrs["meta"] == {**META, "origin": None, "parameters": {"size": 24}}
    assert set(table.cohort) == {"little"}
    cfg = cohort / "database_nifti/patient0002/Info_4CH.cfg"
    assert cfg.read_text() == "Sex: M\nAge: 41\nImageQuality: Medium\nEF: 54.5\n"
    provenance = pd.read_csv(cohort / "provenance.csv")
    assert provenance.columns.tolist() == ["patient", "view", "phase", "source"]
    assert provenance.source.iloc[4] == "drawn 1"


def test_ordinary_readers_see_the_release_orientation(cohort: Path) -> None:
    """SimpleITK gives (H, W) and nibabel (W, H), as for a file of the release."""
    import nibabel
    import SimpleITK as sitk  # noqa: N813

    path = cohort / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), drawn(0)[0])
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.3), rtol=1e-6)
    affine = nibabel.load(path).affine
    np.testing.assert_allclose(np.diag(affine), [-0.7, -0.3, 1, 1], rtol=1e-6)


def test_unknown_metadata_stays_unknown(tmp_path: Path) -> None:
    nothing = {
        "sex": pd.NA,
        "age": np.nan,
        "quality": None,
        "spacing_y": pd.NA,
        "spacing_x": None,
        "info": None,
    }
    table = read_cohort(write_cohort(tmp_path / "c", [frame(**nothing)], META), strict=True)
    assert table[["sex", "age", "quality", "spacing_y", "spacing_x"]].isna().all(axis=None)
    one = frame(spacing_y=1.0, spacing_x=1.0)  # a genuine millimetre is told from the placeholder
    assert read_cohort(write_cohort(tmp_path / "d", [one], META)).spacing_y.tolist() == [1.0]


def test_frames_table_with_arrays_can_be_written_again(cohort: Path, tmp_path: Path) -> None:
    table = read_cohort(cohort)
    arrays = table.assign(
        image=[load_image(r) for r in table.itertuples()], labels=[load_labels(r) for r in table.itertuples()]
    )
    again = read_cohort(write_cohort(tmp_path / "again", arrays, table.attrs["meta"]))
    same = [c for c in COLUMNS if c not in ("image", "labels")]
    pd.testing.assert_frame_equal(again[same], table[same])


def test_hash_follows_content_only(cohort: Path, tmp_path: Path) -> None:
    first = cohort_hash(cohort)
    moved = shutil.copytree(cohort, tmp_path / "elsewhere" / "other name")
    assert cohort_hash(moved) == first
    assert cohort_hash(read_cohort(cohort).sample(frac=1, random_state=0)) == first
    assert cohort_hash(write_cohort(tmp_path / "again", frames(), META)) == first
    cfg = moved / "database_nifti/patient0001/Info_2CH.cfg"
    cfg.write_text(cfg.read_text().replace("54.5", "54.6"))
    assert cohort_hash(moved) != first
    changed = [f | {"image": f["image"] ^ np.uint8(f["phase"] == "ES")} for f in frames()]
    assert cohort_hash(write_cohort(tmp_path / "pixel", changed, META)) != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full((H, W), 4, np.uint8)}, "labels go up to 4"),
        ({"labels": np.zeros((W, H), np.uint8)}, "differ in shape"),
        ({"image": np.zeros((H, W), np.float32)}, "image is float32"),
        ({"view": "3CH"}, "view is '3CH'"),
        ({"phase": "MID"}, "phase is 'MID'"),
        ({"split": "training"}, "split is 'training'"),
        ({"patient": "../up"}, "patient is '../up'"),
        ({"sex": "female"}, "sex is 'female'"),
        ({"age": 40.5}, "age is 40.5"),
        ({"quality": "Good"}, "quality is 'Good'"),
        ({"spacing_x": None}, "only one of"),
        ({"spacing_x": -1.0}, "spacing_x is -1.0"),
        ({"info": {"EF": "high"}}, "'EF' is 'high'"),
        ({"info": {"Age": 3}}, "keys of their own"),
        ({"info": {"Note": "a\nAge: 3"}}, "one line"),
        ({"Quality": "good"}, "'Quality' is unknown"),
    ],
)
def test_bad_frames_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = [*frames(), frame(patient="patient0009"), frame(patient="patient0010") | changes]
    with pytest.raises(CohortError, match=f"frame 14 .*{re.escape(message)}"):
        write_cohort(tmp_path / "c", rows, META)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({}, "given before"),
        ({"phase": "ES", "split": "val"}, "in train and in val"),
        ({"phase": "ES", "quality": "poor"}, "ImageQuality is Poor, but Good"),
        ({"view": "4CH", "sex": "M"}, "Sex is M, but F"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, last: dict[str, Any], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        write_cohort(tmp_path / "c", [frame(), frame(**last)], META)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"name": "x", "kind": "fake"}, "kind is 'fake'"),
        ({"kind": "phantom"}, "name is missing"),
        ({**META, "sede": 3}, "'sede' is unknown"),
        ({**META, "parameters": {"a": object()}}, "only numbers"),
    ],
)
def test_bad_meta_is_refused(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    with pytest.raises(CohortError, match=message):
        write_cohort(tmp_path / "c", frames(), meta)
    with pytest.raises(CohortError, match="no frame"):
        write_cohort(tmp_path / "c", [], META)
    assert not list(tmp_path.iterdir())


def test_overwrite_replaces_only_cohorts(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="exists already"):
        write_cohort(cohort, frames(), META)
    with pytest.raises(CohortError, match="given before"):  # a failing write leaves the old one
        write_cohort(cohort, [frame(), frame()], META, overwrite=True)
    assert len(read_cohort(cohort, strict=True)) == 12
    write_cohort(cohort, frames(1), META, overwrite=True)
    assert len(read_cohort(cohort, strict=True)) == 4
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter1.txt").write_text("years of work")
    with pytest.raises(CohortError, match=r"no cohort\.yaml"):
        write_cohort(mine, frames(), META, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["little", "thesis"]


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from tests.cohort.test_cohort import META, frames, write_cohort
def slow():
    for number, frame in enumerate(frames(3)):
        if number == 9:
            print("writing", flush=True)
            time.sleep(60)
        yield frame
write_cohort({root!r}, slow(), META, overwrite=True)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_kill_in_mid_write(tmp_path: Path, existing: bool) -> None:
    root = tmp_path / "c"
    if existing:
        write_cohort(root, frames(1), META)
    script = KILLED.format(tests=str(Path(__file__).parents[2]), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(CohortError, match="another process is writing it"):
            write_cohort(root, frames(), META, overwrite=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (partial,) = (p for p in tmp_path.iterdir() if p != root)
    assert len(list(partial.rglob("*.nii.gz"))) == 18
    with pytest.raises(CohortError):
        read_cohort(partial)
    for path in (partial / "new", partial / "new" / "database_nifti"):
        with pytest.raises(CohortError, match="not a whole cohort"):
            read_cohort(path)
    if existing:
        assert len(read_cohort(root, strict=True)) == 4
    else:
        assert not root.exists()
    write_cohort(root, frames(), META, overwrite=existing)
    assert len(read_cohort(root, strict=True)) == 12
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_kill_between_the_two_renames(cohort: Path) -> None:
    """The old cohort stood aside when the process died: the next write brings it back first."""
    work = cohort.with_name(".little.partial")
    work.mkdir()
    cohort.rename(work / "old")
    with pytest.raises(CohortError, match="exists already"):
        write_cohort(cohort, frames(1), META)
    assert len(read_cohort(cohort, strict=True)) == 12
    assert [path.name for path in cohort.parent.iterdir()] == ["little"]


def test_what_stands_in_the_way_at_the_end_loses_nothing(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old cohort stands aside and the new one cannot take its place: the old one comes back."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("not now")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="not now"):
        write_cohort(cohort, frames(1), META, overwrite=True)
    assert len(read_cohort(cohort, strict=True)) == 12
    assert [path.name for path in cohort.parent.iterdir()] == ["little"]


def test_a_cohort_is_written_by_one_call_at_a_time(tmp_path: Path) -> None:
    """Also within one process: a second call while frames still come in."""

    def twice() -> Iterator[dict[str, Any]]:
        yield frame()
        with pytest.raises(CohortError, match="another process is writing it"):
            write_cohort(tmp_path / "c", frames(), META)

    write_cohort(tmp_path / "c", twice(), META)
    assert len(read_cohort(tmp_path / "c", strict=True)) == 1


# --- checking --------------------------------------------------------------------------------------------


def break_everything(root: Path) -> dict[str, str]:
    """Break a release folder of seven patients in every way; problem -> a word of its file or detail."""
    nifti = root / "database_nifti"
    image, labels = drawn(0)

    def path(patient: int, end: str) -> Path:
        return nifti / f"patient{patient:04d}/patient{patient:04d}_{end}.nii.gz"

    path(1, "2CH_ED_gt").unlink()
    path(1, "2CH_ES").unlink()
    save_release_nifti(path(1, "4CH_ED_gt"), labels[:-1])
    save_release_nifti(path(2, "2CH_ED_gt"), labels + np.uint8(1))
    save_release_nifti(path(2, "2CH_ES"), image + 0.5)
    content = path(2, "4CH_ED").read_bytes()
    path(2, "4CH_ED").write_bytes(content[: len(content) // 2])
    path(2, "4CH_ES_gt").write_bytes(b"no image")
    save_release_nifti(path(3, "2CH_ED"), image, spacing=308)
    path(3, "4CH_ED").with_suffix("").write_bytes(b"the same, unpacked")
    (nifti / "patient0003/Info_2CH.cfg").unlink()
    (nifti / "patient0003/Info_4CH.cfg").write_text("Sex: X\nAge 60\nAge: old\nImageQuality: fine\nEF: 5 %\n")
    shutil.rmtree(nifti / "patient0006")
    with (root / "database_split/subgroup_testing.txt").open("a") as stream:
        stream.write("patient0004\n../../patient0001\n")
    shutil.copytree(nifti / "patient0005", nifti / "stray0001")
    return {
        "missing mask": "patient0001_2CH_ED_gt",
        "missing image": "patient0001_2CH_ES",
        "shape mismatch": "patient0001_4CH_ED_gt",
        "label out of range": "patient0002_2CH_ED_gt",
        "image out of range": "patient0002_2CH_ES",
        "unreadable file": "patient0002_4CH_ED",
        "file twice": "patient0003_4CH_ED",
        "unlikely pixel size": "patient0003_2CH_ED",
        "missing cfg": "patient0003/Info_2CH.cfg",
        "malformed cfg": "patient0003/Info_4CH.cfg",
        "malformed split file": "subgroup_testing.txt",
        "patient in two splits": "patient0004",
        "patient absent": "patient0006",
        "patient in no split": "stray0001",
    }


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    root = make_release(tmp_path / "r", {f"patient{i:04d}": "train" for i in range(1, 7)})
    return root, break_everything(root)


def test_every_problem_is_listed_at_once(broken: tuple[Path, dict[str, str]]) -> None:
    root, expected = broken
    table = check_cohort(root)
    assert table.columns.tolist() == ["problem", "patient", "file", "detail"]
    assert set(expected) == set(PROBLEMS)
    for problem, file in expected.items():
        assert table[table.problem == problem].file.str.contains(file).any(), problem
    counts = table.problem.value_counts().to_dict()
    # stray0001's files carry another patient's name, so its four frames are missing
    assert counts.pop("missing image") == 1 + 4
    assert counts.pop("malformed cfg") == 5
    assert counts.pop("unreadable file") == 2
    assert set(counts.values()) == {1}
    assert table.patient.isna().sum() == 1  # the split file is about no patient


def test_strict_raises_with_the_whole_list(broken: tuple[Path, dict[str, str]]) -> None:
    root, expected = broken
    for act in (check_cohort, read_cohort):
        with pytest.raises(CohortError) as caught:
            act(root, strict=True)
        assert all(problem in str(caught.value) for problem in expected)


def test_reading_survives_what_is_broken(broken: tuple[Path, dict[str, str]]) -> None:
    root, _ = broken
    with pytest.warns(CohortWarning, match="check_cohort") as caught:
        table = read_cohort(root)
    assert len(caught) == 1
    # 1: 2CH ED (no mask) and 4CH ES; 2: the two that a header cannot show; 3 and 5: all; 4: in two splits
    assert table.groupby("patient").size().to_dict() == {
        "patient0001": 2,
        "patient0002": 2,
        "patient0003": 4,
        "patient0005": 4,
    }
    assert table.labels.isna().sum() == 1
    third = table[table.patient == "patient0003"]
    assert third[["sex", "age", "quality"]].isna().all(axis=None)
    assert third.set_index(["view", "phase"]).spacing_y.isna().to_dict() == {
        ("2CH", "ED"): True,
        ("2CH", "ES"): False,
        ("4CH", "ED"): False,
        ("4CH", "ES"): False,
    }
    for column, end in (("labels", "2CH_ED_gt"), ("image", "2CH_ES")):
        row = table[table[column].str.endswith(f"patient0002_{end}.nii.gz").fillna(False)].iloc[0]
        with pytest.raises(CohortError, match=f"patient0002_{end}"):
            (load_labels if column == "labels" else load_image)(row)


def test_nothing_left_is_an_error(cohort: Path) -> None:
    for path in cohort.rglob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CohortError, match=r"no usable image.*check_cohort"):
        read_cohort(cohort)


@pytest.mark.parametrize("keep", [0, 10, 60, -1, -9])
def test_truncated_nifti_wherever_it_is_cut(cohort: Path, keep: int) -> None:
    path = cohort / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    path.write_bytes(path.read_bytes()[:keep])
    assert check_cohort(cohort).file.tolist() == ["database_nifti/patient0001/patient0001_2CH_ED.nii.gz"]
    with pytest.warns(CohortWarning, match="patient0001_2CH_ED"):
        assert len(read_cohort(cohort)) == 11


def test_flipped_bit_is_found_by_its_checksum(cohort: Path) -> None:
    path = cohort / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the stored checksum: the pixels still decode
    path.write_bytes(bytes(content))
    assert check_cohort(cohort).problem.tolist() == ["unreadable file"]


def test_gzip_of_several_members_is_no_truncation(cohort: Path) -> None:
    path = cohort / "database_nifti/patient0001/patient0001_2CH_ED.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(load_image(read_cohort(cohort, strict=True).iloc[0]), drawn(0)[0])


def test_lost_frame_and_lost_cohort_yaml(cohort: Path) -> None:
    """A copy that lacks files is not taken for a smaller cohort, nor for CAMUS."""
    for path in (cohort / "database_nifti/patient0001").glob("patient0001_2CH_ED*"):
        path.unlink()
    assert check_cohort(cohort).detail.tolist() == ["cohort.yaml counts 12 images, 11 are here"]
    (cohort / "cohort.yaml").unlink()
    with pytest.raises(CohortError, match=r"cohort\.yaml is missing"):
        read_cohort(cohort)


@pytest.mark.parametrize("text", ["name: x\nkind: fake\n", "- a\n", "name: [\n", "kind: phantom\n"])
def test_bad_cohort_yaml_is_named(cohort: Path, text: str) -> None:
    (cohort / "cohort.yaml").write_text(text)
    with pytest.raises(CohortError, match=r"cohort\.yaml"):
        read_cohort(cohort)


def test_cohort_yaml_is_plain(cohort: Path) -> None:
    content = yaml.safe_load((cohort / "cohort.yaml").read_text())
    assert content["frames"] == 12
    assert content["patients"] == 3
    assert content["kind"] == "phantom"
