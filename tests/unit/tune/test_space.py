"""The search space: grid points and the pairs that they stand for."""

from pathlib import Path

import pytest
import torch

from autoguidance.ema import reconstruction_error, snapshot_name
from autoguidance.errors import UserError
from autoguidance.models import ModelInfo, save_model
from autoguidance.sample import Heun
from autoguidance.tune import EMA_STDS, WEIGHTS, GuideSource, SearchSpace, early_snapshots, guide_source
from autoguidance.tune.space import MAX_PROFILE_ERROR, METHODS
from autoguidance.zoo import parse_model_name

SOLVER = Heun(num_steps=5)
MAIN = GuideSource("run/main", 8192, (0.05, 0.07, 0.1))
GUIDES = (GuideSource("run/main", 512, (0.05, 0.1)), GuideSource("run/guide", 1024, (0.05, 0.07, 0.1, 0.125)))
UNCONDITIONAL = GuideSource("run/unconditional", 4096, (0.05, 0.1))

SPACES = {
    method: SearchSpace(
        method,
        MAIN,
        SOLVER,
        GUIDES if method.startswith(("autoguidance", "mixed")) else (),
        UNCONDITIONAL if method.startswith(("cfg", "mixed")) else None,
    )
    for method in METHODS
}


@pytest.mark.parametrize("method", SPACES)
def test_points_and_settings_are_inverse(method: str) -> None:
    grid = SPACES[method].grid
    assert len(set(grid.points)) == len(grid.points)
    for point in grid.points[:: max(1, len(grid.points) // 200)]:
        assert grid.point(grid.setting(point)) == point
    assert grid.point({"weight": 1.2}) is None
    assert grid.coordinates.shape == (len(grid.points), sum(size > 1 for size in grid.sizes))


@pytest.mark.parametrize("method", SPACES)
def test_every_point_is_a_pair_of_its_method(method: str) -> None:
    space = SPACES[method]
    for point in space.grid.points[:: max(1, len(space.grid.points) // 200)]:
        setting = space.grid.setting(point)
        pair = space.pair(setting)
        assert pair.method == method
        assert pair.solver == SOLVER
        main = parse_model_name(pair.main)
        assert (str(main.path), main.ema_std, main.num_images) == ("run/main", setting["ema_main"], 8192)
        if method.startswith("autoguidance"):
            assert pair.guide is not None
            guide = parse_model_name(pair.guide)
            source = next(source for source in GUIDES if source.label == setting["guide"])
            assert (str(guide.path), guide.num_images) == (source.run, source.num_images)
            assert guide.ema_std == setting["ema_guide"]
            assert guide.ema_std in source.stds  # a width that its snapshots cannot represent is not on the grid
            assert (pair.weight, pair.cfg_weight) == (setting["weight"], 1)
        if "cfg" in method:
            assert pair.unconditional is not None
            assert parse_model_name(pair.unconditional).ema_std == setting["ema_unconditional"]
            assert (pair.weight, pair.cfg_weight) == (1, setting["weight"])
        if method == "mixed":  # Eq. 6 of the paper: alpha = 1 is autoguidance alone
            assert (pair.weight - 1) / (pair.cfg_weight - 1 + pair.weight - 1) == pytest.approx(setting["alpha"])
            assert pair.weight - 1 + pair.cfg_weight - 1 == pytest.approx(setting["weight"] - 1)
        if method == "truncation":
            assert (pair.truncation, pair.guide, pair.unconditional) == (setting["truncation"], None, None)
        if method.endswith("+interval"):
            assert pair.interval == (setting["sigma_lo"], setting["sigma_hi"])


@pytest.mark.parametrize("method", SPACES)
def test_starts_are_distinct_points_of_the_grid(method: str) -> None:
    space = SPACES[method]
    known = {"ema_main": 0.1, "weight": 2.0, "ema_unconditional": 0.05}
    starts = space.starts(known)
    assert starts
    assert set(starts) <= set(space.grid.points)
    assert len(set(starts)) == len(starts)
    if method != "unguided":
        assert {space.grid.setting(point)["ema_main"] for point in starts} == {0.1}  # what is known is kept


def test_another_width_is_tried_beside_the_known_one() -> None:
    space = SPACES["autoguidance"]
    widths = [space.grid.setting(point)["ema_main"] for point in space.starts({"ema_main": 0.1}, 0.05)]
    assert set(widths) == {0.1, 0.05}
    assert widths[0] == 0.1  # the known one first


def test_one_width_for_both_models() -> None:
    space = SearchSpace("autoguidance", MAIN, SOLVER, GUIDES, label="same EMA for both", same_ema=True)
    assert space.name == "same EMA for both"
    assert "ema_guide" not in {axis.name for axis in space.grid.axes}
    for point in space.grid.points:
        pair = space.pair(space.grid.setting(point))
        main, guide = parse_model_name(pair.main), parse_model_name(str(pair.guide))
        source = next(source for source in GUIDES if source.num_images == guide.num_images)
        assert guide.ema_std == min(source.stds, key=lambda std: abs(std - (main.ema_std or 0)))
    assert set(space.starts({"ema_main": 0.1})) <= set(space.grid.points)


def test_the_rule_of_thumb_comes_first() -> None:
    trained = (GuideSource("run/guide", 512, EMA_STDS), GuideSource("run/guide", 4096, EMA_STDS))
    space = SearchSpace("autoguidance", MAIN, SOLVER, (GuideSource("run/main", 512, EMA_STDS), *trained))
    first = space.grid.setting(space.starts({})[0])
    # The run of its own at a sixteenth of the main run's 8,192 images, w = 2.
    assert (first["guide"], first["weight"]) == ("guide:512", 2.0)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(UserError, match="unknown method 'cgf'"):
        SearchSpace("cgf", MAIN, SOLVER)
    with pytest.raises(UserError, match="needs a guide"):
        SearchSpace("autoguidance", MAIN, SOLVER)
    with pytest.raises(UserError, match="needs an unconditional model"):
        SearchSpace("cfg", MAIN, SOLVER)
    with pytest.raises(UserError, match="two guides are called guide:1024"):
        SearchSpace("autoguidance", MAIN, SOLVER, (GUIDES[1], GuideSource("elsewhere/guide", 1024, (0.05,))))


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


def test_a_model_file_is_a_guide_whose_width_is_its_own(run: Path) -> None:
    file = run / "snapshots" / snapshot_name(256, 0.05)
    source = guide_source(str(file))
    assert source.fixed
    assert (source.num_images, source.stds, source.name(0.2)) == (256, (0.05,), str(file))
    assert guide_source(f"{run}@0.070").stds == (0.07,)
    assert guide_source(f"{run}:256").num_images == 256
