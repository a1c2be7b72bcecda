"""Folders of weights of full size: as large as the released ones, and made from original files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from echovlsm import models
from echovlsm.models import full_weights
from echovlsm.models.common import ModelError
from echovlsm.models.cris import CRIS
from tests.conftest import ROOT, WEIGHTS

CRIS_TINY = ROOT / "data" / "weights" / "cris-tiny"


@pytest.mark.parametrize(("name", "millions", "side"), [("clipseg", 150.7, 352), ("cris", 146.8, 416)])
def test_random_models_have_the_size_of_the_released_ones(name: str, millions: float, side: int) -> None:
    with torch.device("meta"):
        model = full_weights.random_model(name, full_weights.read_tokenizer(WEIGHTS))
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == millions
    assert model.image_size == side


def test_an_original_file_of_either_kind_becomes_a_folder(tmp_path: Path) -> None:
    tiny = models.load("cris", CRIS_TINY)
    tokenizer = full_weights.read_tokenizer(CRIS_TINY)
    whole = {name: value.contiguous() for name, value in tiny.state_dict().items()}
    clip = {
        name.removeprefix("backbone."): value
        for name, value in whole.items()
        if name.startswith("backbone.") and ".connect." not in name
    }
    for kind, tensors in (("cris", whole), ("clip", clip)):
        save_file(tensors, tmp_path / f"{kind}.safetensors")
        made = full_weights.read_original(tmp_path / f"{kind}.safetensors", tokenizer, config=tiny.config)
        folder = full_weights.write_folder(made, tmp_path / kind)
        again = models.load("cris", folder)
        same = {name: torch.equal(value, whole[name]) for name, value in again.state_dict().items()}
        encoders = [name for name in same if name.startswith("backbone.") and ".connect." not in name]
        assert all(same[name] for name in encoders)
        assert all(same.values()) == (kind == "cris")
        assert asdict(again.config) == asdict(tiny.config)
    theirs = full_weights.read_original(
        tmp_path / "cris.safetensors", tokenizer, config=tiny.config, authors=True
    )
    assert asdict(theirs.config) == asdict(tiny.config) | {"padding": "authors", "enlarging": "authors"}
    again = full_weights.read_original(tmp_path / "clip.safetensors", tokenizer, config=tiny.config)
    assert torch.equal(again.proj.state_dict()["txt.weight"], made.proj.state_dict()["txt.weight"])


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load("cris", CRIS_TINY)
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="is there already"):
        full_weights.write_folder(model, tmp_path / "there")

    def breaks(self: CRIS, folder: Path) -> None:
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text("{")
        raise OSError("disk full")

    monkeypatch.setattr(CRIS, "save_pretrained", breaks)
    with pytest.raises(OSError, match="disk full"):
        full_weights.write_folder(model, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_wrong_name_file_or_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="choose one of clipseg, cris"):
        full_weights.random_model("unet", full_weights.read_tokenizer(WEIGHTS))
    with pytest.raises(ModelError, match="bpe_simple_vocab"):
        full_weights.read_tokenizer(merges=tmp_path / "none.gz")
    with pytest.raises(
        ModelError, match=r"--tokenizer: .* has no tokenizer\.json; give another folder, a hub id"
    ):
        full_weights.read_tokenizer(tmp_path)


def test_a_file_given_as_weights_says_how_to_make_a_folder(tmp_path: Path) -> None:
    (tmp_path / "cris.pth").write_bytes(b"")
    with pytest.raises(ModelError, match="echovlsm weights convert"):
        models.load("cris", tmp_path / "cris.pth")
