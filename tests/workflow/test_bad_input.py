"""A catalogue of bad input: each is refused in one sentence that names it and the remedy, and leaves nothing.

An entry spoils something in a folder and gives the call that must fail. The message must name the file or
parameter and say what to do; the folder must be afterwards, byte for byte, what it was before the call.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from book.tools.freshness import BookError
from echovlsm import STRUCTURES, models
from echovlsm.base.run_folder import RunError, RunFolder
from echovlsm.cohort.check import CohortWarning
from echovlsm.cohort.files import CohortError, RangeError
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import read_cohort
from echovlsm.cohort.sectors import LabelMapError
from echovlsm.cohort.write import write_cohort
from echovlsm.evaluation.clinical import ClinicalError, measure
from echovlsm.evaluation.runs import EvaluationError, choose_images, kept_run
from echovlsm.evaluation.scoring import ScoreError, score, score_table
from echovlsm.evaluation.statistics import bootstrap_interval, compare
from echovlsm.explorer.asking import choose_run, trained_runs
from echovlsm.explorer.images import ExplorerError
from echovlsm.models.common import ModelError
from echovlsm.phantom.cohort import write_phantom_cohort
from echovlsm.prompts.shapes import name_shapes
from echovlsm.prompts.templates import (
    PromptError,
    make_prompt,
    make_prompts,
)
from echovlsm.prompts.vqa import ShapeError
from echovlsm.published.scores import PublishedError, load_scores
from echovlsm.study.execution import execute
from echovlsm.study.grid import collect, read_grid
from echovlsm.study.grid.cells import GridError
from echovlsm.study.parameters import (
    ParameterError,
    as_typed,
    check_values,
    read_profile,
)
from echovlsm.synthesis.labels import PerturbedMaps
from echovlsm.synthesis.sampling import ensure_cohort, sample_cohort
from echovlsm.synthesis.weights import WeightsError, load_denoiser
from echovlsm.training.loop import fit
from echovlsm.training.strategies import (
    StrategyError,
    limit_patients,
    strategy_triplets,
)
from tests.conftest import ROOT, WEIGHTS

PATIENT = "patient0001"
PICTURE = f"database_nifti/{PATIENT}/{PATIENT}_2CH_ED.nii.gz"
MASK = f"database_nifti/{PATIENT}/{PATIENT}_2CH_ED_gt.nii.gz"
CFG = f"database_nifti/{PATIENT}/Info_2CH.cfg"
NOTEBOOK = ROOT / "notebooks" / "04_training.ipynb"
META = {"name": "little", "kind": "phantom"}


class Place:
    """A folder to spoil things in."""

    def __init__(self, path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.template, self.monkeypatch = path, template, monkeypatch
        path.mkdir()

    def cohort(self) -> Path:
        """A copy of the phantom cohort of two patients, the first in training, the second in testing."""
        return Path(shutil.copytree(self.template, self.path / "cohort"))

    def weights(self, name: str) -> Path:
        """A copy of tiny weights."""
        return Path(shutil.copytree(ROOT / "data" / "weights" / name, self.path / name))

    def text(self, name: str, text: str) -> Path:
        """A file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Entry:
    """One bad input."""

    name: str
    prepare: Callable[[Place], Callable[[], object]]
    error: type[BaseException]
    names: str
    remedy: str


CATALOGUE: list[Entry] = []


def bad(error: type[BaseException], names: str, remedy: str) -> Callable[[Any], Any]:
    """Put a function into the catalogue: it spoils something and returns the call that must fail."""

    def register(prepare: Callable[[Place], Callable[[], object]]) -> Any:
        CATALOGUE.append(Entry(prepare.__name__, prepare, error, names, remedy))
        return prepare

    return register


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, hidden ones too, and what is in it."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad-input") / "phantom"
    return write_phantom_cohort(root, 2, seed=5, size=64, splits=(0.5, 0.0, 0.5), progress=False, workers=1)


# --- what the entries share ------------------------------------------------------------------------------


def save(path: Path, values: np.ndarray) -> None:
    """A picture as in the public release: any type, axes (x, y)."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([-1.0, -1.0, 1.0, 1.0])), path)


def change_mask(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write the first patient's first mask anew."""
    row = read_cohort(root).query("view == '2CH' and phase == 'ED'").iloc[0]
    save(root / MASK, change(load_labels(row)))
    return root


def first_row(root: Path) -> dict[str, Any]:
    """The frames table's row of the first picture, without reading the files."""
    return {"image": str(root / PICTURE), "labels": str(root / MASK)}


def frame(**changes: Any) -> dict[str, Any]:
    """A frame that can be written."""
    image, labels = np.full((8, 6), 9, np.uint8), np.zeros((8, 6), np.uint8)
    good = {"patient": "a", "view": "2CH", "phase": "ED", "split": "train", "image": image, "labels": labels}
    return good | changes


def writing(place: Place, *rows: Mapping[str, Any], **options: Any) -> Callable[[], object]:
    """A call that writes a cohort of these frames."""
    return partial(write_cohort, place.path / "written", rows, META, **options)


def legacy(place: Place) -> Path:
    """An old release of one patient with one picture: header and raw file."""
    import SimpleITK as sitk  # noqa: N813

    folder = place.path / "training" / PATIENT
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.full((1, 8, 6), 7, np.uint8))
    sitk.WriteImage(image, str(folder / f"{PATIENT}_2CH_ED.mhd"))
    return folder / f"{PATIENT}_2CH_ED.mhd"


def spoil_json(file: Path, **changes: Any) -> Path:
    """Change fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


def cut(file: Path, share: float = 0.6) -> Path:
    """Keep the first part of a file only."""
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    return file


def cell(folder: Path, seed: int, **changes: Any) -> RunFolder:
    """A complete cell of the grid of `grid_file`."""
    run = RunFolder(folder / f"clipseg-P1-real-unfrozen-seed{seed}")
    row = {"patient": "a", "structure": "x", "dice": 0.5, "model": "clipseg", "prompt": "P1"}
    run.write_table("scores.parquet", pd.DataFrame([row]))
    history = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "val_dice": [0.4, 0.5], "seconds": [2.0, 2.0]}
    run.write_table("history.csv", pd.DataFrame(history))
    record = {"status": "complete", "scale": "smoke", "code_hash": "c", "seconds": 8.0}
    record |= {"strategy": "real", "evaluation": {"data_hash": "d", "seconds": 2.0}}
    run.write_yaml("run.yaml", record | changes)
    return run


def grid_file(place: Place, **changes: Any) -> Path:
    """A grid of two cells."""
    block = {"models": ["clipseg"], "prompts": ["P1"], "strategies": ["real"], "encoders": ["unfrozen"]}
    content = {
        "parameters": {},
        "models": {"clipseg": {"weights": "w"}},
        "blocks": [block | {"seeds": [1, 2]}],
    }
    return place.text("grid.yaml", yaml.safe_dump(content | changes))


def scores(**changes: Any) -> pd.DataFrame:
    """A scores table of one mask under two strategies."""
    row = {"patient": "a", "view": "2CH", "phase": "ED", "structure": "x", "model": "m", "prompt": "P1"}
    return pd.DataFrame([row | {"strategy": s, "seed": 1, "dice": 0.5} | changes for s in ("real", "joint")])


# --- pictures and masks ----------------------------------------------------------------------------------


@bad(CohortError, rf"{PATIENT}_2CH_ED\.nii\.gz", "copy it again")
def a_nifti_whose_pixels_end_early(place: Place) -> Callable[[], object]:
    root = place.cohort()
    content = gzip.decompress((root / PICTURE).read_bytes())
    (root / PICTURE).write_bytes(gzip.compress(content[:-100]))
    return partial(load_image, first_row(root))


@bad(CohortError, rf"unreadable file: .*{PATIENT}_2CH_ED\.nii\.gz", "copy it again")
def an_empty_nifti(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / PICTURE).write_bytes(b"")
    return partial(read_cohort, root, strict=True)


@bad(CohortError, rf"{PATIENT}_2CH_ED_gt\.nii\.gz", "copy it again")
def a_gzip_cut_in_the_middle(place: Place) -> Callable[[], object]:
    root = place.cohort()
    cut(root / MASK)
    return partial(read_cohort, root, strict=True)


@bad(CohortError, rf"{PATIENT}_2CH_ED\.nii\.gz", "copy it again")
def a_gzip_with_a_wrong_checksum(place: Place) -> Callable[[], object]:
    root = place.cohort()
    content = bytearray((root / PICTURE).read_bytes())
    content[-6] ^= 255
    (root / PICTURE).write_bytes(content)
    return partial(load_image, first_row(root))


@bad(CohortError, rf"{PATIENT}_2CH_ED\.nii\.gz", "copy it again")
def a_text_file_in_a_pictures_place(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / PICTURE).write_text("<html>Not found</html>")
    return partial(load_image, first_row(root))


@bad(CohortError, rf"{PATIENT}_2CH_ED\.nii\.gz", "export one frame")
def a_film_in_a_pictures_place(place: Place) -> Callable[[], object]:
    root = place.cohort()
    save(root / PICTURE, np.zeros((5, 8, 6), np.uint8))
    return partial(load_image, first_row(root))


@bad(CohortError, rf"{PATIENT}_2CH_ED\.raw", "copy it again")
def a_metaimage_without_its_raw_file(place: Place) -> Callable[[], object]:
    header = legacy(place)
    header.with_suffix(".raw").unlink()
    return partial(load_image, {"image": str(header)})


@bad(CohortError, rf"{PATIENT}_2CH_ED\.raw", "copy it again")
def a_metaimage_whose_raw_file_is_cut(place: Place) -> Callable[[], object]:
    header = legacy(place)
    cut(header.with_suffix(".raw"))
    return partial(read_cohort, place.path, strict=True)


@bad(CohortError, rf"{PATIENT}_2CH_ED\.mhd", "copy it again")
def a_metaimage_header_cut_off(place: Place) -> Callable[[], object]:
    header = legacy(place)
    cut(header, 0.3)
    return partial(load_image, {"image": str(header)})


@bad(CohortError, rf"shape mismatch: .*{PATIENT}_2CH_ED_gt\.nii\.gz", "export the mask at the image's size")
def a_mask_of_another_size(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: labels[:-3])
    return partial(read_cohort, root, strict=True)


@bad(RangeError, rf"{PATIENT}_2CH_ED_gt\.nii\.gz.*not whole numbers", "export it without interpolation")
def a_float_mask_with_1_4(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: np.where(labels == 1, 1.4, labels).astype(np.float32))
    return partial(load_labels, first_row(root))


@bad(RangeError, rf"{PATIENT}_2CH_ED_gt\.nii\.gz.*to 4, expected labels 0-3", "correct the file")
def a_mask_with_label_4(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: np.where(labels == 3, 4, labels).astype(np.uint8))
    return partial(load_labels, first_row(root))


@bad(ShapeError, rf"{PATIENT} 2CH ED left ventricular cavity: the mask is empty", "missing='omit'")
def an_all_background_mask_that_has_no_shape(place: Place) -> Callable[[], object]:
    frames = read_cohort(change_mask(place.cohort(), np.zeros_like))
    return partial(name_shapes, frames, progress=False)


@bad(ClinicalError, f"{PATIENT}: no left ventricular cavity", "leave it out")
def an_all_background_mask_that_has_no_volume(place: Place) -> Callable[[], object]:
    return partial(measure, np.zeros((8, 8), np.uint8), (0.3, 0.3), PATIENT)


@bad(CohortError, rf"{PATIENT}_2CH_ED.*no mask", "leave out rows whose labels is NA")
def a_picture_without_a_mask(place: Place) -> Callable[[], object]:
    return partial(load_labels, first_row(place.cohort()) | {"labels": pd.NA})


@bad(LabelMapError, f"{PATIENT} 2CH ED: no ultrasound sector", "leave this image out")
def a_picture_of_constants(place: Place) -> Callable[[], object]:
    root = place.cohort()
    save(root / PICTURE, np.zeros_like(load_image(first_row(root))))
    return partial(list, PerturbedMaps(read_cohort(root)[:1], size=32))


@bad(RangeError, rf"{PATIENT}_2CH_ED\.nii\.gz.*NaN", "export it again")
def a_picture_of_nan(place: Place) -> Callable[[], object]:
    root = place.cohort()
    save(root / PICTURE, np.full((64, 78), np.nan, np.float32))
    return partial(load_image, first_row(root))


@bad(RangeError, rf"{PATIENT}_2CH_ED\.nii\.gz.*-1024", "expected grey values 0-255; correct the file")
def a_picture_in_hounsfield_units(place: Place) -> Callable[[], object]:
    root = place.cohort()
    save(root / PICTURE, np.full((64, 78), -1024, np.int16))
    return partial(load_image, first_row(root))


# --- cohorts ---------------------------------------------------------------------------------------------


@bad(CohortError, r"missing cfg: .*Info_2CH\.cfg", "copy it again; without it sex, age and quality are NA")
def a_missing_cfg(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).unlink()
    return partial(read_cohort, root, strict=True)


@bad(CohortWarning, r"malformed cfg: .*Info_2CH\.cfg: line 1 is not 'key: value'", "correct the line")
def a_malformed_cfg(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).write_text("Sex F\nAge: 61\n")
    return partial(read_cohort, root)


@bad(CohortWarning, r"Info_2CH\.cfg: line 2: Age is 'n/a', expected whole years", "correct the line, or take")
def an_age_that_is_not_one(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).write_text("Sex: F\nAge: n/a\nImageQuality: Good\n")
    return partial(read_cohort, root)


@bad(CohortError, r"Info_2CH\.cfg: line 1: Sex is 'X', expected F or M", "correct the line, or take it out")
def a_sex_that_is_not_one(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).write_text("Sex: X\nAge: 61\n")
    return partial(read_cohort, root, strict=True)


@bad(CohortError, r"Info_2CH\.cfg: cannot be read as text", "correct the line")
def a_cfg_that_is_no_text(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).write_bytes(b"Sex: \xff\xfe\n")
    return partial(read_cohort, root, strict=True)


@bad(CohortError, rf"patient in two splits: .*{PATIENT}: listed in subgroup_t", "take it out of one of them")
def a_patient_in_two_splits(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "database_split/subgroup_testing.txt").write_text(f"{PATIENT}\npatient0002\n")
    return partial(read_cohort, root, strict=True)


@bad(CohortWarning, rf"patient in no split: .*{PATIENT}", "add it to one file of database_split")
def a_patient_in_no_split(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "database_split/subgroup_training.txt").write_text("")
    return partial(read_cohort, root)


@bad(CohortError, "patient absent: .*patient0009", "copy its folder, or take it off the list")
def a_listed_patient_without_a_folder(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "database_split/subgroup_training.txt").write_text(f"{PATIENT}\npatient0009\n")
    return partial(read_cohort, root, strict=True)


@bad(CohortError, r"subgroup_training\.txt: '\.\./patient0001'", "each holds one patient's folder name")
def a_split_file_that_leads_elsewhere(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "database_split/subgroup_training.txt").write_text(f"../{PATIENT}\n{PATIENT}\n")
    return partial(read_cohort, root, strict=True)


@bad(CohortError, r"database_split: subgroup_testing\.txt not found", "must lie beside database_nifti/")
def a_missing_split_file(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "database_split/subgroup_testing.txt").unlink()
    return partial(read_cohort, root)


@bad(CohortError, r"cohort\.yaml is missing", "copy it whole")
def an_artificial_cohort_without_provenance(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "cohort.yaml").unlink()
    return partial(read_cohort, root)


@bad(CohortError, r"cohort\.yaml: not readable as YAML", "copy it again")
def a_broken_cohort_yaml(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "cohort.yaml").write_text("name: [phantom\nkind: phantom\n")
    return partial(read_cohort, root)


@bad(CohortError, r"cohort\.yaml: kind is 'genuine'", "it must be one of real, phantom, synthetic")
def a_cohort_of_unknown_kind(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "cohort.yaml").write_text("name: phantom\nkind: genuine\n")
    return partial(read_cohort, root)


@bad(CohortError, r"cohort\.yaml: name is '<b>hearts</b>'", "choose another name")
def a_cohort_whose_name_is_markup(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / "cohort.yaml").write_text("name: <b>hearts</b>\nkind: phantom\n")
    return partial(read_cohort, root)


@bad(CohortError, "cohort: not a whole cohort, writing it never finished", "write it again")
def a_cohort_whose_writing_never_finished(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / ".incomplete").write_text("")
    return partial(read_cohort, root)


@bad(CohortError, "nowhere: no such folder", "give the folder that holds database_nifti/ or training/")
def a_cohort_folder_that_is_not_there(place: Place) -> Callable[[], object]:
    return partial(read_cohort, place.path / "nowhere")


@bad(CohortError, "neither database_nifti/", r"did you mean .*/cohort\?")
def a_folder_above_the_cohort(place: Place) -> Callable[[], object]:
    place.cohort()
    return partial(read_cohort, place.path)


@bad(CohortError, "split is 'papers'", "it must be 'official', 'paper' or 'any'")
def an_unknown_way_to_split(place: Place) -> Callable[[], object]:
    return partial(read_cohort, place.cohort(), split="papers")


@bad(CohortError, "split='paper' is defined by CAMUS's patient numbers", "use split='official'")
def the_papers_split_of_a_phantom(place: Place) -> Callable[[], object]:
    return partial(read_cohort, place.cohort(), split="paper")


@bad(EvaluationError, "no val patient", "--split all scores every patient")
def a_split_without_patients(place: Place) -> Callable[[], object]:
    return partial(choose_images, place.cohort(), "val")


@bad(EvaluationError, "--split: 'tests' is not known", "choose one of auto, test")
def an_unknown_split_to_score(place: Place) -> Callable[[], object]:
    return partial(choose_images, place.cohort(), "tests")


# --- writing ---------------------------------------------------------------------------------------------


@bad(CohortError, r"frame 2 \(a 2CH ED\): this frame was given before", "must be unique")
def a_frame_written_twice(place: Place) -> Callable[[], object]:
    return writing(place, frame(), frame())


@bad(CohortError, r"frame 2 \(a 2CH ES\): the patient is in train and in test", "choose one")
def a_patient_written_into_two_splits(place: Place) -> Callable[[], object]:
    return writing(place, frame(), frame(phase="ES", split="test"))


@bad(CohortError, r"frame 1 \(a 2CH ED\): image is float64", "it must be a numpy array uint8")
def a_picture_of_nan_to_write(place: Place) -> Callable[[], object]:
    return writing(place, frame(image=np.full((8, 6), np.nan)))


@bad(CohortError, r"frame 2 \(b 2CH ED\): labels go up to 4", "only 0-3 have a meaning")
def label_4_to_write_after_a_good_frame(place: Place) -> Callable[[], object]:
    return writing(place, frame(), frame(patient="b", labels=np.full((8, 6), 4, np.uint8)))


@bad(CohortError, r"image \(8, 6\) and labels \(7, 6\) differ in shape", "bring both to one size")
def a_mask_of_another_size_to_write(place: Place) -> Callable[[], object]:
    return writing(place, frame(labels=np.zeros((7, 6), np.uint8)))


@bad(CohortError, "age is 'n/a'", "it must be whole years, 0 to 120, or NA")
def an_age_to_write_that_is_not_one(place: Place) -> Callable[[], object]:
    return writing(place, frame(age="n/a"))


@bad(CohortError, "sex is 'X'", "it must be F or M, or NA")
def a_sex_to_write_that_is_not_one(place: Place) -> Callable[[], object]:
    return writing(place, frame(sex="X"))


@bad(CohortError, r"patient is '\.\./b'", "it must be letters, digits, '-' and '_'")
def a_patient_whose_name_leads_elsewhere(place: Place) -> Callable[[], object]:
    return writing(place, frame(), frame(patient="../b"))


@bad(CohortError, "there is no frame to write", "a cohort needs at least one")
def a_cohort_of_nothing(place: Place) -> Callable[[], object]:
    return writing(place)


@bad(CohortError, "written: exists already", "choose another folder or give overwrite=True")
def a_cohort_over_another(place: Place) -> Callable[[], object]:
    writing(place, frame())()
    return writing(place, frame(patient="b"))


@bad(CohortError, r"written: has no cohort\.yaml, so it is not replaced", "move it away yourself")
def a_cohort_over_a_folder_of_somebody_else(place: Place) -> Callable[[], object]:
    place.text("written/thesis.tex", "years of work")
    return writing(place, frame(), overwrite=True)


@bad(CohortError, "file/written: no folder can be made there", "choose another place")
def a_cohort_below_a_file(place: Place) -> Callable[[], object]:
    place.text("file", "")
    return partial(write_cohort, place.path / "file" / "written", [frame()], META)


@bad(CohortError, "written: no folder can be made there .*Permission", "see to its permissions")
def a_cohort_in_a_read_only_folder(place: Place) -> Callable[[], object]:
    # root may write anywhere, so that the system's answer to everybody else is played
    make = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name.startswith(".written.partial"):
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *arguments, **options)

    place.monkeypatch.setattr(Path, "mkdir", refuse)
    return writing(place, frame())


@bad(RunError, "file/run cannot be made", "name another `run` folder, or see to its permissions")
def a_run_below_a_file(place: Place) -> Callable[[], object]:
    place.text("file", "")
    return partial(RunFolder(place.path / "file" / "run").start, {"seed": 1})


# --- parameters ------------------------------------------------------------------------------------------


def executing(place: Place, **parameters: Any) -> Callable[[], object]:
    """A call that executes the training notebook."""
    return partial(execute, NOTEBOOK, place.path / "out" / "04_training.ipynb", parameters, progress=False)


@bad(ParameterError, "unknown parameter `promt`", "did you mean `prompt`")
def an_unknown_parameter(place: Place) -> Callable[[], object]:
    return executing(place, promt="P1")


@bad(ParameterError, "`epochs` must be int, not str 'ten'", "must be int")
def a_parameter_of_the_wrong_type(place: Place) -> Callable[[], object]:
    return executing(place, epochs="ten")


@bad(ParameterError, "`epochs` is -3", "it must be at least 1")
def a_negative_count(place: Place) -> Callable[[], object]:
    return executing(place, epochs=-3)


@bad(ParameterError, "`batch_size` is 0", "it must be at least 1")
def a_count_of_zero(place: Place) -> Callable[[], object]:
    return executing(place, batch_size=0)


@bad(ParameterError, "`learning_rate` is nan", "give a finite number")
def a_rate_that_is_no_number(place: Place) -> Callable[[], object]:
    return executing(place, learning_rate=float("nan"))


@bad(ParameterError, "`learning_rate` is -0.1", "it must be above 0")
def a_negative_rate(place: Place) -> Callable[[], object]:
    return executing(place, learning_rate=-0.1)


@bad(ParameterError, "`model` is 'clipsegg'", "did you mean 'clipseg'")
def an_unknown_model_as_a_parameter(place: Place) -> Callable[[], object]:
    return executing(place, model="clipsegg")


@bad(ParameterError, "`strategy` is 'sythetic'", "did you mean 'synthetic'")
def an_unknown_strategy_as_a_parameter(place: Place) -> Callable[[], object]:
    return executing(place, strategy="sythetic")


@bad(ParameterError, "`prompt` is 'P8'", "allowed: P0, P1")
def an_unknown_prompt_level_as_a_parameter(place: Place) -> Callable[[], object]:
    return executing(place, prompt="P8")


@bad(ParameterError, "unknown parameter `seed`.*`augment` must be bool", "known: augment")
def two_wrong_parameters_at_once(place: Place) -> Callable[[], object]:
    return partial(check_values, {"seed": 1, "augment": 3}, {"augment": "bool"}, "run")


@bad(ParameterError, r"large\.yaml does not exist", "there are: mine")
def a_profile_that_is_not_there(place: Place) -> Callable[[], object]:
    return partial(read_profile, place.text("mine.yaml", "seed: 1").with_name("large.yaml"))


@bad(ParameterError, r"mine\.yaml: not readable as YAML", "one `name: value` a line")
def a_broken_profile(place: Place) -> Callable[[], object]:
    return partial(read_profile, place.text("mine.yaml", "seed: [1\nepochs: 3\n"))


@bad(ParameterError, r"mine\.yaml must be a flat mapping", "`name: value`")
def a_profile_with_nested_values(place: Place) -> Callable[[], object]:
    return partial(read_profile, place.text("mine.yaml", "seeds: [1, 2]\n"))


@bad(ValueError, "patients=0", "a cohort needs at least one patient")
def a_phantom_of_nobody(place: Place) -> Callable[[], object]:
    return partial(write_phantom_cohort, place.path / "phantom", 0, seed=1, progress=False)


@bad(ValueError, "size=-64", "a phantom needs at least 32 rows")
def a_phantom_of_negative_size(place: Place) -> Callable[[], object]:
    return partial(write_phantom_cohort, place.path / "phantom", 1, seed=1, size=-64, progress=False)


@bad(StrategyError, "train: 3 patients of 1 cannot be taken", "0 takes all")
def more_patients_than_there_are(place: Place) -> Callable[[], object]:
    return partial(limit_patients, read_cohort(place.cohort()), {"train": 3}, 1)


@bad(ValueError, "epochs: -1", "give at least 1")
def a_training_of_negative_length(place: Place) -> Callable[[], object]:
    return partial(fit, None, None, None, place.path / "state", epochs=-1)


def sampling(place: Place, **options: Any) -> Callable[[], object]:
    """A call that draws a synthetic cohort."""
    frames, weights = read_cohort(place.cohort()), place.weights("sdm-tiny")
    options = {"variants": 1, "steps": 1, "progress": False} | options
    return partial(sample_cohort, place.path / "drawn", frames, weights, **options)


@bad(ValueError, "batch_size: 0", "give at least 1")
def a_batch_of_no_synthetic_pictures(place: Place) -> Callable[[], object]:
    return sampling(place, batch_size=0)


@bad(ValueError, "scheduler: 'euler' is not known", "choose one of ddpm")
def an_unknown_sampler(place: Place) -> Callable[[], object]:
    return sampling(place, scheduler="euler")


@bad(ValueError, "no image with a mask in val", "choose other `splits`")
def a_synthetic_cohort_from_no_pictures(place: Place) -> Callable[[], object]:
    return sampling(place, splits=("val",))


@bad(CohortError, "cohort: holds a phantom cohort", "name another folder to draw into")
def a_synthetic_cohort_in_the_phantoms_place(place: Place) -> Callable[[], object]:
    root = place.cohort()
    options = {"variants": 1, "steps": 1, "progress": False}
    return partial(ensure_cohort, root, read_cohort(root), place.weights("sdm-tiny"), **options)


# --- prompts, models, weights ----------------------------------------------------------------------------


@bad(PromptError, "unknown prompt level 'P8'", "one of P0, P1")
def an_unknown_prompt_level(place: Place) -> Callable[[], object]:
    return partial(make_prompts, read_cohort(place.cohort()), levels=("P8",))


@bad(PromptError, f"P5 needs age, which is missing for {PATIENT} 2CH ED", "missing='omit'")
def a_prompt_that_needs_an_absent_age(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / CFG).write_text("Sex: F\nImageQuality: Good\n")
    return partial(make_prompts, read_cohort(root), levels=("P5",))


@bad(PromptError, f"{PATIENT} 2CH ED occurs twice", "make the prompts of one cohort at a time")
def a_picture_that_occurs_twice(place: Place) -> Callable[[], object]:
    frames = read_cohort(place.cohort())
    return partial(make_prompts, pd.concat([frames, frames]), levels=("P1",))


@bad(PromptError, "unknown structure 'aorta'", "one of left ventricular cavity")
def an_unknown_structure(place: Place) -> Callable[[], object]:
    return partial(make_prompt, "aorta", "P1", 0)


@bad(StrategyError, "strategy: 'zero-shot' is not known", "choose one of zeroshot")
def an_unknown_strategy(place: Place) -> Callable[[], object]:
    return partial(strategy_triplets, "zero-shot", "train", read_cohort(place.cohort()), [], "P1", None)


@bad(ModelError, "model: 'sam' is not known", "choose one of clipseg, cris")
def an_unknown_model(place: Place) -> Callable[[], object]:
    return partial(models.load, "sam", WEIGHTS)


@bad(ModelError, "encoders: 'thawed' is not known", "choose one of frozen, unfrozen, lora")
def an_unknown_encoder_mode(place: Place) -> Callable[[], object]:
    return partial(models.load, "clipseg", WEIGHTS, "thawed")


@bad(ModelError, "encoders: 'lora' has no meaning for unet", "use unfrozen")
def adapters_for_a_model_without_encoders(place: Place) -> Callable[[], object]:
    return partial(models.load, "unet", place.path, "lora")


@bad(ModelError, "image_size: 65", "multiples of")
def an_image_size_between_patches(place: Place) -> Callable[[], object]:
    return partial(models.load, "clipseg", WEIGHTS, image_size=65)


@bad(ModelError, "the folder .*nowhere does not exist", "give one that does, or a hub id")
def weights_that_are_not_there(place: Place) -> Callable[[], object]:
    return partial(models.load, "cris", place.path / "nowhere")


@bad(ModelError, r"clipseg-tiny has no config\.json", "give a folder in Hugging Face layout")
def weights_without_a_configuration(place: Place) -> Callable[[], object]:
    folder = place.weights("clipseg-tiny")
    (folder / "config.json").unlink()
    return partial(models.load, "clipseg", folder)


@bad(ModelError, "cris-tiny holds a 'cris' model, not CLIPSeg", "name that model")
def weights_of_another_model(place: Place) -> Callable[[], object]:
    return partial(models.load, "clipseg", place.weights("cris-tiny"))


@bad(
    ModelError,
    r"clipseg-tiny does not fit .* tensors of another shape, the first is",
    "give the configuration",
)
def clipseg_weights_of_another_shape(place: Place) -> Callable[[], object]:
    folder = place.weights("clipseg-tiny")
    spoil_json(folder / "config.json", reduce_dim=32)
    return partial(models.load, "clipseg", folder)


@bad(ModelError, "cannot load '.*clipseg-tiny'", "Give a whole folder")
def clipseg_weights_cut_off(place: Place) -> Callable[[], object]:
    folder = place.weights("clipseg-tiny")
    cut(folder / "model.safetensors")
    return partial(models.load, "clipseg", folder)


@bad(ModelError, "cannot load '.*clipseg-tiny'", "Give a whole folder")
def clipseg_without_its_tokenizer(place: Place) -> Callable[[], object]:
    folder = place.weights("clipseg-tiny")
    cut(folder / "tokenizer.json", 0.1)
    return partial(models.load, "clipseg", folder)


@bad(ModelError, r"cris-tiny/model\.safetensors does not fit .*of another shape", "Give the configuration")
def cris_weights_of_another_shape(place: Place) -> Callable[[], object]:
    folder = place.weights("cris-tiny")
    ffn = json.loads((folder / "config.json").read_text())["decoder_ffn"]
    spoil_json(folder / "config.json", decoder_ffn=2 * ffn)
    return partial(models.load, "cris", folder)


@bad(ModelError, r"cris-tiny/model\.safetensors is no whole safetensors file", "copy it again")
def cris_weights_cut_off(place: Place) -> Callable[[], object]:
    folder = place.weights("cris-tiny")
    cut(folder / "model.safetensors")
    return partial(models.load, "cris", folder)


@bad(ModelError, r"cris-tiny/config\.json: not readable as JSON", "copy the folder again")
def a_broken_cris_configuration(place: Place) -> Callable[[], object]:
    folder = place.weights("cris-tiny")
    cut(folder / "config.json")
    return partial(models.load, "cris", folder)


@bad(ModelError, "cris-tiny cannot be used .*TypeError", r"config\.json or tokenizer is broken, copy")
def a_cris_configuration_of_wrong_types(place: Place) -> Callable[[], object]:
    folder = place.weights("cris-tiny")
    spoil_json(folder / "config.json", vision_width="wide")
    return partial(models.load, "cris", folder)


def unet(place: Place) -> Path:
    from echovlsm.models.unet import ReferenceUNet

    ReferenceUNet.fresh(32, channels=(4, 8)).save_pretrained(place.path / "unet")
    return place.path / "unet"


@bad(ModelError, r"unet/model\.safetensors does not fit its config\.json", "copy the folder again")
def reference_weights_of_another_shape(place: Place) -> Callable[[], object]:
    folder = unet(place)
    spoil_json(folder / "config.json", channels=[4, 16])
    return partial(models.load, "unet", folder)


@bad(ModelError, r"unet/config\.json cannot be used .*residual_units", "copy the folder again")
def a_reference_configuration_without_a_field(place: Place) -> Callable[[], object]:
    folder = unet(place)
    fields = json.loads((folder / "config.json").read_text())
    del fields["residual_units"]
    (folder / "config.json").write_text(json.dumps(fields))
    return partial(models.load, "unet", folder)


@bad(WeightsError, r"sdm-tiny/model\.safetensors: .* of another shape", "give the configuration")
def denoiser_weights_of_another_shape(place: Place) -> Callable[[], object]:
    folder = place.weights("sdm-tiny")
    spoil_json(folder / "config.json", spade_hidden=16)
    return partial(load_denoiser, folder)


@bad(WeightsError, r"sdm-tiny/model\.safetensors: cannot be read", "fetch or train the weights again")
def denoiser_weights_cut_off(place: Place) -> Callable[[], object]:
    folder = place.weights("sdm-tiny")
    cut(folder / "model.safetensors")
    return partial(load_denoiser, folder)


@bad(WeightsError, r"sdm-tiny/scheduler_config\.json: no noise schedule", "fetch or train the weights again")
def a_noise_schedule_that_is_none(place: Place) -> Callable[[], object]:
    folder = place.weights("sdm-tiny")
    spoil_json(folder / "scheduler_config.json", beta_schedule="steep")
    return partial(load_denoiser, folder)


def offline(place: Place) -> None:
    """No network, and nothing in a cache."""
    import huggingface_hub.constants

    place.monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@bad(ModelError, "cannot load 'nobody/clipseg'", "go online")
def a_clipseg_of_the_hub_without_a_network(place: Place) -> Callable[[], object]:
    offline(place)
    return partial(models.load, "clipseg", "nobody/clipseg")


@bad(ModelError, "cannot load 'nobody/cris'", "go online")
def a_cris_of_the_hub_without_a_network(place: Place) -> Callable[[], object]:
    offline(place)
    return partial(models.load, "cris", "nobody/cris")


# --- runs, results, tables -------------------------------------------------------------------------------


@bad(RunError, r"run/run\.yaml: not readable as YAML", "delete this file to make the run from its start")
def a_broken_run_record(place: Place) -> Callable[[], object]:
    place.text("run/run.yaml", "status: complete\nparameters: {seed: 1\n")
    return partial(RunFolder(place.path / "run").start, {"seed": 1})


@bad(RunError, r"run/run\.yaml: a mapping .* is needed, but it is empty", "copy the run again")
def an_empty_run_record(place: Place) -> Callable[[], object]:
    place.text("run/run.yaml", "")
    return lambda: RunFolder(place.path / "run").complete


@bad(RunError, r"run/run\.yaml: `parameters` holds no names", "copy the run again")
def a_run_record_without_parameters(place: Place) -> Callable[[], object]:
    place.text("run/run.yaml", "status: complete\nparameters: [1, 2]\n")
    return partial(RunFolder(place.path / "run").start, {"seed": 1})


@bad(RunError, "run holds a run made otherwise .seed: 1 there, 2 now", "name another `run` folder")
def a_run_of_other_settings(place: Place) -> Callable[[], object]:
    RunFolder(place.path / "run").start({"seed": 1})
    return partial(RunFolder(place.path / "run").start, {"seed": 2})


@bad(RunError, "run is not finished", r"run notebooks/04_training\.ipynb")
def a_run_that_did_not_end(place: Place) -> Callable[[], object]:
    RunFolder(place.path / "run").start({"seed": 1})
    return partial(RunFolder(place.path / "run").require, "weights", "04_training")


@bad(EvaluationError, "holds no finished training with weights", r"run notebooks/04_training\.ipynb")
def a_run_without_weights_to_score_with(place: Place) -> Callable[[], object]:
    record = {"status": "complete", "parameters": {"model": "cris", "prompt": "P1"}}
    place.text("run/run.yaml", yaml.safe_dump(record))
    return partial(kept_run, place.path / "run")


@bad(ExplorerError, "run: .*nowhere is no complete run with weights", r"run notebooks/04_training\.ipynb")
def a_run_to_explore_that_is_not_there(place: Place) -> Callable[[], object]:
    return partial(choose_run, trained_runs(place.path), str(place.path / "nowhere"))


@bad(GridError, r"seed2/scores\.parquet: no whole table", "delete .*seed2 and run `snakemake grid` again")
def broken_scores(place: Place) -> Callable[[], object]:
    for seed in (1, 2):
        cut(cell(place.path / "runs", seed) / "scores.parquet", 1.0 if seed == 1 else 0.5)
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, r"seed1/history\.csv: no whole table .*cut off", "delete .*seed1 and run `snakemake grid`")
def a_history_that_was_cut_off(place: Place) -> Callable[[], object]:
    run = cell(place.path / "runs", 1)
    (run / "history.csv").write_bytes((run / "history.csv").read_bytes()[:-4])
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, r"seed1/history\.csv: no column val_dice", "delete .*seed1")
def a_history_of_something_else(place: Place) -> Callable[[], object]:
    cell(place.path / "runs", 1).write_table("history.csv", pd.DataFrame({"epoch": [1], "loss": [0.5]}))
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, r"differ in scale \(full, smoke\)", "run `snakemake grid` again")
def results_of_another_scale_in_one_table(place: Place) -> Callable[[], object]:
    cell(place.path / "runs", 1)
    cell(place.path / "runs", 2, scale="full")
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, "differ in scored images", "run `snakemake grid` again")
def results_on_other_pictures_in_one_table(place: Place) -> Callable[[], object]:
    cell(place.path / "runs", 1)
    cell(place.path / "runs", 2, evaluation={"data_hash": "e", "seconds": 2.0})
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, "no complete cell in .*runs", "run `snakemake grid` first")
def a_grid_without_results(place: Place) -> Callable[[], object]:
    return partial(collect, read_grid(grid_file(place)), place.path / "runs")


@bad(GridError, r"grid\.yaml must have the keys parameters, models and blocks", "must have the keys")
def a_grid_with_an_unknown_key(place: Place) -> Callable[[], object]:
    return partial(read_grid, grid_file(place, seeds=[1, 2]))


@bad(GridError, r"grid\.yaml: not readable as YAML", r"notebooks/grids/demo\.yaml shows the form")
def a_broken_grid(place: Place) -> Callable[[], object]:
    return partial(read_grid, place.text("grid.yaml", "blocks:\n- models: [clipseg\n"))


@bad(
    GridError,
    r"blocks of .*grid\.yaml must be a list of blocks",
    r"notebooks/grids/demo\.yaml shows the form",
)
def a_grid_without_blocks(place: Place) -> Callable[[], object]:
    return partial(read_grid, grid_file(place, blocks=None))


@bad(GridError, "'model' is no axis", "there are models, prompts")
def an_unknown_axis(place: Place) -> Callable[[], object]:
    return partial(read_grid, grid_file(place), {"model": "cris"})


@bad(GridError, "prompts 'P8' is not known", "allowed: P0, P1")
def an_unknown_value_on_an_axis(place: Place) -> Callable[[], object]:
    return partial(read_grid, grid_file(place), {"prompts": "P1,P8"})


@bad(GridError, r"large\.yaml does not exist", "there are: grid")
def a_grid_that_is_not_there(place: Place) -> Callable[[], object]:
    return partial(read_grid, grid_file(place).with_name("large.yaml"))


@bad(PublishedError, r"scores\.csv has no column", r"scores_per_image\.csv\.gz, give that file")
def authors_scores_that_are_not_theirs(place: Place) -> Callable[[], object]:
    return partial(load_scores, place.text("scores.csv", "dice,iou\n0.5,0.4\n"))


@bad(BookError, r"data/results/mine/run\.yaml: not readable as YAML", "restore this result")
def a_recorded_result_that_is_broken(place: Place) -> Callable[[], object]:
    from book.tools.tables import recorded_scores

    place.text("data/results/mine/run.yaml", "kind: [real")
    return partial(recorded_scores, place.path)


@bad(ScoreError, "patient a: truth must hold only 0 and 1", "choose one structure")
def a_label_map_scored_as_a_mask(place: Place) -> Callable[[], object]:
    rows = [({"patient": "a"}, np.zeros((4, 4)), np.full((4, 4), 3))]
    return partial(score_table, rows, progress=False)


@bad(ScoreError, "spacing .*nan", "score in pixels with spacing=None")
def millimetres_without_a_pixel_size(place: Place) -> Callable[[], object]:
    mask = np.ones((4, 4), bool)
    return partial(score, mask, mask, (float("nan"), 1.0))


@bad(ValueError, "real: 1 masks occur twice for one seed", "drop the repeated rows")
def a_mask_scored_twice(place: Place) -> Callable[[], object]:
    return partial(compare, pd.concat([scores(), scores()[:1]]), "real", "joint", resamples=10)


@bad(ValueError, "values: 1 of 2 values are NaN", "leave out their pairs")
def an_interval_of_nan(place: Place) -> Callable[[], object]:
    return partial(bootstrap_interval, [0.5, float("nan")])


# --- from the field: what people reported; `workflow/test_field_faults.py` has more of each kind
# -------------------


@bad(
    CohortWarning, rf"unlikely pixel size: .*{PATIENT}_2CH_ED.*308 x 308 and no unit", "export it again with"
)
def a_pixel_in_micrometres_without_a_unit(place: Place) -> Callable[[], object]:
    import nibabel

    root = place.cohort()
    image = nibabel.Nifti1Image(load_image(first_row(root)).T, np.diag([-308.0, -308.0, 1.0, 1.0]))
    image.header.set_xyzt_units("unknown")
    nibabel.save(image, root / PICTURE)
    return partial(read_cohort, root)


@bad(CohortError, rf"{PATIENT}_2CH_ED\.nii\.gz: its values are of the type RGB", "export it in grey")
def a_picture_in_colour(place: Place) -> Callable[[], object]:
    root = place.cohort()
    colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(root / PICTURE, np.zeros((64, 78), colours))
    return partial(load_image, first_row(root))


@bad(RangeError, rf"{PATIENT}_2CH_ED_gt.*the scale factor 0\.7 .* give 0, 0\.7", "without a scale factor")
def labels_behind_a_scale_factor(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: labels)
    content = bytearray(gzip.decompress((root / MASK).read_bytes()))
    content[112:116] = np.float32(0.7).tobytes()  # scl_slope
    (root / MASK).write_bytes(gzip.compress(bytes(content)))
    return partial(load_labels, first_row(root))


@bad(RangeError, rf"{PATIENT}_2CH_ED_gt.*0, 85, 170, 255 look like labels times 85", "divide them by that")
def labels_spread_to_be_seen(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: labels * np.uint8(85))
    return partial(load_labels, first_row(root))


@bad(RangeError, rf"{PATIENT}_2CH_ED_gt.*255 looks like one structure", "store its label instead")
def one_structure_as_white(place: Place) -> Callable[[], object]:
    root = change_mask(place.cohort(), lambda labels: (labels == 2) * np.uint8(255))
    return partial(load_labels, first_row(root))


@bad(
    CohortWarning,
    rf"file twice: .*{PATIENT}_2CH_ED\.nii: .*\.nii\.gz is there too",
    "take one of the two away",
)
def a_picture_both_compressed_and_not(place: Place) -> Callable[[], object]:
    root = place.cohort()
    (root / PICTURE).with_suffix("").write_bytes(gzip.decompress((root / PICTURE).read_bytes()))
    return partial(read_cohort, root)


@bad(CohortError, "cohrot: no such folder; the nearest folder there is: .*/cohort;", "give the folder that")
def a_cohort_with_a_typing_error(place: Place) -> Callable[[], object]:
    place.cohort()
    return partial(read_cohort, place.path / "cohrot")


@bad(
    ParameterError,
    "`cohort` is '2023_01', which Snakemake reads as 202301",
    r"begin a folder's name with \./",
)
def a_folder_that_reads_as_a_number(place: Place) -> Callable[[], object]:
    return partial(as_typed, {"cohort": 202301}, ["--config", "cohort=2023_01"], {"cohort": "str"})


@bad(ValueError, "patience: 3; training would stop before an epoch at the lower rate", "at least 7")
def a_plateau_longer_than_the_patience(place: Place) -> Callable[[], object]:
    return partial(fit, None, None, None, place.path / "state", patience=3, plateau_patience=5)


@bad(
    WeightsError,
    r"sdm-tiny/model\.safetensors: the configuration has num_classes 6, .* 5;",
    "give the config",
)
def a_denoiser_with_a_class_too_many(place: Place) -> Callable[[], object]:
    folder = place.weights("sdm-tiny")
    spoil_json(folder / "config.json", num_classes=6)
    return partial(load_denoiser, folder)


# --- the tests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_bad_input_is_refused_in_words_and_leaves_nothing(
    entry: Entry, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = entry.prepare(Place(tmp_path / "place", template, monkeypatch))
    before = snapshot(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CohortWarning)
        with pytest.raises(entry.error) as caught:
            call()
    assert type(caught.value) is entry.error, repr(caught.value)
    message = str(caught.value)
    assert re.search(entry.names, message), message
    assert re.search(entry.remedy, message), message
    assert snapshot(tmp_path) == before


def test_the_catalogue_is_as_long_as_it_says() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    assert all(entry.names and entry.remedy for entry in CATALOGUE)


def test_metadata_that_cannot_be_used_are_na_and_the_rest_of_the_picture_stays(
    template: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(template, tmp_path / "cohort"))
    (root / CFG).write_text("Sex: X\nAge: n/a\nImageQuality: Good\n")
    with pytest.warns(CohortWarning, match=r"2 problems.*Info_2CH\.cfg"):
        frames = read_cohort(root)
    assert len(frames) == 8
    spoiled = frames[(frames["patient"] == PATIENT) & (frames["view"] == "2CH")]
    assert len(spoiled) == 2
    assert spoiled[["sex", "age"]].isna().all(axis=None)
    assert (spoiled["quality"] == "good").all()
    other = frames.drop(spoiled.index)
    assert other[["sex", "age", "quality"]].notna().all(axis=None)


@pytest.mark.parametrize("name", ["with spaces", "Herzkammer-äöü", "心臓", "e\u0301tude", "a'b & c", "😀"])
def test_odd_names_of_folders_work(name: str, template: Path, tmp_path: Path) -> None:
    """A cohort, a run and weights in folders with spaces and letters of any script."""
    root = Path(shutil.copytree(template, tmp_path / name / "cohort"))
    frames = read_cohort(root)
    assert len(frames) == 8
    meta = {"name": name, "kind": "phantom"}
    rows = [
        {key: row[key] for key in ("patient", "view", "phase", "split", "sex", "age", "quality")}
        | {"image": load_image(row), "labels": load_labels(row)}
        for _, row in frames.iterrows()
    ]
    written = read_cohort(write_cohort(tmp_path / f"{name} 2", rows, meta))
    assert written.attrs["meta"]["name"] == name
    assert (load_image(written.iloc[3]) == load_image(frames.iloc[3])).all()
    run = RunFolder(tmp_path / name / "run")
    assert run.start({"cohort": str(root)})
    run.finish()
    assert run.record["parameters"]["cohort"] == str(root)
    assert len(name_shapes(frames, progress=False)) == 8 * len(STRUCTURES)


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write into any folder")
def test_a_folder_without_permission_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CohortError, match="no folder can be made there"):
            write_cohort(tmp_path / "written", [frame()], META)
    finally:
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())
