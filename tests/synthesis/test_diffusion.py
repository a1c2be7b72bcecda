"""The diffusion process, its training and its sampling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from echovlsm.cohort.files import CohortError
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import cohort_hash, read_cohort
from echovlsm.synthesis.process import (
    SCHEDULERS,
    diffusion_loss,
    make_scheduler,
    noise_schedule,
    sample,
    set_steps,
    to_images,
    to_model,
)
from echovlsm.synthesis.sampling import sample_cohort
from echovlsm.synthesis.train import train_diffusion
from echovlsm.synthesis.unet import ConditionError, SemanticUNet, SemanticUNetConfig
from echovlsm.synthesis.weights import save_denoiser
from tests.synthesis.test_unet import TINY, random_unet

LEARNED = SemanticUNetConfig(**{**vars(TINY), "out_channels": 2})


class Oracle(SemanticUNet):
    """Knows the one image that there is, so its prediction is exact."""

    def __init__(self, image: torch.Tensor, schedule, config: SemanticUNetConfig = TINY) -> None:
        super().__init__(config)
        self.image, self.schedule, self.calls = image, schedule, 0

    def forward(self, x, timesteps, label_map):
        self.calls += 1
        levels = self.schedule.alphas_cumprod.double()
        index = timesteps.double().clamp(0, len(levels) - 1)
        low = index.floor().long()
        high = (low + 1).clamp(max=len(levels) - 1)
        # between two steps the solvers of EDM interpolate the logarithm of sigma
        log_sigma = 0.5 * ((1 - levels) / levels).log()
        log_sigma = torch.lerp(log_sigma[low], log_sigma[high], index - low)
        alpha = torch.sigmoid(-2 * log_sigma).view(-1, 1, 1, 1)
        noise = (x.double() - alpha.sqrt() * self.image) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * self.image
        result = noise if self.schedule.config.prediction_type == "epsilon" else velocity
        return result.float()


def toy_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ImageSet whose grey level is their class's, plus noise."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((count, 16, 16), np.uint8)
    for index in range(count):
        row, column = rng.integers(2, 8, 2)
        maps[index, 1:15, 1:15] = 2
        maps[index, row : row + 6, column : column + 6] = rng.choice([1, 3, 4])
    grey = np.array([0, 40, 120, 220, 80])[maps] + rng.normal(0, 5, maps.shape)
    return grey.clip(0, 255).astype(np.uint8), maps


def test_the_schedule_is_the_cosine_one(shared: Path) -> None:
    vectors = load_file(shared / "golden" / "sdm_tiny.vectors.safetensors")
    betas = noise_schedule().betas.double()
    torch.testing.assert_close(betas, vectors["cosine_betas_1000"], atol=1e-6, rtol=1e-5)


def test_images_survive_the_way_to_the_model_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    values = to_model(images)
    assert (float(values.min()), float(values.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_images(values), images)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_loss(prediction: str) -> None:
    schedule = noise_schedule(prediction)
    clean = to_model(toy_images(4)[0])
    oracle = Oracle(clean.double(), schedule)
    t, noise = torch.tensor([1, 300, 700, 950]), torch.randn(clean.shape)
    loss = diffusion_loss(oracle, schedule, clean, torch.zeros(4, 16, 16).long(), t, noise)
    assert loss.max() < 1e-4
    worse = diffusion_loss(random_unet(), schedule, clean, torch.zeros(4, 16, 16).long(), t, noise)
    assert worse.min() > 0.1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_bound_is_zero_at_the_true_posterior_and_grows_with_a_wrong_variance(prediction: str) -> None:
    schedule = noise_schedule(prediction, learned_variance=True)
    clean = to_model(toy_images(3)[0])
    exact = Oracle(clean.double(), schedule)
    t, noise, maps = torch.tensor([5, 300, 900]), torch.randn(clean.shape), torch.zeros(3, 16, 16).long()

    def loss(spread: float) -> torch.Tensor:
        def model(x, timesteps, label_map):
            mean = exact(x, timesteps, label_map)
            return torch.cat([mean, torch.full_like(mean, spread)], dim=1)

        return diffusion_loss(model, schedule, clean, maps, t, noise)

    # -1 says the posterior's own variance, 1 says beta
    assert loss(-1.0).max() < 2e-3
    assert (loss(1.0) > loss(-1.0)).all()


def test_the_bound_teaches_the_variance_only() -> None:
    model = random_unet(LEARNED)
    schedule = noise_schedule("epsilon", learned_variance=True)
    clean, t = to_model(toy_images(2)[0]), torch.tensor([3, 600])
    noise, maps = torch.randn(clean.shape), torch.zeros(2, 16, 16).long()
    diffusion_loss(model, schedule, clean, maps, t, noise).sum().backward()
    head = model.out[2].weight.grad.clone()
    model.zero_grad()
    squared = model(schedule.add_noise(clean, noise, t), t, maps)[:, :1] - noise
    (squared**2).flatten(1).mean(dim=1).sum().backward()
    torch.testing.assert_close(head[:1], model.out[2].weight.grad[:1])
    assert head[1].abs().max() > 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_learned_variance_is_sampled_with(name: str) -> None:
    """Whether the variance is said to be small or large changes the ancestral sampler only."""
    schedule = noise_schedule("epsilon", learned_variance=True)
    maps = toy_images(1)[1]

    class Spread(SemanticUNet):
        value = -1.0

        def forward(self, x, timesteps, label_map):
            return torch.cat([0.1 * x, torch.full_like(x, self.value)], dim=1)

    small, large = Spread(LEARNED), Spread(LEARNED)
    large.value = 1.0
    one, other = (sample(model, schedule, maps, [3], scheduler=name, steps=6) for model in (small, large))
    assert (one != other).any() == (name == "ddpm")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_finds_the_only_image_there_is(name: str, prediction: str) -> None:
    schedule = noise_schedule(prediction)
    images, maps = toy_images(1)
    oracle = Oracle(to_model(images).double(), schedule)
    drawn = sample(oracle, schedule, maps, [7], scheduler=name, steps=25)
    assert np.abs(drawn.astype(int) - images).max() <= 1


@pytest.mark.parametrize("name", ["dpm-solver++", "sde-dpm-solver++", "heun"])
@pytest.mark.parametrize("steps", [3, 50, 200, 700])
def test_times_and_noise_levels_belong_together(name: str, steps: int) -> None:
    """No two steps tell the network the same time, and each time has the noise that the image then has."""
    solver = make_scheduler(name, noise_schedule("v_prediction"))
    set_steps(solver, steps)
    times = solver.timesteps.double()
    assert len(set(times.tolist())) == steps
    levels = solver.alphas_cumprod.double()
    logs = 0.5 * ((1 - levels) / levels).log()
    low = times.floor().long().clamp(max=len(levels) - 2)
    told = torch.lerp(logs[low], logs[low + 1], times - low)
    torch.testing.assert_close(told, solver.sigmas[:-1].double().log(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [50, 200, 130])
def test_many_steps_find_what_the_best_denoiser_of_a_gaussian_finds(steps: int) -> None:
    """For normal images the best denoiser and the end of the process are known in closed form."""
    schedule, spread = noise_schedule("epsilon"), 0.01
    levels = schedule.alphas_cumprod.double()
    log_sigma = 0.5 * ((1 - levels) / levels).log()
    solver = make_scheduler("dpm-solver++", schedule)
    set_steps(solver, steps)
    first, last = solver.sigmas[[0, -2]].double()
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # dx / d sigma = sigma x / (spread^2 + sigma^2) from the first noise level to the last, then the mean
    start = x * (1 + first**2).sqrt()
    expected = start * ((spread**2 + last**2) / (spread**2 + first**2)).sqrt()
    expected = expected * spread**2 / (spread**2 + last**2)
    for t in solver.timesteps:
        low = int(t)
        high = min(low + 1, len(levels) - 1)
        sigma = torch.lerp(log_sigma[low], log_sigma[high], float(t) - low).exp()
        scale = (1 + sigma**2).sqrt()
        x = solver.step(x * sigma * scale / (spread**2 + sigma**2), t, x).prev_sample
    assert float(x / expected) == pytest.approx(1, abs=5e-3)


def test_an_image_depends_on_its_own_seed_alone() -> None:
    model, schedule = random_unet(), noise_schedule("v_prediction")
    maps = toy_images(3)[1]
    for name in SCHEDULERS:
        together = sample(model, schedule, maps, [1, 2, 3], scheduler=name, steps=4)
        alone = sample(model, schedule, maps[1:2], [2], scheduler=name, steps=4)
        assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
        other = sample(model, schedule, maps[1:2], [5], scheduler=name, steps=4)
        assert np.abs(alone[0].astype(int) - other[0]).mean() > 1


def test_guidance_stretches_the_difference_to_a_dropped_label() -> None:
    schedule = noise_schedule("epsilon")
    images, maps = toy_images(2)
    target = to_model(images).double()

    class TwoMinds(Oracle):
        """Sees its image under a label map and black without one."""

        def forward(self, x, timesteps, label_map):
            dropped = label_map[0][0].shape[0] == 1
            self.image = torch.full_like(target, -1.0) if dropped else target[:1] * 0.2 - 0.8
            return super().forward(x, timesteps, label_map)

    def brightness(guidance: float) -> float:
        model = TwoMinds(target, schedule)
        drawn = sample(model, schedule, maps, [1, 2], scheduler="ddim", steps=10, guidance=guidance)
        return float(drawn.mean())

    black, plain, stretched = brightness(0.0), brightness(1.0), brightness(1.5)
    assert black < 1
    assert stretched - plain == pytest.approx(0.5 * (plain - black), rel=0.1)


def test_large_batches_give_up_the_cache_and_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from echovlsm.synthesis import process

    model, schedule, maps = random_unet(), noise_schedule("v_prediction"), toy_images(2)[1]
    cached = sample(model, schedule, maps, [1, 2], steps=3, guidance=2.0)
    monkeypatch.setattr(process, "CACHE_BYTES", 0)
    drawn = sample(model, schedule, maps, [1, 2], steps=3, guidance=2.0)
    # on some processors the order of a sum differs, and a value half-way between two grey levels tips over
    assert np.abs(drawn.astype(int) - cached).max() <= 1
    assert (drawn != cached).mean() < 0.01


def test_sampling_refuses_what_it_cannot_draw() -> None:
    model, schedule, maps = random_unet(), noise_schedule(), toy_images(2)[1]
    with pytest.raises(ConditionError, match=r"the model draws \(N, 16, 16\)"):
        sample(model, schedule, maps[:, ::2, ::2], [1, 2])
    with pytest.raises(ConditionError, match="class 9 found"):
        sample(model, schedule, np.full_like(maps, 9), [1, 2])
    with pytest.raises(ValueError, match="one a map"):
        sample(model, schedule, maps, [1])
    with pytest.raises(ValueError, match="scheduler: 'euler' is not known; choose one of ddpm"):
        make_scheduler("euler", schedule)


# -- training -------------------------------------------------------------------------------------------


SETTINGS = {
    "steps": 12,
    "batch_size": 4,
    "learning_rate": 2e-3,
    "ema_decay": 0.9,
    "check_every": 4,
    "prediction": "v_prediction",
    "progress": False,
}


def test_training_learns_and_leaves_the_average(tmp_path: Path) -> None:
    images, maps = toy_images(16)
    model = random_unet()
    many = {**SETTINGS, "steps": 60, "check_every": 5, "learning_rate": 4e-3}
    history = train_diffusion(model, images, maps, tmp_path, validation=toy_images(8, seed=1), **many)
    assert list(history["step"]) == list(range(5, 61, 5))
    assert history["val_loss"].iloc[-1] < 0.5 * history["val_loss"].iloc[0]
    saved = torch.load(next(tmp_path.glob("checkpoint-*/ema.pt")), weights_only=True)
    for parameter, average in zip(model.parameters(), saved["shadow_params"], strict=True):
        assert torch.equal(parameter, average)


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path, monkeypatch) -> None:
    from echovlsm.synthesis import train

    images, maps = toy_images(6)
    whole = random_unet(LEARNED)
    expected = train_diffusion(whole, images, maps, tmp_path / "a", **SETTINGS)

    draw, calls = train._draw, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 7:  # in the middle of the second check
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(train, "_draw", dies)
    with pytest.raises(KeyboardInterrupt):
        train_diffusion(random_unet(LEARNED), images, maps, tmp_path / "b", **SETTINGS)
    resumed = random_unet(LEARNED, seed=5)
    history = train_diffusion(resumed, images, maps, tmp_path / "b", **SETTINGS)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), expected.drop(columns="seconds"))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="another batch_size"):
        train_diffusion(whole, images, maps, tmp_path / "b", **{**SETTINGS, "batch_size": 2})


def test_training_refuses_wrong_label_maps(tmp_path: Path) -> None:
    images, maps = toy_images(3)
    maps[1, 0, 0] = 7
    with pytest.raises(ConditionError, match="image 1 has class 7; the model knows 0 to 4"):
        train_diffusion(random_unet(), images, maps, tmp_path, **SETTINGS)
    with pytest.raises(ConditionError, match=r"both must be \(N, 16, 16\)"):
        train_diffusion(random_unet(), images, maps[:, :8, :8], tmp_path, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_what_follows_a_training_may_choose_its_own_precision(tmp_path: Path) -> None:
    from accelerate import Accelerator

    images, maps = toy_images(4)
    model = random_unet()
    train_diffusion(model, images, maps, tmp_path, **{**SETTINGS, "steps": 2}, mixed_precision="bf16")
    assert Accelerator(mixed_precision="no").mixed_precision == "no"
    drawn = model(torch.zeros(1, 1, 16, 16), torch.tensor([5]), torch.zeros(1, 16, 16).long())
    assert drawn.dtype == torch.float32
    assert "autocast" not in repr(model.forward)


def test_a_share_of_the_labels_is_dropped() -> None:
    from types import SimpleNamespace

    from echovlsm.synthesis.train import _draw

    images, maps = toy_images(50)
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu")
    dropped = [
        (_draw(images, maps, 1, 50, 0.3, 1, step, alone)[1] == -1).all(dim=(1, 2)).float().mean()
        for step in range(40)
    ]
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.03)


def test_two_processes_share_each_batch() -> None:
    from types import SimpleNamespace

    from echovlsm.synthesis.train import _draw

    images, maps = toy_images(7)
    images[:, 0, 0] = range(7)  # so that an image can be told
    seen = []
    for step in range(7):
        for process in (0, 1):
            who = SimpleNamespace(process_index=process, num_processes=2, device="cpu")
            clean = _draw(images, maps, 1, 4, 0.0, 1, step, who)[0]
            assert len(clean) == 2
            seen += ((clean[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert sorted(seen) == sorted(list(range(7)) * 4), "each image once an epoch"


# -- a synthetic cohort ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    size = SemanticUNetConfig(**{**vars(TINY), "image_size": 32})
    save_denoiser(random_unet(size), "v_prediction", folder)
    return folder


OPTIONS = {"variants": 2, "steps": 3, "batch_size": 5, "seed": 4, "progress": False}


@pytest.fixture(scope="module")
def drawn(phantom_frames: pd.DataFrame, weights: Path, tmp_path_factory) -> Path:
    return sample_cohort(tmp_path_factory.mktemp("drawn") / "synthetic", phantom_frames, weights, **OPTIONS)


def test_a_synthetic_cohort_is_just_another_cohort(drawn: Path, phantom_frames: pd.DataFrame) -> None:
    frames = read_cohort(drawn, strict=True)
    source = phantom_frames[phantom_frames["split"] != "test"]
    assert frames.attrs["meta"]["kind"] == "synthetic"
    assert len(frames) == 2 * len(source)
    assert set(frames["split"]) == {"train", "val"}
    assert frames["quality"].isna().all()
    row = frames.iloc[0]
    origin = source[source["patient"] == row["patient"].rsplit("-", 1)[0]].iloc[0]
    assert (row["sex"], row["age"], row["split"]) == (origin["sex"], origin["age"], origin["split"])
    assert load_image(row).shape == load_labels(row).shape == (32, 32)
    assert row["spacing_y"] * 32 == pytest.approx(origin["spacing_y"] * origin["height"], rel=1e-5)
    table = pd.read_csv(drawn / "provenance.csv")
    columns = {
        "source_cohort",
        "source_patient",
        "variant",
        "seed",
        "scheduler",
        "steps",
        "weights",
        "redraws",
    }
    assert columns <= set(table.columns)
    assert table["seed"].is_unique
    assert not list(drawn.parent.glob(".*"))


def test_killed_sampling_goes_on_and_ends_the_same(
    drawn: Path, phantom_cohort: Path, weights: Path, tmp_path: Path
) -> None:
    root = tmp_path / "synthetic"
    work = tmp_path / ".synthetic.sampling"
    code = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from echovlsm.cohort import read_cohort\n"
        "from echovlsm.synthesis import sampling\n"
        "whole = sampling.sample\n"
        "def slow(*a, **k):\n"
        "    time.sleep(0.3)\n"
        "    return whole(*a, **k)\n"
        "sampling.sample = slow\n"
        f"frames = read_cohort({str(phantom_cohort)!r})\n"
        f"sampling.sample_cohort({str(root)!r}, frames, {str(weights)!r}, **{OPTIONS})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while len(list(work.glob("batch-*.npz"))) < 2:
        assert process.poll() is None, "sampling ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not root.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("batch-*.npz")}

    frames = read_cohort(phantom_cohort)
    with pytest.raises(ValueError, match="unfinished batches with another steps"):
        sample_cohort(root, frames, weights, **{**OPTIONS, "steps": 4})
    times = {}

    from echovlsm.synthesis import sampling

    def watch(*arguments):
        times.update({path.name: path.stat().st_mtime_ns for path in work.glob("batch-*.npz")})
        return rows(*arguments)

    rows, sampling._rows = sampling._rows, watch
    try:
        sample_cohort(root, frames, weights, **OPTIONS)
    finally:
        sampling._rows = rows
    assert {name: times[name] for name in kept} == kept, "what was drawn is not drawn again"
    assert len(times) > len(kept)
    assert cohort_hash(root) == cohort_hash(drawn)
    assert (root / "provenance.csv").read_bytes() == (drawn / "provenance.csv").read_bytes()
    assert not work.exists()


def test_an_existing_cohort_is_not_drawn_over(
    drawn: Path, phantom_frames: pd.DataFrame, weights: Path
) -> None:
    before = cohort_hash(drawn)
    with pytest.raises(CohortError, match="exists already"):
        sample_cohort(drawn, phantom_frames, weights, **OPTIONS)
    assert cohort_hash(drawn) == before
    with pytest.raises(ValueError, match="no image with a mask in testing"):
        sample_cohort(drawn.parent / "other", phantom_frames, weights, **OPTIONS, splits=("testing",))
