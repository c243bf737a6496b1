"""Preconditioning: scale a network's input and output so that both have unit variance at every noise level.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

Reference: Karras et al. 2022, arXiv 2206.00364, Table 1 (the column "Ours (EDM)").
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Preconditioning(NamedTuple):
    """The four scalars per image, each of sigma's shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def preconditioning(sigma: Float[Tensor, "..."], sigma_data: float) -> Preconditioning:
    """c_skip, c_out, c_in and c_noise for noise levels sigma > 0 and data of standard deviation sigma_data."""
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
    )
