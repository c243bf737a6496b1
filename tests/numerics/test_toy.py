"""The toy's mixture, network and training step against the golden values, and against derivations of their own."""

import math

import pytest
import torch
from safetensors.torch import load_file

from autoguidance.models.toy import ToyNetwork
from autoguidance.models.toy_mixture import GaussianMixture2D, toy_mixture
from autoguidance.train.toy import ToyBatch, score_matching_loss


@pytest.fixture(scope="module")
def toy(golden):
    return load_file(golden("toy.safetensors"))


def relative(actual, expected):
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def brute_force(mixture, x, sigma):
    """log p(x; sigma), float64, one Gaussian at a time as the definition says."""
    x = x.double()
    covariance = mixture.Sigma + sigma.double()[:, None, None, None] ** 2 * torch.eye(2, dtype=torch.float64)
    difference = x[:, None] - mixture.mu
    mahalanobis = torch.einsum("nij,nijk,nik->ni", difference, torch.linalg.inv(covariance), difference)
    terms = mixture.phi.log() - 0.5 * mahalanobis - 0.5 * torch.logdet(covariance) - math.log(2 * math.pi)
    return terms.logsumexp(1)


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
def test_the_tree_grows_into_the_golden_mixture(toy, classes):
    mixture = toy_mixture(classes)
    torch.testing.assert_close(mixture.phi.float(), toy[f"{classes}.phi"], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixture.mu.float(), toy[f"{classes}.mu"], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixture.Sigma.float(), toy[f"{classes}.Sigma"], rtol=0, atol=1e-9)


def test_both_classes_keep_their_raw_weights():
    assert toy_mixture("AB").phi[:1016].sum().item() == pytest.approx(0.4770, abs=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", ["0.01", "0.03", "0.25", "0.5", "5.0"])
def test_score_and_log_density_agree_with_golden(toy, sigma, dtype):
    mixture, x = toy_mixture("A"), toy["points"].to(dtype)
    assert relative(mixture.score(x, float(sigma)), toy[f"score_A.sigma_{sigma}"]) < 1e-5
    assert relative(mixture.log_density(x, float(sigma)), toy[f"logp_A.sigma_{sigma}"]) < 1e-5


def test_branch_sums_equal_the_sum_over_components():
    generator = torch.Generator().manual_seed(1)
    mixture = toy_mixture("AB")
    sigma = torch.rand(300, generator=generator).double() * 0.3
    sigma[:100] = 0
    x = mixture.sample(300, generator, 2 * sigma.float()).double()
    torch.testing.assert_close(mixture.log_density(x, sigma), brute_force(mixture, x, sigma), rtol=1e-11, atol=1e-11)


def test_a_mixture_without_branches_equals_its_definition():
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(5, 2, 2, generator=generator).double()
    mixture = GaussianMixture2D(
        torch.rand(5, generator=generator), torch.randn(5, 2, generator=generator), root @ root.mT + 0.1 * torch.eye(2)
    )
    x, sigma = torch.randn(50, 2, generator=generator).double(), torch.full((50,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_density(x, sigma), brute_force(mixture, x, sigma), rtol=1e-12, atol=1e-12)


def test_score_is_the_slope_of_the_log_density():
    """Central differences have an error of order h^2: an eighth of h makes it 64 times smaller until rounding takes over."""
    generator = torch.Generator().manual_seed(3)
    mixture = toy_mixture("A")
    sigma = (torch.rand(200, generator=generator).double() * 0.5).clamp_min(0.02)
    x = mixture.sample(200, generator, sigma.float()).double()
    score = mixture.score(x, sigma)
    errors = []
    for step in (4e-4, 5e-5):
        slopes = [
            (mixture.log_density(x + step * axis, sigma) - mixture.log_density(x - step * axis, sigma)) / (2 * step)
            for axis in torch.eye(2, dtype=torch.float64)
        ]
        errors.append((torch.stack(slopes, 1) - score).abs().max().item())
    assert errors[1] < 1e-4 * score.abs().max().item()
    assert errors[0] / errors[1] == pytest.approx(64, rel=0.2)


@pytest.mark.parametrize("sigma", [0.0, 0.01, 1.0])
def test_points_far_away_stay_finite_in_float32(sigma):
    far = torch.tensor([[30.0, -40.0], [1e4, 1e4], [-1e9, 2.0], [1e13, -1e13]])
    mixture = toy_mixture("A")
    log_density, score = mixture.log_density(far, sigma), mixture.score(far, sigma)
    assert log_density.isfinite().all()
    assert score.isfinite().all()
    assert (log_density < 0).all()
    assert ((score * far).sum(1) < 0).all()  # it points back to the tree


def test_samples_have_the_mixtures_moments():
    mixture, num, sigma = toy_mixture("A"), 200_000, 0.1
    x = mixture.sample(num, torch.Generator().manual_seed(4), sigma).double()
    mean = (mixture.phi[:, None] * mixture.mu).sum(0)
    centred = mixture.mu - mean
    covariance = torch.einsum("i,ij,ik->jk", mixture.phi, centred, centred) + (
        mixture.phi[:, None, None] * mixture.Sigma
    ).sum(0)
    covariance = covariance + sigma**2 * torch.eye(2)
    spread = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * spread / math.sqrt(num)).all()
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.02, atol=0.02 * spread.max().item() ** 2)


def test_network_agrees_with_golden(toy):
    network = ToyNetwork(32)
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in toy.items() if name.startswith("model.")}
    )
    network.eval()
    assert relative(network.log_density(toy["model_points"], 0.3).detach(), toy["model_logp_sigma0.3"]) < 1e-5
    assert relative(network.score(toy["model_points"], 0.3).detach(), toy["model_score_sigma0.3"]) < 1e-5


def test_training_step_agrees_with_golden(toy):
    network = ToyNetwork(32)
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in toy.items() if name.startswith("model.")}
    )
    network.train()
    loss = score_matching_loss(network, ToyBatch(toy["step.x"], toy["step.sigma"], toy["step.true_score"]))
    assert relative(loss.detach(), toy["step.loss"]) < 1e-5
    loss.mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, toy[f"step.grad.{name}"]) < 1e-5, name
        assert relative(parameter.detach(), toy[f"step.normalized.{name}"]) < 1e-6, name


def test_written_out_gradients_equal_automatic_double_differentiation():
    """score() and its gradient by hand, against grad of the log-density and grad of that; other numbers than golden's."""
    generator = torch.Generator().manual_seed(5)
    network = ToyNetwork(24, generator=generator).train()
    with torch.no_grad():
        network.gain.fill_(0.7)
    x, sigma = torch.randn(40, 2, generator=generator), torch.rand(40, generator=generator) + 0.1
    upstream = torch.randn(40, 2, generator=generator)

    (network.score(x, sigma) * upstream).sum().backward()
    by_hand = {name: parameter.grad for name, parameter in network.named_parameters()}

    network.zero_grad()
    network.eval()  # the stored weights are normalized now, and must not be written again before backward()
    at = x.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(network.log_density(at, sigma).sum(), at, create_graph=True)
    assert relative(network.score(x, sigma).detach(), automatic.detach()) < 2e-6
    (automatic * upstream).sum().backward()
    for name, parameter in network.named_parameters():
        assert relative(by_hand[name], parameter.grad) < 1e-5, name
