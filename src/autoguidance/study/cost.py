"""What sampling with a pair costs: floating-point operations of its networks.

    operations per image = evaluations of main x F(main) + evaluations of the guide x F(guide),   F counted by PyTorch's FlopCounterMode
    (a multiplication and an addition are two)

Seconds depend on the machine, operations do not.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from autoguidance.models import build_model, read_model_info
from autoguidance.storage import read_json
from autoguidance.zoo import parse_model_name


def evaluation_flops(model: str) -> float:
    """Floating-point operations of one evaluation of one image by a model, named as everywhere."""
    path = parse_model_name(model).path
    config = read_json(path / "config.json")["network"] if path.is_dir() else dict(read_model_info(path).config)
    return _count(path, tuple(sorted((key, _frozen(value)) for key, value in config.items())))


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=256)
def _count(path: Path, config: tuple[tuple[str, object], ...]) -> float:
    with torch.device("meta"):
        network = build_model({key: list(value) if isinstance(value, tuple) else value for key, value in config}).eval()
        size = network.img_resolution
        x = torch.zeros(1, network.img_channels, size, size)
        labels = torch.zeros(1, network.num_classes) if network.num_classes else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.ones(1), labels)
    return float(counter.get_total_flops())
