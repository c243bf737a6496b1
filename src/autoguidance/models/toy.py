"""The toy's network: a multi-layer perceptron whose output is a log-density, and whose gradient is the score.

Problem: to look at what a score model has learned, its implied density must be known. So the network gives an
unnormalized log-density G(x; sigma) of points x [N, 2], and the score is its exact gradient. With z = x /
sqrt(sigma^2 + sigma_data^2):

    G = gain * mean_i(F_i^2) / sigma - |z|^2 / 2,    F = MLP([z_1, z_2, ln(sigma)/4, 1])
    score = grad_x G,    D(x; sigma) = x + sigma^2 score

With gain = 0, where training starts, G is a Gaussian of the data's width. The layers preserve magnitudes, so that
main model and guide train at the same rate whatever their width.

Training needs the gradient of a gradient. `_InputGradient` writes both out: backpropagation to the input, and for its
derivative one sweep of tangents forwards and one of adjoints backwards; half the time of automatic double
differentiation, same numbers.

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507, Appendix C.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoguidance.errors import UserError
from autoguidance.models.layers import MPConv, mp_silu, normalize
from autoguidance.models.toy_mixture import GaussianMixture2D, toy_mixture

__all__ = ["GaussianMixture2D", "ToyNetwork", "toy_mixture"]

NUM_LAYERS = 5
NUM_FEATURES = 4
_SILU_SCALE = 0.596  # of mp_silu

# Points whose activations stay near a core's cache; evaluation goes through more points in pieces of this size.
_CHUNK = 4096


class _MPSiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mp_silu(x)


class _InputGradient(torch.autograd.Function):
    """s = d/dz [coefficient |F(z)|^2 / 2], first two columns, for F = W_4 phi(W_3 ... phi(W_0 z)), phi = SiLU.

    Forward, a_l the pre-activations, h_l = phi(a_l), d_l = phi'(a_l):  u_4 = coefficient F,  q_l = u_{l+1} W_{l+1},  u_l = q_l d_l,
    s = u_0 W_0. Backward, for an incoming v [N, 2]: v's.s is the derivative of coefficient |F|^2 / 2 along v, so tangents t_l of a_l run
    forwards (t_0 = W_0 v, t_{l+1} = W_{l+1} (d_l t_l)) and adjoints p_l of a_l backwards (p_4 = coefficient t_4,
    p_l = d_l (p_{l+1} W_{l+1}) + q_l t_l phi''(a_l)); the adjoint of t_l is u_l. Then dW_{l+1} = p_{l+1}' h_l + u_{l+1}' (d_l t_l).
    No gradient with respect to z.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, coefficient: Tensor, *weights: Tensor) -> Tensor:
        gates, hidden, slopes, pulled, adjoints = [], [], [], [], []
        a = z @ weights[0].T
        for weight in weights[1:]:
            gate = torch.sigmoid(a)
            h = a.mul_(gate)
            gates.append(gate)
            hidden.append(h)
            slopes.append((gate + h).addcmul_(gate, h, value=-1))  # phi' = g + h - g h
            a = h @ weight.T
        u = a * coefficient
        adjoints.append(u)
        for weight, slope in zip(reversed(weights[1:]), reversed(slopes), strict=True):
            q = u @ weight
            u = q * slope
            pulled.append(q)
            adjoints.append(u)
        ctx.save_for_backward(
            z, coefficient, a, *weights, *gates, *hidden, *slopes, *reversed(pulled), *reversed(adjoints)
        )
        return u @ weights[0][:, :2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = gradients
        z, coefficient, output, *saved = ctx.saved_tensors
        layers = (len(saved) + 4) // 6  # L weights, L - 1 each of gates, hidden, slopes and pulled, L adjoints
        weights, saved = saved[:layers], saved[layers:]
        gates, hidden, slopes, pulled = (saved[i * (layers - 1) : (i + 1) * (layers - 1)] for i in range(4))
        adjoints = saved[4 * (layers - 1) :]

        tangents = [v @ weights[0][:, :2].T]
        moved = []
        for weight, slope in zip(weights[1:], slopes, strict=True):
            moved.append(slope * tangents[-1])
            tangents.append(moved[-1] @ weight.T)
        grad_coefficient = (output * tangents[-1]).sum(1, keepdim=True)

        grads: list[Tensor] = []
        p = tangents[-1] * coefficient
        for level in range(layers - 1, 0, -1):
            gate, h, slope = gates[level - 1], hidden[level - 1], slopes[level - 1]
            grads.append(torch.addmm(p.T @ h, adjoints[level].T, moved[level - 1]))
            # phi'' = (1 - g) (g + phi' - g h)
            curvature = (gate + slope).addcmul_(gate, h, value=-1).mul_(1 - gate)
            bent = curvature.mul_(pulled[level - 1]).mul_(tangents[level - 1])
            p = bent.addcmul_(p @ weights[level], slope)
        first = p.T @ z
        first[:, :2] += adjoints[0].T @ v
        return None, grad_coefficient, first, *reversed(grads)


class ToyNetwork(nn.Module):
    """G(x; sigma) for points in the plane; also a Denoiser of "images" [N, 2, 1, 1].

    Args:
        width: features per layer (64 for the main model, 32 for guides).
        num_classes: 1 for a model of one class, which knows its condition by construction; 0 for one of all classes together,
            which can serve as the unconditional model of classifier-free guidance. Labels are accepted and ignored.
        sigma_data: assumed standard deviation of the data.
        generator: draws the initial weights; None: the global one.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        num_classes: int = 1,
        sigma_data: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"the toy network's width is {width}; choose at least 1")
        self.img_resolution, self.img_channels = 1, 2
        self.num_classes, self.sigma_data = num_classes, sigma_data
        layers: list[nn.Module] = [MPConv(NUM_FEATURES, width)]
        for _ in range(NUM_LAYERS - 1):
            layers += [_MPSiLU(), MPConv(width, width)]
        self.layers = nn.Sequential(*layers)
        self.gain = nn.Parameter(torch.zeros(()))
        if generator is not None:
            with torch.no_grad():
                for layer in self._linear():
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))

    def _linear(self) -> list[MPConv]:
        return [layer for layer in self.layers if isinstance(layer, MPConv)]

    def _features(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The MLP's input [N, 4], and sigma and c_in as [N, 1]."""
        sigma = sigma.to(x.dtype).reshape(-1, 1).expand(len(x), 1)
        c_in = (sigma.square() + self.sigma_data**2).rsqrt()
        return torch.cat([x * c_in, sigma.log() / 4, torch.ones_like(sigma)], dim=1), sigma, c_in

    def log_density(self, x: Float[Tensor, "N 2"], sigma: Tensor | float) -> Float[Tensor, "N"]:
        """G(x; sigma): the logarithm of the implied density up to a constant that depends on sigma."""
        z, sigma, _ = self._features(x, torch.as_tensor(sigma))
        output = self.layers(z)
        return self.gain * output.square().mean(1) / sigma[:, 0] - z[:, :2].square().sum(1) / 2

    def score(self, x: Float[Tensor, "N 2"], sigma: Tensor | float) -> Float[Tensor, "N 2"]:
        """grad_x G(x; sigma); differentiable with respect to the parameters (not to x).

        In training mode the stored weights are first normalized, as `MPConv` does.
        """
        z, sigma, c_in = self._features(x, torch.as_tensor(sigma))
        weights = []
        for index, layer in enumerate(self._linear()):
            if self.training:
                with torch.no_grad():
                    layer.weight.copy_(normalize(layer.weight))
            scale = math.sqrt(layer.weight.shape[1]) * (_SILU_SCALE if index else 1)
            weights.append(normalize(layer.weight) / scale)
        coefficient = self.gain * (2 / len(weights[-1])) / sigma
        gradient = _InputGradient.apply(z, coefficient, *weights)
        return (gradient - z[:, :2]) * c_in

    def forward(
        self,
        x: Float[Tensor, "N 2 1 1"],
        sigma: Float[Tensor, ""] | Float[Tensor, "N"],
        labels: Float[Tensor, "N num_classes"] | None = None,
    ) -> Float[Tensor, "N 2 1 1"]:
        """D(x; sigma) = x + sigma^2 score, float32; see `Denoiser`."""
        points = x.float().reshape(-1, 2)
        levels = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1).expand(len(points))
        with torch.no_grad():
            pieces = [self.score(p, s) for p, s in zip(points.split(_CHUNK), levels.split(_CHUNK), strict=True)]
        return (points + levels[:, None].square() * torch.cat(pieces)).reshape(-1, 2, 1, 1)
