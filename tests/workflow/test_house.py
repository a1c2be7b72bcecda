"""The house keeps its rules: faces, one direction, no circle, and what a change makes stale."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from echovlsm.base import rooms
from tests import house


def _told(found: list[house.Import]) -> list[str]:
    return [f"{one.file.name}:{one.line}: {one.module}.{one.name}" for one in found]


def test_rooms_import_what_faces_name() -> None:
    assert _told(list(house.past_a_face([*house.sources(), *house.users()]))) == []


def test_rooms_import_from_those_they_rest_on() -> None:
    assert _told(list(house.against_the_direction())) == []


def test_no_import_of_the_packages_own_hides_in_a_function() -> None:
    assert _told(list(house.inside_functions())) == []


def test_no_two_modules_need_each_other() -> None:
    assert house.circles() == []


def test_the_rules_find_what_breaks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of three modules that breaks each of the four rules once."""
    monkeypatch.setattr(house, "PACKAGE", tmp_path)
    for room in ("base", "cohort", "models"):
        (tmp_path / room).mkdir()
    (tmp_path / "base" / "files.py").write_text("from echovlsm.cohort import read_cohort\n")
    (tmp_path / "cohort" / "read.py").write_text("from echovlsm.base.files import appearing\n")
    (tmp_path / "models" / "a.py").write_text("from echovlsm.models import b\n")
    (tmp_path / "models" / "b.py").write_text("def f():\n    from echovlsm.models import a\n")
    assert _told(list(house.past_a_face(house.sources()))) == ["read.py:1: echovlsm.base.files.appearing"]
    assert _told(list(house.against_the_direction())) == ["files.py:1: echovlsm.cohort.read_cohort"]
    assert _told(list(house.inside_functions())) == ["b.py:2: echovlsm.models.a"]
    assert house.circles() == [["base/files.py", "cohort/read.py"], ["models/a.py", "models/b.py"]]


def test_every_room_is_known_and_says_what_it_is() -> None:
    folders = {path.parent.name for path in house.PACKAGE.glob("*/__init__.py")}
    assert folders == set(rooms.RESTS_ON)
    for room in rooms.RESTS_ON:
        face = importlib.import_module(f"echovlsm.{room}")
        text = inspect.getdoc(face) or ""
        assert 3 <= len(text.splitlines()) <= 10, room
        assert all(getattr(face, name) is not None for name in face.__all__), room


def test_a_rooms_change_makes_its_chapter_stale_and_those_downstream(tmp_path: Path) -> None:
    """By folder: a change in synthesis is none of the training's, and one in models is."""

    def stale(room: str) -> set[str]:
        return {
            notebook
            for notebook in rooms.CHAPTERS
            if any(path.parent.name == room for path in rooms.modules_of(notebook))
        }

    assert stale("base") == set(rooms.CHAPTERS)
    assert stale("explorer") == {"08_explorer"}
    assert stale("published") == {"07_published", "12_released_code"}
    assert {"02_synthesis", "06_results", "09_real_hearts"} <= stale("synthesis")
    assert not {"01_cohort", "03_prompts", "04_training", "05_evaluation"} & stale("synthesis")
    assert {"04_training", "05_evaluation", "08_explorer"} <= stale("models")
    assert not {"01_cohort", "03_prompts"} & stale("models")


CONTRACTS: dict[str, tuple[str, ...]] = {
    "cohort": ("read_cohort", "load_image", "load_labels", "write_cohort"),
    "phantom": ("write_phantom_cohort",),
    "prompts": ("make_prompts", "name_shape"),
    "models": ("load",),
    "models.cris": ("CRIS", "CRISConfig"),
    "synthesis": ("train_diffusion", "sample_cohort"),
    "synthesis.unet": ("SemanticUNet", "SemanticUNetConfig"),
    "training": ("fit",),
    "evaluation": (
        *("score", "score_table", "summary_table", "paired_test", "bootstrap_interval", "epochs_to_reach"),
    ),
    "study": ("RunFolder",),
    "published": ("load_tables", "load_scores"),
}
"""What other programs may rely on, and where it is found."""


@pytest.mark.parametrize("module", CONTRACTS)
def test_what_others_rely_on_is_where_it_was_promised(module: str) -> None:
    found = importlib.import_module(f"echovlsm.{module}")
    for name in CONTRACTS[module]:
        value: Callable | type = getattr(found, name)
        assert callable(value)
        assert value.__module__.startswith("echovlsm.")
