"""Runs: a folder that says how its numbers came about.

A run folder holds `run.yaml` (every parameter, versions, commit, device, data and weights hashes, scale),
`history.csv`, `scores.parquet`, `weights/` in Hugging Face layout and the executed notebooks. A complete run
is skipped, an interrupted one resumes, one of other parameters is refused or made again. One process at a
time works in a run folder.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from echovlsm.base import files
from echovlsm.base.paths import resolve
from echovlsm.base.provenance import RunError, code_hash, commit, device_name, package_versions, peak_memory

if TYPE_CHECKING:
    import pandas as pd


_WORK = ("state", "weights", "weights.partial*", "sdm", "sdm-state", "sdm.partial", "segmenter-*")
_FILES = ("*.csv", "*.parquet", "*.partial", "run.yaml")
"""What a run leaves in its folder, its record last. Notebooks stay, as one may be executing into it."""


class RunFolder:
    """One run's folder; a relative `path` counts from the project's root."""

    def __init__(self, path: str | Path) -> None:
        self.path = resolve(path)
        self._opened = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since this object was made, for a run's own account of its time."""
        return round(time.perf_counter() - self._opened, 2)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def record(self) -> dict[str, Any]:
        """What `run.yaml` says; empty before the run was started. RunError where the file is broken."""
        file = self / "run.yaml"
        remedy = "copy the run again, or delete this file to make the run from its start"
        try:
            record = files.read_yaml(file, RunError, remedy) if file.is_file() else {}
        except RunError:
            if file.is_file():
                raise
            record = {}  # deleted in between: another process makes this run again
        for name in ("parameters", "evaluation"):
            if not isinstance(record.get(name, {}), dict):
                raise RunError(f"{file}: `{name}` holds no names with values; {remedy}")
        return record

    @property
    def complete(self) -> bool:
        """Whether the run ended."""
        return self.record.get("status") == "complete"

    def start(
        self,
        parameters: Mapping[str, Any],
        *,
        redo: bool = False,
        rooms: Sequence[str] = ("training",),
        **provenance: Any,
    ) -> bool:
        """Open the run for writing.

        Parameters
        ----------
        parameters
            Every parameter of the notebook.
        redo
            Whether to make a run again that had other parameters, data, weights or code.
        rooms
            Those of the package whose code, with what they rest on, makes the run; by default a training's.
        provenance
            What else must be equal and belongs in `run.yaml`, such as `data_hash` and `weights_hash`.

        Returns
        -------
        bool
            True if there is work to do (from the start, or from where an equal run was interrupted), False if
            an equal run is complete.

        Raises
        ------
        RunError
            The folder holds another run and `redo` is false.
        echovlsm.base.files.InUseError
            Another process works in the folder. This one does so from here to `finish`, or to its end.
        """
        asked = {"parameters": dict(parameters), "code_hash": code_hash(*rooms), **provenance}
        if self._found(asked, redo) == "complete":
            return False
        self._make_folder()
        files.hold(self.path)
        try:
            found = self._found(asked, redo)  # the process that was waited for may have ended it
            if found != "complete":
                self._begin(asked, parameters.get("scale"), anew=found == "other")
                return True
        except BaseException:
            files.release(self.path)
            raise
        files.release(self.path)
        return False

    def _found(self, asked: Mapping[str, Any], redo: bool) -> str:
        """What of the run asked for is here: `complete`, `started`, or `other` (or nothing)."""
        before = self.record
        differences = _differences(before, asked) if before else []
        if differences and not redo:
            raise RunError(
                f"{self.path} holds a run made otherwise ({'; '.join(differences)}): name another `run` "
                "folder, delete this one, or set redo=true"
            )
        if differences or not before:
            return "other"
        return "complete" if before.get("status") == "complete" else "started"

    def _begin(self, asked: Mapping[str, Any], scale: Any, *, anew: bool) -> None:
        if anew:
            self._empty()
        values = {
            "status": "started",
            "scale": scale,
            **asked,
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device_name(),
            "packages": package_versions(),
        }
        self.write_yaml("run.yaml", values)

    def _empty(self) -> None:
        """Delete what an earlier run left here, and nothing that is not a run's."""
        for pattern in _WORK + _FILES:
            for path in self.path.glob(pattern):
                files.remove(path)

    def require(
        self, name: str, notebook: str, parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The record of a complete run that holds `name` and was made with `parameters`.

        Raises
        ------
        RunError
            The run is missing, unfinished (the message names the notebook that makes it), or another one.
        """
        if not self.complete or not (self / name).exists():
            state = "is not finished" if self.record else "does not exist"
            raise RunError(
                f"run: {self.path} {state}; run notebooks/{notebook}.ipynb with these parameters first"
            )
        made = self.record["parameters"]
        other = {key: made.get(key) for key, value in (parameters or {}).items() if made.get(key) != value}
        if other:
            raise RunError(f"run: {self.path} was made with {other}; give these values, or name another run")
        return self.record

    def finish(self, **results: Any) -> None:
        """Mark the run as complete, add `results`, time and peak memory to `run.yaml`, free the folder."""
        spent = {"peak_memory_gib": peak_memory(), "seconds": self.seconds}
        self.note(**{**spent, **results, "status": "complete"})
        files.release(self.path)

    def evaluation_suffix(self, settings: Mapping[str, Any]) -> str:
        """Empty for the run's first way of scoring; for any other a name that keeps its results apart."""
        before = self.record.get("evaluation", {}).get("parameters", {})
        if all(before.get(key, value) == value for key, value in settings.items()):
            return ""
        return "-" + "-".join(Path(str(value)).name for value in settings.values())

    def note(self, **results: Any) -> None:
        """Add `results` to `run.yaml` and leave its status."""
        self._make_folder()
        with files.only_one(self.path):  # from reading to writing
            self.write_yaml("run.yaml", {**self.record, **results})

    def put_on_record(
        self,
        results: str | Path,
        name: str = "",
        tables: Mapping[str, pd.DataFrame] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> Path:
        """Copy what may be published of a complete, scored run: scores, history, record; no weights.

        Parameters
        ----------
        results
            Folder of recorded runs, such as `data/results/camus`; the run gets a folder in it.
        name
            That folder's; by default the run's own.
        tables, evaluation
            File names to tables, and how they came about, of a run that was scored elsewhere; by default the
            run's own files and record, all of which must be there.
        """
        record = self.record if tables else self.require("scores.parquet", "05_evaluation")
        record["evaluation"] = dict(evaluation or record["evaluation"])
        where = {"cohort", "run"}  # paths of one machine tell another nothing
        for part in (record, record["evaluation"]):
            part["parameters"] = {key: value for key, value in part["parameters"].items() if key not in where}
        target = RunFolder(resolve(results) / (name or self.path.name))
        (target / "run.yaml").unlink(missing_ok=True)  # until all is there, nothing counts
        own = ("history.csv",) if tables else ("history.csv", "scores.parquet", "prompt_matrix.csv")
        for file in own:
            if not tables or (self / file).is_file():
                files.copy(self / file, target / file)
        for file, table in (tables or {}).items():
            target.write_table(file, table)
        target.write_yaml("run.yaml", record)
        return target.path

    def discard(self, name: str) -> None:
        """Delete a working folder of the run, such as the training state, once it is not needed."""
        shutil.rmtree(self / name, ignore_errors=True)

    def write_yaml(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a YAML file that appears whole or not at all."""
        with self._appear(name) as partial:
            partial.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as `.csv` or `.parquet`, whole or not at all."""
        with self._appear(name) as partial:
            if name.endswith(".parquet"):
                table.to_parquet(partial, index=False)
            else:
                table.to_csv(partial, index=False)

    def save_weights(self, model: Any) -> None:
        """Write the model's Hugging Face folder as `weights/`, whole or not at all."""
        with self._appear("weights") as partial:
            model.save_pretrained(partial)

    def _make_folder(self) -> None:
        told = f"run: the folder {self.path} cannot be made"
        files.make_folder(self.path, RunError, told, "name another `run` folder")

    @contextlib.contextmanager
    def _appear(self, name: str) -> Iterator[Path]:
        """Where to write what then appears whole under `name`, by one process at a time."""
        self._make_folder()
        with files.only_one(self.path), files.appearing(self / name) as partial:
            yield partial


def _differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What sets an earlier run apart from the one asked for, in words; execution details do not count."""
    ignored = {"threads", "run", "redo", "progress", "parameters"}
    there, now = (
        {**record.get("parameters", {}), **{key: record.get(key) for key in asked}}
        for record in (before, asked)
    )
    return [
        f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
        for key in {**there, **now}
        if key not in ignored and there.get(key) != now.get(key)
    ]
