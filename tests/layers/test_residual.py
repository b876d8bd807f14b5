"""Residual layers: contractions whatever their parameters, determinants that are right on average, an inverse."""

import pytest
import torch

import pyro_nflows as nf
from pyro_nflows.layers import LogDet, Residual
from pyro_nflows.layers.base import Exactness, Inverse
from pyro_nflows.nets.contraction import Contraction, spectral_bound
from pyro_nflows.numerics import largest
from pyro_nflows.testing import perturbed


@pytest.mark.parametrize("shape", [(32, 32), (3, 50), (50, 1), (1, 1)])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_the_bound_of_a_spectral_norm_is_above_it_and_close(shape, size):
    matrix = size * torch.randn(shape)
    ratio = spectral_bound(matrix) / torch.linalg.matrix_norm(matrix, 2)
    assert 1 - 1e-9 < ratio < 1.03


def test_the_bound_is_loosest_for_rotations_and_fine_at_zero():
    rotation = torch.linalg.qr(torch.randn(32, 32)).Q
    assert spectral_bound(rotation).item() == pytest.approx(32 ** (1 / 128))
    zero = torch.zeros(3, 2, requires_grad=True)
    spectral_bound(zero).backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_a_contraction_contracts_whatever_its_parameters(scale):
    net = Contraction(4, (16, 16), 0.8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    jacobian = net.linearized(3 * torch.randn(500, 4)).jacobian()
    assert torch.linalg.matrix_norm(jacobian, 2).max() < 0.8


def test_a_contraction_knows_its_jacobian():
    net = perturbed(lambda: Residual(4, hidden_dims=(7, 5))).net
    x, u = torch.randn(4), torch.randn(4)
    expected = torch.func.jacrev(net)(x)
    assert torch.allclose(net.linearized(x).jacobian(), expected)
    assert torch.allclose(net.linearized(x).pull(u), u @ expected)


@pytest.mark.parametrize("log_det", ["roulette", "series"])
def test_the_estimates_gradient_is_right_on_average(log_det):
    options = {"hidden_dims": (5,), "lipschitz": 0.6}
    layer = perturbed(lambda: Residual(2, log_det=log_det, num_terms=2 if log_det == "roulette" else 40, **options))
    exact = Residual(2, **options)
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2)

    def gradient(of, noise=None):
        params = {name: p.detach() for name, p in of.named_parameters()}

        def log_weight(params):
            return torch.func.functional_call(of, params, (x, noise))[1]

        return torch.cat([g.flatten() for g in torch.func.grad(log_weight)(params).values()])

    noise = torch.randn(4000, layer.noise_dim)
    draws = torch.func.vmap(lambda eps: gradient(layer, eps))(noise)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - gradient(exact)).abs() <= 5 * error + 1e-9).all()


def test_rows_of_a_roulette_stop_by_themselves():
    """The number of terms is a row's own, and how many are computed for others changes nothing."""
    layer = perturbed(lambda: Residual(3, lipschitz=0.7, log_det="roulette"))
    x, noise = torch.randn(200, 3), torch.randn(200, 4)
    log_weight = layer(x, noise)[1]
    assert torch.allclose(log_weight, torch.stack([layer(a, b)[1] for a, b in zip(x, noise)]))
    assert torch.allclose(log_weight, torch.func.vmap(layer)(x, noise)[1])


def test_a_roulette_that_starts_later_varies_less():
    noise, draws = torch.cat([torch.ones(2000, 2), torch.randn(2000, 1)], 1), []
    for num_terms in (1, 8):
        torch.manual_seed(0)
        layer = perturbed(lambda num=num_terms: Residual(2, lipschitz=0.6, log_det="roulette", num_terms=num))
        draws.append(layer(torch.ones(2000, 2), noise)[1])
    assert 0 < draws[1].std() < 0.5 * draws[0].std()


@pytest.mark.parametrize("lipschitz", [0.3, 0.9, 0.97])
@pytest.mark.parametrize("log_det", list(LogDet))
def test_the_inverse_reaches_its_tolerance(lipschitz, log_det):
    layer = perturbed(lambda: Residual(5, lipschitz=lipschitz, log_det=log_det), 5.0)
    x = 3 * torch.randn(100, 5)
    y, _ = layer(x, torch.randn(100, layer.noise_dim))
    with torch.no_grad():
        assert torch.allclose(layer.inverse(y)[0], x, atol=1e-7)


def test_single_precision_inverts_to_single_precision():
    layer = perturbed(lambda: Residual(5)).float()
    x = torch.randn(100, 5, dtype=torch.float32)
    assert torch.allclose(layer.inverse(layer(x)[0])[0], x, atol=1e-5)


def test_estimated_weights_are_graded_and_refused_where_they_would_be_wrong():
    layer = Residual(2, log_det="roulette")
    assert (Residual(2).exactness, layer.exactness) == (Exactness.EXACT, Exactness.UNBIASED)
    flow = nf.FlowDistribution(Inverse(layer))
    assert flow.log_prob(torch.randn(4, 2)).shape == (4,)
    with pytest.raises(NotImplementedError, match="unbiased in log space only"):
        flow.log_prob(torch.randn(4, 2), num_samples=5)
    with pytest.raises(NotImplementedError, match="use gradient='total'"):
        layer.scored(torch.randn(4, 2), torch.randn(4, 3), torch.randn(4, 2), torch.zeros(4, 0))


def test_the_largest_number_is_read_where_it_can_be():
    assert largest(torch.tensor([2.0, 5.0]), 9) == 5
    assert largest(torch.tensor([2.0, 50.0]), 9) == 9
    seen = []
    torch.func.vmap(lambda x: (seen.append(largest(x, 9)), x)[1])(torch.ones(3))
    assert seen == [9]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Residual(0), "Residual: input_dim must be a positive integer, got 0"),
        (lambda: Residual(2, lipschitz=1.0), "Contraction: lipschitz must be between 0 and 1, got 1.0"),
        (lambda: Residual(2, keep=1.0), "Residual: keep is a probability between 0 and 1, got 1.0"),
        (
            lambda: Residual(2, log_det="trace"),
            r"log_det must be one of \['exact', 'roulette', 'series'\], got 'trace'",
        ),
        (lambda: Residual(2, num_terms=0), "Residual: num_terms must be a positive integer, got 0"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
