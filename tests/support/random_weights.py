"""Weights and images that any program can make again: each array is drawn by a numpy generator seeded with its name.

So two implementations of a network that agree on their parameters' names and shapes get the same weights, without a
file of 96 MB; where they do not, they get other weights. numpy only: the other implementation lives in an environment
of its own.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

IMAGE_SHAPES = ((3, 8, 8), (1, 32, 32), (3, 64, 64), (3, 299, 299), (3, 512, 512), (3, 40, 72))


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


def random_array(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 values for a parameter of that name, so that activations neither die nor explode."""
    draw = generator(name)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return draw.uniform(0.5, 1.5, size=shape).astype(np.float32)
    values = draw.standard_normal(size=shape, dtype=np.float32)
    if len(shape) == 1:
        return values * np.float32(0.1)
    return values * np.float32((2 / np.prod(shape[1:])) ** 0.5)  # He et al. 2015, for ReLU


def random_arrays(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Values for every parameter; counters (num_batches_tracked) become 0."""
    return {
        name: np.zeros((), np.int64) if name.endswith("num_batches_tracked") else random_array(name, tuple(shape))
        for name, shape in shapes.items()
    }


def layout_sha256(shapes: Mapping[str, Sequence[int]]) -> str:
    """Hash of the names and shapes, to compare two implementations' layouts."""
    lines = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def random_image(shape: Sequence[int]) -> np.ndarray:
    """uint8 [C, H, W]: a few waves of every length, and noise."""
    draw = generator(f"image {list(shape)}")
    channels, height, width = shape
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    image = np.zeros((channels, height, width))
    for cycles in (0.5, 1, 2, 4, 8):
        angle, phase = draw.uniform(0, 2 * np.pi, size=(2, channels, 1, 1))
        image += np.cos(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase) / cycles
    image = 128 + 40 * image + 15 * draw.standard_normal(size=image.shape)
    return image.round().clip(0, 255).astype(np.uint8)
