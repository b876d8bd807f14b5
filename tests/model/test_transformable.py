"""Pyro's own operations run under vmap, with the values and gradients that Pyro gives them."""

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import (
    LatentStableReparam,
    MinimalReparam,
    ProjectedNormalReparam,
    StableReparam,
    SymmetricStableReparam,
)
from pyro.ops import gaussian, special, tensor_utils
from pyro.ops.tensor_utils import safe_cholesky, safe_normalize
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_nflows import AutoFlow
from pyro_nflows.model import transformable as ops
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization, VectorizationWarning

Y = torch.tensor([0.3, -0.2, 0.9, 1.4, 0.8, 1.1], dtype=torch.float64)


def trend() -> None:
    q = pyro.sample("q", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    r = pyro.sample("r", dist.LogNormal(-1.0, 1.0))
    steps, seen = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [0.0]])
    begin, noise = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(torch.zeros(1), r.reshape(1)).to_event(1)
    hmm = dist.GaussianHMM(begin, steps, dist.Normal(torch.zeros(2), q).to_event(1), seen, noise, duration=len(Y))
    pyro.sample("y", hmm, obs=Y[:, None])


def switching() -> None:
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    table = torch.stack([torch.stack([p, 1 - p]), torch.stack([1 - p, p])]).log()
    parts = dist.Normal(torch.stack([a, a + 1]), 0.5)
    pyro.sample("y", dist.DiscreteHMM(torch.zeros(2), table, parts, duration=len(Y)), obs=Y)


def direction() -> None:
    d = pyro.sample("d", dist.ProjectedNormal(torch.tensor([1.0, 0.0])))
    with pyro.plate("n", len(Y)):
        pyro.sample("y", dist.VonMises(torch.atan2(d[1], d[0]), 4.0), obs=Y)


def stable(stability: float | None = 1.6, skew: float = 0.0) -> Callable[[], None]:
    def model() -> None:
        c, m = pyro.sample("c", dist.LogNormal(0.0, 1.0)), pyro.sample("m", dist.Normal(0.0, 3.0))
        alpha = pyro.sample("alpha", dist.Uniform(0.9, 1.1)) if stability is None else stability
        with pyro.plate("n", len(Y)):
            pyro.sample("y", dist.Stable(alpha, skew, c, m), obs=Y)

    return model


def stable_latent() -> None:
    alpha = pyro.sample("alpha", dist.Uniform(0.9, 1.1))
    z = pyro.sample("z", dist.Stable(alpha, 0.3))
    with pyro.plate("n", len(Y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=Y)


def stable_density() -> None:
    alpha, m = pyro.sample("alpha", dist.Uniform(0.9, 1.9)), pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(Y)):
        pyro.sample("y", dist.StableWithLogProb(alpha, 0.2, 1.0, m), obs=Y)


def skewed() -> None:
    s = pyro.sample("s", dist.Uniform(-1.0, 1.0))
    with pyro.plate("n", len(Y)):
        base = dist.VonMises(torch.zeros(1), 2.0).to_event(1)
        pyro.sample("y", dist.SineSkewed(base, s.reshape(1)), obs=Y[:, None])


def ordinal() -> None:
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(Y)):
        pyro.sample("y", dist.OrderedLogistic(b * Y, torch.tensor([-1.0, 0.0, 1.0])), obs=(Y > 0).long())


def multinomial() -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    counts = torch.tensor([[3.0, 1, 2], [1, 4, 0], [0, 1, 1]])
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Multinomial(6, p, validate_args=False), obs=counts)


def low_rank() -> None:
    width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
    factor = width * torch.tensor([[1.0, 0.2], [0.3, -1.0], [0.5, 0.5]])
    pyro.sample("z", dist.LowRankMultivariateNormal(torch.zeros(3), factor, torch.ones(3)))


MODELS = {
    "GaussianHMM": trend,
    "DiscreteHMM": switching,
    "ProjectedNormalReparam": poutine.reparam(direction, {"d": ProjectedNormalReparam()}),
    "MinimalReparam": MinimalReparam()(stable()),
    "SymmetricStableReparam": poutine.reparam(stable(), {"y": SymmetricStableReparam()}),
    "StableReparam": poutine.reparam(stable(None, 0.4), {"y": StableReparam()}),
    "LatentStableReparam": poutine.reparam(stable_latent, {"z": LatentStableReparam()}),
    "StableWithLogProb": stable_density,
    "SineSkewed": skewed,
    "OrderedLogistic": ordinal,
    "Multinomial": multinomial,
    "LowRankMultivariateNormal": low_rank,
}


def by_pyro(guide: AutoFlow, model: Callable[[], Any], z: Tensor) -> Tensor:
    """Pyro's own trace, without any of our operations, and the Jacobians."""
    total = z.new_zeros(())
    values = {}
    for name, part in guide.latents.unpack(z).items():
        transform = torch.distributions.biject_to(guide.prototype_trace.nodes[name]["fn"].support)
        values[name] = transform(part)
        total = total + transform.log_abs_det_jacobian(part, values[name]).sum()
    return total + poutine.trace(poutine.condition(model, values)).get_trace().log_prob_sum()


@pytest.mark.parametrize("name", MODELS)
def test_pyros_own_operations_run_under_vmap_as_pyro_has_them(name: str) -> None:
    model = MODELS[name]
    guide = AutoFlow(model, centering=None)
    guide.set_up((), {})
    joint = LogJoint(BoundModel(model), guide.latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error", VectorizationWarning)
        assert joint.prepare() is Vectorization.VMAP
    z = (guide.init_loc() + 0.3 * torch.randn(5, guide.latent_dim)).requires_grad_()
    values = joint(z)
    right = torch.stack([by_pyro(guide, model, row) for row in z])
    torch.testing.assert_close(values, right, rtol=1e-8, atol=1e-8)
    gradient, right_gradient = (torch.autograd.grad(v.sum(), z)[0] for v in (values, right))
    torch.testing.assert_close(gradient, right_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["GaussianHMM", "StableReparam", "OrderedLogistic"])
def test_they_can_be_recorded(name: str) -> None:
    model = MODELS[name]
    guide = AutoFlow(model)
    guide.set_up((), {})
    joint = LogJoint(BoundModel(model), guide.latents)
    joint.prepare()
    z = guide.init_loc() + 0.1 * torch.randn(3, guide.latent_dim)
    gradient = torch.func.grad(lambda z: joint(z).sum())
    torch.testing.assert_close(make_fx(gradient)(z)(z + 0.1), gradient(z + 0.1))


def spectrum(*diagonal: float) -> Tensor:
    turn = torch.linalg.qr(torch.randn(len(diagonal), len(diagonal), dtype=torch.float64))[0]
    return turn @ torch.diag(torch.tensor(diagonal, dtype=torch.float64)) @ turn.T


@pytest.mark.parametrize("diagonal", [(2.0,), (3.0, 1e-3), (5.0, 1.0, 1e-12)])
def test_cholesky_factors_are_pyros(diagonal: tuple[float, ...]) -> None:
    x = spectrum(*diagonal).requires_grad_()
    mine, pyros = ops.safe_cholesky(x), safe_cholesky(x)
    assert torch.equal(mine, pyros)
    weight = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad((weight * v).sum(), x)[0] for v in (mine, pyros)))


def test_normalised_vectors_are_pyros() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1e-3, 2.0]], requires_grad=True)
    mine, pyros = ops.safe_normalize(x), safe_normalize(x)
    assert torch.equal(mine, pyros)
    some = torch.tensor([[1.0], [0.0], [2.0]])  # at zero there is no gradient to compare
    torch.testing.assert_close(*(torch.autograd.grad((some * v).sum(), x)[0][::2] for v in (mine, pyros)))


@pytest.mark.parametrize("coords", ["S", "S0"])
@pytest.mark.parametrize("alpha", [0.5, 0.9925, 1.0, 1.004, 1.8])
def test_stable_draws_are_pyros(alpha: float, coords: str) -> None:
    from pyro.distributions.stable import _standard_stable

    a, b = torch.full((4,), alpha, requires_grad=True), torch.tensor([-0.5, 0.0, 0.3, 0.9], requires_grad=True)
    V, W = torch.tensor([-1.2, 0.1, 0.7, 1.5]), torch.tensor([0.2, 1.0, 3.0, 0.7])
    mine, pyros = ops.standard_stable(a, b, V, W, coords), _standard_stable(a, b, V, W, coords)
    torch.testing.assert_close(mine, pyros)
    for found, right in zip(*(torch.autograd.grad(v.sum(), (a, b)) for v in (mine, pyros))):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-8)


def test_logarithms_have_pyros_slopes() -> None:
    x = torch.tensor([0.0, 1e-20, 1e-3, 2.0], requires_grad=True)
    mine, pyros = ops.SafeLog.apply(x), special.safe_log(x)
    assert torch.equal(mine, pyros)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v in (mine, pyros)))


def test_pyros_operations_are_put_back_whatever_happens() -> None:
    before = [vars(patch.owner)[patch.name] for patch in ops.PATCHES]
    with contextlib.suppress(KeyError), ops.transformable(), ops.transformable():
        assert gaussian.safe_cholesky is ops.safe_cholesky
        raise KeyError
    assert [vars(patch.owner)[patch.name] for patch in ops.PATCHES] == before
    assert not any(new is patch.new for new, patch in zip(before, ops.PATCHES))


def test_threads_share_them() -> None:
    """The one that leaves first does not take them away from the other."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with ops.transformable():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with ops.transformable():
        thread.start()
        assert inside.wait(10)
    assert tensor_utils.safe_cholesky is ops.safe_cholesky
    leave.set()
    thread.join()
    assert tensor_utils.safe_cholesky is safe_cholesky


def two_angles() -> None:
    a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
    angles = torch.tensor([0.1, 0.2])
    pyro.sample("y", dist.SineBivariateVonMises(a, a, a, a, weighted_correlation=0.5), obs=angles)


def branches() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z if z > 0 else 2 * z, 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize(("model", "words"), [(two_angles, "Pyro's own"), (branches, "Python branches")])
def test_what_cannot_run_says_whose_code_it_is(model: Callable[[], None], words: str) -> None:
    guide = AutoFlow(model)
    guide.set_up((), {})
    with pytest.warns(VectorizationWarning, match=words):
        LogJoint(BoundModel(model), guide.latents).prepare()
