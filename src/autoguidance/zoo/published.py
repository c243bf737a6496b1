"""The published EDM2 models and pairs by name: where they lie, what was measured with them, under which licence.

| name | is |
|---|---|
| `edm2-img512-s-2147483-0.130` | one network: set, size, thousands of images seen, EMA width |
| `edm2-img512-xs-uncond-2147483-0.045` | an unconditional one |
| `edm2-ref-img512` | reference statistics of the set |
| `preset:edm2-img512-s-autog-fid` | a setting: main, guide, w; and the figure published with it |

Figures: Karras et al. 2024, arXiv 2312.02696, Tables 2 and 3, and arXiv 2406.02507, Table 1. 32 Heun steps, 50,000
images.
"""

import re
from dataclasses import dataclass
from functools import cache

import torch

from autoguidance.errors import UserError
from autoguidance.models import build_model
from autoguidance.train.presets import PRESETS
from autoguidance.zoo.download import address

BASE_URL = "https://nvlabs-fi-cdn.nvidia.com/edm2"
LICENCE_NOTICE = (
    "the published EDM2 models are (c) NVIDIA, licensed CC BY-NC-SA 4.0: non-commercial use, share alike, with attribution "
    "(https://creativecommons.org/licenses/by-nc-sa/4.0/)"
)
PRESET_PREFIX = "preset:"
_NETWORK = re.compile(r"edm2-img(?:64|512)-(?:xxs|xs|s|m|l|xl|xxl)(?:-uncond)?-\d{7}-0\.\d{3}")
_REFERENCE = re.compile(r"edm2-ref-(img64|img512)")


@dataclass(frozen=True, kw_only=True)
class PublishedPair:
    """A published setting.

    Attributes:
        name: without `preset:`.
        main: name of the main network.
        guide, weight: its bad version; None and 1: none.
        unconditional, cfg_weight: the unconditional network of classifier-free guidance; None and 1: none.
        metric: "FID" or "FD-DINOv2".
        figure: the value published for it.
    """

    name: str
    main: str
    guide: str | None = None
    weight: float = 1.0
    unconditional: str | None = None
    cfg_weight: float = 1.0
    metric: str
    figure: float

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks it needs, main first."""
        return tuple(name for name in (self.main, self.guide, self.unconditional) if name is not None)


_SIZES = ("xs", "s", "m", "l", "xl", "xxl")
_KIMG = {"xs": 2147483, "s": 2147483, "m": 2147483, "l": 1879048, "xl": 1342177, "xxl": 939524}
_METRICS = {"fid": "FID", "dino": "FD-DINOv2"}
# Per size: EMA width and figure.
_PLAIN_512 = {
    "fid": ((0.135, 3.53), (0.130, 2.56), (0.100, 2.25), (0.085, 2.06), (0.085, 1.96), (0.070, 1.91)),
    "dino": ((0.200, 103.39), (0.190, 68.64), (0.155, 58.44), (0.155, 52.25), (0.155, 45.96), (0.150, 42.84)),
}
_PLAIN_64 = (
    ("s", 1073741, 0.075, 1.58),
    ("m", 2147483, 0.060, 1.43),
    ("l", 1073741, 0.040, 1.33),
    ("xl", 671088, 0.040, 1.33),
)
# Per size: EMA width of both networks, w, figure.
_GUIDED_512 = {
    "fid": ((0.045, 1.4, 2.91), (0.025, 1.4, 2.23), (0.030, 1.2, 2.01), (0.015, 1.2, 1.88), (0.020, 1.2, 1.85), (0.015, 1.2, 1.81)),
    "dino": ((0.150, 1.7, 79.94), (0.085, 1.9, 52.32), (0.015, 2.0, 41.98), (0.035, 1.7, 38.20), (0.030, 1.7, 35.67), (0.015, 1.7, 33.09)),
}  # fmt: skip
# Name, metric, main, guide, w, figure.
_AUTOGUIDED = (
    ("img512-s", "fid", "s-2147483-0.070", "xs-0134217-0.125", 2.10, 1.34),
    ("img512-s", "dino", "s-2147483-0.120", "xs-0134217-0.165", 2.45, 36.67),
    ("img512-xxl", "fid", "xxl-0939524-0.075", "m-0268435-0.155", 2.05, 1.25),
    ("img512-xxl", "dino", "xxl-0939524-0.130", "m-0268435-0.205", 2.30, 24.18),
    ("img512-s-uncond", "fid", "s-uncond-2147483-0.070", "xs-uncond-0134217-0.110", 2.85, 3.86),
    ("img512-s-uncond", "dino", "s-uncond-2147483-0.090", "xs-uncond-0134217-0.125", 2.90, 90.39),
    ("img64-s", "fid", "s-1073741-0.045", "xs-0134217-0.110", 1.70, 1.01),
    ("img64-s", "dino", "s-1073741-0.105", "xs-0134217-0.175", 2.20, 31.85),
)


def _pairs() -> list[PublishedPair]:
    found = []
    for metric, rows in _PLAIN_512.items():
        for size, (std, figure) in zip(_SIZES, rows, strict=True):
            main = f"edm2-img512-{size}-{_KIMG[size]:07d}-{std:.3f}"
            found.append(
                PublishedPair(name=f"edm2-img512-{size}-{metric}", main=main, metric=_METRICS[metric], figure=figure)
            )
    for size, kimg, std, figure in _PLAIN_64:
        main = f"edm2-img64-{size}-{kimg:07d}-{std:.3f}"
        found.append(PublishedPair(name=f"edm2-img64-{size}-fid", main=main, metric="FID", figure=figure))
    for metric, guided in _GUIDED_512.items():
        for size, (std, weight, figure) in zip(_SIZES, guided, strict=True):
            found.append(
                PublishedPair(
                    name=f"edm2-img512-{size}-guid-{metric}",
                    main=f"edm2-img512-{size}-{_KIMG[size]:07d}-{std:.3f}",
                    unconditional=f"edm2-img512-xs-uncond-2147483-{std:.3f}",
                    cfg_weight=weight,
                    metric=_METRICS[metric],
                    figure=figure,
                )
            )
    for name, metric, main, guide, weight, figure in _AUTOGUIDED:
        data = name.split("-")[0]
        found.append(
            PublishedPair(
                name=f"edm2-{name}-autog-{metric}",
                main=f"edm2-{data}-{main}",
                guide=f"edm2-{data}-{guide}",
                weight=weight,
                metric=_METRICS[metric],
                figure=figure,
            )
        )
    return found


PUBLISHED_PAIRS = {pair.name: pair for pair in _pairs()}


def is_published_name(text: str) -> bool:
    """Whether a name means something published rather than a path (`edm2-...`, `preset:...`, `hf://...`)."""
    return text.startswith(("edm2-img", "edm2-ref-", PRESET_PREFIX, "hf://"))


def needs_vae(name: str) -> bool:
    """Whether a published network works on latents of the published VAE."""
    return name.startswith("edm2-img512-")


def find_preset(name: str) -> PublishedPair:
    """The published setting of that name, with or without `preset:`. Raises UserError where there is none."""
    bare = name.removeprefix(PRESET_PREFIX)
    if bare not in PUBLISHED_PAIRS:
        raise UserError(f"{name}: there is no such preset; `autoguidance models` lists all {len(PUBLISHED_PAIRS)}")
    return PUBLISHED_PAIRS[bare]


def file_url(name: str) -> str:
    """The address of a published network or of reference statistics, by name. Raises UserError where the name is neither."""
    if _NETWORK.fullmatch(name):
        return address(BASE_URL, "posthoc-reconstructions", f"{name}.pkl")
    reference = _REFERENCE.fullmatch(name)
    if reference:
        return address(BASE_URL, "dataset-refs", f"{reference[1]}.pkl")
    raise UserError(
        f"{name} is not the name of a published file; write e.g. edm2-img512-s-2147483-0.130 or edm2-ref-img512 "
        "(`autoguidance models` lists the networks)"
    )


def network_preset(name: str) -> str:
    """The training preset whose size a published network has, e.g. edm2-img512-s."""
    if not _NETWORK.fullmatch(name):
        raise UserError(f"{name} is not the name of a published network")
    return "-".join(name.split("-")[:3])


@cache
def num_parameters(name: str) -> int:
    """Parameters of a published network, counted on a network of that configuration without memory."""
    preset = PRESETS[network_preset(name)]
    latent = "img512" in name
    keywords = preset.config.network.keywords(
        img_resolution=64,
        img_channels=4 if latent else 3,
        num_classes=0 if "-uncond-" in name else 1000,
        use_fp16=True,
    )
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in build_model(keywords).state_dict().values())
