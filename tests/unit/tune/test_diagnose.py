"""The figures of a diagnosis against closed forms, its verdicts on pairs built to deserve them, and what is refused.

The test denoisers are linear, D(x; sigma) = gain(sigma) * x per pixel. Among those the best is c = m2 / (m2 + sigma^2) with m2 the
data's second moment, so that every figure has a closed form in expectation.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from autoguidance.data import ArraySource
from autoguidance.data.latents import LatentSource
from autoguidance.data.source import Survey
from autoguidance.diffusion.denoiser import per_image
from autoguidance.errors import UserError
from autoguidance.tune.denoising import DenoisingErrors, DenoisingSettings, denoising_errors, least_agreement
from autoguidance.tune.diagnose import CORE, LEAST_CORRELATION, LEAST_SIZE, diagnose, diagnose_guides, judge, rank

R = 4


def images(num: int = 400, seed: int = 0, labelled: bool = False) -> ArraySource:
    """Pixels with zero mean and a standard deviation of about 0.5 in [-1, 1], drawn independently."""
    generator = np.random.default_rng(seed)
    pixels = generator.choice(np.array([64, 191], dtype=np.uint8), (num, 1, R, R))
    class_idx = np.arange(num) % 3 if labelled else None
    return ArraySource(
        name="pixels",
        images=pixels,
        class_idx=class_idx,
        class_names=("a", "b", "c") if labelled else (),
        fingerprint=f"f{seed}",
        survey=Survey(name="pixels", kind="array"),
    )


M2 = 0.5 * ((64 / 127.5 - 1) ** 2 + (191 / 127.5 - 1) ** 2)


@dataclass
class Linear:
    """D(x; sigma) = c (1 + error) x with the ideal gain c; `error` may differ between pixels."""

    error: Tensor | float = 0.0
    num_classes: int = 0
    img_resolution: int = R
    img_channels: int = 1
    sigma_data: float = 0.5
    encoder: dict[str, Any] | None = None
    seen: list[Any] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append((x.shape[0], None if labels is None else labels.clone()))
        self.inputs.append(x)
        s = per_image(sigma, x)
        return M2 / (M2 + s**2) * (1 + torch.as_tensor(self.error)) * x


CORE_SETTINGS = DenoisingSettings(num_images=400, num_levels=3, sigma_min=0.15, sigma_max=0.6)


@pytest.mark.parametrize(("main", "guide"), [(0.1, 0.3), (0.2, -0.1), (0.1, 0.1001), (0.3, 0.1)])
def test_figures_follow_the_closed_forms(main: float, guide: float) -> None:
    (found,) = denoising_errors(Linear(main), [Linear(guide)], images(), CORE_SETTINGS)
    for level in found.levels():
        total = M2 + level.sigma**2
        gain = M2 / total
        # E|a x - x0|^2 = (a - c)^2 E x^2 + the part that no linear denoiser avoids, c sigma^2.
        assert level.error_main == pytest.approx(
            (gain * main) ** 2 * total + gain * level.sigma**2, rel=0.06
        )  # 6,400 squares: 1.8 % of chance
        assert level.difference == pytest.approx((gain * (main - guide)) ** 2 * total, rel=0.06)
        assert abs(level.excess - gain**2 * (guide**2 - main**2) * total) < 4 * level.excess_se
        assert level.slope == pytest.approx(level.difference - level.excess)
        # D_w is ideal where guide + w (main - guide) = 0.
        assert level.best_weight is not None
        assert level.best_weight_se is not None
        assert abs(level.best_weight - guide / (guide - main)) < 4 * level.best_weight_se


def test_best_weight_minimises_the_measured_error() -> None:
    main, guide = Linear(0.1), Linear(torch.linspace(0.0, 0.6, R))
    (found,) = denoising_errors(main, [guide], images(), CORE_SETTINGS)
    level = found.level(1)
    assert level.best_weight is not None

    def error(weight: float) -> float:
        mixed = Linear(torch.lerp(torch.as_tensor(guide.error), torch.tensor(0.1), weight))
        return denoising_errors(mixed, [guide], images(), CORE_SETTINGS)[0].level(1).error_main

    least = error(level.best_weight)
    assert least < min(error(level.best_weight + step) for step in (-0.2, 0.2))
    rise = (error(1.001) - error(0.999)) / 0.002
    assert rise == pytest.approx(level.slope, rel=0.02)


def test_standard_errors_are_the_spread_over_repetitions() -> None:
    settings = [DenoisingSettings(num_images=60, num_levels=1, sigma_min=0.3, sigma_max=0.3, seed=s) for s in range(40)]
    levels = [
        denoising_errors(Linear(0.1), [Linear(0.3)], images(60, seed=s), settings[s])[0].level(0) for s in range(40)
    ]
    for name in ("excess", "slope", "best_weight"):
        spread = float(np.std([getattr(level, name) for level in levels], ddof=1))
        claimed = float(np.mean([getattr(level, f"{name}_se") for level in levels]))
        assert claimed == pytest.approx(spread, rel=0.4)


VECTORS = st.lists(st.floats(-1, 1), min_size=2, max_size=2).map(np.array)


@given(VECTORS, VECTORS)
@hypothesis_settings(max_examples=200, deadline=None)
def test_least_agreement_is_a_lower_bound(e_main: np.ndarray, e_guide: np.ndarray) -> None:
    difference = float(((e_main - e_guide) ** 2).sum())
    if difference < 1e-6 or (e_main**2).sum() < 1e-6 or (e_guide**2).sum() < 1e-6:
        return
    ratio = float((e_guide**2).sum() - (e_main**2).sum()) / difference
    cosine = float(e_main @ e_guide) / math.sqrt(float((e_main**2).sum() * (e_guide**2).sum()))
    bound = least_agreement(ratio)
    assert bound is None or bound <= cosine + 1e-6
    assert (bound is None) == (ratio <= 1)


def test_least_agreement_is_attained() -> None:
    # At r the least cosine belongs to |e_m|^2 = r (r - 1) / 2, for |e_m - e_g|^2 = 1 and |e_g|^2 - |e_m|^2 = r.
    for ratio in (1.1, 1.5, 3.0):
        main = ratio * (ratio - 1) / 2
        cosine = (main + (ratio - 1) / 2) / math.sqrt(main * (main + ratio))
        assert least_agreement(ratio) == pytest.approx(cosine)


def test_the_same_figures_for_any_company_and_the_same_seed() -> None:
    source = images(100)
    settings = DenoisingSettings(num_images=70, num_levels=2, sigma_min=0.2, sigma_max=0.5)
    alone = denoising_errors(Linear(0.1), [Linear(0.3)], source, settings)[0]
    among = denoising_errors(Linear(0.1), [Linear(0.5), Linear(0.3)], source, settings)[1]
    np.testing.assert_array_equal(alone.guide, among.guide)
    np.testing.assert_array_equal(alone.difference, among.difference)
    other = denoising_errors(Linear(0.1), [Linear(0.3)], source, DenoisingSettings(**{**vars(settings), "seed": 1}))[0]
    assert abs(other.guide.mean() / alone.guide.mean() - 1) > 1e-6


def test_batches_are_bounded_and_the_padding_does_not_count() -> None:
    main = Linear(0.1)
    settings = DenoisingSettings(num_images=70, num_levels=2, sigma_min=0.2, sigma_max=0.5)
    (found,) = denoising_errors(main, [Linear(0.3)], images(100), settings)
    assert found.main.shape == (70, 2)
    assert {size for size, _ in main.seen} == {64}


def test_labels_go_to_conditional_models_and_images_are_drawn_once() -> None:
    main, guide, free = Linear(0.1, num_classes=3), Linear(0.3, num_classes=3), Linear(0.3)
    source = images(30, labelled=True)
    steps: list[tuple[int, int]] = []
    settings = DenoisingSettings(num_images=30, num_levels=1, sigma_min=0.3, sigma_max=0.3)
    denoising_errors(main, [guide, free], source, settings, lambda done, total, _: steps.append((done, total)))
    labels = main.seen[0][1][:30]
    assert labels.sum(dim=0).tolist() == [10, 10, 10]  # each of the 30 images once, in a drawn order
    assert torch.equal(labels, guide.seen[0][1][:30])
    assert free.seen[0][1] is None
    assert steps == [(30, 30)]


def guides_of(main: float) -> dict[str, Linear]:
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0])
    return {
        "stronger": Linear(3 * main),
        "same": Linear(main),
        "nearly": Linear(main * 1.05),
        "opposite": Linear(-2 * main),
        "better": Linear(0.0),
        "own errors": Linear(main + 0.5 * stripes),
    }


def test_verdicts_and_their_order() -> None:
    guides = guides_of(0.3)
    settings = DenoisingSettings(num_images=400, num_levels=3, sigma_min=0.15, sigma_max=0.6)
    found = dict(zip(guides, diagnose_guides(Linear(0.3), list(guides.values()), images(), settings=settings)))
    assert {name: diagnosis.verdict for name, diagnosis in found.items()} == {
        "stronger": "compatible",
        "same": "too similar",
        "nearly": "too similar",
        "opposite": "too far",
        "better": "too far",
        "own errors": "too far",
    }
    # e_g = 3 e_m: w* = k / (k - 1), and the directions agree exactly, up to the noise of 400 images.
    stronger = found["stronger"]
    assert stronger.best_weight == pytest.approx(1.5, abs=0.1)
    assert stronger.agreement == pytest.approx(math.sqrt(1 - 0.25), abs=0.1)
    assert stronger.start_weight == pytest.approx(1 + 0.4 / stronger.size)
    own = found["own errors"]
    assert own.correlation is not None
    assert own.correlation_se is not None
    assert abs(own.correlation) < 4 * own.correlation_se
    assert found["same"].correlation is None
    assert found["same"].best_weight is None
    assert any("swap" in warning for warning in found["better"].warnings)
    assert not any("swap" in warning for warning in found["opposite"].warnings)
    order = [diagnosis.reason for diagnosis in rank(list(found.values()))]
    assert order[0] == stronger.reason
    assert set(order[-3:]) == {found[name].reason for name in ("same", "opposite", "better")}


def test_a_diagnosis_is_json_and_keeps_its_protocol() -> None:
    source = images(50)
    found = diagnose(Linear(0.3), Linear(0.3), source, settings=DenoisingSettings(num_images=20, num_levels=16, seed=3))
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["protocol"] == {
        "data": "pixels",
        "data_fingerprint": "f0",
        "trained_on_data": None,
        "num_images": 20,
        "seed": 3,
        "sigma_data": 0.5,
    }
    assert len(content["levels"]) == 16
    assert [level["sigma"] for level in content["levels"]] == pytest.approx(np.geomspace(0.01, 80, 16).tolist())
    low, high = content["core"]
    assert CORE[0] * 0.5 <= low < high <= CORE[1] * 0.5
    assert 0 < LEAST_SIZE < 1
    assert 0 < LEAST_CORRELATION < 1


def test_levels_outside_the_core_do_not_count() -> None:
    generator = np.random.default_rng(0)
    values = generator.uniform(1, 2, (3, 50, 3))
    sigmas = (0.01, 0.3, 20.0)
    plain = DenoisingErrors(sigmas=sigmas, main=values[0], guide=values[0] + values[1], difference=values[2])
    outside = values.copy()
    outside[:, :, [0, 2]] *= 100
    changed = DenoisingErrors(sigmas=sigmas, main=outside[0], guide=outside[0] + outside[1], difference=outside[2])
    one, other = judge(plain, sigma_data=0.5), judge(changed, sigma_data=0.5)
    assert one.core == (0.3, 0.3)
    assert (one.size, one.correlation, one.verdict) == (other.size, other.correlation, other.verdict)
    with pytest.raises(UserError, match="choose more levels"):
        judge(
            DenoisingErrors(sigmas=(9.0,), main=values[0, :, :1], guide=values[1, :, :1], difference=values[2, :, :1]),
            sigma_data=0.5,
        )


def latents(num: int = 40) -> LatentSource:
    generator = np.random.default_rng(0)
    moments = generator.normal(size=(num, 8, R, R)).astype(np.float32)
    moments[:, 4:] = 3.0  # a wide posterior: whoever took its mean would see the difference
    encoder = {
        "name": "vae",
        "vae": "some/vae",
        "raw_mean": [0.0] * 4,
        "raw_std": [1.0] * 4,
        "channels": 3,
        "resolution": 8 * R,
        "factor": 8,
    }
    return LatentSource(
        name="latents",
        num_images=num,
        latent_channels=4,
        latent_resolution=R,
        encoder=encoder,
        class_idx=None,
        class_names=(),
        fingerprint="l",
        survey=Survey(name="latents", kind="folder"),
        load=lambda index: moments[index],
        checksums=np.zeros(num, dtype=np.uint32),
        moments=moments,
    )


def test_latents_are_drawn_from_their_posterior() -> None:
    source = latents()
    main = Linear(img_channels=4, encoder=dict(source.encoder))
    settings = DenoisingSettings(num_images=40, num_levels=1, sigma_min=1e-4, sigma_max=1e-4)
    denoising_errors(main, [main], source, settings)
    # Scaled by 0.5 / raw_std, the draws have a standard deviation of 0.5 sqrt(1 + 3^2); the means alone would have 0.5.
    assert float(main.inputs[0][:40].std()) == pytest.approx(0.5 * math.sqrt(10), rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    source = images(30)
    few = DenoisingSettings(num_images=10, num_levels=2, sigma_min=0.2, sigma_max=0.4)
    with pytest.raises(UserError, match="resolution"):
        denoising_errors(Linear(), [Linear(img_resolution=8)], source, few)
    with pytest.raises(UserError, match="number of classes"):
        denoising_errors(Linear(num_classes=3), [Linear(num_classes=4)], images(30, labelled=True), few)
    with pytest.raises(UserError, match="has no labels"):
        denoising_errors(Linear(num_classes=3), [Linear(num_classes=3)], source, few)
    with pytest.raises(UserError, match="other classes"):
        denoising_errors(Linear(num_classes=4), [Linear(num_classes=4)], images(30, labelled=True), few)
    with pytest.raises(UserError, match="images of 1 channels and 4 pixels"):
        denoising_errors(Linear(img_channels=3), [Linear(img_channels=3)], source, few)
    with pytest.raises(UserError, match="holds latents of some/vae"):
        denoising_errors(Linear(img_channels=4), [Linear(img_channels=4)], latents(), few)
    with pytest.raises(UserError, match="not finite"):
        denoising_errors(Linear(), [Linear(float("nan"))], source, few)
    with pytest.raises(UserError, match="has 1 image"):
        denoising_errors(Linear(), [Linear(0.1)], images(1), few)
    with pytest.raises(UserError, match="no guide"):
        diagnose_guides(Linear(), [], source)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_images": 1}, "too few"),
        ({"num_levels": 0}, "noise levels"),
        ({"seed": -1}, "seed"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_max": math.inf}, "sigma_max"),
        ({"sigma_max": math.nan}, "sigma_max"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DenoisingSettings(**change)


def test_levels_must_rise() -> None:
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        DenoisingSettings(sigma_min=90.0).sigmas(0.5)


def test_the_picture_is_drawn_from_the_record_alone(tmp_path: Path) -> None:
    from PIL import Image

    from autoguidance.report.diagnosis import plot_diagnoses

    guides = [Linear(0.5), Linear(0.3)]
    found = diagnose_guides(Linear(0.3), guides, images(40), settings=DenoisingSettings(num_images=20))
    content = json.loads(json.dumps([diagnosis.to_dict() for diagnosis in found]))
    with Image.open(plot_diagnoses(content, tmp_path / "p.png")) as one:
        width = one.size[0]
    with Image.open(plot_diagnoses(content[:1], tmp_path / "q.png")) as other:
        assert other.size[0] < width
    first = (tmp_path / "p.png").read_bytes()
    plot_diagnoses(content, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == first
    with pytest.raises(UserError, match=r"ends in \.png"):
        plot_diagnoses(content, tmp_path / "p.pdf")
    with pytest.raises(UserError, match="do not fit into one picture"):
        plot_diagnoses(content * 7, tmp_path / "p.png")
