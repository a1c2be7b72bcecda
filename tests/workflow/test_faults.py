"""Faults: killed, without room, not alone. `python -m tests.faults` does the same at length."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from echovlsm.base import cache, files
from echovlsm.base.files import FullDiskError, InUseError
from echovlsm.base.run_folder import RunFolder
from tests.conftest import ROOT
from tests.faults import disks
from tests.faults.__main__ import is_wrong
from tests.faults.stages import STAGES

KILLED = ("phantom", "sampling", "training", "scoring")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# -- killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Each stage killed between two steps on files, which hits harder than at a random moment."""
    out = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "tests.faults", "--only", "kills", "--stages", *KILLED]
    command += ["--kills", "0", "--steps", "1", "--once", "--seed", "5", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (out / "faults.csv").is_file(), done.stdout + done.stderr
    return pd.read_csv(out / "faults.csv")


@pytest.mark.parametrize("stage", KILLED)
def test_a_killed_process_leaves_nothing_half_and_ends_the_same(killed: pd.DataFrame, stage: str) -> None:
    found = killed[killed["stage"] == stage]
    assert list(found["at"]) == ["step"]
    assert found["half_written"].isna().all(), found.to_dict("records")
    assert found["equal"].all(), found.to_dict("records")
    assert found["workers_ended"].all()


def test_a_trial_that_does_not_come_out_is_called_wrong() -> None:
    good = {"equal": True, "half_written": "", "workers_ended": True}
    assert not is_wrong(good)
    assert is_wrong(good | {"equal": False})
    assert is_wrong(good | {"half_written": "scores.parquet"})
    assert is_wrong(good | {"workers_ended": False})
    assert is_wrong(good | {"error": "OSError", "names_folder": True, "names_remedy": False})
    assert is_wrong(good | {"first": "worked", "second": "failed: OSError"})
    stage = STAGES["training"]
    assert stage.half_written({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["b"]
    assert stage.half_written({"a: ValueError!": None}, {"a": 1}) == ["a: ValueError!"]
    assert not stage.equal({"a": [1.0]}, {"a": [1.0001]})
    assert STAGES["features"].equal({"a": [1.0]}, {"a": [1.0001]})


def test_a_half_written_record_does_not_count(tmp_path: Path) -> None:
    """The mark of a whole record goes first and comes last."""
    run = RunFolder(tmp_path / "run")
    run.start({"seed": 1})
    for name in ("history.csv", "scores.parquet"):
        run.write_table(name, pd.DataFrame({"dice": [0.5]}))
    run.finish(evaluation={"parameters": {}})
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "results" / "run" / "run.yaml").write_text("status: of an earlier record\n")
    with pytest.raises(FileNotFoundError):  # there is no prompt matrix to copy
        run.put_on_record(tmp_path / "results")
    assert not (tmp_path / "results" / "run" / "run.yaml").exists()


# -- no room --------------------------------------------------------------------------------------------


def _weights(folder: Path) -> None:
    from echovlsm.models.unet import ReferenceUNet

    RunFolder(folder).save_weights(ReferenceUNet.fresh(32))


def _checkpoint(folder: Path) -> None:
    import torch
    from accelerate import Accelerator

    from echovlsm.training.checkpoints import Checkpoints

    accelerator = Accelerator()
    model = torch.nn.Linear(300, 300)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    states = Checkpoints(folder, accelerator)
    states.save({"history": [{"epoch": 1}]}, 1)
    states.end()
    assert states.saved()[0]["history"] == [{"epoch": 1}]


def _denoiser(folder: Path) -> None:
    from echovlsm.synthesis.weights import load_denoiser, save_denoiser

    model, _ = load_denoiser(ROOT / "data" / "weights" / "sdm-tiny")
    save_denoiser(model, "v_prediction", folder / "sdm")


def _cohort(folder: Path) -> None:
    from echovlsm.cohort.write import write_cohort

    noise = np.random.default_rng(1).integers(0, 256, (256, 256), dtype=np.uint8)
    frame = {"patient": "p1", "view": "2CH", "phase": "ED", "split": "train", "image": noise}
    write_cohort(folder / "cohort", [{**frame, "labels": noise % 4}], {"name": "cohort", "kind": "phantom"})


def _batch(folder: Path) -> None:
    from echovlsm.synthesis import sampling

    pictures = np.random.default_rng(1).integers(0, 256, (8, 96, 96), dtype=np.uint8)
    sampling._save_batch(folder, 0, pictures, pictures, np.zeros(8), 1.0)


def _table(folder: Path, name: str) -> None:
    table = pd.DataFrame({"dice": np.random.default_rng(1).random(20_000)})
    RunFolder(folder).write_table(name, table)


def _csv(folder: Path) -> None:
    _table(folder, "history.csv")


def _parquet(folder: Path) -> None:
    _table(folder, "scores.parquet")


def _yaml(folder: Path) -> None:
    RunFolder(folder).note(long="x" * 200_000)


def _copy(folder: Path) -> None:
    files.copy(ROOT / "data" / "weights" / "clipseg-tiny" / "model.safetensors", folder / "copy")


WRITERS = (_weights, _checkpoint, _denoiser, _cohort, _batch, _csv, _parquet, _yaml, _copy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with disks.small_disk(tmp_path / "small", 64) as disk:
            yield disk
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.strip("_"))
def test_a_full_disk_is_said_in_words_and_costs_nothing_else(
    write: Callable[[Path], None], small_disk: Path
) -> None:
    with pytest.raises(
        FullDiskError, match="free some space there, or name a folder on another disk"
    ) as said:
        write(small_disk)
    assert str(small_disk) in str(said.value)
    assert said.value.errno == errno.ENOSPC
    left = [path.relative_to(small_disk).as_posix() for path in small_disk.rglob("*") if path.is_file()]
    # files that came before, each whole, and the lock of what this process would go on with
    assert set(left) <= {"sdm/scheduler_config.json", "sdm/config.json", files.LOCK}
    disks.enlarge(small_disk, 2**17)
    write(small_disk)
    files.release(small_disk)


def test_a_full_disk_costs_the_cache_time_and_no_result(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(small_disk))
    array = np.arange(30_000)
    found = cache.arrays("thing", "key", lambda: {"a": array})
    assert (found["a"] == array).all()
    assert not any(small_disk.iterdir())


FULL: dict[str, Exception] = {
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "size of a file": OSError(errno.EFBIG, "File too large"),
    "safetensors": Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    "PyTorch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    "NumPy": OSError("30000 requested and 8184 written"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_known_by_whatever_a_library_makes_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = name in ("PyTorch", "NumPy")
    monkeypatch.setattr(files, "_free", lambda folder: 0 if silent else 2**30)
    (tmp_path / "table.csv").write_text("before\n")

    def write() -> None:
        with files.appearing(tmp_path / "table.csv") as partial:
            partial.write_text("half")
            raise FULL[name]

    with pytest.raises(FullDiskError, match="free some space"):
        write()
    assert (tmp_path / "table.csv").read_text() == "before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_other_errors_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="as meant"), files.room(tmp_path):
        raise RuntimeError("as meant")
    with pytest.raises(PermissionError), files.appearing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "no")
    monkeypatch.setattr(files, "_free", lambda folder: 0)
    with pytest.raises(ValueError, match="as meant"), files.room(tmp_path):
        raise ValueError("as meant")
    assert not any(tmp_path.iterdir())


def test_features_are_not_kept_in_a_map_of_a_file_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing to a map of a file beyond the end of the disk would kill the process."""
    from echovlsm.training import features

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FullDiskError, match="free some space"):
        features._large_array(str(tmp_path / "0.npy"), np.dtype("f4"), (10, 10))


# -- not alone ------------------------------------------------------------------------------------------

HOLD = """
from pathlib import Path
from echovlsm.base import files
files.hold(Path({folder!r}))
print("held", flush=True)
input()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(folder=str(folder))],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_names_the_first(tmp_path: Path) -> None:
    process = _holder(tmp_path)
    try:
        with pytest.raises(
            InUseError, match=rf"{tmp_path}: process {process.pid} on .* works in this folder"
        ):
            files.hold(tmp_path, wait=0.1)
        with pytest.raises(InUseError, match="wait until it has ended"), files.only_one(tmp_path, wait=0.1):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert files.hold(tmp_path, wait=0.1)  # a killed process holds nothing
    assert not files.hold(tmp_path)  # and one's own lock is no obstacle
    files.release(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_its_holder_removed_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    assert files.hold(folder)
    files.remove(folder)
    files.release(folder)
    with files.only_one(folder):
        assert folder.is_dir()
    assert not any(folder.iterdir())


RUN = """
import sys, time
from pathlib import Path
import pandas as pd
from echovlsm.base import RunFolder, files, run_folder
run_folder.device_name, run_folder.peak_memory, files.WAIT = (lambda: "none"), (lambda: 0.0), {patience}
print("ready", flush=True)
input()
run = RunFolder({folder!r})
try:
    to_do = run.start({{"seed": 1}})
except files.InUseError as error:
    print("said so:", error)
    sys.exit()
if to_do:
    time.sleep(1)
    run.write_table("history.csv", pd.DataFrame({{"process": [{number}]}}))
    run.finish()
print("trained" if to_do else "found it complete")
"""


@pytest.mark.parametrize(("patience", "second"), [(0.1, "said so:"), (60.0, "found it complete")])
def test_of_two_processes_one_works_and_the_other_waits_or_says_so(
    tmp_path: Path, patience: float, second: str
) -> None:
    folder = tmp_path / "run"
    both = []
    for number in (1, 2):
        source = RUN.format(folder=str(folder), patience=patience, number=number)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        both.append(subprocess.Popen([sys.executable, "-c", source], env=ENVIRONMENT, **pipes))
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].strip() for process in both]
    assert all(process.returncode == 0 for process in both)
    (other,) = (text for text in said if text != "trained")
    assert other.startswith(second)
    winner = 1 + said.index("trained")
    assert pd.read_csv(folder / "history.csv")["process"].tolist() == [winner]
    assert yaml.safe_load((folder / "run.yaml").read_text())["status"] == "complete"
    if second == "said so:":
        assert f"{folder}: process {both[winner - 1].pid} on" in other
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "run.yaml"]


def test_a_run_that_is_complete_is_read_while_another_process_holds_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.start({"seed": 1})
    run.finish()
    process = _holder(run.path)
    try:
        assert not run.start({"seed": 1})
    finally:
        process.communicate("\n")
    assert run.require("run.yaml", "04_training")["status"] == "complete"
