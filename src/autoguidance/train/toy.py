"""Training of the toy's networks by exact score matching.

Problem: with images only samples of the data are known; here the true score is, so the network's error can be
minimized directly:

    loss = E_{sigma, x} sigma^2 mean_axes (s_model(x; sigma) - s_true(x; sigma))^2,   ln sigma ~ N(P_mean, P_std^2),  x ~ p(x; sigma)

The true scores do not depend on the network: a second thread prepares the next batches while the network learns from
this one. Batch i draws from a generator of its own, seeded by (seed, i), so the result does not depend on the number
of threads that prepare batches.

Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507, Appendix C.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autoguidance.ema.power import PowerEMA, std_to_exponent
from autoguidance.errors import UserError
from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import GaussianMixture2D

ProgressCallback = Callable[[int, int, dict[str, Any]], None]

_AHEAD = 8  # batches prepared in advance; each is 80 kB
_REPORT_EVERY = 32


@dataclass(frozen=True, kw_only=True)
class ToyTraining:
    """How one toy network is trained.

    Attributes:
        width: features per layer.
        iterations: steps.
        batch_size: points per step, each with its own sigma.
        p_mean, p_std: mean and standard deviation of ln sigma.
        learning_rate: peak; it falls as 1 / sqrt(i / learning_rate_iterations) from that iteration on.
        ema_std: relative width of the power-function average that is returned.
        seed: fixes weights and batches.
    """

    width: int = 64
    iterations: int = 4096
    batch_size: int = 4096
    p_mean: float = -2.3
    p_std: float = 1.5
    learning_rate: float = 0.01
    learning_rate_iterations: int = 512
    ema_std: float = 0.010
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "iterations", "batch_size", "learning_rate_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"toy training: {name} is {getattr(self, name)}; choose at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(
                f"toy training: learning_rate is {self.learning_rate}; choose a positive number (0.01 is usual)"
            )
        if not (math.isfinite(self.p_mean) and math.isfinite(self.p_std) and self.p_std >= 0):
            raise UserError(
                f"toy training: ln sigma ~ N({self.p_mean}, {self.p_std}^2) is no distribution; choose p_std >= 0"
            )
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; choose a whole number of at least 0")
        std_to_exponent(self.ema_std)


class ToyBatch(NamedTuple):
    """Noisy points, their noise levels, and the true score of p(x; sigma) there."""

    x: Float[Tensor, "N 2"]
    sigma: Float[Tensor, "N"]
    score: Float[Tensor, "N 2"]


def stream(*key: int) -> torch.Generator:
    """A generator of its own for a tuple of whole numbers, e.g. (seed, purpose, iteration); different keys are independent."""
    state = np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Keep PyTorch's operations to one thread each, so that several run side by side, with the same result on any machine.

    Also lets the allocator keep freed memory: glibc gives blocks of a batch's size back to the system, and getting them again costs
    half as much time as the arithmetic (measured: 19 ms of 40 ms a step in page faults). Freeing one block just under its limit for
    such blocks, 32 MiB, moves its thresholds up; elsewhere this does nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    block = torch.empty(31 * 2**20, dtype=torch.uint8)
    del block
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def toy_learning_rate(config: ToyTraining, iteration: int) -> float:
    """learning_rate / sqrt(max(i / learning_rate_iterations, 1)); i counts from 0."""
    return config.learning_rate / math.sqrt(max(iteration / config.learning_rate_iterations, 1))


def draw_batch(mixture: GaussianMixture2D, config: ToyTraining, iteration: int) -> ToyBatch:
    """The batch of one iteration: it depends on the mixture, config.seed and the iteration alone."""
    generator = stream(config.seed, 1, iteration)
    sigma = (config.p_mean + config.p_std * torch.randn(config.batch_size, generator=generator)).exp()
    x = mixture.sample(config.batch_size, generator, sigma)
    return ToyBatch(x, sigma, mixture.score(x, sigma))


def score_matching_loss(network: ToyNetwork, batch: ToyBatch) -> Float[Tensor, "N"]:
    """sigma^2 times the mean over both axes of the squared error of the score, per point."""
    return batch.sigma.square() * (network.score(batch.x, batch.sigma) - batch.score).square().mean(1)


def _batches(mixture: GaussianMixture2D, config: ToyTraining) -> Iterator[ToyBatch]:
    """All batches in order, a few prepared ahead by a thread that ends with the iterator."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="toy-batches") as executor:
        waiting: deque[Future[ToyBatch]] = deque()
        try:
            for iteration in range(config.iterations + _AHEAD):
                if iteration < config.iterations:
                    waiting.append(executor.submit(draw_batch, mixture, config, iteration))
                if iteration >= _AHEAD:
                    yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def train_toy(
    mixture: GaussianMixture2D,
    config: ToyTraining,
    *,
    num_classes: int = 1,
    progress: ProgressCallback | None = None,
) -> ToyNetwork:
    """Train one network on the CPU and return its power-function average, in evaluation mode.

    Args:
        mixture: the data distribution.
        config: see `ToyTraining`.
        num_classes: of the network; 0 for one trained on both classes together.
        progress: called now and then with (iterations done, all iterations, {"loss": ...}); an exception from it ends the training.

    Returns: the averaged network; the same bits for the same configuration under `one_thread_per_operation`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    network = ToyNetwork(config.width, num_classes=num_classes, generator=stream(config.seed, 0)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    average = PowerEMA(network, [config.ema_std])
    for iteration, batch in enumerate(_batches(mixture, config)):
        for group in optimizer.param_groups:
            group["lr"] = toy_learning_rate(config, iteration)
        optimizer.zero_grad()
        loss = score_matching_loss(network, batch).mean()
        loss.backward()
        optimizer.step()
        average.update(iteration + 1, 1)
        if (iteration + 1) % _REPORT_EVERY == 0 or iteration + 1 == config.iterations:
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at iteration {iteration}")
            if progress is not None:
                progress(iteration + 1, config.iterations, {"loss": value})
    network.load_state_dict(average.averages()[config.ema_std])
    return network.eval().requires_grad_(False)
