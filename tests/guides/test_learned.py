"""Centerings that are trained by ``SVI`` with the rest of a guide."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor

from pyro_nflows import ELBO, VI, AutoFlow, flows

#: Few data in the first rows, many in the last ones.
NUM = torch.tensor([0.05] * 4 + [200.0] * 4, dtype=torch.float64)
Y = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.5, 3.0, 0.7], dtype=torch.float64)


def groups(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    tau = pyro.sample("tau", dist.LogNormal(y.new_zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(z, NUM.rsqrt()), obs=y)


def made(centering: object = "learned") -> AutoFlow:
    return AutoFlow(groups, lambda dim: flows.planar(dim, 1), centering=centering, end="diagonal")


def trained(guide: AutoFlow, loss: object, num_steps: int) -> AutoFlow:
    svi = SVI(groups, guide, guide.optimizer(num_steps=num_steps), loss)
    for _ in range(num_steps):
        svi.step(Y)
    return guide


def test_each_entry_is_as_centered_as_its_data_say() -> None:
    """What few data are known of is non-centered, what many are is centered."""
    guide = trained(made(), Trace_ELBO(8, vectorize_particles=True), 400)
    found = guide.centering["z"]
    assert (found[:4] < 0.35).all()
    assert (found[4:] > 0.65).all()
    assert "z centered by 0." in guide.extra_repr()
    assert set(Predictive(groups, guide=guide, num_samples=3)(Y)) >= {"mu", "tau", "z"}
    assert guide.median(Y)["z"].shape == (8,)


@pytest.mark.parametrize("ours", [False, True])
def test_the_gradient_is_that_of_the_bound(ours: bool) -> None:
    """By differences, of the same draws."""
    guide = made()
    loss = ELBO(8) if ours else Trace_ELBO(8, vectorize_particles=True)

    def value(shift: Tensor) -> float:
        weight = guide._learned[0].weights[0]
        with torch.no_grad():
            weight.add_(shift)
        torch.manual_seed(3)
        found = loss.differentiable_loss(groups, guide, Y)
        with torch.no_grad():
            weight.sub_(shift)
        return float(found.detach())

    loss.differentiable_loss(groups, guide, Y)  # the first call looks at the model
    weight = guide._learned[0].weights[0]
    torch.manual_seed(3)
    loss.differentiable_loss(groups, guide, Y).backward()
    for entry in (0, 5):
        step = torch.zeros(8, dtype=torch.float64).index_fill(0, torch.tensor(entry), 1e-6)
        expected = (value(step) - value(-step)) / 2e-6
        assert weight.grad is not None
        assert abs(float(weight.grad[entry]) - expected) < 1e-4 * (1 + abs(expected))


def test_our_elbo_trains_it_too() -> None:
    guide = made()
    guide(Y)
    before = guide.centering["z"].clone()
    trained(guide, ELBO(4), 5)
    assert (guide.centering["z"] != before).all()


def test_it_is_saved_and_copied_as_it_is() -> None:
    guide = trained(made(), Trace_ELBO(4, vectorize_particles=True), 5)
    again = made()
    again.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    for other in (again, copy.deepcopy(guide)):
        other(Y)
        assert torch.equal(other.centering["z"], guide.centering["z"])
        assert not other.learns_centering


def test_vi_measures_it_instead() -> None:
    found = [
        VI(made(by), seed=0, num_steps=20, progress_bar=False, engine="traced").run(Y) for by in ("auto", "learned")
    ]
    for vi in found:
        assert (vi.guide.centering["z"][:4] < 0.3).all()
        assert (vi.guide.centering["z"][4:] > 0.7).all()
    assert not found[1].guide.learns_centering


def test_models_without_a_hierarchy_have_none() -> None:
    guide = AutoFlow(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), centering="learned")
    guide()
    assert not guide.learns_centering
    assert guide.centering == {}


def test_rows_that_are_subsampled_are_refused() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
        with pyro.plate("row", len(y), subsample_size=2) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    with pytest.raises(ValueError, match="centering='learned' has a number for each entry of site 'z', which is in a"):
        AutoFlow(model, centering="learned")(Y)
