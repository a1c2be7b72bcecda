"""Freshness: what a page of the book was made from, and whether that is still what lies on disk.

Jupyter Book's own execution cache sees only a notebook's code. Here a page's key covers its notebook, the
package, the parameters, `requirements.lock`, the cohort and the weights. `record_freshness` writes it down
beside the executed notebook; `page_facts` compares it with what lies on disk when the book is built.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from echovlsm import files, runs
from echovlsm.files import read_json, read_yaml
from echovlsm.parameters import notebook_defaults, read_profile

UNKNOWN = "not recorded"

# These draw the stand-in scenes or publish; no page's numbers come from them.
_NOT_COUNTED = {
    *(
        "book.py",
        "book_assets.py",
        "book_tables.py",
        "files.py",
        "book_reliability.py",
        "freshness.py",
        "pretraining.py",
    ),
    *("scenes.py", "warm.py", "dry_run.py", "dry_run_checks.py", "full_weights.py", "rehearsal.py"),
}
# These serve one chapter only: the page whose name begins with the number.
_CHAPTERS = {
    **{"published": "07", "claims": "07", "grid": "06", "explorer": "08"},
    **dict.fromkeys(("real_", "clinical", "evaluate", "plan", "queue", "answer"), "09"),
    "benchmark": "10",
}


class BookError(RuntimeError):
    """The book cannot be built; the message names the page and the remedy."""


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
        since = f": changed since are {', '.join(self.changed)}" if self.changed else ""
        return (
            f"Executed {self.executed} in {self.duration} · commit {self.commit} · scale {self.scale} · "
            f"cohort {self.cohort} · {self.device} · freshness key `{self.key}` · **{self.state}**{since}"
        )


def digest(*parts: bytes | str) -> str:
    """Twelve hexadecimal digits of the SHA-256 over parts, each with its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big"))
        total.update(data)
    return total.hexdigest()[:12]


@lru_cache(maxsize=32)
def cohort_digest(folder: Path) -> str | None:
    """Hash of a cohort's content; None where the folder is gone, so that its freshness cannot be told."""
    from echovlsm.cohort import CohortError, cohort_hash

    try:
        return cohort_hash(folder)
    except (CohortError, OSError):
        return None


def freshness_parts(
    root: Path, notebook: Path, parameters: Mapping[str, Any], executed: Path | None = None
) -> dict[str, str | None]:
    """What a page depends on, one short hash each, from what lies on disk now.

    Parameters
    ----------
    root
        The project.
    notebook
        The notebook's source. Only its cells count, not outputs or metadata.
    parameters
        The parameters of its execution; `cohort`, `weights`, `results` and `benchmarks` name folders whose
        content counts.
    executed
        The executed notebook; the `weights/` beside it count where there is no parameter `weights`.

    Returns
    -------
    dict
        `notebook, package, parameters, lock, data, weights, results`; None for what it has not.
    """
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    package = [path for path in sorted((root / "echovlsm").rglob("*.py")) if _counts(path, notebook)]
    cohort, weights, results = parameters.get("cohort"), parameters.get("weights"), _recorded(parameters)
    # A page without starting weights of its own rests on those of the run that it lies in.
    folder = runs.resolve(weights, root) if weights else executed.with_name("weights") if executed else None
    return {
        "notebook": digest(*(part for cell in cells for part in (cell.cell_type, cell.source))),
        "package": digest(
            *(part for p in package for part in (p.relative_to(root).as_posix(), p.read_bytes())),
        ),
        "parameters": digest(json.dumps(dict(parameters), sort_keys=True, default=str)),
        "lock": digest((root / "requirements.lock").read_bytes()),
        "data": cohort_digest(runs.resolve(cohort, root)) if cohort else None,
        "weights": runs.weights_hash(folder) if folder and folder.is_dir() else None,
        "results": _folder_digest(runs.resolve(results, root)) if results else None,
    }


def _counts(module: Path, notebook: Path) -> bool:
    """Whether a page rests on a module of the package."""
    chapter = next((number for name, number in _CHAPTERS.items() if module.stem.startswith(name)), "")
    return module.name not in _NOT_COUNTED and notebook.stem.startswith(chapter)


def _recorded(parameters: Mapping[str, Any]) -> str | None:
    """The folder of recorded results that a page shows."""
    return parameters.get("results") or parameters.get("benchmarks")


def _folder_digest(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder of recorded results."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest(*(part for f in files for part in (f.relative_to(folder).as_posix(), f.read_bytes())))


def _record_path(executed: Path) -> Path:
    return executed.with_name(f"{executed.stem}.freshness.json")


def _profile(root: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    path = root / "notebooks" / "profiles" / f"{parameters.get('profile') or parameters.get('scale')}.yaml"
    return read_profile(path) if path.is_file() else {}


def plain(text: object) -> str:
    """A value as Markdown that shows it to the letter: no markup, HTML, role or edge of a table."""
    return re.sub(r"[<>&|`{}\[\]$*\\\n]", lambda found: f"&#{ord(found.group())};", str(text))


def _read_executed(executed: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """An executed notebook, Papermill's record of it, and the `run.yaml` beside it (or an empty one)."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    run = executed.with_name("run.yaml")
    return (
        notebook,
        dict(notebook.metadata.get("papermill", {})),
        read_yaml(run, BookError, "execute the notebook again") if run.is_file() else {},
    )


def record_freshness(
    executed: str | Path,
    notebook: str | Path | None = None,
    *,
    device: str | None = None,
    root: str | Path | None = None,
) -> Path:
    """Write down what an execution depended on; call it right after Papermill has ended.

    Parameters
    ----------
    executed
        The notebook that Papermill wrote. A `run.yaml` beside it adds device and packages.
    notebook
        Its source; by default `notebooks/` and the same name.
    device
        The device in words; by default that of `run.yaml`, else this machine's.
    root
        The project; by default the one of the working folder.

    Returns
    -------
    Path
        `<name>.freshness.json` beside the executed notebook.
    """
    root = Path(root) if root else runs.project_root()
    executed = Path(executed).resolve()
    source = Path(notebook).resolve() if notebook else root / "notebooks" / executed.name
    for path in (executed, source):
        if not path.is_file():
            raise BookError(f"{path} does not exist: freshness is recorded after a notebook was executed")
    _, papermill, run = _read_executed(executed)
    parameters = {**notebook_defaults(source), **papermill.get("parameters", {})}
    profile = _profile(root, parameters)
    cohort_digest.cache_clear()
    parts = freshness_parts(root, source, parameters, executed)
    record = {
        "key": digest(json.dumps(parts, sort_keys=True)),
        "parts": parts,
        "executed": papermill.get("end_time"),
        "parameters": parameters,
        # a later change of the profile changes these, and makes the page stale
        "from_profile": sorted(name for name, value in parameters.items() if profile.get(name, ...) == value),
        "commit": runs.commit(),
        "device": device or run.get("device") or _device(parameters),
        "packages": run.get("packages") or runs.package_versions(),
    }
    target = _record_path(executed)
    with files.appearing(target) as partial:
        partial.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return target


def _device(parameters: Mapping[str, Any]) -> str:
    """The device in words; torch, which takes seconds to import, is asked only where there may be a GPU."""
    if any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return runs.device_name()
    return runs.cpu_name(parameters.get("threads"))


def page_facts(root: Path, page: str, executed: Path, scale: str) -> PageFacts:
    """How an executed notebook came about, and whether what it depended on is still the same."""
    _, papermill, run = _read_executed(executed)
    path = _record_path(executed)
    remedy = "delete it, or execute the notebook again"
    record = read_json(path, BookError, remedy) if path.is_file() else {}
    if record.get("executed") != papermill.get("end_time"):
        record = {}  # the record is of another execution
    parameters = record.get("parameters") or {**run.get("parameters", {}), **papermill.get("parameters", {})}
    state, changed = UNKNOWN, ()
    if record:
        profile = _profile(root, parameters)
        now = parameters | {name: profile[name] for name in record["from_profile"] if name in profile}
        parts = freshness_parts(root, root / f"{page}.ipynb", now, executed)
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
        scale=plain(parameters.get("scale") or run.get("scale") or scale),
        cohort=plain(_cohort_words(root, parameters, run)),
        device=plain(record.get("device") or run.get("device") or UNKNOWN),
        commit=plain(record.get("commit") or run.get("commit") or UNKNOWN),
        key=plain(record.get("key") or UNKNOWN),
        state=state,
        changed=changed,
        packages={
            plain(name): plain(version)
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
        return f"as recorded in {recorded}" if (recorded := _recorded(parameters)) else UNKNOWN
    folder = runs.resolve(cohort, root)
    meta = folder / "cohort.yaml"
    remedy = "copy the cohort again, or execute the notebook on another"
    values = read_yaml(meta, BookError, remedy) if meta.is_file() else {}
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
    return f"{'Changed since ' + last if last else 'Not committed'} · file `{digest(file.read_bytes())}`"
