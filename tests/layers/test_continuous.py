"""Continuous layers: the field's Jacobian, the trace that is right on average, solvers that agree."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_nflows as nf
from pyro_nflows import VI, AutoCNF
from pyro_nflows.layers import Continuous, Solver, Trace
from pyro_nflows.layers.base import Exactness, Layer
from pyro_nflows.nets.field import Dynamics
from pyro_nflows.testing import perturbed
from tests.models import PAIRS_EVIDENCE, pairs


def adaptive(**kwargs: Any) -> Continuous:
    pytest.importorskip("torchdiffeq")
    return Continuous(2, hidden_dims=(8,), solver="dopri5", **kwargs)


@pytest.mark.parametrize("hidden_dims", [(), (5,), (6, 4)])
def test_a_field_knows_its_jacobian(hidden_dims: tuple[int, ...]) -> None:
    net, time, x, columns = (
        Dynamics(3, hidden_dims).double(),
        torch.tensor(0.3),
        torch.randn(4, 3),
        torch.randn(4, 3, 2),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    value, pushed = net(time, x, columns)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: net(time, x, columns[0])[0]))(x)
    torch.testing.assert_close(pushed, jacobian @ columns)
    assert not torch.allclose(value, net(time + 0.5, x, columns)[0])


def test_the_trace_of_random_signs_is_right_on_average() -> None:
    layer = perturbed(lambda: Continuous(3, hidden_dims=(8,), trace="hutchinson"), 1.0)
    exact = Continuous(3, hidden_dims=(8,))
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(3)
    with torch.no_grad():
        y, draws = layer(x.expand(4000, 3), torch.randn(4000, 3))
        expected_y, expected = exact(x)
    torch.testing.assert_close(y, expected_y.expand(4000, 3))
    assert draws.std() > 0.01
    assert abs(draws.mean() - expected) < 5 * draws.std() / 4000**0.5


def test_more_steps_make_the_weight_that_of_the_jacobian() -> None:
    """Of order four: twice the steps, a sixteenth of the error."""
    errors = []
    for num_steps in (6, 12, 24):
        torch.manual_seed(0)
        layer = perturbed(lambda num_steps=num_steps: Continuous(2, hidden_dims=(6, 6), num_steps=num_steps), 1.0)
        x = torch.randn(20, 2)
        y, log_weight = layer(x)
        jacobian, _ = layer.jacobian(x)
        off = torch.linalg.slogdet(jacobian).logabsdet - log_weight
        errors.append(torch.stack([off.abs().max(), (layer.inverse(y)[0] - x).abs().max()]))
    assert (errors[0] > 8 * errors[1]).all()
    assert (errors[1] > 8 * errors[2]).all()
    assert (errors[2] < 1e-5).all()


def test_a_linear_field_is_a_matrix_exponential() -> None:
    layer = perturbed(lambda: Continuous(3, hidden_dims=(4,), num_steps=40), 1.0)
    with torch.no_grad():
        layer.net.head.zero_()
        layer.net.bias.zero_()
    x = torch.randn(5, 3)
    y, log_weight = layer(x)
    matrix = layer.net.skip
    assert isinstance(matrix, Tensor)
    torch.testing.assert_close(y, x @ torch.linalg.matrix_exp(matrix).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_weight, matrix.trace().expand(5), rtol=1e-6, atol=1e-6)


def gradients(layer: Layer, x: Tensor) -> Tensor:
    y, log_weight = layer(x)
    loss = y.square().sum() + log_weight.sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layer.parameters()))])


def test_adaptive_steps_agree_with_small_ones() -> None:
    layer = perturbed(lambda: adaptive(tolerance=1e-8))
    fixed = Continuous(2, hidden_dims=(8,), num_steps=50)
    fixed.load_state_dict(layer.state_dict())
    x = torch.randn(10, 2)
    pair = layer(x)
    torch.testing.assert_close(pair, fixed(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.inverse(pair[0]), (x, pair[1]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(layer, x), gradients(fixed, x), rtol=1e-5, atol=1e-5)


def test_adaptive_steps_take_a_probe_and_train_eagerly() -> None:
    layer = perturbed(lambda: adaptive(trace="hutchinson"))
    y, log_weight = layer(torch.randn(10, 2), torch.randn(10, 2))
    assert (y.shape, log_weight.shape) == ((10, 2), (10,))
    guide = nf.AutoFlow(pairs, lambda dim: nf.flows.cnf(dim, hidden_dims=(4,), solver="dopri5"))
    vi = VI(guide, seed=0, num_steps=2, progress_bar=False, engine="eager").run()
    assert vi.diagnostics()["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.05)


def test_torchdiffeq_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    assert Continuous(2)(torch.zeros(3, 2))[1].tolist() == [0, 0, 0]
    with pytest.raises(ImportError, match=r"needs torchdiffeq.*pip install 'pyro-nflows\[ode\]', or use solver='rk4'"):
        Continuous(2, solver="dopri5")


def test_grades() -> None:
    exact, estimated = Continuous(2), Continuous(2, trace=Trace.HUTCHINSON, solver=Solver.RK4)
    assert (exact.exactness, exact.noise_dim) == (Exactness.EXACT, 0)
    assert (estimated.exactness, estimated.noise_dim) == (Exactness.UNBIASED, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Continuous(0), "Continuous: input_dim must be a positive integer, got 0"),
        (lambda: Continuous(2, num_steps=0), "Continuous: num_steps must be a positive integer, got 0"),
        (lambda: Continuous(2, tolerance=0.0), "Continuous: tolerance must be positive, got 0.0"),
        (lambda: Continuous(2, trace="roulette"), r"trace must be one of \['exact', 'hutchinson'\], got 'roulette'"),
        (lambda: Continuous(2, solver="euler"), r"solver must be one of \['rk4', 'dopri5'\], got 'euler'"),
        (lambda: nf.flows.cnf(2, 0), "cnf: num_layers must be a positive integer, got 0"),
    ],
)
def test_a_mistake_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_vi_finds_a_conjugate_posterior() -> None:
    guide = AutoCNF(pairs, hidden_dims=(4,), num_steps=2)
    vi = VI(guide, seed=0, num_steps=60, progress_bar=False, engine="traced").run()
    assert vi.diagnostics()["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
