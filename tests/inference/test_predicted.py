"""Predictions at other data than those of the fit have the law that the model gives them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows

X = torch.linspace(-1, 2, 12, dtype=torch.float64)
Y = 0.5 + 1.5 * X + torch.tensor([0.3, -0.2, 0.1, -0.4] * 3, dtype=torch.float64)
GROUPS = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)


def line(x: Tensor, y: Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("row", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def groups(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 0.1), obs=y)


def fit(model, *args: Tensor) -> VI:
    guide = AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, num_steps=60, seed=0, engine="eager", progress_bar=False).run(*args)


@pytest.fixture(scope="module")
def fitted() -> VI:
    return fit(line, X, Y)


def close(found: Tensor, mean: Tensor, variance: Tensor) -> bool:
    """Within five standard errors."""
    num = len(found)
    means = ((found.mean(0) - mean).abs() < 5 * (variance / num).sqrt() + 0.01).all()
    return bool(means and ((found.var(0) / variance - 1).abs() < 5 * (2 / num) ** 0.5 + 0.02).all())


@pytest.mark.parametrize("values", [None, torch.full((3,), 99.0, dtype=torch.float64)])
def test_new_rows_have_the_predictive_law(fitted: VI, values: Tensor | None) -> None:
    precision = 1 / 4 + X.square().sum() / 0.25
    slope, variance = (X * Y).sum() / 0.25 / precision, 1 / precision
    new = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)
    found = fitted.predict(new, values, num_samples=4000, seed=0)
    assert set(found) == {"mean", "y"}
    assert found["y"].shape == (4000, 3)
    assert close(found["y"], slope * new, variance * new.square() + 0.25)
    torch.testing.assert_close(found["mean"][:, 1], torch.zeros(4000, dtype=torch.float64))
    assert close(found["mean"][:, ::2], slope * new[::2], variance * new[::2].square())


def test_arguments_by_name_and_a_seed(fitted: VI) -> None:
    pyro.set_rng_seed(1)
    first = fitted.posterior.predict(x=X[:2], num_samples=50, seed=3)["y"]
    pyro.set_rng_seed(1)
    assert torch.equal(fitted.posterior.predict(x=X[:2], num_samples=50, seed=3)["y"], first)


def test_new_groups_are_drawn_from_their_prior() -> None:
    vi = fit(groups, GROUPS)
    with pytest.raises(ValueError, match=r"latent site 'theta' has shape \(4,\) in the posterior and \(6,\) at these"):
        vi.predict(torch.zeros(6, dtype=torch.float64))
    found = vi.predict(torch.zeros(6, dtype=torch.float64), num_samples=4000, fresh=["theta"], seed=0)
    precision = 1 + 4 / 1.01
    mean, variance = GROUPS.sum() / 1.01 / precision, 1 / precision
    assert close(found["y"], mean.expand(6), (variance + torch.tensor(1.01, dtype=torch.float64)).expand(6))
    same = vi.predict(torch.zeros(4, dtype=torch.float64), num_samples=2000, seed=0)["y"]
    assert (same.mean(0) - GROUPS).abs().max() < 0.1


def test_mistakes_are_named(fitted: VI) -> None:
    with pytest.raises(ValueError, match=r"fresh has \['slop'\], but the latent sites are \['slope'\]"):
        fitted.predict(X, fresh=["slop"])
    with pytest.raises(ValueError, match="nothing of the posterior is left"):
        fitted.predict(X, fresh=["slope"])
    with pytest.raises(TypeError, match=r"predict: the model takes \(x: .*was run without any argument"):
        fitted.predict()
    with pytest.raises(RuntimeError, match="call run"):
        VI(AutoFlow(line)).predict(X)


def test_a_fit_that_was_loaded_without_data_predicts(fitted: VI, tmp_path) -> None:
    fitted.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(line, lambda dim: flows.realnvp(dim, 2, (4,))))
    assert again.predict(X[:5], num_samples=20)["y"].shape == (20, 5)
