"""A matrix that cannot be factored for one draw does not end the fit for all."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.factors import FailingAlone
from pyro_nflows.model.log_joint import LogJoint

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linalg.cholesky": torch.linalg.cholesky,
    "upper": lambda a: torch.linalg.cholesky(a, upper=True),
    "linalg.inv": torch.linalg.inv,
    "inverse": torch.inverse,
    "by names": lambda a: torch.linalg.cholesky(input=torch.inverse(input=torch.linalg.inv(A=a))),
    "inverse method": lambda a: a.inverse(),
    "vector": lambda a: torch.linalg.solve(a, torch.ones(3)),
    "matrix": lambda a: torch.linalg.solve(a, torch.ones(3, 2)),
    "from the right": lambda a: torch.linalg.solve(a, torch.ones(2, 3), left=False),
}


def matrices() -> Tensor:
    root = torch.randn(4, 3, 3)
    return root @ root.mT + torch.eye(3)


def failing(a: Tensor, name: str) -> Tensor:
    """The same, but the second of them has no factor, or no inverse."""
    bad = -torch.eye(3) if "cholesky" in name or name in ("upper", "by names") else torch.zeros(3, 3)
    return torch.cat([a[:1], bad[None], a[2:]])


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_that_fails_is_nan_and_the_others_are_right(name: str) -> None:
    a, call = matrices(), OPERATIONS[name]
    with FailingAlone():
        same, found = call(a), call(failing(a, name))
        by_vmap = torch.vmap(call)(failing(a, name))
    torch.testing.assert_close(same, call(a))
    torch.testing.assert_close(found[[0, 2, 3]], call(a)[[0, 2, 3]])
    assert found[1].isnan().all()
    torch.testing.assert_close(by_vmap, found, equal_nan=True)
    with pytest.raises(RuntimeError):
        call(failing(a, name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_torchs(name: str) -> None:
    a = matrices().requires_grad_()
    (right,) = torch.autograd.grad(OPERATIONS[name](a).square().sum(), a)
    with FailingAlone():
        (found,) = torch.autograd.grad(OPERATIONS[name](a).square().sum(), a)
    torch.testing.assert_close(found, right)


def kernel(edge: float) -> Callable[[], None]:
    """Of which the covariance is none beyond an edge."""

    def model() -> None:
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        covariance = torch.where(s < edge, 1.0, -1.0) * torch.eye(2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=covariance), obs=torch.zeros(2))

    return model


def test_a_log_density_is_unknown_where_a_factor_fails_and_only_there() -> None:
    guide = AutoFlow(kernel(2.0))
    guide.set_up((), {})
    joint = LogJoint(BoundModel(kernel(2.0), ()), guide.latents)
    z = torch.tensor([[0.0], [3.0], [1.0]])
    found = joint(z)
    right = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) - torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(found[[0, 2]], right[[0, 2]])
    assert found[1].isnan()


def test_a_fit_goes_on_where_a_draw_far_out_has_no_factor() -> None:
    vi = VI(AutoFlow(kernel(5.0)), seed=0, progress_bar=False).run()
    assert vi.verdict().outcome.name == "TRUST"
    assert vi.diagnostics()["elbo"] == pytest.approx(-1.8379, abs=0.01)
