"""The training stream: position i depends on (seed, i) alone, and its numbers have the distribution they should."""

import math

import torch

from autoguidance.train.order import TrainingOrder, mix_seed


def test_a_position_does_not_depend_on_how_positions_are_grouped() -> None:
    whole = TrainingOrder(7, (1, 4, 4), seed=3).draw(5, 12)
    order = TrainingOrder(7, (1, 4, 4), seed=3)
    parts = {start: order.draw(start, 4) for start in (13, 5, 9)}  # in any order
    for name in ("index", "flip", "label_dropout", "sigma_normal", "noise"):
        joined = torch.cat([getattr(parts[start], name) for start in (5, 9, 13)])
        assert torch.equal(joined, getattr(whole, name)), name


def test_each_epoch_shows_every_image_once_in_a_new_order() -> None:
    order = TrainingOrder(50, (1, 1, 1), seed=0)
    epochs = [order.index(50 * epoch, 50) for epoch in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(50))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], TrainingOrder(50, (1, 1, 1), seed=1).index(0, 50))


def test_the_numbers_are_uniform_and_normal_and_unrelated() -> None:
    count = 4000
    draws = TrainingOrder(10, (1, 4, 4), seed=0).draw(0, count)
    sample_error = 4 / math.sqrt(count)  # four standard errors
    assert abs(draws.sigma_normal.mean().item()) < sample_error
    assert abs(draws.sigma_normal.var().item() - 1) < sample_error * math.sqrt(2)
    assert abs(draws.flip.mean().item() - 0.5) < sample_error * math.sqrt(1 / 12)
    assert abs(draws.noise.mean().item()) < sample_error / 4
    columns = torch.stack([draws.flip, draws.label_dropout, draws.sigma_normal, draws.noise[:, 0, 0, 0]])
    assert (torch.corrcoef(columns) - torch.eye(4)).abs().max().item() < sample_error
    neighbours = torch.stack([draws.sigma_normal[1:], draws.sigma_normal[:-1]])
    assert torch.corrcoef(neighbours)[0, 1].abs().item() < sample_error


def test_seeds_are_mixed_well() -> None:
    seeds = {mix_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    # Neighbours differ in about half of their 64 bits (standard deviation of the mean over 512 pairs: 0.18).
    flipped = [(mix_seed(0, 1, i) ^ mix_seed(0, 1, i + 1)).bit_count() for i in range(512)]
    assert abs(sum(flipped) / 512 - 32) < 1
