"""Power-function averages of network weights.

Problem: an exponential average has a fixed memory; the best memory grows with training time. The average with profile
p(tau) ~ tau^exponent over [0, t] has a memory proportional to t. Its relative width (standard deviation over t) names
it: ema_std = 0.050 means that the profile's standard deviation is 5 % of the training so far. t counts training
images.

    std(exponent) = sqrt((exponent + 1) / ((exponent + 2)^2 (exponent + 3)))                   (Eq. 123)
    beta = (1 - dt / t)^(exponent + 1);   ema += (1 - beta) (net - ema)   after a step from t - dt to t   (Eq. 127)

Reference: Karras et al. 2024, arXiv 2312.02696, Section 3.1 and Appendix C.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autoguidance.errors import UserError

MAX_EMA_STD = math.sqrt(1 / 12)
"""Width of the flat profile (exponent 0), above which a profile would weigh early weights more than late ones."""


def exponent_to_std(exponent: float) -> float:
    """Relative width of the profile tau^exponent (Eq. 123)."""
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


def std_to_exponent(ema_std: float) -> float:
    """Exponent of the profile with relative width ema_std in (0, MAX_EMA_STD]: the largest real root of Eq. 126.

    Raises: UserError outside that range.
    """
    if not 0 < ema_std <= MAX_EMA_STD:
        raise UserError(f"EMA width {ema_std} is out of range; choose one in (0, {MAX_EMA_STD:.3f}]")
    inverse = ema_std**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6 * max(1.0, abs(root.real))))


def power_ema_beta(ema_std: float, t: float, dt: float) -> float:
    """Share of the old average that stays after a step of dt images that brings the count to t (Eq. 127)."""
    return (1 - dt / t) ** (std_to_exponent(ema_std) + 1)


class PowerEMA:
    """Averages of a network's parameters at several widths, updated after every step; buffers are copied.

    Args:
        net: the network in training; the averages begin as copies of it.
        stds: relative widths to track.
    """

    def __init__(self, net: nn.Module, stds: Iterable[float] = (0.05, 0.1)) -> None:
        self.stds = tuple(stds)
        self._exponents = {std: std_to_exponent(std) for std in self.stds}
        self._parameters = dict(net.named_parameters())
        self._net = net
        self._averages = {
            std: {name: parameter.detach().clone() for name, parameter in self._parameters.items()} for std in self.stds
        }

    @torch.no_grad()
    def update(self, num_images: int, batch_size: int) -> None:
        """Take in the weights after a step of batch_size images that brought the count to num_images."""
        current = [parameter.detach() for parameter in self._parameters.values()]
        for std in self.stds:
            beta = (1 - batch_size / num_images) ** (self._exponents[std] + 1)
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self._averages[std].values()), current, 1 - beta
            )

    def averages(self) -> dict[float, dict[str, Tensor]]:
        """Per width a complete state dict: averaged parameters, current buffers. Tensors are live; copy to keep them."""
        state = self._net.state_dict()
        return {std: {**state, **average} for std, average in self._averages.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Flat mapping `STD/parameter` -> average, for checkpoints."""
        return {
            f"{std:.3f}/{name}": value for std, average in self._averages.items() for name, value in average.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages written by `state_dict`. Raises UserError where names do not fit."""
        own = self.state_dict()
        if own.keys() != state.keys():
            raise UserError("the checkpoint's EMA does not fit this network; start in another folder")
        for name, value in own.items():
            value.copy_(state[name])
