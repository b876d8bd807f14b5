r"""Guides over all latents of a model at once: its sites, and one flat vector that holds them unconstrained."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import AutoGuide, prototype_hide_fn
from torch import Tensor

from ..model import data_checks, following, latents, supports
from ..model import log_joint as joints
from ..model.initialization import FlatPriors
from . import checks, sites


class JointGuide(AutoContinuous):
    """An autoguide whose posterior is over the flat latent, with supports and masks followed from run to run.

    :param model: a Pyro model of fixed structure.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    """

    layer: Any
    prototype_trace: Any
    #: Sites whose support depends on other latents, on parameters or on arguments.
    moving: frozenset[str] = frozenset()
    #: Masked sites that count with their prior, and whether their mask depends on an enumerated site.
    filled: dict[str, bool] = {}
    _call: tuple[Any, Any] | None = None

    def __init__(self, model: Callable[..., Any], init_loc_fn: Callable[..., Any]):
        super().__init__(model, init_loc_fn=FlatPriors(init_loc_fn))
        self._bare_model: tuple[Callable[..., Any]] | None = (model,)

    @property
    def model(self) -> Callable[..., Any]:
        """The model, started at the guide's initial values."""
        return checks.need_model(type(self).__name__, self._model)

    @property
    def bare_model(self) -> Callable[..., Any]:
        """The model as it was given."""
        return checks.need_model(type(self).__name__, self._bare_model)

    # ---- structure -------------------------------------------------------------------------------------------

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        """Also leave enumerated sites to the objective."""
        return prototype_hide_fn(msg) or msg["infer"].get("enumerate") == "parallel"

    @torch.inference_mode(False)  # or its parameters could not be trained
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._look_at_model(*args, **kwargs)
        except Exception:
            self.prototype_trace = None  # so that the next call looks, and complains, again
            raise

    def _look_at_model(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        try:
            AutoGuide._setup_prototype(self, *args, **kwargs)
        except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            if self.prototype_trace is not None:
                checks.refuse_sites(name, self.prototype_trace)
            mixed = data_checks.mixed_dtypes(name, error, args, kwargs)
            if mixed is not None:
                raise mixed from error
            raise
        checks.refuse_sites(name, self.prototype_trace)
        nodes = dict(self.prototype_trace.iter_stochastic_nodes())
        self._unconstrained_shapes = {n: latents.unconstrained_shape(name, site) for n, site in nodes.items()}
        self._cond_indep_stacks = {n: site["cond_indep_stack"] for n, site in nodes.items()}
        self.latent_dim = sum(shape.numel() for shape in self._unconstrained_shapes.values())
        if not self.latent_dim:
            raise checks.no_latents(name)
        checks.refuse_subsampled(name, self._cond_indep_stacks)
        if following.needs_look(nodes.values()):
            with poutine.block(), torch.random.fork_rng(devices=[]):
                joints.LogJoint(self.bare_model, self).look(*args, **kwargs)

    def _init_loc(self) -> Tensor:
        nodes = [self.prototype_trace.nodes[name] for name in self._unconstrained_shapes]
        return torch.cat([supports.bijection(s["fn"]).inv(s["value"].detach()).reshape(-1) for s in nodes])

    def follow(self, moving: frozenset[str], filled: dict[str, bool], args: Any, kwargs: Any) -> None:
        """Hear which supports move, and which masked sites count with their prior (and whether case by case).

        The latest arguments are remembered where values cannot be found without a run of the model.
        """
        self.moving, self.filled = moving, filled
        if moving:
            self._call = (args, kwargs)

    def attend(self, args: Any, kwargs: Any, start: Tensor | None = None) -> None:
        """Receive the model's arguments and a point of finite density, before drawing; for guides that use them."""
        self._call = (args, kwargs) if self.moving else None

    @property
    def latent_names(self) -> list[str]:
        """Names of the latent sites, in the order in which the flat latent holds them."""
        self._need_setup()
        return list(self._unconstrained_shapes)

    def _need_setup(self) -> Any:
        if self.layer is None or self.prototype_trace is None:
            raise RuntimeError(
                f"{type(self).__name__} does not know the model's latents yet; "
                "call guide(*args) once with the model's arguments"
            )

    # ---- between the flat latent and the sites ---------------------------------------------------------------

    def _unpack_rows(self, draws: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Each site with its unconstrained values ``(num_draws, *site shape)``."""
        sizes = [torch.Size(s).numel() for s in self._unconstrained_shapes.values()]
        for (name, shape), part in zip(self._unconstrained_shapes.items(), draws.split(sizes, -1)):
            yield self.prototype_trace.nodes[name], part.reshape(draws.shape[:-1] + shape)

    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """Each site's unconstrained value ``(..., *site shape)`` in flat latents."""
        return {site["name"]: part for site, part in self._unpack_rows(latent)}

    def constrain(self, latent: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Flat unconstrained draws ``(num_draws, latent_dim)`` to a dict of site values.

        :param latent: the draws.
        :param args: the model's arguments, with ``kwargs``; read where a support depends on other latents or on them,
            so that the model has to be run. Without any, those of the latest call.
        :raises RuntimeError: where they are needed, and there was no call.
        """
        self._need_setup()
        if self.moving:
            call = self._latest(args, kwargs)
            return latents.constrained(self._joint_at(call), latent, *call)
        return {s["name"]: supports.bijection(s["fn"])(value) for s, value in self._unpack_rows(latent)}

    def unconstrain(self, values: dict[str, Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""The inverse of :meth:`constrain`: flat latents, and the log-determinants of :meth:`constrain` there.

        :param values: a dict from site to a value of the site's shape, or with leading dimensions.
        :param args: as for :meth:`constrain`, with ``kwargs``.
        :raises ValueError: if a site is missing, or has another shape.
        """
        self._need_setup()
        nodes = self.prototype_trace.nodes
        for name in self._unconstrained_shapes:
            checks.check_value(type(self).__name__, nodes[name], values)
        if self.moving:
            call = self._latest(args, kwargs)
            return latents.unconstrained(self._joint_at(call), values, *call)
        shapes = self._unconstrained_shapes.items()
        rows, log_dets = zip(*(latents.unconstrained_value(nodes[n], values[n], len(shape)) for n, shape in shapes))
        return torch.cat(rows, -1), sum(log_dets)

    def _latest(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args or kwargs:
            return args, kwargs
        if self._call is None:
            raise checks.need_call(type(self).__name__, self.moving)
        return self._call

    def _joint_at(self, call: tuple[Any, Any]) -> "joints.LogJoint":
        joint = joints.LogJoint(self.bare_model, self)
        with poutine.block(), torch.random.fork_rng(devices=[]):
            joint.look(*call[0], **call[1])
        return joint

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, as a Pyro guide.

        :return: a dict from site to its value.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self.attend(args, kwargs)
        latent, plates, result = self.sample_latent(*args, **kwargs), self._create_plates(*args, **kwargs), {}
        for name, point in sites.points(self, latent, args, kwargs).items():
            with contextlib.ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, point)
        return result
