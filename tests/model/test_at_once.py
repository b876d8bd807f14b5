"""Like operations of a loop done at once give the model's numbers, gradients and curvature, and only where they do."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_nflows import AutoFlow
from pyro_nflows.engine.tape import Tape
from pyro_nflows.inference.plan import Plan
from pyro_nflows.inference.running import Fitter
from pyro_nflows.model import at_once as module
from pyro_nflows.model.at_once import AtOnce, at_once
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.like_calls import groups_of, recorded
from pyro_nflows.model.log_joint import LogJoint

NUM = 60
Y = torch.randn(NUM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Model = Callable[[Tensor], None]


def normal(name: str) -> Tensor:
    return pyro.sample(name, dist.Normal(Y.new_zeros(()), 1.0))


def chain(y: Tensor) -> None:
    """An autoregression whose states are latents."""
    a, b, level, scale = normal("a"), normal("b"), normal("level"), normal("scale").exp()
    before = last = y.new_zeros(())
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(a * last + b * before, scale))
        pyro.sample(f"y_{t}", dist.StudentT(4.0, level + x, scale), obs=y[t])
        before, last = last, x


def recursion(y: Tensor) -> None:
    """The same where steps are latents: states wait for each other, what is observed of them does not."""
    phi, scale = normal("phi").tanh(), normal("scale").exp()
    z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    h = scale * z[0]
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(0.0, (h / 2).exp()), obs=y[t])
        if t + 1 < len(y):
            h = phi * h + scale * z[t + 1]


def lists(y: Tensor) -> None:
    """Lists that are stacked, a sum that is added up, parts of several lengths, backwards and in threes."""
    scale, z = normal("scale").exp(), pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0).to_event(1))
    rows = [z[t] * scale + (z[t - 1] if t else 0) for t in range(len(y))]
    total = y.new_zeros(())
    for t in range(len(y)):
        total = total - (z[len(y) - 1 - t] - y[t]) ** 2 * scale
    for part in [*z.split(3), *z.unfold(0, 3, 1).unbind()]:
        total = total - part.logsumexp(0)
    for t in range(2, len(y) - 2):
        total = total - z[t - 2 : t + 2].max() * z[-t] - z[t:].square().sum() - z[:t:2].sum()
    pyro.factor("total", total / len(y))
    pyro.sample("y", dist.Normal(torch.stack(rows), 1.0).to_event(1), obs=y)


def groups(y: Tensor) -> None:
    """Groups with a plate each, some of them larger."""
    loc = normal("loc")
    for i, part in enumerate([*y.split(3), y[:7], y[3:10]]):
        mu, scale = (
            pyro.sample(f"mu_{i}", dist.Normal(loc, 1.0)),
            pyro.sample(f"scale_{i}", dist.LogNormal(0.0 * loc, 1.0)),
        )
        with pyro.plate(f"plate_{i}", len(part)):
            pyro.sample(f"y_{i}", dist.Normal(mu, scale), obs=part)


def simplices(y: Tensor) -> None:
    """Supports that are no lines: simplices, and factors of correlation matrices."""
    for i in range(0, len(y), 3):
        p = pyro.sample(f"p_{i}", dist.Dirichlet(y.new_ones(3)))
        pyro.sample(f"n_{i}", dist.Categorical(p), obs=(y[i] > 0).long())
        chol = pyro.sample(f"chol_{i}", dist.LKJCholesky(3, y.new_tensor(1.5)))
        pyro.sample(f"y_{i}", dist.MultivariateNormal(y.new_zeros(3), scale_tril=chol), obs=y[i : i + 3])


def branching(y: Tensor) -> None:
    """Python that depends on the data."""
    loc, scale = normal("loc"), normal("scale").exp()
    for t in range(len(y)):
        if y[t] > 0:
            pyro.sample(f"y_{t}", dist.Normal(loc, scale), obs=y[t])
        else:
            pyro.sample(f"y_{t}", dist.StudentT(3.0, loc, 2 * scale), obs=y[t])


@config_enumerate
def hidden(y: Tensor) -> None:
    """A hidden Markov model, of which Pyro sums the states out."""
    loc = pyro.sample("loc", dist.Normal(y.new_tensor([-1.0, 1.0]), 1.0).to_event(1))
    probs = pyro.sample("probs", dist.Dirichlet(y.new_ones(2, 2)).to_event(1))
    x: Any = 0
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Categorical(probs[x]))
        pyro.sample(f"y_{t}", dist.Normal(loc[x], 1.0), obs=y[t])


#: And the most steps that may be left of each.
MODELS: dict[Model, int] = {
    chain: 50,
    recursion: 320,
    lists: 340,
    groups: 70,
    simplices: 90,
    branching: 30,
    hidden: 1700,
}


@pytest.fixture(autouse=True)
def doubles() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def joints(model: Model, y: Tensor) -> tuple[LogJoint, LogJoint]:
    """Of a model as it is written, and with its like operations done at once."""
    guide = AutoFlow(model, centering=None, end="diagonal", structure="joint")
    with pyro.validation_enabled(False):
        guide.set_up((y,), {})
    plain, gathered = (LogJoint(BoundModel(guide.bare_model, (y,)), guide.latents) for _ in range(2))
    plain.gathers = False
    plain.prepare()
    gathered.prepare()
    return plain, gathered


def points(joint: LogJoint, num: int = 4) -> Tensor:
    start = joint.latents.init_loc()
    return start + 0.7 * torch.randn(num, len(start), generator=torch.Generator().manual_seed(1)).to(start)


def with_grads(joint: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    values = joint(z)
    return values.detach(), torch.autograd.grad(values.sum(), z)[0]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_values_and_gradients_are_those_of_the_loop(model: Model) -> None:
    plain, gathered = joints(model, Y)
    assert plain.at_once is None
    assert gathered.at_once is not None
    assert len(gathered.at_once) <= MODELS[model]
    z = points(plain)
    for ours, theirs in zip(with_grads(gathered, z), with_grads(plain, z)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model", [chain, lists, simplices], ids=lambda model: model.__name__)
def test_hessians_are_those_of_the_loop(model: Model) -> None:
    plain, gathered = joints(model, Y[:30])
    assert gathered.at_once is not None
    z = points(plain, 1)[0]
    v = torch.linspace(-1.0, 1.0, len(z))
    ours, theirs = (
        torch.autograd.functional.hvp(lambda z, joint=joint: joint(z[None])[0], z, v)[1] for joint in (gathered, plain)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_recording_of_them_can_be_bound_to_other_data() -> None:
    """As that of the loop itself: data are no constants."""
    _, gathered = joints(chain, Y)
    z = points(gathered)
    tape = Tape(lambda z: [gathered(z)], [z], gathered.bound.tensors)
    other = 2 * Y.flip(0) + 1
    plain, _ = joints(chain, other)
    torch.testing.assert_close(tape.bound([other]).run([z])[0], plain(z))


def test_the_log_joint_of_other_arguments_has_none() -> None:
    _, gathered = joints(chain, Y)
    other = gathered.on(BoundModel(gathered.bound.model, (2 * Y,)))
    assert other.at_once is None
    assert not torch.allclose(other(points(other)), gathered(points(other)))


def test_in_double_precision_they_are_recorded_again() -> None:
    torch.set_default_dtype(torch.float32)
    _, gathered = joints(groups, Y.float())
    z = points(gathered)
    torch.set_default_dtype(torch.float64)
    double = gathered.double
    assert double is gathered.double
    assert double.at_once is not None
    plain = double.on(double.bound)
    torch.testing.assert_close(double(z.double()), plain(z.double()))


# ---- what is left as it is written -----------------------------------------------------------------------------------


def random(y: Tensor) -> None:
    loc = normal("loc")
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(loc + torch.randn(()), 1.0), obs=y[t])


def detached(y: Tensor) -> None:
    """Its gradient is not that of its operations."""
    loc = normal("loc")
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(loc + loc.detach(), 1.0 + t), obs=y[t])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return Doubled.apply(x), in_dims[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def derived(y: Tensor) -> None:
    loc = normal("loc")
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(Doubled.apply(loc), 1.0 + t), obs=y[t])


def with_parameters(y: Tensor) -> None:
    loc, width = normal("loc"), pyro.param("width", torch.ones(()))
    for t in range(len(y)):
        pyro.sample(f"y_{t}", dist.Normal(loc * width, 1.0 + t), obs=y[t])


@pytest.mark.parametrize("model", [random, detached, derived, with_parameters], ids=lambda model: model.__name__)
def test_what_operations_do_not_stand_for_is_left_alone(model: Model) -> None:
    _, gathered = joints(model, torch.cat([Y, Y]))
    assert gathered.at_once is None


def test_short_models_are_left_alone() -> None:
    _, gathered = joints(chain, Y[:5])
    assert gathered.at_once is None


def test_python_that_depends_on_values_is_left_alone() -> None:
    def function(z: Tensor) -> Tensor:
        return sum((x if x > 0 else 2 * x) ** 2 for x in z)  # type: ignore[return-value]

    assert at_once(function, torch.ones(module.MANY)) is None


def test_operations_that_differ_are_left_alone() -> None:
    def function(z: Tensor) -> Tensor:
        x = z[0]
        for _ in range(module.MANY):
            x = (x + z[1]).sin()
        return x

    assert at_once(function, torch.ones(2)) is None


@pytest.mark.parametrize(("engine", "is_gathered"), [("eager", False), ("traced", True), (None, True)])
def test_the_eager_engine_runs_the_model_itself(engine: str | None, is_gathered: bool) -> None:
    guide, plan = AutoFlow(groups, end="diagonal"), Plan.asked("VI", engine=engine)
    joint, trainer = Fitter(guide).alone(plan, ((Y,), {}), None)
    trainer.close()
    assert (joint.at_once is not None) == is_gathered


# ---- the plan --------------------------------------------------------------------------------------------------------


def steps_of(function: Callable[[Tensor], Tensor], z: Tensor) -> AtOnce:
    found = recorded(function, z)
    assert found is not None
    made = AtOnce(found, groups_of(found))
    torch.testing.assert_close(made(z), function(z))
    for ours, theirs in zip(with_grads(torch.vmap(made), z[None]), with_grads(torch.vmap(function), z[None])):
        torch.testing.assert_close(ours, theirs)
    return made


def test_rows_are_found_by_number_where_they_are_in_no_order() -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()

    def function(z: Tensor) -> Tensor:
        first = [x.exp() for x in z]
        fixed = [torch.tensor(float(i)) for i in range(10)]
        pairs = [(first[i] if i % 4 else fixed[i // 4]) * first[j] for i, j in zip(order, order[1:])]
        return sum(pairs)  # type: ignore[return-value]

    assert len(steps_of(function, torch.linspace(-1.0, 1.0, 40))) < 10


def test_operations_with_several_results_and_matrices() -> None:
    def function(z: Tensor) -> Tensor:
        total = z.new_zeros(())
        for block in z.reshape(10, 4):
            matrix = block.reshape(2, 2)
            top, _ = matrix.max(0)
            total = total + torch.linalg.slogdet(matrix @ matrix.T + torch.eye(2))[1] + top.prod()
            total = total + torch.cat([matrix, matrix.T], -1).sum().sin()
        return total

    assert len(steps_of(function, torch.linspace(-1.0, 2.0, 40))) < 60


def test_a_long_sum_needs_no_deep_recursion() -> None:
    z = torch.linspace(0.0, 1.0, 3000)
    assert len(steps_of(lambda z: sum(x * x for x in z), z)) < 10  # type: ignore[arg-type, return-value]
