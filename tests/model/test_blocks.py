"""Rows of latents go through a model in blocks: values, gradients and second derivatives are the same."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.model import blocks
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint

X = torch.linspace(-1, 1, 90, dtype=torch.float64).reshape(30, 3).sin()
Y = (X.sum(1) > 0).double()


def regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weight), obs=y)


def with_parameter(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("scale", x.new_ones(()))
    regression(scale * x, y)


def subsampled(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x), subsample_size=5) as rows:
        pyro.sample("y", dist.Bernoulli(logits=x[rows] @ weight), obs=y[rows])


@pytest.fixture(autouse=True)
def in_double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def joint_of(model: Any) -> LogJoint:
    guide = AutoFlow(model)
    guide(X, Y)
    joint = LogJoint(BoundModel(model, (X, Y)), guide.latents)
    joint.prepare()
    return joint


def points() -> Tensor:
    return torch.linspace(-2, 2, 21).reshape(7, 3).requires_grad_()


def test_values_and_both_derivatives_are_those_of_all_rows_at_once() -> None:
    joint, found = joint_of(regression), []
    for size in (None, 3, 1):
        joint.block, z = size, points()
        values = joint(z)
        (first,) = torch.autograd.grad(values.sin().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        (plain,) = torch.autograd.grad(joint(z).sin().sum(), z)
        torch.testing.assert_close(plain, first.detach())
        found.append((values.detach(), first.detach(), second))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("grad", [True, False])
def test_no_more_than_a_block_goes_through_the_model_at_once(grad: bool) -> None:
    seen = list[int]()

    def rows(z: Tensor) -> Tensor:
        seen.append(len(z))
        return -z.square().sum(-1)

    with torch.set_grad_enabled(grad):
        blocks.in_blocks(rows, points(), 3, lambda: False)
    assert seen == [3, 2, 2]


def test_gradients_in_the_models_own_parameters_are_whole() -> None:
    joint = joint_of(with_parameter)
    (leaf,), grads = joint.leaves(points()[0].detach()), []
    for size in (None, 2):
        joint.block = size
        grads.append(torch.autograd.grad(joint(points()).sin().sum(), leaf)[0])
    assert grads[0] != 0
    torch.testing.assert_close(grads[1], grads[0])


def test_a_block_is_as_many_rows_as_the_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for bound in (2**14, 2**17):
        monkeypatch.setattr(blocks, "BOUND", bound)
        sizes.append(joint_of(regression).block or 0)
    assert sizes[0] >= 1
    assert 6 * sizes[0] <= sizes[1] <= 10 * sizes[0] + 8


def test_particles_of_a_minibatch_stay_together() -> None:
    assert joint_of(subsampled).block is None
