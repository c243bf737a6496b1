"""The plan of `autoguidance run`: what it does with few minutes and with many. The speed test itself is replaced by fixed rates."""

from pathlib import Path

import numpy as np
import pytest
import torch

from autoguidance.data.open import open_data
from autoguidance.data.source import ImageSource
from autoguidance.sample import solver_from_description
from autoguidance.study import plan as planning
from autoguidance.study.plan import SOLVERS, plan_measuring, plan_training
from autoguidance.train.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Grey images of 28 pixels, for which the default is `base`."""
    path: Path = tmp_path_factory.mktemp("data") / "clothes.npz"
    images = np.random.default_rng(0).integers(0, 256, (6000, 28, 28), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(6000) % 10)
    return open_data(str(path))


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller the network, the faster: `base` 100 training images a second and 400 evaluations."""

    def speed(config: TrainConfig, source: object, device: object) -> tuple[float, float]:
        factor = 48 / config.network.model_channels
        return 100 * factor, 400 * factor

    monkeypatch.setattr(planning, "_speed", speed)


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize(
    ("minutes", "named", "expected"),
    # 45 % of 60 minutes, two busy cores: 2,150 steps of 64 images; of 8 minutes: 287
    [(60, None, ("base", "small")), (8, None, ("small", "tiny")), (8, "base", ("base", "small"))],
)
def test_base_is_for_those_who_have_time(
    clothes: ImageSource, minutes: float, named: str | None, expected: tuple[str, str]
) -> None:
    plan = plan_training(clothes, minutes, device=CPU, preset=named)
    assert (plan.preset, plan.guide_preset) == expected
    assert plan.evaluation_rates[0] == pytest.approx(400 * {"base": 1, "small": 48 / 36}[plan.preset])
    # What is trained is what fits: 85 % of 45 % of the time at the speed of the network that was chosen.
    images = 0.85 * 0.45 * 60 * minutes * plan.training_rate
    assert plan.main_images == int(images // 64) * 64


@pytest.mark.usefixtures("rates")
def test_where_there_is_no_time_for_twelve_steps_there_are_eight(clothes: ImageSource) -> None:
    plan = plan_training(clothes, 8, device=CPU)
    expected = plan.main_images / plan.training_rate

    def measuring(seconds: float) -> planning.MeasurePlan:
        return plan_measuring(plan, clothes, seconds, expected, num_features=64, num_processes=2, on_gpu=False)

    plenty, few = measuring(3600), measuring(600)
    assert solver_from_description(plenty.solver) == SOLVERS[0]
    assert plenty.num_images >= 1000
    assert solver_from_description(few.solver) == SOLVERS[1]
    assert few.num_images < 1000
    assert few.num_images / plenty.num_images > 1.3 * (600 / 3600)  # half as many again as with twelve steps
