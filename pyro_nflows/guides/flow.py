r"""Flow autoguides: ordinary Pyro autoguides whose posterior is a flow.

A guide is a joint distribution over all latents in unconstrained space, ``Whitened(flow, end)``: the flow starts at the
identity, the affine end at :math:`N(\mathrm{init\_loc}, \mathrm{init\_scale}^2)`; :class:`.Rescaled` stores both.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_median
from torch import Tensor

from .. import flows
from ..flows.distribution import FlowDistribution
from ..flows.transforms import as_layer, as_transform
from ..flows.whitened import Whitened
from ..layers import LocScale, Rescaled, TriangularAffine
from ..layers.base import Layer
from ..model.coordinates import Coordinates
from ..model.log_joint import LogJoint
from ..system.exclusive import validation
from . import checks, sites
from .joint import Centers, JointGuide
from .state import decoded, encoded, listed, unlisted

#: Above this many dimensions the end of the default guide is diagonal: a full matrix costs D^2 numbers.
MAX_FULL_RANK = 512


class AutoFlow(JointGuide):
    r"""A normalizing-flow guide over all continuous latents of a model; the recommended default.

    By default, affine couplings in front of a full-rank affine layer. ``build`` takes any other flow.

    Works with :class:`~pyro_nflows.VI`, with ``SVI`` and every ELBO of Pyro, and as a ``NeuTraReparam``.
    Discrete sites marked ``infer={"enumerate": "parallel"}`` are left to the objective to sum out. Joint guides
    cannot follow a subsampled plate: a latent inside one is refused.

    :param model: a Pyro model of fixed structure.
    :param build: ``latent_dim -> Layer`` (or torch ``Transform``), base to posterior; a flow of
        :mod:`pyro_nflows.flows`, or your own.
    :param init_loc_fn: where to start, as for Pyro's autoguides; flat priors start at a feasible point.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: :math:`c`, for latents whose prior has a location :math:`f` or a scale :math:`g` that depends on
        other latents, as in every hierarchy: the guide works in coordinates :math:`v` with
        :math:`z = f + g^{1 - c} (v - c f)`, all in unconstrained space. 0 is non-centered, 1 is centered; a dict has a
        number, or a tensor in the site's shape, for each site that is to have one; with ``"auto"``, they are
        non-centered until :class:`~pyro_nflows.VI` gives each entry one by how much the data say of it
        (:mod:`pyro_nflows.inference.centered`). The model is not rewritten, and the sites keep their names and values.
    :raises ValueError: if ``init_scale <= 0``; at the first call, if the model has no continuous latents, a
        discrete latent that is not enumerated, or a latent in a subsampled plate.

    Example::

        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> guide = AutoFlow(model)
        >>> guide(torch.tensor(0.5))["z"].shape
        torch.Size([])
    """

    layer: Rescaled | None
    _full_rank = True
    #: Whether draws are made with the model, at the arguments of the latest call.
    needs_model = False

    def __init__(
        self,
        model: Callable[..., Any],
        build: flows.Build = flows.default,
        *,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        create_plates: Callable[..., Any] | None = None,
        centering: Centers | None = None,
    ):
        functions = {"model": model, "build": build, "init_loc_fn": init_loc_fn}
        if create_plates is not None:
            functions["create_plates"] = create_plates
        checks.check_arguments(type(self).__name__, init_scale, **functions)
        super().__init__(model, init_loc_fn)
        self.centering = centering
        self.create_plates = create_plates
        self.init_scale = float(init_scale)
        self.build: flows.Build | None = build
        #: Components and block size of the mixture that VI put at the flow's base, if it did.
        self.modes: tuple[int, int] | None = None
        self.layer = None
        self._loaded_shapes: checks.Shapes | None = None
        self._claims_store = False

    # ---- structure ------------------------------------------------------------------------------------------

    def _look_at_model(self, *args: Any, **kwargs: Any) -> None:
        super()._look_at_model(*args, **kwargs)
        loc = self.init_loc()
        if self.layer is None:
            self.layer = Rescaled(self.make_layer(loc, self.modes), Whitened.END)
        checks.check_sites(type(self).__name__, self._loaded_shapes, self._shapes())

    @property
    def site_shapes(self) -> checks.Shapes:
        """The shape of each site's unconstrained value: the model's or, before that is run, the loaded state's.

        :raises RuntimeError: if there has been neither.
        """
        if self._latents is None and self._loaded_shapes is not None:
            return self._loaded_shapes
        return self._shapes()

    def fresh(self, args: Any, kwargs: Any) -> "AutoFlow":
        """A guide of the same kind and model that has not been trained, set up at these arguments."""
        new = copy.deepcopy(self)
        new.layer, new._loaded_shapes = None, None
        new._forget_structure()
        with validation(False):
            new.set_up(args, kwargs)
        return new

    def make_layer(self, loc: Tensor, modes: tuple[int, int] | None = None) -> Whitened:
        """This guide's flow with its affine end.

        :param loc: where the end is to start, ``(latent_dim,)``.
        :param modes: components and block size of a mixture to put the flow on; see
            :func:`~pyro_nflows.flows.on_modes`.
        """
        latent_dim, build = loc.numel(), cast(flows.Build, self.build)
        if modes is not None:
            inner = build if build is flows.default else functools.partial(_flow, build=build)
            build = functools.partial(flows.on_modes, inner=inner, num_components=modes[0], block_dim=modes[1])
        flow = as_layer(build(latent_dim), latent_dim)
        checks.check_build(type(self).__name__, flow, latent_dim)
        full_rank = self._full_rank and latent_dim <= MAX_FULL_RANK
        end = (TriangularAffine if full_rank else LocScale)(latent_dim, loc, self.init_scale)
        return Whitened(flow, end).to(loc)

    def recenter(self, centering: Mapping[str, Tensor]) -> None:
        """Take other coordinates for the sites of a hierarchy, and a fresh flow in them."""
        self.centering = dict(centering)
        self._take_centering()
        self.layer = Rescaled(self.make_layer(self.init_loc(), self.modes), Whitened.END)

    @property
    def coordinates(self) -> tuple[Any, ...]:
        """Its centering and its flow; :meth:`restore` goes back to them."""
        return self.centering, self._latents, self._modules.get("layer")

    def restore(self, coordinates: tuple[Any, ...]) -> None:
        """Be as it was."""
        self.centering, self._latents, layer = coordinates
        if layer is not self._modules.get("layer"):
            self.layer = layer

    def _shapes(self) -> checks.Shapes:
        return {name: list(shape) for name, shape in self.latents.shapes.items()}

    def _need_setup(self) -> Rescaled:
        """The flow, once the model has been run."""
        super()._need_setup()
        return cast(Rescaled, self.layer)

    # ---- the posterior --------------------------------------------------------------------------------------

    def get_base_dist(self) -> dist.TorchDistribution:
        """Standard normal in ``latent_dim`` dimensions."""
        zero = next(self._need_setup().parameters()).new_zeros(self.latent_dim)
        return dist.Normal(zero, torch.ones_like(zero), validate_args=False).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> torch.distributions.Transform:
        """The flow as a torch ``Transform`` from the base to unconstrained space.

        :param args: as for :meth:`constrain`, with ``kwargs``.
        :raises NotImplementedError: for flows with auxiliary variables (``AutoCIF``).
        :raises ValueError: if ``NeuTraReparam`` asks for it inside a plate. It would be silently wrong.
        """
        self._need_setup()
        checks.refuse_plates(type(self).__name__, self._prototype_frames)
        flow = as_transform(self._current_layer(), type(self).__name__)
        centered = self.latents.centering
        return Coordinates(self._joint_on(self._latest(args, kwargs)), flow) if centered else flow

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """A fresh :class:`~pyro_nflows.FlowDistribution` over the flat unconstrained latent."""
        return FlowDistribution(self._current_layer(), path_gradient=True)

    def _current_layer(self) -> Layer:
        layer = self._modules.get("layer")  # as an attribute, within a call of the guide, it costs a ``pyro.module``
        if layer is None:
            return self._need_setup()
        return self.registered_layer() if self._pyro_context.active else cast(Layer, layer)

    def registered_layer(self) -> Layer:
        """The flow, after announcing its parameters as ``pyro.param`` sites (as a call of the guide does)."""
        layer: Layer = self._modules["layer"]  # type: ignore[assignment]
        with self._pyro_context:
            if pyro.settings.get("module_local_params"):
                return self.layer  # type: ignore[return-value]
            name = self._pyro_get_fullname("layer")
            if self._claims_store:
                self._claims_store = False
                checks.forget_params(name, layer)
            checks.check_param_store(type(self).__name__, name, layer)
            pyro.module(name, layer, update_module_params=True)
        return layer

    def layer_on(self, joint: LogJoint) -> Layer:
        """The flow, with its own parameters, for draws by the model at the arguments of a log joint.

        It is the guide's ``layer`` itself but where draws are made with the model (:class:`~pyro_nflows.AutoDAIS`).
        """
        return self._need_setup()

    def adopt(self, layer: Whitened | Rescaled) -> None:
        """Take a layer trained elsewhere; the next call puts it into the param store, over any of its name."""
        self.layer = layer if isinstance(layer, Rescaled) else Rescaled(layer, Whitened.END)
        self._claims_store = True

    def plain_layer(self) -> Whitened:
        """A copy of the flow and its affine end, parameters in their own units: for training elsewhere."""
        return cast(Whitened, self._need_setup().plain())

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal quantiles of each latent, from a fixed quasi-random set of draws.

        :param quantiles: levels between 0 and 1.
        :return: a dict from site to a tensor ``(len(quantiles), *site shape)``: quantiles of a site's own
            values where its constraint is element-wise, else the constrained image of unconstrained ones, as in Pyro.
        """
        self.set_up(args, kwargs)
        if args or kwargs:
            self.receive(args, kwargs)
        layer = self._need_setup()
        levels = torch.as_tensor(quantiles).to(next(layer.parameters()))
        checks.check_levels(type(self).__name__, levels)
        draws, _ = layer(*sites.symmetric_normal(layer))
        found, moving = sites.quantiles(self.latents, draws, levels), self.latents.moving
        values = self.constrain(draws, *args, **kwargs) if moving else {}
        return found | {name: values[name].quantile(levels, 0) for name in moving}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Marginal medians, a dict from site to a tensor of its shape: ``quantiles(0.5)``."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return sites.loc_scale(self.plain_layer())

    def log_prob(self, values: dict[str, Tensor], num_samples: int = 1, *args: Any, **kwargs: Any) -> Tensor:
        r"""Log density of the guide at given values of all latent sites, in their own (constrained) space.

        Exact for bijective flows. For ``AutoCIF`` it is the importance estimate with ``num_samples`` indices, whose
        mean is at most the log density; see :meth:`pyro_nflows.FlowDistribution.log_prob`.

        :param values: a dict from site to a value of the site's shape, or with leading dimensions.
        :param num_samples: indices drawn, for flows with auxiliary variables.
        :param args: as for :meth:`constrain`, with ``kwargs``.
        :raises ValueError: if a site is missing, or has another shape.
        """
        latent, log_det = self.unconstrain(values, *args, **kwargs)
        return self.get_posterior().log_prob(latent, num_samples) - log_det

    # ---- copying and saving ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # The param store hangs weak references, which cannot be pickled, on parameters; copies have none.
        return {**self._state(), "_modules": copy.deepcopy(self._modules), "_claims_store": True}

    def _state(self) -> dict[str, Any]:
        """All but the model; and ``build``, often a lambda, only while it is needed."""
        forgotten = dict.fromkeys(("_model", "_bare_model", "_bound", "master", "_init_loc_fn"))
        build = self.build if self.layer is None else None
        prototype = None if self._latents is None else self._latents.prototype()
        return {**self.__dict__, **forgotten, "build": build, "prototype_trace": prototype}

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoFlow":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self._state(), memo))
        new._model, new._bare_model, new._bound, new.build = self._model, self._bare_model, self._bound, self.build
        new._init_loc_fn = self._init_loc_fn
        return new

    def get_extra_state(self) -> Tensor:
        """The sites' names and shapes, and their centering."""
        known = self._latents is not None or self._loaded_shapes is not None
        shapes = self.site_shapes if known else None
        return encoded(shapes=shapes, modes=self.modes, centering=listed(self.centering, self._latents))

    def set_extra_state(self, state: Tensor) -> None:
        shapes, self.centering = decoded(state)["shapes"], unlisted(decoded(state)["centering"])
        if self._latents is not None:
            self._take_centering()
        if self.prototype_trace is None:
            self._loaded_shapes = shapes
        elif shapes is not None:
            checks.check_sites(type(self).__name__, shapes, self._shapes())
        self._claims_store = True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loc, extra = state_dict.get(f"{prefix}layer.layer.{Whitened.END}.loc"), state_dict.get(f"{prefix}_extra_state")
        if extra is not None and self.build is not None:
            modes = decoded(extra)["modes"]
            if (modes and tuple(modes)) != self.modes:
                self.modes, self.layer = modes and tuple(modes), None
        if self.layer is None and loc is not None:
            self.layer = Rescaled(self.make_layer(loc, self.modes), Whitened.END)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _flow(latent_dim: int, build: flows.Build) -> Layer:
    return as_layer(build(latent_dim), latent_dim)
