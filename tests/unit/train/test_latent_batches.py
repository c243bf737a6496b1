"""Training data drawn from sets of latents: the same at every position however it is reached, and distributed as it should."""

import numpy as np
import pytest
import torch

from autoguidance.data import make_encoder
from autoguidance.data.latents import LatentSource
from autoguidance.data.source import Survey
from autoguidance.errors import UserError
from autoguidance.train.batches import BatchMaker
from autoguidance.train.config import TrainConfig
from autoguidance.train.distributed import World
from autoguidance.train.order import TrainingOrder
from autoguidance.train.presets import resolve


def make_source(width: int = 8, count: int = 6, std: float = 0.5) -> LatentSource:
    moments = np.zeros((count, 8, width, width), dtype=np.float32)
    moments[:, :4] = np.arange(count)[:, None, None, None]
    moments[:, 4:] = std
    return LatentSource(
        name="latents",
        num_images=count,
        latent_channels=4,
        latent_resolution=width,
        encoder=make_encoder({"name": "vae"}, img_channels=4, img_resolution=width).config,
        class_idx=np.arange(count) % 2,
        class_names=("a", "b"),
        fingerprint="f" * 64,
        survey=Survey(name="latents", kind="zip"),
        load=lambda index: moments[index],
        checksums=np.zeros(count, dtype=np.uint32),
        moments=moments,
    )


def world() -> World:
    return World(rank=0, size=1, device=torch.device("cpu"))


def make_batches(source: LatentSource, **changes: object) -> BatchMaker:
    config = TrainConfig(**{"batch_size": 16, "encoder": dict(source.encoder), **changes})  # type: ignore[arg-type]
    return BatchMaker(config, source, make_encoder(source.encoder), world())


def test_latent_noise_leaves_the_other_draws_as_they_are() -> None:
    plain = TrainingOrder(7, (2, 3, 3), seed=5).draw(4, 9)
    with_latents = TrainingOrder(7, (2, 3, 3), seed=5, draws_latents=True)
    whole = with_latents.draw(4, 9)
    for name in ("index", "flip", "label_dropout", "sigma_normal", "noise"):
        assert torch.equal(getattr(plain, name), getattr(whole, name)), name
    assert plain.latent_noise is None
    parts = [with_latents.draw(start, count).latent_noise for start, count in ((10, 3), (4, 6))]
    assert whole.latent_noise is not None
    assert torch.equal(torch.cat([parts[1], parts[0]]), whole.latent_noise)  # type: ignore[list-item]
    assert not torch.equal(whole.noise, whole.latent_noise)


def test_batches_are_the_same_in_any_rounds() -> None:
    source = make_source()
    (whole,) = make_batches(source).rounds(32)
    rounds = make_batches(source, micro_batch=5).rounds(32)
    assert torch.equal(torch.cat([part.clean for part in rounds]), whole.clean)
    assert not torch.equal(make_batches(source, seed=1).rounds(32)[0].clean, whole.clean)


def test_an_image_is_drawn_anew_at_each_look_around_its_mean() -> None:
    """256 looks at one image of mean 0 and deviation 0.5, each of 4 x 64 values: by the equation each scaled channel c has
    mean -raw_mean[c] / 2 raw_std[c] and deviation 0.25 / raw_std[c]."""
    source = make_source(count=1)
    (batch,) = make_batches(source, batch_size=256).rounds(0)
    raw_mean, raw_std = (torch.tensor(source.encoder[key]) for key in ("raw_mean", "raw_std"))
    values = batch.clean.permute(1, 0, 2, 3).reshape(4, -1)
    count = values.shape[1]
    deviation = 0.25 / raw_std
    assert ((values.mean(1) + raw_mean / (2 * raw_std)).abs() < 4 * deviation / count**0.5).all()
    assert ((values.std(1) / deviation - 1).abs() < 4 / (2 * count) ** 0.5).all()
    between_looks = torch.corrcoef(batch.clean[:8, 0].reshape(8, -1)) - torch.eye(8)
    assert between_looks.abs().max() < 5 / 64**0.5
    # The latent's noise is not that which the network has to remove.
    both = torch.stack([batch.clean[:, 0].flatten(), batch.noise[:, 0].flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 4 / both.shape[1] ** 0.5


def test_without_deviation_the_mean_is_shown() -> None:
    source = make_source(std=0.0)
    (batch,) = make_batches(source).rounds(0)
    index = TrainingOrder(6, (4, 8, 8), seed=0).index(0, 16)
    raw_mean, raw_std = (torch.tensor(source.encoder[key])[:, None, None] for key in ("raw_mean", "raw_std"))
    expected = (index.float()[:, None, None, None] - raw_mean) * 0.5 / raw_std
    torch.testing.assert_close(batch.clean, expected.expand(16, 4, 8, 8))


def test_latents_cannot_be_mirrored() -> None:
    with pytest.raises(UserError, match="a mirrored image has other latents"):
        make_batches(make_source(), mirror=True)


@pytest.mark.parametrize("width, levels", [(4, 2), (6, 2), (8, 2), (16, 3), (12, 2), (7, 1), (64, 5)])
def test_small_presets_fit_latents_of_every_width(width: int, levels: int) -> None:
    source = make_source(width, count=1)
    config = resolve("nano", source)
    assert len(config.network.channel_mult) == levels
    assert width % 2 ** (levels - 1) == 0
    assert config.encoder == source.encoder
    with pytest.raises(UserError, match="leave out --encoder pixels"):
        resolve("nano", source, encoder="pixels")


def test_presets_by_the_size_of_the_latents() -> None:
    assert resolve(None, make_source(8)).preset == "tiny"  # 512 pixels and less would be images of 64 pixels
    config = resolve("edm2-img512-xs", make_source(64, count=1))
    assert (config.p_mean, config.p_std, config.encoder) == (-0.4, 1.0, make_source(64, count=1).encoder)
    with pytest.raises(UserError, match="those of latents are 8 x 8"):
        resolve("edm2-img512-xs", make_source(8))
    with pytest.raises(UserError, match="works on pixels and latents holds latents; use edm2-img512-s"):
        resolve("edm2-img64-s", make_source(64, count=1))
