"""How centered a latent should be: second derivatives against autograd's, and shares against conjugate models."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.inference.centered import MAX_TURNS, prior_fractions, second_derivatives
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint


def rows(z: Tensor) -> Tensor:
    """Twelve entries that are independent given the first, and four that all depend on each other."""
    scale, entries, dense = z[:, :1], z[:, 1:13], z[:, 13:]
    return -(0.5 * (entries / scale.exp()) ** 2 + entries**4).sum(-1) - scale[:, 0] ** 2 - dense.sum(-1).cosh()


def chain(z: Tensor) -> Tensor:
    return -(z[:, 1:] - z[:, :-1].sin()).square().sum(-1) - z[:, 0].exp()


def diagonal(log_joint, z: Tensor) -> Tensor:
    def one(row: Tensor) -> Tensor:
        return log_joint(row[None])[0]

    return torch.stack([torch.autograd.functional.hessian(one, row).diagonal() for row in z])


def test_second_derivatives_are_exact_where_entries_are_independent_given_the_rest() -> None:
    z = torch.randn(5, 17)
    found = second_derivatives(rows, z, [slice(1, 13), slice(13, 17)])
    exact = diagonal(rows, z)
    torch.testing.assert_close(found[:, 1:13], exact[:, 1:13])
    assert not found[:, 0].any()
    assert not torch.allclose(found[:, 13:], exact[:, 13:])


@pytest.mark.parametrize("length", [MAX_TURNS - 3, 3 * MAX_TURNS])
def test_and_along_a_chain_of_any_length(length: int) -> None:
    z = torch.randn(5, length)
    sites = [slice(i, i + 1) for i in range(length)]
    torch.testing.assert_close(second_derivatives(chain, z, sites), diagonal(chain, z))


def test_a_density_that_is_linear_has_none() -> None:
    assert not second_derivatives(lambda z: z.sum(-1), torch.randn(2, 3), [slice(0, 3)]).any()


def test_shares_of_the_prior_are_those_of_a_conjugate_model() -> None:
    r"""Of a normal mean with ``n`` observations: :math:`\tau^{-2} / (\tau^{-2} + n)`, wherever it is."""

    def model(counts: Tensor, y: Tensor) -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("group", len(counts)):
            z = pyro.sample("z", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(z, counts.rsqrt()), obs=y)
        with pyro.plate("pair", 2):
            pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), tau * torch.tensor([[1.0, 0.0], [0.0, 3.0]])))

    counts = torch.tensor([0.1, 1.0, 40.0])
    guide = AutoFlow(model, centering=0.0)
    args = counts, torch.tensor([0.3, -1.0, 2.0])
    guide(*args)
    joint = LogJoint(BoundModel(model, args), guide.latents.centered({}))
    z = torch.randn(6, joint.latents.dim)
    found = prior_fractions(joint, ["z", "w"], z)
    weight = (-2 * z[:, :1]).exp()
    torch.testing.assert_close(found["z"], weight / (weight + counts))
    torch.testing.assert_close(found["w"], torch.ones(6, 2, 2))  # of which there are no data
