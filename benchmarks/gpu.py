"""What a GPU makes of the study: which steps wait, how fast training and drawing are, the price of the grid.

    python -m benchmarks.gpu                     # all parts, each some ten minutes; again: it goes on
    python -m benchmarks.gpu --only steps        # one part
    python -m benchmarks.gpu --toy --out /tmp/x  # tiny models, on a processor too: whether it works
    python -m benchmarks.gpu --only hours --out FOLDER  # from what is on record there, without a GPU

`tests` runs the tests that touch devices, precision and resuming. `waits` counts where a training waits for
the GPU (`echovlsm.training.devices` says why). `steps` times training steps at full size with random weights,
against the plain loop, at batches that grow until memory ends. `sampling` draws images. `hours` multiplies.

Results lie in a folder of the GPU's name, a table a part. A part is a list of cases; one that is on record is
not measured again, one that was cut off is. Each row has the `run` it was measured in: only numbers of one
run stand in one ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import plain, record, setups
from benchmarks.__main__ import OUT
from benchmarks.entries.training import CLIP, RATE, count_operations
from echovlsm.base import files, paths, provenance
from echovlsm.models.base import VisionLanguageModel
from echovlsm.training import loop as training
from echovlsm.training.features import Features

Rows = list[dict[str, Any]]
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEXTS = [f"{name} in the {view}." for name in ("Cavity", "Muscle", "Atrium") for view in ("one", "other")]
LONGEST = 77
"""Tokens of every prompt in the plain loop, as the paper's code pads them."""

TESTED = ("training/test_devices", "training/test_training", "training/test_features", "models/test_adapters")
TESTED += ("synthesis/test_unet", "synthesis/test_diffusion")

IMAGES = {"real": 1600, "synthetic": 8000}
"""Training images of the paper: 400 patients with four each, and five synthetic ones for each of these."""

TRAININGS = {"real": ("real",), "synthetic": ("synthetic",), "synth-PT:real-FT": ("real",)}
"""What each strategy of the grid learns from, its pretraining aside, which is a run of its own."""


@dataclass(frozen=True)
class Setting:
    """Where and at what size: `toy` for tiny models, few repeats and small batches."""

    toy: bool = False

    @property
    def device(self) -> torch.device:
        """The GPU, or the processor."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of Accelerate's names that the device computes in."""
        return tuple(PRECISIONS) if self.device.type == "cuda" else ("no", "bf16")

    def seconds(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Median seconds of a call, after one that does not count, and the most memory held, GiB.

        Five calls, or fewer, but two at least, where they take more than three seconds together.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spent: list[float] = []
        if not self.toy:
            run()
        while len(spent) < (1 if self.toy else 5) and (len(spent) < 2 or sum(spent) < 3):
            self.wait()
            clock = time.perf_counter()
            run()
            self.wait()
            spent.append(time.perf_counter() - clock)
        return float(np.median(spent)), provenance.peak_memory()

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


Case = Callable[[Setting], Rows]


# -- 1 tests, 2 waits -----------------------------------------------------------------------------------


def run_tests(name: str, setting: Setting) -> Rows:
    """How many tests of a file pass, fail and are skipped here."""
    words = ["-k", "monais"] if setting.toy else []
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{name}.py", *words]
    told = subprocess.run(call, cwd=paths.project_root(), capture_output=True, text=True, check=False).stdout
    last = told.strip().splitlines()[-1]
    found = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return [{"passed": 0, "failed": 0, "skipped": 0, **found, "told": last}]


def count_waits(name: str, encoders: str, setting: Setting) -> Rows:
    """Where two rounds of `fit` wait for the device: one row a line of the project, with the count a round.

    A processor never waits: there is one row, which says that the training ran.
    """
    model = _model(name, encoders, Setting(toy=True))
    part = setups.triplets(model, 8)
    places: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            stack = [frame for frame in traceback.extract_stack() if "/echovlsm/" in frame.filename]
            places[f"{Path(stack[-1].filename).name} {stack[-1].name}" if stack else "elsewhere"] += 1

    on_gpu = setting.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            history = training.fit(
                model, part, part, folder, epochs=2, batch_size=2, learning_rate=RATE, progress=False
            )
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    steps = {"steps": int(history["step"].iloc[-1]) // 2}
    rows = [{"place": place, "a_round": count / 2, **steps} for place, count in places.most_common()]
    return rows or [{"place": "nowhere" if on_gpu else "not on a GPU", "a_round": 0.0, **steps}]


# -- 3 steps --------------------------------------------------------------------------------------------


def _model(name: str, encoders: str, setting: Setting) -> VisionLanguageModel:
    return getattr(setups, name)(setups.Settings(quick=setting.toy), encoders)


def _batch(model: VisionLanguageModel, count: int, device: torch.device) -> dict[str, Tensor]:
    """As of `Triplets`, with noise for images and halves of them for masks."""
    generator = torch.Generator().manual_seed(count)
    side, (ids, mask) = model.image_size, model.tokenize(TEXTS)
    text = (torch.arange(3 * count) % len(TEXTS)).view(count, 3)
    batch = {
        "index": torch.arange(count),
        "image": torch.randint(0, 256, (count, side, side), generator=generator, dtype=torch.uint8),
        "text": text,
        "input_ids": ids[text],
        "attention_mask": mask[text],
        "masks": (torch.arange(side) < side // 2).float().expand(count, 3, side, side).clone(),
        "distinct": torch.arange(min(len(TEXTS), 3 * count)),
        "where": text.flatten(),
    }
    return {key: values.to(device) for key, values in batch.items()}


def _known(model: VisionLanguageModel, batch: dict[str, Tensor]) -> Features | None:
    """What frozen encoders make of the batch, on its device."""
    if model.encoders != "frozen":
        return None
    words = (values.to(batch["index"].device) for values in model.tokenize(TEXTS))
    with torch.no_grad():
        parts = model.encode_image(model.normalise(batch["image"])), model.text_features(*words)
    arrays = ([value.float().cpu().numpy() if value.dtype != torch.bool else value.cpu().numpy()
               for value in part] for part in parts)  # fmt: skip
    return Features(*arrays).to(batch["index"].device)


Step = Callable[[dict[str, Tensor]], Tensor]
"""A step on a batch: its loss."""


def _our_step(name: str, encoders: str, precision: str, setting: Setting, compiled: bool = False) -> Step:
    """A step of `fit`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    bare = _model(name, encoders, setting).to(setting.device, memory_format=torch.channels_last).train()
    optimiser = training.make_optimiser(bare, RATE, 1e-3)
    called = torch.compile(bare, backend="eager" if setting.toy else "inductor") if compiled else bare
    model, optimiser = accelerator.prepare(called, optimiser)
    learning, loss = [value for value in bare.parameters() if value.requires_grad], training.make_loss()
    known: dict[int, Features | None] = {}

    def step(batch: dict[str, Tensor]) -> Tensor:
        count = len(batch["index"])
        if count not in known:
            known.clear()
            known[count] = _known(bare, batch)
        value, _ = training._loss_and_logits(model, bare, batch, loss, known[count])
        training._learn(accelerator, value, learning, optimiser, CLIP)
        return value.detach()

    return step


def _plain_step(name: str, encoders: str, precision: str, setting: Setting) -> Step:
    """The same by the plain loop: each triplet encodes its own image and its own prompt of 77 tokens."""
    device = setting.device
    model, loss = _model(name, encoders, setting).to(device).train(), training.make_loss()
    if name == "clipseg":
        forward = plain.clipseg_frozen if encoders == "frozen" else plain.clipseg_unfrozen
        network: nn.Module = model.segmenter
    else:
        forward, network = plain.cris, model
    learning = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=RATE, weight_decay=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(batch: dict[str, Tensor]) -> Tensor:
        ids, mask = (batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask"))
        pad = LONGEST - ids.shape[1]
        ids = functional.pad(ids, (0, pad), value=model.tokenizer.pad_token_id)
        mask = functional.pad(mask, (0, pad))
        pixels = model.normalise(batch["image"]).repeat_interleave(3, dim=0)
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "no"):
            logits = forward(network, pixels, ids, mask)
        value = loss(logits[:, None].float(), batch["masks"].flatten(0, 1)[:, None])
        optimiser.zero_grad()
        scaler.scale(value).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(learning, CLIP)
        scaler.step(optimiser)
        scaler.update()
        return value.detach()

    return step


@cache
def matrix_rate(precision: str, setting: Setting) -> float:
    """TFLOP a second of a product of two large square matrices."""
    size, kind = (64 if setting.toy else 8192), PRECISIONS[precision]
    a, b = (torch.randn(size, size, device=setting.device, dtype=kind) for _ in range(2))
    return 2 * size**3 / setting.seconds(lambda: a @ b)[0] / 1e12


def time_steps(name: str, encoders: str, precision: str, compiled: str, setting: Setting) -> Rows:
    """Seconds and memory of a step, ours and plain, or ours compiled, at each batch; a row `fits` or not.

    The first loss of ours is that of the plain loop, at the smallest batch and in float32, where nothing is
    dropped at random.
    """
    batches = [2] if setting.toy else [8**power for power in range(4)]
    ways = {"ours": _our_step, "plain": _plain_step}
    if compiled == "compiled":
        # each size would be compiled anew
        batches, ways = batches if setting.toy else [16], {"compiled": partial(_our_step, compiled=True)}
    peak, rows, first = matrix_rate(precision, setting), [], {}
    like = _model(name, encoders, setting)
    for way, build in ways.items():
        step: Step | None = build(name, encoders, precision, setting)
        for count in batches:
            row, run = {"way": way, "batch": count, "fits": False}, None
            try:
                run = partial(step, _batch(like, count, setting.device))
                first.setdefault(way, float(run()))
                work = float("nan") if way == "compiled" else count_operations(run) / 1e12
                row["seconds"], row["memory_gib"] = setting.seconds(run)
                row |= {"fits": True, "triplets_a_second": 3 * count / row["seconds"], "teraflop": work}
                row |= {"matrix_rate": peak, "share_of_rate": work / row["seconds"] / peak}
            except torch.cuda.OutOfMemoryError:
                pass
            rows.append(row)
            run = None
            _tidy()
            if not row["fits"]:
                break
        step = None
        _tidy(way == "compiled")
    exact = precision == "no" and (name == "clipseg" or setting.toy)  # full CRIS drops out at random
    if exact and len(first) > 1:
        assert abs(first["ours"] - first["plain"]) < 1e-3 * abs(first["plain"]), first
    return rows


def _tidy(compiled: bool = False) -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if compiled:
        torch.compiler.reset()


# -- 4 sampling -----------------------------------------------------------------------------------------


def time_sampling(network: str, precision: str, setting: Setting) -> Rows:
    """Images a second: 20 steps of DPM-Solver++, and DDPM's 1000, reckoned from a few of them."""
    from echovlsm.synthesis import process, unet, weights

    if network == "full" and not setting.toy:
        torch.manual_seed(0)
        model = unet.SemanticUNet(unet.SemanticUNetConfig())
        schedule = process.noise_schedule("epsilon", model.config.learned_variance)
    else:
        model, schedule = weights.load_denoiser(paths.resolve("data/weights/sdm-tiny"))
    model = model.to(setting.device, memory_format=torch.channels_last).eval()
    config, rows = model.config, []
    steps = {"dpm-solver++": 2 if setting.toy else 20, "ddpm": 2 if setting.toy else 40}
    whole = {"dpm-solver++": steps["dpm-solver++"], "ddpm": process.TRAINING_STEPS}
    for scheduler, count in itertools.product(steps, [1] if setting.toy else [1, 4, 16, 64]):
        maps = np.zeros((count, config.image_size, config.image_size), np.uint8)
        seeds = list(range(count))
        row = {"scheduler": scheduler, "steps": whole[scheduler], "timed": steps[scheduler], "batch": count}

        def draw(maps: np.ndarray = maps, seeds: list[int] = seeds, scheduler: str = scheduler) -> Any:
            return _first_steps(process, model, schedule, maps, seeds, scheduler, steps[scheduler], precision)

        try:
            seconds, memory = setting.seconds(draw)
        except torch.cuda.OutOfMemoryError:
            rows.append(row | {"fits": False})
            continue
        seconds *= whole[scheduler] / steps[scheduler]
        row |= {"fits": True, "images_a_second": count / seconds, "memory_gib": memory}
        rows.append(row)
        _tidy()
    return rows


def _first_steps(
    process: Any, model: Any, schedule: Any, maps: Any, seeds: Any, scheduler: str, steps: int, precision: str
) -> None:
    """`sample`, left after so many evaluations of the network."""

    class EnoughError(Exception):
        pass

    taken = itertools.count(1)

    def on_step() -> None:
        if next(taken) == steps and scheduler == "ddpm":
            raise EnoughError

    how = {"steps": process.TRAINING_STEPS if scheduler == "ddpm" else steps, "mixed_precision": precision}
    with contextlib.suppress(EnoughError):
        process.sample(model, schedule, maps, seeds, scheduler=scheduler, on_step=on_step, **how)


# -- 5 hours --------------------------------------------------------------------------------------------


def gpu_hours(
    steps: pd.DataFrame, epochs: int, grid_file: str = "notebooks/grids/camus-full.yaml"
) -> pd.DataFrame:
    """Hours of the paper's grid on this GPU: runs x epochs x images x seconds an image / 3600.

    Parameters
    ----------
    steps
        The table of the part `steps`; the fastest way of ours counts, in the precision that is fastest.
    epochs
        Of each training: how many there will be is not known before. 21 are the fewest that the paper's
        patience of 20 allows.
    grid_file
        The grid.

    Returns
    -------
    DataFrame
        One row a model, encoder mode and strategy: `runs, epochs, images, seconds_an_image, hours`. Looks at
        the validation images and scores are not counted.
    """
    from echovlsm.study import grid

    ours = steps[steps["way"].ne("plain") & steps["fits"].astype(bool)].copy()
    ours["seconds_an_image"] = ours["seconds"] / ours["batch"]
    fastest = ours.groupby(["model", "encoders"])["seconds_an_image"].min()
    cells = [cell for cell in grid.read_grid(paths.resolve(grid_file)).cells if cell.strategy in TRAININGS]
    counts = Counter((cell.model, cell.encoders, cell.strategy) for cell in cells)
    rows = []
    for (model, encoders, strategy), runs in counts.items():
        if (model, encoders) in fastest:
            images = sum(IMAGES[source] for source in TRAININGS[strategy])
            each = float(fastest[model, encoders])
            hours = runs * epochs * images * each / 3600
            rows.append((model, encoders, strategy, runs, epochs, images, each, hours))
    names = "model encoders strategy runs epochs images seconds_an_image hours"
    return pd.DataFrame(rows, columns=names.split())


# -- the parts ------------------------------------------------------------------------------------------


def cases(part: str, setting: Setting) -> Iterator[tuple[dict[str, str], Case]]:
    """The cases of a part by what names them."""
    both = list(itertools.product(("clipseg", "cris"), ("unfrozen", "frozen")))
    if part == "tests":
        for name in TESTED[: 1 if setting.toy else None]:
            yield {"file": name}, lambda where, name=name: run_tests(name, where)
    elif part == "waits":
        for name, encoders in both[::3] if setting.toy else both:
            key = {"model": name, "encoders": encoders}
            yield key, lambda where, key=key: count_waits(*key.values(), where)
    elif part == "steps":
        order = itertools.product(("no", "compiled"), setting.precisions, both)
        for compiled, precision, (name, encoders) in order:
            key = {"model": name, "encoders": encoders, "precision": precision, "compiled": compiled}
            if setting.toy:  # half of them say whether it works; tracing takes longer than all else
                if compiled == "no" and (precision == "no") == (name == "clipseg"):
                    continue
                if compiled != "no" and (name, encoders, precision) != ("clipseg", "frozen", "bf16"):
                    continue
            yield key, lambda where, key=key: time_steps(*key.values(), where)
    elif part == "sampling":
        for network, precision in itertools.product(("small", "full"), ("no", "bf16")):
            if not setting.toy or (network, precision) == ("small", "bf16"):
                key = {"network": network, "precision": precision}
                yield key, lambda where, key=key: time_sampling(*key.values(), where)


def run_part(part: str, setting: Setting, folder: Path, minutes: float) -> bool:
    """Measure the cases that are not on record, as far as the minutes go; whether all are."""
    run, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    file = folder / f"{part}.csv"
    table, measured = pd.read_csv(file) if file.is_file() else pd.DataFrame(), False
    for key, case in cases(part, setting):
        words = " ".join(key.values())
        if len(table) and (table[list(key)] == pd.Series(key)).all(axis=1).any():
            continue
        if measured and time.monotonic() - clock > 60 * minutes:
            print(f"  {part}: {minutes:g} minutes are over; the same command goes on", flush=True)
            return False
        measured = True
        found = pd.DataFrame([{**key, **row, "run": run} for row in case(setting)])
        table = pd.concat([table, found], ignore_index=True) if len(table) else found
        with files.appearing(file) as partial:
            table.to_csv(partial, index=False, float_format="%.6g")
        print(f"  {part}, {words}\n{found.drop(columns=[*key, 'run']).to_string(index=False)}", flush=True)
    return True


def _check_machine(folder: Path, setting: Setting) -> None:
    """Put the machine on record, or refuse a folder that is another machine's."""
    machine = {**record.about_machine(torch.get_num_threads()), "toy": setting.toy}
    about = folder / "about.yaml"
    if about.is_file() and (there := yaml.safe_load(about.read_text())["machine"]) != machine:
        other = ", ".join(name for name in machine if there.get(name) != machine[name])
        raise SystemExit(f"--out: {folder} holds results of another machine ({other}); name another folder")
    with files.appearing(about) as partial:
        partial.write_text(
            yaml.safe_dump({"machine": machine, "commit": provenance.commit()}, sort_keys=False)
        )


PARTS: tuple[str, ...] = ("tests", "waits", "steps", "sampling", "hours")
"""In the order in which all are run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0 when all that was asked for is on record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU makes of it.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"parts to run: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on a processor too")
    parser.add_argument(
        "--out", type=Path, help=f"folder of the results (a folder of the GPU's name in {OUT})"
    )
    parser.add_argument("--minutes", type=float, default=8, help="after so many a part begins no other case")
    parser.add_argument("--epochs", type=int, default=21, help="of a training, for `hours`")
    options = parser.parse_args(arguments)
    setting = Setting(options.toy)
    reckons = options.only == ["hours"] and options.out is not None
    if setting.device.type == "cpu" and not (options.toy or reckons):
        parser.error("there is no GPU here; --toy runs on a processor, --only hours reckons from a record")
    if options.toy and options.out is None:
        parser.error("--toy: name a folder with --out; its times are no results")
    name = re.sub(r"\W+", "-", provenance.device_name()).strip("-").lower()
    folder = paths.resolve(options.out or OUT / name)
    folder.mkdir(parents=True, exist_ok=True)
    if not reckons:
        _check_machine(folder, setting)
    whole = True
    for part in options.only:
        print(part, flush=True)
        if part != "hours":
            whole &= run_part(part, setting, folder, options.minutes)
        elif (folder / "steps.csv").is_file():
            table = gpu_hours(pd.read_csv(folder / "steps.csv"), options.epochs)
            with files.appearing(folder / "hours.csv") as partial:
                table.to_csv(partial, index=False, float_format="%.6g")
            print(f"{table.to_string(index=False)}\n  {table['hours'].sum():.3g} hours together", flush=True)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
