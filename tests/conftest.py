"""Shared fixtures: thread count, tiny weights, a small phantom cohort, a browser, where real data may lie."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from typer.testing import CliRunner

from echovlsm.__main__ import app, joined

if TYPE_CHECKING:
    from click.testing import Result
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "data" / "weights" / "clipseg-tiny"
FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync"]


def call(*words: object) -> Result:
    """What a command of `echovlsm` prints, and its exit status."""
    found = CliRunner().invoke(app, joined([str(word) for word in words]))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results depend on the thread count; each test begins with one, whatever a command before it chose."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_precision() -> None:
    """A process keeps the precision that its first training chose; each test begins without one."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is computed once is kept apart from the project's."""
    os.environ["ECHOVLSM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; tests that need it are skipped elsewhere."""
    folder = os.environ.get("ECHOVLSM_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ECHOVLSM_SHARED does not name a folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantom patients at 96 px."""
    from echovlsm.phantom.cohort import write_phantom_cohort

    root = tmp_path_factory.mktemp("cohorts") / "phantom-test"
    write_phantom_cohort(root, 6, seed=3, size=96, splits=(0.5, 0.25, 0.25), progress=False, workers=1)
    return root


@pytest.fixture(scope="session")
def phantom_frames(phantom_cohort: Path) -> pd.DataFrame:
    """The frames table of `phantom_cohort`."""
    from echovlsm.cohort.read import read_cohort

    return read_cohort(phantom_cohort)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or the one that ECHOVLSM_CHROMIUM names."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("ECHOVLSM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium here: install the system's package, or name one in ECHOVLSM_CHROMIUM")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[f"--{flag}" for flag in FLAGS])
        yield browser
        browser.close()
