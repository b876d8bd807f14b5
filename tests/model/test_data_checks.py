"""Data of any precision are fitted, and data whose shapes do not fit the plates are refused, as Pyro's ELBOs do."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_nflows import ELBO, IWAE, SBC, VI, AutoDAIS, AutoFlow, flows
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint, Vectorization

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
N = 8
X = torch.linspace(-1, 1, N, dtype=torch.float64)
Y = torch.tensor([2.9, 0.4, 4.4, 3.1, 5.0, 2.2, 1.7, 3.3], dtype=torch.float64)


def line(x: Tensor, y: Tensor) -> None:
    a, b = pyro.sample("a", dist.Normal(0.0, 3.0)), pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("n", N):
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def column(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(1, 1), 3.0).to_event(2))
    with pyro.plate("n", N):
        pyro.sample("y", dist.Normal(x[:, None] @ w.to(x.dtype), 1.0), obs=y)


def no_plate(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def latent_without_plate(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))
    with pyro.plate("n", N):
        pyro.sample("y", dist.Normal(a.sum(), 1.0), obs=y)


def one_in_a_plate(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("n", 2):
        pyro.sample("y", dist.Normal(a, 1.0).expand([1]), obs=y)


WRONG = {
    "y (N, 1)": (line, Y[:, None]),
    "mean (N, 1)": (column, Y),
    "no plate": (no_plate, Y),
    "latent without a plate": (latent_without_plate, Y),
    "plate of another size": (line, Y[:1].expand(3, N)),
}


def step(loss: Any, model: Callable[..., Any], y: Tensor) -> float:
    pyro.clear_param_store()
    return float(SVI(model, AutoFlow(model, TWO), pyro.optim.Adam({"lr": 1e-3}), loss).step(X, y))


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_fit_the_plates_are_refused_as_by_pyro(case: str) -> None:
    model, y = WRONG[case]
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        step(Trace_ELBO(), model, y)
    for loss in (ELBO(2), IWAE(2), ELBO(2, compile=True)):
        with pytest.raises(ValueError, match=r"site '[ya]' has an invalid log_prob shape: expected .* got .*to_event"):
            step(loss, model, y)


def test_the_refusal_names_site_shapes_plates_and_remedy() -> None:
    words = r"AutoFlow: site 'y' .* expected \(8,\) by its plates \('n' \(8\)\), got \(8, 8\).*\(8, 1\).*squeeze"
    for run in (lambda: VI(AutoFlow(line), progress_bar=False).run(X, Y[:, None]), lambda: joint_at(Y[:, None])):
        with pytest.raises(ValueError, match=words):
            run()
    with pytest.raises(ValueError, match=r"AutoDAIS: site 'y' .*invalid log_prob shape"):
        VI(AutoDAIS(line), progress_bar=False).run(X, Y[:, None])
    with pytest.raises(ValueError, match=r"site 'y' .*invalid log_prob shape"):
        SBC(AutoFlow(column), num_simulations=2, progress_bar=False).run(X, Y)


def joint_at(y: Tensor) -> Tensor:
    """Later data of another shape, after the first look."""
    guide = AutoFlow(line)
    guide.set_up((X, Y), {})
    joint = LogJoint(BoundModel(line, (X, Y)), guide.latents)
    joint.prepare()
    return joint.on(joint.bound.with_call((X, y), {}))(torch.zeros(2, 2))


def masked_and_scaled(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 4, dim=-1)
    with rows, columns, poutine.mask(mask=y.reshape(2, 4) > 1), poutine.scale(scale=2.0):
        pyro.sample("y", dist.Normal(a, 1.0), obs=y.reshape(2, 4))
    with pyro.plate("some", N, subsample_size=3) as index:
        pyro.sample("part", dist.Normal(a, 1.0), obs=y[index])
    pyro.factor("soft", -a.square())
    pyro.deterministic("many", a + torch.zeros(3))
    with pyro.plate("left", 3, dim=-3):
        pyro.sample("alone", dist.Normal(a, 1.0).expand([3, 1, 1]), obs=torch.zeros(3, 1, 1))


@config_enumerate
def mixture(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("n", N):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(a + 2 * k, 1.0), obs=y)


def test_what_pyro_accepts_is_accepted() -> None:
    for model, loss in ((masked_and_scaled, Trace_ELBO()), (mixture, TraceEnum_ELBO())):
        assert np.isfinite(step(loss, model, Y))
        assert np.isfinite(step(ELBO(2), model, Y))
        assert np.isfinite(step(IWAE(2), model, Y))


def test_whoever_turns_validation_off_is_not_told() -> None:
    with pyro.validation_enabled(False):
        assert np.isfinite(step(Trace_ELBO(), line, Y[:, None]))
        assert np.isfinite(step(ELBO(2), line, Y[:, None]))


@pytest.mark.parametrize("value", [np.float64(0.5), 0.5, (0.5,)], ids=["scalar", "float", "tuple"])
def test_data_that_are_no_tensors_are_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"site 'y' is observed with a .*expected a tensor.*torch.as_tensor"):
        VI(AutoFlow(no_plate), progress_bar=False).run(X, value)


# ---- precision ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float32, torch.float64], ids=["latents32", "latents64"])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODELS = [line, masked_and_scaled, mixture]


@pytest.mark.parametrize("model", [line, mixture])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_log_joint_has_the_latents_precision_and_the_datas_values(
    model: Callable[..., Any], dtype: torch.dtype, default: torch.dtype
) -> None:
    call = X.to(dtype), Y.to(dtype)
    joints = []
    for args in (call, [part.to(default) for part in call]):
        guide = AutoFlow(model)
        guide.set_up(args, {})
        joint = LogJoint(BoundModel(model, args), guide.latents)
        assert joint.prepare() is Vectorization.VMAP
        z = torch.linspace(-1, 1, 3 * guide.latent_dim).reshape(3, -1).requires_grad_()
        for how in Vectorization:
            if not (joint.enumerates and how is Vectorization.PLATE):
                value = joint._ways[how](z)
                joints.append((value, torch.autograd.grad(value.sum(), z)[0]))
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype.itemsize > 2 else {"rtol": 0.03, "atol": 0.03}
    for value, gradient in joints:
        assert value.dtype == gradient.dtype == default
        torch.testing.assert_close(value, joints[-1][0], **close)
        torch.testing.assert_close(gradient, joints[-1][1], **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_objectives_train_on_data_of_another_precision(dtype: torch.dtype, default: torch.dtype) -> None:
    for loss in (ELBO(4), IWAE(4), ELBO(4, "total"), IWAE(4, "path"), ELBO(4, compile=True), IWAE(4, compile=True)):
        pyro.clear_param_store()
        guide = AutoFlow(line, TWO)
        svi = SVI(line, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        assert np.isfinite([svi.step(X.to(dtype), Y.to(dtype)) for _ in range(3)]).all()
        assert {p.dtype for p in guide.parameters()} == {default}


def fitted(guide: AutoFlow, *call: Tensor, **kwargs: Any) -> Tensor:
    vi = VI(guide, num_steps=100, seed=0, progress_bar=False, **kwargs).run(*call)
    samples = vi.get_samples(4000)
    return torch.stack([samples["a"], samples["b"]], -1)


@pytest.mark.parametrize("engine", ["eager", "traced", "compiled"])
def test_the_posterior_is_that_of_the_data_in_the_latents_precision(engine: str) -> None:
    torch.set_default_dtype(torch.float32)
    try:
        draws = fitted(AutoFlow(line, TWO), X, Y, engine=engine)
    finally:
        torch.set_default_dtype(torch.float64)
    design = torch.stack([torch.ones(N), X], -1)
    covariance = torch.linalg.inv(design.T @ design + torch.eye(2) / 9)
    mean, sd = covariance @ design.T @ Y, covariance.diagonal().sqrt()
    assert draws.dtype == torch.float32
    assert ((draws.double().mean(0) - mean).abs() < 5 * sd / 4000**0.5 + 1e-3).all()
    assert ((draws.double().std(0) / sd - 1).abs() < 5 / 8000**0.5).all()


def matmul(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    with pyro.plate("n", N):
        pyro.sample("y", dist.Normal(x[:, None] @ w, 1.0), obs=y)


def test_a_matrix_product_of_two_precisions_says_what_to_do(default: torch.dtype) -> None:
    other = torch.float32 if default is torch.float64 else torch.float64
    words = r"dtypes.*argument 0 \(float\d\d\).*x\.to\(torch\.float\d\d\).*set_default_dtype"
    with pytest.raises(TypeError, match=words):
        AutoFlow(matmul)(X.to(other), Y.to(other))
    guide = AutoFlow(matmul)
    guide(X.to(default), Y.to(default))
    with pytest.raises(TypeError, match=words):
        LogJoint(BoundModel(matmul, (X.to(other), Y.to(other))), guide.latents).prepare()
