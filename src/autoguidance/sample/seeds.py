"""Per-image randomness: image k depends on seed k alone, never on batch size, order or the number of processes.

Each image has its own generator, seeded with seed mod 2^32. It draws, in this order: the noise [C, H, W]; one class
index if the model has classes and none is given; then the noise of every churn step. The numbers are float32 and
drawn on the CPU by default, so that they do not depend on the device; drawing on a GPU gives other numbers (the
published images of EDM2 models were drawn there).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from autoguidance.errors import UserError

MAX_SEEDS = 100_000_000
"""Most seeds that one text may name: a typing error must not fill the memory."""


def parse_seeds(text: str) -> list[int]:
    """Seeds from "0-63,70": numbers and inclusive ranges, in the order given. Raises UserError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"seeds {text!r}: {part!r} is neither a number nor a range; write e.g. 0-63,70")
        low, high = int(first), int(last or first)
        if high < low:
            raise UserError(f"seeds {text!r}: the range {part!r} runs backwards; write {high}-{low}")
        if len(seeds) + high - low >= MAX_SEEDS:
            raise UserError(f"seeds {text!r}: more than {MAX_SEEDS} at once; make them in several calls")
        seeds.extend(range(low, high + 1))
    return seeds


class SeededNoise:
    """The generators of a batch of images.

    Args:
        seeds: one per image, at least 0.
        device: where numbers are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator(self.device).manual_seed(int(seed) % 2**32) for seed in seeds]

    def randn(self, shape: Sequence[int]) -> Float[Tensor, "N *shape"]:
        """Standard normal noise, drawn per image."""
        return torch.stack([torch.randn(tuple(shape), generator=g, device=self.device) for g in self._generators])

    def randint(self, high: int) -> Int[Tensor, "N"]:
        """One integer in [0, high) per image."""
        return torch.stack([torch.randint(high, (), generator=g, device=self.device) for g in self._generators])


def proportional_classes(class_idx: Sequence[int] | np.ndarray, length: int = 4096) -> list[int]:
    """Classes by seed such that any run of consecutive seeds has the classes in the data's proportions.

    Drawn classes have proportions that vary between samples, and at a thousand images that variation is most of the spread of a
    Fréchet distance. Here the sorted labels are read at the fractional parts of multiples of the golden ratio, which are spread
    evenly over any stretch. Use it as a list of classes: the entry at seed mod length.

    Args:
        class_idx: the data's labels.
        length: of the list; the pattern repeats after it.
    """
    ordered = np.sort(np.asarray(class_idx))
    places = (np.arange(length) * ((5**0.5 - 1) / 2)) % 1.0
    return ordered[(places * len(ordered)).astype(np.int64)].tolist()


class ClassSelection:
    """How images get their class; always a function of the seed alone.

    "random": drawn by the image's generator. "balanced": seed mod num_classes. A list such as "3,5-7": its entry at seed mod length.
    """

    def __init__(self, choice: str | int | Sequence[int] | None, num_classes: int, name: str | None = None) -> None:
        """`name` replaces the list in records."""
        self.num_classes = num_classes
        self.classes: list[int] | None = None
        if choice in (None, "random") or num_classes == 0:
            if choice not in (None, "random", "balanced"):
                raise UserError("the model has no classes; leave out the class selection")
            self.name = "random" if num_classes else "none"
            return
        if choice == "balanced":
            self.name, self.classes = "balanced", list(range(num_classes))
            return
        if isinstance(choice, str):
            try:
                self.classes = parse_seeds(choice)
            except UserError:
                raise UserError(f"classes {choice!r}: choose random, balanced, or a list such as 3,5-7") from None
        else:
            assert choice is not None
            self.classes = [int(choice)] if isinstance(choice, int | np.integer) else [int(c) for c in choice]
        if not self.classes or not all(0 <= c < num_classes for c in self.classes):
            raise UserError(f"classes {choice!r}: choose numbers from 0 to {num_classes - 1}")
        self.name = name or ",".join(map(str, self.classes))

    def draw(self, seeds: Sequence[int], noise: SeededNoise) -> Int[Tensor, "N"] | None:
        """Class index per image; None for a model without classes."""
        if self.num_classes == 0:
            return None
        if self.classes is None:
            return noise.randint(self.num_classes).cpu()
        return torch.tensor([self.classes[seed % len(self.classes)] for seed in seeds])
