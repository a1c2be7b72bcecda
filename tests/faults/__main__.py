"""Run the faults and write what came of them: ``python -m tests.faults``.

    python -m tests.faults                                  # everything: half an hour on one core
    python -m tests.faults --only kills --stages training   # a part; the other rows on record stay

Rows of the parts and stages that are run take the place of those on record in `data/results/reliability`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import disks, grids, kills, pairs, processes
from .stages import ROOT, STAGES, make_inputs

PARTS = {"kills": "faults.csv", "grid": "faults.csv", "disks": "disk.csv", "pairs": "concurrency.csv"}


def main() -> int:
    """Command line; returns 1 where something did not come out the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--kills", type=int, default=20, help="at random moments, a stage (and the grid)")
    parser.add_argument("--steps", type=int, default=10, help="kills between two steps on files, a stage")
    parser.add_argument("--disks", type=int, default=6, help="small disks, a stage")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of processes, a stage")
    parser.add_argument("--once", action="store_true", help="do not do the undisturbed work twice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "reliability")
    parser.add_argument("--place", type=Path, help="folder to work in; a temporary one")
    options = parser.parse_args()
    os.environ["ECHOVLSM_ROOT"] = str(ROOT)
    processes.warm_up()
    place = options.place or Path(tempfile.mkdtemp(prefix="faults-"))
    place.mkdir(parents=True, exist_ok=True)
    print(f"working in {place}", flush=True)
    bad = 0
    for part, stage, rows in _trials(options, place):
        made = []
        for row in rows:
            made.append(row)
            wrong = is_wrong(row)
            bad += bool(wrong)
            print(
                "WRONG" if wrong else "equal",
                {k: v for k, v in row.items() if v not in ("", None)},
                flush=True,
            )
        _keep(options.out, PARTS[part], stage, made, options.seed, system=platform.system())
    if options.place is None:
        shutil.rmtree(place)
    print(f"{bad} wrong" if bad else "everything came out the same")
    return min(bad, 1)


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether a trial did not come out as promised."""
    silent = bool(row.get("error")) and not (row["names_folder"] and row["names_remedy"])
    failed = any(row.get(name, "").startswith("failed") for name in ("first", "second"))
    ended = row.get("workers_ended", True)
    return bool(not row["equal"] or row["half_written"] or silent or failed or not ended)


def _trials(options: argparse.Namespace, place: Path) -> Iterator[tuple[str, str, Iterator[dict[str, Any]]]]:
    log, inputs = place / "log", place / "inputs"
    inputs.mkdir()
    if {"kills", "disks", "pairs"} & set(options.only):
        processes.ask(lambda: make_inputs(inputs), log)
    disk = "disks" in options.only and disks.possible(place)
    if "disks" in options.only and not disk:
        print("no small disk can be made here (it takes the right to mount): full disks are left out")
    for name in options.stages if {"kills", "disks", "pairs"} & set(options.only) else ():
        stage, common = STAGES[name], (options.seed, log)
        whole = kills.undisturbed(stage, place / f"{name}-whole", inputs, log, 1 if options.once else 2)
        print(f"{name}: undisturbed {whole.seconds:.2f} s, {whole.steps} steps", flush=True)
        where = place / name
        if "kills" in options.only:
            yield (
                "kills",
                name,
                _chain(
                    kills.kills(stage, where, inputs, whole, options.kills, *common),
                    kills.kills(stage, where, inputs, whole, options.steps, *common, steps=True),
                ),
            )
        if disk:
            rows = disks.full_disks(stage, where, inputs, whole.results, options.disks, *common)
            yield "disks", name, rows
        if "pairs" in options.only:
            yield "pairs", name, pairs.pairs(stage, where, inputs, whole, options.pairs, *common)
    if "grid" in options.only:
        yield "grid", "grid", grids.kills(place / "grid", options.kills, options.seed, log)


def _chain(*parts: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from part


def _keep(out: Path, name: str, stage: str, rows: list[dict[str, Any]], seed: int, **about: Any) -> None:
    """Put a stage's rows on record, with when and where."""
    import pandas as pd
    import yaml

    from echovlsm.base import files, provenance

    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if (out / name).is_file():
        before = pd.read_csv(out / name)
        table = pd.concat([before[before["stage"] != stage], table], ignore_index=True)
    order = [*STAGES, "grid"]
    table = table.sort_values("stage", key=lambda column: column.map(order.index), kind="stable")
    whole = [name for name in ("kill", "step", "disk", "pair") if name in table]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    with files.appearing(out / name) as partial:
        table.to_csv(partial, index=False)
    record = out / "about.yaml"
    known = yaml.safe_load(record.read_text()) if record.is_file() else {}
    known.setdefault(name.removesuffix(".csv"), {})[stage] = {
        "commit": provenance.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": "smoke",
        "seed": seed,
        "python": platform.python_version(),
        "command": " ".join(["python -m tests.faults", *sys.argv[1:]]) if "--place" not in sys.argv else "",
        **about,
    }
    with files.appearing(record) as partial:
        partial.write_text(yaml.safe_dump(known, sort_keys=False))


if __name__ == "__main__":
    clock = time.perf_counter()
    status = main()
    print(f"{(time.perf_counter() - clock) / 60:.1f} minutes")
    sys.exit(status)
