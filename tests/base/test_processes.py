"""Work spread over processes: in order, with errors, and in this process where it is little."""

import os

import pytest

from echovlsm.base import processes


def who(number: int) -> tuple[int, int]:
    if number == 13:
        raise KeyError("thirteen")
    return number, os.getpid()


def test_results_come_in_the_items_order_from_several_processes() -> None:
    found = list(processes.in_order(who, range(12), 2, chunk=1))
    assert [number for number, _ in found] == list(range(12))
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize("given", [{"workers": 1}, {"workers": 4, "least": 13}, {"workers": 4, "chunk": 12}])
def test_little_work_is_done_here(given: dict[str, int]) -> None:
    assert list(processes.in_order(who, range(12), **given)) == [(n, os.getpid()) for n in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_at_its_items_turn(workers: int) -> None:
    results = processes.in_order(who, range(10, 20), workers)
    assert [next(results)[0] for _ in range(3)] == [10, 11, 12]
    with pytest.raises(KeyError, match="thirteen"):
        next(results)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        list(processes.in_order(who, [1], 0))


def test_only_cores_that_this_process_may_use_count() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to cores")
    allowed = os.sched_getaffinity(0)
    assert processes.usable_cores() == len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert processes.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
