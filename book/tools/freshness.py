"""The foot of a page: how it came about, and whether that is still what lies on disk."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echovlsm.base import files, paths
from echovlsm.study import execution

BookError = execution.BookError
RECORDED = "as recorded in"
"""How the cohort of a page begins that trains nothing and shows results on record."""

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class PageFacts:
    """How a notebook page came about, in words for Markdown; `not recorded` where nothing tells."""

    page: str
    executed: str = UNKNOWN
    duration: str = UNKNOWN
    scale: str = UNKNOWN
    cohort: str = UNKNOWN
    device: str = UNKNOWN
    commit: str = UNKNOWN
    key: str = UNKNOWN
    state: str = UNKNOWN
    changed: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The freshness line at the foot of the page (Markdown)."""
        if self.state == "not executed":
            return f"**Not executed** · scale {self.scale}"
        since = f": {', '.join(self.changed)} changed since" if self.changed else ""
        return (
            f"Executed {self.executed} in {self.duration} · commit {self.commit} · scale {self.scale} · "
            f"cohort {self.cohort} · {self.device} · freshness key `{self.key}` · **{self.state}**{since}"
        )


def page_facts(root: Path, page: str, executed: Path, scale: str) -> PageFacts:
    """How an executed notebook came about, and whether what it depended on is still the same."""
    papermill, run = execution.read_executed(executed)
    path = execution.record_path(executed)
    remedy = "delete it, or execute the notebook again"
    record = files.read_json(path, BookError, remedy) if path.is_file() else {}
    if record.get("executed") != papermill.get("end_time"):
        record = {}  # the record is of another execution
    parameters = record.get("parameters") or {**run.get("parameters", {}), **papermill.get("parameters", {})}
    state, changed = UNKNOWN, ()
    if record:
        profile = execution.profile_in(root, parameters)
        now = parameters | {name: profile[name] for name in record["from_profile"] if name in profile}
        parts = execution.freshness_parts(root, root / f"{page}.ipynb", now, executed)
        changed = tuple(
            name
            for name, part in record["parts"].items()
            if None not in (part, parts[name]) and part != parts[name]
        )
        gone = [name for name, part in record["parts"].items() if part is not None and parts[name] is None]
        state = "stale" if changed else "fresh" if not gone else f"fresh but for {', '.join(gone)}, not here"
    return PageFacts(
        page=page,
        executed=_when(papermill.get("end_time") or run.get("date")),
        duration=_duration(papermill.get("duration")),
        scale=files.plain(parameters.get("scale") or run.get("scale") or scale),
        cohort=files.plain(_cohort_words(root, parameters, run)),
        device=files.plain(record.get("device") or run.get("device") or UNKNOWN),
        commit=files.plain(record.get("commit") or run.get("commit") or UNKNOWN),
        key=files.plain(record.get("key") or UNKNOWN),
        state=state,
        changed=changed,
        packages={
            files.plain(name): files.plain(version)
            for name, version in (record.get("packages") or run.get("packages") or {}).items()
        },
    )


def _when(moment: Any) -> str:
    if not moment:
        return UNKNOWN
    time = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _cohort_words(root: Path, parameters: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """A cohort's name and kind; of a folder without `cohort.yaml` its last name, no path."""
    cohort = parameters.get("cohort")
    if not cohort and "cohort" in run:
        return str(run["cohort"])
    if not cohort:
        return f"{RECORDED} {results}" if (results := execution.recorded(parameters)) else UNKNOWN
    folder = paths.resolve(cohort, root)
    meta = folder / "cohort.yaml"
    remedy = "copy the cohort again, or execute the notebook on another"
    values = files.read_yaml(meta, BookError, remedy) if meta.is_file() else {}
    return f"{values.get('name', folder.name)}" + (f" ({values['kind']})" if "kind" in values else "")


def prose_line(root: Path, file: Path) -> str:
    """The freshness line of a prose page: the last commit that changed its file, else the file's own hash."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        last = git("log", "-1", "--format=%cs · commit %h", "--", str(file))
        edited = git("status", "--porcelain", "--", str(file))
    except (OSError, subprocess.CalledProcessError):
        last = edited = ""
    if last and not edited:
        return f"Last changed {last}"
    told = f"Changed since {last}" if last else "Not committed"
    return f"{told} · file `{execution.digest(file.read_bytes())}`"
