"""A new model is one file: dropped into the room it is known everywhere, and loads like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echovlsm import models
from echovlsm.models.common import class_of
from tests.conftest import ROOT

NEWCOMER = '''
"""Colours by letters: a model so small that it fits a test."""

from pathlib import Path

import torch
from torch import nn

from echovlsm.models.base import VisionLanguageModel


class Letters:
    """A tokenizer of CLIP's interface: one token a letter."""

    def __call__(self, texts, padding, return_tensors):
        ids = nn.utils.rnn.pad_sequence([torch.tensor([ord(c) % 128 for c in t]) for t in texts], True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class MyModel(VisionLanguageModel):
    name = "mymodel"

    def __init__(self, encoders):
        super().__init__(Letters(), (0.5,) * 3, (0.5,) * 3, encoders, image_size=32, longest=99)
        self.backbone = nn.ModuleDict({"image": nn.Conv2d(3, 4, 3, padding=1), "text": nn.Embedding(128, 4)})
        self.backbone.requires_grad_(encoders == "unfrozen")
        self.scale = nn.Parameter(torch.ones(1))

    @classmethod
    def from_pretrained(cls, weights, encoders="unfrozen"):
        model = cls(encoders)
        model.load_state_dict(torch.load(Path(weights) / "weights.pt", weights_only=True))
        return model

    def encode_image(self, pixel_values):
        with self.encoder_gradients():
            return (self.backbone["image"](pixel_values),)

    def text_features(self, input_ids, attention_mask=None):
        with self.encoder_gradients():
            return (self.backbone["text"](input_ids).mean(dim=1),)

    def decode(self, activations, features):
        (maps,), (words,) = activations, features
        each = len(words) // len(maps)
        return self.scale * torch.einsum("nchw,nc->nhw", maps.repeat_interleave(each, dim=0), words)


Model = MyModel
'''

USE = """
import sys
from pathlib import Path

from echovlsm.models import MODELS
from echovlsm.study.parameters import CHOICES, check_values

package, weights = Path(sys.argv[1]), Path(sys.argv[2])
assert Path(sys.modules["echovlsm"].__file__).is_relative_to(package)
assert MODELS == ("clipseg", "cris", "mymodel"), MODELS
assert CHOICES["model"] == ("clipseg", "cris", "mymodel", "unet"), CHOICES["model"]
check_values({"model": "mymodel"}, {"model": "str"}, "here")
assert "torch" not in sys.modules

import pandas as pd
import torch

from echovlsm import models
from echovlsm.cohort import read_cohort
from echovlsm.training import fit, make_triplets, predict

torch.manual_seed(0)
made = models.common.class_of("mymodel")("unfrozen")
torch.save(made.state_dict(), weights / "weights.pt")
net = models.load("mymodel", weights, "frozen")
assert torch.equal(net.scale, made.scale)
ids, mask = net.tokenize(["Atrium.", "Cavity of the heart."])
images = torch.rand(3, 3, 32, 32)
assert net(images, ids.expand(3, 2, -1), mask.expand(3, 2, -1)).shape == (3, 2, 32, 32)
refused = (({"image_size": 64}, "32 pixels only"), ({"encoders": "lora"}, "no layers for adapters"))
for options, why in refused:
    try:
        models.load("mymodel", weights, **options)
    except models.ModelError as error:
        assert why in str(error), error
    else:
        raise AssertionError(why)

frames = read_cohort(sys.argv[3])
triplets = make_triplets(frames[frames["split"] == "val"], "P1", net)
before = net.scale.item()
history = fit(net, triplets, triplets, weights / "state", epochs=2, progress=False)
assert len(history) == 2 and net.scale.item() != before
assert predict(net, triplets).shape == (len(triplets), 3, 32, 32)
print("all of it")
"""


def test_a_new_model_is_one_file(phantom_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "echovlsm", tmp_path / "echovlsm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "echovlsm" / "models" / "mymodel.py").write_text(NEWCOMER)
    (tmp_path / "use.py").write_text(USE)  # its folder comes first on the path
    told = subprocess.run(
        [sys.executable, "use.py", str(tmp_path), str(tmp_path), str(phantom_cohort)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.strip() == "all of it", told.stderr[-3000:]


@pytest.mark.parametrize("name", [*models.MODELS, *models.REFERENCES])
def test_a_models_name_is_its_files(name: str) -> None:
    assert class_of(name).name == name


def test_a_reference_is_no_vision_language_model() -> None:
    assert models.REFERENCES == ("unet",)
    assert not set(models.REFERENCES) & set(models.MODELS)
    assert not hasattr(class_of("unet"), "text_features")
