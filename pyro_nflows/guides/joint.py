r"""Guides over all latents of a model at once: its sites, and one flat vector that holds them unconstrained."""

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.guides import AutoGuide, prototype_hide_fn
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ..model import data_checks
from ..model.all_rows import all_rows
from ..model.bound import BoundModel
from ..model.call_checks import told
from ..model.initialization import FlatPriors
from ..model.latents import Latents
from ..model.log_joint import LogJoint
from ..model.subsample import InCreatedPlates, look
from ..model.subsampled_plates import plates_of
from ..model.values import constrained, unconstrained
from ..system.memory import enough
from ..system.randomness import forked
from . import checks, minibatch, sites
from .centers import Centers, Scales, chosen_centers
from .every_row import constrained_rows, unconstrained_rows
from .learned import LearnsCentering


class JointGuide(LearnsCentering, AutoContinuous):
    """An autoguide whose posterior is over the flat latent, with supports and masks followed from run to run.

    :param model: a Pyro model of fixed structure.
    :param init_loc_fn: where to start, as for Pyro's autoguides.
    """

    layer: Any
    prototype_trace: Any
    #: How centered sites are whose prior depends on other latents: as given, or as :class:`~pyro_nflows.VI` found,
    #: a dict from site to a tensor of its shape. See :class:`~pyro_nflows.AutoFlow`.
    centering: Centers | None = None
    _latents: Latents | None = None
    #: Of sites that are written non-centered, what makes their scale, as far as that was asked for.
    _scales: Scales = MappingProxyType({})
    _bound: BoundModel | None = None
    _takes_minibatches: bool | None = None

    def __init__(self, model: Callable[..., Any], init_loc_fn: Callable[..., Any]):
        super().__init__(model, init_loc_fn=FlatPriors(init_loc_fn))
        self._bare_model: tuple[Callable[..., Any]] | None = (model,)
        self._init_loc_fn: Callable[..., Any] | None = init_loc_fn

    @property
    def model(self) -> Callable[..., Any]:
        """The model, started at the guide's initial values."""
        return self._in_plates(checks.need_model(type(self).__name__, self._model))

    @property
    def bare_model(self) -> Callable[..., Any]:
        """The model as it was given; a plate of all rows has those of ``create_plates``, where there is one."""
        return self._in_plates(checks.need_model(type(self).__name__, self._bare_model))

    def _in_plates(self, model: Callable[..., Any]) -> Callable[..., Any]:
        return model if self.create_plates is None else InCreatedPlates(model, self.create_plates)

    @property
    def has_model(self) -> bool:
        """Whether it still has its model, which is not saved or pickled with it."""
        return self._bare_model is not None

    @property
    def init_loc_fn(self) -> Callable[..., Any] | None:
        """The function that says where to start; None where it was unpickled without its model."""
        return self._init_loc_fn

    def give_model(self, model: Callable[..., Any], init_loc_fn: Callable[..., Any]) -> None:
        """Give an unpickled guide its model again, as when it was made."""
        self._model = (InitMessenger(FlatPriors(init_loc_fn))(model),)
        self._bare_model, self._init_loc_fn = (model,), init_loc_fn

    # ---- structure -------------------------------------------------------------------------------------------

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        """Also leave enumerated sites to the objective."""
        return prototype_hide_fn(msg) or msg["infer"].get("enumerate") == "parallel"

    def set_up(self, args: Any, kwargs: Any) -> None:
        """Run the model for its structure, unless that is known."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)

    @torch.inference_mode(False)  # or its parameters could not be trained
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        asked, name = "the model's latents and a flow over them", type(self).__name__
        remedy = "give a smaller flow (fewer or narrower layers, end='low_rank'), or the model's plate a subsample_size"
        try:
            with enough(name, asked, 0, remedy):
                self._look_at_model(*args, **kwargs)
        except Exception:
            self.forget_structure()  # so that the next call looks, and complains, again
            raise

    def forget_structure(self) -> None:
        """Have the next call run the model for its structure again."""
        self.prototype_trace, self._latents, self._takes_minibatches = None, None, None

    def _look_at_model(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        try:
            with told(name, self.bare_model, args, kwargs):
                AutoGuide._setup_prototype(self, *args, **kwargs)
        except (RuntimeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            if self.prototype_trace is not None:
                checks.refuse_sites(name, self.prototype_trace)
            mixed = data_checks.mixed_dtypes(name, error, args, kwargs)
            if mixed is not None:
                raise mixed from error
            raise
        checks.refuse_sites(name, self.prototype_trace)
        latents = Latents.of(name, self.prototype_trace)
        if not latents.dim:
            raise checks.no_latents(name)
        bound = BoundModel(self.bare_model, args, kwargs)
        with_rows = minibatch.with_rows(name, bound, latents)
        centering, self._scales = chosen_centers(name, self.centering, LogJoint(with_rows, latents), self._scales)
        latents = latents.scaled(self._scales).centered(centering) if centering else latents
        if latents.may_move:
            latents = looked(LogJoint(with_rows, latents)).latents
        latents = all_rows(latents)
        self._latents = latents = latents.centered(centering) if centering else latents
        self._bound = bound if latents.moving or latents.one_run is not None else None
        self.latent_dim, self._unconstrained_shapes = latents.dim, latents.shapes  # Pyro reads these
        self._cond_indep_stacks = {site: latent.plates for site, latent in latents.sites.items()}
        if self.centering == "learned":
            self._learn(latents)

    def _take_centering(self) -> None:
        self._learned = None
        self._latents = self.latents.scaled(self._scales)
        like = self.latents.init_loc()
        chosen = 0.0 if self.centering == "auto" else self.centering or {}
        sites = chosen if isinstance(chosen, Mapping) else dict.fromkeys(self.latents.centering, chosen)
        self._latents = self.latents.centered({name: torch.as_tensor(c).to(like) for name, c in sites.items()})

    @property
    def latents(self) -> Latents:
        """The model's latents: their names and shapes, and where the flat latent holds them.

        :raises RuntimeError: before the first call.
        """
        if self._latents is None:
            raise checks.need_setup(type(self).__name__)
        return self._latents

    @property
    def scales(self) -> Scales:
        """Of sites that are written non-centered and are in other coordinates, what makes their scale."""
        return self._scales

    def takes_minibatches(self, args: Any, kwargs: Any) -> bool:
        """Whether the model has some rows of a plate only, with latents or without; as it was when first asked.

        :param args: the model's arguments, with ``kwargs``; without any, those that the guide has received.
        """
        if self._takes_minibatches is None and self.has_model:
            sites = {name: latent.site for name, latent in self.latents.sites.items()}
            is_received = self._bound is not None and not (args or kwargs)
            bound = self._bound if is_received else BoundModel(self.bare_model, args, kwargs)
            with forked():
                trace = look(cast(BoundModel, bound), sites)
            self._takes_minibatches = bool(plates_of(trace))
        return bool(self._takes_minibatches)

    def init_loc(self) -> Tensor:
        """The flat latent that a fresh guide is centered at."""
        return self.latents.init_loc()

    def _init_loc(self) -> Tensor:
        """Pyro's name for it."""
        return self.init_loc()

    def follow(self, joint: LogJoint) -> None:
        """Take what a log joint of the model has found about moving supports and masked sites.

        Its arguments are remembered where values cannot be found without a run of the model.

        :param joint: it was made with this guide's latents.
        """
        self._latents = self.latents.following(joint.latents.moving, joint.latents.filled)
        if joint.latents.moving:
            self._bound = BoundModel(self.bare_model, *joint.bound.call)

    def receive(self, args: Any, kwargs: Any, start: Tensor | None = None) -> None:
        """Be given the model's arguments before draws are made, by guides that need them for drawing.

        :param start: a point of finite density, where one is known.
        """
        self.set_up(args, kwargs)
        is_run = self.latents.moving or self.latents.one_run is not None
        self._bound = self._fitting(BoundModel(self.bare_model, args, kwargs)) if is_run else None

    def _fitting(self, bound: BoundModel) -> BoundModel:
        """The model at these arguments, or at the latest ones where its plates have the guide's rows.

        Forecasts run it with more rows than it was trained with, whose first ones the guide draws.
        """
        if self._bound is None or bound.form == self._bound.form or minibatch.has_rows(bound, self.latents):
            return bound
        return bound.with_call(*self._bound.call)

    @property
    def latent_names(self) -> list[str]:
        """Names of the latent sites, in the order in which the flat latent holds them."""
        self._need_setup()
        return self.latents.names

    def _need_setup(self) -> Any:
        if self.layer is None or self.prototype_trace is None:
            raise checks.need_setup(type(self).__name__)

    # ---- between the flat latent and the sites ---------------------------------------------------------------

    def constrain(self, latent: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Flat unconstrained draws ``(num_samples, latent_dim)`` to a dict of site values.

        :param latent: the draws.
        :param args: the model's arguments, with ``kwargs``; read where a support depends on other latents or on them,
            so that the model has to be run. Without any, those of the latest call.
        :raises RuntimeError: where they are needed, and there was no call.
        :raises ValueError: if the draws have another shape.
        """
        self._need_setup()
        checks.check_flat(type(self).__name__, latent, self.latents.dim)
        if not self.latents.moving:
            return self.latents.constrain(latent)
        bound = self._latest(args, kwargs)
        if self.latents.one_run is not None:
            return constrained_rows(bound, self.latents, latent)
        return constrained(self._joint_on(bound), latent)

    def unconstrain(self, values: dict[str, Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        r"""The inverse of :meth:`~pyro_nflows.AutoFlow.constrain`: flat latents, and its log-determinants there.

        :param values: a dict from site to a value of the site's shape, or with leading dimensions.
        :param args: as for :meth:`~pyro_nflows.AutoFlow.constrain`, with ``kwargs``.
        :raises ValueError: if a site is missing, or has another shape.
        """
        self._need_setup()
        for latent in self.latents.sites.values():
            checks.check_value(type(self).__name__, latent.site, values)
        if not self.latents.moving:
            return self.latents.unconstrain(values)
        bound = self._latest(args, kwargs)
        if self.latents.one_run is not None:
            return unconstrained_rows(bound, self.latents, values)
        return unconstrained(self._joint_on(bound), values)

    def _latest(self, args: Any, kwargs: Any) -> BoundModel:
        if args or kwargs:
            return self._fitting(BoundModel(self.bare_model, args, kwargs))
        if self._bound is None:
            raise checks.need_call(type(self).__name__, self.latents.moving)
        return self._bound

    def _joint_on(self, bound: BoundModel) -> LogJoint:
        return looked(LogJoint(bound, self.latents))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, as a Pyro guide.

        :return: a dict from site to its value.
        """
        self.receive(args, kwargs)
        with self._learning():
            latent, plates = self.sample_latent(*args, **kwargs), self._create_plates(*args, **kwargs)
            model = self.bare_model if self.latents.moving or self.latents.filled else None
            return self._draw(sites.points(self.latents, model, latent, *self._run_at(args, kwargs)), plates)

    def _run_at(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments at which the model is run for the values of a draw."""
        return (args, kwargs) if self._bound is None else self._bound.call

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw the flat latent; particles that share a minibatch in pairs (:mod:`pyro_nflows.guides.minibatch`)."""
        fn = self.get_posterior(*args, **kwargs)
        if minibatch.is_of_particles() and self.takes_minibatches(args, kwargs):
            fn = fn.in_pairs()
        latent: Tensor = pyro.sample(f"_{self._pyro_name}_latent", fn, infer={"is_auxiliary": True})
        return latent

    def _draw(self, points: Mapping[str, Any], plates: Mapping[str, Any]) -> dict[str, Tensor]:
        """A sample statement for each site, in its plates."""
        result = {}
        for name, point in points.items():
            with contextlib.ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, point)
        return result


def looked(joint: LogJoint) -> LogJoint:
    """A log joint after a look at its model, without a trace of that."""
    with poutine.block(), forked():
        joint.look()
    return joint
