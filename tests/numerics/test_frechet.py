"""The Fréchet distance against golden values and closed forms."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoguidance.errors import UserError
from autoguidance.evaluate import frechet
from autoguidance.evaluate import statistics as statistics_module
from autoguidance.evaluate.frechet import FewImagesWarning, frechet_distance, frechet_terms
from autoguidance.evaluate.statistics import Accumulator, Statistics


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


def network_features(num, dimensions, seed, dead=0):
    """Like those of a network: not negative, correlated, with a spectrum that falls off."""
    mixing = rotation(dimensions, 0) * np.arange(1, dimensions + 1) ** -0.5
    drawn = np.random.default_rng(seed).normal(size=(num, dimensions)) @ mixing.T
    features = np.maximum(drawn * 3 + 0.2, 0).astype(np.float32)
    features[:, :dead] = 0
    return features


def exact_distance(a, b, monkeypatch):
    """The distance without the fast form, from fresh statistics, whose factors nobody keeps."""
    with monkeypatch.context() as patch:
        patch.setattr(frechet, "_FAST_FROM", 10**9)
        return frechet_terms(*(gaussian(s.mean, s.covariance, s.num) for s in (a, b))).distance


def by_square_root(a, b):
    """The textbook: scipy.linalg.sqrtm of the product, in float64."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real


def test_many_features_are_the_same_by_the_square_root(monkeypatch):
    a, b = (Statistics.from_features(network_features(2000, 300, seed)) for seed in (1, 2))
    with monkeypatch.context() as patch:  # the fast form alone must have done it
        patch.setattr(frechet, "_eigen_factor", None)
        patch.setattr(np.linalg, "svd", None)
        found = frechet_terms(a, b)
    assert found.distance == pytest.approx(by_square_root(a, b), abs=1e-6)
    assert found.distance == pytest.approx(exact_distance(a, b, monkeypatch), abs=1e-8)
    assert (found.rank_a, found.rank_b) == (300, 300)
    assert frechet_terms(b, a).distance == pytest.approx(found.distance, abs=1e-9)
    assert frechet_terms(a, a).distance <= 1e-5


@pytest.mark.parametrize("few", ["made", "real", "both"])
def test_fewer_images_than_many_features(few, monkeypatch):
    counts = {"made": (80, 2000), "real": (2000, 80), "both": (80, 120)}[few]
    a, b = (Statistics.from_features(network_features(n, 300, s, dead=3)) for s, n in enumerate(counts))
    found = frechet_terms(a, b)
    assert found.few_images
    assert found.distance == pytest.approx(exact_distance(a, b, monkeypatch), abs=1e-6)
    assert frechet_terms(a, a).distance <= 1e-5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 40), decay=st.floats(0, 12), repeated=st.integers(0, 3))
def test_the_fast_form_is_right_or_declines(seed, size, decay, repeated):
    generator = np.random.default_rng(seed)
    statistics = []
    for _ in range(2):
        # Condition numbers up to 10^12, and features that repeat others exactly.
        turn = np.linalg.qr(generator.normal(size=(size, size)))[0]
        covariance = turn * np.logspace(0, -decay, size) @ turn.T
        index = np.concatenate([np.arange(size), np.arange(min(repeated, size))])
        statistics.append(gaussian(np.zeros(len(index)), covariance[np.ix_(index, index)], num=0))
    a, b = statistics
    factors = [frechet._eigen_factor(s.covariance, "the set") for s in statistics]
    expected = np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum()
    trace = np.trace(a.covariance + b.covariance)
    factor = frechet._cholesky_factor(a.covariance)
    if factor is not None:
        np.testing.assert_allclose(factor @ factor.T, a.covariance, rtol=0, atol=1e-14 * size)
        found = frechet._fast_overlap(factor, b, trace)
        if found is not None:
            assert found == pytest.approx(expected, abs=1e-7 * trace)
    if decay < 3 and not repeated:  # harmless ones must not be declined
        assert factor is not None
        assert frechet._fast_overlap(factor, b, trace) is not None


def test_the_factor_of_a_reference_is_made_once(monkeypatch):
    reference, *others = (Statistics.from_features(network_features(900, 300, seed)) for seed in range(3))
    made = []
    original = frechet._cholesky_factor
    monkeypatch.setattr(frechet, "_cholesky_factor", lambda c: made.append(len(c)) or original(c))
    for other in others:
        frechet_distance(other, reference)
        frechet_distance(reference, other)
    assert len(made) <= 3


def test_a_covariance_with_a_negative_eigenvalue_is_refused_by_the_fast_form_too():
    bad = np.eye(300)
    bad[0, 0] = -0.5
    with pytest.raises(UserError, match="negative eigenvalue"):
        frechet_terms(gaussian(np.zeros(300), bad), gaussian(np.zeros(300), np.eye(300), num=20_000))


@pytest.mark.parametrize("arithmetic", ["numpy", "torch"])
@pytest.mark.parametrize("power", [1, 4])
def test_streamed_statistics_give_the_distance_of_float64(power, arithmetic, monkeypatch):
    # Variances that fall off as 1 / rank^power. At 4, products in float32 miss the distance by 5e-6 of it.
    if arithmetic == "torch":  # that of a GPU, here
        original = statistics_module._in_place
        monkeypatch.setattr(statistics_module, "_in_place", lambda features: torch.as_tensor(original(features)))
    mixing = rotation(300, 0) * np.arange(1, 301) ** (-power / 2)
    streamed, whole = [], []
    for seed in (1, 2):
        rows = (np.random.default_rng(seed).normal(size=(6000, 300)) @ mixing.T + 0.01 * seed).astype(np.float32)
        parts = [Accumulator() for _ in range(3)]  # as of three processes
        for part, accumulator in zip(np.split(rows, [2000, 2011]), parts, strict=True):
            for start in range(0, len(part), 64):
                accumulator.update(part[start : start + 64])
        for accumulator in parts[1:]:
            parts[0].merge(accumulator)
        streamed.append(parts[0].statistics())
        wide = rows.astype(np.float64)
        whole.append(gaussian(wide.mean(axis=0), np.cov(wide, rowvar=False), 6000))
    expected = frechet_distance(*whole)
    assert 1e-4 < expected < 1
    assert frechet_distance(*streamed) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(streamed[0], streamed[0]) <= 1e-12
