"""The released synthetic cohort: layout, label convention, and what is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.draw import ellipse

from echovlsm.cohort.check import COLUMNS, CohortWarning
from echovlsm.cohort.files import CohortError
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import check_cohort, cohort_hash, read_cohort
from echovlsm.cohort.released import is_released, order_of, read_released
from echovlsm.cohort.sectors import to_sector_map

SIZE = 48
FRAMES = [(view, phase) for view in ("2CH", "4CH") for phase in ("ED", "ES")]
Encode = Callable[[np.ndarray], np.ndarray]


def sector() -> np.ndarray:
    rows, columns = np.indices((SIZE, SIZE))
    down, across = rows + 1.0, columns - (SIZE - 1) / 2
    return (np.hypot(down, across) < 0.98 * SIZE) & (np.abs(np.arctan2(across, down)) < 0.65)


def heart(shift: int = 0, atrium: bool = True) -> np.ndarray:
    """Study labels of a heart in the sector; its wall is open at the base."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[ellipse(23 + shift, 23.5, 13, 8)] = 2
    labels[ellipse(23.5 + shift, 23.5, 10, 5)] = 1
    labels[30 + shift :] = 0
    if atrium:
        labels[30 + shift : 38 + shift, 19:29] = 3
    return labels


def camus(labels: np.ndarray) -> np.ndarray:
    return labels


def in_sector(labels: np.ndarray) -> np.ndarray:
    return to_sector_map(labels, sector())


def save(path: Path, array: np.ndarray, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)
    return path


def image_of(number: int) -> np.ndarray:
    values = np.random.default_rng(number).integers(20, 220, (SIZE, SIZE))
    return np.where(sector(), values, 0).astype(np.uint8)


def make_release(root: Path, encode: Encode = camus, mode: str = "L", folder: str = "annotations") -> Path:
    """Two variants of one patient a split, in all four view folders; every split starts at patient0001."""
    number = 0
    for view, phase in FRAMES:
        for split in ("training", "validation", "testing"):
            for variant in (0, 1):
                name = f"patient0001_{view}_{phase}_{split}_{variant}.png"
                base = root / f"{view}_{phase}"
                save(base / "images" / split / name, image_of(number), mode)
                save(base / folder / split / name, encode(heart(number % 3)), mode)
                number += 1
    return root


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("encode", "order", "step"),
    [
        (camus, "camus", 1),
        (in_sector, "sector", 1),
        (lambda labels: camus(labels) * np.uint8(85), "camus", 85),
        (lambda labels: np.array([0, 51, 102, 153, 204], np.uint8)[in_sector(labels)], "sector", 51),
        (lambda labels: np.array([0, 63, 127, 191, 255], np.uint8)[in_sector(labels)], "sector", 63.75),
        (lambda labels: np.array([0, 64, 128, 191, 255], np.uint8)[in_sector(labels)], "sector", 63.75),
    ],
)
def test_every_convention_gives_the_same_labels(
    tmp_path: Path, encode: Encode, order: str, step: float, mode: str
) -> None:
    frames = read_cohort(make_release(tmp_path, encode, mode))
    assert frames.columns.tolist() == [*COLUMNS, "label_order", "label_step"]
    assert len(frames) == 24
    assert set(frames.label_order) == {order}
    assert set(frames.label_step) == {step}
    for number, (view, phase) in enumerate(FRAMES):
        rows = frames[(frames.view == view) & (frames.phase == phase)].set_index("patient")
        row = rows.loc["patient0001_training_1"]
        labels = load_labels(row)
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, heart((6 * number + 1) % 3))
        assert np.array_equal(load_image(row), image_of(6 * number + 1))


def test_the_table(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    frames = read_cohort(root)
    assert not frames.duplicated(["patient", "view", "phase"]).any()
    assert frames.groupby("split").patient.unique().map(sorted).to_dict() == {
        "train": ["patient0001_training_0", "patient0001_training_1"],
        "val": ["patient0001_validation_0", "patient0001_validation_1"],
        "test": ["patient0001_testing_0", "patient0001_testing_1"],
    }
    assert frames[["sex", "age", "quality", "spacing_y", "spacing_x"]].isna().all(axis=None)
    assert set(frames.height) == set(frames.width) == {SIZE}
    assert frames.attrs["meta"]["name"] == "synthetic-camus-released"
    assert frames.attrs["meta"]["kind"] == "synthetic"
    assert "10.5281/zenodo.7921055" in frames.attrs["meta"]["origin"]
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in frames.image)
    assert read_cohort(root, split="paper").equals(frames)
    assert check_cohort(root).empty
    assert len(read_cohort(root, strict=True)) == 24


def test_one_view_folder_is_a_cohort_too(tmp_path: Path) -> None:
    frames = read_cohort(make_release(tmp_path) / "4CH_ES")
    assert len(frames) == 6
    assert set(zip(frames.view, frames.phase, strict=True)) == {("4CH", "ES")}


def test_view_folders_may_have_any_name(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    (root / "2CH_ED").rename(root / "2CH_ED_augmented")
    assert len(read_cohort(root)) == 24


def test_sector_annotations_serve_where_there_are_no_others(tmp_path: Path) -> None:
    frames = read_cohort(make_release(tmp_path, in_sector, folder="sector_annotations"))
    assert np.array_equal(load_labels(frames.iloc[0]).max(), 3)
    assert frames.labels.str.contains("/sector_annotations/").all()


def test_folders_may_differ_in_their_convention(tmp_path: Path) -> None:
    root = make_release(tmp_path, in_sector)
    for path in root.glob("*/annotations/testing/*.png"):
        save(path, heart())
    frames = read_cohort(root)
    assert frames.groupby("split").label_order.unique().map(list).to_dict() == {
        "train": ["sector"],
        "val": ["sector"],
        "test": ["camus"],
    }
    assert all(
        np.array_equal(load_labels(row), heart()) for row in frames[frames.split == "test"].itertuples()
    )


def test_testing_images_need_no_variant(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    for path in sorted(root.glob("*/*/testing/*_0.png")):
        path.rename(path.with_name(path.name.replace("_0.png", ".png")))
    assert "patient0001_testing" in set(read_cohort(root).patient)


def test_the_collection_of_all_views_is_not_read_twice(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    for path in list(root.glob("*/*/training/*.png")):
        save(root / "all_views" / path.relative_to(root / path.parts[-4]), np.array(Image.open(path)))
    assert len(read_cohort(root)) == 24


def test_a_frame_given_twice_is_refused(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    for kind in ("images", "annotations"):
        name = f"{kind}/training/patient0001_2CH_ED_training_0.png"
        save(root / "4CH_ED" / name, np.array(Image.open(root / "2CH_ED" / name)))
    with pytest.raises(CohortError, match=r"patient0001_2CH_ED_training_0\.png: the same frame"):
        read_cohort(root)


# --- label convention --------------------------------------------------------------------------------------


def test_one_mask_shows_its_order() -> None:
    assert order_of(heart()) == "camus"
    assert order_of(in_sector(heart())) == "sector"
    # no class 4: what surrounds the cavity decides
    assert order_of(in_sector(heart(atrium=False))) == "sector"
    # a cavity in a sector and a cavity in a wall are the same image
    lonely = np.where(heart() == 1, 1, 0).astype(np.uint8)
    assert order_of(in_sector(lonely)) is None
    assert order_of(np.where(heart() == 3, 0, heart())) is None
    assert order_of(np.zeros((8, 8), np.uint8)) is None


def test_an_ambiguous_folder_is_refused(tmp_path: Path) -> None:
    root = make_release(tmp_path, lambda labels: np.where(labels == 3, 0, labels).astype(np.uint8))
    for act in (read_cohort, check_cohort, cohort_hash):
        with pytest.raises(CohortError, match=r"ambiguous.*0, 1, 2 0 show CAMUS.*2 neither.*labels='camus'"):
            act(root)
    frames = read_released(root, labels="camus")
    assert set(np.unique(load_labels(frames.iloc[0]))) == {0, 1, 2}
    swapped = read_released(root, labels="sector")
    assert set(np.unique(load_labels(swapped.iloc[0]))) == {0, 1}


def test_contradicting_masks_are_refused(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    path = root / "2CH_ES/annotations/training/patient0001_2CH_ES_training_1.png"
    save(path, in_sector(heart()))
    with pytest.raises(CohortError, match=r"2CH_ES/annotations/training: .*1 show CAMUS order.*1 sector"):
        read_cohort(root)


def test_a_stray_mask_beyond_the_sample_shows_in_the_check(tmp_path: Path) -> None:
    folder = tmp_path / "2CH_ED"
    for number in range(130):
        name = f"training/patient{number + 1:04d}_2CH_ED_training_0.png"
        save(folder / "images" / name, image_of(0))
        save(folder / "annotations" / name, in_sector(heart(atrium=False)) if number == 1 else heart())
    frames = read_cohort(tmp_path)  # looks at 64 masks, not at this one
    assert set(frames.label_order) == {"camus"}
    problems = check_cohort(tmp_path)
    assert problems.problem.tolist() == ["label out of range"]
    assert "patient0002" in problems.file[0]
    assert "shows sector order" in problems.detail[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2, 7], "neither classes"),
        ([0, 10, 20, 30], "neither classes"),
        ([0, 255, 0, 0], "several spreads"),
    ],
)
def test_unknown_grey_values_are_refused(tmp_path: Path, values: list[int], message: str) -> None:
    root = make_release(tmp_path, lambda labels: np.array(values, np.uint8)[labels])
    for labels in ("detect", "camus"):
        with pytest.raises(CohortError, match=message):
            read_released(root, labels=labels)


def test_an_unknown_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="labels is 'acdc'"):
        read_released(make_release(tmp_path), labels="acdc")


def test_a_wrong_order_by_hand_is_refused_by_the_mask(tmp_path: Path) -> None:
    frames = read_released(make_release(tmp_path, in_sector), labels="camus")
    with pytest.raises(CohortError, match=r"_0\.png: grey values 0, 1, 2, 3, 4 .*camus order"):
        load_labels(frames.iloc[0])


def test_a_mask_without_its_convention_is_refused(tmp_path: Path) -> None:
    row = read_cohort(make_release(tmp_path)).iloc[0]
    with pytest.raises(CohortError, match="label_order"):
        load_labels(row[list(COLUMNS)])
    with pytest.raises(CohortError, match="label_order is 'other'"):
        load_labels(dict(row) | {"label_order": "other"})


# --- broken files ---------------------------------------------------------------------------------------


def huge_png(path: Path, side: int = 60_000) -> None:
    """A header that promises gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_what_is_broken_is_left_out_and_listed(tmp_path: Path) -> None:
    root = make_release(tmp_path)

    def path(view: str, kind: str, split: str = "training", variant: int = 0) -> Path:
        return root / view / kind / split / f"patient0001_{view}_{split}_{variant}.png"

    path("2CH_ED", "images").write_bytes(b"no image")
    huge_png(path("2CH_ED", "images", variant=1))
    path("2CH_ES", "annotations").unlink()
    path("2CH_ES", "images", variant=1).unlink()
    save(path("4CH_ED", "annotations"), heart()[:-2])
    content = path("4CH_ES", "images").read_bytes()
    path("4CH_ES", "images").write_bytes(content[: len(content) // 2])
    save(path("4CH_ES", "annotations", "testing"), heart() * np.uint8(60))
    save(root / "4CH_ES/images/testing/patient0001_4CH_ES_training_0.png", image_of(0))

    with pytest.raises(CohortError, match="4CH_ES/annotations/testing: the grey values"):
        check_cohort(root)
    save(path("4CH_ES", "annotations", "testing"), heart())
    problems = check_cohort(root)
    listed = sorted(zip(problems.problem, problems.file.str.split("/").str[:2].str.join("/"), strict=True))
    assert listed == [
        ("missing image", "2CH_ES/images"),
        ("missing mask", "2CH_ES/annotations"),
        ("shape mismatch", "4CH_ED/annotations"),
        ("unreadable file", "2CH_ED/images"),
        ("unreadable file", "2CH_ED/images"),
        ("unreadable file", "4CH_ES/images"),
        ("unreadable file", "4CH_ES/images"),
    ]
    with pytest.raises(CohortError, match="7 problems"):
        read_cohort(root, strict=True)
    with pytest.warns(CohortWarning, match="check_cohort"):
        frames = read_cohort(root)
    assert len(frames) == 24 - 4  # the cut image's header is whole
    assert frames.labels.isna().sum() == 1
    with pytest.raises(CohortError, match="no mask"):
        load_labels(frames[frames.labels.isna()].iloc[0])
    cut = frames[frames.image == str(path("4CH_ES", "images"))].iloc[0]
    with pytest.raises(CohortError, match=r"4CH_ES_training_0\.png: cannot be read"):
        load_image(cut)


def test_other_png_types_are_refused(tmp_path: Path) -> None:
    root = make_release(tmp_path)
    row = read_cohort(root).iloc[0]
    save(Path(row.labels), heart(), "P")
    with pytest.raises(CohortError, match=r"png of type P.*no palette"):
        load_labels(row)
    coloured = np.stack([heart(), heart(), heart() * 0], axis=-1)
    Image.fromarray(coloured).save(row.labels)
    with pytest.raises(CohortError, match="mask in colour"):
        load_labels(row)
    Image.fromarray(image_of(0).astype(np.uint16) * 256).save(row.image)
    with pytest.raises(CohortError, match="png of type I"):
        load_image(row)


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    one, two = make_release(tmp_path / "a"), make_release(tmp_path / "elsewhere" / "b")
    assert cohort_hash(one) == cohort_hash(two)
    save(next(two.glob("*/images/training/*.png")), image_of(99))
    assert cohort_hash(one) != cohort_hash(two)


def test_other_folders_are_not_taken_for_the_release(tmp_path: Path, phantom_cohort: Path) -> None:
    assert not is_released(phantom_cohort)
    assert not is_released(tmp_path / "absent")
    (tmp_path / "x" / "images").mkdir(parents=True)
    assert not is_released(tmp_path)
    for act in (read_cohort, read_released):
        with pytest.raises(CohortError):
            act(tmp_path)
