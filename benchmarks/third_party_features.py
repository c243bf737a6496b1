"""Feature networks that others trained, to measure Fréchet distances with something that this project did not train.

    resnet56        CIFAR-10, 64 features: the mean of the last maps (akamaster/pytorch_resnet_cifar10)
    mobilenet_v2    ImageNet, 1280 features: the mean of the last maps, before the classifier (google-coral/test_data)

Usage: PYTHONPATH=benchmarks autoguidance evaluate ... --features callable:third_party_features:resnet56

The weights are read at the first call from the folder AUTOGUIDANCE_NETWORKS, else ../shared/data/networks beside the
repository: `resnet56-4bfd9763.th` as published, and `mobilenet_v2-dequantized.safetensors`, which convert_mobilenet.py
makes of the published int8 file. The network moves to the device of the images.

MobileNet-v2 runs in float32 with the weights that the integers stand for. Resized pixels are rounded to 0 ... 255, as
the published network takes them: without, features of enlarged images move more than by all the rest. Activations are
not rounded, only cut off at 6; convert_mobilenet.py measures what that changes.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from autoguidance.errors import UserError
from autoguidance.evaluate.running import rgb_images, true_float32

RESNET56_FILE = "resnet56-4bfd9763.th"
MOBILENET_V2_FILE = "mobilenet_v2-dequantized.safetensors"
TFLITE_HASH = "tflite_sha256"  # key in the metadata of MOBILENET_V2_FILE

T = TypeVar("T")


def networks_folder() -> Path:
    """Where the weight files lie."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "networks"
    return Path(os.environ.get("AUTOGUIDANCE_NETWORKS") or default)


# ResNet-56 for CIFAR-10


class Basic(nn.Module):
    """Two convolutions and the shortcut "option A": every second pixel, new channels zero on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.new = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        kept = functional.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.new, self.new])
        return torch.relu(y + kept)


class ResNet56(nn.Module):
    """Images [N, 3, 32, 32] with values 0 to 255 -> features [N, 64]; `linear` makes class scores of them."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Basic(16, 16, 1) for _ in range(9)))
        self.layer2 = nn.Sequential(*(Basic(32 if n else 16, 32, 1 if n else 2) for n in range(9)))
        self.layer3 = nn.Sequential(*(Basic(64 if n else 32, 64, 1 if n else 2) for n in range(9)))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1((images.float() / 255 - self.mean) / self.std)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def load_resnet56(path: Path) -> ResNet56:
    """The network with the published weights."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    network = ResNet56()
    network.load_state_dict({name.removeprefix("module."): t for name, t in stored["state_dict"].items()})
    return network


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# MobileNet-v2 for ImageNet, batch norm folded into the convolutions


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" does for even sizes: with stride 2 only below and on the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if self.stride[0] == 1 else functional.pad(input, [0, 1, 0, 1]))


class Inverted(nn.Module):
    """Expansion (none where the factor is 1), depthwise convolution, linear projection; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        self.expand = Same(inputs, inner, 1) if factor > 1 else None
        self.depthwise = Same(inner, inner, 3, stride, groups=inner)
        self.project = Same(inner, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x))
        y = self.project(functional.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Images [N, 3, 224, 224] with values 0 to 255 -> features [N, 1280]; `linear` makes scores of 1001 classes of
    them (class 0 is the background). The convolutions are created in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, 32, 3, stride=2)
        # outputs, number of blocks, stride of the first
        stages = [(16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)]
        blocks, inputs = [], 32
        for outputs, number, stride in stages:
            for n in range(number):
                blocks.append(Inverted(inputs, outputs, 1 if n else stride, factor=6 if blocks else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Same(320, 1280, 1)
        self.linear = nn.Linear(1280, 1001)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - 128) / 128  # the input quantization of the int8 file: scale 1/128, zero point 128
        x = self.blocks(functional.relu6(self.stem(x)))
        return functional.relu6(self.head(x)).mean(dim=(2, 3))


def load_mobilenet_v2(path: Path) -> MobileNetV2:
    """The network with the weights that convert_mobilenet.py wrote."""
    network = MobileNetV2()
    with safe_open(path, framework="pt") as stored:
        network.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118 (no mapping)
    return network


def tflite_sha256(path: Path) -> str:
    """SHA-256 of the int8 file that the weights come from."""
    with safe_open(path, framework="pt") as stored:
        return stored.metadata()[TFLITE_HASH]


# As feature networks


class ThirdPartyFeatures:
    """uint8 images [N, 1 or 3, H, W] on any device -> float32 features [N, d] there.

    Args:
        file: name of the weight file in `networks_folder()`.
        load: makes the network of it.
        identify: SHA-256 of the published weights, from the same file.
        size: H = W that the network takes; other images are resized bilinearly with antialias.
        rounded: round what was resized to whole pixel values. Enlarging by a whole number makes many halves, exact but
            for float32; adding a little more than 0.5 rounds them up on every device.
        chunk: images at a time.
        remedy: for the message where the file is absent.

    Attributes:
        resize: for the protocol.
    """

    def __init__(
        self,
        file: str,
        load: Callable[[Path], nn.Module],
        identify: Callable[[Path], str],
        *,
        size: int,
        rounded: bool,
        chunk: int,
        remedy: str,
    ) -> None:
        self.resize = f"bilinear-antialias-{size}{'-rounded' if rounded else ''}"
        self._file, self._load, self._identify = file, load, identify
        self._size, self._rounded, self._chunk, self._remedy = size, rounded, chunk, remedy
        self._network: nn.Module | None = None
        self._sha256: str | None = None

    def _read(self, function: Callable[[Path], T]) -> T:
        path = networks_folder() / self._file
        if not path.is_file():
            raise UserError(f"{path} does not exist; {self._remedy}, or set AUTOGUIDANCE_NETWORKS to its folder")
        try:
            return function(path)
        except Exception as error:  # torch, pickle and safetensors raise what they like for a damaged file
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"{path} cannot be read ({reason[:200]}); {self._remedy}") from error

    @property
    def sha256(self) -> str:
        """Of the published weights and of what happens to images before and after them."""
        if self._sha256 is None:
            published = self._read(self._identify)
            text = f"{published} third_party_features version 1 {self._file} {self.resize}"
            self._sha256 = hashlib.sha256(text.encode()).hexdigest()
        return self._sha256

    @property
    def network(self) -> nn.Module:
        """With its last layer `linear`, in eval mode, where the last images were."""
        if self._network is None:
            network = self._read(self._load).eval().requires_grad_(False)
            for parameter in network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            self._network = network
        return self._network

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        images = rgb_images(images, f"the network of {self._file}")
        network = self.network.to(images.device)
        with true_float32(images.device):
            return torch.cat([network(self._resized(part)) for part in images.split(self._chunk)])

    def _resized(self, images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 s s"]:
        x, size = images.float(), (self._size, self._size)
        if tuple(x.shape[2:]) != size:
            x = functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
            x = (x + 0.501).floor().clamp(0, 255) if self._rounded else x
        return x.contiguous(memory_format=torch.channels_last)


resnet56 = ThirdPartyFeatures(
    RESNET56_FILE,
    load_resnet56,
    file_sha256,
    size=32,
    rounded=False,
    chunk=256,
    remedy="get it from github.com/akamaster/pytorch_resnet_cifar10",
)
mobilenet_v2 = ThirdPartyFeatures(
    MOBILENET_V2_FILE,
    load_mobilenet_v2,
    tflite_sha256,
    size=224,
    rounded=True,
    chunk=64,
    remedy="make it with benchmarks/convert_mobilenet.py",
)
