"""The prompts: the authors' own, letter by letter, and what happens where metadata is missing."""

import json
import os
import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch

from echovlsm import STRUCTURES
from echovlsm.evaluation.words import false_prompts
from echovlsm.prompts.templates import (
    LEVELS,
    VARIANTS,
    PromptError,
    age_in_words,
    attributes_of,
    make_prompt,
    make_prompts,
)
from echovlsm.study import parameters
from echovlsm.training.triplets import Triplets
from tests.prompts.parsing import parse_prompt

FULL = {"view": "4CH", "phase": "ES", "sex": "M", "age": 18, "quality": "poor", "shape": "oval"}


def frames(**changes):
    table = pd.DataFrame(
        {
            "cohort": "toy",
            "patient": ["patient0001", "patient0001", "patient0002"],
            "view": ["2CH", "4CH", "2CH"],
            "phase": ["ED", "ES", "ED"],
            "split": "train",
            "sex": ["F", "F", "M"],
            "age": pd.array([56, 56, 71], dtype="Int64"),
            "quality": ["good", "medium", "poor"],
        }
    )
    return table.assign(**changes)


def shapes_of(table, name="oval"):
    keys = zip(table["patient"], table["view"], table["phase"], strict=True)
    return {(*key, structure): name for key in keys for structure in STRUCTURES.values()}


@pytest.mark.parametrize(
    ("level", "variant", "text"),
    [
        ("P0", 0, ""),
        ("P0", 1, ""),
        ("P1", 0, "Left atrium cavity of the heart."),
        ("P2", 1, "Left atrium cavity in four-chamber view in the cardiac ultrasound."),
        ("P3", 0, "Left atrium cavity in four-chamber view of the heart at end of the systole cycle."),
        (
            "P4",
            0,
            "Left atrium cavity in four-chamber view of the heart at end of the systole cycle of a male.",
        ),
        (
            "P5",
            0,
            "Left atrium cavity in four-chamber view of the heart at end of the systole cycle "
            "of a eighteen-year-old male.",
        ),
        (
            "P6",
            1,
            "Left atrium cavity in four-chamber view in the cardiac ultrasound at end of the systole cycle "
            "of a eighteen-year-old male with poor image quality.",
        ),
        (
            "P7",
            0,
            "Left atrium cavity of oval shape in four-chamber view of the heart at end of the systole cycle "
            "of a eighteen-year-old male with poor image quality.",
        ),
    ],
)
def test_each_level_adds_its_clause(level, variant, text):
    assert make_prompt("left atrium cavity", level, variant, **FULL) == text


def test_synthetic_p6_says_shape_and_not_quality_and_p7_does_not_exist():
    text = make_prompt("myocardium", "P6", 0, **FULL | {"quality": None}, synthetic=True)
    assert text == (
        "Myocardium of oval shape in four-chamber view of the heart at end of the systole cycle "
        "of a eighteen-year-old male."
    )
    with pytest.raises(PromptError, match="no P7"):
        make_prompt("myocardium", "P7", 0, **FULL, synthetic=True)


@pytest.mark.parametrize("file", ["prompts_camus_val.json", "prompts_sdm_val_first600.json"])
def test_the_authors_prompts_are_rebuilt_to_the_letter(file):
    """Attributes come from the richest text of variant 0; view, phase and label also from the file names."""
    shared = os.environ.get("ECHOVLSM_SHARED")
    if not shared or not Path(shared, "published", file).is_file():
        pytest.skip(
            f"the authors' {file} is not here: set ECHOVLSM_SHARED to the folder that holds published/"
        )
    entries = json.loads(Path(shared, "published", file).read_text())
    assert len(entries) == 600
    synthetic = "sdm" in file
    compared = 0
    for entry in entries:
        richest = max(entry["prompts"])
        said = parse_prompt(entry["prompts"][richest][0])
        view, phase = re.search(r"_(.CH)_(E[DS])", entry["img_name"]).groups()
        label = int(re.search(r"mask_(\d)", entry["mask_name"]).group(1))
        assert (said["view"], said["phase"], said["structure"]) == (view, phase, STRUCTURES[label])
        assert (said["level"], said["synthetic"]) == (richest.upper(), synthetic)
        attributes = {k: said[k] for k in ("view", "phase", "sex", "age", "quality", "shape")}
        assert set(entry["prompts"]) == {level.lower() for level in LEVELS if level != "P7" or not synthetic}
        for level, texts in entry["prompts"].items():
            if level == "p0":
                texts = [texts, texts]
            assert len(texts) == len(VARIANTS)
            for variant, text in enumerate(texts):
                rebuilt = make_prompt(
                    said["structure"], level.upper(), variant, **attributes, synthetic=synthetic
                )
                assert rebuilt == text
                compared += 1
    assert compared == 600 * 2 * (7 if synthetic else 8)


@pytest.mark.parametrize("synthetic", [False, True])
def test_parsing_finds_every_attribute_that_a_level_says(synthetic):
    for level in LEVELS[1:7] if synthetic else LEVELS[1:]:
        for variant in VARIANTS:
            said = parse_prompt(make_prompt("myocardium", level, variant, **FULL, synthetic=synthetic))
            expected = {name: FULL[name] for name in attributes_of(level, synthetic)}
            assert {name: said[name] for name in FULL if said[name] is not None} == expected
            assert (said["structure"], said["variant"], said["level"]) == ("myocardium", variant, level)


def test_another_variant_is_one_more_line(phantom_frames, monkeypatch):
    """Whoever adds a wording to the templates has it in prompts, false words, trainings and parameters."""
    monkeypatch.setitem(VARIANTS, 2, "in the echocardiogram")
    prompts = make_prompts(phantom_frames, levels=["P1"])
    assert sorted(prompts["variant"].unique()) == [0, 1, 2]
    third = prompts.loc[prompts["variant"] == 2, "text"]
    assert third.iloc[1] == "Myocardium in the echocardiogram."
    assert false_prompts(phantom_frames, "P1", variant="2")["text"].isin(set(third)).all()
    assert runpy.run_path(parameters.__file__)["CHOICES"]["variant"] == ("random", "0", "1", "2")
    triplets = Triplets(phantom_frames, prompts, lambda texts: (torch.arange(len(texts))[:, None],) * 2, 16)
    drawn = {triplets.texts_of(index)[1] for index in range(len(phantom_frames))}
    assert drawn == {f"Myocardium {words}." for words in VARIANTS.values()}


def test_ages_are_whole_and_spelled_with_hyphens():
    assert [age_in_words(a) for a in (56, 70.0, 9, 101)] == [
        "fifty-six",
        "seventy",
        "nine",
        "one hundred and one",
    ]
    for bad in (56.5, -1, 400, float("inf")):
        with pytest.raises(PromptError, match="whole number"):
            age_in_words(bad)


def test_the_table_has_a_row_for_each_image_structure_level_and_variant():
    table = frames()
    table.attrs["meta"] = {"kind": "phantom"}
    prompts = make_prompts(table, shapes=shapes_of(table))
    assert list(prompts) == ["patient", "view", "phase", "structure", "level", "variant", "text"]
    assert len(prompts) == 3 * 3 * 8 * 2
    assert not prompts.duplicated(["patient", "view", "phase", "structure", "level", "variant"]).any()
    row = prompts.query(
        "patient == 'patient0002' and structure == 'myocardium' and level == 'P5' and variant == 0"
    )
    assert row["text"].item() == (
        "Myocardium in two-chamber view of the heart at end of the diastole cycle "
        "of a seventy-one-year-old male."
    )
    assert prompts.attrs["meta"] == {"kind": "phantom"}


def test_a_synthetic_cohort_is_known_by_its_kind():
    table = frames(quality=None)
    table.attrs["meta"] = {"kind": "synthetic"}
    prompts = make_prompts(table, shapes=shapes_of(table, "circle"))
    assert sorted(prompts["level"].unique()) == list(LEVELS[:7])
    assert prompts.loc[prompts["level"] == "P6", "text"].str.contains("of circle shape").all()
    assert not prompts["text"].str.contains("quality").any()


def test_shapes_come_as_a_table_too():
    table = frames()
    mapping = shapes_of(table) | {("patient0001", "4CH", "ES", "myocardium"): "triangle"}
    listing = pd.DataFrame(
        [(*key, value) for key, value in mapping.items()],
        columns=["patient", "view", "phase", "structure", "shape"],
    )
    texts = make_prompts(table, shapes=listing, levels=["P7"])
    assert texts["text"].str.contains("triangle shape").sum() == 2
    assert texts["text"].str.contains("oval shape").sum() == 16
    with pytest.raises(PromptError, match="twice in the shapes table"):
        make_prompts(table, shapes=pd.concat([listing, listing]), levels=["P7"])


def test_only_the_levels_asked_for_need_their_attributes():
    bare = frames()[["patient", "view", "phase"]]
    prompts = make_prompts(bare, levels=("P1", "P2"))
    assert len(prompts) == 3 * 3 * 2 * 2
    with pytest.raises(PromptError, match=r"P4 needs sex.*patient0001 2CH ED and 2 more images.*omit"):
        make_prompts(bare)


@pytest.mark.parametrize(
    ("column", "values", "level"),
    [
        ("sex", ["F", "F", None], "P4"),
        ("age", pd.array([56, 56, None], dtype="Int64"), "P5"),
        ("quality", ["good", "good", float("nan")], "P6"),
    ],
)
def test_a_missing_attribute_is_named_with_its_image_or_omitted(column, values, level):
    table = frames(**{column: values})
    with pytest.raises(PromptError, match=rf"{level} needs {column}.*patient0002 2CH ED.*missing='omit'"):
        make_prompts(table, levels=LEVELS[:7])
    prompts = make_prompts(table, levels=LEVELS[:7], missing="omit")
    assert len(prompts) == 3 * 3 * 7 * 2
    kept = prompts.query("patient == 'patient0002'")["text"]
    words = {"sex": "male", "age": "year-old", "quality": "image quality"}
    assert not kept.str.contains(words[column]).any()
    others = set(words) - {column}
    assert all(kept.str.contains(words[name]).any() for name in others)


def test_a_missing_shape_names_the_structure_or_is_omitted():
    table = frames()
    shapes = shapes_of(table)
    del shapes["patient0001", "4CH", "ES", "myocardium"]
    with pytest.raises(PromptError, match=r"P7 needs shape.*patient0001 4CH ES myocardium.*name_shapes"):
        make_prompts(table, shapes=shapes)
    omitted = make_prompts(table, shapes=shapes, missing="omit", levels=["P7"])
    assert (~omitted["text"].str.contains(" shape ")).sum() == 2


def test_omitted_clauses_leave_a_readable_text():
    text = make_prompt("myocardium", "P5", 0, view="2CH", phase="ED", age=60, missing="omit")
    assert (
        text
        == "Myocardium in two-chamber view of the heart at end of the diastole cycle of a sixty-year-old."
    )
    said = parse_prompt(text)
    assert (said["age"], said["sex"], said["level"]) == (60, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sex": "female"}, "sex 'female' is unknown: one of F, M"),
        ({"quality": "Good"}, "one of good, medium, poor"),
        ({"view": "3CH"}, "one of 2CH, 4CH"),
        ({"age": 1.5}, "whole number"),
        ({"shape": "Oval!"}, "lower-case"),
    ],
)
def test_malformed_attributes_are_refused_with_the_image(changes, message):
    with pytest.raises(PromptError, match=message):
        make_prompt("myocardium", "P7", 0, **FULL | changes)
    if "shape" not in changes:
        table = frames(**changes)
        with pytest.raises(PromptError, match=rf"patient0001 .*{message}"):
            make_prompts(table, shapes=shapes_of(table))


def test_unknown_names_and_doubled_images_are_refused():
    with pytest.raises(PromptError, match="unknown structure"):
        make_prompt("Myocardium", "P1", 0)
    with pytest.raises(PromptError, match="unknown template variant"):
        make_prompt("myocardium", "P1", 2)
    with pytest.raises(PromptError, match="unknown prompt level 'P8'"):
        make_prompts(frames(), levels=["P8"])
    with pytest.raises(PromptError, match="missing='drop'"):
        make_prompts(frames(), levels=["P1"], missing="drop")
    with pytest.raises(PromptError, match="patient0001 2CH ED occurs twice"):
        make_prompts(pd.concat([frames(), frames()]), levels=["P1"])
    with pytest.raises(PromptError, match="no column phase"):
        make_prompts(frames().drop(columns="phase"), levels=["P1"])
