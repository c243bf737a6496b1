"""The search space: grid points and the pairs that they stand for."""

import itertools
from pathlib import Path

import pytest
import torch

from autoguidance.ema import reconstruction_error, snapshot_name
from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, save_model
from autoguidance.sample import Heun
from autoguidance.tune import EMA_STDS, WEIGHTS, GuideSource, SearchSpace, early_snapshots, guide_source
from autoguidance.tune.space import MAX_PROFILE_ERROR
from autoguidance.zoo import parse_model_name

SOLVER = Heun(num_steps=5)
MAIN = GuideSource("run/main", 8192, (0.05, 0.07, 0.1))
GUIDES = (GuideSource("run/main", 512, (0.05, 0.1)), GuideSource("run/guide", 1024, (0.05, 0.07, 0.1, 0.125)))
UNCONDITIONAL = GuideSource("run/unconditional", 4096, (0.05, 0.1))

SPACES = {
    method: SearchSpace(
        method, MAIN, SOLVER, GUIDES if method == "autoguidance" else (), UNCONDITIONAL if "cfg" in method else None
    )
    for method in ("unguided", "cfg", "cfg+interval", "autoguidance")
}


@pytest.mark.parametrize("method", SPACES)
def test_points_and_values_are_inverse(method: str) -> None:
    space = SPACES[method]
    assert space.sizes == tuple(len(values) for _, values in space.axes)
    some = itertools.product(*({0, size // 2, size - 1} for size in space.sizes))
    for point in some:
        assert space.point(**space.values(point)) == point


@pytest.mark.parametrize("method", SPACES)
def test_every_point_is_a_pair_of_its_method(method: str) -> None:
    space = SPACES[method]
    for point in itertools.product(*({0, size // 2, size - 1} for size in space.sizes)):
        pair, values = space.pair(point), space.values(point)
        assert pair.method == method
        assert pair.solver == SOLVER
        main = parse_model_name(pair.main)
        assert (str(main.path), main.ema_std, main.num_images) == ("run/main", values["ema_main"], 8192)
        if method == "autoguidance":
            assert pair.guide is not None
            guide, source = parse_model_name(pair.guide), GUIDES[int(values["guide"])]
            assert (str(guide.path), guide.num_images) == (source.run, source.num_images)
            # the nearest width that this source can represent
            nearest = min(abs(std - values["ema_guide"]) for std in source.stds)
            assert guide.ema_std in source.stds
            assert abs(guide.ema_std - values["ema_guide"]) == nearest
            assert (pair.weight, pair.cfg_weight) == (values["weight"], 1)
        if "cfg" in method:
            assert pair.unconditional is not None
            assert parse_model_name(pair.unconditional).ema_std == values["ema_unconditional"]
            assert (pair.weight, pair.cfg_weight) == (1, values["weight"])
        if method == "cfg+interval":
            assert pair.interval == (values["sigma_lo"], values["sigma_hi"])


@pytest.mark.parametrize("method", SPACES)
@pytest.mark.parametrize("thorough", [False, True])
def test_starts_are_distinct_points_of_the_grid(method: str, thorough: bool) -> None:
    space = SPACES[method]
    best = {"ema_main": 0.1, "weight": 2.0, "ema_unconditional": 0.05}
    starts = space.starts(best, thorough=thorough)
    assert starts
    assert all(0 <= index < size for point in starts for index, size in zip(point, space.sizes, strict=True))
    assert len(set(starts)) == len(starts)
    if method != "unguided":
        assert {space.values(point)["ema_main"] for point in starts} == {0.1}  # what is known is kept


def test_small_weights_can_be_chosen() -> None:
    assert min(WEIGHTS) == 1.05
    assert list(WEIGHTS) == sorted(WEIGHTS)
    assert list(EMA_STDS) == sorted(EMA_STDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for time in (64, 128, 256, 260, 512, 1024, 2048):
        for std in (0.05, 0.1):
            info = ModelInfo(config={}, num_images=time, ema_std=std)
            save_model(folder / "snapshots" / snapshot_name(time, std), {"w": torch.zeros(1)}, info)
    return folder


def test_widths_that_the_snapshots_cannot_represent_are_left_out(run: Path) -> None:
    source = guide_source(str(run))
    stored = [(time, std) for time in (64, 128, 256, 260, 512, 1024, 2048) for std in (0.05, 0.1)]
    assert source.num_images == 2048
    for std in EMA_STDS:
        assert (std in source.stds) == (reconstruction_error(stored, (2048, std)) <= MAX_PROFILE_ERROR)
    assert {0.05, 0.1} <= set(source.stds) < set(EMA_STDS)
    first = guide_source(str(run), 64)
    assert {0.05, 0.1} <= set(first.stds)
    assert parse_model_name(first.name(0.02)).num_images == 64
    with pytest.raises(UserError, match="no snapshot at 65 images"):
        guide_source(str(run), 65)


def test_early_snapshots_are_spread_over_the_first_half(run: Path) -> None:
    # Of 64 .. 2048 images: from 1/32 to half of the run; 260 lies too close to 256.
    assert [source.num_images for source in early_snapshots(str(run))] == [64, 128, 256, 512, 1024]
    assert [source.num_images for source in early_snapshots(str(run), lowest=1 / 8, highest=1 / 4)] == [256, 512]


def test_first_steps_and_diagonals_fit_the_axes() -> None:
    for method, space in SPACES.items():
        assert all(0 <= axis < len(space.sizes) for pair in space.diagonals for axis in pair)
        assert bool(space.diagonals) == (method == "autoguidance")
        assert space.steps(60) is None  # a large budget begins with large steps
    assert SPACES["autoguidance"].steps(16) == (1, 1, 1, 1)
    names = [name for name, _ in SPACES["autoguidance"].axes]
    assert [names[axis] for axis in SPACES["autoguidance"].diagonals[0]] == ["weight", "guide"]
