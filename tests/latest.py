"""Run the tests in this environment and put the outcome on record.

    python -m tests.latest NAME [--note WORDS] [words for pytest]

`make check-latest` calls it where the newest versions that pyproject.toml allows are installed, `make
check-python` where the lock's are, on another Python. `data/results/reliability` gets the outcome
(`latest.yaml`) and, of the newest versions, what differs from the lock (`latest.csv`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
OUT = ROOT / "data" / "results" / "reliability"
ABOUT_THE_LOCK = "tests/workflow/test_project.py::test_lock_holds_everything_needed_and_nothing_else"
"""It compares the lock with what is installed, which is another thing here."""


def differences() -> pd.DataFrame:
    """What is installed here and is not what requirements.lock names: `package, locked, newest`."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    rows = []
    for name, version in locked.items():
        try:
            here = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            here = None
        if here != version:
            rows.append({"package": name, "locked": version, "newest": here})
    return pd.DataFrame(rows, columns=["package", "locked", "newest"])


def describe(words: Sequence[str]) -> str:
    """Which tests pytest's `words` choose; how many run at a time chooses nothing."""
    words = [word for word in words if word not in ("-q", "-v")]
    if "-n" in words:
        place = words.index("-n")
        words = words[:place] + words[place + 2 :]
    return " ".join(words) or "all"


def run_tests(words: list[str]) -> dict[str, Any]:
    """Counts of passed, failed and skipped tests, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"--junitxml={report}",
            "--deselect",
            ABOUT_THE_LOCK,
            *words,
        ]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if not report.is_file():
            raise SystemExit(f"pytest ended with {status} and left no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{case.get('classname', '')}::{case.get('name')}" for case in failed],
    }


def main() -> int:
    """Command line; returns 1 where a test failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the outcome, such as `newest`")
    parser.add_argument("--note", default="", help="what a reader has to know, such as what could not be had")
    options, words = parser.parse_known_args()
    from echovlsm.base import files, provenance

    name = options.name
    if name == "locked":
        name += f", Python {sys.version_info.major}.{sys.version_info.minor}"
    outcome = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": provenance.commit(),
        "python": platform.python_version(),
        "tests": describe(words),
        "note": options.note,
    }
    outcome |= run_tests(words)
    OUT.mkdir(parents=True, exist_ok=True)
    known = yaml.safe_load((OUT / "latest.yaml").read_text()) if (OUT / "latest.yaml").is_file() else {}
    with files.appearing(OUT / "latest.yaml") as partial:
        partial.write_text(yaml.safe_dump({**known, name: outcome}, sort_keys=False))
    if name == "newest":
        with files.appearing(OUT / "latest.csv") as partial:
            differences().to_csv(partial, index=False)
    print(f"{name}: {outcome['passed']} passed, {outcome['failed']} failed, {outcome['skipped']} skipped")
    return int(bool(outcome["failed"]))


if __name__ == "__main__":
    sys.exit(main())
