"""The network behind FID: Inception-v3 as it was frozen in TensorFlow's graph of 2015-12-05.

Problem: a published FID means the 2048 pooled features of one particular network. The Inception-v3 of torchvision is
another one (other weights, other pooling) and resizes differently; both move FID by more than most papers improve it.
Every package that has the right one needs torchvision, so it is written out here (docs/decisions/0007).

    x = (resize(image) - 128) / 128         [N, 3, 299, 299],  image uint8
    f = mean over 8 x 8 of Mixed_7c(x)      [N, 2048]

What differs from the Inception-v3 of textbooks:

* The resize is TensorFlow 1's bilinear one: output pixel i reads at i * H / 299, not at (i + 1/2) H / 299 - 1/2, so
  the image moves up and left by up to half a pixel, and there is no antialiasing.
* Average pools inside the blocks divide by the pixels that exist, not by 9 at the border.
* The pooling branch of the last block, Mixed_7c, takes the maximum.
* The classifier has 1008 outputs. It is part of the stored weights, not of the features.

Parameter names are those of the PyTorch port of the weights, `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid,
which torch-fidelity distributes as `weights-inception-2015-12-05-6726825d.pth`: 94 convolutions, each with a batch
norm, in branches that are joined by their channels. In evaluation a batch norm is a factor and an offset per channel,
so it is folded into its convolution (in float64).

Reference: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567; Heusel
et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv:1706.08500.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from autoguidance.errors import UserError
from autoguidance.evaluate.running import in_chunks, rgb_images, true_float32
from autoguidance.evaluate.weights import check_weights, hub_file, read_weights, weights_sha256
from autoguidance.storage import cache_folder, sha256_file

INPUT_SIZE = 299
NUM_FEATURES = 2048
NUM_LOGITS = 1008
FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
FILE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAMES[0]}"
RESIZE = "bilinear-tf1-299"
_BATCH_NORM_EPS = 1e-3
_COUNTERS = ".num_batches_tracked"  # of the batch norms: part of some ports' files, of no influence

Pool = Literal["average", "max", "halve"]


class Conv(NamedTuple):
    """A convolution: its name within the block, output channels, kernel (height, width), stride."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Branch(NamedTuple):
    """A chain of steps after an optional pool; a step of several convolutions runs them side by side and joins them."""

    steps: tuple[tuple[Conv, ...], ...] = ()
    pool: Pool | None = None


def _chain(*convolutions: Conv, pool: Pool | None = None) -> Branch:
    return Branch(tuple((conv,) for conv in convolutions), pool)


def _block_35(pool_width: int) -> tuple[Branch, ...]:
    return (
        _chain(Conv("branch1x1", 64)),
        _chain(Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        _chain(Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        _chain(Conv("branch_pool", pool_width), pool="average"),
    )


def _block_17(width: int) -> tuple[Branch, ...]:
    return (
        _chain(Conv("branch1x1", 192)),
        _chain(Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        _chain(
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        _chain(Conv("branch_pool", 192), pool="average"),
    )


def _block_8(pool: Pool) -> tuple[Branch, ...]:
    return (
        _chain(Conv("branch1x1", 320)),
        Branch(
            (
                (Conv("branch3x3_1", 384),),
                (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))),
            )
        ),
        Branch(
            (
                (Conv("branch3x3dbl_1", 448),),
                (Conv("branch3x3dbl_2", 384, (3, 3)),),
                (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
            )
        ),
        _chain(Conv("branch_pool", 192), pool=pool),
    )


_BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": (
        _chain(Conv("branch3x3", 384, (3, 3), 2)),
        _chain(Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        _chain(pool="halve"),
    ),
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": (
        _chain(Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        _chain(
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        _chain(pool="halve"),
    ),
    "Mixed_7b": _block_8("average"),
    "Mixed_7c": _block_8("max"),
}


class ConvNorm(nn.Module):
    """Convolution without offset, batch norm, ReLU. `fold` turns the batch norm into the convolution's own offset."""

    def __init__(self, in_channels: int, conv: Conv, *, padded: bool) -> None:
        super().__init__()
        padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(in_channels, conv.width, conv.kernel, stride=conv.stride, padding=padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(conv.width, eps=_BATCH_NORM_EPS)

    def fold(self) -> None:
        norm = self.bn
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = self.conv.weight.double() * factor[:, None, None, None]
            offset = norm.bias.double() - norm.running_mean.double() * factor
            self.conv.weight = nn.Parameter(weight.float())
            self.conv.bias = nn.Parameter(offset.float())
        self.bn = nn.Identity()

    def forward(self, x: Float[Tensor, "N c H W"]) -> Float[Tensor, "N C h w"]:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches on one input, joined by their channels; those with stride 2 and the pool beside them halve the map."""

    def __init__(self, in_channels: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = tuple(branches)
        self.out_channels = 0
        for branch in branches:
            channels = in_channels
            for step in branch.steps:
                for conv in step:
                    self.add_module(conv.name, ConvNorm(channels, conv, padded=conv.stride == 1))
                channels = sum(conv.width for conv in step)
            self.out_channels += channels

    def forward(self, x: Float[Tensor, "N c H W"]) -> Float[Tensor, "N C h w"]:
        outputs = []
        for branch in self.branches:
            y = x if branch.pool is None else _pool(x, branch.pool)
            for step in branch.steps:
                parts = [self.get_submodule(conv.name)(y) for conv in step]
                y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


def _pool(x: Tensor, kind: Pool) -> Tensor:
    if kind == "average":
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if kind == "max":
        return functional.max_pool2d(x, 3, stride=1, padding=1)
    return functional.max_pool2d(x, 3, stride=2)


class InceptionV3(nn.Module):
    """Inception-v3 with the parameter names of the PyTorch port.

    Args:
        divisor: of every layer's width. 1 is the published network; a larger one tries the way of the data at a
            fraction of the cost.
    """

    def __init__(self, *, divisor: int = 1) -> None:
        super().__init__()

        def narrow(conv: Conv) -> Conv:
            return conv._replace(width=conv.width // divisor)

        self.Conv2d_1a_3x3 = ConvNorm(3, narrow(Conv("", 32, (3, 3), 2)), padded=False)
        self.Conv2d_2a_3x3 = ConvNorm(32 // divisor, narrow(Conv("", 32, (3, 3))), padded=False)
        self.Conv2d_2b_3x3 = ConvNorm(32 // divisor, narrow(Conv("", 64, (3, 3))), padded=True)
        self.Conv2d_3b_1x1 = ConvNorm(64 // divisor, narrow(Conv("", 80)), padded=False)
        self.Conv2d_4a_3x3 = ConvNorm(80 // divisor, narrow(Conv("", 192, (3, 3))), padded=False)
        channels = 192 // divisor
        for name, branches in _BLOCKS.items():
            narrowed = [
                Branch(tuple(tuple(map(narrow, step)) for step in branch.steps), branch.pool) for branch in branches
            ]
            block = Mixed(channels, narrowed)
            self.add_module(name, block)
            channels = block.out_channels
        self.num_features = channels
        self.fc = nn.Linear(channels, NUM_LOGITS)

    def fold(self) -> "InceptionV3":
        """Fold every batch norm into its convolution, for evaluation; the parameter names are others afterwards."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self

    def forward(self, x: Float[Tensor, "N 3 299 299"]) -> Float[Tensor, "N d"]:
        """Pooled features of images in about [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _pool(x, "halve")
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = _pool(x, "halve")
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def resize_tf1(images: Float[Tensor, "N C H W"], size: int) -> Float[Tensor, "N C size size"]:
    """Bilinear resize to size x size as TensorFlow 1 does it (align_corners=False): pixel i reads at i * H / size.

    Not to be confused with torch's bilinear `interpolate`, which reads at (i + 1/2) H / size - 1/2. No antialiasing.
    """
    # First along the rows, then along the columns: the order of TensorFlow's kernel.
    for dim in (3, 2):
        length = images.shape[dim]
        if length == size:
            continue
        scale = torch.tensor(length / size, dtype=torch.float32, device=images.device)
        position = torch.arange(size, dtype=torch.float32, device=images.device) * scale
        low = position.long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        share = (position - low).reshape(-1, *(1,) * (3 - dim))
        before = images.index_select(dim, low)
        images = before + (images.index_select(dim, high) - before) * share
    return images


class InceptionFeatures:
    """Inception-v3's pooled features of images of any size.

    Attributes:
        sha256: of weights and preprocessing; the same for any file with the same weights.
        num_features: 2048.
        resize: how images come to 299 x 299; the aspect ratio is not kept.
        device: where it runs; images are moved there.
    """

    name = "inception"
    resize = RESIZE

    def __init__(self, network: InceptionV3, sha256: str, device: torch.device | str = "cpu") -> None:
        self.sha256 = sha256
        self.num_features = network.num_features
        self.device = torch.device(device)
        folded: Any = network.fold().eval().requires_grad_(False)
        self._network = folded.to(self.device).to(memory_format=torch.channels_last)

    def _features(self, images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
        x = (resize_tf1(images.float(), INPUT_SIZE) - 128) / 128
        return self._network(x.contiguous(memory_format=torch.channels_last))

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        images = rgb_images(images, "the feature network 'inception'").to(self.device)
        with true_float32(self.device):
            return in_chunks(self._features, images)


def cached_inception() -> Path:
    """The published weights on this machine: in our cache, or where torch.hub kept them for other FID programs.

    Raises:
        UserError: they are in neither place (nothing is downloaded), or damaged.
    """
    ours = cache_folder() / "features"
    for folder in (ours, Path(torch.hub.get_dir()) / "checkpoints"):
        for name in FILE_NAMES:
            if (folder / name).is_file():
                if sha256_file(folder / name) != FILE_SHA256:
                    raise UserError(
                        f"{folder / name} is damaged: its SHA-256 is not {FILE_SHA256[:8]}...; download {FILE_URL} again"
                    )
                return folder / name
    raise UserError(
        f"features 'inception': the weights are not on this machine; download {FILE_URL} (96 MB) into {ours}, or name "
        "the file with inception:FILE"
    )


def load_inception(path: Path | str | None = None, device: torch.device | str = "cpu") -> InceptionFeatures:
    """Read the weights of the FID network; no code in the file is run, and nothing is downloaded unasked.

    Args:
        path: a weight file (.pth or .safetensors); "hf://OWNER/REPOSITORY/FILE", which is fetched from the Hugging
            Face hub once; None: `cached_inception`.
        device: where it runs.

    Raises:
        UserError: no weights there, or a file that is damaged or of another network.
    """
    if path is None:
        path = cached_inception()
    elif str(path).startswith("hf://"):
        path = hub_file(str(path))
    weights = read_weights(path, "Inception-v3")
    with torch.device("meta"):  # draws no random numbers
        network = InceptionV3()
    try:
        checked = check_weights(weights, network.state_dict(), optional=_COUNTERS)
        for name, tensor in checked.items():
            if name.endswith(".running_var") and (tensor < 0).any():
                raise ValueError(f"{name} is negative")
    except ValueError as error:
        raise UserError(
            f"{path} does not hold the FID network ({error}); it has the layout of {FILE_NAMES[0]}"
        ) from None
    network.load_state_dict(checked, strict=False, assign=True)  # all but the counters
    description = {
        "name": InceptionFeatures.name,
        "version": 1,
        "resize": RESIZE,
        "scale": "(x - 128) / 128",
        "pooling": "mean of Mixed_7c",
    }
    return InceptionFeatures(network, weights_sha256(checked, description), device)
