"""The Fréchet distance against golden values and closed forms."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.evaluate.frechet import FewImagesWarning, frechet_distance, frechet_terms
from autoguidance.evaluate.statistics import Statistics


def gaussian(mean, covariance, num=10_000):
    return Statistics(np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float), num)


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def random_covariance(size, rank, seed):
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    return factor @ factor.T


def test_golden(golden):
    with np.load(golden("frechet.npz")) as values:
        a, b = (Statistics.from_features(values[name]) for name in ("features_a", "features_b"))
        assert frechet_distance(a, b) == pytest.approx(float(values["fd"]), abs=1e-6, rel=0)


def test_one_dimension():
    # N(m, s^2): (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[0.25]])) == pytest.approx(
        9 + 1.5**2, abs=1e-12
    )


def test_commuting_covariances():
    # One eigenbasis: |mu_a - mu_b|^2 + sum (sqrt(a_i) - sqrt(b_i))^2.
    generator = np.random.default_rng(0)
    basis, a, b = rotation(12, 1), generator.uniform(0, 9, 12), generator.uniform(0, 9, 12)
    shift = generator.normal(size=12)
    expected = shift @ shift + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    found = frechet_distance(gaussian(np.zeros(12), basis * a @ basis.T), gaussian(shift, basis * b @ basis.T))
    assert found == pytest.approx(expected, abs=1e-6)


def test_two_dimensions_that_do_not_commute():
    # tr (AB)^(1/2) of 2x2 matrices is sqrt(tr AB + 2 sqrt(det AB)).
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    expected = np.trace(a + b) - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, abs=1e-12)


def test_orthogonal_singular_covariances_have_no_overlap():
    a, b = np.diag([3.0, 0, 0, 0]), np.diag([0, 2.0, 5.0, 0])
    terms = frechet_terms(gaussian(np.zeros(4), a), gaussian(np.zeros(4), b))
    assert terms.distance == pytest.approx(10, abs=1e-12)
    assert (terms.rank_a, terms.rank_b) == (1, 2)


def test_point_masses():
    zero = np.zeros((3, 3))
    assert frechet_distance(gaussian([0, 0, 0], zero), gaussian([1, 2, 2], zero)) == 9


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 24),
    ranks=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_properties_for_any_rank(size, ranks, seed, scale):
    generator = np.random.default_rng(seed)
    a = gaussian(scale * generator.normal(size=size), scale**2 * random_covariance(size, ranks[0], seed))
    b = gaussian(scale * generator.normal(size=size), scale**2 * random_covariance(size, ranks[1], seed + 1))
    turn = rotation(size, seed)
    distance = frechet_distance(a, b)
    unit = np.trace(a.covariance + b.covariance)
    assert np.isfinite(distance)
    assert distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-12 * unit)
    assert frechet_distance(a, a) <= 1e-12 * unit
    turned = [gaussian(turn @ s.mean, turn @ s.covariance @ turn.T) for s in (a, b)]
    # Turning rounds eigenvalues that were exactly zero by eps; their roots enter the overlap as sqrt(eps).
    assert frechet_distance(*turned) == pytest.approx(distance, abs=1e-6 * unit)


@pytest.mark.parametrize("num", [10, 64, 1000])
def test_a_set_against_itself(num):
    features = np.random.default_rng(0).normal(50, 10, size=(num, 64))
    features[:, :5] = 7  # dead units
    statistics = Statistics.from_features(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        assert frechet_distance(statistics, statistics) <= 1e-5


def test_estimate_converges_to_the_truth():
    # N(0, I) against N(mu, 4 I) in 8 dimensions: |mu|^2 + 8 (2 - 1)^2.
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(40_000, 8)), 0.5 + 2 * generator.normal(size=(40_000, 8))
    found = frechet_distance(Statistics.from_features(a), Statistics.from_features(b))
    assert found == pytest.approx(8 * 0.25 + 8, rel=0.02)


def test_warns_when_the_covariance_must_be_singular():
    generator = np.random.default_rng(0)
    few, many = (Statistics.from_features(generator.normal(size=(n, 16))) for n in (16, 500))
    with pytest.warns(FewImagesWarning, match="16 images for 16 features"):
        frechet_distance(few, many)
    assert frechet_terms(few, many).few_images
    assert not frechet_terms(many, many).few_images


def test_refuses_other_dimensions_and_other_networks():
    with pytest.raises(UserError, match="2 and 3 features"):
        frechet_distance(gaussian([0, 0], np.eye(2)), gaussian([0, 0, 0], np.eye(3)))
    a, b = (
        Statistics(np.zeros(2), np.eye(2), 9, {"features": "classifier", "features_sha256": h}) for h in ("aa", "bb")
    )
    with pytest.raises(UserError, match=r"different feature networks.*aa.*bb"):
        frechet_distance(a, b)
    with pytest.raises(UserError, match="negative eigenvalue"):
        frechet_distance(gaussian([0, 0], np.diag([1.0, -0.5])), gaussian([0, 0], np.eye(2)))
