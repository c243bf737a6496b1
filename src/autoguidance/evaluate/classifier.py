"""A feature network of the user's own domain: a small classifier, read from a file that it was stored in once.

Problem: Inception and DINOv2 features mean little for digits, scans or sprites, need 224 to 299 pixels, and their
weights may not be at hand. A network that was trained to tell the user's classes apart has features that see what
matters in this domain.

    h = ReLU(BN(conv(...)))  [N, d, r, r],  r about 4         features f = s * mean over r x r of h  [N, d],  d = 64

The features are the average-pooled activations before the last linear layer. Why these: they are the last that the
classes have not yet been decided on; pooling makes each the sum of local evidence and so nearly normal, which the
Fréchet distance assumes; d = 64 needs few images for a covariance. No normalization per feature or per image: that
would blow up directions in which real images hardly differ. One number s makes the variances of the training images
add up to d, so that distances of different data sets and seeds have one scale: a generator that always made the mean
image would measure about 64, one that shares nothing with the data more.

Trained by `classifier_training`; not to be confused with the classifier of classifier guidance (it never sees noise
levels).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from autoguidance.errors import UserError
from autoguidance.evaluate.features import check_images, to_channels
from autoguidance.storage import atomic_path

FORMAT_VERSION = 1
METADATA_KEY = "autoguidance-classifier"
_MAX_RESOLUTION = 256


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of the network.

    Attributes:
        channels: 1 or 3; images with the other number are converted.
        resolution: H = W of the images, 4 to 256 pixels.
        num_classes: at least 2.
        num_features: d.
    """

    channels: int
    resolution: int
    num_classes: int
    num_features: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"classifier: {name} is {value!r}; give an integer")
        if self.channels not in (1, 3):
            raise UserError(f"classifier: {self.channels} channels; give 1 (grey) or 3 (RGB)")
        if not 4 <= self.resolution <= _MAX_RESOLUTION:
            raise UserError(
                f"a classifier takes images of 4 to {_MAX_RESOLUTION} pixels, not {self.resolution}; "
                "resize the images or use --features pixels"
            )
        if not 2 <= self.num_classes <= 100_000:
            raise UserError(
                f"classifier: {self.num_classes} classes; there must be at least 2, or use --features pixels"
            )
        if not 8 <= self.num_features <= 4096:
            raise UserError(f"classifier: {self.num_features} features; give 8 to 4096")

    @property
    def num_stages(self) -> int:
        """Halvings of the image, to a map of about 4x4."""
        return max(1, round(math.log2(self.resolution / 4)))


@dataclass(frozen=True, kw_only=True)
class ClassifierInfo:
    """What a classifier file says about itself.

    Attributes:
        config: shape of the network.
        class_names: one per class.
        source, fingerprint: name and SHA-256 of the training data.
        num_images: images that it was trained on, without the held-out tenth.
        num_held_out: images held out.
        held_out_accuracy: share of them classified correctly; the commonest class alone would give `chance`.
        chance: share of the commonest class among the held-out images.
        epochs: passes over the training images.
        seed: of initialization, order and shifts.
    """

    config: ClassifierConfig
    class_names: tuple[str, ...]
    source: str
    fingerprint: str
    num_images: int
    num_held_out: int
    held_out_accuracy: float
    chance: float
    epochs: int
    seed: int


def _stage(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class ClassifierNetwork(nn.Module):
    """3x3 convolutions with batch norm; every stage halves the image and doubles the width, up to d.

    The first width is 16 for images of 16 pixels and more, where most of the time goes, and d / 2 below.
    """

    feature_scale: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        width = max(min(16, config.num_features), config.num_features >> config.num_stages)
        channels = config.channels
        layers: list[nn.Module] = []
        for _ in range(config.num_stages):
            doubled = min(2 * width, config.num_features)
            layers += _stage(channels, width, 1) + _stage(width, doubled, 2)
            channels = width = doubled
        layers += _stage(channels, config.num_features, 1)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(config.num_features, config.num_classes)
        self.register_buffer("feature_scale", torch.ones(()))

    def features(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        """Pooled activations before the last layer, not yet scaled. x in [-1, 1]."""
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N num_classes"]:
        """Class scores (logits)."""
        return self.head(self.features(x))


class ClassifierFeatures:
    """A stored classifier as feature network.

    Attributes:
        info: what its file says about it.
        sha256: SHA-256 of the file.
        num_features: d.
        device: where it runs; images are moved there.
    """

    name = "classifier"

    def __init__(
        self, network: ClassifierNetwork, info: ClassifierInfo, sha256: str, device: torch.device | str = "cpu"
    ) -> None:
        self.info = info
        self.sha256 = sha256
        self.num_features = info.config.num_features
        self.device = torch.device(device)
        self._network = network.to(self.device).eval().requires_grad_(False)

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        config = self.info.config
        check_images(images, config.resolution, f"the classifier of {self.info.source}")
        x = to_channels(to_network_input(images.to(self.device)), config.channels)
        return self._network.features(x) * self._network.feature_scale


def to_network_input(images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def save_classifier(path: Path | str, network: ClassifierNetwork, info: ClassifierInfo) -> None:
    """Write a classifier file atomically; the same network and info give the same bytes."""
    # One metadata entry only: safetensors writes several in a random order, which would change the hash of the file.
    content = json.dumps({"format_version": FORMAT_VERSION, **asdict(info)}, sort_keys=True, allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, str(temporary), metadata={METADATA_KEY: content})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}; check the free disk space") from None


def _parse_info(text: str) -> ClassifierInfo:
    content = json.loads(text)
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version}, not {FORMAT_VERSION}")
    config = ClassifierConfig(**content.pop("config"))
    info = ClassifierInfo(config=config, class_names=tuple(content.pop("class_names")), **content)
    if len(info.class_names) != config.num_classes:
        raise ValueError(f"{len(info.class_names)} class names for {config.num_classes} classes")
    return info


def _check_weights(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    expected = network.state_dict()
    for name in sorted(weights.keys() ^ expected.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'not expected'}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> ClassifierFeatures:
    """Read what `train_classifier` stored; no code in the file is run.

    Args:
        path: a classifier file (*.safetensors).
        device: where it runs.

    Raises:
        UserError: the file is missing, damaged, or no classifier.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; name a stored classifier (*.safetensors)"
        )
    try:
        # Not `safe_open`: it maps the file, and the process dies of a bus error if the file is cut off in place later.
        # And so the bytes that are hashed are the ones that are used.
        content = path.read_bytes()
        weights = {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = header.get("__metadata__", {}).get(METADATA_KEY)
        if text is None:
            raise UserError(
                f"{path} is a safetensors file but not a classifier of autoguidance; "
                "train one with `autoguidance stats`"
            )
        info = _parse_info(text)
        with torch.device("meta"):  # draws no random numbers
            network = ClassifierNetwork(info.config)
        _check_weights(weights, network)
        network.load_state_dict(weights, assign=True)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        raise UserError(
            f"{path} cannot be read as a classifier ({error}); restore it, or remove it and train it again"
        ) from None
    return ClassifierFeatures(network, info, hashlib.sha256(content).hexdigest(), device)
