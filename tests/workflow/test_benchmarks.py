"""Benchmarks: both ways of every pair give the same, at tiny sizes; the record says what was measured."""

from __future__ import annotations

import copy
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from benchmarks import entries, gpu, measure, plain, record, setups
from benchmarks.__main__ import main
from benchmarks.entries.training import count_operations
from benchmarks.measure import Found, Growth, Pair, Rate, Side
from echovlsm.models.cris_parts import Projector, convolve_doubled
from echovlsm.study import speed
from echovlsm.training import loop as training

QUICK = setups.Settings(quick=True, threads=1)
SAID = {
    "training": {"clipseg-frozen", "clipseg-unfrozen", "clipseg-unfrozen-batch", "clipseg-tiny-unfrozen"},
    "loops": {"loop-frozen", "loop-frozen-batch", "loop-unfrozen", "loop-unfrozen-batch"},
    "augmentation": {"augmented-epoch"},
    "cris": {"cris-scoring"},
    "scoring": {"scores"},
    "cohorts": {"prompts"},
    "diffusion": {"diffusion"},
}


@pytest.mark.parametrize("name", SAID)
def test_both_ways_of_every_pair_give_the_same(name: str) -> None:
    seen = set()
    for item in entries.entry(name, QUICK):
        if isinstance(item, Pair):
            seen.add(item.name)
            assert "equal" in item.check(item.ours.run(), item.plain.run()) or name == "cohorts"
        else:
            assert isinstance(item, Rate)
            assert min(item.values) > 0
    assert seen == SAID[name]


def test_a_gpus_parts_work_at_toy_size_and_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "card"
    call = ["--toy", "--out", str(folder), "--only"]
    assert gpu.main([*call, "steps", "--minutes", "0"]) == 1, "no time: the first case only"
    one = pd.read_csv(folder / "steps.csv")
    assert gpu.main([*call, "waits", "steps", "sampling", "hours"]) == 0
    steps, waits, sampling, hours = (
        pd.read_csv(folder / f"{part}.csv") for part in ("steps", "waits", "sampling", "hours")
    )
    assert set(one["way"]) == {"ours", "plain"}
    pd.testing.assert_frame_equal(steps[: len(one)], one)
    known = steps[["model", "encoders", "precision", "compiled"]].drop_duplicates()
    assert len(known) == len(list(gpu.cases("steps", gpu.Setting(toy=True))))
    assert set(steps["way"]) == {"ours", "plain", "compiled"}
    assert steps["seconds"].gt(0).all()
    assert steps["run"].nunique() == 2
    assert (waits["steps"] > 0).all()
    assert sampling.loc[sampling["scheduler"] == "ddpm", "steps"].tolist() == [1000]
    share = steps[steps["way"] != "plain"].assign(each=steps["seconds"] / steps["batch"])
    least = share.groupby(["model", "encoders"])["each"].min()
    row = hours.iloc[0]
    wanted = row["runs"] * 21 * row["images"] * least[row["model"], row["encoders"]] / 3600
    assert row["hours"] == pytest.approx(wanted, rel=1e-4)
    (folder / "hours.csv").unlink()
    assert gpu.main(["--only", "hours", "--out", str(folder)]) == 0, "reckoned from a record, wherever it is"
    pd.testing.assert_frame_equal(pd.read_csv(folder / "hours.csv"), hours)
    capsys.readouterr()
    assert gpu.main([*call, "steps", "sampling"]) == 0
    assert "seconds" not in capsys.readouterr().out, "all is on record"
    tables, _ = speed.read_gpu(tmp_path)
    shown = speed.gpu_steps(tables["steps"])
    assert (shown["ratio"] == shown["ours"] / shown["plain"]).all()
    assert len(shown) == len(steps[["model", "encoders", "precision"]].drop_duplicates())
    lines = speed.gpu_lines(tables)
    assert len(lines) == len(shown) + 2
    assert f"{hours['hours'].sum():.1f} hours" in lines[-2]
    assert list(speed.gpu_waits(tables["waits"])) == ["clipseg"]
    assert speed.read_gpu(folder) == ({}, ""), "no folder of a card lies there"
    monkeypatch.setattr(record, "about_machine", lambda threads: {"gpu": "another"})
    with pytest.raises(SystemExit, match="another machine"):
        gpu.main([*call, "steps"])


def test_a_gpus_tests_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = types.SimpleNamespace(stdout="..sF\n1 failed, 12 passed, 1 skipped in 2.1s\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: said)
    (row,) = gpu.run_tests("training/test_devices", gpu.Setting(toy=True))
    assert (row["passed"], row["failed"], row["skipped"]) == (12, 1, 1)


def test_full_size_asks_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--toy" in capsys.readouterr().err


def test_choices_of_arithmetic_change_no_result() -> None:
    found = {
        item.name: item.check(item.ours.run(), item.plain.run())
        for item in entries.entry("arithmetic", QUICK)
        if isinstance(item, Pair)
    }
    assert {"fused-adamw-tiny", "channels-last-unet", "inference-mode", "threads-tiny", "compiled"} <= set(
        found
    )


def test_growth_is_measured_at_several_amounts() -> None:
    items = list(entries.entry("growth", QUICK))
    assert all(isinstance(item, Growth) and len(item.seconds) >= 2 for item in items)
    assert {item.axis for item in items} == {"images", "prompts per image", "pixels per image"}


# -- what the ratios rest on ----------------------------------------------------------------------------


def _pair(ours: float = 1, theirs: float = 1, **more) -> Pair:
    def check(found: float, wanted: float) -> str:
        assert found == wanted
        return "equal"

    left = Side("ours", lambda: ours, units=3)
    right = Side("plain", lambda: theirs, units=2, scale=10)
    return Pair("p", "title", "mask", left, right, check, **more)


def test_a_ratio_is_of_neighbours_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([3.0, 2.0, 4.0, 6.0, 3.0, 40.0])  # ours, plain; plain, ours; ours, plain
    monkeypatch.setattr(measure, "time_call", lambda run: (next(clock), run()))
    found = Found()
    row = measure.time_pair(_pair(target=8), "entry", found, repeats=3)
    # plain: 2, 4 and 40 s for two units, a tenth of the whole: 10, 20 and 200 s a unit; ours: 1, 2 and 1 s
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (10, 10, 200)
    assert (row["ours_seconds"], row["plain_seconds"]) == (1, 20)
    assert [m["side"] for m in found.measurements] == ["ours", "plain", "plain", "ours", "ours", "plain"]


def test_a_pair_that_differs_is_not_timed() -> None:
    found = Found()
    with pytest.raises(AssertionError):
        measure.time_pair(_pair(1, 2), "entry", found)
    assert found.measurements == []


def test_gradients_that_differ_are_told() -> None:
    wanted = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert "2 tensors" in setups.assert_same_gradients({k: v.clone() for k, v in wanted.items()}, wanted)
    with pytest.raises(AssertionError, match="most of all a"):
        setups.assert_same_gradients({"a": torch.tensor([1, 1, 1.1]), "b": torch.zeros(2)}, wanted)
    with pytest.raises(AssertionError, match="b"):
        setups.assert_same_gradients({"a": torch.ones(3)}, wanted)


def test_operations_are_counted_with_attention() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    assert count_operations(lambda: a @ b) == 2 * 5 * 7 * 11
    q = torch.randn(2, 3, 64, 16)
    both = 2 * (2 * 3 * 64 * 64 * 16)
    with torch.no_grad():
        assert count_operations(lambda: functional.scaled_dot_product_attention(q, q, q)) == 2 * both


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--only", "scorring"])
    assert stop.value.code == 2
    assert "scorring" in capsys.readouterr().err


def test_the_command_prints_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--only", "scoring", "--threads", "1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "five metrics of 12 masks" in told
    assert "equal to" in told
    tables, about = speed.read_results(tmp_path)
    assert list(tables["pairs"]["pair"]) == ["scores"]
    assert "Provisional" in speed.how_measured(about), "tiny sizes are no record"


# -- the record -----------------------------------------------------------------------------------------


def _found(entry: str, ratio: float) -> Found:
    row = {"entry": entry, "pair": entry, "kind": "goal", "ratio": ratio, "target": 2.0, "title": entry}
    row |= {"ratio_min": ratio, "ratio_max": ratio, "repeats": 3, "note": ""}
    return Found(pairs=[row])


def test_an_entry_replaces_its_own_rows_only(tmp_path: Path) -> None:
    told, machine = {"seconds": 1.0, "busy_elsewhere": 0.0}, record.about_machine(1)
    for entry, ratio in (("a", 1.0), ("b", 5.0), ("a", 3.0)):
        record.write(tmp_path, {entry: _found(entry, ratio)}, {entry: told}, machine)
    tables, about = speed.read_results(tmp_path)
    assert dict(zip(tables["pairs"]["entry"], tables["pairs"]["ratio"], strict=True)) == {"b": 5.0, "a": 3.0}
    assert set(about["entries"]) == {"a", "b"}
    assert not list(tmp_path.glob("*.partial"))
    other = machine | {"cores": 999}
    with pytest.raises(SystemExit, match="another machine, and a would be lost"):
        record.check_machine(tmp_path, ["b"], other)
    for names, here in ((["b"], machine), (["a", "b"], other)):
        record.check_machine(tmp_path, names, here)
    record.write(tmp_path, {"b": _found("b", 2.5)}, {"b": told}, other)
    tables, about = speed.read_results(tmp_path)
    assert list(tables["pairs"]["entry"]) == ["b"], "times of two machines do not stand side by side"
    assert "Provisional" not in speed.how_measured(about)


def test_an_absent_record_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m benchmarks"):
        speed.read_results(tmp_path)


@pytest.mark.parametrize(
    ("busy", "quick", "provisional"), [(0.01, False, 0), (0.3, False, 1), (np.nan, False, 1)]
)
def test_times_taken_beside_others_are_provisional(busy: float, quick: bool, provisional: int) -> None:
    assert speed.disturbed({"busy_elsewhere": busy, "quick": quick}) == bool(provisional)


def test_goals_are_reached_from_above_and_from_below() -> None:
    pairs = pd.DataFrame(_found("a", 1.9).pairs + _found("b", 2.0).pairs)
    rate = {"unit": "s", "low": 1, "high": 9, "repeats": 3, "target": 5}
    rates = pd.DataFrame(
        [
            rate | {"title": "c", "value": 5.1, "better": "less"},
            rate | {"title": "d", "value": 4.9, "better": "less"},
            rate | {"title": "e", "value": 5.0, "better": "more"},
        ]
    )
    table = speed.goals(pairs, rates)
    assert list(table["reached"]) == [False, True, False, True, True]


def test_exponents_are_those_of_the_power() -> None:
    rows = [
        {"axis": "pixels", "stage": "s", "amount": n, "seconds": 3 * n**1.5 * (1 + 9 * (repeat == 2))}
        for n in (1, 2, 4, 8)
        for repeat in range(3)  # one of three is slow: the median does not see it
    ]
    fit = speed.exponents(pd.DataFrame(rows)).iloc[0]
    assert fit["exponent"] == pytest.approx(1.5)
    assert fit["exponent_end"] == pytest.approx(1.5)


@pytest.mark.parametrize("encoders", ["frozen", "unfrozen"])
def test_shared_encodings_give_each_gradient_of_the_plain_way(encoders: str) -> None:
    """In double precision, where rounding hides nothing."""
    ours = setups.clipseg(QUICK, encoders).double().train()
    theirs = copy.deepcopy(ours.segmenter)
    batch = setups.batch_of(setups.triplets(ours, 2))
    pixels, masks = ours.normalise(batch["image"]).double(), batch["masks"].double()
    forward = plain.clipseg_frozen if encoders == "frozen" else plain.clipseg_unfrozen
    logits = ours(pixels, batch["input_ids"], batch["attention_mask"])
    functional.binary_cross_entropy_with_logits(logits, masks).backward()
    for image in range(2):
        for place in range(3):
            words = (batch[name][image, place][None] for name in ("input_ids", "attention_mask"))
            alone = forward(theirs, pixels[image][None], *words)
            torch.testing.assert_close(alone[0], logits[image, place])
            (functional.binary_cross_entropy_with_logits(alone[0], masks[image, place]) / 6).backward()
    wanted = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    found = {name: ours.segmenter.get_parameter(name).grad for name in wanted}
    whole = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-9 * whole, msg=name)


# -- what the package does to be fast -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 6), (1, 3)])
def test_channels_may_be_mixed_before_a_map_is_enlarged(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    wide = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    ways = convolve_doubled(x, weight), functional.conv2d(wide, weight, padding=1)
    torch.testing.assert_close(*ways)
    asked = torch.randn_like(ways[0])
    gradients = [torch.autograd.grad(way, (x, weight), asked) for way in ways]
    torch.testing.assert_close(*gradients)


def test_the_projector_is_the_plain_one_after_inference_too() -> None:
    torch.manual_seed(0)
    projector = Projector(6, 4).eval()
    x, state = torch.randn(2, 8, 5, 5), torch.randn(2, 6)
    with torch.inference_mode():
        projector(x, state)
    # what inference left behind may take part in learning
    logits = projector(x.requires_grad_(True), state)
    torch.testing.assert_close(logits, plain._project(projector, x, state), atol=1e-5, rtol=1e-5)
    logits.sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_optimiser_steps_as_plain_adamw() -> None:
    torch.manual_seed(0)
    pair = [torch.nn.Linear(9, 4) for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    for model in pair:
        model.bias.requires_grad_(False)
    ours = training.make_optimiser(pair[0], 1e-2, 1e-3)
    theirs = torch.optim.AdamW([pair[1].weight], lr=1e-2, weight_decay=1e-3)
    for number in range(5):
        for model, optimiser in zip(pair, (ours, theirs), strict=True):
            optimiser.zero_grad()
            (model(torch.ones(2, 9) * number).square().sum()).backward()
            optimiser.step()
    torch.testing.assert_close(pair[0].weight, pair[1].weight)
    assert sum(len(group["params"]) for group in ours.param_groups) == 1
