"""Warm starts: forked kernels are as separate as started ones, and nothing depends on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from echovlsm.study import warm
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not warm.possible(), reason="warm starts need Linux without a GPU")
# `tabnanny` stands for a slow library: nothing else imports it
LIBRARIES = ("numpy", "papermill.engines", "ipykernel.kernelapp", "ipykernel.ipkernel", "tabnanny")


@pytest.fixture
def warm_process() -> Iterator[subprocess.Popen[bytes]]:
    process = warm.start(LIBRARIES)
    yield process
    process.stdin.close()
    assert process.wait(20) == 0
    assert not Path(os.environ.pop(warm.SOCKET)).parent.exists()


def _notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in ("seed: int = 1  # a seed", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), path)
    return path


def _command(notebook: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "echovlsm", "execute", str(notebook), str(out), "--no-progress", *more]


def _execute(notebook: Path, out: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(notebook, out, *more),
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _answer(path: Path) -> dict:
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    return json.loads("".join(o["text"] for o in outputs if o.output_type == "stream"))


FACTS = """import json, os, sys, numpy
print(json.dumps({
    "warm": "tabnanny" in sys.modules,
    "ours": sorted(name for name in sys.modules if name.startswith("echovlsm")),
    "left": getattr(sys, "left_behind", None),
    "draw": numpy.random.random(),
    "seed": seed, "mark": os.environ.get("MARK"), "folder": os.getcwd(),
    "socket": os.environ.get("ECHOVLSM_WARM"),
}))
sys.left_behind = 1"""


def test_kernels_are_warm_separate_and_have_the_callers_environment(
    warm_process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    notebook = _notebook(tmp_path / "facts.ipynb", FACTS)
    answers = []
    for number in (5, 6):
        out = tmp_path / f"out{number}.ipynb"
        done = _execute(notebook, out, "-p", "seed", str(number), MARK=f"mark {number}")
        assert done.returncode == 0, done.stderr
        answers.append(_answer(out))
    for number, answer in zip((5, 6), answers, strict=True):
        assert answer["warm"]
        assert (answer["seed"], answer["mark"]) == (number, f"mark {number}")
        assert Path(answer["folder"]) == ROOT
        assert answer["left"] is None
        assert answer["socket"] is None
        assert set(answer["ours"]) <= {"echovlsm", "echovlsm.study", "echovlsm.study.warm"}
    assert answers[0]["draw"] != answers[1]["draw"]


def test_a_failed_notebook_fails_alone(warm_process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    broken = _notebook(tmp_path / "broken.ipynb", "raise ValueError('as meant')")
    killed = _notebook(tmp_path / "killed.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    good = _notebook(tmp_path / "good.ipynb", FACTS)
    done = _execute(broken, tmp_path / "out.ipynb")
    assert done.returncode == 1
    assert "ValueError: as meant" in done.stderr
    assert not (tmp_path / "out.ipynb").exists()
    assert _execute(killed, tmp_path / "out.ipynb").returncode == 1
    assert _execute(good, tmp_path / "out.ipynb", "-p", "sede", "1").returncode == 2
    assert _execute(good, tmp_path / "out.ipynb").returncode == 0
    assert _answer(tmp_path / "out.ipynb")["warm"]


def test_the_kernel_ends_with_the_command(warm_process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    source = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    notebook = _notebook(tmp_path / "long.ipynb", source)
    command = subprocess.Popen(_command(notebook, tmp_path / "out.ipynb"), cwd=ROOT)
    _wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    kernel = int((tmp_path / "pid").read_text())
    command.send_signal(signal.SIGTERM)
    command.wait(20)
    _wait_for(lambda: not _alive(kernel))


def test_without_a_warm_process_a_notebook_starts_cold(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "facts.ipynb", FACTS)
    done = _execute(notebook, tmp_path / "out.ipynb", **{warm.SOCKET: str(tmp_path / "nobody")})
    assert done.returncode == 0, done.stderr
    assert not _answer(tmp_path / "out.ipynb")["warm"]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
