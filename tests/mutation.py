"""Do the tests notice? Ten lines of the statistics and scoring modules are changed, one at a time.

    python -m tests.mutation                # ten lines, drawn with the seed; writes the recorded result
    python -m tests.mutation --count 30 --seed 7 --out /elsewhere

Each line is changed in a copy of the package, whose own tests then have to fail. What may be changed, and
how, is `SWAPS` and the classes below it. Not changed is what no test of behaviour could notice: docstrings,
annotations, the words of error messages, what only mypy reads, and options (`UNSEEN`) that decide how fast or
how visibly something is computed, which random numbers it draws, or that check the code's own loops.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

ROOT = Path(__file__).parents[1]
TESTS: dict[str, tuple[str, ...]] = {
    "echovlsm/evaluation/inference.py": (
        "tests/evaluation/test_inference.py",
        "tests/workflow/test_properties.py",
    ),
    "echovlsm/evaluation/statistics.py": (
        "tests/evaluation/test_statistics.py",
        "tests/workflow/test_properties.py",
    ),
    "echovlsm/evaluation/scoring.py": (
        "tests/evaluation/test_scoring.py",
        "tests/workflow/test_properties.py",
    ),
}
"""Modules that are changed, and the tests that have to notice."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq},
    **{ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
}
"""Operator to the one that takes its place."""

UNSEEN: tuple[str, ...] = (
    *("seed", "rng", "resamples", "n_resamples", "batch", "vectorized", "balanced_tree", "compact_nodes"),
    *("progress", "disable", "desc", "unit", "total", "strict"),
)
"""Names of options whose value no test of behaviour can notice."""

RESULTS = ROOT / "data" / "results" / "reliability"
TIMEOUT = 400
"""Seconds after which tests that run on count as having noticed: a loop without an end."""


class Mutant(NamedTuple):
    """One change of one line."""

    file: str
    line: int
    change: str
    original: str
    mutated: str
    source: str


def sites(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a module that may be changed, in the order of the source."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.keyword) and node.arg in UNSEEN:
            return
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            parts = value if isinstance(value, list) else [value]
            if isinstance(node, ast.Dict) and name == "values":
                keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
                parts = [part for key, part in zip(keys, value, strict=True) if key not in UNSEEN]
            if isinstance(node, ast.arguments) and name in ("defaults", "kw_defaults"):
                names = node.kwonlyargs if name == "kw_defaults" else node.args[len(node.args) - len(value) :]
                parts = [part for arg, part in zip(names, value, strict=True) if arg.arg not in UNSEEN]
            for part in parts:
                if isinstance(part, ast.AST):
                    yield from walk(part)

    for node in walk(tree):
        if hasattr(node, "lineno") and change_of(node) is not None:
            yield node


def change_of(node: ast.AST) -> str | None:
    """What is done to a node, in a word; None where nothing is."""
    match node:
        case ast.Compare(ops=[operator, *_]) | ast.BinOp(op=operator) | ast.BoolOp(op=operator):
            new = SWAPS.get(type(operator))
            return f"{type(operator).__name__} to {new.__name__}" if new else None
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert() as operator):
            return f"without {type(operator).__name__}"
        case ast.If() | ast.IfExp() | ast.While():
            return "condition negated"
        case ast.Constant(value=bool()):
            return "truth value flipped"
        case ast.Constant(value=int() | float()):
            return "number plus one"
    return None


class _Change(ast.NodeTransformer):
    """Changes one node, found by identity."""

    def __init__(self, target: ast.AST) -> None:
        self.target = target

    def visit(self, node: ast.AST) -> ast.AST:
        return changed(node) if node is self.target else self.generic_visit(node)


def changed(node: ast.AST) -> ast.AST:
    """A changed copy of a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare():
            new.ops[0] = SWAPS[type(new.ops[0])]()
        case ast.BinOp() | ast.BoolOp():
            new.op = SWAPS[type(new.op)]()
        case ast.UnaryOp():
            return new.operand
        case ast.If() | ast.IfExp() | ast.While():
            new.test = ast.UnaryOp(op=ast.Not(), operand=new.test)
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant():
            new.value += 1
    return new


def mutants(file: str) -> list[Mutant]:
    """Every possible change of a module."""
    text = (ROOT / file).read_text()
    found = []
    count = len(list(sites(ast.parse(text))))
    for number in range(count):
        tree = ast.parse(text)  # afresh, since a change is made in place
        node = list(sites(tree))[number]
        told = [
            ast.unparse(part.test if isinstance(part, ast.If) else part) for part in (node, changed(node))
        ]
        change, line = str(change_of(node)), node.lineno
        source = ast.unparse(ast.fix_missing_locations(_Change(node).visit(tree)))
        found.append(Mutant(file, line, change, *told, source))
    return found


def draw(count: int, seed: int) -> list[Mutant]:
    """One change in each of `count` different lines."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for file in TESTS:
        for mutant in mutants(file):
            by_line.setdefault((file, mutant.line), []).append(mutant)
    rng = random.Random(seed)
    return [rng.choice(by_line[line]) for line in sorted(rng.sample(sorted(by_line), count))]


def copy_project(folder: Path) -> None:
    """What the tests need: the package and the tests as copies, everything else by link."""
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("echovlsm", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("data", "notebooks", "_config.yml", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)


def notice(folder: Path, file: str) -> tuple[bool, str]:
    """Whether the tests of a module fail in a copy of the project, and the first that does."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS[file]]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "check": False}
    try:
        done = subprocess.run(command, timeout=TIMEOUT, **options)
    except subprocess.TimeoutExpired:
        return True, "no end"
    if done.returncode == 0:
        return False, ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    if failed is None:  # ended by something else than a test, such as want of memory: no answer
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return True, failed.group(1).rpartition("/")[2]


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status tells whether at most one change in ten went unnoticed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10, help="lines to change")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data/results/reliability", help="folder of the result"
    )
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    from echovlsm.base.provenance import commit
    from echovlsm.base.run_folder import RunFolder

    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "project"
        folder.mkdir()
        copy_project(folder)
        for file in TESTS:
            if notice(folder, file)[0]:
                print(f"{file}: its tests fail as it is; mend that first", file=sys.stderr)
                return 2
        for mutant in draw(options.count, options.seed):
            clock = time.perf_counter()
            original = (folder / mutant.file).read_text()
            (folder / mutant.file).write_text(mutant.source)
            caught, by = notice(folder, mutant.file)
            (folder / mutant.file).write_text(original)
            row = {**mutant._asdict(), "caught": caught, "by": by}
            del row["source"]
            rows.append(row | {"seed": options.seed, "scale": "smoke", "commit": commit()})
            told = "caught by " + by if caught else "NOT CAUGHT"
            print(
                f"{mutant.file}:{mutant.line} {mutant.change}: {mutant.original} -> {mutant.mutated}: {told} "
                f"({time.perf_counter() - clock:.0f} s)",
                flush=True,
            )
    table = pd.DataFrame(rows)
    RunFolder(options.out).write_table("mutations.csv", table)
    caught = int(table["caught"].sum())
    print(f"{caught} of {len(table)} caught")
    return 0 if caught >= 0.9 * len(table) else 1


if __name__ == "__main__":
    sys.exit(main())
