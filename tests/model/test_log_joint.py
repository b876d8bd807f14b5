"""The log joint density is Pyro's, whichever way several points are sent through the model."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from pyro_nflows import ELBO, VI, AutoFlow
from pyro_nflows.engine import Engine
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization, VectorizationWarning
from tests.models import PAIRS, one_of_each, pairs


def observed() -> None:
    """Masks, scales and factors at once."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.factor("soft", -loc.square())
    with pyro.plate("unit", 4), poutine.scale(scale=2.0), poutine.mask(mask=PAIRS > 0):
        pyro.sample("y", dist.StudentT(4.0, loc, scale), obs=PAIRS)


def random_walk() -> None:
    z = torch.tensor(0.0)
    for t in range(4):
        z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=PAIRS[t])


def correlated() -> None:
    chol = pyro.sample("chol", dist.LKJCholesky(2, 1.5))
    with pyro.plate("unit", 2):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=chol), obs=PAIRS.reshape(2, 2))


def made_of_params() -> None:
    width = pyro.param("width", torch.tensor(1.5), constraint=dist.constraints.positive)
    with pyro.plate("rows", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, width))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("y", dist.Normal(z, 1.0), obs=PAIRS.reshape(2, 2))


MODELS = [pairs, one_of_each, observed, random_walk, correlated, made_of_params]


def prepared(model: Callable[..., Any], *args: Any) -> tuple[LogJoint, Tensor]:
    guide = AutoFlow(model, centering=None)
    guide.set_up(args, {})
    joint = LogJoint(BoundModel(model, args), guide.latents)
    joint.prepare()
    return joint, guide.init_loc() + torch.randn(5, guide.latent_dim)


@pytest.mark.parametrize("model", MODELS)
def test_vmap_equals_the_loop_equals_pyros_potential(model: Callable[[], None]) -> None:
    joint, z = prepared(model)
    assert joint.how is Vectorization.VMAP
    values = joint(z)
    torch.testing.assert_close(values, joint._by_loop(z))
    _, potential, _, _ = initialize_model(model)
    for value, row in zip(values, z):
        unconstrained = joint.latents.unpack(row)
        torch.testing.assert_close(value, -potential(unconstrained))


@pytest.mark.parametrize("model", [pairs, observed, made_of_params])
def test_the_particle_plate_equals_the_loop(model: Callable[[], None]) -> None:
    joint, z = prepared(model)
    torch.testing.assert_close(joint._by_plate(z), joint._by_loop(z))


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_vmap_are_those_of_the_loop(model: Callable[[], None]) -> None:
    joint, z = prepared(model)
    z.requires_grad_()
    for way in (joint._by_vmap, joint._by_loop):
        (gradient,) = torch.autograd.grad(way(z).sum(), z)
        assert gradient.abs().max() > 0
        expected = gradient if way == joint._by_vmap else expected  # type: ignore[has-type]  # noqa: F821
    torch.testing.assert_close(gradient, expected)


# ---- discrete latents ---------------------------------------------------------------------------------------


@config_enumerate
def mixture() -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("unit", 4):
        label = pyro.sample("label", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(locs[label], 1.0), obs=PAIRS)


@config_enumerate
def chain() -> None:
    """A hidden Markov model whose emission depends on a second enumerated site."""
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    state: Any = 0
    for t in pyro.markov(range(4)):
        state = pyro.sample(f"state_{t}", dist.Categorical(torch.tensor([[0.7, 0.3], [0.2, 0.8]])[state]))
        coin = pyro.sample(f"coin_{t}", dist.Bernoulli(0.3))
        pyro.sample(f"y_{t}", dist.Normal(locs[state] + coin, 1.0), obs=PAIRS[t])


@pytest.mark.parametrize("model", [mixture, chain])
def test_enumerated_latents_are_summed_out_as_by_pyros_elbo(model: Callable[[], None]) -> None:
    joint, z = prepared(model)
    assert joint.enumerates
    assert joint.how is Vectorization.VMAP
    for value, row in zip(joint(z), z):
        point = {name: drawn[0] for name, drawn in joint.latents.constrain(row[None]).items()}
        log_det = joint.single(row) - joint.at(row, filled=())[1]
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, at(point))
        torch.testing.assert_close(value, -torch.tensor(loss) + log_det)


def at(point: dict[str, Tensor]) -> Callable[[], None]:
    def guide() -> None:
        for name, value in point.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    return guide


@pytest.mark.parametrize("model", [mixture, chain])
def test_gradients_pass_through_the_sum(model: Callable[[], None]) -> None:
    joint, z = prepared(model)
    torch.autograd.gradcheck(lambda z: joint(z), z.requires_grad_())
    assert ELBO(3).loss_and_grads(model, AutoFlow(model)) < torch.inf


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_hidden_markov_distributions_are_vectorised() -> None:
    def model() -> None:
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        transition = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).log()
        hmm = dist.DiscreteHMM(torch.zeros(2), transition, dist.Normal(locs, 1.0))
        pyro.sample("y", hmm, obs=PAIRS)

    joint, z = prepared(model)
    assert joint.how is Vectorization.VMAP
    torch.autograd.gradcheck(lambda z: joint(z), z.requires_grad_())


# ---- subsampled data ----------------------------------------------------------------------------------------


def test_subsampled_likelihoods_are_unbiased() -> None:
    def model(subsample_size: int | None) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("unit", 4, subsample_size=subsample_size) as index:
            pyro.sample("y", dist.Normal(z, 1.0), obs=PAIRS[index])

    joint, _ = prepared(model, 2)
    assert joint.how is Vectorization.VMAP
    z = torch.full((3, 1), 0.3)
    rows = torch.stack([joint(z) for _ in range(500)])
    assert torch.equal(rows, rows[:, :1].expand(500, 3))  # particles share a step's rows, as in Pyro
    values = rows[:, 0]
    assert len(values.unique()) == 6
    full = joint.on(joint.bound.with_call((None,), {}))(z[:1])
    assert abs(values.mean() - full) < 5 * values.std() / 500**0.5


# ---- when vmap cannot ---------------------------------------------------------------------------------------


def branching() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("unit", 4):
        pyro.sample("y", dist.Normal(z if z > 0 else 2 * z, 1.0), obs=PAIRS)


def itemising() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z.item(), 1.0), obs=PAIRS[0])


class NoVmap(torch.autograd.Function):
    """As ``DiscreteHMM`` has one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def vectorised_by_itself() -> None:
    with pyro.plate("unit", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(NoVmap.apply(z), 1.0), obs=PAIRS)


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (branching, Vectorization.LOOP),
        (itemising, Vectorization.LOOP),
        (vectorised_by_itself, Vectorization.PLATE),
    ],
)
@pytest.mark.filterwarnings("ignore::pyro_nflows.inference.elbo.GradientWarning")
def test_the_next_best_way_is_taken_with_a_warning(model: Callable[[], None], how: Vectorization) -> None:
    with pytest.warns(VectorizationWarning, match=f"torch.vmap cannot run this model.*go through {how.value}"):
        joint, z = prepared(model)
    assert joint.how is how
    torch.testing.assert_close(joint(z), torch.stack([joint.single(row) for row in z]))
    with pytest.warns(VectorizationWarning):
        assert ELBO(3).loss_and_grads(model, AutoFlow(model)) < torch.inf


def test_models_that_vmap_gets_wrong_are_found_out() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        batched = torch._C._functorch.is_batchedtensor(z)
        pyro.factor("wrong", torch.tensor(1.0 if batched else 0.0))

    with pytest.warns(VectorizationWarning, match="differ from those of single runs by up to 1\\)"):
        assert prepared(model)[0].how is Vectorization.PLATE


def test_models_that_mix_particles_go_through_a_loop() -> None:
    """By so little that values near each other do not show it."""

    def model() -> None:
        with pyro.plate("unit", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(0.01 * NoVmap.apply(z).mean(), 1.0), obs=PAIRS)

    with pytest.warns(VectorizationWarning, match="a loop over particles"):
        joint, z = prepared(model)
    torch.testing.assert_close(joint(z), torch.stack([joint.single(row) for row in z]))


def test_enumeration_is_not_sent_through_a_plate() -> None:
    @config_enumerate
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        label = pyro.sample("label", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(label + (z if z > 0 else 0), 1.0), obs=PAIRS[0])

    with pytest.warns(VectorizationWarning):
        assert prepared(model)[0].how is Vectorization.LOOP


def test_errors_of_the_model_come_through() -> None:
    def model(fail: bool) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        if fail:
            raise KeyError("mine")

    guide = AutoFlow(model)
    guide.set_up((False,), {})
    with pytest.raises(KeyError, match="mine"):
        LogJoint(BoundModel(model, (True,)), guide.latents).prepare()


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.1])
def test_scales_multiply_the_logarithm_of_the_sum_over_labels(scale: float) -> None:
    """As in TraceEnum_ELBO: a subsampled plate stands for more rows like these, not for sharper ones."""
    data, weights = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.3, 0.7])

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3), pyro.poutine.scale(scale=scale):
            label = pyro.sample("label", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(loc + 2.0 * label, 1.0), obs=data)

    guide = AutoFlow(model)
    guide()
    z = torch.tensor([[0.2], [-1.0]])
    by_label = dist.Normal(z[..., None] + torch.tensor([0.0, 2.0]), 1.0).log_prob(data[:, None])
    right = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + scale * (by_label + weights.log()).logsumexp(-1).sum(-1)
    torch.testing.assert_close(LogJoint(BoundModel(model), guide.latents)(z), right)


def endless() -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.sample("count", dist.Poisson(rate), infer={"enumerate": "parallel"})


def half_scaled() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    label = pyro.sample("label", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    with pyro.plate("rows", 4, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(loc + label, 1.0), obs=PAIRS[index])


def scaled_by_row() -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 4), poutine.scale(scale=torch.arange(1.0, 5.0)):
        label = pyro.sample("label", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc + label, 1.0), obs=PAIRS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (endless, "site 'count' .Poisson. is to be enumerated, and has no finite list of values"),
        (half_scaled, "must be scaled alike, by one number.* Found 'label' by 1; 'y' by 2. Put one poutine.scale"),
        (scaled_by_row, r"Found 'label' by a tensor of shape \(4,\); 'y' by a tensor of shape \(4,\)"),
    ],
)
def test_what_cannot_be_summed_out_is_refused_by_name(model: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(model)


# ---- distributions that are made before the model runs -----------------------------------------------------------

PRIORS = {
    "expanded": dist.Normal(0.0, 1.0).expand([3]).to_event(1),
    "asked for": dist.Gamma(2.0, 1.0, validate_args=True),
    "transformed": dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]), ExpTransform()).to_event(1),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).expand([2])
    ),
    "masked": dist.Normal(0.0, 1.0).expand([2]).mask(torch.tensor([True, False])).to_event(1),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_priors_that_are_made_before_are_recorded_and_stay_as_they_are(prior: dist.TorchDistribution) -> None:
    """They have kept that values are checked, as the prior of a ``PyroSample`` has, which no recording follows."""
    before = {name: part for name, part in vars(prior).items() if not name.startswith("_transform")}

    def model() -> None:
        z = pyro.sample("z", prior)
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.5))

    vi = VI(AutoFlow(model), engine="traced", num_steps=8, seed=0, progress_bar=False).run()
    assert {str(engine) for engine in vi.history.engines} == {str(Engine.TRACED)}
    assert all(vars(prior)[name] is part for name, part in before.items())
