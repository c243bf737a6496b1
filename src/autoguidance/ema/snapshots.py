"""Names of snapshot files: `NNNNNNNNNNN-STD3.safetensors`, images seen and relative EMA width."""

import re

_PATTERN = re.compile(r"(\d{11})-(\d\.\d{3})\.safetensors")


def snapshot_name(num_images: int, ema_std: float) -> str:
    """File name of the average of width ema_std after num_images training images."""
    return f"{num_images:011d}-{ema_std:.3f}.safetensors"


def parse_snapshot_name(name: str) -> tuple[int, float] | None:
    """(num_images, ema_std) of a snapshot's file name; None where it is not one."""
    match = _PATTERN.fullmatch(name)
    return (int(match[1]), float(match[2])) if match else None
