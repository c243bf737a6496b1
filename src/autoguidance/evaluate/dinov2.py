"""The network behind FD_DINOv2: the class token of DINOv2, a vision transformer that learned without labels.

Problem: Inception saw the 1000 classes of ImageNet and little else, and its FID can fall while images look worse.
DINOv2's features agree better with people. The model itself is `Dinov2Model` of transformers (extra `dinov2`); what is
done here is what must be exact about the images and the weights:

    x = (resize(image / 255) - mean) / std           [N, 3, 224, 224],  bicubic with antialiasing, ImageNet mean, std
    f = class token after the last layer norm        [N, d],  d = 384 (S), 768 (B), 1024 (L)

The resize works on float32 and neither rounds nor clips (Pillow on uint8 does both; on CIFAR-10 that is 0.3 of 255 in the
mean and 14 at most). The aspect ratio is not kept.

Position embeddings are stored for a grid of 37 x 37 patches (518 pixels) and needed for 16 x 16. The authors' code
enlarges the target by 0.1 patch, so it reads at (i + 1/2) 37 / 16.1 - 1/2; transformers reads at (i + 1/2) 37 / 16 -
1/2, up to 0.23 patches elsewhere. Published FD_DINOv2 figures come from the authors' code, so its rule is used: the
embeddings are interpolated here, once, and the model never has to.

Weights come as safetensors only, from a folder in Hugging Face layout or from the Hugging Face cache, which is looked
at but never filled.

Reference: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", arXiv:2304.07193; Stein et
al. 2023, "Exposing flaws of generative model evaluation metrics", arXiv:2306.04675.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from autoguidance.errors import UserError
from autoguidance.evaluate.running import in_chunks, rgb_images, true_float32
from autoguidance.evaluate.weights import check_weights, read_weights, weights_sha256
from autoguidance.storage import read_json

INPUT_SIZE = 224
RESIZE = "bicubic-antialias-224"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
REPOSITORIES = {"s": "facebook/dinov2-small", "b": "facebook/dinov2-base", "l": "facebook/dinov2-large"}
POSITION_OFFSET = 0.1
_NAMES = {384: "dinov2:s", 768: "dinov2:b", 1024: "dinov2"}
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_POSITIONS = "embeddings.position_embeddings"


@dataclass(frozen=True, kw_only=True)
class Dinov2Shape:
    """Shape of the network: the entries of `config.json` that count; names as there.

    Raises:
        UserError: a value that no DINOv2 has.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True

    def __post_init__(self) -> None:
        ranges = {
            "hidden_size": (1, 8192),
            "num_hidden_layers": (1, 128),
            "num_attention_heads": (1, 128),
            "mlp_ratio": (1, 16),
            "image_size": (1, 4096),
            "patch_size": (1, INPUT_SIZE),
            "num_channels": (3, 3),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UserError(f"{name} is {value!r}; DINOv2 has {least}" + (f" to {most}" if most > least else ""))
        for name in ("qkv_bias", "use_swiglu_ffn", "use_mask_token"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name} is {getattr(self, name)!r}; DINOv2 has true or false")
        if type(self.layer_norm_eps) is not float or not 0 < self.layer_norm_eps < 0.1:
            raise UserError(f"layer_norm_eps is {self.layer_norm_eps!r}; DINOv2 has 1e-06")
        if self.hidden_act != "gelu":
            raise UserError(f"hidden_act is {self.hidden_act!r}; DINOv2 has 'gelu'")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{self.hidden_size} values do not share out to {self.num_attention_heads} heads")
        if INPUT_SIZE % self.patch_size or self.image_size % self.patch_size:
            raise UserError(
                f"patch_size is {self.patch_size}, which divides not both {INPUT_SIZE} and {self.image_size}"
            )

    @classmethod
    def from_config(cls, config: Any) -> "Dinov2Shape":
        """From the content of `config.json`. Raises UserError where that is of another model."""
        if not isinstance(config, dict) or config.get("model_type") != "dinov2":
            kind = config.get("model_type") if isinstance(config, dict) else None
            raise UserError(f"it is of the model type {str(kind)[:50]!r}, not 'dinov2'")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})

    @property
    def stored_grid(self) -> int:
        """Patches along a side for which position embeddings are stored."""
        return self.image_size // self.patch_size


def stored_layout(shape: Dinov2Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes in `model.safetensors` of facebook/dinov2-*, whatever transformers calls them inside."""
    width = shape.hidden_size
    layout: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.patch_embeddings.projection.weight": (
            width,
            shape.num_channels,
            shape.patch_size,
            shape.patch_size,
        ),
        "embeddings.patch_embeddings.projection.bias": (width,),
        _POSITIONS: (1, shape.stored_grid**2 + 1, width),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if shape.use_mask_token:
        layout["embeddings.mask_token"] = (1, width)
    hidden = shape.mlp_ratio * width
    if shape.use_swiglu_ffn:
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        mlp = {"mlp.weights_in": (2 * hidden, width), "mlp.weights_out": (width, hidden)}
    else:
        mlp = {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    attention = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    for layer in range(shape.num_hidden_layers):
        prefix = f"encoder.layer.{layer}"
        for name, size in {**attention, "attention.output.dense": (width, width), **mlp}.items():
            layout[f"{prefix}.{name}.weight"] = size
            if name not in attention or shape.qkv_bias:
                layout[f"{prefix}.{name}.bias"] = size[:1]
        for name in ("norm1", "norm2"):
            layout[f"{prefix}.{name}.weight"] = layout[f"{prefix}.{name}.bias"] = (width,)
        for name in ("layer_scale1", "layer_scale2"):
            layout[f"{prefix}.{name}.lambda1"] = (width,)
    return layout


def interpolated_positions(positions: Float[Tensor, "1 M2+1 d"], grid: int) -> Float[Tensor, "1 grid2+1 d"]:
    """Position embeddings of an M x M grid for a grid x grid one, by the authors' rule; the class token's stays."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + POSITION_OFFSET) / side
    # The factors, not the size, are given, and so they are what the reading positions are computed with.
    patches = functional.interpolate(
        patches, scale_factor=(scale, scale), mode="bicubic", align_corners=False, recompute_scale_factor=False
    )
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).reshape(1, grid**2, -1)], dim=1)


def resize_bicubic(images: Float[Tensor, "N C H W"], size: int) -> Float[Tensor, "N C size size"]:
    """Bicubic resize (a = -1/2) to size x size, with antialiasing where it reduces; may overshoot the range."""
    if tuple(images.shape[2:]) == (size, size):
        return images
    return functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True)


class Dinov2Features:
    """DINOv2's class token for images of any size.

    Attributes:
        name: "dinov2" (L), "dinov2:s", "dinov2:b", or "dinov2:FOLDER" for other sizes.
        sha256: of weights and preprocessing.
        num_features: d.
        resize: how images come to 224 x 224.
        device: where it runs; images are moved there.
    """

    resize = RESIZE

    def __init__(
        self, network: nn.Module, num_features: int, sha256: str, name: str, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.num_features = num_features
        self.device = torch.device(device)
        self._network = network.to(self.device).eval().requires_grad_(False)
        self._mean = torch.tensor(MEAN, device=self.device)[:, None, None]
        self._std = torch.tensor(STD, device=self.device)[:, None, None]

    def _features(self, images: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
        x = (resize_bicubic(images.float() / 255, INPUT_SIZE) - self._mean) / self._std
        return self._network(pixel_values=x).last_hidden_state[:, 0]

    def __call__(self, images: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N d"]:
        images = rgb_images(images, f"the feature network '{self.name}'").to(self.device)
        with true_float32(self.device):
            return in_chunks(self._features, images)


def cached_dinov2(size: str) -> Path:
    """The folder in the Hugging Face cache that holds DINOv2 of this size ("s", "b" or "l"); nothing is downloaded.

    Raises:
        UserError: no such size; or it is not in the cache, with the command that fetches it.
    """
    if size not in REPOSITORIES:
        raise UserError(
            f"features 'dinov2:{size}': no such folder, and no such size; give {', '.join(REPOSITORIES)}, or a folder "
            f"with {_CONFIG} and {_WEIGHTS}"
        )
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(REPOSITORIES[size], file) for file in (_CONFIG, _WEIGHTS)]
    if not all(isinstance(file, str) for file in found):
        raise UserError(
            f"features 'dinov2': {REPOSITORIES[size]} is not in the Hugging Face cache; fetch it once with `hf download "
            f"{REPOSITORIES[size]} {_CONFIG} {_WEIGHTS}`, or name a folder with these files: dinov2:FOLDER"
        )
    return Path(str(found[0])).parent


def load_dinov2(where: Path | str = "l", device: torch.device | str = "cpu") -> Dinov2Features:
    """Read a DINOv2 from a folder in Hugging Face layout; no code in its files is run, and nothing is downloaded.

    Args:
        where: "s", "b" or "l" for the published one in the Hugging Face cache; or a folder with `config.json` and
            `model.safetensors`.
        device: where it runs.

    Raises:
        UserError: transformers is missing; no such folder; a file that is missing, damaged, or of another network.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("features 'dinov2' need the `dinov2` extra; run: pip install 'autoguidance[dinov2]'")
    folder = Path(where).expanduser()
    if str(where) in REPOSITORIES or not folder.is_dir():
        folder = cached_dinov2(str(where))
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}; name a folder with {_CONFIG} and {_WEIGHTS}")
    content = read_json(folder / _CONFIG)
    try:
        shape = Dinov2Shape.from_config(content)
    except UserError as error:
        raise UserError(f"{folder / _CONFIG} is not of a DINOv2 that can be read: {error}") from None
    weights = read_weights(folder / _WEIGHTS, "DINOv2")
    try:
        network, sha256 = _build(shape, weights)
    except ValueError as error:
        raise UserError(f"{folder / _WEIGHTS} does not hold the DINOv2 of its {_CONFIG} ({error})") from None
    name = _NAMES.get(shape.hidden_size, f"dinov2:{folder.resolve().name}")
    return Dinov2Features(network, shape.hidden_size, sha256, name, device)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one on stderr while it copies weights, terminal or not."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _build(shape: Dinov2Shape, weights: dict[str, Tensor]) -> tuple[nn.Module, str]:
    with torch.device("meta"):  # takes no memory for what a file only claims
        expected = {name: torch.empty(size) for name, size in stored_layout(shape).items()}
    checked = check_weights(weights, expected)
    settings = asdict(shape)
    description = {
        "name": "dinov2",
        "version": 1,
        "shape": settings,
        "resize": RESIZE,
        "mean": MEAN,
        "std": STD,
        "position_offset": POSITION_OFFSET,
        "pooling": "class token after the layer norm",
    }
    sha256 = weights_sha256(checked, description)
    checked[_POSITIONS] = interpolated_positions(checked[_POSITIONS], INPUT_SIZE // shape.patch_size)

    from transformers import Dinov2Config, Dinov2Model

    options: dict[str, Any] = {**settings, "image_size": INPUT_SIZE, "attn_implementation": "sdpa"}
    config = Dinov2Config(**options)
    # Their loader, because it renames: the parameters of version 5 are not called as in the stored files.
    with _without_progress_bar():
        loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=checked, output_loading_info=True)
    network, report = loaded
    problems = {kind: names for kind, names in report.items() if names}
    if problems:
        raise RuntimeError(f"this version of transformers loads DINOv2 in another way: {problems}")
    return network, sha256
