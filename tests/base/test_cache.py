"""What is computed once: the same as computed anew, and never what belongs to something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echovlsm.base import cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays, self.calls = arrays, 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.arrays


def test_an_entry_is_made_once_and_reads_back_equal(kept: Path) -> None:
    make = Maker(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.zeros(2, dtype=np.int8))
    for _ in range(2):
        found = cache.arrays("thing", "key", make)
        assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["b"].dtype == np.int8
    assert make.calls == 1
    assert not list(kept.glob(".partial-*"))


def test_keys_tell_content_type_and_order_apart() -> None:
    a = np.arange(4)
    keys = {
        cache.key_of(*parts)
        for parts in ((a,), (a.reshape(2, 2),), (a.astype("int8"),), (a[::-1],), (a, 1), (1, a))
    }
    assert len(keys) == 6
    assert cache.key_of(a) == cache.key_of(a.copy())


def test_a_changed_file_changes_the_key(tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"one")
    before = cache.key_of_files([file])
    assert cache.key_of_files([file]) == before
    file.write_bytes(b"other")
    assert cache.key_of_files([file]) != before


def test_beyond_the_bound_the_oldest_go(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.BOUND, "0.000005")  # 5 kB
    for name in ("one", "two", "three"):
        cache.arrays("thing", name, Maker(a=np.zeros(2000, dtype=np.uint8)))
    assert sorted(path.name for path in kept.iterdir()) == ["thing-three", "thing-two"]
    big = Maker(a=np.zeros(8000, dtype=np.uint8))
    cache.arrays("thing", "big", big, size=8000)
    cache.arrays("thing", "big", big, size=8000)
    assert big.calls == 2


def test_it_can_be_turned_off_and_half_an_entry_is_none(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker(a=np.ones(3))
    (kept / "thing-key").mkdir(parents=True)
    (kept / "thing-key" / "a.npy").write_bytes(b"no array")
    assert cache.arrays("thing", "key", make)["a"].tolist() == [1, 1, 1]
    monkeypatch.setenv(cache.FOLDER, "")
    cache.arrays("thing", "key", make)
    assert make.calls == 2
