"""When a network is recorded and when not; the recordings themselves need a GPU (tests/numerics/test_gpu.py)."""

import copy
import pickle
from typing import Any

import pytest
import torch

import autoguidance.models.graphs as graphs
from autoguidance.models import build_model
from autoguidance.models.graphs import RecordingCache, graphs_enabled


class Stand:
    """Instead of a recording: it counts how often it was made and replayed."""

    made = 0
    replayed = 0

    def __init__(self, function: Any, inputs: Any, pool: Any) -> None:
        type(self).made += 1
        self.function = function

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        type(self).replayed += 1
        return self.function(*inputs)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> type[Stand]:
    class Fresh(Stand):
        made = replayed = 0

    monkeypatch.setattr(graphs, "Recording", Fresh)
    monkeypatch.setattr(graphs, "_shared_pool", lambda: None)
    return Fresh


def test_the_third_call_of_a_key_records_and_results_are_copies(stand: type[Stand]) -> None:
    cache, buffer = RecordingCache(), torch.zeros(2)

    def double(x: torch.Tensor) -> torch.Tensor:
        return buffer.copy_(2 * x)

    results = [cache.call("key", double, [torch.full((2,), float(k))], lambda: None) for k in range(5)]
    assert (stand.made, stand.replayed) == (1, 3)
    assert [float(result[0]) for result in results[2:]] == [4, 6, 8]  # each is a copy: the buffer holds the last
    cache.call("other", double, [torch.ones(2)], lambda: None)
    assert stand.made == 1


def test_the_least_recently_used_recording_goes(stand: type[Stand]) -> None:
    cache = RecordingCache()

    def call(key: int) -> None:
        for _ in range(3):
            cache.call(key, torch.neg, [torch.ones(1)], lambda: None)

    for key in (0, 1, 2, 3, 0, 4):
        call(key)
    assert stand.made == 5
    call(0)
    assert stand.made == 5
    call(1)  # given up for 4
    assert stand.made == 6


def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graphs, "Recording", refuse)
    monkeypatch.setattr(graphs, "_shared_pool", lambda: None)
    cache = RecordingCache()
    for _ in range(6):
        assert float(cache.call("key", torch.neg, [torch.ones(1)], lambda: None)) == -1
    assert [record.message for record in caplog.records] == [
        "not recorded as a CUDA graph (slower): operation not permitted"
    ]


def test_a_copied_network_has_no_recordings(stand: type[Stand]) -> None:
    config = {
        "img_resolution": 8,
        "img_channels": 1,
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
        "channels_per_head": 8,
    }
    model = build_model(config)
    for _ in range(3):
        model._recordings.call("key", torch.neg, [torch.ones(1)], lambda: None)
    assert stand.made == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other._recordings._recordings
    assert not model._records(torch.zeros(1))  # on a CPU


def test_the_user_can_switch_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graphs_enabled()
    monkeypatch.setenv("AUTOGUIDANCE_CUDA_GRAPHS", "0")
    assert not graphs_enabled()
