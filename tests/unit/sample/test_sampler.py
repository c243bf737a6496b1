"""Image k depends on seed k alone: bitwise, for any order, batch size and number of processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.guidance import Autoguidance
from autoguidance.models import ModelInfo, Precond, build_model, load_model, save_model
from autoguidance.sample import Heun, Solver, micro_batch_size, sample, sample_batches
from autoguidance.sample.files import read_npz

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 10,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}
PIXELS = {"name": "pixels", "channels": 1, "resolution": 8}


def write_model(path: Path, seed: int, **changes: Any) -> Path:
    """A random model file whose gains are not zero, so that noise level and label count."""
    config = {**CONFIG, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(config)
    state = {n: torch.full_like(v, 0.5) if n.endswith("gain") else v for n, v in model.state_dict().items()}
    names = tuple(str(c) for c in range(config["label_dim"]))
    save_model(path, state, ModelInfo(config=config, encoder=PIXELS, class_names=names))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "main.safetensors", 0), write_model(folder / "guide.safetensors", 1, channel_mult=[1])


@pytest.fixture(scope="module")
def pair(files: tuple[Path, Path]) -> Autoguidance:
    main, guide = map(load_model, files)
    return Autoguidance(main, guide, 1.5)


@pytest.fixture(scope="module")
def model(files: tuple[Path, Path]) -> Precond:
    return load_model(files[0])


SOLVERS = {
    "deterministic": Heun(num_steps=3),
    "churn": Heun(num_steps=3, churn=4.0, churn_noise=1.003),
}
SEEDS = [3, 0, 2**32 + 5, 77, 12, *range(100, 165)]  # 70: one full micro-batch of 64 and a padded one


@pytest.mark.parametrize(("channels", "resolution", "expected"), [(1, 8, 64), (12, 16, 64), (3, 64, 4), (4, 64, 4)])
def test_small_images_go_through_64_at_a_time_and_large_ones_by_their_size(
    channels: int, resolution: int, expected: int
) -> None:
    model = build_model({**CONFIG, "img_channels": channels, "img_resolution": resolution})
    assert micro_batch_size(model) == expected


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bitwise_the_same_for_any_batch_size_and_order(pair: Autoguidance, solver: Solver) -> None:
    assert micro_batch_size(pair) == 64
    expected = sample(pair, SEEDS, solver=solver, decode=False)
    rows = dict(zip(SEEDS, expected, strict=True))
    for size in (1, 7, 64, 1000):
        assert torch.equal(sample(pair, SEEDS, solver=solver, decode=False, batch_size=size), expected)
    order = np.random.default_rng(0).permutation(SEEDS).tolist()
    for seed, image in zip(order, sample(pair, order, solver=solver, decode=False), strict=True):
        assert torch.equal(image, rows[seed]), seed
    for seed in (SEEDS[0], SEEDS[-1]):  # alone, with 63 rows of padding
        assert torch.equal(sample(pair, [seed], solver=solver, decode=False)[0], rows[seed])
    assert len({image.numpy().tobytes() for image in expected}) == len(SEEDS)


def test_a_repeated_seed_gives_the_same_image(model: Precond) -> None:
    first, second = sample(model, [4, 4], solver=Heun(num_steps=2), decode=False)
    assert torch.equal(first, second)


def _generate(processes: int, out: Path, files: tuple[Path, Path], seeds: str, *extra: str) -> None:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    # fmt: off
    options = ["-m", "autoguidance", "generate", "--main", str(files[0]), "--guide", str(files[1]), "--weight", "1.5",
               "--seeds", seeds, "--steps", "3", "--churn", "4,0,inf,1.003", "--format", "npz", "--out", str(out),
               "--device", "cpu", *extra]
    # fmt: on
    done = subprocess.run(
        [sys.executable, *launcher, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images (") == 1  # only the main process speaks


@pytest.mark.slow
def test_bitwise_the_same_in_other_processes(pair: Autoguidance, files: tuple[Path, Path], tmp_path: Path) -> None:
    solver = Heun(num_steps=3, churn=4.0, churn_noise=1.003)
    expected = sample(pair, range(70), solver=solver, decode=False).numpy()
    _generate(1, tmp_path / "one", files, "0-69", "--batch", "7")
    _generate(2, tmp_path / "two", files, "0-69")
    for name in ("one", "two"):
        arrays = read_npz(tmp_path / name / "images.npz")
        assert arrays["seeds"].tolist() == list(range(70))
        np.testing.assert_array_equal(arrays["latents"], expected)
        assert not (tmp_path / name / ".parts").exists()


# Classes


def test_given_classes_are_used(model: Precond) -> None:
    solver = Heun(num_steps=2)
    three = sample(model, range(4), class_idx=3, solver=solver, decode=False)
    assert torch.equal(three, sample(model, range(4), class_idx=[3, 3, 3, 3], solver=solver, decode=False))
    assert torch.equal(three, sample(model, range(4), class_idx=np.int64(3), solver=solver, decode=False))  # type: ignore[arg-type]
    assert torch.equal(three, sample(model, range(4), class_idx=torch.tensor([3] * 4), solver=solver, decode=False))  # type: ignore[arg-type]
    assert not torch.equal(three, sample(model, range(4), class_idx=4, solver=solver, decode=False))


def test_random_class_is_the_generators_draw_after_the_noise(model: Precond) -> None:
    (batch,) = sample_batches(model, [5, 9], solver=Heun(num_steps=1))
    for seed, index in zip(batch.seeds, batch.class_idx.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        torch.randn(1, 8, 8, generator=generator)
        assert index == int(torch.randint(10, (), generator=generator))


def test_a_given_class_takes_nothing_from_the_generator(model: Precond) -> None:
    # Then the first churn noise follows the first noise directly.
    seen: list[torch.Tensor] = []

    class Spy(Heun):
        def step(self, slope: Any, x: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
            seen.append(x)
            return super().step(slope, x, sigma, sigma_next)

    next(sample_batches(model, [5], classes=3, solver=Spy(num_steps=1, sigma_max=2.0, churn=0.4)))
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(1, 8, 8, generator=generator) for _ in range(2))
    added = (2.0**2 * (1.4**2 - 1)) ** 0.5
    torch.testing.assert_close(seen[0][0], 2.0 * first + added * second)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("balanced", [0, 1, 9, 0, 5]), ("3,5-7", [3, 5, 5, 6, 7]), ("4", [4, 4, 4, 4, 4])],
)
def test_selection_by_seed(model: Precond, choice: str, expected: list[int]) -> None:
    (batch,) = sample_batches(model, [0, 1, 9, 10, 15], classes=choice, solver=Heun(num_steps=1))
    assert batch.class_idx.tolist() == expected


@pytest.mark.parametrize("choice", ["10", "3,99", "cat", "", "-1", "7-5", -1, 10])
def test_bad_selection(model: Precond, choice: str | int) -> None:
    with pytest.raises(UserError, match=r"class.*choose"):
        next(sample_batches(model, [0], classes=choice))


def test_a_model_without_classes(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "u.safetensors", 2, label_dim=0))
    (batch,) = sample_batches(model, [0, 1], classes="balanced", solver=Heun(num_steps=1))
    assert batch.class_idx.tolist() == [-1, -1]
    for given in (3, [3, 4]):
        with pytest.raises(UserError, match="has no classes"):
            sample(model, [0, 1], class_idx=given)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [-1]}, "0 or larger"),
        ({"seeds": []}, "no seeds"),
        ({"seeds": [0], "batch_size": 0}, "batch size 0"),
        ({"seeds": [0, 1], "class_idx": [1]}, "1 classes for 2 seeds"),
        ({"seeds": [0], "class_idx": [10]}, "from 0 to 9"),
        ({"seeds": [0], "class_idx": -1}, "from 0 to 9"),
    ],
)
def test_mistakes(model: Precond, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(model, **arguments, solver=Heun(num_steps=1))


def test_samples_that_are_not_finite_are_refused(model: Precond) -> None:
    class Diverging:
        img_resolution, img_channels, num_classes, sigma_data = 8, 1, 0, 0.5

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            return -1e30 * x

    with pytest.raises(UserError, match="not finite"):
        sample(Diverging(), [0], solver=Heun(num_steps=3))


def test_progress_counts_images(model: Precond) -> None:
    seen = []
    sample(model, range(70), solver=Heun(num_steps=1), progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(64, 70), (70, 70)]
