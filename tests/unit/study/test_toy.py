"""The toy study's measures, each on points whose figures are known beforehand."""

import itertools

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import grow_trees, subtree_index, toy_mixture
from autoguidance.study.toy import (
    ToyModels,
    ToyStudy,
    coverage,
    log_density_threshold,
    lost_mass,
    measure,
    methods,
    sample_paths,
)

TRUTH = toy_mixture("A")
PATHS = grow_trees()[0].paths


def test_threshold_leaves_one_percent_of_new_samples_outside():
    threshold = log_density_threshold(TRUTH, 20_000, torch.Generator().manual_seed(0))
    outside = (
        (TRUTH.log_density(TRUTH.sample(20_000, torch.Generator().manual_seed(1))) < threshold).float().mean().item()
    )
    assert outside == pytest.approx(0.01, abs=5 * (2 * 0.01 / 20_000) ** 0.5)


def test_coverage_counts_reference_points_with_a_sample_nearby():
    reference = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    samples = torch.tensor([[0.019, 0.0], [1.0, 0.021], [0.0, 1.0]])
    assert coverage(samples, reference, 0.02) == 0.5


def test_true_samples_lose_nothing_but_what_chance_takes():
    lost = lost_mass(TRUTH, PATHS, TRUTH.sample(20_000, torch.Generator().manual_seed(2)))
    assert lost["sum"] < 0.02
    assert sum(part["true"] for part in lost["branches"].values()) == pytest.approx(1)


def test_a_missing_limb_is_lost_in_full():
    x = TRUTH.sample(20_000, torch.Generator().manual_seed(3))
    index, names = subtree_index(PATHS, 1)
    part = TRUTH.responsibilities(x).argmax(1)
    kept = x[index[part] != names.index("+")]
    lost = lost_mass(TRUTH, PATHS, kept)
    limb = float(TRUTH.branch_weights()[index == names.index("+")].sum())
    assert lost["branches"]["+"]["true"] == pytest.approx(limb)
    assert lost["branches"]["+"]["lost"] == pytest.approx(limb, rel=0.03)
    assert lost["branches"]["-"]["lost"] == lost["branches"]["trunk"]["lost"] == 0
    assert lost["sum"] == pytest.approx(limb, rel=0.03)
    by_depth = [lost["sum_by_depth"][str(depth)] for depth in range(1, 7)]
    # A finer partition cannot lose less.
    assert all(coarse <= fine + 1e-12 for coarse, fine in itertools.pairwise(by_depth))


def test_measure_tells_outliers_from_true_samples():
    x = TRUTH.sample(1000, torch.Generator().manual_seed(4))
    settings = {
        "threshold": log_density_threshold(TRUTH, 20_000, torch.Generator().manual_seed(5)),
        "reference": x,
        "radius": 0.02,
        "paths": PATHS,
    }
    good = measure(x, TRUTH, **settings)
    mixed = measure(torch.cat([x[:750], x[:250] + 3]), TRUTH, **settings)
    assert good["coverage"] == 1
    assert good["outside_99"] < 0.03
    assert mixed["outside_99"] == pytest.approx(0.25 + 0.75 * good["outside_99"], abs=0.01)
    assert mixed["mean_log_density"] < good["mean_log_density"] - 1000
    assert mixed["coverage"] < 1


def exact(x, sigma, labels=None):
    points = x.reshape(-1, 2)
    return (points + sigma**2 * TRUTH.score(points, sigma)).reshape(x.shape)


def test_sampling_with_the_exact_score_gives_the_truth():
    """The sampler alone, without a network's errors: as few outliers and as much coverage as true samples."""
    study = ToyStudy(num_samples=2048, num_reference=2048)
    start = TRUTH.sample(2048, study.generator(0), study.sigma_max)
    path = sample_paths(exact, start, study.solver())
    assert path.shape == (study.num_steps + 1, 2048, 2)
    torch.testing.assert_close(path[0], start)
    figures = measure(
        path[-1],
        TRUTH,
        threshold=log_density_threshold(TRUTH, 20_000, study.generator(2)),
        reference=TRUTH.sample(2048, study.generator(3)),
        radius=0.04,
        paths=PATHS,
    )
    assert figures["outside_99"] < 0.02
    assert figures["coverage"] > 0.99
    assert figures["lost_mass"]["sum"] < 0.03


def test_guidance_of_strength_one_is_the_main_model():
    study = ToyStudy(autoguidance_weight=1.0, cfg_weight=1.0, truncation_factor=1.0, num_steps=4)
    models = ToyModels(*(ToyNetwork(4, num_classes=n).eval() for n in (1, 1, 0)))
    start = TRUTH.sample(16, study.generator(0), study.sigma_max)
    ends = [sample_paths(way, start, study.solver())[-1] for way in methods(models, study).values()]
    assert len(ends) == 4
    assert all(torch.equal(ends[0], end) for end in ends[1:])


@pytest.mark.parametrize(
    "change", [{"num_samples": 0}, {"coverage_radius": 0.0}, {"main_iterations": 0}, {"num_steps": 0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError):
        ToyStudy(**change)
