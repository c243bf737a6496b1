"""Magnitude preservation, forced weight normalization, and the cache of normalized weights."""

import copy
import itertools
import math
import pickle

import pytest
import torch

from autoguidance.models.layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize, resample


def rms(x: torch.Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


@pytest.fixture
def unit() -> torch.Tensor:
    """Unit Gaussian activations [64, 32, 8, 8]; the mean square of 131,072 values has a standard error of 0.4 %."""
    return torch.randn(64, 32, 8, 8, generator=torch.Generator().manual_seed(0))


def test_magnitudes_are_preserved(unit: torch.Tensor) -> None:
    other = unit.flip(0)
    assert rms(mp_silu(unit)) == pytest.approx(1, abs=0.01)
    for t in (0.1, 0.3, 0.5, 1.0):
        assert rms(mp_sum(unit, other, t)) == pytest.approx(1, abs=0.01)
    # mp_cat: each input contributes in the ratio (1-t) : t, whatever its number of channels
    joined = mp_cat(unit, other[:, :8], 0.4)
    assert rms(joined) == pytest.approx(1, abs=0.01)
    powers = [float(part.square().sum()) for part in joined.split([32, 8], dim=1)]
    assert math.sqrt(powers[1] / powers[0]) == pytest.approx(0.4 / 0.6, rel=0.02)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv, fourier = MPConv(32, 256, (1, 1)), MPFourier(4096)
    assert rms(conv(unit)) == pytest.approx(1, abs=0.02)
    assert rms(fourier(torch.linspace(-1, 1, 64))) == pytest.approx(1, abs=0.02)


def test_normalize_gives_unit_rows_and_bears_zero() -> None:
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)) * 7
    assert all(rms(row) == pytest.approx(1, abs=1e-3) for row in normalize(x))
    assert torch.equal(normalize(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert normalize(x.half()).dtype == torch.float16


def test_resampling_keeps_a_constant() -> None:
    x = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(resample(x, mode="down"), torch.full((1, 2, 4, 4), 3.0))
    torch.testing.assert_close(resample(x, mode="up"), torch.full((1, 2, 16, 16), 3.0))
    assert resample(x, mode="keep") is x


def test_training_normalizes_the_stored_weight() -> None:
    conv = MPConv(4, 6, (3, 3))
    with torch.no_grad():
        conv.weight.mul_(10)
    expected = normalize(conv.weight.detach())
    x = torch.randn(2, 4, 8, 8)
    conv.eval()
    with torch.no_grad():
        outside = conv(x)
    assert rms(conv.weight) == pytest.approx(10, rel=0.2)  # inference leaves it alone
    conv.train()
    torch.testing.assert_close(conv(x), outside, rtol=1e-4, atol=1e-4)  # eps counts twice, so not bitwise
    assert torch.equal(conv.weight, expected)
    assert conv.weight.requires_grad
    conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_gradient_is_orthogonal_to_each_weight_vector() -> None:
    # The length of a weight vector does not matter, so the loss has no slope along it.
    conv = MPConv(4, 6)
    conv(torch.randn(8, 4)).square().sum().backward()
    assert conv.weight.grad is not None
    weight, gradient = conv.weight.detach(), conv.weight.grad
    along = (gradient * weight).sum(1) / (gradient.norm(dim=1) * weight.norm(dim=1))
    assert float(along.abs().max()) < 1e-3


def fresh(conv: MPConv, x: torch.Tensor, gain: float | torch.Tensor = 1.0) -> torch.Tensor:
    """What the layer computes without its cache."""
    with torch.enable_grad():
        return conv(x, gain=gain).detach()


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_cached_weights_are_the_fresh_ones_and_follow_every_change(kernel: tuple[int, ...]) -> None:
    conv = MPConv(4, 6, kernel).eval()
    x = torch.randn(3, 4, *(8 for _ in kernel))
    gain = torch.nn.Parameter(torch.tensor(0.5))

    def check() -> torch.Tensor:
        with torch.no_grad():
            first, again = conv(x, gain=gain), conv(x, gain=gain)
        assert torch.equal(first, again)
        assert torch.equal(first, fresh(conv, x, gain))
        return first

    seen = [check()]
    assert conv._cached is not None
    with torch.no_grad():
        conv.weight[0].neg_()
    seen.append(check())
    with torch.no_grad():
        gain.mul_(3)
    seen.append(check())
    conv.load_state_dict({"weight": torch.randn_like(conv.weight)})
    seen.append(check())
    conv.load_state_dict({"weight": torch.randn_like(conv.weight)}, assign=True)
    seen.append(check())
    conv.train()
    conv(x, gain=gain).sum().backward()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()
    conv.eval()
    seen.append(check())
    with torch.no_grad():
        torch._foreach_lerp_([conv.weight], [torch.ones_like(conv.weight)], 0.5)
    seen.append(check())
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    with torch.no_grad():
        assert not torch.equal(conv(x, gain=gain), conv(x, gain=1.0))  # a gain that is no parameter
        assert torch.equal(conv(x, gain=1.0), fresh(conv, x))
    with torch.inference_mode():
        assert torch.equal(conv(x, gain=gain), seen[-1])


def test_a_new_weight_at_the_address_of_an_old_one_is_seen() -> None:
    conv, x = MPConv(4, 6).eval(), torch.randn(3, 4)
    with torch.no_grad():
        conv(x)
    # Same address and version as the cached weight, other values: what the allocator may give to a later weight.
    conv.weight.data.copy_(torch.randn(6, 4))
    conv.load_state_dict({"weight": conv.weight}, assign=True)
    with torch.no_grad():
        assert torch.equal(conv(x), fresh(conv, x))


def test_layers_can_be_copied_and_pickled_after_use() -> None:
    conv, x = MPConv(4, 6).eval(), torch.randn(3, 4)
    with torch.no_grad():
        expected = conv(x)
        twin = copy.deepcopy(conv)
        assert torch.equal(pickle.loads(pickle.dumps(conv))(x), expected)
        twin.weight[0].neg_()
        assert not torch.equal(twin(x), expected)
        assert torch.equal(conv(x), expected)
