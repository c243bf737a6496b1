"""Facts about the published EDM2 files that are needed without reading one."""

import re

PUBLISHED_LICENCE = "CC-BY-NC-SA-4.0"
_NAME = re.compile(r".*-(?P<kimg>\d{7})-(?P<std>\d\.\d{3})")


def images_of_kimg(kimg: int) -> int:
    """Training images that the thousands in a published file's name stand for."""
    return (kimg * 1000 + 999) // 1024 * 1024


def parse_published_name(name: str) -> tuple[int, float] | None:
    """(num_images, ema_std) from `PREFIX-KIMG7-STD3` (without suffix); None where the name is not of that form."""
    match = _NAME.fullmatch(name)
    return (images_of_kimg(int(match["kimg"])), float(match["std"])) if match else None
