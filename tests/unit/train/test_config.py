"""The training configuration: round trip, checks, overrides, and what counts as the same run."""

import json
from dataclasses import replace

import pytest

from autoguidance.errors import UserError
from autoguidance.train.config import EXTENDABLE, NetworkConfig, TrainConfig, apply_overrides, parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [("150000", 150_000), ("64Ki", 64 * 1024), ("8Mi", 8 * 1024**2), ("1Gi", 1024**3), ("1.5Ki", 1536), (7, 7)],
)
def test_counts_are_binary(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "12k", "8 M", "1e6", "nan", "0.0001Ki"])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="number of images"):
        parse_count(text)


def test_round_trip_through_json() -> None:
    config = TrainConfig(
        preset="x",
        network=NetworkConfig(model_channels=8, channel_mult=(1, 2), clip_act=None),
        encoder={"name": "pixels", "channels": 1, "resolution": 7, "padding": [0, 1]},
        micro_batch=3,
        ref_batches=5,
    )
    again = TrainConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert again.sha256() == config.sha256()
    assert isinstance(again.ref_batches, float)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "8"}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"dtype": "int8"}, "dtype"),
        ({"p_std": float("nan")}, "p_std"),
        ({"betas": [0.9]}, "betas"),
        ({"ema_stds": [0.4]}, "ema_stds"),
        ({"ema_stds": [0.05, 0.0501]}, "ema_stds"),
        ({"network": {}}, "network"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_damaged_configurations_are_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        TrainConfig.from_json({**TrainConfig().to_json(), **change})


def test_overrides_are_read_by_type() -> None:
    config = apply_overrides(
        TrainConfig(),
        [
            "learning_rate=0.02",
            "num_images=64Ki",
            "mirror=true",
            "micro_batch=none",
            "betas=0.9,0.95",
            "ema_stds=0.05,0.1,0.15",
            "dtype=bfloat16",
            "network.model_channels=32",
            "network.channel_mult=1,2",
            "network.clip_act=none",
        ],
    )
    assert config == TrainConfig(
        learning_rate=0.02,
        num_images=65536,
        mirror=True,
        betas=(0.9, 0.95),
        ema_stds=(0.05, 0.1, 0.15),
        dtype="bfloat16",
        network=NetworkConfig(model_channels=32, channel_mult=(1, 2), clip_act=None),
    )


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("learning_rat=1", "did you mean learning_rate"),
        ("model_channels=8", "network.model_channels"),
        ("seed", "key=value"),
        ("seed=two", "whole number"),
        ("p_mean=low", "number"),
        ("mirror=maybe", "true or false"),
        ("betas=1,x", "number"),
        ("batch_size=0", "positive"),
        ("network.dropout=2", "below 1"),
    ],
)
def test_wrong_overrides_are_explained(setting: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        apply_overrides(TrainConfig(), [setting])


def test_only_the_length_and_the_records_of_a_run_may_change() -> None:
    here = TrainConfig()
    longer = replace(here, num_images=here.num_images * 2, log_images=7, checkpoint_seconds=1, num_snapshots=3)
    assert here.differences(longer) == []
    assert here.sha256() == longer.sha256()
    other = replace(here, learning_rate=0.5, network=NetworkConfig(dropout=0.1))
    assert [line.split(":")[0] for line in here.differences(other)] == ["learning_rate", "network.dropout"]
    assert here.sha256() != other.sha256()
    assert set(here.to_json()) >= EXTENDABLE
