"""What a start costs: importing the package, and a notebook that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat

from benchmarks.measure import Pair, Rate, Side, median_of
from benchmarks.setups import Settings
from echovlsm.base.paths import project_root
from echovlsm.study import warm

_IMPORT = "import time; t = time.perf_counter(); import echovlsm; print(time.perf_counter() - t)"


def _notebook(folder: Path, name: str, code: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell("threads: int = 1  # processor threads", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def _call(*words: str | Path, **more: str) -> str:
    environment = os.environ | {"JUPYTER_PLATFORM_DIRS": "1"} | more
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=project_root(),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """Imports in new processes; notebooks through Papermill, cold and warm."""
    imports = [float(_call("-c", _IMPORT)) for _ in range(settings.repeats(7) + 1)][1:]
    yield Rate("import", "`import echovlsm`", "s", imports, target=0.3, better="less")
    keep = warm.start()
    socket = os.environ.pop(warm.SOCKET, None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _notebooks(settings, Path(folder), socket)
    finally:
        if keep is not None:
            keep.stdin.close()
            keep.wait()


def _notebooks(settings: Settings, folder: Path, socket: str | None) -> Iterator[Pair | Rate]:
    nothing = _notebook(folder, "nothing", "print(6 * 7)")
    out = folder / "out.ipynb"

    def execute(notebook: Path, **more: str) -> str:
        _call("-m", "echovlsm", "execute", notebook, out, "--no-progress", **more)
        return _printed(out)

    def papermill(notebook: Path) -> str:
        _call("-m", "papermill", notebook, out, "--no-progress-bar", "--cwd", project_root())
        return _printed(out)

    cold = median_of(lambda: execute(nothing), settings.repeats(3))
    title = "a notebook that does nothing, the whole command"
    yield Rate("notebook-cold", f"{title}, ordinary start", "s", cold, target=6, better="less")
    if socket is None:
        return
    ready = {warm.SOCKET: socket}
    quickly = median_of(lambda: execute(nothing, **ready), settings.repeats(3))
    yield Rate("notebook-warm", f"{title}, warm start", "s", quickly, target=6, better="less")
    code = "from echovlsm.models import clipseg\nfrom monai import losses\nprint(clipseg.CLIPSeg.name)"
    imports = _notebook(folder, "imports", code)

    def check(found: str, wanted: str) -> str:
        assert found == wanted == "clipseg\n", (found, wanted)
        return "the same output"

    yield Pair(
        "notebook",
        "a notebook that imports a model and its loss",
        "notebook",
        Side("`echovlsm execute`, warm start", lambda: execute(imports, **ready)),
        Side("Papermill", lambda: papermill(imports)),
        check,
        repeats=settings.repeats(3),
        note="Whole commands. The process that is kept warm starts once for a study and is not counted.",
    )
