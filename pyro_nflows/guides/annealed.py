r"""A guide that follows the model's own gradient."""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from pyro import poutine
from pyro.infer.autoguide import init_to_median
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..flows.distribution import FlowDistribution
from ..flows.whitened import Whitened
from ..layers import Hamiltonian, Rescaled
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.log_joint import LogJoint
from ..system.randomness import forked
from . import checks
from .centers import Centers
from .flow import AutoFlow

#: What the base may be, and whether it has a full matrix.
BASES = {"full_rank": True, "diagonal": False}


class AutoDAIS(AutoFlow):
    r"""Differentiable annealed importance sampling [1, 2]: leapfrog steps from a Gaussian to the posterior.

    Each draw begins in a trained Gaussian and follows the gradient of the model's own log density for ``num_steps``
    steps of :class:`~pyro_nflows.layers.Hamiltonian`, in coordinates in which the Gaussian is standard. There are few
    parameters, whatever the model, and more steps give a better bound; each draw costs ``num_steps + 1`` gradients of
    the model. Its density is known up to a bound, as for :class:`~pyro_nflows.AutoCIF`; importance weights, IWAE and
    PSIS are exact.

    The guide draws by the model at the arguments of the latest call: it cannot draw without its model (after
    unpickling, say), nor stand in an ``AutoGuideList`` or in :class:`~pyro_nflows.SBC`. Where a call leaves data out,
    as ``Predictive`` does to have them predicted, draws are at the arguments of the latest call that had them. A model
    that subsamples its data is refused: noise in the gradients would spoil every weight [1].

    :param model: a Pyro model.
    :param num_steps: :math:`K`, the number of steps.
    :param num_leapfrog: leapfrog steps at each temperature.
    :param damping: share of the momentum that a step leaves, at the start; 0 is Langevin dynamics.
    :param base: ``"full_rank"`` or ``"diagonal"``, the Gaussian.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: of hierarchical sites, as for :class:`~pyro_nflows.AutoFlow`.
    :raises ValueError: if ``base`` is another; when called, if the model is random given its latents.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> guide = AutoDAIS(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
        >>> guide()["z"].shape
        torch.Size([3])

    **References**

    [1] G. Zhang, K. Hsu, J. Li, C. Finn, R. Grosse (2021). Differentiable Annealed Importance Sampling and the Perils
    of Gradient Noise.

    [2] T. Geffner, J. Domke (2021). MCMC Variational Inference via Uncorrected Hamiltonian Annealing.
    """

    needs_model = True

    def __init__(
        self,
        model: Callable[..., Any],
        num_steps: int = 8,
        num_leapfrog: int = 1,
        damping: float = 0.9,
        base: str = "full_rank",
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        centering: Centers | None = "auto",
    ):
        if base not in list(BASES):
            raise ValueError(f"{type(self).__name__}: base must be one of {list(BASES)}, got {base!r}")
        Hamiltonian(1, num_steps=num_steps, num_leapfrog=num_leapfrog, damping=damping)  # a mistake is told here
        build = functools.partial(Hamiltonian, num_steps=num_steps, num_leapfrog=num_leapfrog, damping=damping)
        super().__init__(
            model,
            build,
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            create_plates=create_plates,
            centering=centering,
            structure="joint",
        )
        self._full_rank = BASES[base]
        self._joint: LogJoint | None = None

    # ---- the model's log density ----------------------------------------------------------------------------

    def receive(self, args: Any, kwargs: Any, start: Tensor | None = None) -> None:
        checks.refuse_tracing(type(self).__name__)
        self.set_up(args, kwargs)
        if self._bound is None or not self._lacks_data(self._bound, args, kwargs):
            self._bound = self._fitting(BoundModel(self.bare_model, args, kwargs))
        if self._joint is None:
            self._joint = self._prepared(self._bound, start)

    def _lacks_data(self, latest: BoundModel, args: Any, kwargs: Any) -> bool:
        """Whether a run at arguments of another kind than the latest draws sites that the guide does not know."""
        if _kinds((args, kwargs)) == _kinds(latest.call):
            return False
        latents = poutine.block(self.bare_model, hide_fn=self._prototype_hide_fn)
        with poutine.block(), forked(), torch.no_grad():
            found = poutine.trace(latents).get_trace(*args, **kwargs).stochastic_nodes
        return not set(found) <= set(self.latents.names)

    def _prepared(self, bound: BoundModel, start: Tensor | None) -> LogJoint:
        name = type(self).__name__
        checks.refuse_lists(name, self.master)
        joint = LogJoint(bound, self.latents)
        joint.start = start
        with poutine.block(), torch.no_grad():
            near = joint.look()
            checks.refuse_minibatches(name, joint.run(near[0]))
            joint.prepare()
            checks.refuse_random(name, *(joint(near) for _ in range(2)))
        self.follow(joint)
        return joint

    def log_joint(self, z: Tensor) -> Tensor:
        """The model's log density at rows of the flat latent, at the arguments of the latest call."""
        with poutine.block():
            return self._joint_at(self._bound or BoundModel(self.bare_model))(z)

    def _joint_at(self, bound: BoundModel) -> LogJoint:
        if self._joint is None:
            self.receive(*bound.call)
        return cast(LogJoint, self._joint).on(bound)

    def layer_on(self, joint: LogJoint) -> Layer:
        layer, own_joint = self._need_setup(), self._joint_at(BoundModel(self.bare_model, *joint.bound.call))
        own: dict[int, Any] = {id(tensor): tensor for tensor in [*layer.parameters(), *layer.buffers()]}
        view = copy.deepcopy(layer, own)  # other modules of the same parameters
        for part in view.modules():
            if isinstance(part, Hamiltonian):
                part.log_density = cast(ModelDensity, part.log_density).on(own_joint)
        return view

    def _look_at_model(self, *args: Any, **kwargs: Any) -> None:
        super()._look_at_model(*args, **kwargs)
        self._bound, self._joint = BoundModel(self.bare_model, args, kwargs), None

    def _take_centering(self) -> None:
        super()._take_centering()
        self._joint = None

    def restore(self, coordinates: tuple[Any, ...]) -> None:
        super().restore(coordinates)
        self._joint = None

    def make_layer(self, loc: Tensor, modes: tuple[int, int] | None = None) -> Whitened:
        return self._connected(super().make_layer(loc, modes))

    def _connected(self, layer: Whitened) -> Whitened:
        """The layer with this guide's model in its leapfrog steps."""
        for part in layer.modules():
            if isinstance(part, Hamiltonian):
                part.log_density = ModelDensity(self, layer.end)
        return layer

    # ---- the posterior --------------------------------------------------------------------------------------

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        self.receive(args, kwargs)
        latent: Tensor = super().sample_latent()
        return latent

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """A fresh :class:`~pyro_nflows.FlowDistribution` over the flat unconstrained latent.

        :param args: the model's arguments, with ``kwargs``; without any, those of the latest call.
        """
        self._need_setup()
        if args or kwargs:
            self.receive(args, kwargs)
        return super().get_posterior()

    # ---- copying --------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "_joint": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        layer = self._modules.get("layer")
        if isinstance(layer, Rescaled):
            self._connected(cast(Whitened, layer.layer))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoDAIS":
        new = cast(AutoDAIS, super().__deepcopy__(memo))
        new._joint = copy.copy(self._joint)
        return new


def _kinds(call: tuple[Any, Any]) -> tuple[Any, list[Any]]:
    """What tells calls with data from those without: the arguments' structure, which are tensors, what others are."""
    leaves, structure = tree_flatten(call)
    plain = (bool, int, str, type(None))
    return structure, [leaf if isinstance(leaf, plain) else type(leaf) for leaf in leaves]


class ModelDensity:
    r"""The log density of a guide's model in front of the guide's affine end: of ``x``, where ``z = end(x)``.

    Copies are of the same guide: the arguments that it is given, they use.

    :param guide: holds the model and its arguments.
    :param end: the affine layer.
    :param joint: the model at arguments that stay the same, in place of the guide's latest.
    """

    def __init__(self, guide: AutoDAIS, end: Layer, joint: LogJoint | None = None):
        self.guide: AutoDAIS | None = guide
        self.end, self.joint = end, joint

    def on(self, joint: LogJoint) -> "ModelDensity":
        """That of the model at the arguments of a log joint, whatever the guide's are."""
        new = copy.copy(self)
        new.joint = joint
        return new

    def __call__(self, x: Tensor) -> Tensor:
        z, log_weight = self.end(x)
        if self.joint is not None:
            with poutine.block():
                return self.joint(z) + log_weight
        if self.guide is None:
            raise checks.need_guide()
        return self.guide.log_joint(z) + log_weight

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelDensity":
        new = copy.copy(self)
        memo[id(self)] = new
        new.guide, new.end = self.guide, copy.deepcopy(self.end, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {"guide": None, "end": self.end, "joint": None}
