"""A model in the page: opened from disk, without a network, it answers as PyTorch does.

Needs Chromium, as tests/book/test_browser.py.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional

from echovlsm import STRUCTURES, models
from echovlsm.base import figures
from echovlsm.cohort.images import resize_image
from echovlsm.explorer import export as explorer_export
from echovlsm.explorer import static as explorer_static
from echovlsm.explorer.asking import Explorer, choose_images
from echovlsm.explorer.images import paint
from tests.book.test_browser import PHONE, UNNAMED
from tests.conftest import WEIGHTS
from tests.explorer.test_explorer_export import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SENTENCES = (
    "Left atrium cavity of the heart.",
    "the wall of the left ventricle",
    "A CAT, on a sofa – naïve café ½!",
    "",
    "Myocardium of the heart in the four-chamber view at end of diastole.",
)
ANSWERED = """([panel, text]) => {
    const box = document.querySelectorAll('.explorer-panel')[panel];
    return box.dataset.answered === text && box.querySelector('canvas').answer.milliseconds !== undefined;
}"""
ANSWER = """panel => {
    const {mask, width, height, milliseconds} = document.querySelectorAll('canvas')[panel].answer;
    return [Array.from(mask), width, height, milliseconds];
}"""


@pytest.fixture(scope="module")
def page_folder(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
    phantom_cohort: Path,
    phantom_frames: pd.DataFrame,
) -> SimpleNamespace:
    """An exported page, and the model that it was exported from; only made where it can be opened."""
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny", phantom_cohort)
    index, _ = explorer_export.export(run, tmp_path_factory.mktemp("page") / "tiny", images=3)
    net = models.load("clipseg", run / "weights").eval()
    test = phantom_frames[phantom_frames["split"] == "test"]
    test.attrs = phantom_frames.attrs
    keys = choose_images(test, 3)
    return SimpleNamespace(index=index, ask=Explorer(test, {"trained": net}), net=net, keys=keys)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """A function that opens an exported page offline; `complaints` and `requests` are of all its pages."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_offline(True)
    complaints: list[str] = []
    requests: list[str] = []

    def open_page(index: Path, more: str = "") -> Page:
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(index.as_uri() + more)
        page.wait_for_selector('.echovlsm-explorer[data-ready="yes"]')
        return page

    open_page.complaints, open_page.requests, open_page.context = complaints, requests, context
    yield open_page
    assert complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    context.close()


def _say(page: Page, text: str, panel: int = 0) -> SimpleNamespace:
    """Type a sentence; what the page then outlines, and the milliseconds that it took."""
    page.locator(".explorer-panel").nth(panel).locator("textarea").fill(text)
    return _answer(page, text, panel)


def _answer(page: Page, text: str, panel: int = 0) -> SimpleNamespace:
    page.wait_for_function(ANSWERED, arg=[panel, text])
    mask, width, height, milliseconds = page.evaluate(ANSWER, panel)
    return SimpleNamespace(mask=np.array(mask, bool).reshape(height, width), milliseconds=milliseconds)


def test_typed_sentences_are_outlined_as_by_pytorch(page_folder: SimpleNamespace, opened: Any) -> None:
    page = opened(page_folder.index)
    assert not [url for url in opened.requests if "/model/" in url], "the model is loaded when asked for"
    shares = []
    for number, key in enumerate(page_folder.keys[:2]):
        page.locator(".explorer-controls select").select_option(index=number)
        for text in SENTENCES:
            found = _say(page, text).mask
            expected = page_folder.ask.ask(key, text).mask()
            assert (found != expected).mean() <= 0.001, (key, text)
            shares.append(expected.mean())
    assert sum(0.01 < share < 0.99 for share in shares) >= 4, "masks that say something"
    tenth = _say(page, "The tenth sentence about a heart.").milliseconds
    print(f"tenth sentence and later: {tenth:.0f} ms")
    page.locator(".explorer-controls input[type=range]").fill("0.8")
    page.wait_for_timeout(300)
    strict = page_folder.ask.ask(key, "The tenth sentence about a heart.").mask(0.8)
    assert (_answer(page, "The tenth sentence about a heart.").mask != strict).mean() <= 0.001
    assert "mask pixels differ" in page.locator(".explorer-status").inner_text()


def test_two_sentences_stand_side_by_side(page_folder: SimpleNamespace, opened: Any) -> None:
    page = opened(page_folder.index)
    left, right = SENTENCES[:2]
    found = [_say(page, left, 0).mask, _say(page, right, 1).mask]
    for mask, text in zip(found, (left, right), strict=True):
        assert (mask != page_folder.ask.ask(page_folder.keys[0], text).mask()).mean() <= 0.001


def test_an_answer_is_drawn_as_in_jupyterlab(page_folder: SimpleNamespace, opened: Any) -> None:
    page, text = opened(page_folder.index), SENTENCES[0]
    found = _say(page, text)
    ask, key = page_folder.ask, page_folder.keys[0]
    image, structure = ask.image(key), STRUCTURES[1]
    options = {"mask": found.mask, "truth": image.reference(structure)}
    layers = {
        "outline": {"fill": 0.0},
        "overlay": {"fill": 0.45},
        "probability": {"probability": ask.ask(key, text).probability},
    }
    for layer, more in layers.items():
        page.get_by_role("radio", name=layer).check()
        page.wait_for_timeout(500)
        seen = page.evaluate(
            """() => {
                const canvas = document.querySelector('canvas'), {width, height} = canvas;
                return Array.from(canvas.getContext('2d').getImageData(0, 0, width, height).data);
            }"""
        )
        expected = paint(image.pixels, figures.STRUCTURE_COLOURS[structure], **options, **more)
        drawn = np.array(seen, dtype=int).reshape(*expected.shape[:2], 4)
        assert (drawn[..., 3] == 255).all()
        assert (np.abs(drawn[..., :3] - expected).max(axis=2) > 2).mean() < 0.001, layer


def _png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def _expected(net: torch.nn.Module, image: np.ndarray, text: str) -> np.ndarray:
    """What the model outlines in a square image that no cohort has."""
    with torch.no_grad():
        logits = net(net.normalise(resize_image(image, net.image_size)[None]), *net.tokenize([text]))
    size = {"size": image.shape, "mode": "bilinear", "align_corners": False}
    return (functional.interpolate(logits.sigmoid()[None], **size)[0, 0] >= 0.5).numpy()


def _drop(page: Page, name: str, kind: str, content: bytes) -> None:
    page.evaluate(
        """([name, type, content]) => {
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type}));
            const drop = new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true});
            document.querySelector('.explorer-panel canvas').dispatchEvent(drop);
        }""",
        [name, kind, base64.b64encode(content).decode()],
    )


def test_an_own_image_is_outlined_and_stays_here(page_folder: SimpleNamespace, opened: Any) -> None:
    page, text = opened(page_folder.index), SENTENCES[0]
    image = page_folder.ask.image(page_folder.keys[1]).pixels  # wider than high
    height, width = image.shape
    page.locator("textarea").first.fill(text)
    _drop(page, "mine.png", "image/png", _png(image))
    page.wait_for_selector("option[value=own]", state="attached")
    page.wait_for_function("size => document.querySelector('canvas').answer.height === size", arg=width)
    padded = np.zeros((width, width), dtype=np.uint8)
    padded[(width - height) // 2 :][:height] = image
    assert (_answer(page, text).mask != _expected(page_folder.net, padded, text)).mean() <= 0.001
    page.get_by_label("crop to a square").check()
    page.wait_for_function("size => document.querySelector('canvas').answer.height === size", arg=height)
    cropped = np.ascontiguousarray(image[:, (width - height) // 2 :][:, :height])
    assert (_answer(page, text).mask != _expected(page_folder.net, cropped, text)).mean() <= 0.001
    assert "of the sector outlined" in page.locator(".explorer-dice").first.inner_text()

    colour = np.stack([np.tile(image, (4, 4))] * 3, axis=2)  # larger than what is shown
    _drop(page, "photo.jpg", "image/jpeg", _png(colour, "JPEG"))
    page.wait_for_function("document.querySelector('canvas').answer.height === 256")
    assert page.locator(".explorer-controls select").inner_text().count("your own") == 1
    _drop(page, "notes.txt", "text/plain", b"no image")
    page.wait_for_function("document.querySelector('.explorer-status').innerText.includes('no PNG or JPEG')")
    _drop(page, "broken.png", "image/png", b"no image")
    page.wait_for_function("document.querySelector('.explorer-status').innerText.includes('cannot be read')")
    assert "never leave it" in page.locator(".echovlsm-explorer").inner_text()


def test_the_address_passes_a_sentence_on(page_folder: SimpleNamespace, opened: Any) -> None:
    page, text = opened(page_folder.index), "a wall & <b>50%</b> of it"
    page.locator(".explorer-controls select").select_option(index=1)
    _say(page, text)
    page.wait_for_function("location.hash.includes('image=1')")
    again = opened(page_folder.index, page.url.partition("index.html")[2])
    expected = page_folder.ask.ask(page_folder.keys[1], text).mask()
    assert (_answer(again, text).mask != expected).mean() <= 0.001
    assert again.locator("textarea").first.input_value() == text
    opened(page_folder.index, "#q=x&structure=99&image=-3&threshold=abc")


def test_a_sentence_that_is_too_long_is_said_to_be(page_folder: SimpleNamespace, opened: Any) -> None:
    page = opened(page_folder.index)
    page.locator("textarea").first.fill("word " * 100)
    page.wait_for_function(
        "document.querySelector('.explorer-dice').innerText.includes('longer than the 77')"
    )


def test_a_model_that_cannot_be_read_is_said_to_be(
    page_folder: SimpleNamespace, opened: Any, tmp_path: Path
) -> None:
    shutil.copytree(page_folder.index.parent, tmp_path / "page")
    part = tmp_path / "page" / explorer_export.MODEL / "part-3.js"
    part.rename(tmp_path / "part-3.js")
    page = opened(tmp_path / "page" / "index.html")
    page.locator("textarea").first.fill("A bicycle.")
    page.wait_for_function(
        "document.querySelector('.explorer-status').innerText.includes('cannot be loaded')"
    )
    assert "part-3.js cannot be read" in page.locator(".explorer-dice").first.inner_text()
    (tmp_path / "part-3.js").rename(part)  # the next question tries again
    _say(page, "A tricycle.")
    assert len(opened.complaints) >= 1
    opened.complaints.clear()


def test_a_sentence_that_names_nothing_outlines_nothing(
    browser: Browser, opened: Any, tmp_path: Path, phantom_cohort: Path
) -> None:
    run = write_run(tmp_path / "quiet", phantom_cohort, quiet=True)
    page = opened(explorer_export.export(run, tmp_path / "page", images=1)[0])
    assert not _say(page, "A bicycle.").mask.any()
    assert page.locator(".explorer-dice").first.inner_text().startswith("Nothing here by that name")


def test_without_images_the_reader_brings_one(
    browser: Browser, opened: Any, tmp_path: Path, phantom_cohort: Path
) -> None:
    run = write_run(tmp_path / "patients", phantom_cohort, kind="real")
    page = opened(explorer_export.export(run, tmp_path / "page", real=True)[0])
    assert "Choose an image above, or drop one" in page.locator(".explorer-dice").first.inner_text()
    assert "images of patients" in page.locator("main").inner_text()
    image = np.tile(np.arange(0, 250, 2, dtype=np.uint8), (125, 1))
    page.locator("input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": _png(image)}
    )
    assert _answer(page, "Left ventricular cavity of the heart.").mask.shape == (125, 125)


def test_without_javascript_answers_made_before_appear(
    page_folder: SimpleNamespace, browser: Browser
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_folder.index.as_uri())
    assert page.locator(".explorer-stills figure:visible").count() == 9
    caption = page.locator(".explorer-stills figcaption").first.inner_text()
    assert caption.startswith("“Left ventricular cavity of the heart.” Dice 0.")
    context.close()


def test_keyboard_names_and_a_phone_suffice(page_folder: SimpleNamespace, opened: Any) -> None:
    page = opened(page_folder.index)
    page.locator(".echovlsm-explorer select").first.focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("The heart.")
    _answer(page, "The heart.")
    page.wait_for_function("document.querySelector('.explorer-spoken').innerText.startsWith('Left: ')")
    named = ":is(button, select, input, textarea, canvas)"
    assert page.eval_on_selector_all(f".echovlsm-explorer {named}", UNNAMED) == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1


@pytest.mark.parametrize(("conditional", "extract", "eos"), [(0, [0, 2], 2), (1, [1, 2], 4609)])
def test_another_shape_of_the_model_gives_pytorchs_logits(
    opened: Any, tmp_path: Path, conditional: int, extract: list[int], eos: int
) -> None:
    """Where the sentence enters, which layers are read and how a sentence ends are the configuration's."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    small = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {**small, "num_hidden_layers": 2, "vocab_size": 4610, "eos_token_id": eos, "bos_token_id": 4608}
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**small, "image_size": 24, "patch_size": 6},
        extract_layers=extract,
        conditional_layer=conditional,
        projection_dim=10,
        reduce_dim=18,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=22,
    )
    torch.manual_seed(0)
    net = models.load("clipseg", WEIGHTS)
    net = type(net)(CLIPSegForImageSegmentation(config), net.tokenizer)
    with torch.no_grad():
        for values in net.parameters():
            values.copy_((values + 0.1 * torch.randn_like(values)).half())  # so that nothing is rounded
    live = explorer_export.write_model(net, tmp_path / explorer_export.MODEL)
    payload = explorer_static.without_images("small", live)
    for name in explorer_export._SCRIPTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(explorer_export._STATIC / name)
    (tmp_path / "index.html").write_text(
        f'<meta charset="utf-8"><script src="explorer.js" defer></script>{explorer_static.page(payload)}'
    )
    page = opened(tmp_path / "index.html")
    image = np.arange(24 * 24, dtype=np.uint8).reshape(24, 24)
    found = page.evaluate(
        """async ([live, grey, text]) => {
            await new Promise(onload => document.head.append(
                Object.assign(document.createElement('script'), {src: 'explorer/live.js', onload})));
            const model = await echovlsm.load('./', live, () => {});
            return Array.from(await model.logits({grey: Uint8Array.from(grey), width: 24, height: 24}, text));
        }""",
        [live, image.ravel().tolist(), SENTENCES[0]],
    )
    with torch.no_grad():
        expected = net.eval()(net.normalise(image[None]), *net.tokenize([SENTENCES[0]]))[0]
    assert expected.std() > 0.1
    assert np.abs(np.array(found).reshape(24, 24) - expected.numpy()).max() < 1e-4
