"""Checkpoints of a training: Accelerate's state and a JSON, replaced by a rename, never half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd


class Checkpoints:
    """The newest whole state of a training.

    Parameters
    ----------
    folder
        Where ``checkpoint-<number>/`` and ``history.csv`` live.
    accelerator
        Holds model and optimiser (`Accelerator.prepare`), and knows the processes.
    """

    def __init__(self, folder: Path, accelerator: Any) -> None:
        self.folder, self.accelerator = folder, accelerator

    def saved(self) -> tuple[dict[str, Any], Path] | None:
        """What `save` was given, and its folder; None where nothing was saved. Restores nothing yet."""
        whole = sorted(self.folder.glob("checkpoint-*/progress.json"))
        return (json.loads(whole[-1].read_text()), whole[-1].parent) if whole else None

    def save(self, kept: Mapping[str, Any], number: int, also: Callable[[Path], None] | None = None) -> None:
        """Write the state as ``checkpoint-<number>``, then drop the one before it.

        `kept` goes into ``progress.json``; its `history`, a list of rows, becomes ``history.csv`` too.
        `also` may write further files into the folder that it gets.
        """
        partial = self.folder / "checkpoint.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(partial)
        self.accelerator.wait_for_everyone()  # every process has written its random state
        if not self.accelerator.is_main_process:
            return
        if also:
            also(partial)
        (partial / "progress.json").write_text(json.dumps(kept))
        final = self.folder / f"checkpoint-{number:07d}"
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for older in self.folder.glob("checkpoint-*"):
            if older != final:
                shutil.rmtree(older)
        table = self.folder / "history.csv.partial"
        pd.DataFrame(kept["history"]).to_csv(table, index=False)
        os.replace(table, self.folder / "history.csv")
