"""From positions of the training stream to what a forward pass takes.

    x uint8 [n, c, R, R] --flip, encode--> clean latents y [n, C, H, W];   class -> one-hot [n, num_classes];   z [n],
    noise [n, C, H, W]

A set of latents holds distributions instead of images: y = (mean + std * latent noise), scaled (`data.vae`).

Each process prepares only its slice of a batch, in rounds of at most `micro_batch` positions. Beside a GPU the next
step's slice is prepared in a thread while the GPU works; on a CPU that thread would only take cores from the network.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.data.encoders import Encoder
from autoguidance.data.latents import LatentSource, TrainingSource
from autoguidance.data.vae import VaeEncoder
from autoguidance.errors import UserError
from autoguidance.train.config import TrainConfig
from autoguidance.train.distributed import World
from autoguidance.train.order import Draws, TrainingOrder


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes; `start` is the stream position of its first image."""

    start: int
    clean: Float[Tensor, "n C H W"]
    labels: Float[Tensor, "n num_classes"] | None
    sigma_normal: Float[Tensor, "n"]
    noise: Float[Tensor, "n C H W"]


class BatchMaker:
    """Prepares this process's part of any batch of the run.

    Args:
        config: of the run.
        source: the images or latents.
        encoder: turns them into what the network sees.
        world: the processes that share each batch.

    Raises: UserError where the batch cannot be shared equally among the processes, or latents are to be mirrored.
    """

    def __init__(self, config: TrainConfig, source: TrainingSource, encoder: Encoder, world: World) -> None:
        if config.batch_size % world.size:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared by {world.size} processes; choose a multiple"
            )
        if config.mirror and isinstance(source, LatentSource):
            raise UserError(
                f"mirror does not work on {source.name}: a mirrored image has other latents; "
                "leave out mirror, or encode mirrored copies too"
            )
        self.config = config
        self.source = source
        self.encoder = encoder
        self.world = world
        width = encoder.img_resolution
        self.order = TrainingOrder(
            source.num_images,
            (encoder.img_channels, width, width),
            config.seed,
            draws_latents=isinstance(source, LatentSource),
        )
        labelled = source.class_idx is not None and not config.unconditional
        self._one_hot = torch.eye(source.num_classes) if labelled else None
        self._class_idx = torch.as_tensor(source.class_idx) if labelled else None

    def rounds(self, num_images: int) -> list[MicroBatch]:
        """This process's rounds of the batch that begins after `num_images` images, on the world's device."""
        share = self.config.batch_size // self.world.size
        first = num_images + self.world.rank * share
        size = min(share, self.config.micro_batch or share)
        return [self._round(start, min(size, first + share - start)) for start in range(first, first + share, size)]

    def _round(self, start: int, count: int) -> MicroBatch:
        draws = self.order.draw(start, count)
        labels = None
        if self._one_hot is not None and self._class_idx is not None:
            kept = draws.label_dropout >= self.config.label_dropout
            labels = self._one_hot[self._class_idx[draws.index]] * kept[:, None]
        device = self.world.device
        return MicroBatch(
            start=start,
            clean=self._clean(draws).to(device),
            labels=None if labels is None else labels.to(device),
            sigma_normal=draws.sigma_normal.to(device),
            noise=draws.noise.to(device),
        )

    def _clean(self, draws: Draws) -> Float[Tensor, "n C H W"]:
        stored = self.source.read(draws.index)
        if isinstance(self.encoder, VaeEncoder):  # of a LatentSource; see train.loop
            return self.encoder.draw(stored, draws.latent_noise)
        if self.config.mirror:
            stored = torch.where((draws.flip < 0.5)[:, None, None, None], stored.flip(3), stored)
        return self.encoder.encode(stored)

    def stream(self, num_images: int, end: int) -> Iterator[list[MicroBatch]]:
        """The rounds of each batch from `num_images` images on, until `end`."""
        starts = range(num_images, end, self.config.batch_size)
        if self.world.device.type == "cpu":
            yield from map(self.rounds, starts)
            return
        with ThreadPoolExecutor(1) as pool:
            coming = None
            for start in starts:
                ready, coming = coming, pool.submit(self.rounds, start)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()
