"""The EDM2 U-Net ("config G"): magnitude-preserving residual blocks with optional self-attention.

    F(x [N, C, H, W]; noise [N], labels [N, label_dim]) -> [N, C, H, W]

An encoder over halving resolutions stores every output; a decoder goes back up and joins each with `mp_cat`.
Parameter names and shapes are those of the published checkpoints, so that they load.

Reference: Karras et al. 2024, arXiv 2312.02696, Section 2 and Appendix B (config G).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autoguidance.errors import UserError
from autoguidance.models.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, resample


class Block(nn.Module):
    """One encoder or decoder block: resampling, residual branch modulated by the embedding, optional attention.

    Args:
        in_channels, out_channels: feature counts before and after.
        emb_channels: length of the embedding vector.
        flavor: "enc" (1x1 skip first, then pixel norm) or "dec" (the residual branch sees the wide input).
        resample_mode: "keep" | "up" | "down"; resample_filter: its taps, of even length.
        attention: self-attention at the end; channels_per_head: head size, heads = out_channels // channels_per_head.
        dropout: probability on the residual branch in training.
        res_balance, attn_balance: share of the residual and of the attention branch in their sums.
        clip_act: activations are clipped to +-clip_act; None is no clipping.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        flavor: str = "enc",
        resample_mode: str = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__()
        if attention and out_channels % channels_per_head:
            raise UserError(
                f"attention over {out_channels} channels cannot use heads of {channels_per_head}; "
                f"choose channels_per_head that divides {out_channels}"
            )
        self.out_channels = out_channels
        self.flavor = flavor
        self.resample_mode = resample_mode
        self.resample_filter = tuple(resample_filter)
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if self.num_heads else None

    def forward(self, x: Float[Tensor, "N in H W"], emb: Float[Tensor, "N emb"]) -> Float[Tensor, "N out h w"]:
        """Apply the block; emb may be float32 while x is half precision."""
        x = resample(x, self.resample_filter, self.resample_mode)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=1)

        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.training and self.dropout:
            y = nn.functional.dropout(y, p=self.dropout)
        y = self.conv_res1(y)

        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)

        if self.attn_qkv is not None and self.attn_proj is not None:
            num, _, height, width = x.shape
            y = self.attn_qkv(x).reshape(num, self.num_heads, -1, 3, height * width)
            q, k, v = normalize(y, dim=2).transpose(2, 4).unbind(3)  # each [N, heads, H*W, head_dim]
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            y = self.attn_proj(y.transpose(2, 3).reshape(x.shape))
            x = mp_sum(x, y, self.attn_balance)

        if self.clip_act is not None:
            x = x.clip(-self.clip_act, self.clip_act)
        return x


class UNet(nn.Module):
    """The raw network F; preconditioning is in `precond.py`.

    Args:
        img_resolution, img_channels: shape of x.
        label_dim: number of classes, 0 for an unconditional network.
        model_channels: base feature count; channel_mult: its multiple per level, from the finest.
        channel_mult_noise, channel_mult_emb: multiples for the noise and the embedding vector; None: the first level's and the largest.
        num_blocks: blocks per level (the decoder has one more).
        attn_resolutions: resolutions whose blocks attend.
        label_balance, concat_balance: share of the class embedding, and of the skip connection.
        block_options: the options of `Block`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        *,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block_options: object,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        if not levels or img_resolution % 2 ** (levels - 1):
            raise UserError(
                f"resolution {img_resolution} cannot be halved {levels - 1} times, as channel_mult {list(channel_mult)} asks; "
                "use fewer levels or pad the images"
            )
        level_channels = [model_channels * multiple for multiple in channel_mult]
        noise_channels = model_channels * channel_mult_noise if channel_mult_noise is not None else level_channels[0]
        emb_channels = model_channels * channel_mult_emb if channel_mult_emb is not None else max(level_channels)
        self.label_dim = label_dim
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(label_dim, emb_channels) if label_dim else None

        def block(in_channels: int, out_channels: int, **options: object) -> Block:
            return Block(in_channels, out_channels, emb_channels, **{**block_options, **options})  # type: ignore[arg-type]

        self.enc = nn.ModuleDict()
        skips = []
        channels = img_channels + 1  # the constant channel
        for level, out_channels in enumerate(level_channels):
            resolution = img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(channels, out_channels, (3, 3))
                channels = out_channels
            else:
                self.enc[f"{name}_down"] = block(channels, channels, flavor="enc", resample_mode="down")
            skips.append(channels)
            for index in range(num_blocks):
                attention = resolution in attn_resolutions
                self.enc[f"{name}_block{index}"] = block(channels, out_channels, flavor="enc", attention=attention)
                channels = out_channels
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, out_channels in reversed(list(enumerate(level_channels))):
            resolution = img_resolution >> level
            name = f"{resolution}x{resolution}"
            if level == levels - 1:
                self.dec[f"{name}_in0"] = block(channels, channels, flavor="dec", attention=True)
                self.dec[f"{name}_in1"] = block(channels, channels, flavor="dec")
            else:
                self.dec[f"{name}_up"] = block(channels, channels, flavor="dec", resample_mode="up")
            for index in range(num_blocks + 1):
                attention = resolution in attn_resolutions
                self.dec[f"{name}_block{index}"] = block(
                    channels + skips.pop(), out_channels, flavor="dec", attention=attention
                )
                channels = out_channels
        self.out_conv = MPConv(channels, img_channels, (3, 3))

    def forward(
        self,
        x: Float[Tensor, "N C H W"],
        noise: Float[Tensor, "N"],
        labels: Float[Tensor, "N label_dim"] | None,
    ) -> Float[Tensor, "N C H W"]:
        """Run the network at x's dtype; noise and labels stay float32 as long as they are vectors."""
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).contiguous(memory_format=torch.channels_last)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, emb)
        return self.out_conv(x, gain=self.out_gain)
