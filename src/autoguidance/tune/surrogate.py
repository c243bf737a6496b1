"""What the measured settings say about the others: a Gaussian process on the logarithm of the distance.

Problem: a setting (w, EMA_main, EMA_guide, guide, ...) costs thousands of images to measure, but the distance varies
smoothly with it, so a few tens of measurements tell much about the rest. Some of them were made on few images, where
the distance is larger (its bias) and noisier, and those should count for what they are worth.

With x [p] the coordinates of a setting (see `space`), r = 0 .. R - 1 the number of images as a rung, y = log distance:

    y_i = m_r + a_r f(x_i) + e_i          f ~ GP(0, k),   e_i ~ N(0, s^2 n_R / n_r),   a_{R-1} = 1
    k(x, x') = v M52(d) g,   d^2 = sum_j ((x_j - x'_j) / l_j)^2,   M52(d) = (1 + sqrt5 d + 5 d^2 / 3) exp(-sqrt5 d)

g is 1 between settings of one category, and rho < 1 between guides from different runs, as far as there is guidance:

    g = sqrt(1 - (1 - rho) t^2) sqrt(1 - (1 - rho) t'^2) + [same category] (1 - rho) t t'      t, t' the strengths

m_r takes up the bias, a_r that a bias added to every distance flattens its logarithm; both are found from the data. v, l,
s, rho and a maximise the posterior density under broad log-normal priors, which keep them sane when there are three
measurements. The logarithm because distances span decades, and because a guide that is twice as bad is as informative
anywhere.

All in float64; up to a few hundred measurements, so the cubic cost is nothing beside one measurement.

Reference: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5; the rungs are a
linear form of Kennedy and O'Hagan 2000, "Predicting the output from a complex computer code".
"""

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from autoguidance.tune.grid import Places

# Medians and spreads (of the logarithm) of the priors. Coordinates are scaled so that the range of an axis is about 1 to 3.
_LENGTH = (1.0, 0.7)
_VARIANCE = (0.5, 1.0)
_NOISE = (0.03, 0.8)  # standard deviation of log distance at the largest rung
_SLOPE = (0.8, 0.3)
_RHO_LOGIT = (1.0, 1.0)
_MEAN_VARIANCE = 100.0  # of each m_r: as good as unknown
_FIT_STEPS = 25


class Surrogate:
    """A fitted Gaussian process; `predict` gives mean and standard deviation of log distance at the largest rung.

    Args:
        places: x, categories (settings of unlike ones are related by rho only) and strengths of n settings.
        rungs: r, [n], 0 .. R - 1.
        values: the distances, [n], positive and finite.
        counts: images per rung, ascending, R of them.

    Raises:
        ValueError: shapes that do not fit, or distances that are not positive.
    """

    def __init__(
        self,
        places: Places,
        rungs: Int64[np.ndarray, "n"],
        values: Float[np.ndarray, "n"],
        counts: Sequence[int],
    ) -> None:
        values = np.asarray(values, dtype=np.float64)
        if not len(values) or not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("a surrogate needs at least one positive, finite distance")
        self._x, self._category, self._strength = _tensors(places)
        self._rung = torch.as_tensor(np.asarray(rungs, dtype=np.int64))
        if (
            self._x.shape[0] != len(values)
            or not self._category.shape == self._strength.shape == self._rung.shape
            or len(self._rung) != len(values)
        ):
            raise ValueError("places, rungs and values do not fit")
        self._y = torch.from_numpy(np.log(values))
        self._centre = self._y.mean()
        self._num_rungs = len(counts)
        self._noise_ratio = torch.tensor([counts[-1] / count for count in counts], dtype=torch.float64)
        self._theta = self._fit()
        self._solve()

    def _solve(self) -> None:
        with torch.no_grad():
            covariance, self._cross_scale = self._covariance(self._theta)
            self._factor = torch.linalg.cholesky(covariance)
            self._alpha = torch.cholesky_solve((self._y - self._centre)[:, None], self._factor)[:, 0]

    def expecting(self, places: Places, rungs: Int64[np.ndarray, "m"]) -> "Surrogate":
        """The same process once measurements that are under way have come out as it predicts: the means stay, the uncertainty near
        them shrinks, so that the next proposal goes elsewhere."""
        if not len(rungs):
            return self
        believer = copy.copy(self)
        rung = torch.as_tensor(np.asarray(rungs, dtype=np.int64))
        slopes = self._unpack(self._theta)[4]
        means = torch.stack([_MEAN_VARIANCE * self._alpha[self._rung == r].sum() for r in range(self._num_rungs)])
        f = torch.cat([cross @ self._alpha for cross in self._cross(places)])
        x, category, strength = _tensors(places)
        believer._x = torch.cat([self._x, x])
        believer._category = torch.cat([self._category, category])
        believer._strength = torch.cat([self._strength, strength])
        believer._rung = torch.cat([self._rung, rung])
        believer._y = torch.cat([self._y, self._centre + means[rung] + slopes[rung] * f])
        believer._solve()
        return believer

    # theta = [log v, log s, logit rho, log l_1 .. log l_p, log a_0 .. log a_{R-2}]

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        p = self._x.shape[1]
        slopes = torch.cat([theta[3 + p :].exp(), theta.new_ones(1)])
        return theta[0].exp(), theta[1].exp(), torch.sigmoid(theta[2]), theta[3 : 3 + p].exp(), slopes

    def _kernel(self, x: Tensor, category: Tensor, strength: Tensor, theta: Tensor) -> Tensor:
        """Between any settings and those that were measured."""
        variance, _, rho, lengths, _ = self._unpack(theta)
        squared = ((x[:, None] - self._x[None]) / lengths).square().sum(-1)
        # The square root has no finite slope at 0; the kernel has, so a tiny offset changes nothing but that.
        distance = (5 * squared + 1e-12).sqrt()
        matern = (1 + distance + 5 * squared / 3) * (-distance).exp()
        own = 1 - rho
        shared = (1 - own * strength.square()).sqrt()[:, None] * (1 - own * self._strength.square()).sqrt()[None]
        same = (category[:, None] == self._category[None]) * strength[:, None] * self._strength[None]
        return variance * matern * (shared + own * same)

    def _covariance(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        _, noise, _, _, slopes = self._unpack(theta)
        scale = slopes[self._rung]
        k = self._kernel(self._x, self._category, self._strength, theta) * scale[:, None] * scale[None]
        same_rung = self._rung[:, None] == self._rung[None]
        k = k + _MEAN_VARIANCE * same_rung.double()
        return k + torch.diag(noise.square() * self._noise_ratio[self._rung] + 1e-8), scale

    def _prior(self, theta: Tensor) -> Tensor:
        p = self._x.shape[1]
        centres = [math.log(_VARIANCE[0]), math.log(_NOISE[0]), _RHO_LOGIT[0]] + p * [math.log(_LENGTH[0])]
        spreads = [_VARIANCE[1], _NOISE[1], _RHO_LOGIT[1]] + p * [_LENGTH[1]]
        centres += (self._num_rungs - 1) * [math.log(_SLOPE[0])]
        spreads += (self._num_rungs - 1) * [_SLOPE[1]]
        z = (theta - torch.tensor(centres, dtype=torch.float64)) / torch.tensor(spreads, dtype=torch.float64)
        return z.square().sum() / 2

    def _loss(self, theta: Tensor) -> Tensor:
        covariance, _ = self._covariance(theta)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed.item():
            return theta.square().sum() * 0 + 1e6
        z = torch.linalg.solve_triangular(factor, (self._y - self._centre)[:, None], upper=False)
        return z.square().sum() / 2 + factor.diagonal().log().sum() + self._prior(theta)

    def _fit(self) -> Tensor:
        p = self._x.shape[1]
        start = [math.log(_VARIANCE[0]), math.log(_NOISE[0]), _RHO_LOGIT[0]] + p * [math.log(_LENGTH[0])]
        start += (self._num_rungs - 1) * [math.log(_SLOPE[0])]
        with torch.enable_grad():
            theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS(
                [theta], max_iter=_FIT_STEPS, tolerance_change=1e-3, line_search_fn="strong_wolfe"
            )

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self._loss(theta)
                loss.backward()
                return loss

            optimizer.step(closure)
        found = theta.detach()
        return found if torch.isfinite(found).all() else torch.tensor(start, dtype=torch.float64)

    def _cross(self, places: Places) -> Iterator[Tensor]:
        with torch.no_grad():
            parts = (tensor.split(8192) for tensor in _tensors(places))
            for x, category, strength in zip(*parts, strict=True):
                yield self._kernel(x, category, strength, self._theta) * self._cross_scale[None]

    def predict(self, places: Places) -> tuple[Float64[np.ndarray, "m"], Float64[np.ndarray, "m"]]:
        """Mean and standard deviation of log distance at the largest rung, without the noise of a measurement there.

        Where nothing was measured at the largest rung its constant is not known; that of the largest rung that was
        measured stands in for it, which does not affect the order of settings.
        """
        rung = int(self._rung.max())
        slope = self._unpack(self._theta)[4][rung]
        # f and the constants m_r cannot be told apart; what is predicted is their sum, whose uncertainty vanishes where much is measured.
        shared = _MEAN_VARIANCE / slope * (self._rung == rung).double()
        variance = self._unpack(self._theta)[0] + _MEAN_VARIANCE / slope.square()
        means, deviations = [], []
        for cross in self._cross(places):
            cross = cross + shared[None]
            means.append(self._centre + cross @ self._alpha)
            z = torch.linalg.solve_triangular(self._factor, cross.T, upper=False)
            deviations.append((variance - z.square().sum(0)).clamp(min=1e-12).sqrt())
        return torch.cat(means).numpy(), torch.cat(deviations).numpy()

    @property
    def noise(self) -> float:
        """Standard deviation of log distance from measurement to measurement, at the largest rung."""
        return float(self._unpack(self._theta)[1])


def _tensors(places: Places) -> tuple[Tensor, Tensor, Tensor]:
    types = (np.float64, np.int64, np.float64)
    coordinates, categories, strengths = (
        torch.as_tensor(np.asarray(array, dtype=kind)) for array, kind in zip(places, types, strict=True)
    )
    return coordinates, categories, strengths
