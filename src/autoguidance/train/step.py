"""One training step: gradient of the loss over a batch, the check that it is finite, Adam, the averages.

For a batch of B positions of the training stream, in rounds of at most `micro_batch` and over all processes:

    g = d/dw sum(loss) / B,   w <- Adam(w, g, lr(n)),   averages <- power EMA at n + B

Forced weight normalization happens inside the network's forward pass (`models.layers.MPConv`). A step whose loss or
gradient is not finite
changes nothing but the count of images: weights, Adam's moments and the averages stay as they were, and the next step
gets other data.

Reference: Karras et al. 2024, arXiv 2312.02696, Section 2 and Appendix B.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoguidance.diffusion.loss import edm_loss
from autoguidance.ema.power import PowerEMA
from autoguidance.errors import UserError
from autoguidance.models.graphs import MAX_PARAMETERS, Recording, graphs_enabled
from autoguidance.models.precond import Precond
from autoguidance.train.batches import MicroBatch
from autoguidance.train.config import TrainConfig
from autoguidance.train.distributed import World
from autoguidance.train.order import DROPOUT, mix_seed
from autoguidance.train.schedule import learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step found; the same in every process.

    Attributes:
        loss: mean per element.
        grad_norm: Euclidean norm of the whole gradient.
        skipped: the loss or the gradient was not finite, so nothing was changed.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool


class Trainer:
    """A network with its optimizer and averages.

    Args:
        model: on the world's device; its body dtype is set from the configuration.
        config: of the run.
        world: the processes that share each batch.

    Attributes:
        averages: the power-function EMAs.
        optimizer: Adam, fused (one pass over memory per parameter; as exact and repeatable as the plain one).
        averaged_images: count of images up to which the averages are; behind num_images only after skipped steps.
    """

    def __init__(self, model: Precond, config: TrainConfig, world: World) -> None:
        self.model = model.train().requires_grad_(True)
        self.config = config
        self.world = world
        model.body_dtype = getattr(torch, config.dtype)
        self.parameters = dict(model.named_parameters())
        # All gradients are views of one buffer with the loss behind them: one sum over processes, one norm, one check.
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        self._flat = torch.zeros(sum(sizes) + 1, device=world.device)
        for parameter, piece in zip(self.parameters.values(), self._flat[:-1].split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter)
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=0.0, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
        )
        # Made here, not at the first step: then a state has the same tensors at any time.
        for parameter in self.parameters.values():
            self.optimizer.state[parameter] = {
                "step": torch.zeros([], device=world.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self.averages = PowerEMA(model, config.ema_stds)
        self.averaged_images = 0
        # Dropout's generator is seeded per round, which a recording cannot do.
        small = len(self._flat) <= MAX_PARAMETERS
        self._records = world.device.type == "cuda" and small and not config.network.dropout and graphs_enabled()
        self._recordings: dict[tuple[int, int], Recording] = {}

    def accumulate(self, batch: MicroBatch) -> None:
        """Add one round's gradient of sum(loss) / batch_size, and its loss."""
        if self.config.network.dropout:
            torch.manual_seed(mix_seed(self.config.seed, DROPOUT, batch.start))
        inputs = [batch.clean, batch.sigma_normal, batch.noise]
        if batch.labels is not None:
            inputs.append(batch.labels)
        recording = self._recording(inputs) if self._records else None
        if recording is None:
            self._accumulate(*inputs)
        else:
            recording(*inputs)

    def _accumulate(self, clean: Tensor, sigma_normal: Tensor, noise: Tensor, labels: Tensor | None = None) -> None:
        config = self.config
        loss = edm_loss(self.model, clean, labels, sigma_normal, noise, p_mean=config.p_mean, p_std=config.p_std)
        total = loss.sum() / config.batch_size
        total.backward()
        self._flat[-1] += total.detach() / loss[0].numel()

    def _recording(self, inputs: list[Tensor]) -> Recording | None:
        """The round of this size as a CUDA graph, recorded when it is first met; None: it cannot be."""
        key = (len(inputs[0]), len(inputs))
        if key not in self._recordings:
            before = self._flat.clone()  # warming up adds gradients
            try:
                self._recordings[key] = Recording(self._accumulate, inputs)
            except RuntimeError as error:
                logger.warning("training is not recorded as a CUDA graph (slower): %s", str(error).splitlines()[0])
                self._records = False
                self._recordings.clear()
            self._flat.copy_(before)
        return self._recordings.get(key)

    def step(self, num_images: int, rounds: Sequence[MicroBatch]) -> StepResult:
        """Train on this process's slice of the batch that begins after `num_images` images."""
        self._flat.zero_()
        for batch in rounds:
            self.accumulate(batch)
        self.world.sum_(self._flat)
        # The norm is not finite where any gradient is not; both numbers come to the CPU in one transfer.
        grad_norm, loss = torch.stack([self._flat[:-1].norm(), self._flat[-1]]).tolist()
        skipped = not (math.isfinite(loss) and math.isfinite(grad_norm))
        rate = learning_rate(self.config, num_images)
        if not skipped:
            self.optimizer.param_groups[0]["lr"] = rate
            self.optimizer.step()
            after = num_images + self.config.batch_size
            self.averages.update(after, after - self.averaged_images)
            self.averaged_images = after
        return StepResult(loss=loss, grad_norm=grad_norm, learning_rate=rate, skipped=skipped)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, averages and Adam's state as one flat mapping of tensors (live; copy to keep)."""
        state = {f"net/{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"ema/{name}": tensor for name, tensor in self.averages.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"adam/{key}/{name}"] = self.optimizer.state[parameter][key]
            state["adam/step"] = self.optimizer.state[parameter]["step"]  # all take every step together: one count
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave, in place. Raises UserError where it is of another network."""
        own = self.state_dict()
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            raise UserError("the checkpoint's tensors do not fit this network; start in another folder")
        for name, value in own.items():
            value.copy_(state[name])
        for moments in self.optimizer.state.values():
            moments["step"].copy_(state["adam/step"])

    def share_state(self) -> None:
        """Give every process the main one's state."""
        state = self.state_dict()
        self.world.broadcast_(list(state.values()))
        self.load_state_dict(state)
