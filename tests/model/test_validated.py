"""Distributions that a model asks to validate: they are where it is first run, and it is as fast as others."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine import DensityGradient, Engine
from pyro_nflows.layers import Planar
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.transformable import transformable
from pyro_nflows.system.exclusive import validation

Y = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def everything(validate: bool | None) -> Callable[[Tensor], None]:
    asked: dict[str, Any] = {} if validate is None else {"validate_args": validate}

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0, **asked))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0, **asked))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3), **asked))
        root = pyro.sample("root", dist.LKJCholesky(2, 1.0, **asked))
        q = pyro.sample("q", dist.Beta(2.0, 2.0, **asked))
        u = pyro.sample("u", dist.Uniform(-1.0, 1.0 + tau, **asked))
        pyro.sample("k", dist.ContinuousBernoulli(q, **asked), obs=torch.tensor(0.3))
        pyro.sample("m", dist.MultivariateNormal(u * torch.ones(2), scale_tril=root * tau, **asked), obs=torch.ones(2))
        parts = dist.Normal(mu + torch.arange(3.0), tau, **asked)
        with pyro.plate("rows", len(y)):
            fn = dist.MixtureSameFamily(dist.Categorical(p, **asked), parts, **asked)
            pyro.sample("y", fn, obs=y)

    return model


def test_a_model_that_validates_is_recorded_as_others_are() -> None:
    vi = VI(AutoFlow(everything(True), Planar), num_steps=20, seed=0, progress_bar=False).run(Y)
    assert Engine.EAGER not in vi.history.engines
    z = torch.randn(20, vi.guide.latent_dim)
    joints = [LogJoint(BoundModel(everything(validate), (Y,)), vi.guide.latents) for validate in (None, True)]
    recorded = [DensityGradient(joint).values_and_grads(z, len(z)) for joint in joints]
    torch.testing.assert_close(*recorded)


def test_it_is_validated_where_it_is_first_run() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, -1.0, validate_args=True), obs=torch.tensor(0.5))

    with pytest.raises(ValueError, match="scale"):
        VI(AutoFlow(model), num_steps=5, progress_bar=False).run()


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_check_is_left_out_only_where_all_are(is_checked: bool) -> None:
    with validation(is_checked), transformable():
        if is_checked:
            with pytest.raises(ValueError, match="scale"):
                dist.Normal(0.0, -1.0, validate_args=True)
        else:
            assert dist.Normal(0.0, -1.0, validate_args=True)._validate_args is False
    with pytest.raises(ValueError, match="scale"):
        dist.Normal(0.0, -1.0, validate_args=True)
