"""How far apart two feature sets are: the Fréchet distance between the Gaussians with their means and covariances.

    d^2 = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

S_a S_b is not symmetric, and its matrix square root (`sqrtm`) turns complex or NaN where a covariance is singular:
with fewer images than features always, with constant features (a dead unit, a black border) too. So no square root of
a product is taken here. With factors S_a = L_a L_a^T [d, r_a] and S_b = L_b L_b^T [d, r_b] the eigenvalues of S_a S_b
are the squared singular values of L_a^T L_b, so

    tr((S_a S_b)^(1/2)) = sum of the singular values of L_a^T L_b   (its nuclear norm)

which is real and finite always, loses no digits to a square root of rounding noise, and is cheaper the lower the
ranks are. L comes from the symmetric eigenproblem S = V diag(w) V^T as the columns V_i w_i^(1/2) with w_i above
rounding.

For many features (2048: 1.8 s of one core, where sqrtm takes 17 s or more) two cheaper steps give the same number wherever rounding allows:

    L_a:  the Cholesky factor of S_a, where S_a is safely positive definite
    sum of singular values = sum of sqrt(mu_i),  mu the eigenvalues of the symmetric M = L_a^T S_b L_a

Squaring costs digits where mu_i is small: with an error e = 4 d^(1/2) eps mu_max of the eigenvalues (rounding errors
grow like d^(1/2), Higham and Mary 2019) each root is off by e / (2 sqrt(mu_i)), and the sum, since these errors have no
common sign, by the root of their squares' sum. That estimate must stay below `TOLERANCE` of the traces, or the
singular values are taken after all. A set of n <= d images has a covariance of rank n - 1 at most, so only as many mu_i
are summed and the others, zero but for rounding, are left out.

The estimate is biased: the distance between two samples of ONE distribution is positive and falls roughly as 1/n, so
figures with different image counts do not compare (`protocol.require_comparable`).

References: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions"; Heusel et al.
2017, arXiv 1706.08500; Chong and Forsyth 2020, arXiv 1911.07023 (the bias); Higham and Mary 2019, "A New Approach to
Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41.
"""

import math
import warnings
import weakref
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from autoguidance.errors import UserError
from autoguidance.evaluate.statistics import Statistics

TOLERANCE = 1e-9
"""Estimated rounding error of the fast form, as a share of the traces, above which the exact one is used."""
_FAST_FROM = 256  # features; below, the eigenvalue form takes milliseconds
_EPS = float(np.finfo(np.float64).eps)


class FewImagesWarning(UserWarning):
    """A covariance from no more images than features is singular, and the distance strongly biased."""


@dataclass(frozen=True, kw_only=True)
class FrechetTerms:
    """A Fréchet distance and what it is made of.

    Attributes:
        distance: mean_term + covariance_term, at least 0 (the squared 2-Wasserstein distance of the Gaussians).
        mean_term: |mu_a - mu_b|^2, the part that a shift of all features explains.
        covariance_term: tr(S_a + S_b - 2 (S_a S_b)^(1/2)).
        rank_a, rank_b: numerical ranks of the covariances; below the number of features they are singular. (In the
            fast form the rank of the set that was not factored is what its images and varying features allow.)
        few_images: a set has no more images than features, so its covariance is singular and the distance strongly
            biased.
    """

    distance: float
    mean_term: float
    covariance_term: float
    rank_a: int
    rank_b: int
    few_images: bool


def _eigen_factor(covariance: Float64[np.ndarray, "d d"], what: str) -> Float64[np.ndarray, "d r"]:
    """L with L L^T = covariance and as many columns as its numerical rank."""
    eigenvalues, eigenvectors = np.linalg.eigh((covariance + covariance.T) / 2)
    rounding = _EPS * len(eigenvalues) * np.abs(eigenvalues).max()
    # A true covariance has none below zero; 1e-6 leaves room for statistics that were once stored as float32.
    if eigenvalues[0] < -1e-6 * np.abs(eigenvalues).max():
        raise UserError(
            f"the covariance of {what} has the negative eigenvalue {eigenvalues[0]:.3g}; compute the statistics again"
        )
    kept = eigenvalues > rounding
    return eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])


def _cholesky_factor(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d r"] | None:
    """L with L L^T = covariance, one column per feature that varies; None where rounding could show in the trace.

    The correlation matrix is factored, so that features of small variance are as safe as others. Its pivots p_i have
    errors of about d^(1/2) eps, which change the trace by that over 2 sqrt(p_i), weighted with the variances.
    """
    variances = np.diag(covariance)
    alive = np.flatnonzero(variances > 0)
    if not alive.size or variances.min() < 0:
        return None
    scale = np.sqrt(variances[alive])
    try:
        factor = np.linalg.cholesky(covariance[np.ix_(alive, alive)] / scale / scale[:, None])
    except np.linalg.LinAlgError:  # singular
        return None
    roots = np.diag(factor)
    error = math.sqrt(len(alive)) * _EPS / 2 * float(np.average(1 / roots, weights=variances[alive]))
    if np.square(roots).min() < len(alive) * _EPS or error > TOLERANCE:
        return None
    spread = np.zeros((len(covariance), len(alive)))
    spread[alive] = factor * scale[:, None]
    return spread


# Statistics are compared with many others (a reference with every set of a search): a factor is kept as long as they.
_FACTORS: "weakref.WeakKeyDictionary[Statistics, np.ndarray]" = weakref.WeakKeyDictionary()


def _factor(statistics: Statistics, what: str) -> Float64[np.ndarray, "d r"]:
    """L with L L^T = covariance, r its rank; computed once per `Statistics`."""
    found = _FACTORS.get(statistics)
    if found is None:
        covariance = statistics.covariance
        found = _cholesky_factor(covariance) if statistics.num_features >= _FAST_FROM else None
        if found is None:
            found = _eigen_factor(covariance, what)
        _FACTORS[statistics] = found
    return found


def _largest_rank(statistics: Statistics) -> int:
    """What the rank of a covariance cannot exceed, judged by the number of images and the features that vary."""
    varying = int(np.count_nonzero(np.diag(statistics.covariance)))
    return min(varying, statistics.num - 1) if statistics.num else varying


def _fast_overlap(factor: Float64[np.ndarray, "d r"], other: Statistics, trace: float) -> float | None:
    """tr((S_a S_b)^(1/2)) from the eigenvalues of L_a^T S_b L_a.

    Args:
        factor: L_a of full rank, or of a rank that is known for certain.
        other: S_b.
        trace: tr(S_a) + tr(S_b), against which errors count.

    Returns: None where rounding could exceed `TOLERANCE` of the trace.
    """
    count = min(factor.shape[1], _largest_rank(other))
    if not count:
        return 0.0
    inner = factor.T @ other.covariance @ factor
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    kept = eigenvalues[-count:]
    error = 4 * math.sqrt(len(factor)) * _EPS * float(np.abs(eigenvalues).max())
    if kept[0] <= error or eigenvalues[0] < -error:
        return None
    if error / 2 * math.sqrt(float((1 / kept).sum())) > TOLERANCE * trace:
        return None
    return float(np.sqrt(kept).sum())


def _overlap(a: Statistics, b: Statistics) -> tuple[float, int, int]:
    """tr((S_a S_b)^(1/2)) and the ranks of both covariances."""
    if a.num_features >= _FAST_FROM:
        # Factor the set that is factored already or has more images: the reference, mostly.
        swapped = a not in _FACTORS and (b in _FACTORS or (b.num or math.inf) > (a.num or math.inf))
        base, other = (b, a) if swapped else (a, b)
        factor = _factor(base, "the second set" if swapped else "the first set")
        trace = float(np.trace(a.covariance) + np.trace(b.covariance))
        fast = _fast_overlap(factor, other, trace)
        if fast is not None:
            rank, other_rank = factor.shape[1], _largest_rank(other)
            return (fast, other_rank, rank) if swapped else (fast, rank, other_rank)
    factor_a, factor_b = _factor(a, "the first set"), _factor(b, "the second set")
    if not (factor_a.size and factor_b.size):
        return 0.0, factor_a.shape[1], factor_b.shape[1]
    overlap = float(np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum())
    return overlap, factor_a.shape[1], factor_b.shape[1]


def frechet_terms(a: Statistics, b: Statistics) -> FrechetTerms:
    """The Fréchet distance of two feature sets with its parts and the ranks of the covariances.

    Args:
        a, b: statistics of the same feature network; the order does not matter.

    Returns:
        The terms; distance in squared units of the features.

    Raises:
        UserError: the dimensions, or the feature networks that the statistics record, differ.

    Reference: Dowson and Landau 1982.
    """
    if a.num_features != b.num_features:
        raise UserError(
            f"statistics of {a.num_features} and {b.num_features} features do not compare; use one feature network"
        )
    networks = [statistics.record.get("features_sha256") for statistics in (a, b)]
    if None not in networks and networks[0] != networks[1]:
        names = " and ".join(f"{s.record.get('features')} {str(s.record['features_sha256'])[:12]}" for s in (a, b))
        raise UserError(f"statistics of different feature networks do not compare ({names}); compute both with one")
    overlap, rank_a, rank_b = _overlap(a, b)
    mean_term = float(np.square(a.mean - b.mean).sum())
    # Zero or more by the theorem; rounding can bring it just below for equal sets.
    covariance_term = max(0.0, float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap))
    return FrechetTerms(
        distance=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        rank_a=rank_a,
        rank_b=rank_b,
        few_images=min(n or math.inf for n in (a.num, b.num)) <= a.num_features,  # 0 is not known
    )


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) alone; see `frechet_terms`.

    Warns:
        FewImagesWarning: a set has no more images than features.
    """
    terms = frechet_terms(a, b)
    if terms.few_images:
        warnings.warn(
            f"{min(n for n in (a.num, b.num) if n)} images for {a.num_features} features: singular covariance, strongly biased distance",
            FewImagesWarning,
            stacklevel=2,
        )
    return terms.distance
