"""What the phantom is held against: a simulator of waves, hearts, and what a model learns from it.

    python -m benchmarks.phantom.simus                         # needs PyMUST; five minutes of one core
    python -m benchmarks.phantom.hearts --cohort CAMUS_public  # minutes
    python -m benchmarks.phantom.ablation                      # of the study's records, seconds

Each puts its tables on record in `data/results/phantom`, which notebook 11 shows.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from echovlsm.base import paths, provenance

FOLDER = "data/results/phantom"


def put_on_record(name: str, table: pd.DataFrame, folder: str | Path = FOLDER, **told: Any) -> Path:
    """Write `name`.csv, and in `about.yaml` when, at which commit and of what (`told`) it was made."""
    folder = paths.resolve(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "about.yaml"
    known = yaml.safe_load(about.read_text()) if about.is_file() else {}
    now = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": provenance.commit()}
    contents = {
        folder / f"{name}.csv": table.to_csv(index=False, float_format="%.5g", lineterminator="\n"),
        about: yaml.safe_dump(known | {name: now | told}, sort_keys=False),
    }
    for path, content in contents.items():
        partial = path.with_suffix(".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    return folder / f"{name}.csv"
