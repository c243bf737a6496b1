"""What the toy's mixture and network refuse, and how the network looks to samplers."""

import pytest
import torch

from autoguidance.diffusion.denoiser import Denoiser
from autoguidance.errors import UserError
from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import GaussianMixture2D, grow_trees, subtree_index, toy_mixture


def test_components_that_are_no_branches_are_refused():
    a = toy_mixture("A")
    mu = a.mu.clone()
    mu[3] += 0.01
    with pytest.raises(UserError, match="not branches"):
        GaussianMixture2D(a.phi, mu, a.Sigma, components_per_branch=8)
    GaussianMixture2D(a.phi, mu, a.Sigma)  # as single components it is a mixture like any other


@pytest.mark.parametrize("per_branch", [0, 3, 7, 16])
def test_components_per_branch_must_be_even_and_divide(per_branch):
    a = toy_mixture("A")
    with pytest.raises(UserError, match="components_per_branch"):
        GaussianMixture2D(a.phi[:24], a.mu[:24], a.Sigma[:24], components_per_branch=per_branch)


def test_flat_covariances_and_wrong_shapes_are_refused():
    with pytest.raises(UserError, match="positive definite"):
        GaussianMixture2D(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2, 2))
    with pytest.raises(UserError, match="a mixture needs"):
        GaussianMixture2D(torch.ones(2), torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(UserError, match="shape"):
        toy_mixture("A").score(torch.zeros(3))
    with pytest.raises(UserError, match="classes A, B and AB"):
        toy_mixture("C")


def test_batching_does_not_change_a_points_density():
    mixture = toy_mixture("A")
    x = mixture.sample(1200, torch.Generator().manual_seed(0), 0.1)
    together = mixture.log_density(x, 0.1)
    alone = torch.cat([mixture.log_density(part, 0.1) for part in x.split(100)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)


def test_responsibilities_are_posteriors():
    mixture = toy_mixture("A")
    x = mixture.sample(20_000, torch.Generator().manual_seed(1))
    posterior = mixture.responsibilities(x)
    torch.testing.assert_close(posterior.sum(1), torch.ones(len(x)))
    mass, expected = posterior.double().mean(0), mixture.branch_weights()
    assert ((mass - expected).abs() < 5 * (expected / len(x)).sqrt()).all()


def test_subtrees_partition_the_branches():
    paths = grow_trees()[0].paths
    assert len(paths) == 127
    for depth in range(7):
        index, names = subtree_index(paths, depth)
        assert len(names) == 2 ** (depth + 1) - 1
        for path, part in zip(paths, index.tolist(), strict=True):
            root = names[part]
            assert path.startswith(root)
            assert path == root or len(root) == depth


def test_network_is_a_denoiser_of_its_own_score():
    network = ToyNetwork(8, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        network.gain.fill_(0.5)
    assert isinstance(network, Denoiser)
    assert (network.img_resolution, network.img_channels, network.num_classes, network.sigma_data) == (1, 2, 1, 0.5)
    x = torch.randn(6, 2)
    sigma = torch.rand(6) + 0.1
    expected = x + sigma[:, None] ** 2 * network.score(x, sigma).detach()
    torch.testing.assert_close(network(x.reshape(6, 2, 1, 1), sigma).reshape(6, 2), expected)
    one = network(x.reshape(6, 2, 1, 1), torch.tensor(0.3), torch.ones(6, 1))
    torch.testing.assert_close(one, network(x.reshape(6, 2, 1, 1), torch.full((6,), 0.3)))


def test_a_fresh_network_is_a_gaussian():
    """gain starts at 0: D is the ideal denoiser of N(0, sigma_data^2 I)."""
    x, sigma = torch.randn(6, 2, 1, 1), torch.tensor(0.7)
    torch.testing.assert_close(ToyNetwork(8).eval()(x, sigma), x * 0.25 / (0.25 + 0.49))


def test_generator_fixes_the_weights_and_names_are_the_published_ones():
    first, second = (ToyNetwork(4, generator=torch.Generator().manual_seed(3)).state_dict() for _ in range(2))
    assert list(first) == ["gain", *(f"layers.{i}.weight" for i in (0, 2, 4, 6, 8))]
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="width"):
        ToyNetwork(0)
