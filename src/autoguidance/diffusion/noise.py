"""Noise levels of a sampling run.

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,  i = 0..N-1,  sigma_N = 0

sigma is the unit of time everywhere: sigma(t) = t. Other parametrizations are converted where they come in.

Reference: Karras et al. 2022, arXiv 2206.00364, Eq. 5.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.errors import UserError


def sigma_schedule(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, "num_steps+1"]:
    """num_steps falling noise levels from sigma_max to sigma_min, then 0; float64 on the CPU. One step is [sigma_max, 0].

    Raises: UserError unless num_steps >= 1, 0 < sigma_min < sigma_max < inf and rho > 0.
    """
    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}; choose at least 1")
    if not 0 < sigma_min < sigma_max < float("inf"):
        raise UserError(f"sigma_min {sigma_min} and sigma_max {sigma_max}: choose 0 < sigma_min < sigma_max")
    if not 0 < rho < float("inf"):
        raise UserError(f"rho is {rho}; choose a positive number (7 is usual)")
    fraction = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + fraction * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])
