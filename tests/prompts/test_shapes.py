"""The names of shapes: ideal shapes drawn in the test, and a question answering model built in it."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from skimage.draw import polygon2mask
from skimage.morphology import convex_hull_image

from echovlsm import STRUCTURES
from echovlsm.prompts.shapes import (
    describe_shape,
    hull_of,
    ideal_fits,
    name_shape,
    name_shapes,
    normalised,
)
from echovlsm.prompts.vqa import SHAPES, ShapeError, ask_shape, draw_box, load_vqa, read_answer


def corners(name, size, stretch=1.0):
    """Corner points round the origin; `stretch` multiplies the height."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    points = {
        "circle": np.stack([np.sin(turn), np.cos(turn)], axis=1),
        "square": [(-1, -1), (-1, 1), (1, 1), (1, -1)],
        "triangle": [(-math.sqrt(3), 0), (math.sqrt(3) / 2, -1.5), (math.sqrt(3) / 2, 1.5)],
    }
    points["oval"], points["rectangle"] = points["circle"], points["square"]
    return np.array(points[name], dtype=float) * size * [stretch, 1]


def draw(points, degrees, side=160):
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return polygon2mask((side, side), points @ turn + side / 2 + 0.25)


CASES = [
    ("circle", 1.0),
    ("oval", 1.4),
    ("oval", 2.5),
    ("square", 1.0),
    ("rectangle", 1.4),
    ("rectangle", 2.5),
    ("triangle", 0.6),
    ("triangle", 1.0),
    ("triangle", 1.5),
]


@pytest.mark.parametrize(("name", "stretch"), CASES)
@pytest.mark.parametrize("size", [8, 14, 27])
def test_ideal_shapes_are_named_at_every_rotation(name, stretch, size):
    named = {name_shape(draw(corners(name, size, stretch), degrees)) for degrees in range(0, 180, 10)}
    assert named == {name}


@pytest.mark.parametrize(("name", "stretch"), CASES)
def test_a_ragged_outline_does_not_change_the_name(name, stretch):
    rng = np.random.default_rng(11)
    for degrees in (0, 20, 75):
        clean = draw(corners(name, 20, stretch), degrees)
        noise = gaussian_filter(rng.normal(size=clean.shape), 1.5)
        ragged = gaussian_filter(clean.astype(float), 1) + 0.25 * noise / noise.std() > 0.5
        assert (ragged != clean).sum() > 20
        assert name_shape(ragged) == name


def plain_fits(mask, spacing=None):
    """The plain way: scikit-image's hull, every pixel a point, every template an image."""
    from echovlsm.prompts.shapes import _GRID

    mask = mask[ndimage.find_objects(mask.astype(int))[0]]
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    mask = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    hull = convex_hull_image(mask, include_borders=True) if min(mask.shape) > 2 else mask
    points = np.argwhere(hull).astype(float)
    scale = np.ones(2) if spacing is None else np.asarray(spacing)
    variance = (np.cov(points.T, bias=True) + np.eye(2) / 12) * np.outer(scale, scale)
    lengths, axes = np.linalg.eigh(variance)
    line = ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * 3
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    where = np.rint((grid * np.sqrt(lengths)) @ axes.T / scale + points.mean(axis=0)).astype(int)
    inside = ((where >= 0) & (where < hull.shape)).all(axis=1)
    found = np.zeros(len(grid), bool)
    found[inside] = hull[tuple(where[inside].T)]

    def best(sides, inradius):
        overlaps = []
        for turn in np.deg2rad(np.arange(0, 360 / sides, 3)):
            angles = turn + 2 * np.pi * np.arange(sides) / sides
            template = (grid @ np.stack([np.cos(angles), np.sin(angles)])).max(axis=1) <= inradius
            overlaps.append((template & found).sum() / (template | found).sum())
        return max(overlaps)

    disc = (grid**2).sum(axis=1) <= 4
    return {
        "ellipse": (disc & found).sum() / (disc | found).sum(),
        "rectangle": best(4, np.sqrt(3)),
        "triangle": best(3, np.sqrt(2)),
    }, np.sqrt(lengths[1] / lengths[0])


def test_fits_are_those_of_the_plain_way(phantom_frames):
    from echovlsm.cohort.images import load_labels

    hearts = [load_labels(row) == k for _, row in phantom_frames[:6].iterrows() for k in STRUCTURES]
    for mask, spacing in [*((mask, None) for mask in hearts), *((mask, (0.3, 0.5)) for mask in hearts[:3])]:
        fits, ratio = plain_fits(mask, spacing)
        family, found_ratio, found = describe_shape(mask, spacing)
        assert found == pytest.approx(fits, abs=1e-6)
        assert found_ratio == pytest.approx(ratio)
        assert family == max(fits, key=fits.__getitem__)


def test_the_steps_lead_from_a_mask_to_its_ideal_shape():
    """Turned and stretched, an ellipse becomes a disc of radius 2 on the grid from -3 to 3."""
    mask = draw(corners("oval", 14, 2.5), 30)
    normal, ratio = normalised(hull_of(mask))
    assert normal.shape == (96, 96)
    assert ratio == pytest.approx(2.5, rel=0.03)
    fit, disc = ideal_fits(normal)["ellipse"]
    at = np.argwhere(disc) / 16 - 3 + 1 / 32
    assert np.hypot(*at.T).max() == pytest.approx(2, abs=0.05)
    assert fit == np.count_nonzero(disc & normal) / np.count_nonzero(disc | normal) > 0.95
    for family, (other, ideal) in ideal_fits(normal).items():
        assert other == np.count_nonzero(ideal & normal) / np.count_nonzero(ideal | normal), family


def test_small_islands_are_ignored_and_arches_are_named_by_their_outside():
    circle = draw(corners("circle", 30), 0)
    island = circle.copy()
    island[2:6, 2:6] = True
    assert name_shape(island) == "circle"
    ring = circle & ~draw(corners("circle", 24), 0)
    assert name_shape(ring) == "circle"


def test_masks_of_numbers_and_tiny_masks_have_names():
    assert name_shape(np.ones((30, 30), np.uint8)) == "square"
    assert name_shape(np.pad(np.ones((1, 9)), 3)) == "rectangle"
    assert name_shape(np.ones((1, 1), bool)) == "square"


def test_pixels_that_are_not_square_are_allowed_for():
    squeezed = np.pad(np.ones((40, 20), bool), 5)
    assert name_shape(squeezed) == "rectangle"
    assert name_shape(squeezed, spacing=(0.154, 0.308)) == "square"
    with pytest.raises(ShapeError, match="spacing"):
        name_shape(squeezed, spacing=(0, 1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((5, 5), bool), "empty"),
        (np.full((5, 5), 2), "only 0 and 1"),
        (np.ones((1, 5, 5)), "height, width"),
    ],
)
def test_what_has_no_shape_is_refused(mask, message):
    with pytest.raises(ShapeError, match=message):
        name_shape(mask)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("oval", "oval"),
        ("Triangular.", "triangle"),
        ("It is a rectangular shape", "rectangle"),
        ("round, a circle", "circle"),
    ],
)
def test_answers_are_read(answer, name):
    assert read_answer(answer) == name


@pytest.mark.parametrize("answer", ["", "a heart", "circle or square", "roundabout"])
def test_answers_that_name_no_single_shape_are_refused(answer):
    with pytest.raises(ShapeError, match="names"):
        read_answer(answer)


def test_the_green_box_is_just_outside_the_structure():
    image = np.full((100, 80), 90, np.uint8)
    mask = np.zeros((100, 80), bool)
    mask[30:50, 20:60] = True
    boxed = np.asarray(draw_box(image, mask))
    green = (boxed == (0, 255, 0)).all(axis=2)
    rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (29, 50, 19, 60)
    assert not (green & mask).any()
    assert (boxed[~green] == 90).all()
    with pytest.raises(ShapeError, match="differ in size"):
        draw_box(image[:50], mask)


@pytest.fixture
def cohort(monkeypatch):
    """Two images whose labels are a circle, a rectangle and, in the first only, a triangle."""
    labels = np.zeros((160, 160), np.uint8)
    labels[np.roll(draw(corners("circle", 15), 0), (-50, 0), (0, 1))] = 1
    labels[draw(corners("rectangle", 12, 2), 90)] = 2
    labels[np.roll(draw(corners("triangle", 14), 0), (50, 0), (0, 1))] = 3
    without = np.where(labels == 3, 0, labels).astype(np.uint8)
    maps = {"a": labels, "b": without}
    monkeypatch.setattr("echovlsm.prompts.shapes.load_labels", lambda row: maps[row["patient"]])
    monkeypatch.setattr("echovlsm.prompts.shapes.load_image", lambda row: np.full((160, 160), 60, np.uint8))
    return pd.DataFrame(
        {"patient": ["a", "b"], "view": "2CH", "phase": "ED", "spacing_y": None, "spacing_x": None}
    )


def test_a_cohorts_shapes_have_one_row_a_structure(cohort):
    table = name_shapes(cohort[:1], progress=False)
    assert list(table) == ["patient", "view", "phase", "structure", "shape"]
    assert list(table["structure"]) == list(STRUCTURES.values())
    assert list(table["shape"]) == ["circle", "rectangle", "triangle"]


def test_an_absent_structure_is_an_error_or_left_out(cohort):
    with pytest.raises(ShapeError, match=r"b 2CH ED left atrium cavity: the mask is empty.*omit"):
        name_shapes(cohort, progress=False)
    table = name_shapes(cohort, missing="omit", progress=False)
    assert table["shape"].notna().tolist() == [True] * 5 + [False]


def test_processes_change_no_name(phantom_frames, monkeypatch):
    monkeypatch.setenv("ECHOVLSM_CACHE", "")
    monkeypatch.setattr("echovlsm.prompts.shapes._FEW", 1)
    monkeypatch.setattr("echovlsm.prompts.shapes._CHUNK", 2)
    one, two = (name_shapes(phantom_frames, progress=False, workers=n) for n in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert list(one["patient"].unique()) == list(phantom_frames["patient"].unique())


def test_what_one_process_finds_wrong_is_said(phantom_frames, tmp_path, monkeypatch):
    from echovlsm.cohort.images import load_image, load_labels
    from echovlsm.cohort.read import read_cohort
    from echovlsm.cohort.write import write_cohort

    monkeypatch.setenv("ECHOVLSM_CACHE", "")
    monkeypatch.setattr("echovlsm.prompts.shapes._FEW", 1)
    monkeypatch.setattr("echovlsm.prompts.shapes._CHUNK", 2)
    rows = [
        {**row[["patient", "view", "phase", "split"]], "image": load_image(row), "labels": load_labels(row)}
        for _, row in phantom_frames.iterrows()
    ]
    rows[9]["labels"][rows[9]["labels"] == 2] = 0
    cohort = read_cohort(write_cohort(tmp_path / "without", rows, {"name": "without", "kind": "phantom"}))
    place = " ".join(rows[9][key] for key in ("patient", "view", "phase"))
    with pytest.raises(ShapeError, match=f"{place} myocardium: the mask is empty.*omit"):
        name_shapes(cohort, progress=False, workers=2)
    table = name_shapes(cohort, missing="omit", progress=False, workers=2)
    assert np.flatnonzero(table["shape"].isna()).tolist() == [9 * 3 + 1]


def test_a_model_is_asked_the_papers_question(cohort):
    asked = []

    def model(image, question):
        asked.append((image.mode, question))
        return "Oval" if "atrium" in question else "a heart"

    table = name_shapes(cohort[:1], backend="vqa", model=model, missing="omit", progress=False)
    assert table["shape"].fillna("none").tolist() == ["none", "none", "oval"]
    assert asked[1] == ("RGB", "What is the shape of the myocardium in the green box?")
    with pytest.raises(ShapeError, match="left ventricular cavity: the answer 'a heart' names no shape"):
        name_shapes(cohort[:1], backend="vqa", model=model, progress=False)


def test_unknown_backends_and_models_are_refused(cohort, tmp_path):
    with pytest.raises(ShapeError, match="'geometry' or 'vqa'"):
        name_shapes(cohort, backend="eye")
    with pytest.raises(ShapeError, match="needs model="):
        name_shapes(cohort, backend="vqa")
    with pytest.raises(ShapeError, match="only backend='vqa'"):
        name_shapes(cohort, model="somewhere")
    with pytest.raises(ShapeError, match="cannot be loaded"):
        load_vqa(tmp_path)


WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] [ENC] what is the shape of in green box ? left ventricular cavity "
    + ("myocardium atrium " + " ".join(SHAPES))
)


def tokenizer(folder):
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(WORDS.split()))
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"))


def vilt_folder(folder):
    """A tiny ViLT of random weights whose every answer is `triangular`."""
    import torch
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=len(WORDS.split()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        id2label={0: "heart", 1: "triangular", 2: "circle"},
        label2id={"heart": 0, "triangular": 1, "circle": 2},
    )
    model = ViltForQuestionAnswering(config)
    with torch.no_grad():
        model.classifier[-1].bias[1] = 100
    model.save_pretrained(folder)
    ViltProcessor(
        ViltImageProcessor(size={"shortest_edge": 64}, size_divisor=16), tokenizer(folder)
    ).save_pretrained(folder)
    return folder


def blip_folder(folder, task):
    """A tiny BLIP of random weights that answers `oval` again and again."""
    import torch
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipForQuestionAnswering,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    words = WORDS.split()
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = tiny | special | {"vocab_size": len(words), "encoder_hidden_size": 16, "projection_dim": 16}
    vision = tiny | {"image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = (BlipForQuestionAnswering if task == "questions" else BlipForConditionalGeneration)(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[words.index("oval")] = 100
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["vilt", "blip for questions", "blip for captions"])
def test_models_of_transformers_answer_from_a_folder(kind, tmp_path):
    """ViLT classifies, BLIP generates; BLIP for captions runs through the pipeline `image-text-to-text`."""
    folder = vilt_folder(tmp_path) if kind == "vilt" else blip_folder(tmp_path, kind.split()[-1])
    ask = load_vqa(folder)
    mask = np.zeros((100, 80), bool)
    mask[30:50, 20:60] = True
    image = np.full((100, 80), 90, np.uint8)
    expected = "triangle" if kind == "vilt" else "oval"
    assert ask_shape(ask, image, mask, "left ventricular cavity") == expected


def test_a_chat_model_is_told_the_five_names_and_read_without_its_prompt(monkeypatch):
    from types import SimpleNamespace

    import transformers

    class Pipe:
        processor = SimpleNamespace(chat_template="{{ messages }}")

        def __call__(self, text, max_new_tokens, return_full_text):
            assert not return_full_text
            shown, words = text[0]["content"]
            assert shown["image"].size == (80, 100)
            assert words["text"].endswith("circle, triangle, oval, square, rectangle.")
            return [{"input_text": text, "generated_text": "Square"}]

    monkeypatch.setattr(transformers, "pipeline", lambda task, model, **_: Pipe())
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda model, **_: SimpleNamespace(architectures=["Chat"])
    )
    mask = np.zeros((100, 80), bool)
    mask[30:50, 20:60] = True
    assert ask_shape(load_vqa("a/model"), np.full((100, 80), 90, np.uint8), mask, "myocardium") == "square"
