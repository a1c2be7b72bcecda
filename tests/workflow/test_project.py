"""The project's own files agree with one another: versions, dependencies, commands, citation, notebooks."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import echovlsm

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def ranges(project: dict[str, Any]) -> dict[str, Requirement]:
    texts = project["dependencies"] + [
        text for extra in project["optional-dependencies"].values() for text in extra
    ]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    ]
    unpinned = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert unpinned == [], "every line is one exact version that any index can serve"
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)
    }


def test_environment_has_the_dependencies_of_pyproject(ranges: dict[str, Requirement]) -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    assert pip[-1] == "-e ."
    found = {canonicalize_name(item.name): item for item in map(Requirement, pip[:-1])}
    assert {name: str(item.specifier) for name, item in found.items()} == {
        name: str(item.specifier) for name, item in ranges.items()
    }
    (python,) = (entry for entry in entries if isinstance(entry, str) and entry.startswith("python="))
    assert python == "python=3.11"


def test_lock_lies_within_the_ranges(ranges: dict[str, Requirement], lock: dict[str, Version]) -> None:
    outside = {
        name: str(lock.get(name)) for name, item in ranges.items() if lock.get(name) not in item.specifier
    }
    assert outside == {}


def test_lock_holds_everything_needed_and_nothing_else(
    ranges: dict[str, Requirement], lock: dict[str, Version]
) -> None:
    """CUDA's libraries, which torch needs on some machines only, belong to no lock that serves all."""
    open_ends = list(ranges.values())
    needed: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    while open_ends:
        item = open_ends.pop()
        name, extras = canonicalize_name(item.name), frozenset(item.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            requires = metadata.requires(item.name) or []
        except metadata.PackageNotFoundError:
            continue
        needed.add(name)
        for text in requires:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in extras or {""}):
                open_ends.append(further)
    accelerator = {name for name in needed if re.match(r"nvidia|cuda|triton", name)}
    assert needed - accelerator - set(lock) == set()
    build_tools = {"setuptools", "wheel"}
    assert set(lock) - needed - build_tools == set()


def test_lock_pins_what_the_book_and_the_models_hang_on(lock: dict[str, Version]) -> None:
    assert lock["torch"] == Version("2.13.0")
    assert lock["jupyter-book"] == Version("1.0.4.post1")
    assert lock["sphinx-book-theme"] == Version("1.1.4")
    assert "torchvision" not in lock


def test_versions_agree(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert echovlsm.__version__ == project["version"] == str(citation["version"])


def test_citation_names_what_the_project_rests_on() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": "EchoVLSM contributors"}]
    assert citation["license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    dois = {reference["doi"] for reference in citation["references"]}
    assert dois == {"10.1007/978-3-031-44521-7_9", "10.1109/TMI.2019.2900516"}
    bibliography = (ROOT / "book" / "references.bib").read_text()
    assert all(doi in bibliography for doi in dois)


def test_readme_gives_the_commands_that_the_makefile_has() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"book", "test", "lab", "clean", "help", "lint"} <= targets
    named = set(re.findall(r"\bmake ([a-z]+)", readme))
    assert {"book", "test"} <= named <= targets
    assert set(re.findall(r"`make ([a-z]+)", (ROOT / "book" / "how_to_run.md").read_text())) <= targets


def test_glossary_examples_are_what_the_prompts_say() -> None:
    from echovlsm.prompts.templates import make_prompt

    known = {"view": "2CH", "phase": "ED", "sex": "F", "age": 40, "quality": "good", "shape": "circle"}
    glossary = (ROOT / "book" / "glossary.md").read_text()
    rows = re.findall(r"^\s*\| `(P\d)` \| [^|]*\|\s*([^|]*?)\s*\|$", glossary, flags=re.MULTILINE)
    assert [level for level, _ in rows] == [f"P{level}" for level in range(8)]
    for level, example in rows:
        text = make_prompt("myocardium", level, 0, **known)
        position = 0
        for piece in example.split("…"):
            position = text.find(piece.strip(), position)
            assert position >= 0, f"{level}: {example!r} is not in {text!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 4
