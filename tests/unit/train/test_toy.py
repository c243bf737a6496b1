"""Training of the toy: what a batch depends on, the schedule, and that a seed fixes the result."""

import dataclasses
import threading

import pytest
import torch

from autoguidance.errors import UserError
from autoguidance.models.toy_mixture import toy_mixture
from autoguidance.train.toy import (
    ToyTraining,
    _batches,
    draw_batch,
    one_thread_per_operation,
    score_matching_loss,
    stream,
    toy_learning_rate,
    train_toy,
)

SMALL = ToyTraining(width=8, iterations=40, batch_size=64, seed=5)


def test_learning_rate_is_flat_then_falls_as_the_root():
    config = ToyTraining()
    assert toy_learning_rate(config, 0) == toy_learning_rate(config, 512) == 0.01
    assert toy_learning_rate(config, 2048) == pytest.approx(0.005)


def test_sigma_is_log_normal_and_each_point_has_its_own():
    batch = draw_batch(toy_mixture("A"), ToyTraining(), 0)
    log = batch.sigma.log()
    assert batch.sigma.unique().numel() > 4000
    assert log.mean().item() == pytest.approx(-2.3, abs=5 * 1.5 / 64)
    assert log.std().item() == pytest.approx(1.5, rel=0.06)


def test_a_batch_depends_on_seed_and_iteration_alone():
    mixture = toy_mixture("A")
    torch.manual_seed(0)
    first = draw_batch(mixture, SMALL, 7)
    torch.manual_seed(1)
    again = draw_batch(mixture, SMALL, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, draw_batch(mixture, SMALL, 8).x)
    assert not torch.equal(first.x, draw_batch(mixture, dataclasses.replace(SMALL, seed=6), 7).x)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_batches_prepared_ahead_are_the_same_in_order(iterations):
    mixture, config = toy_mixture("A"), dataclasses.replace(SMALL, iterations=iterations)
    ahead = list(_batches(mixture, config))
    assert len(ahead) == iterations
    for index, batch in enumerate(ahead):
        assert torch.equal(batch.x, draw_batch(mixture, config, index).x)


def test_streams_differ_by_every_part_of_their_key():
    draws = {
        torch.randn((), generator=stream(*key)).item() for key in [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (2**40, 3)]
    }
    assert len(draws) == 6


def test_a_seed_fixes_the_trained_network_bitwise():
    with one_thread_per_operation():
        states = [train_toy(toy_mixture("A"), SMALL).state_dict() for _ in range(2)]
        other = train_toy(toy_mixture("A"), dataclasses.replace(SMALL, seed=6)).state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["layers.0.weight"], other["layers.0.weight"])


def test_training_lowers_the_loss_on_new_points():
    config = ToyTraining(width=16, iterations=200, batch_size=256)
    mixture = toy_mixture("A")
    trained, fresh = (train_toy(mixture, dataclasses.replace(config, iterations=n)) for n in (200, 1))
    unseen = draw_batch(mixture, dataclasses.replace(config, seed=99, batch_size=2048), 0)
    losses = [score_matching_loss(network, unseen).mean().item() for network in (trained, fresh)]
    assert losses[0] < 0.7 * losses[1]
    assert not trained.training


def test_an_exception_from_progress_ends_training_and_its_thread():
    def stop(done, total, figures):
        assert (done, total) == (32, 5000)
        assert figures["loss"] > 0
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_toy(toy_mixture("A"), dataclasses.replace(SMALL, iterations=5000), progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("toy-batches")]


def test_thread_count_is_restored():
    torch.set_num_threads(2)
    before = torch.get_num_threads()
    with one_thread_per_operation():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before == 2
    torch.set_num_threads(1)  # as tests/conftest.py has it


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"iterations": 0},
        {"batch_size": -1},
        {"learning_rate": float("nan")},
        {"p_std": -1.0},
        {"ema_std": 0.5},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError):
        ToyTraining(**change)
