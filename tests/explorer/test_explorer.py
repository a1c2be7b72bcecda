"""The explorer: its answers are the model's own, an image is encoded once, and the page says the same."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from echovlsm import STRUCTURES, models
from echovlsm.cohort.images import resize_image
from echovlsm.evaluation.scoring import dice, score, to_mask
from echovlsm.explorer import asking as explorer
from echovlsm.explorer import static as explorer_static
from echovlsm.explorer.asking import Explorer
from echovlsm.explorer.images import ExplorerError, paint, sector, share_outlined
from echovlsm.prompts.templates import make_prompts
from tests.conftest import WEIGHTS

LV = STRUCTURES[1]


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return models.load("clipseg", WEIGHTS)


@pytest.fixture
def ask(phantom_frames: pd.DataFrame, net: torch.nn.Module) -> Explorer:
    return Explorer(phantom_frames, {"tiny": net})


@pytest.mark.parametrize("name", ["clipseg", "cris"])
def test_the_answer_is_the_models_own(name: str, phantom_frames: pd.DataFrame) -> None:
    net = models.load(name, WEIGHTS.with_name(f"{name}-tiny")).eval()
    ask = Explorer(phantom_frames, {name: net})
    key, texts = ask.keys[3], ["Myocardium of the heart.", "Left atrium cavity of the heart."]
    image = ask.image(key).pixels
    small = net.normalise(resize_image(image, net.image_size)[None])
    with torch.no_grad():
        expected = [to_mask(net(small, *net.tokenize([text])), image.shape)[0].numpy() for text in texts]
    assert all(
        np.array_equal(ask.ask(key, text).mask(), mask) for text, mask in zip(texts, expected, strict=True)
    )
    assert 0 < np.mean(expected) < 1, "masks that say something"


def test_an_image_is_encoded_once_for_all_its_sentences(
    ask: Explorer, net: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = net.encode_image
    monkeypatch.setattr(net, "encode_image", lambda pixels: calls.append(1) or encode(pixels))
    answers = [ask.ask(ask.keys[0], text).probability for text in ("", "A cat.", "Myocardium of the heart.")]
    assert len(calls) == 1
    assert not np.array_equal(answers[0], answers[2])
    ask.ask(ask.keys[1], "A cat.")
    assert len(calls) == 2
    ask.add("tiny", net)  # another model of that name: nothing of the old one is used
    ask.ask(ask.keys[0], "A cat.")
    assert len(calls) == 3


def test_old_encodings_leave(ask: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "REMEMBER", 2)
    for key in ask.keys[:4]:
        ask.ask(key, "A cat.")
    assert len(ask._encodings) == 2
    assert ("tiny", ask.keys[3]) in ask._encodings


def test_sentences_are_those_of_the_prompts_table(ask: Explorer, phantom_frames: pd.DataFrame) -> None:
    table = make_prompts(phantom_frames, levels=("P1", "P5", "P6"))
    for row in table[table["patient"] == "patient0002"].itertuples():
        said = ask.prompt((row.patient, row.view, row.phase), row.structure, row.level, row.variant)
        assert said == row.text
    assert re.search(" of (circle|oval|triangle|square|rectangle) shape ", ask.prompt(ask.keys[0], LV, "P7"))


@pytest.mark.parametrize(("first", "second"), [((0, 0), (0, 0)), ((1, 2), (0, 0)), ((1, 3), (2, 4))])
def test_dice_has_the_rules_of_the_scores(first: tuple[int, int], second: tuple[int, int]) -> None:
    masks = [np.zeros((6, 6), dtype=bool) for _ in range(2)]
    for mask, (low, high) in zip(masks, (first, second), strict=True):
        mask[low:high, :4] = True
    assert dice(*masks) == pytest.approx(score(*masks, size=None)["dice"])


def test_the_worst_comes_first(ask: Explorer) -> None:
    table = ask.worst("myocardium", "P1")
    assert len(table) == len(ask.keys)
    assert table["dice"].is_monotonic_increasing
    row = table.iloc[0]
    key = (row["patient"], row["view"], row["phase"])
    mask = ask.ask(key, ask.prompt(key, "myocardium", "P1")).mask()
    assert row["dice"] == dice(mask, ask.image(key).reference("myocardium"))


def test_errors_name_what_there_is(ask: Explorer, phantom_frames: pd.DataFrame) -> None:
    with pytest.raises(ExplorerError, match="of patient0001 there are 2CH ED, 2CH ES"):
        ask.image(("patient0001", "3CH", "ED"))
    with pytest.raises(ExplorerError, match="no model 'cris'; there are: tiny"):
        ask.ask(ask.keys[0], "A cat.", "cris")
    with pytest.raises(ExplorerError, match="nets: no model"):
        Explorer(phantom_frames, {})


def test_painting_marks_outline_fill_and_reference() -> None:
    image = np.full((8, 8), 100, dtype=np.uint8)
    mask, truth = (np.zeros((8, 8), dtype=bool) for _ in range(2))
    mask[2:6, 2:6] = True
    truth[1:7, 1:7] = True
    plain = paint(image, "#0072B2")
    assert plain.shape == (16, 16, 3)
    assert (plain == 100).all()
    drawn = paint(image, "#0072B2", mask=mask, truth=truth, fill=0.5)
    assert tuple(drawn[4, 4]) == (0x00, 0x72, 0xB2)
    assert tuple(drawn[2, 2]) == (255, 255, 255)
    assert tuple(drawn[5, 5]) == (50, 107, 139)
    assert tuple(drawn[1, 1]) == (100, 100, 100)


def test_the_sector_holds_dark_cavities_and_bounds_what_counts_as_outlined() -> None:
    image = np.zeros((10, 20), dtype=np.uint8)
    image[2:8, [4, 13]] = 200  # two bright walls with a dark cavity between them
    seen = sector(image)
    assert seen.sum() == 60
    assert seen[2:8, 4:14].all()
    mask = np.zeros_like(seen)
    mask[2:4, 4:7] = mask[9, :] = True  # the last row lies outside
    assert share_outlined(mask, image) == pytest.approx(6 / 60)
    assert share_outlined(mask, np.zeros_like(image)) == mask.mean()


# -- runs ---------------------------------------------------------------------------------------------------


def _run(folder: Path, status: str, value: float, model: str = "clipseg", **others: object) -> Path:
    folder.mkdir(parents=True)
    parameters = {"model": model, "prompt": "P1", "encoders": "frozen", "seed": 1, "profile": "smoke"}
    record = {"status": status, "scale": "smoke", "cohort": "phantom-test", "strategy": "real"}
    record |= {"parameters": parameters | {"weights": str(WEIGHTS)}, "val_dice": value} | others
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    (folder / "weights").symlink_to(WEIGHTS)
    return folder


@pytest.fixture
def runs_folder(tmp_path: Path) -> Path:
    _run(tmp_path / "runs" / "worse", "complete", 0.5)
    _run(tmp_path / "runs" / "better", "complete", 0.7)
    _run(tmp_path / "runs" / "elsewhere", "complete", 0.9, cohort="camus")
    _run(tmp_path / "runs" / "begun", "started", 0.99)
    _run(tmp_path / "runs" / "pretrained", "complete", 0.8, strategy="synthetic")
    _run(tmp_path / "runs" / "wordless", "complete", 0.95, model="unet")
    return tmp_path / "runs"


def test_the_best_complete_run_of_the_cohort_is_chosen(runs_folder: Path) -> None:
    table = explorer.trained_runs(runs_folder)
    assert list(table["name"]) == ["elsewhere", "pretrained", "better", "worse"]
    assert explorer.choose_run(table, profile="smoke", cohort="phantom-test")["name"] == "better"
    assert explorer.choose_run(table, run=str(runs_folder / "worse"))["name"] == "worse"
    assert explorer.choose_run(table, profile="smoke", cohort="nothing") is None
    with pytest.raises(ExplorerError, match=r"begun is no complete run with weights; there are: .*better"):
        explorer.choose_run(table, run=str(runs_folder / "begun"))


def test_without_a_run_the_untrained_model_is_shown_and_called_so(tmp_path: Path) -> None:
    table = explorer.trained_runs(tmp_path)
    assert table.empty
    chosen = explorer.choose_run(table, profile="demo", cohort="phantom-demo")
    assert "as it was before it saw an echocardiogram" in explorer.describe_choice(chosen)
    assert list(explorer.load_nets(chosen, weights=WEIGHTS)) == ["zero-shot (clipseg-tiny)"]


# -- the page -----------------------------------------------------------------------------------------------


def _grey(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_the_page_holds_what_the_model_says(ask: Explorer, phantom_frames: pd.DataFrame) -> None:
    keys = explorer.choose_images(phantom_frames, 3)
    assert len({key[0] for key in keys}) == 3
    assert len({key[1:] for key in keys}) >= 2
    answers = explorer_static.answers(ask, keys, scale="smoke", nets={"tiny": "before training"})
    text = explorer_static.page(answers)
    payload = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert payload["nets"] == ["before training"]
    assert [level[:2] for level in payload["levels"][:8]] == [f"P{level}" for level in range(8)]
    image, key = payload["images"][1], keys[1]
    assert np.array_equal(_grey(image["pixels"]), ask.image(key).pixels)
    assert np.array_equal(_grey(image["labels"]) // 80, ask.image(key).labels)
    maps = _grey(image["maps"][0])
    side = maps.shape[1]
    assert maps.shape == (len(payload["levels"]) * 3 * side, side)
    level, structure = 2, 1
    said = image["sentences"][level][structure]
    assert said == ask.prompt(key, STRUCTURES[2], "P2")
    first = (level * 3 + structure) * side
    assert np.abs(maps[first : first + side] / 255 - ask.small_map(key, said)).max() <= 0.5 / 255 + 1e-6


def test_real_pictures_do_not_go_into_a_page(ask: Explorer) -> None:
    ask.meta = {**ask.meta, "kind": "real"}
    with pytest.raises(ExplorerError, match="is real; images go into a page only from a phantom"):
        explorer_static.answers(ask, ask.keys[:1], scale="demo")


def test_a_page_has_a_limit(ask: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer_static, "MAX_BYTES", 10_000)
    with pytest.raises(ExplorerError, match=r"images: 1 take .* show fewer"):
        explorer_static.page(explorer_static.answers(ask, ask.keys[:1], scale="smoke"))


# -- widgets ------------------------------------------------------------------------------------------------


def test_a_typed_sentence_changes_the_answer(phantom_cohort: Path, runs_folder: Path) -> None:
    from echovlsm.explorer.view import OWN_WORDS, ExplorerView

    view = ExplorerView([phantom_cohort], runs_folder, run=str(runs_folder / "better"), weights=str(WEIGHTS))
    assert view.left.net.value == "better"
    assert view.right.net.value == "zero-shot (clipseg-tiny)"
    assert "Dice" in view.left.score.value
    before = view.left.image.value, view.right.image.value
    view.left.sentence.value = "The wall of the heart."
    assert view.left.level.value == OWN_WORDS
    assert view.left.image.value != before[0]
    assert view.right.image.value == before[1]
    view.structure.value = "left atrium cavity"
    assert view.left.sentence.value == "The wall of the heart."
    assert view.right.sentence.value == "Left atrium cavity of the heart."
    view.left.sentence.value = "word " * 100
    assert "longer than" in view.left.score.value
    assert not view._busy
    with torch.no_grad():  # from now on it outlines nothing
        view.explorer.net("better").segmenter.decoder.transposed_convolution.bias -= 1000
    view.left.sentence.value = "A bicycle."
    assert "nothing here by that name" in view.left.score.value


def test_stepping_goes_through_the_worst_cases(phantom_cohort: Path, tmp_path: Path) -> None:
    from echovlsm.explorer.view import ExplorerView

    view = ExplorerView([phantom_cohort], tmp_path, weights=str(WEIGHTS))
    assert "no trained run yet" in view.message.value
    seen = []
    for _ in range(3):
        view.next_worst.click()
        truth = view.explorer.image(view.key).reference(view.structure.value)
        seen.append((view.key, dice(view.left.answer.mask(), truth)))
    assert [value for _, value in seen] == sorted(value for _, value in seen)
    assert len({key for key, _ in seen}) == 3
    assert "Number 3 of" in view.message.value


def test_the_figure_is_saved(phantom_cohort: Path, tmp_path: Path) -> None:
    from echovlsm.explorer.view import ExplorerView

    view = ExplorerView([phantom_cohort], tmp_path, weights=str(WEIGHTS))
    first, second = view.save_figure(tmp_path / "out"), view.save_figure(tmp_path / "out")
    assert first != second
    assert Image.open(first).size[0] > 1000
    assert str(second) in view.message.value
