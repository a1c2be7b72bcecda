"""What is on record: tidy tables, and how they came about."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.measure import Found, processor
from echovlsm.base import paths, provenance

TABLES: tuple[str, ...] = ("pairs", "measurements", "rates", "growth")
"""Names of the tables, one CSV file each, with a column `entry`."""


def about_machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads, the instructions that PyTorch uses, and versions."""
    import torch

    return {
        "device": processor(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "packages": provenance.package_versions(),
    }


def check_machine(folder: Path, names: Iterable[str], machine: Mapping[str, Any]) -> None:
    """Raise SystemExit where entries of another machine, which these do not measure anew, would be lost."""
    about = paths.resolve(folder) / "about.yaml"
    there = yaml.safe_load(about.read_text()) if about.is_file() else {}
    lost = sorted(set(there.get("entries", {})) - set(names))
    if lost and there.get("machine") != machine:
        raise SystemExit(
            f"--only: {folder} holds results of another machine, and {', '.join(lost)} would be lost; "
            "run all entries, or name another folder with --out"
        )


def write(
    folder: Path, found: Mapping[str, Found], told: Mapping[str, Mapping[str, Any]], machine: Any
) -> None:
    """Replace the rows of these entries and leave those of others, unless they are of another machine.

    Parameters
    ----------
    folder
        Made if absent. Each file appears by a rename.
    found
        What each entry found.
    told
        How each was measured: seconds, busy_elsewhere.
    machine
        Of `about_machine`.
    """
    folder = paths.resolve(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / "about.yaml"
    before = yaml.safe_load(about.read_text()) if about.is_file() else {}
    kept = before.get("entries", {}) if before.get("machine") == machine else {}
    now = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": provenance.commit()}
    for name in TABLES:
        rows = [row for one in found.values() for row in getattr(one, name)]
        _replace(folder / f"{name}.csv", rows, [entry for entry in kept if entry not in found])
    entries = {**kept, **{name: {**now, **told[name]} for name in found}}
    partial = about.with_suffix(".partial")
    partial.write_text(yaml.safe_dump({"machine": machine, "entries": entries}, sort_keys=False))
    os.replace(partial, about)


def _replace(path: Path, rows: list[dict[str, Any]], keep: Iterable[str]) -> None:
    parts = [pd.DataFrame(rows)]
    if path.is_file():
        old = pd.read_csv(path)
        parts.insert(0, old[old["entry"].isin(list(keep))])
    table = pd.concat(
        [part for part in parts if len(part)] or [pd.DataFrame({"entry": []})], ignore_index=True
    )
    partial = path.with_suffix(".partial")
    table.to_csv(partial, index=False, float_format="%.6g")
    os.replace(partial, path)
