"""What the phantom is held against: a simulator of waves, hearts, and what a model learns from it.

    python -m benchmarks.phantom.simus                         # needs PyMUST; five minutes of one core
    python -m benchmarks.phantom.hearts --cohort CAMUS_public  # minutes
    python -m benchmarks.phantom.ablation                      # of the study's records, seconds

Each puts its tables on record in `data/results/phantom`, which notebook 11 shows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from echovlsm.base import files, paths, provenance

FOLDER = "data/results/phantom"


def put_on_record(name: str, table: pd.DataFrame, folder: str | Path = FOLDER, **told: Any) -> Path:
    """Write `name`.csv, and in `about.yaml` when, at which commit and of what (`told`) it was made."""
    target, about = (paths.resolve(folder) / file for file in (f"{name}.csv", "about.yaml"))
    known = yaml.safe_load(about.read_text()) if about.is_file() else {}
    now = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": provenance.commit()}
    with files.appearing(target) as partial:
        table.to_csv(partial, index=False, float_format="%.5g", lineterminator="\n")
    with files.appearing(about) as partial:
        partial.write_text(yaml.safe_dump(known | {name: now | told}, sort_keys=False), encoding="utf-8")
    return target
