"""Guides in a user's own ``SVI`` loop, at the learning rates of Pyro's tutorials."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.optim import Adam, ClippedAdam
from torch import Tensor

import pyro_nflows as nf
from benchmarks.svi_models import MODELS
from pyro_nflows.layers import Coupling, Planar, Rescaled, TriangularAffine
from pyro_nflows.objectives.base import Gradient
from pyro_nflows.objectives.draws import Draws, base_noise
from tests.guide_registry import Case, cases, exact_pairs, moved
from tests.models import pairs


def train(model: Callable[..., Any], guide: Any, optimiser: Any, loss: Any, num_steps: int) -> list[float]:
    svi = SVI(model, guide, optimiser, loss)
    return [svi.step() for _ in range(num_steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", list(MODELS))
def test_a_model_runs_in_either_precision(model: str, dtype: torch.dtype) -> None:
    """Whatever that of its data, which are made when the models are imported."""
    torch.set_default_dtype(dtype)
    try:
        assert poutine.trace(MODELS[model]).get_trace().log_prob_sum().isfinite()
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize(
    "guide", [nf.AutoFlow, nf.AutoIAF, nf.AutoPlanar, pytest.param(nf.AutoCIF, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("model", ["cars", "schools_centered"])
def test_a_large_step_size_breaks_no_guide(guide: Any, model: str) -> None:
    made = guide(MODELS[model])
    losses = train(MODELS[model], made, ClippedAdam({"lr": 0.05}), Trace_ELBO(), 80)
    assert all(parameter.isfinite().all() for parameter in made.parameters())
    assert sum(losses[-20:]) < sum(losses[:20])


@pytest.mark.slow
@cases()
@pytest.mark.parametrize("rate", [0.05, 0.01])
@pytest.mark.parametrize("model", list(MODELS))
def test_no_step_size_breaks_any_guide_on_any_model(case: Case, model: str, rate: float) -> None:
    made = case.guide(MODELS[model])
    train(MODELS[model], made, Adam({"lr": rate}), Trace_ELBO(), 500)
    assert all(parameter.isfinite().all() for parameter in made.parameters())


def test_a_loop_may_begin_where_a_quick_fit_has_put_the_guide() -> None:
    """This posterior is eighty of its standard deviations from where a guide begins."""
    model, log_evidence = MODELS["trend"], -45.285  # by importance weights; the bound of the best Gaussian is -45.30
    guide = nf.AutoFlow(model)
    nf.VI(guide, effort="quick", seed=0, progress_bar=False).run()
    torch.manual_seed(0)
    train(model, guide, guide.optimizer(0.01, 200), nf.ELBO(16), 200)
    assert nf.ELBO(2000).loss(model, guide) == pytest.approx(-log_evidence, abs=0.05)


@pytest.mark.parametrize(
    "guide",
    [
        nf.AutoFlow,
        pytest.param(nf.AutoIAF, marks=pytest.mark.slow),
        pytest.param(nf.AutoRealNVP, marks=pytest.mark.slow),
        pytest.param(nf.AutoCIF, marks=pytest.mark.slow),
    ],
)
def test_a_conjugate_tree_is_fitted_at_the_tutorials_step_size(guide: Any) -> None:
    data = torch.randn(2)

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2):
            y = pyro.sample("y", dist.Normal(x, 1.0))
            pyro.sample("obs", dist.Normal(y, 1.0), obs=data)

    made = guide(model)
    loss = Trace_ELBO(num_particles=100, vectorize_particles=True)
    train(model, made, ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / 500)}), loss, 500)
    with torch.no_grad(), pyro.plate("particles", 20_000, dim=-2):
        draws = made()
    got = torch.stack([draws["x"].std(), *draws["y"].reshape(20_000, 2).std(0)])
    precision = torch.tensor([[3.0, -1, -1], [-1, 2, 0], [-1, 0, 2]])
    right = torch.linalg.inv(precision).diagonal().sqrt()
    assert ((got / right - 1).abs() < 0.06).all()


@cases(needs_model=False, bijective=True)
def test_pyros_elbo_gets_the_path_gradient_which_vanishes_where_the_guide_is_exact(case: Case) -> None:
    guide = exact_pairs(case)
    for loss in (Trace_ELBO(), TraceGraph_ELBO()):
        guide.zero_grad()
        loss.loss_and_grads(pairs, guide)
        layer = guide.layer
        assert layer is not None
        end = [parameter.grad for name, parameter in layer.named_parameters() if ".loc" in name]
        if isinstance(loss, Trace_ELBO):
            assert all(grad is None or grad.abs().max() < 1e-6 for grad in end)


@cases(needs_model=False, bijective=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_has_the_path_gradient_too(case: Case) -> None:
    """``torch.jit`` cannot hold gradients within a trace: it is that of the inverse at parameters without one."""
    if case.guide is nf.AutoResidual:
        pytest.skip("its inverse is a search, many times as long as the draw")
    guide = case(MODELS["tree"])
    guide()
    moved(guide)
    gradients = []
    for loss in (Trace_ELBO(max_plate_nesting=1), JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)):
        for _ in range(2):  # the first call makes the trace
            guide.zero_grad()
            pyro.set_rng_seed(3)
            loss.loss_and_grads(MODELS["tree"], guide)
        gradients.append([parameter.grad for parameter in guide.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-8)


def test_the_path_gradient_is_right_in_the_mean() -> None:
    guide = nf.AutoRealNVP(pairs, num_layers=2, hidden_dims=(4,), init_scale=0.4)
    guide()
    assert guide.layer is not None
    gradients = []
    for path in (True, False):
        guide.zero_grad()
        pyro.set_rng_seed(0)
        flow = nf.FlowDistribution(guide.layer, path_gradient=path, batch_shape=torch.Size((20_000,)))
        z = flow.rsample()
        parts = flow.score_parts(z)
        (parts.entropy_term + 0.5 * z.square().sum(-1)).mean().backward()  # type: ignore[no-untyped-call]
        assert torch.equal(parts.entropy_term.detach(), parts.log_prob.detach())
        gradients.append(torch.cat([p.grad.reshape(-1) for p in guide.layer.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 0.05


def test_renyis_gradient_keeps_the_score() -> None:
    guide = nf.AutoRealNVP(pairs_of_one, num_layers=2, hidden_dims=(4,), init_scale=0.4)
    guide()
    pyro.set_rng_seed(0)
    guide.zero_grad()
    RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True, max_plate_nesting=0).loss_and_grads(
        pairs_of_one, guide
    )
    assert guide.layer is not None
    found = [p.grad.clone() for p in guide.layer.parameters() if p.grad is not None]
    pyro.set_rng_seed(0)
    guide.zero_grad()
    flow = nf.FlowDistribution(guide.layer, batch_shape=torch.Size((4,)))
    z = flow.rsample()
    log_weight = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - flow.log_prob(z)
    (-log_weight.logsumexp(0)).backward()
    right = [p.grad for p in guide.layer.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, right))


def pairs_of_one() -> None:
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize("gradient", list(Gradient))
def test_a_draw_without_weight_has_no_part_in_the_gradient(gradient: Gradient) -> None:
    layer = Coupling(2, hidden_dims=(4,))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    noise = base_noise(layer, 8)

    def gradients(bad: Callable[[Tensor], Tensor], rows: Tensor) -> list[Tensor]:
        def log_joint(z: Tensor) -> Tensor:
            return bad(-0.5 * (z - 0.3).square().sum(-1))

        layer.zero_grad()
        objective = nf.IWAE(8)
        draws = objective.draws(log_joint, layer, rows, gradient)
        objective.surrogate(draws, gradient).backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in layer.parameters()]

    right = gradients(lambda log_p: log_p, noise[1:])
    for value in (-torch.inf, torch.nan):
        found = gradients(lambda log_p, v=value: torch.cat([v * log_p[:1].square(), log_p[1:]]), noise)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(found, right))


def test_an_iwae_whose_draws_all_have_no_weight_moves_nothing() -> None:
    draws = Draws(torch.zeros(3, 1), torch.full((3,), -torch.inf), torch.zeros(3, requires_grad=True))
    assert nf.IWAE(3).surrogate(draws, Gradient.TOTAL).item() == 0


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    layer = Rescaled(Planar(2))
    layer(torch.randn(4, 2))[0].sum().mul(torch.inf).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


def test_a_step_moves_a_network_by_less_than_the_end_and_wide_rows_by_less_still() -> None:
    layer = Rescaled(nf.flows.realnvp(100), end=None)
    before = dict(layer.plain().named_parameters())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.01)
    for name, parameter in layer.plain().named_parameters():
        moved = (parameter - before[name]).detach()
        assert moved.abs().max() <= 0.03 * 0.01 + 1e-9
        if name.endswith("skip"):  # fifty inputs
            assert torch.allclose(moved, torch.full_like(moved, 0.03 * 0.01 * 32 / 50))
    end = Rescaled(nf.layers.Chain(Planar(64), TriangularAffine(64)), end="layers.1")
    assert end.factors["layers.1.loc"] == 1
    assert end.factors["layers.1.lower"] == 0.5


@cases()
def test_what_was_trained_elsewhere_is_stored_and_given_back_as_it_was(case: Case) -> None:
    guide = case(MODELS["tree"])
    guide()
    layer = guide.plain_layer()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1)
    guide.adopt(layer)
    again = guide.plain_layer()
    assert all(torch.allclose(a, b) for a, b in zip(layer.parameters(), again.parameters()))
