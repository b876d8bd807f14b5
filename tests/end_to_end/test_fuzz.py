"""Models made at random: their log joint is that of Pyro's own trace, whichever engine runs them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import biject_to

from pyro_nflows import ELBO, AutoFlow
from pyro_nflows.engine import DensityGradient, Engine, Inputs, Program, prepare
from pyro_nflows.engine.native import build
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.layers import LocScale
from pyro_nflows.model.at_once import AtOnce
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.coordinates import Coordinates
from pyro_nflows.model.like_calls import groups_of, recorded
from pyro_nflows.model.log_joint import LogJoint, Vectorization
from pyro_nflows.model.vectorization import takes_plate
from pyro_nflows.system.exclusive import validation
from tests.random_models import BIJECTIONS, FLAWS, Description, Latent, Observed, descriptions

#: The same models in any process and order, without a file, and none of them too slow.
QUIET: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def same(found: Any, right: Any) -> None:
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


# ---- Pyro's own density, step by step -------------------------------------------------------------------------


def trace_at(description: Description, values: dict[str, Tensor]) -> Any:
    trace = poutine.trace(poutine.condition(description.model, values)).get_trace()
    trace.compute_log_prob()
    return trace


def values_at(
    description: Description, start: dict[str, Tensor], parts: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Values of the latents, each on the support that it has beside the earlier ones, and the log-determinant."""
    values, log_det = dict(start), torch.zeros(())
    for name, part in parts.items():
        fn = poutine.trace(poutine.condition(description.model, values)).get_trace().nodes[name]["fn"]
        known = BIJECTIONS.get(description.latents[int(name[1:])].prior) if name[1:].isdigit() else None
        transform = known or biject_to(fn.support)
        values[name] = transform(part)
        log_det = log_det + transform.log_abs_det_jacobian(part, values[name]).sum()
    return values, log_det


def summed(description: Description, values: dict[str, Tensor]) -> Tensor:
    """Pyro's log density at values of the latents, summed over every assignment of the labels."""
    trace = trace_at(description, values)
    names = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    mixed = [name for name in names if name.startswith("mixed")]
    rest = torch.stack([site_sum(trace, name) for name in names if name not in mixed]).sum()
    if not mixed:
        return rest
    scale = trace.nodes[mixed[0]]["scale"]
    terms = []
    for chosen in assignments(trace):
        trace = trace_at(description, {**values, **chosen})
        terms.append(torch.stack([site_sum(trace, name) for name in mixed]).sum() / scale)
    return rest + scale * torch.stack(terms).logsumexp(0)


def assignments(trace: Any) -> Iterator[dict[str, Tensor]]:
    """Every value that the labels can have together; each of them is 0 or 1."""
    labels = {n: s["value"] for n, s in trace.nodes.items() if s.get("infer", {}).get("enumerate") == "parallel"}
    sizes = [value.numel() for value in labels.values()]
    for flat in itertools.product([0, 1], repeat=sum(sizes)):
        parts = zip(labels.items(), torch.tensor(flat).split(sizes))
        yield {name: part.reshape(value.shape).to(value) for (name, value), part in parts}


def site_sum(trace: Any, name: str) -> Tensor:
    return torch.as_tensor(trace.nodes[name]["log_prob_sum"])


def priors_where_masked(description: Description, values: dict[str, Tensor], log_p: Tensor) -> Tensor:
    """Of latents on which nothing depends where they are masked, the prior there."""
    total = torch.zeros(())
    for name, (prior, mask) in description.masks.items():
        slope = None
        if log_p.requires_grad:
            (slope,) = torch.autograd.grad(log_p, values[name], retain_graph=True, allow_unused=True)
        log_prior = prior.expand(values[name].shape[: values[name].dim() - prior.event_dim]).log_prob(values[name])
        slopes = torch.zeros_like(log_prior) if slope is None else sum_rightmost(slope.abs(), prior.event_dim)
        if not bool((slopes * ~mask).any()):
            total = total + (log_prior * ~mask).sum()
    return total


def by_pyro(description: Description, guide: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log joint at one flat latent by Pyro alone, and its gradient."""
    z = z.detach().requires_grad_()
    values, log_det = values_at(description, start_of(guide), guide.latents.unpack(z))
    log_p = summed(description, values)
    log_p = log_p + priors_where_masked(description, values, log_p) + log_det
    return log_p.detach(), torch.autograd.grad(log_p, z)[0]


# ---- the laws -------------------------------------------------------------------------------------------------


def check_by_loop(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    same(joint._ways[Vectorization.LOOP](z), joint(z))


def check_by_plate(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    """Where the model can broadcast along a plate outside of it."""
    with torch.no_grad():
        values = joint(z)
        is_taken = not joint.enumerates and takes_plate(joint._ways, values, z)
    if is_taken:
        same(joint._ways[Vectorization.PLATE](z).detach(), values)


def check_at_once(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    """Like operations at once, however few there are."""
    if joint.has_parameters():
        return
    with validation(False):
        recording = recorded(joint.single, z[0], joint.bound.tensors)
    assert recording is not None
    gathered = DensityGradient(torch.vmap(AtOnce(recording, groups_of(recording))))
    same(gathered._values_and_grads(z), DensityGradient(joint)._values_and_grads(z))


def check_values(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    """Values of the sites, and back; the density of the guide there."""
    values = guide.constrain(z)
    back, log_det = guide.unconstrain(values)
    torch.testing.assert_close(back, z, rtol=1e-5, atol=1e-5)
    right = [values_at(description, start_of(guide), guide.latents.unpack(row))[1] for row in z]
    torch.testing.assert_close(log_det, torch.stack(right), rtol=1e-5, atol=1e-5)


def check_loss(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    """Pyro's own objective, at the same draw; with labels its random numbers are others."""
    if description.labels is None:
        losses = []
        for objective in (ELBO(1), Trace_ELBO()):
            pyro.set_rng_seed(1)
            losses.append(objective.loss(description.model, guide))
        assert losses[0] == pytest.approx(losses[1], rel=1e-7, abs=1e-7)


def check_step(
    guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description, engine: Engine = Engine.TRACED
) -> None:
    """A step of training, and its gradient in the model's own parameters too, by an engine and by Python."""
    dim = guide.latent_dim
    program = Program(joint, LocScale(dim), ELBO(), Gradient.TOTAL, 2, joint.leaves(z[0]), max_norm=1e99)
    one = torch.ones(1)
    given = Inputs(torch.randn(1, 2, dim), 0 * one, one, 0 * one)
    runners = [prepare(program, each, given) for each in (Engine.EAGER, engine)]
    assert runners[1].engine is engine
    (right, right_loss), (found, loss) = (runner.run(program.init(), given) for runner in runners)
    same(loss, right_loss)
    same(found.mean, right.mean)


def check_in_coordinates(guide: AutoFlow, joint: LogJoint, z: Tensor, description: Description) -> None:
    """The same model in coordinates informed by its priors, and all else there."""
    pyro.clear_param_store()  # in coordinates the guide may have another structure
    own_guide, own = prepared(description, 0.4)
    transform = Coordinates(own)
    there = transform(z)
    same(own(z), joint(there) + transform.log_abs_det_jacobian(z, there))
    assert own.how is Vectorization.VMAP
    values, right = own_guide.constrain(z), guide.constrain(there)
    torch.testing.assert_close(values, right)
    slope = DensityGradient(own)
    same(slope.values_and_grads(z, 2), slope._values_and_grads(z))
    for way in (check_by_loop, check_by_plate, check_loss, check_step):
        way(own_guide, own, z, description)


WAYS = [check_by_loop, check_by_plate, check_at_once, check_values, check_loss, check_step, check_in_coordinates]


def start_of(guide: Any) -> dict[str, Tensor]:
    return {name: guide.prototype_trace.nodes[name]["value"] for name in guide.latent_names}


def prepared(description: Description, centering: float | None = None) -> tuple[AutoFlow, LogJoint]:
    guide = AutoFlow(description.model, LocScale, init_scale=0.3, centering=centering)
    guide()
    joint = LogJoint(BoundModel(description.model), guide.latents)
    joint.prepare()
    return guide, joint


def check(description: Description, ways: list[Callable[..., None]]) -> None:
    """The log joint and its gradient are Pyro's, recorded and as it is; and what is asked for besides."""
    guide, joint = prepared(description)
    z = guide.init_loc() + 0.7 * torch.randn(2, guide.latent_dim)
    right, slopes = zip(*(by_pyro(description, guide, row) for row in z))
    slope = DensityGradient(joint)
    for found in (slope._values_and_grads(z), slope.values_and_grads(z, 2)):
        same(found, (torch.stack(right), torch.stack(slopes)))
    assert None not in slope._tapes.values()
    assert joint.how is Vectorization.VMAP
    for way in ways:
        way(guide, joint, z, description)


def start_afresh() -> None:
    """Between the models of one test."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


#: In coordinates the second latent moves the third, whose data are not the second's: it counts with its prior.
MASKED_PARENT = Description(
    latents=tuple(
        Latent("normal", (), parent, 1.0, mask) for parent, mask in ((None, "none"), (None, "around"), (1, "around"))
    ),
    observed=(Observed("normal", "data", 0, 1.0, False), Observed("normal", "data", 2, 1.0, False)),
    labels=None,
    sizes=(2, 3),
    param=None,
    extras=frozenset(),
)


#: The first latent moves the support of the second, on which the third depends: it stays flat where it is masked.
MASKED_BOUND = Description(
    latents=(
        Latent("normal", (), None, 1.0, "around"),
        Latent("uniform up to another", (), 0, 1.0, "around"),
        Latent("normal", (), 1, 1.0, "none"),
    ),
    observed=(),
    labels=None,
    sizes=(2, 3),
    param=None,
    extras=frozenset(),
)


@settings(max_examples=60, **QUIET)
@given(description=descriptions(), way=st.sampled_from(WAYS))
@example(description=MASKED_BOUND, way=check_in_coordinates)
@example(description=MASKED_PARENT, way=check_in_coordinates)
def test_the_log_joint_is_that_of_pyros_trace(description: Description, way: Callable[..., None]) -> None:
    """None of them is refused, and none needs a slower engine: warnings are errors."""
    start_afresh()
    check(description, [way])


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
@settings(max_examples=3, **QUIET)
@given(description=descriptions())
def test_compiled_steps_are_those_of_python(description: Description) -> None:
    start_afresh()
    check(description, [functools.partial(check_step, engine=Engine.COMPILED)])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=1000, **QUIET)
@given(description=descriptions())
def test_a_thousand_models(description: Description) -> None:
    start_afresh()
    check(description, WAYS)


@pytest.mark.parametrize("flaw", FLAWS)
@settings(max_examples=3, **QUIET)
@given(description=descriptions())
def test_what_cannot_be_fitted_is_refused_by_name(flaw: str, description: Description) -> None:
    start_afresh()
    flawed = dataclasses.replace(description, flaw=flaw)
    with pytest.raises(ValueError, match="'flaw"):
        prepared(flawed)
