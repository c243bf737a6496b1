"""Which image, flip, noise level and noise belong to position i of the training stream.

Problem: a run that is killed and resumed must end with the same bits as one that was not, and one process must train
the same network as eight. A generator whose state travels through the run gives neither. So everything random about
position i (i = 0, 1, ... counts images with repetition) is a function of (seed, i) alone: each position has its own
short-lived generator, as each image has one in sampling. A step takes the positions [n, n + batch); processes and
accumulation rounds take slices of them and draw only those.

Images come in a fresh random order each epoch, a permutation drawn from (seed, epoch): every image is seen once
before any is seen twice. Per position are drawn: flip and label dropout (2 uniforms), then z of sigma = exp(P_mean +
P_std z), then the noise [C, H, W], and for latent data sets the noise [C, H, W] by which the latent is drawn from its
distribution.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK = 2**64 - 1


def mix_seed(*parts: int) -> int:
    """One well-mixed 64-bit seed from several integers (splitmix64, chained): near inputs give unrelated generators."""
    state = 0
    for part in parts:
        state = (state + (part & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


# What a generator is for; keeps the streams of one run apart.
_PERMUTATION, _IMAGE, INITIAL_WEIGHTS, DROPOUT = range(4)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance gave to some positions; all on the CPU."""

    index: Int64[Tensor, "n"]  # which image of the source
    flip: Float[Tensor, "n"]  # uniform in [0, 1)
    label_dropout: Float[Tensor, "n"]  # uniform in [0, 1)
    sigma_normal: Float[Tensor, "n"]  # z, standard normal
    noise: Float[Tensor, "n C H W"]  # standard normal
    latent_noise: Float[Tensor, "n C H W"] | None = None  # standard normal; None where the data are no distributions


class TrainingOrder:
    """The training stream of a data set.

    Args:
        num_images: size of the data set.
        shape: (C, H, W) of what the network sees.
        seed: of the run.
        draws_latents: whether the data are distributions of latents, of which one is drawn at each position.
    """

    def __init__(self, num_images: int, shape: tuple[int, int, int], seed: int, *, draws_latents: bool = False) -> None:
        self.num_images = num_images
        self.draws_latents = draws_latents
        self.shape = shape
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)
        self._generator = torch.Generator()

    def index(self, start: int, count: int) -> Int64[Tensor, "count"]:
        """Which images stand at positions [start, start + count)."""
        pieces = []
        position = start
        while position < start + count:
            epoch, offset = divmod(position, self.num_images)
            if epoch != self._epoch:
                self._generator.manual_seed(mix_seed(self.seed, _PERMUTATION, epoch))
                self._permutation = torch.randperm(self.num_images, generator=self._generator)
                self._epoch = epoch
            pieces.append(self._permutation[offset : offset + start + count - position])
            position += len(pieces[-1])
        return torch.cat(pieces)

    def draw(self, start: int, count: int) -> Draws:
        """Everything random about positions [start, start + count); the same however they are grouped."""
        uniform = torch.empty(count, 2)
        normal = torch.empty(count)
        noise = torch.empty(count, *self.shape)
        latent_noise = torch.empty_like(noise) if self.draws_latents else None
        generator = self._generator
        for row in range(count):
            generator.manual_seed(mix_seed(self.seed, _IMAGE, start + row))
            uniform[row].uniform_(generator=generator)
            normal[row].normal_(generator=generator)
            noise[row].normal_(generator=generator)
            if latent_noise is not None:
                latent_noise[row].normal_(generator=generator)
        return Draws(
            index=self.index(start, count),
            flip=uniform[:, 0],
            label_dropout=uniform[:, 1],
            sigma_normal=normal,
            noise=noise,
            latent_noise=latent_noise,
        )
