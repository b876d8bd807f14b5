"""The log joint density of a Pyro model, in the plainest way: what faster code is checked against.

Supports are read once, as guides read them, so a support must not depend on a latent variable.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

Model = Callable[..., None]
Values = Mapping[str, Tensor]


def conditioned_trace(model: Model, args: tuple[Any, ...], values: Values) -> Any:
    """Run ``model`` with every latent variable set to its value, and trace it."""
    return poutine.trace(poutine.condition(model, dict(values))).get_trace(*args)


def log_joint(model: Model, args: tuple[Any, ...], values: Values) -> Tensor:
    """The log joint density at one value of each latent variable, on its own support."""
    return torch.as_tensor(conditioned_trace(model, args, values).log_prob_sum())


class UnconstrainedLogJoint:
    """The log joint density over all of Euclidean space, a pure function of site values.

    :param model: a Pyro model.
    :param args: its arguments.
    :param example: a value of each latent variable, on its support.
    """

    def __init__(self, model: Model, args: tuple[Any, ...], example: Values) -> None:
        self.model, self.args = model, args
        nodes = conditioned_trace(model, args, example).nodes
        self.transforms = {name: biject_to(nodes[name]["fn"].support) for name in example}

    def unconstrain(self, values: Values) -> dict[str, Tensor]:
        """Map values, with any batch shape on the left, off their supports."""
        return {name: self.transforms[name].inv(value) for name, value in values.items()}

    def __call__(self, unconstrained: Values) -> Tensor:
        """Log density at one point, including the log-determinants of the supports' maps."""
        values = {name: self.transforms[name](u) for name, u in unconstrained.items()}
        log_dets = (
            self.transforms[name].log_abs_det_jacobian(u, values[name]).sum() for name, u in unconstrained.items()
        )
        return sum(log_dets, log_joint(self.model, self.args, values))


def log_joint_by_plate(model: Model, args: tuple[Any, ...], values: Values) -> Tensor:
    """The log joint density at ``P`` values at once, ``(P,)``, under a particle plate."""
    num_particles = len(next(iter(values.values())))
    trace = conditioned_trace(model, args, {name: v[0] for name, v in values.items()})
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    depth = max((-f.dim for site in sites for f in site["cond_indep_stack"]), default=0)

    def widen(name: str, value: Tensor) -> Tensor:
        ones = depth - len(trace.nodes[name]["fn"].batch_shape)
        return value.reshape(value.shape[:1] + (1,) * ones + value.shape[1:])

    with pyro.plate("particles", num_particles, dim=-1 - depth):
        wide = conditioned_trace(model, args, {n: widen(n, v) for n, v in values.items()})
    wide.compute_log_prob()
    log_probs = [site["log_prob"] for site in wide.nodes.values() if "log_prob" in site]
    return torch.stack([lp.reshape(num_particles, -1).sum(-1) for lp in log_probs if lp.dim()]).sum(0)
