"""``ELBO(compile=True)``: the same training in a loop of the user's own."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_nflows import ELBO, IWAE, AutoCIF, AutoFlow
from pyro_nflows.engine import EngineWarning
from pyro_nflows.layers import LocScale
from pyro_nflows.log_joint import VectorizationWarning


def regression(x, y):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, scale), obs=y)


def batches(num, size=6):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        x = torch.randn(size, 2, generator=generator)
        yield x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(size, generator=generator)


def train(objective, make, num_steps=25):
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    svi = SVI(regression, make(regression), Adam({"lr": 1e-2}), loss=objective)
    return [svi.step(*batch) for batch in batches(num_steps)], dict(pyro.get_param_store().named_parameters())


@pytest.mark.parametrize(
    "make_objective",
    [
        lambda **k: ELBO(4, **k),
        lambda **k: ELBO(4, "total", **k),
        lambda **k: IWAE(4, **k),
        lambda **k: IWAE(4, "path", **k),
    ],
)
@pytest.mark.parametrize("make", [AutoFlow, AutoCIF])
def test_steps_on_minibatches_are_those_without(make_objective, make):
    (plain, params), (recorded, others) = (train(make_objective(compile=c), make) for c in (False, True))
    assert recorded == pytest.approx(plain, rel=1e-8)
    assert params.keys() == others.keys()
    for name, value in params.items():
        assert torch.allclose(others[name], value, atol=1e-8)


def test_the_model_is_not_run_again():
    calls = [0]

    def model(y):
        calls[0] += 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    svi = SVI(model, AutoFlow(model), Adam({"lr": 1e-2}), loss=ELBO(4, compile=True))
    svi.step(torch.tensor(1.0))
    before = calls[0]
    for y in (1.0, 2.0, 3.0):
        svi.step(torch.tensor(y))
    assert calls[0] == before


def test_other_shapes_are_recorded_anew():
    svi = SVI(regression, AutoFlow(regression), Adam({"lr": 1e-2}), loss=ELBO(4, compile=True))
    for size in (6, 9, 6):
        for batch in batches(2, size):
            assert svi.step(*batch) < float("inf")


def test_gradients_add_up_as_torchs_do():
    objective, guide = ELBO(4, compile=True), AutoFlow(regression, lambda d: LocScale(d))
    batch = next(batches(1))
    guide(*batch)
    grads = []
    for _ in range(2):
        pyro.set_rng_seed(0)
        objective.loss_and_grads(regression, guide, *batch)
        grads.append([p.grad.clone() for p in guide.parameters() if p.grad is not None])
    for once, twice in zip(*grads, strict=True):
        assert torch.allclose(twice, 2 * once)


def test_a_model_that_cannot_be_recorded_runs_step_by_step_with_one_warning():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=y)

    svi = SVI(model, AutoFlow(model), Adam({"lr": 1e-2}), loss=ELBO(2, compile=True))
    with pytest.warns(EngineWarning, match="step by step"), pytest.warns(VectorizationWarning):
        svi.step(torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        assert svi.step(torch.tensor(1.0)) < float("inf")
