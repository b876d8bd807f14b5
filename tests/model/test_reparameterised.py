"""What is computed is no data: reparameterised sites are judged, simulated and stored as what they are."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import (
    AutoReparam,
    DiscreteCosineReparam,
    HaarReparam,
    LocScaleReparam,
    MinimalReparam,
    NeuTraReparam,
    TransformReparam,
)
from torch import Tensor

from pyro_nflows import SBC, AutoFlow
from pyro_nflows.arviz import to_arviz
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.simulation import at_data, simulate

Y = torch.tensor([0.5, 1.5, 0.2, 1.1], dtype=torch.float64)


class TooSure(dist.Normal):
    """Draws with a standard deviation three times what its density says."""

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, 0.3 * self.scale).log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TooSure":
        return TooSure(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)


def groups(likelihood: type[dist.Normal] = dist.Normal) -> Callable[[Tensor], None]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("group", 4):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", likelihood(theta, torch.tensor(0.5)), obs=y)

    return model


def positive(y: Tensor) -> None:
    with pyro.plate("group", 4):
        theta = pyro.sample("theta", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def series(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("group", 4):
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def heavy(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("group", 4):
        pyro.sample("y", dist.Stable(1.5, 0.0, 1.0, theta), obs=y)


def told(y: Tensor) -> None:
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2 * theta)
    with pyro.plate("group", 4):
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


MODELS = {
    "LocScaleReparam": poutine.reparam(groups(), {"theta": LocScaleReparam(0.0)}),
    "TransformReparam": poutine.reparam(positive, {"theta": TransformReparam()}),
    "AutoReparam": AutoReparam()(positive),
    "MinimalReparam": MinimalReparam()(heavy),
    "HaarReparam": poutine.reparam(series, {"theta": HaarReparam(dim=-1)}),
    "DiscreteCosineReparam": poutine.reparam(series, {"theta": DiscreteCosineReparam(dim=-1)}),
    "deterministic": told,
}


@pytest.mark.parametrize("name", MODELS)
def test_only_data_are_data(name: str) -> None:
    latents, data = simulate(MODELS[name], (Y,), {}, 3, torch.zeros(()))
    assert list(data) == ["y"]
    assert "theta" in latents


@pytest.mark.parametrize("name", MODELS)
def test_at_simulated_data_the_density_depends_on_them_and_on_every_latent(name: str) -> None:
    model = at_data(MODELS[name])
    _, data = simulate(MODELS[name], (Y,), {}, 2, torch.zeros(()))
    one, other = ({key: value[i] for key, value in data.items()} for i in range(2))
    guide = AutoFlow(model)
    guide.set_up((one, Y), {})
    joint = LogJoint(BoundModel(model, (one, Y)), guide.latents)
    joint.prepare()
    z = guide.init_loc()[None].requires_grad_()
    gradients = [
        torch.autograd.grad(joint.on(joint.bound.with_call((part, Y), {}))(z).sum(), z)[0] for part in (one, other)
    ]
    assert not torch.allclose(*gradients)


def test_the_observed_side_of_a_transform_is_data() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.LogNormal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    latents, data = simulate(
        poutine.reparam(model, {"y": TransformReparam()}), (torch.tensor(1.5),), {}, 3, torch.zeros(())
    )
    assert list(data) == ["y_base"]
    assert "m" in latents


def test_a_point_likelihood_is_data() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Delta(pyro.sample("m", dist.Normal(0.0, 1.0))), obs=y)

    assert list(simulate(model, (torch.tensor(1.5),), {}, 3, torch.zeros(()))[1]) == ["y"]


@pytest.mark.slow
def test_a_wrong_likelihood_is_found_out_whatever_the_coordinates() -> None:
    for likelihood, good in ((dist.Normal, True), (TooSure, False)):
        for wrap in (lambda m: m, lambda m: poutine.reparam(m, {"theta": LocScaleReparam(0.0)})):
            guide = AutoFlow(wrap(groups(likelihood)))
            outcome = SBC(guide, num_simulations=60, seed=0, progress_bar=False).run(Y).verdict().outcome
            assert (outcome.name == "CALIBRATED") is good


def test_a_density_on_a_computed_site_cannot_be_simulated() -> None:
    guide = AutoFlow(series)
    guide(Y)
    model = NeuTraReparam(guide).reparam(series)
    with pytest.raises(ValueError, match=r"SBC: .* site 'theta.*"):
        SBC(AutoFlow(model), num_simulations=2, progress_bar=False).run(Y)


def test_computed_values_are_draws_for_arviz() -> None:
    model = poutine.reparam(groups(), {"theta": LocScaleReparam(0.0)})
    draws = {"mu": torch.randn(5), "theta_decentered": torch.randn(5, 4)}
    stored = to_arviz(model, draws, (Y,), seed=0)
    right = draws["mu"][:, None] + draws["theta_decentered"]
    torch.testing.assert_close(torch.tensor(stored["posterior"]["theta"].values[0]), right)
    assert list(stored["observed_data"].data_vars) == ["y"]
    assert list(stored["log_likelihood"].data_vars) == ["y"]


def test_nan_in_what_is_computed_is_no_missing_data() -> None:
    def model(y: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.deterministic("undefined", theta * torch.nan)
        pyro.sample("y", dist.Normal(theta, 1.0).expand([4]).to_event(1), obs=y)

    guide = AutoFlow(model)
    guide.set_up((Y,), {})
    joint = LogJoint(BoundModel(model, (Y,)), guide.latents)
    joint.prepare()
    assert torch.isfinite(joint(torch.zeros(2, 1))).all()
