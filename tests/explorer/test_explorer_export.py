"""A run exported to a page: what is in it, what it changes, and what is never passed on."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from echovlsm import models
from echovlsm.cohort.images import resize_image
from echovlsm.explorer import asking as explorer
from echovlsm.explorer import export as explorer_export
from echovlsm.explorer.asking import Explorer
from echovlsm.explorer.images import ExplorerError
from echovlsm.phantom.cohort import draw_cohort_patient, simulate
from tests.conftest import ROOT, WEIGHTS, call


def write_run(folder: Path, cohort: Path, *, quiet: bool = False, **others: Any) -> Path:
    """A run at 64 px whose weights have more than 16 bits; of a `quiet` one every answer is nothing."""
    net = models.load("clipseg", WEIGHTS, image_size=64)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in net.parameters():
            values *= 1 + 0.01 * torch.randn(values.shape, generator=draw)
        # about a quarter of an image is outlined, whatever the weights have learned
        image = simulate(draw_cohort_patient(0, 0), "4CH", "ED", seed=0, size=64).image
        words = net.tokenize(["Left atrium cavity of the heart."])
        logits = net.eval()(net.normalise(resize_image(image, 64)[None]), *words)
        net.segmenter.decoder.transposed_convolution.bias -= 1000 if quiet else logits.quantile(0.75)
    folder.mkdir(parents=True)
    net.save_pretrained(folder / "weights")
    parameters = {"model": "clipseg", "prompt": "P1", "encoders": "unfrozen", "seed": 1, "profile": "smoke"}
    parameters |= {"cohort": str(cohort), "weights": str(WEIGHTS)}
    record = {"status": "complete", "scale": "smoke", "cohort": "phantom-test", "kind": "phantom"}
    record |= {"strategy": "real", "val_dice": 0.5, "parameters": parameters} | others
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantom_cohort: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", phantom_cohort)


def _as(run: Path, folder: Path, **changes: Any) -> Path:
    """The same weights with another record."""
    folder.mkdir(parents=True)
    (folder / "weights").symlink_to(run / "weights")
    record = yaml.safe_load((run / "run.yaml").read_text())
    changes["parameters"] = record["parameters"] | changes.get("parameters", {})
    (folder / "run.yaml").write_text(yaml.safe_dump(record | changes))
    return folder


def _registered(script: Path) -> list[Any]:
    return json.loads("[" + re.fullmatch(r"echovlsm\.register\((.*)\);\n", script.read_text())[1] + "]")


def test_a_page_holds_the_weights_in_16_bits_and_says_what_that_changes(run: Path, tmp_path: Path) -> None:
    page, warning = explorer_export.export(run, tmp_path / "page", images=1)
    assert warning == ""
    folder = page.parent / explorer_export.MODEL
    identity, part, model = _registered(folder / "model.js")
    assert part == "model"
    pieces = [_registered(folder / f"part-{number}.js") for number in range(model["parts"])]
    assert {piece[0] for piece in pieces} == {identity}
    stored = np.frombuffer(b"".join(base64.b64decode(piece[2]) for piece in pieces), "<f2")
    assert 2 * len(stored) == model["bytes"]
    state = models.load("clipseg", run / "weights").segmenter.state_dict()
    name = "clip.text_model.encoder.layers.1.mlp.fc1.weight"
    where = model["tensors"][name]
    found = stored[where["start"] : where["start"] + where["length"]]
    assert np.array_equal(found, state[name].half().numpy().ravel())
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["model"] == identity
    assert 0 < parity["logits_apart_mean"] < 0.02 * (parity["logits_highest"] - parity["logits_lowest"])
    assert parity["mask_pixels_changed"] < 0.001
    text = page.read_text()
    assert f'"id":"{identity}"' in text
    assert not re.search(r"https?://(?!www.w3.org)", text)
    for script in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert script.startswith("data:") or (page.parent / script).is_file()


def test_a_model_that_learned_from_patients_is_passed_on_only_when_asked_and_without_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = _as(run, tmp_path / "runs" / "patients", kind="real", cohort="camus")
    finetuned = _as(run, tmp_path / "runs" / "finetuned", parameters={"weights": str(patients / "weights")})
    unsaid = _as(run, tmp_path / "runs" / "unsaid", kind=None)
    for each in (patients, finetuned, unsaid):
        with pytest.raises(ExplorerError, match=r"learned from real images .* give --real"):
            explorer_export.export(each, tmp_path / "page")
    monkeypatch.setenv("ECHOVLSM_ROOT", str(tmp_path / "project"))
    for inside in (tmp_path / "project", tmp_path / "project" / "data" / "x"):
        with pytest.raises(ExplorerError, match="passes on no model that learned from patients"):
            explorer_export.export(patients, inside, real=True)
    page, warning = explorer_export.export(patients, tmp_path / "page", real=True)
    assert "CC BY-NC-SA 4.0" in warning
    assert warning in page.read_text()
    assert "data:image" not in page.read_text()
    assert (page.parent / explorer_export.MODEL / "model.js").is_file()


def test_a_book_gets_the_model_of_an_artificial_run_only(
    run: Path, tmp_path: Path, phantom_frames: pd.DataFrame
) -> None:
    ask = Explorer(phantom_frames, explorer.load_nets(None, weights=run / "weights"))
    static = tmp_path / "static"
    row = {"model": "clipseg", "path": str(run)}
    live = explorer_export.publish(row, ask, static)
    assert live["megabytes"] == pytest.approx(9.6, abs=0.5)
    model = static / live["folder"] / "model.js"
    assert model.is_file()
    patients = _as(run, tmp_path / "patients", kind="real")
    for other in (None, {**row, "model": "cris"}, {**row, "path": str(patients)}):
        assert explorer_export.publish(other, ask, static) is None
        assert not model.exists()
        explorer_export.publish(row, ask, static)
    ask.meta = {**ask.meta, "kind": "real"}
    assert explorer_export.publish(row, ask, static) is None


def test_what_a_page_cannot_run_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExplorerError, match="is no complete run with weights"):
        explorer_export.export(tmp_path / "nothing")
    with pytest.raises(ExplorerError, match="is a cris; only CLIPSeg runs in a page"):
        explorer_export.export(_as(run, tmp_path / "cris", parameters={"model": "cris"}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(ExplorerError, match="is no exported page; name another folder"):
        explorer_export.export(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"
    net = models.load("clipseg", run / "weights")
    monkeypatch.setattr(explorer_export, "MAX_BYTES", 1_000_000)
    with pytest.raises(ExplorerError, match="take 7 MB in 16 bits, a page may hold 1"):
        explorer_export.write_model(net, tmp_path / "large")
    monkeypatch.undo()
    net.segmenter.config.use_complex_transposed_convolution = True
    with pytest.raises(ExplorerError, match="simple transposed convolution"):
        explorer_export.write_model(net, tmp_path / "complex")


def test_the_command_exports_or_says_why_not(run: Path, tmp_path: Path) -> None:
    done = call("explorer", "export", run, "--out", tmp_path / "page", "--images", 1)
    assert done.exit_code == 0, done.output
    assert Path(done.output.strip()).name == "index.html"
    again = call("explorer", "export", tmp_path)
    assert again.exit_code == 2
    assert "error: run: " in again.output


def test_the_vendored_tokenizer_is_the_packages_own() -> None:
    """Its hash stands in VENDOR.txt: what is between our first two lines and our last is the file of npm."""
    import hashlib

    vendor = ROOT / "book" / "_static" / "vendor"
    lines = (vendor / "tokenizers.js").read_text().split("\n")
    digest = hashlib.sha256("\n".join(lines[2:-2]).encode()).hexdigest()
    assert f"{digest}  tokenizers.js" in (vendor / "VENDOR.txt").read_text()
