"""Annealed layers and their guide: reversible steps, tighter bounds with more of them, and the right data."""

import copy
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_nflows as nf
from pyro_nflows import ELBO, SBC, VI, AutoDAIS
from pyro_nflows.layers import Hamiltonian, Langevin
from pyro_nflows.layers.annealed import MOST_PUSHED
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.numerics import normal_log_prob, standard_normal_log_prob
from pyro_nflows.testing import perturbed
from tests.guide_registry import moved
from tests.models import PAIRS, PAIRS_EVIDENCE, one_of_each, pairs
from tests.registry import banana

LAYERS = {
    "Hamiltonian": lambda **kwargs: Hamiltonian(2, banana, **kwargs),
    "trajectories": lambda **kwargs: Hamiltonian(2, banana, num_leapfrog=3, **kwargs),
    "Langevin": lambda **kwargs: Langevin(2, banana, **kwargs),
}
kinds = pytest.mark.parametrize("kind", LAYERS)
#: The banana's log normaliser: a standard normal, and one of variance 1/2.
BANANA_EVIDENCE = 0.5 * math.log(2 * math.pi) + 0.5 * math.log(math.pi)


# ---- the layers ---------------------------------------------------------------------------------------------


@kinds
def test_steps_are_undone_to_the_last_digit(kind: str) -> None:
    layer = perturbed(lambda: LAYERS[kind](num_steps=5, step_size=0.3))
    steps = layer.steps if isinstance(layer, Langevin) else layer
    x, noise = torch.randn(10, 2), torch.randn(10, layer.noise_dim)
    y, u = steps._advance(x, noise)
    torch.testing.assert_close(steps._retreat(y, u), (x, noise), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.inverse(y, u), (x, layer(x, noise)[1]), rtol=1e-10, atol=1e-10)


def test_the_extended_map_keeps_volume() -> None:
    layer = perturbed(lambda: Hamiltonian(2, banana, 3, step_size=0.4))

    def run(point: Tensor) -> Tensor:
        return torch.cat(layer._advance(point[:2], point[2:]))

    jacobian = torch.func.jacrev(run)(torch.randn(8))
    assert torch.linalg.slogdet(jacobian).logabsdet.abs() < 1e-8


def test_the_weight_of_a_langevin_step_is_the_ratio_of_its_kernels() -> None:
    layer = perturbed(lambda: Langevin(2, banana, 1, step_size=0.5))
    x, noise = torch.randn(20, 2), torch.randn(20, 2)
    y, log_weight = layer(x, noise)
    step = layer.steps._steps()[0].detach()

    def kernel(to: Tensor, start: Tensor) -> Tensor:
        slope = torch.func.grad(lambda z: banana(z).sum())(start)
        push = (0.5 * step * slope).clamp(-MOST_PUSHED, MOST_PUSHED)
        return normal_log_prob(to, start + step * push, step.abs().log())

    torch.testing.assert_close(log_weight, kernel(x, y) - kernel(y, x))


@kinds
def test_mean_weight_is_the_evidence_and_the_bound_tightens_with_steps(kind: str) -> None:
    bounds = []
    for num_steps in (2, 8, 32):
        layer = LAYERS[kind](num_steps=num_steps, step_size=0.4)
        x, noise = torch.randn(10_000, 2), torch.randn(10_000, layer.noise_dim)
        with torch.no_grad():
            y, log_weight = layer(x, noise)
        log_ratio = banana(y) + log_weight - standard_normal_log_prob(x)
        ratio = (log_ratio - BANANA_EVIDENCE).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / 100
        bounds.append(log_ratio.mean() - BANANA_EVIDENCE)
    assert bounds[0] < bounds[1] < bounds[2] < 0


def test_betas_increase_to_one() -> None:
    layer = perturbed(lambda: Hamiltonian(2, banana, 6))
    betas = layer.betas()
    assert (betas.diff() > 0).all()
    assert betas[-1].item() == pytest.approx(1)
    assert Hamiltonian(2, banana, 1).betas().tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Hamiltonian(2, banana, 0), ValueError, "Hamiltonian: num_steps must be a positive integer, got 0"),
        (lambda: Langevin(2, banana, 0), ValueError, "Langevin: num_steps must be a positive integer, got 0"),
        (lambda: Hamiltonian(2, banana, damping=1.0), ValueError, "a damping of at least 0 and below 1, got 1.0"),
        (lambda: Hamiltonian(2, 3.0), TypeError, "expected log_density to be a function, got float"),
        (
            lambda: Hamiltonian(2, lambda z: z)(torch.zeros(5, 2), torch.zeros(5, 8)),
            ValueError,
            r"expected log_density to take \(5, 2\) to \(5,\), got \(5, 2\); it should give one number for each row",
        ),
    ],
)
def test_a_mistake_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- the guide ----------------------------------------------------------------------------------------------


def normal(x: Tensor, sd: float = 0.5) -> None:
    """Posterior precision ``1 + n / sd^2``."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, sd).to_event(1), obs=x)


DATA = torch.tensor([[0.5, -1.0], [1.5, 0.0], [1.0, -0.2]], dtype=torch.float64)


def test_vi_finds_a_conjugate_posterior() -> None:
    vi = VI(AutoDAIS(pairs, num_steps=2), seed=0, num_steps=100, progress_bar=False, engine="eager").run()
    found = vi.diagnostics()
    assert found["elbo"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
    assert found["iwae"] == pytest.approx(PAIRS_EVIDENCE, abs=0.01)
    z = vi.get_samples(10_000)["z"]
    assert ((z.mean(0) - PAIRS / 2).abs() < 0.05).all()
    assert ((z.std(0) - 0.5**0.5).abs() < 0.05).all()


@torch.no_grad()
def drawn(guide: AutoDAIS, num: int) -> tuple[Tensor, Tensor]:
    posterior = guide.get_posterior()
    z = posterior.sample((num,))
    return z, posterior.log_prob(z)


@pytest.mark.parametrize("engine", ["eager", pytest.param("traced", marks=pytest.mark.slow), "compiled"])
def test_a_second_run_follows_the_new_data(engine: str) -> None:
    """By the gradient at the new data, while training and in the draws that are judged."""
    guide, elbos = AutoDAIS(normal, num_steps=2), []
    vi = VI(guide, seed=0, num_steps=4, progress_bar=False, engine=engine).run(DATA)
    with torch.no_grad():
        guide.layer.layer[0].step_size.fill_(0.5 / 0.3)  # type: ignore[index, operator, union-attr]
    found = vi.run(DATA + 3).diagnostics()
    for data in (DATA + 3, DATA):
        guide.receive((data,), {})
        log_joint = LogJoint(BoundModel(normal, (DATA + 3,)), guide.latents)
        z, log_q = drawn(guide, 4000)
        elbos.append(log_joint(z) - log_q)
    errors = [elbo.std() / 4000**0.5 + found["elbo_se"] for elbo in elbos]
    assert abs(elbos[0].mean() - found["elbo"]) < 5 * errors[0]
    assert abs(elbos[1].mean() - found["elbo"]) > 10 * errors[1]


def test_a_call_draws_at_its_own_arguments() -> None:
    guide = AutoDAIS(normal, num_steps=3)
    guide(DATA)
    moved(guide)
    draws = []
    for data in (DATA, DATA + 3, DATA):
        pyro.set_rng_seed(1)
        draws.append(guide(data)["z"])
    assert torch.equal(draws[0], draws[2])
    assert not torch.allclose(draws[0], draws[1])
    assert torch.isfinite(guide.get_posterior(DATA).log_prob(torch.zeros(7, 2), num_samples=3)).all()


def regression(x: Tensor, y: Tensor | None = None, scale: float | None = None) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal((x * weight).sum(-1), scale or 0.3), obs=y)


def test_where_data_are_left_out_draws_are_at_the_latest_that_were_there() -> None:
    """So that ``Predictive`` can be given new inputs alone: the posterior is that of the data."""
    guide, x, y = AutoDAIS(regression, num_steps=3), torch.randn(6, 2), torch.randn(6)
    guide(torch.randn(6, 2), torch.randn(6))
    moved(guide)
    guide(x, y)
    draws = []
    for arguments, more in (((x, y), {}), ((x + 1,), {}), ((torch.zeros(2, 2), None), {}), ((x,), {"y": y + 3})):
        pyro.set_rng_seed(1)
        draws.append(guide(*arguments, **more)["weight"])
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert not torch.allclose(draws[0], draws[3])
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        guide.receive((x,), {})
        assert torch.equal(torch.get_rng_state(), before)


def test_medians_are_at_the_arguments() -> None:
    guide, x, y = AutoDAIS(regression, num_steps=3), torch.randn(6, 2), torch.randn(6)
    guide(x, y)
    moved(guide)
    first, other = guide.median(x, y)["weight"], guide.median(x, y + 3)["weight"]
    assert not torch.allclose(first, other)
    torch.testing.assert_close(guide.median(x, y)["weight"], first)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_is_refused_in_words() -> None:
    guide = AutoDAIS(regression, num_steps=1)
    guide(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"AutoDAIS draws by the gradient.*Use Trace_ELBO in place"):
        torch.jit.trace_module(guide, {"call": (torch.ones(3, 2), torch.ones(3))}, check_trace=False)


def test_recorded_gradients_follow_the_data_too() -> None:
    guide = AutoDAIS(normal, num_steps=2)
    guide(DATA)
    moved(guide)
    plain, recorded = ELBO(8), ELBO(8, compile=True)
    for data in (DATA, DATA + 3):
        losses = []
        for elbo in (plain, recorded):
            pyro.set_rng_seed(2)
            losses.append(elbo.loss_and_grads(normal, guide, data))
        assert losses[1] == pytest.approx(losses[0])


@pytest.mark.slow
def test_svi_trains_it_with_pyros_bound_and_ours() -> None:
    def bent() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("banana", banana(z) - dist.Normal(0.0, 3.0).log_prob(z).sum(-1))

    for loss in (Trace_ELBO(num_particles=8, vectorize_particles=True), ELBO(8)):
        pyro.clear_param_store()
        guide = AutoDAIS(bent, num_steps=2, init_scale=1.0)
        svi = SVI(bent, guide, ClippedAdam({"lr": 6e-2}), loss)
        before = ELBO(2000).loss(bent, guide)
        for _ in range(120):
            svi.step()
        assert ELBO(2000).loss(bent, guide) < before - 0.05
        assert guide.layer is not None
        assert guide.plain_layer()[0].step_size.abs() > 0.05


def test_gradients_reach_the_models_own_parameters_through_the_steps() -> None:
    def learned() -> None:
        scale = pyro.param("scale", torch.tensor(2.0))
        pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))

    guide = AutoDAIS(learned, num_steps=2)
    guide()
    moved(guide)
    guide.sample_latent().square().sum().backward()
    scale = pyro.param("scale")
    assert scale.unconstrained().grad.abs() > 0  # type: ignore[attr-defined]
    vi = VI(AutoDAIS(learned, num_steps=1), seed=0, num_steps=40, progress_bar=False, engine="traced").run()
    assert math.isfinite(vi.diagnostics()["elbo"])


def test_a_langevin_guide_has_no_damping() -> None:
    guide = AutoDAIS(pairs, num_steps=3, damping=0.0, base="diagonal")
    guide()
    assert not any("angle" in name for name, _ in guide.named_parameters())
    assert type(guide.layer.layer[1]).__name__ == "LocScale"  # type: ignore[index]


# ---- copies -------------------------------------------------------------------------------------------------


def test_copies_attend_to_their_own_data() -> None:
    guide = AutoDAIS(normal, num_steps=2)
    guide(DATA)
    twin = copy.deepcopy(moved(guide))
    twin(DATA + 3)
    assert guide._bound is not None
    assert guide._bound.call == ((DATA,), {})
    density = twin.layer.layer[0].log_density  # type: ignore[index]
    assert density.guide is twin
    assert density.end is twin.layer.layer[1]  # type: ignore[index]


def test_a_layer_on_other_data_draws_by_them_and_leaves_the_guides_own_alone() -> None:
    guide = AutoDAIS(normal, num_steps=2)
    guide(DATA)
    moved(guide)
    layer = guide.layer
    assert layer is not None
    joint = LogJoint(BoundModel(normal, (DATA + 3,)), guide.latents)
    other = guide.layer_on(joint)
    assert all(a is b for a, b in zip(other.parameters(), layer.parameters(), strict=True))
    x, noise = torch.randn(50, layer.input_dim), torch.randn(50, layer.noise_dim)
    here, there = layer(x, noise)[0], other(x, noise)[0]
    assert not torch.allclose(here, there)
    guide.receive((DATA + 3,), {})
    torch.testing.assert_close(layer(x, noise)[0], there)
    guide.receive((DATA,), {})
    torch.testing.assert_close(layer(x, noise)[0], here)
    torch.testing.assert_close(other(x, noise)[0], there)


def test_an_unpickled_guide_keeps_its_state_for_a_new_one() -> None:
    guide = AutoDAIS(one_of_each, num_steps=2)
    guide()
    moved(guide)
    again = pickle.loads(pickle.dumps(guide))
    pyro.clear_param_store()
    with pytest.raises(RuntimeError, match=r"has no model.*load_state_dict\(\) into it"):
        again()
    fresh = AutoDAIS(one_of_each, num_steps=2)
    fresh.load_state_dict(again.state_dict())
    with pytest.raises(RuntimeError, match=r"call guide\(\*args\) once"):
        fresh.get_posterior()
    fresh()
    draws = []
    for one in (guide, fresh):
        pyro.set_rng_seed(5)
        draws.append(one.get_posterior().sample((3,)))
    assert torch.equal(*draws)
    layer = pickle.loads(pickle.dumps(copy.deepcopy(guide.layer)))
    with pytest.raises(RuntimeError, match="unpickled without the guide"):
        layer(torch.zeros(1, guide.latent_dim), torch.zeros(1, 2 * guide.latent_dim))


# ---- what is refused ----------------------------------------------------------------------------------------


def subsampled(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def noisy() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("noise", torch.randn(()))


def test_random_densities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"site 'x' is inside plate 'data', which is subsampled \(2 of 4\)"):
        AutoDAIS(subsampled)(PAIRS)
    with pytest.raises(ValueError, match=r"is random given its latents \(it was .*, then .*\): it subsamples"):
        AutoDAIS(noisy)()


def test_guide_lists_and_sbc_are_refused() -> None:
    guides = AutoGuideList(pairs)
    guides.append(AutoDAIS(pairs))
    with pytest.raises(ValueError, match="cannot stand in an AutoGuideList; use it alone, or another guide"):
        guides()
    with pytest.raises(ValueError, match="SBC: AutoDAIS draws with the model's gradient at one data set"):
        SBC(AutoDAIS(normal), num_simulations=4).run(DATA)


def test_another_base_is_refused() -> None:
    with pytest.raises(ValueError, match=r"AutoDAIS: base must be one of \['full_rank', 'diagonal'\], got 'iaf'"):
        nf.AutoDAIS(pairs, base="iaf")


def test_weights_are_right_where_pushes_are_cut() -> None:
    """The integral of target and backward kernel over all starts is one: volume is kept."""
    scale = 0.2
    target = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), scale)
    layer = Hamiltonian(1, lambda z: target.log_prob(z[..., 0]), num_steps=1, step_size=1.0).double()
    grid = torch.linspace(-16, 16, 1601, dtype=torch.float64)
    x, v = (part.reshape(-1, 1) for part in torch.meshgrid(grid, grid, indexing="ij"))
    with torch.no_grad():
        y, log_weight = layer(x, v)
        whole = (target.log_prob(y[:, 0]) + standard_normal_log_prob(v) + log_weight).exp().sum() * (
            grid[1] - grid[0]
        ) ** 2
    assert abs(whole - 1) < 1e-3
    free = x + v - 0.5 * x / scale**2  # without a bound
    assert float((free - y).abs().max()) > 100


def test_trajectories_end_where_numbers_do_not() -> None:
    steep = Hamiltonian(2, lambda z: -1e6 * (z**4).sum(-1), num_steps=8, step_size=1.0)
    x, noise = torch.randn(100, 2), torch.randn(100, steep.noise_dim)
    y, log_weight = steep(x, noise)
    assert y.abs().max() < 100
    assert log_weight.isfinite().all()
    assert (steep.inverse(y, steep._advance(x, noise)[1])[0] - x).abs().max() < 1e-3
