"""The training loop: from a checked data set to a run folder with the averages of its network at many times.

One process, or several under torchrun, take the positions of the training stream (`train.order`) batch by batch
through `Trainer.step`. The
loop adds what has to survive: the log, snapshots of both averages, resume states. Since position i's randomness
depends on (seed, i) alone and a checkpoint holds every tensor that changes, a run killed at any instruction and
started again by the same command ends, on a CPU, with the same bits as one that was left alone.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoguidance.data.encoders import Encoder, make_encoder
from autoguidance.data.latents import LatentSource, TrainingSource
from autoguidance.errors import UserError
from autoguidance.models.precond import build_model
from autoguidance.train.batches import BatchMaker
from autoguidance.train.checkpoint import Progress
from autoguidance.train.config import TrainConfig
from autoguidance.train.distributed import World, join_world
from autoguidance.train.folder import RunFolder, describe_run, open_run
from autoguidance.train.log import ProgressCallback, Recorder
from autoguidance.train.order import INITIAL_WEIGHTS, mix_seed
from autoguidance.train.schedule import num_steps, snapshot_times
from autoguidance.train.step import Trainer

SnapshotCallback = Callable[[int, Sequence[Path]], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        folder: the run folder.
        num_images: images seen in the whole run.
        finished: whether the run has reached its configured length.
        already_finished: it had before this call, which then did nothing.
        resumed_from: images at the checkpoint that this call began with; 0 for a new run.
        skipped: steps skipped for a loss or gradient that was not finite, in the whole run.
        seconds: training time of the whole run.
    """

    folder: Path
    num_images: int
    finished: bool
    already_finished: bool
    resumed_from: int
    skipped: int
    seconds: float


def train(
    config: TrainConfig,
    source: TrainingSource,
    out: Path | str,
    *,
    progress: ProgressCallback | None = None,
    callbacks: Sequence[SnapshotCallback] = (),
    stop_after_images: int | None = None,
    device: str | torch.device | None = None,
) -> TrainResult:
    """Train a network, or go on where an earlier call with the same arguments stopped.

    Args:
        config: complete; from `train.presets.resolve`, or made by hand.
        source: checked images, or latents of images.
        out: the run folder.
        progress: called as progress(images done, images in all, figures) a few times a second.
        callbacks: each called as callback(num_images, paths) after snapshots were written, in the main process.
        stop_after_images: end this call early, with a checkpoint, once that many images of the run were seen.
        device: None: this process's GPU where there is one, else the CPU.

    Returns: where the run stands.

    Raises: UserError where the folder holds another run or cannot be written, the data does not fit the
        configuration, or `max_nonfinite_steps` steps in a row had to be skipped; what was committed before stays as
        it was.
    """
    with ExitStack() as stack:
        world = stack.enter_context(join_world(device))
        # The caller's random state is not ours to advance.
        stack.enter_context(torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []))
        encoder = _encoder_for(config, source, world)
        batches = BatchMaker(config, source, encoder, world)
        network = config.network.keywords(
            img_resolution=encoder.img_resolution,
            img_channels=encoder.img_channels,
            num_classes=0 if config.unconditional else source.num_classes,
            use_fp16=config.dtype != "float32",
        )
        torch.manual_seed(mix_seed(config.seed, INITIAL_WEIGHTS))
        trainer = Trainer(build_model(network).to(world.device), config, world)  # refuses before anything is written
        content = describe_run(config, network=network, encoder=encoder.config, data=_describe(source))
        folder = world.from_main(lambda: stack.enter_context(open_run(out)))
        world.from_main(lambda: folder.begin(config, content))
        counters = world.from_main(lambda: _resume(folder, trainer))
        trainer.share_state()
        trainer.averaged_images = counters.averaged_images
        return _go(config, trainer, batches, folder, counters, progress, callbacks, stop_after_images)


def _encoder_for(config: TrainConfig, source: TrainingSource, world: World) -> Encoder:
    """The configured encoder, or plain pixels, or that of the latents; checked against the data and the device."""
    if config.dtype == "float16" and world.device.type == "cpu":
        raise UserError("dtype float16 needs a GPU; on a CPU use --dtype float32 or bfloat16")
    pixels = {"name": "pixels", "channels": source.channels, "resolution": source.resolution, "padding": 0}
    is_latent = isinstance(source, LatentSource)
    default = dict(source.encoder) if is_latent else pixels
    encoder = make_encoder(dict(config.encoder) if config.encoder is not None else default)
    if is_latent and encoder.config != default:
        raise UserError(
            f"{source.name} holds latents of {default['vae']} for {source.resolution} pixels, the configured encoder is "
            "another one; resolve the preset for this data"
        )
    if not is_latent and encoder.config["name"] == "vae":
        raise UserError(
            f"{source.name} holds images, the configured encoder takes latents; make them by `autoguidance data encode`"
        )
    takes = (encoder.config.get("channels"), encoder.config.get("resolution"))
    if takes != (source.channels, source.resolution):
        raise UserError(
            f"{source.name} has images of {source.channels} channels and {source.resolution} pixels, "
            f"the configured encoder takes {takes[0]} and {takes[1]}; resolve the preset for this data"
        )
    return encoder


def _describe(source: TrainingSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "num_images": source.num_images,
        "resolution": source.resolution,
        "channels": source.channels,
        "class_names": list(source.class_names),
    }


def _resume(folder: RunFolder, trainer: Trainer) -> Progress:
    """Load the latest checkpoint into the trainer; its counters, or those of a new run."""
    state = folder.resume()
    if state is None:
        return Progress()
    trainer.load_state_dict(state[0])
    return state[1]


def _go(
    config: TrainConfig,
    trainer: Trainer,
    batches: BatchMaker,
    folder: RunFolder,
    counters: Progress,
    report: ProgressCallback | None,
    callbacks: Sequence[SnapshotCallback],
    stop_after_images: int | None,
) -> TrainResult:
    """Train from where the counters stand to the end, or to the first whole step at or after `stop_after_images`."""
    size = config.batch_size
    total = num_steps(config.num_images, size) * size
    end = total if stop_after_images is None else min(total, max(0, num_steps(stop_after_images, size) * size))
    begun = counters.num_images
    times = set(snapshot_times(config.num_images, size, config.num_snapshots))
    is_main = trainer.world.is_main
    if begun < end:
        recorder = Recorder(
            folder if is_main else None,
            counters,
            total=total,
            log_images=config.log_images,
            report=report if is_main else None,
        )
        saved = time.monotonic()
        in_a_row = 0
        try:
            for rounds in batches.stream(begun, end):
                result = trainer.step(counters.num_images, rounds)
                in_a_row = in_a_row + 1 if result.skipped else 0
                recorder.count(result, size)
                counters.averaged_images = trainer.averaged_images
                if in_a_row:
                    _warn_or_stop(config, folder, counters, in_a_row)
                if not is_main:
                    continue
                now = counters.num_images
                if now in times:
                    paths = folder.snapshot(trainer.averages.averages(), now, config)
                    for callback in callbacks:
                        callback(now, paths)
                # Not within a row of skipped steps: resuming then goes back to the last good state, and tries again.
                due = now in times or now >= end or time.monotonic() - saved >= config.checkpoint_seconds
                if due and not in_a_row:
                    folder.checkpoint(trainer.state_dict(), counters)
                    saved = time.monotonic()
        finally:
            recorder.close()
    return TrainResult(
        folder=folder.path,
        num_images=counters.num_images,
        finished=counters.num_images >= total,
        already_finished=begun >= total,
        resumed_from=begun,
        skipped=counters.skipped,
        seconds=counters.seconds,
    )


def _warn_or_stop(config: TrainConfig, folder: RunFolder, counters: Progress, in_a_row: int) -> None:
    if in_a_row >= config.max_nonfinite_steps:
        raise UserError(
            f"training in {folder.path} stopped at {counters.num_images} images: the loss or gradient was not "
            f"finite in {in_a_row} steps in a row; the last good state is kept. Start another --out with a lower "
            f"learning_rate (now {config.learning_rate}) or dtype bfloat16 or float32 (now {config.dtype})"
        )
    if in_a_row == 1:
        logger.warning("loss or gradient not finite at %d images: step skipped, weights unchanged", counters.num_images)
