"""Supports that move and that torch wraps, masked latents, and Pyro's objectives on them; against quadrature."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import transforms

from pyro_nflows import ELBO, IWAE, VI, AutoFlow
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization
from pyro_nflows.model.supports import bijection
from tests.bounds import assert_same_bounds

NUM = 20000


def grid(num: int, low: float = -12.0, high: float = 12.0) -> tuple[Tensor, float]:
    step = (high - low) / num
    return low + step * (torch.arange(num) + 0.5), step


def triangle(y: Tensor) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1.0 - a))
    pyro.sample("y", dist.Normal(a + b, 0.1), obs=y)


Y = torch.tensor(0.3)


def evidence_of_triangle(num: int = 2000) -> float:
    a, step = grid(num, 0.0, 1.0)
    a, b = torch.meshgrid(a, a, indexing="ij")
    log_p = dist.Normal(a + b, 0.1).log_prob(Y) - (1 - a).log()
    return math.log(float(torch.where(a + b < 1, log_p.exp(), 0.0).sum()) * step**2)


def set_up(model: Callable[..., Any], *args: Any, **options: Any) -> tuple[AutoFlow, LogJoint]:
    guide = AutoFlow(model, **{"init_scale": 0.7, **options})
    guide(*args)
    joint = LogJoint(BoundModel(model, args), guide.latents)
    joint.prepare()
    return guide, joint


def test_the_density_on_a_support_that_moves_integrates_to_the_evidence() -> None:
    guide, joint = set_up(triangle, Y)
    assert guide.latents.moving == {"b"}
    assert joint.how is Vectorization.VMAP
    z, step = grid(160)
    rows = torch.cartesian_prod(z, z)
    log_evidence = joint(rows).logsumexp(0) + 2 * math.log(step)
    assert float(log_evidence) == pytest.approx(evidence_of_triangle(), abs=2e-3)


def test_vmap_the_particle_plate_and_the_loop_agree_on_a_support_that_moves() -> None:
    _, joint = set_up(triangle, Y)
    z = torch.randn(6, 2)
    expected = joint._by_loop(z)
    torch.testing.assert_close(joint._by_vmap(z), expected)
    torch.testing.assert_close(joint._by_plate(z), expected)


def test_values_on_a_support_that_moves_and_back() -> None:
    guide, _ = set_up(triangle, Y)
    z = torch.randn(7, 5, 2)
    values = guide.constrain(z.flatten(0, 1), Y)
    a, b = z.flatten(0, 1).sigmoid().T
    torch.testing.assert_close(values["a"], a)
    torch.testing.assert_close(values["b"], b * (1 - a))
    back, log_det = guide.unconstrain({name: value.view(7, 5) for name, value in values.items()}, Y)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det.flatten(), (a * (1 - a) * b * (1 - b) * (1 - a)).log())


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_objectives_have_the_same_bound_where_a_support_moves(kind: Any, vectorize: bool) -> None:
    guide, _ = set_up(triangle, Y, init_scale=0.3)
    if not vectorize:
        assert_same_bounds(ELBO(1), kind(), triangle, guide, Y)
        return
    loss = kind(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
    assert loss.loss(triangle, guide, Y) == pytest.approx(ELBO(4000).loss(triangle, guide, Y), abs=0.1)


def test_the_guides_density_on_a_support_that_moves_integrates_to_one() -> None:
    guide, _ = set_up(triangle, Y)
    a, step = grid(150, 0.0, 1.0)
    a, b = torch.meshgrid(a, a, indexing="ij")
    inside = a + b < 1
    density = guide.log_prob({"a": a[inside], "b": b[inside]}).exp()
    assert float(density.detach().sum()) * step**2 == pytest.approx(1.0, abs=0.01)


def test_quantiles_where_a_support_moves_are_those_of_draws() -> None:
    guide, _ = set_up(triangle, Y)
    with torch.no_grad():
        draws = torch.stack([guide(Y)["b"] for _ in range(200)])
    share = (draws < guide.median(Y)["b"]).double().mean()
    assert abs(float(share) - 0.5) < 5 * 0.5 / math.sqrt(200)


def test_a_support_follows_the_arguments() -> None:
    def model(high: Any) -> None:
        pyro.sample("z", dist.Uniform(0.0, high))

    guide, joint = set_up(model, torch.tensor(1.0))
    for high in (1.0, 2.0, 5.0):
        x = torch.randn(9, 1)
        torch.testing.assert_close(guide.constrain(x, torch.tensor(high))["z"], high * x[:, 0].sigmoid())
        expected = (x.sigmoid() * (1 - x.sigmoid())).log()[:, 0]
        torch.testing.assert_close(joint.on(joint.bound.with_call((torch.tensor(high),), {}))(x), expected)


def test_values_without_arguments_are_of_the_latest_call() -> None:
    guide, _ = set_up(triangle, Y)
    assert set(guide.constrain(torch.zeros(1, 2))) == {"a", "b"}
    guide._bound = None
    with pytest.raises(RuntimeError, match=r"support or the prior of latent site 'b' depends.*pass the arguments"):
        guide.constrain(torch.zeros(1, 2))


# ---- supports that torch wraps ------------------------------------------------------------------------------


def mixed() -> Any:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-2.0, 2.0]), 0.5))


PRIORS = {
    "mixture": mixed,
    "mixture of uniforms": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Uniform(torch.ones(2), 3.0 * torch.ones(2))
    ),
    "masked mixture": lambda: mixed().mask(True),
    "shifted and scaled beta": lambda: dist.TransformedDistribution(
        dist.Beta(2.0, 3.0), transforms.AffineTransform(4.0, 3.0)
    ),
    "shifted half-normal": lambda: dist.TransformedDistribution(
        dist.HalfNormal(1.0), transforms.AffineTransform(-1.0, 2.0)
    ),
    "pareto": lambda: dist.Pareto(torch.tensor(2.0), 3.0),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_with_a_wrapped_support_integrates_to_one(prior: str, dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        _, joint = set_up(lambda: pyro.sample("z", PRIORS[prior]()))
        z, step = grid(4000)
        log_total = joint(z[:, None]).logsumexp(0) + math.log(step)
    finally:
        torch.set_default_dtype(before)
    assert float(log_total) == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_mixtures_in_plates_and_events(batch: tuple[int, ...]) -> None:
    parts = dist.Uniform(torch.zeros(2, 4), 3.0 * torch.ones(2, 4)).to_event(1)
    fn = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts).expand(batch)
    transform = bijection(fn)
    x = torch.randn(*batch, 4)
    torch.testing.assert_close(transform(x), 3 * x.sigmoid())
    torch.testing.assert_close(transform.inv(transform(x)), x)


# ---- masked latents -----------------------------------------------------------------------------------------

DATA = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [8, -1, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)


def partly() -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("col", 3, dim=-1), pyro.plate("row", 4, dim=-2):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=DATA, obs_mask=MASK)


def partly_by_hand(mu: Tensor, x: Tensor) -> Tensor:
    """Entries that are observed, then every unobserved site with its prior."""
    log_p = dist.Normal(0.0, 1.0).log_prob(mu).sum(-1)
    seen = torch.where(MASK, dist.Normal(mu[:, None], 1.0).log_prob(DATA), 0.0).sum((-1, -2))
    return log_p + seen + dist.Normal(mu[:, None], 1.0).log_prob(x).sum((-1, -2))


def test_masked_entries_count_with_their_prior() -> None:
    guide, joint = set_up(partly, centering=None)
    assert guide.latents.filled == {"x_unobserved": False}
    z = torch.randn(5, guide.latent_dim)
    parts = guide.latents.unpack(z)
    torch.testing.assert_close(joint(z), partly_by_hand(parts["mu"], parts["x_unobserved"]))


def padded() -> None:
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("t", 3, dim=-1), pyro.plate("seq", 4, dim=-2), poutine.mask(mask=MASK):
        z = pyro.sample("z", dist.Normal(0.0, s))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_objectives_have_the_same_bound_where_latents_are_masked(kind: Any) -> None:
    guide, _ = set_up(padded)
    loss = kind(num_particles=1000, vectorize_particles=True, max_plate_nesting=2)
    assert loss.loss(padded, guide) == pytest.approx(ELBO(4000).loss(padded, guide), abs=3.0)


def test_a_factor_that_stands_for_the_prior_keeps_the_density_as_it_is() -> None:
    def model() -> None:
        with poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("prior", dist.StudentT(3.0).log_prob(z))

    guide, joint = set_up(model)
    assert guide.latents.filled == {}
    z = torch.randn(5, 1)
    torch.testing.assert_close(joint(z), dist.StudentT(3.0).log_prob(z[:, 0]))


def test_a_scale_holds_where_a_masked_latent_counts_anyway() -> None:
    mask = torch.tensor([True, False])

    def model() -> None:
        with poutine.scale(scale=3.0), pyro.plate("n", 2), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    _, joint = set_up(model)
    z = torch.randn(5, 2)
    torch.testing.assert_close(joint(z), dist.Normal(0.0, 1.0).log_prob(z) @ torch.tensor([3.0, 1.0]))


def test_a_scale_leaves_the_masked_entries_of_an_event_alone() -> None:
    """Scaled, their prior would integrate to something that depends on its width."""
    holes = torch.tensor([True, False, True])

    def model() -> None:
        width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
        with poutine.scale(scale=3.0):
            pyro.sample("z", dist.Normal(torch.zeros(3), width).mask(holes).to_event(1))

    guide, joint = set_up(model, centering=None)
    z = torch.randn(5, 4)
    parts = guide.latents.unpack(z)
    log_p = dist.Normal(0.0, parts["width"].exp()[:, None]).log_prob(parts["z"])
    right = dist.Normal(0.0, 1.0).log_prob(parts["width"]) + log_p @ torch.tensor([3.0, 1.0, 3.0])
    torch.testing.assert_close(joint(z), right)


@config_enumerate
def slab(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.4))
    with poutine.mask(mask=k > 0):
        h = pyro.sample("h", dist.HalfNormal(4.0))
    pyro.sample("y", dist.Normal(k * h, 0.5), obs=y)


def test_a_spike_and_slab_integrates_to_its_evidence() -> None:
    y = torch.tensor(2.6)
    guide, joint = set_up(slab, y)
    assert guide.latents.filled == {"h": True}
    z, step = grid(4000)
    h, width = grid(NUM, 0.0, 40.0)
    wide = float((dist.HalfNormal(4.0).log_prob(h) + dist.Normal(h, 0.5).log_prob(y)).exp().sum()) * width
    spike = float(dist.Normal(0.0, 0.5).log_prob(y).exp())
    found = float(joint(z[:, None]).logsumexp(0)) + math.log(step)
    assert found == pytest.approx(math.log(0.4 * wide + 0.6 * spike), abs=1e-3)
    with pytest.warns(UserWarning, match=r"site 'h' is masked where an enumerated site says so.*pyro_nflows.ELBO"):
        poutine.trace(guide).get_trace(y)


def test_a_scaled_spike_and_slab_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="latent site 'h' is masked where an enumerated site says so, and scaled"):
        set_up(poutine.scale(slab, scale=0.5), torch.tensor(2.6))


# ---- Pyro's analytic divergences ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior",
    [dist.Gamma(2.0, 1.0), dist.Beta(2.0, 3.0), dist.Dirichlet(torch.ones(3)), dist.LKJCholesky(3, 2.0), mixed()],
    ids=lambda prior: type(prior).__name__,
)
def test_the_mean_field_bound_is_that_of_trace_elbo(prior: Any) -> None:
    def model() -> None:
        pyro.sample("z", prior)

    guide, _ = set_up(model, init_scale=1.0)
    bounds = []
    for kind in (Trace_ELBO, TraceMeanField_ELBO):
        pyro.set_rng_seed(0)
        bounds.append(kind(num_particles=10).loss(model, guide))
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    assert IWAE(4000).loss(model, guide) == pytest.approx(0.0, abs=0.1)


# ---- priors without a sampler -------------------------------------------------------------------------------


class Logistic(dist.TorchDistribution):
    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.positive

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.LogNormal(0.0, 1.0).log_prob(value)


def test_a_prior_that_cannot_be_drawn_from_starts_at_a_feasible_point() -> None:
    guide, joint = set_up(lambda: pyro.sample("z", Logistic(validate_args=False)))
    assert float(guide.init_loc()) == 0.0
    z = torch.randn(4, 1)
    torch.testing.assert_close(joint(z), dist.Normal(0.0, 1.0).log_prob(z[:, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_run_on_a_mixture_prior_gives_its_evidence(dtype: torch.dtype) -> None:
    def model(y: Tensor) -> None:
        parts = dist.Normal(torch.tensor([-2.0, 2.0], dtype=dtype), 0.5)
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2, dtype=dtype)), parts))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    torch.set_default_dtype(dtype)
    try:
        vi = VI(AutoFlow(model), num_steps=600, seed=0, progress_bar=False).run(torch.tensor(1.0, dtype=dtype))
    finally:
        torch.set_default_dtype(torch.float64)
    sd = 1.25**0.5
    right = 0.5 * sum(math.exp(-0.5 * ((1 - m) / sd) ** 2) / (sd * math.sqrt(2 * math.pi)) for m in (-2, 2))
    found = vi.diagnostics()
    assert abs(found["iwae"] - math.log(right)) < 5 * found["iwae_se"] + 1e-3
