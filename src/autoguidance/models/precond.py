"""The EDM2 network as a denoiser: preconditioning around the U-Net, and the learned uncertainty of the loss.

    D(x; sigma, labels) = c_skip x + c_out F(c_in x; c_noise, labels)

with x [N, C, H, W], sigma [N], one-hot labels [N, num_classes]. The body may run in half precision; preconditioning
is float32.

Reference: Karras et al. 2022, arXiv 2206.00364, Eq. 7 and Table 1; Karras et al. 2024, arXiv 2312.02696, Section 2.
"""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoguidance.diffusion.denoiser import per_image
from autoguidance.diffusion.preconditioning import preconditioning
from autoguidance.errors import UserError
from autoguidance.models.graphs import MAX_PARAMETERS, RecordingCache, graphs_enabled
from autoguidance.models.layers import MPConv, MPFourier
from autoguidance.models.options import check_options
from autoguidance.models.unet import UNet


class Precond(nn.Module):
    """An EDM2 network with its preconditioning; satisfies the `Denoiser` protocol.

    Args:
        img_resolution, img_channels, label_dim: shape of images and of one-hot labels (0: unconditional).
        use_fp16: the body runs in float16 on a GPU unless `body_dtype` says otherwise. On a CPU it never does.
        sigma_data: expected standard deviation of the data.
        logvar_channels: features of the uncertainty head.
        unet_options: the options of `UNet` and `Block`.

    Attributes:
        body_dtype: None (by use_fp16 and device), or the dtype of the U-Net's activations. float16 is ignored on a CPU.
        encoder, class_names: set by whoever loads the model; see `Denoiser`.
        licence: of the weights, as the model file says; None where it names none.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        *,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.num_classes = label_dim
        self.use_fp16 = use_fp16
        self.sigma_data = sigma_data
        self.body_dtype: torch.dtype | None = None
        self.encoder: dict[str, Any] | None = None
        self.class_names: tuple[str, ...] = ()
        self.licence: str | None = None
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet_options)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)
        self._recordings = RecordingCache()
        self._can_record = sum(parameter.numel() for parameter in self.parameters()) <= MAX_PARAMETERS

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.logvar_linear.weight.device

    def _dtype(self, x: Tensor) -> torch.dtype:
        wanted = self.body_dtype or (torch.float16 if self.use_fp16 and x.is_cuda else torch.float32)
        # Half precision on a CPU is two orders of magnitude slower than float32; bfloat16 is fast there.
        return torch.float32 if wanted == torch.float16 and not x.is_cuda else wanted

    def logvar(self, sigma: Tensor) -> Float[Tensor, "N 1 1 1"]:
        """u(sigma): the log-variance of the loss at this noise level, learned by the training loss."""
        c_noise = sigma.reshape(-1).float().log() / 4
        return self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)

    def forward(
        self,
        x: Float[Tensor, "N C H W"],
        sigma: Tensor,
        labels: Float[Tensor, "N num_classes"] | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Denoise x. labels None is the null label; labels given to an unconditional network are ignored."""
        x = x.float()
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if tuple(x.shape[1:]) != expected:
            raise UserError(f"the network takes images of shape {expected}, not {tuple(x.shape[1:])}")
        sigma = per_image(sigma, x)
        if self.num_classes == 0:
            labels = None
        elif labels is None:
            labels = torch.zeros(x.shape[0], self.num_classes, device=x.device)
        elif labels.shape != (x.shape[0], self.num_classes):
            expected = (x.shape[0], self.num_classes)
            raise UserError(f"labels have the shape {tuple(labels.shape)}, the network takes {expected}")
        else:
            labels = labels.float()
        if self._records(x):
            return self._replay(x, sigma, labels)
        return self._denoise(x, sigma, labels)

    def _records(self, x: Tensor) -> bool:
        return (
            x.is_cuda
            and self._can_record
            and not self.training
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.cuda.is_current_stream_capturing()
            and threading.current_thread() is threading.main_thread()  # recordings share memory
            and graphs_enabled()
        )

    def _replay(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """`_denoise` as a CUDA graph."""
        weights = tuple((p._version, p.data_ptr()) for p in self.parameters() if not p.is_inference())
        key = (tuple(x.shape), labels is None, self._dtype(x), torch.is_inference_mode_enabled(), weights)
        inputs = [x, sigma] if labels is None else [x, sigma, labels]

        def kept() -> object:  # the normalized weights: another dtype would replace them
            return [module._cached for module in self.modules() if isinstance(module, MPConv)]

        return self._recordings.call(key, self._denoise, inputs, kept)

    def _denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        c = preconditioning(sigma, self.sigma_data)
        body = self.unet((c.c_in * x).to(self._dtype(x)), c.c_noise.reshape(-1), labels)
        return c.c_skip * x + c.c_out * body.float()


def build_model(config: Mapping[str, Any]) -> Precond:
    """A network with fresh random weights from its configuration: the keyword arguments of Precond, UNet and Block.

    Raises: UserError where the configuration holds an unknown option or impossible values.
    """
    check_options(config)
    try:
        return Precond(**config)
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"the network's configuration is not usable: {error}; correct the option") from None
