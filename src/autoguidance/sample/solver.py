"""What the solvers of the probability-flow ODE share: the schedule, churn, and the walk over noise levels.

    dx/dsigma = (x - D(x; sigma)) / sigma,   x(sigma_max) = sigma_max * noise

Churn (stochastic sampling): before a step at s with S_min <= s <= S_max, noise is added so that the level rises to
s_hat = s (1 + gamma), gamma = min(S_churn / N, sqrt(2) - 1), and x_hat = x + sqrt(s_hat^2 - s^2) S_noise randn.

Reference: Karras et al. 2022, arXiv 2206.00364, Algorithms 1 and 2.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.diffusion.noise import sigma_schedule
from autoguidance.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Settings that every solver has.

    Attributes:
        num_steps: N >= 1.
        sigma_min, sigma_max, rho: the schedule; see `sigma_schedule`.
        churn: S_churn >= 0; 0 is deterministic.
        churn_min, churn_max: S_min and S_max, the noise levels between which churn acts.
        churn_noise: S_noise > 0, scale of the added noise.
        dtype: arithmetic of the solver; the network is always called with float32.
    """

    num_steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if not isinstance(self.num_steps, int):
            raise UserError(f"num_steps is {self.num_steps}; choose a whole number")
        if self.dtype not in (torch.float32, torch.float64):
            raise UserError(f"solver dtype is {self.dtype}; choose torch.float32 or torch.float64")
        sigma_schedule(self.num_steps, self.sigma_min, self.sigma_max, self.rho)
        if not (math.isfinite(self.churn) and self.churn >= 0):
            raise UserError(f"churn is {self.churn}; choose a number of at least 0 (0 is deterministic)")
        if not 0 <= self.churn_min <= self.churn_max:
            raise UserError(f"churn acts between {self.churn_min} and {self.churn_max}; choose 0 <= minimum <= maximum")
        if not (math.isfinite(self.churn_noise) and self.churn_noise > 0):
            raise UserError(f"churn noise scale is {self.churn_noise}; choose a positive number (1 is usual)")

    @property
    def name(self) -> str:
        """The solver's name in records."""
        return type(self).__name__.lower()

    def describe(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON."""
        values = {**asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}
        return {"name": self.name, **{k: str(v) if v == math.inf else v for k, v in values.items()}}

    def _gamma(self, sigma: float) -> float:
        if self.churn > 0 and self.churn_min <= sigma <= self.churn_max:
            return min(self.churn / self.num_steps, math.sqrt(2) - 1)
        return 0.0

    @abstractmethod
    def step(self, slope: Callable[[Tensor, float], Tensor], x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Advance x from sigma to sigma_next; slope(x, sigma) is dx/dsigma. sigma_next is 0 in the last step."""

    def integrate(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "N C H W"],
        labels: Float[Tensor, "N num_classes"] | None = None,
        *,
        randn: Callable[[], Tensor] | None = None,
        callback: Callable[[int, float, Tensor], None] | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Walk from pure noise to samples.

        Args:
            denoiser: network or guided pair.
            noise: standard normal; the start is sigma_max * noise.
            labels: one-hot labels, or None.
            randn: returns fresh standard normal noise of noise's shape; called only at steps where churn acts. Needed if churn > 0.
            callback: called with (step, sigma, x) before every step and with (N, 0, x) at the end.

        Returns: samples in the solver's dtype.
        """
        if self.churn > 0 and randn is None:
            raise UserError("churn needs a source of noise (randn); pass one, or set churn to 0")
        sigmas = sigma_schedule(self.num_steps, self.sigma_min, self.sigma_max, self.rho).to(self.dtype).tolist()

        def slope(x: Tensor, sigma: float) -> Tensor:
            level = torch.tensor(sigma, dtype=torch.float32)
            denoised = denoiser(x.to(torch.float32), level, labels).to(self.dtype)
            return (x - denoised) / sigma

        x = noise.to(self.dtype) * sigmas[0]
        for index, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            if callback is not None:
                callback(index, sigma, x)
            gamma = self._gamma(sigma)
            if gamma > 0 and randn is not None:
                raised = sigma * (1 + gamma)
                x = x + math.sqrt(raised**2 - sigma**2) * self.churn_noise * randn().to(x)
                sigma = raised
            x = self.step(slope, x, sigma, sigma_next)
        if callback is not None:
            callback(len(sigmas) - 1, 0.0, x)
        return x
