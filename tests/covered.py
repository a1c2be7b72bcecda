"""Run the tests and put on record which share of the package's lines they reach.

    python -m tests.covered [words for pytest]

Processes that tests start count too: notebooks' kernels, workers, the command lines. `make coverage` calls
it; where all tests ran and passed, `data/results/reliability/coverage.csv` gets one row a module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import yaml

from tests.latest import describe

ROOT = Path(__file__).parents[1]
OUT = ROOT / "data" / "results" / "reliability"
WANTED = 0.9
"""Share of lines that is the least."""

SETTINGS = """
[run]
source_pkgs = echovlsm
parallel = true
concurrency = multiprocessing, thread
patch = subprocess
relative_files = true
disable_warnings = module-not-imported, no-data-collected

[report]
# a test drops a module into a copy of the package
ignore_errors = true
# what only type checkers read is no code to reach
exclude_also =
    if TYPE_CHECKING:
"""


def read_report(report: dict) -> pd.DataFrame:
    """Of coverage's JSON report: `module, lines, reached`, one row a file of the package."""
    rows = [
        {
            "module": name,
            "lines": file["summary"]["num_statements"],
            "reached": file["summary"]["covered_lines"],
        }
        for name, file in sorted(report["files"].items())
    ]
    return pd.DataFrame(rows, columns=["module", "lines", "reached"])


def main(words: list[str]) -> int:
    """Command line; returns 1 where a test failed or too few lines are reached."""
    from echovlsm.base import files, provenance

    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "coveragerc"
        settings.write_text(SETTINGS)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "COVERAGE_FILE": str(Path(folder) / "data")}

        def coverage(*arguments: str) -> int:
            command = [sys.executable, "-m", "coverage", arguments[0], f"--rcfile={settings}", *arguments[1:]]
            return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode

        failed = coverage("run", "-m", "pytest", *words)
        coverage("combine", "--quiet")
        report = Path(folder) / "report.json"
        if coverage("json", "--quiet", "-o", str(report)):
            raise SystemExit("coverage has nothing to report: did pytest start?")
        table = read_report(json.loads(report.read_text()))
    share = table["reached"].sum() / table["lines"].sum()
    told = f"{share:.1%} of {table['lines'].sum()} lines reached"
    if failed or describe(words) != "all":
        print(f"{told}; {'tests failed' if failed else 'not all tests ran'}, so nothing is put on record")
        return int(bool(failed))
    OUT.mkdir(parents=True, exist_ok=True)
    with files.appearing(OUT / "coverage.csv") as partial:
        table.to_csv(partial, index=False)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": provenance.commit(),
        "tests": "all",
    }
    with files.appearing(OUT / "coverage.yaml") as partial:
        partial.write_text(yaml.safe_dump(about, sort_keys=False))
    print(told)
    return int(share < WANTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
