"""Configuration of the network: what is built, and what is refused."""

from typing import Any

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.models import build_model

CONFIG: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [],
    "channels_per_head": 8,
}


def test_a_fresh_network_returns_c_skip_x() -> None:
    # out_gain starts at 0, so F = 0 and D = c_skip x = sd^2 / (s^2 + sd^2) x
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        denoised = build_model(CONFIG).eval()(x, sigma, torch.eye(3)[:2])
    scale = 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(denoised, x * scale.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": [1]},
        {"attn_resolutions": [8, 4]},
        {"channel_mult_noise": 2, "channel_mult_emb": 3},
        {"resample_filter": [1, 3, 3, 1]},
        {"clip_act": None},
        {"dropout": 0.1, "label_balance": 0.3, "concat_balance": 0.4, "res_balance": 0.2, "attn_balance": 0.5},
        {"label_dim": 0, "sigma_data": 0.7, "logvar_channels": 16},
        {"num_blocks": 2, "img_channels": 3},
    ],
)
def test_options_give_a_network_that_runs_and_learns(changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    model = build_model(config).train()
    x = torch.randn(2, config["img_channels"], 8, 8)
    labels = torch.eye(3)[:2] if config["label_dim"] else None
    model(x, torch.tensor([0.5, 2.0]), labels).square().sum().backward()
    assert model.unet.out_gain.grad is not None
    assert float(model.unet.out_gain.grad.abs()) > 0


def test_dropout_acts_in_training_only() -> None:
    model = build_model({**CONFIG, "dropout": 0.5})
    with torch.no_grad():
        model.unet.out_gain.fill_(1.0)
        x, sigma = torch.randn(2, 1, 8, 8), torch.tensor(1.0)
        model.train()
        assert not torch.equal(model(x, sigma), model(x, sigma))
        model.eval()
        assert torch.equal(model(x, sigma), model(x, sigma))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_resolution": 9}, "resolution 9 cannot be halved 1 times"),
        ({"channel_mult": []}, "cannot be halved"),
        ({"channels_per_head": 7}, "channels_per_head that divides 16"),
        ({"channels_per_head": 0}, "not usable"),
        ({"colour": "red"}, "not usable.*colour"),
        ({"model_channels": "many"}, "not usable"),
        ({"img_resolution": None}, "not usable"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model({**CONFIG, **changes})
    assert "\n" not in str(caught.value)
