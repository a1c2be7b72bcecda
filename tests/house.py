"""The house: how large each room of the package is, and whether its rules are kept.

    python -m tests.house      # a table of the rooms, then what breaks a rule; exit status 1 if anything does

The rules: a module imports what another room's face names, and nothing deeper; a room imports from rooms
that it rests on only (`echovlsm.base.rooms`); no two modules need each other; no import inside a function
hides that.
"""

from __future__ import annotations

import ast
import importlib
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd

from echovlsm.base import rooms

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "echovlsm"


class Import(NamedTuple):
    """One name that a file imports from the package."""

    file: Path
    line: int
    module: str
    name: str
    inside: bool
    """Whether it stands inside a function."""


def imports(file: Path) -> list[Import]:
    """What a module or a notebook imports from the package, also where only annotations need it."""
    if file.suffix == ".ipynb":
        cells = nbformat.read(file, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        source = "\n".join("" if line.startswith(("%", "!")) else line for line in code.splitlines())
    else:
        source = file.read_text()
    tree = ast.parse(source)
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    hidden = {id(node) for function in functions for node in ast.walk(function)}
    return [
        Import(file, node.lineno, node.module, alias.name, id(node) in hidden)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "echovlsm"
        for alias in node.names
    ]


def sources() -> list[Path]:
    """The package's modules."""
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The room that a file belongs to; empty for the package's own two files and what lies outside it."""
    inside = file.is_relative_to(PACKAGE) and file.parent != PACKAGE
    return file.relative_to(PACKAGE).parts[0] if inside else ""


def users() -> list[Path]:
    """Notebooks, and code outside the package that a reader runs; tests and benchmarks look into rooms."""
    outside = [ROOT / "book" / "tools", ROOT / "data" / "weights" / "make"]
    return [
        *sorted((ROOT / "notebooks").glob("*.ipynb")),
        *(p for d in outside for p in sorted(d.glob("*.py"))),
    ]


def past_a_face(files: list[Path]) -> Iterator[Import]:
    """Imports of what another room's face does not name."""
    for found in (found for file in files for found in imports(file)):
        parts = found.module.split(".")[1:]
        if not parts and found.name not in rooms.RESTS_ON:
            continue  # the package's own constants
        if parts and parts[0] == room_of(found.file):
            continue
        if len(parts) > 1 or (parts and found.name not in importlib.import_module(found.module).__all__):
            yield found


def against_the_direction() -> Iterator[Import]:
    """Imports from rooms that a module's own does not rest on."""
    for found in (found for file in sources() if room_of(file) for found in imports(file)):
        other = found.module.split(".")[1:2] or [found.name]
        if other[0] in rooms.RESTS_ON and other[0] not in rooms.below(room_of(found.file)):
            yield found


def inside_functions() -> Iterator[Import]:
    """Imports of the package's own inside functions."""
    return (found for file in sources() for found in imports(file) if found.inside)


def needed(file: Path) -> set[Path]:
    """The package's modules that a module imports, through the faces."""
    found = set()
    for wanted in imports(file):
        parts = wanted.module.split(".")[1:]
        face = PACKAGE.joinpath(*parts)
        if (face / f"{wanted.name}.py").is_file():
            found.add(face / f"{wanted.name}.py")
        elif face.with_suffix(".py").is_file():
            found.add(face.with_suffix(".py"))
        elif parts:
            value = getattr(importlib.import_module(wanted.module), wanted.name)
            module = getattr(value, "__module__", None)
            if module and module.startswith("echovlsm."):
                found.add(PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py"))
    return found


def circles() -> list[list[str]]:
    """Groups of modules that need each other."""
    graph = {file: needed(file) & set(sources()) for file in sources()}
    reached = {file: _reach(graph, file) for file in graph}
    groups = {
        frozenset(f for f in reached[file] if file in reached[f]) for file in graph if file in reached[file]
    }
    return sorted(sorted(str(f.relative_to(PACKAGE)) for f in group) for group in groups)


def _reach(graph: dict[Path, set[Path]], start: Path) -> set[Path]:
    found, ask = set(), [start]
    while ask:
        for file in graph[ask.pop()] - found:
            found.add(file)
            ask.append(file)
    return found


def code_lines(file: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    source = file.read_text()
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skip]
    documented = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented)


def table() -> pd.DataFrame:
    """A row a room: modules, lines, lines of code, its longest module, and how many names its face has."""
    rows = {}
    for room in ("", *rooms.RESTS_ON):
        files = [file for file in sources() if room_of(file) == room]
        lengths = {file.stem: len(file.read_text().splitlines()) for file in files}
        longest = max(lengths, key=lengths.get)
        face = importlib.import_module(f"echovlsm.{room}").__all__ if room else []
        rows[room or "echovlsm"] = {
            "modules": len(files),
            "lines": sum(lengths.values()),
            "code": sum(map(code_lines, files)),
            "longest": f"{longest} {lengths[longest]}",
            "names": len(face),
        }
    found = pd.DataFrame(rows).T
    found.loc["all"] = [*found[["modules", "lines", "code"]].sum(), "", found["names"].sum()]
    return found


def main() -> int:
    """Print the table and what breaks a rule."""
    print(table().to_string())
    broken = 0
    rules = {
        "past a face": past_a_face([*sources(), *users()]),
        "against the direction": against_the_direction(),
        "inside a function": inside_functions(),
    }
    for rule, found in rules.items():
        for one in found:
            broken += 1
            print(f"{rule}: {one.file.relative_to(ROOT)}:{one.line}: {one.module}.{one.name}")
    for circle in circles():
        broken += 1
        print(f"circle: {', '.join(circle)}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
