"""Checkpoints of a training: Accelerate's state and a JSON, replaced by a rename, never half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import files


class Checkpoints:
    """The newest whole state of a training, which one process at a time works on.

    Parameters
    ----------
    folder
        Where ``checkpoint-<number>/`` and ``history.csv`` live; other processes are kept out until `end`.
    accelerator
        Holds model and optimiser (`Accelerator.prepare`), and knows the processes.

    Raises
    ------
    echovlsm.base.files.InUseError
        Another process trains here.
    """

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self.folder, self.accelerator = folder, accelerator
        self._taken = accelerator.is_main_process and files.hold(folder)

    def saved(self) -> tuple[dict[str, Any], Path] | None:
        """What `save` was given, and its folder; None where nothing was saved. Restores nothing yet."""
        whole = sorted(self.folder.glob(f"checkpoint-{'[0-9]' * 7}/progress.json"))
        return (json.loads(whole[-1].read_text()), whole[-1].parent) if whole else None

    def save(self, kept: Mapping[str, Any], number: int, also: Callable[[Path], None] | None = None) -> None:
        """Write the state as ``checkpoint-<number>``, then drop the one before it.

        `kept` goes into ``progress.json``; its `history`, a list of rows, becomes ``history.csv`` too.
        `also` may write further files into the folder that it gets.

        Raises
        ------
        echovlsm.base.files.FullDiskError
            There is no room; the state before is kept.
        """
        final = self.folder / f"checkpoint-{number:07d}"
        if not self.accelerator.is_main_process:
            self._save_state(final.with_name(f"{final.name}.partial"))
            return
        with files.appearing(final) as partial:
            self._save_state(partial)
            if also:
                also(partial)
            (partial / "progress.json").write_text(json.dumps(kept))
        for older in self.folder.glob("checkpoint-*"):
            if older != final:
                shutil.rmtree(older)
        with files.appearing(self.folder / "history.csv") as partial:
            pd.DataFrame(kept["history"]).to_csv(partial, index=False)

    def end(self) -> None:
        """Let other processes work here."""
        if self._taken:
            files.release(self.folder)

    def _save_state(self, folder: Path) -> None:
        """Model, optimiser and the random state of every process."""
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(folder)
        self.accelerator.wait_for_everyone()
