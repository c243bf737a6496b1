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

The estimate is biased: the distance between two samples of ONE distribution is positive and falls roughly as 1/n, so
figures with different image counts do not compare (`protocol.require_comparable`).

References: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions"; Heusel et al.
2017, arXiv 1706.08500; Chong and Forsyth 2020, arXiv 1911.07023 (the bias).
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from autoguidance.errors import UserError
from autoguidance.evaluate.statistics import Statistics


class FewImagesWarning(UserWarning):
    """A covariance from no more images than features is singular, and the distance strongly biased."""


@dataclass(frozen=True, kw_only=True)
class FrechetTerms:
    """A Fréchet distance and what it is made of.

    Attributes:
        distance: mean_term + covariance_term, at least 0 (the squared 2-Wasserstein distance of the Gaussians).
        mean_term: |mu_a - mu_b|^2, the part that a shift of all features explains.
        covariance_term: tr(S_a + S_b - 2 (S_a S_b)^(1/2)).
        rank_a, rank_b: numerical ranks of the covariances; below the number of features they are singular.
        few_images: a set has no more images than features, so its covariance is singular and the distance strongly
            biased.
    """

    distance: float
    mean_term: float
    covariance_term: float
    rank_a: int
    rank_b: int
    few_images: bool


def _factor(covariance: Float64[np.ndarray, "d d"], what: str) -> Float64[np.ndarray, "d r"]:
    """L with L L^T = covariance and as many columns as its numerical rank."""
    eigenvalues, eigenvectors = np.linalg.eigh((covariance + covariance.T) / 2)
    rounding = np.finfo(np.float64).eps * len(eigenvalues) * np.abs(eigenvalues).max()
    # A true covariance has none below zero; 1e-6 leaves room for statistics that were once stored as float32.
    if eigenvalues[0] < -1e-6 * np.abs(eigenvalues).max():
        raise UserError(
            f"the covariance of {what} has the negative eigenvalue {eigenvalues[0]:.3g}; compute the statistics again"
        )
    kept = eigenvalues > rounding
    return eigenvectors[:, kept] * np.sqrt(eigenvalues[kept])


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
    factor_a, factor_b = _factor(a.covariance, "the first set"), _factor(b.covariance, "the second set")
    overlap = (
        float(np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()) if factor_a.size and factor_b.size else 0.0
    )
    mean_term = float(np.square(a.mean - b.mean).sum())
    # Zero or more by the theorem; rounding can bring it just below for equal sets.
    covariance_term = max(0.0, float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap))
    return FrechetTerms(
        distance=mean_term + covariance_term,
        mean_term=mean_term,
        covariance_term=covariance_term,
        rank_a=factor_a.shape[1],
        rank_b=factor_b.shape[1],
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
