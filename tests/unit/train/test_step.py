"""One step: what a non-finite value may touch (nothing), and how a batch may be split (any way)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from autoguidance.data.encoders import make_encoder
from autoguidance.models.precond import build_model
from autoguidance.train.batches import BatchMaker
from autoguidance.train.config import TrainConfig
from autoguidance.train.distributed import World, choose_device
from autoguidance.train.step import Trainer

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
Setup = tuple[Trainer, BatchMaker]


def _setup(source: Any, config: TrainConfig, world: World = ALONE) -> Setup:
    encoder = make_encoder({"name": "pixels", "channels": source.channels, "resolution": source.resolution})
    keywords = config.network.keywords(
        img_resolution=encoder.img_resolution, img_channels=1, num_classes=source.num_classes, use_fp16=False
    )
    torch.manual_seed(0)
    return Trainer(build_model(keywords), config, world), BatchMaker(config, source, encoder, world)


def _copy(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.state_dict().items()}


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_non_finite_step_changes_nothing(blocks: Any, make_config: Callable[..., TrainConfig], spoilt: str) -> None:
    trainer, batches = _setup(blocks, make_config())
    trainer.step(0, batches.rounds(0))
    trainer.step(8, batches.rounds(8))
    rounds = batches.rounds(16)
    handle = None
    if spoilt == "loss":
        rounds[0].clean[3, 0, 2, 2] = float("nan")
    else:
        handle = trainer.model.unet.out_conv.weight.register_hook(lambda gradient: gradient * float("inf"))
    # Forced normalization runs in every forward pass, so weights are compared after it has come to rest.
    for _ in range(3):
        trainer.accumulate(batches.rounds(0)[0])
    before = _copy(trainer)
    result = trainer.step(16, rounds)
    assert result.skipped
    after = trainer.state_dict()
    for name, value in before.items():
        assert torch.allclose(value, after[name], rtol=1e-6, atol=0), name
        if not name.startswith("net/"):
            assert torch.equal(value, after[name]), name
    if handle is not None:
        handle.remove()
    result = trainer.step(24, batches.rounds(24))
    assert not result.skipped
    assert trainer.averaged_images == 32
    assert all(bool(value.isfinite().all()) for value in trainer.state_dict().values())


def test_accumulation_and_processes_add_up_to_the_whole_batch(
    blocks: Any, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(label_dropout=0.3, mirror=True)
    whole, batches = _setup(blocks, config)
    expected = whole.step(64, batches.rounds(64))
    for micro_batch, size in ((3, 1), (1, 2), (None, 4)):
        split = replace(config, micro_batch=micro_batch)
        trainer, _ = _setup(blocks, split)
        rounds = [
            part
            for rank in range(size)
            for part in _setup(blocks, split, replace(ALONE, rank=rank, size=size))[1].rounds(64)
        ]
        assert [part.start for part in rounds] == sorted({part.start for part in rounds})
        found = trainer.step(64, rounds)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def test_state_goes_from_one_trainer_to_another(blocks: Any, make_config: Callable[..., TrainConfig]) -> None:
    first, batches = _setup(blocks, make_config())
    for start in (0, 8, 16):
        first.step(start, batches.rounds(start))
    second, _ = _setup(blocks, make_config())
    second.load_state_dict(_copy(first))
    second.averaged_images = first.averaged_images
    for trainer in (first, second):
        trainer.step(24, batches.rounds(24))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_label_dropout_and_mirror_touch_about_their_share(blocks: Any, make_config: Callable[..., TrainConfig]) -> None:
    plain = _setup(blocks, make_config(batch_size=400))[1].rounds(0)[0]
    changed = _setup(blocks, make_config(batch_size=400, label_dropout=0.25, mirror=True))[1].rounds(0)[0]
    assert plain.labels is not None
    assert changed.labels is not None
    assert bool((plain.labels.sum(1) == 1).all())
    dropped = (changed.labels.sum(1) == 0).float().mean().item()
    assert abs(dropped - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5
    flipped = (changed.clean == plain.clean.flip(3)).flatten(1).all(1)
    assert bool((flipped | (changed.clean == plain.clean).flatten(1).all(1)).all())
    assert abs(flipped.float().mean().item() - 0.5) < 4 * (0.25 / 400) ** 0.5


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta"])
def test_unknown_devices_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        choose_device(name)
