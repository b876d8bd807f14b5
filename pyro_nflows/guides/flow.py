r"""Flow autoguides: ordinary Pyro autoguides whose posterior is a flow.

A guide is a joint distribution over all latents in unconstrained space, ``Whitened(flow, end)``: the flow starts at the
identity, the affine end at :math:`N(\mathrm{init\_loc}, \mathrm{init\_scale}^2)`; :class:`.Rescaled` stores both.
Latents of a hierarchy are in coordinates informed by their prior (:mod:`pyro_nflows.model.centering`).
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_median
from torch import Tensor, nn

from .. import flows
from ..checks import numbers_in
from ..flows.distribution import FlowDistribution
from ..flows.transforms import as_transform
from ..flows.whitened import Whitened
from ..layers import Rescaled
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.coordinates import Coordinates
from ..model.handlers import outside
from ..model.hierarchy import Hierarchy
from ..model.log_joint import LogJoint
from ..model.tied import with_ties
from ..system.exclusive import validation
from . import checks, row_checks, sites
from .centers import Centers, Scales, check_asked
from .ends import End, Ends, end_in
from .informed import InformedPosterior
from .printed import printed, shown
from .structure import Structure, chosen, coupled_rows, described, whitened
from .trained import TrainedGuide


class AutoFlow(TrainedGuide):
    r"""A normalizing-flow guide over all continuous latents of a model; the recommended default.

    By default, affine couplings in front of a full-rank affine layer. ``build`` takes any other flow.

    Works with :class:`~pyro_nflows.VI`, with ``SVI`` and every ELBO of Pyro, and as a ``NeuTraReparam``.
    Discrete sites marked ``infer={"enumerate": "parallel"}`` are left to the objective to sum out. Of latents in
    subsampled plates a guide holds all rows, and a call draws those of the model's minibatch
    (:mod:`pyro_nflows.guides.minibatch`).

    :param model: a Pyro model of fixed structure.
    :param build: ``latent_dim -> Layer`` (or torch ``Transform``), base to posterior; a flow of
        :mod:`pyro_nflows.flows`, or your own.
    :param init_loc_fn: where to start, as for Pyro's autoguides; flat priors start at a feasible point.
    :param init_scale: standard deviation of the fresh guide in unconstrained space.
    :param create_plates: as for Pyro's autoguides.
    :param centering: :math:`c`, for latents whose prior has a location :math:`f` or a scale :math:`g` that depends on
        other latents, as in every hierarchy: the guide works in coordinates :math:`v` with
        :math:`z = f + g^{1 - c} (v - c f)`, all in unconstrained space. By default (``"auto"``) these are non-centered,
        :math:`c = 0`, until :class:`~pyro_nflows.VI` gives each entry a number by how much the data say of it
        (:mod:`pyro_nflows.inference.centered`); ``guide.centering`` then has them. Or one number for all, 1 being the
        latent itself; or a dict with a number, or a tensor in the site's shape, for each site that is to have one; or
        ``"learned"``, to have ``SVI`` train a number for each entry with the rest (``VI`` measures them as by default);
        ``None`` leaves all latents as they are. The model is not rewritten, and sites keep their names and values. Of a
        site that is written non-centered, and multiplied by a scale :math:`g` of other latents elsewhere, the
        coordinates are :math:`v = g^c z`; ``"auto"`` leaves it as it is until ``VI`` finds that the data say most of
        some entry (:mod:`pyro_nflows.model.recovery`).
    :param structure: ``"joint"``: a flow over all latents at once. ``"plates"``: rows of plates are independent
        given what they are within; ``build`` is the flow of the latents outside of plates. By default joint up to 48
        latents, where few of them are in plates, or where the data tie rows together, as a regression on them does.
    :param amortize: whether the numbers of rows in subsampled plates come from an encoder of what is observed in the
        row, in place of a table: ``True`` for a default encoder, or a module from the data of ``B`` rows, ``(B, ...)``,
        to ``(B, F)``. :meth:`~pyro_nflows.AutoFlow.for_rows` then gives the posterior of rows that there were not.
    :param end: the affine end of a joint flow. ``"full"``: any covariance, at :math:`D^2` numbers. ``"sparse"``: a
        precision with the pattern of the model's Hessian, which is found. ``"low_rank"``: scales, and 32 directions
        with widths of their own. ``"diagonal"``: scales; rows of plates too then have no correlations within them but
        those that their flow makes. By default full up to 64 latents; above, sparse where that has at most half the
        numbers, else full up to 512 latents, else of low rank. The guide's ``repr`` says which.
    :param rows: ``latent_dim -> Layer``, a flow of a row of a plate, such as ``flows.iaf``, that all rows share. Each
        row has a code of its own, or one from ``amortize``, which the flow's networks read (``context_dim``), or by
        which its parameters are moved (:class:`~pyro_nflows.layers.PlateFlow`). The guide then follows plates. Without
        it, rows are Gaussians with skewness and tails, given what they are within.
    :raises ValueError: if ``init_scale <= 0``; at the first call, if the model has no continuous latents, a
        discrete latent that is not enumerated, or if a latent is in a subsampled plate and ``structure="joint"``.

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
        centering: Centers | None = "auto",
        structure: Structure = "auto",
        amortize: bool | nn.Module = False,
        end: Ends = "auto",
        rows: flows.Build | None = None,
    ):
        functions = {"model": model, "build": build, "init_loc_fn": init_loc_fn}
        functions |= {k: v for k, v in (("create_plates", create_plates), ("rows", rows)) if v is not None}
        checks.check_arguments(type(self).__name__, init_scale, **functions)
        checks.check_structure(type(self).__name__, structure)
        checks.check_end(type(self).__name__, end)
        check_asked(type(self).__name__, centering)
        row_checks.check_row_flow(type(self).__name__, rows, structure)
        super().__init__(model, init_loc_fn)
        self.centering, self.structure, self.end = centering, structure, end
        row_checks.check_amortize(type(self).__name__, amortize)
        self.create_plates, self.amortize, self.amortizer = create_plates, amortize is not False, None
        # Not a submodule: it is a part of the amortizer, and would have two names in state_dict and in Pyro's store.
        self._own_encoder = (amortize,) if isinstance(amortize, nn.Module) else ()
        self.init_scale = float(init_scale)
        self.build: flows.Build | None = build
        self.row_build = rows
        #: Components and block size of the mixture that VI put at the flow's base, if it did.
        self.modes: tuple[int, int] | None = None
        self.layer = None
        self._hierarchy: Hierarchy | None = None
        self._rows: Hierarchy | None = None
        self._end: End | None = None
        self._loaded_shapes: checks.Shapes | None = None
        self._claims_store = False

    # ---- structure ------------------------------------------------------------------------------------------

    def _look_at_model(self, *args: Any, **kwargs: Any) -> None:
        super()._look_at_model(*args, **kwargs)
        loc = self.init_loc()
        if self.structure == "joint":
            row_checks.refuse_subsampled(type(self).__name__, self.latents.sites.values(), not self.needs_model)
        bound = BoundModel(self.bare_model, args, kwargs)
        joint = functools.partial(self._joint_on, bound)
        structure = self.structure if self.row_build is None else "plates"
        self._hierarchy = chosen(type(self).__name__, structure, self.latents, joint)
        if self._hierarchy is None:
            self._choose_end(bound)
        elif structure == "plates" and self.takes_minibatches(args, kwargs):
            self._hierarchy = with_ties(self._hierarchy, bound, self.latents)
        if self.build is not None:
            self._rows = coupled_rows(self.build, self.latents, self._hierarchy)
        if self.layer is None:
            self.layer = Rescaled(self.make_layer(loc, self.modes), Whitened.END)
        checks.check_sites(type(self).__name__, self._loaded_shapes, self._shapes())
        self._look_at_rows(args, kwargs)

    def _choose_end(self, bound: BoundModel) -> None:
        """A loaded state's end, or one that suits the model, with the coordinates that its pattern needs."""
        if self._end is not None:
            return
        if self.end == "auto" and not self._full_rank:
            self._end = End("diagonal")
            return
        before = self.latents
        found = end_in(type(self).__name__, self.end, before, self.centering == "auto", bound)
        self._end, self._latents = found
        if before.centering and not self.latents.centering:
            self.centering = None

    def fresh(self, args: Any, kwargs: Any) -> "AutoFlow":
        """A guide of the same kind and model that has not been trained, set up at these arguments."""
        new = copy.deepcopy(self)
        new.layer, new.amortizer, new._loaded_shapes, new._end = None, None, None, None
        new.forget_structure()
        with validation(False):
            new.set_up(args, kwargs)
        return new

    def recenter(self, centering: Mapping[str, Tensor], scales: Scales | None = None) -> None:
        """Take other coordinates for the sites of a hierarchy, and a fresh flow in them.

        :param scales: of sites that are written non-centered, what makes their scale; by default what is known.
        """
        self.centering, self._scales = dict(centering), dict(self._scales if scales is None else scales)
        self._take_centering()
        self.layer = Rescaled(self.make_layer(self.init_loc(), self.modes), Whitened.END)

    @property
    def coordinates(self) -> tuple[Any, ...]:
        """Its centering and its flow; :meth:`restore` goes back to them."""
        return self.centering, self._scales, self._latents, self._modules.get("layer"), self.modes

    def restore(self, coordinates: tuple[Any, ...]) -> None:
        """Be as it was."""
        self.centering, self._scales, self._latents, layer, self.modes = coordinates
        if layer is not self._modules.get("layer"):
            self.layer = layer

    def layer_over(self, hierarchy: Hierarchy, loc: Tensor) -> Whitened:
        """A fresh flow of this guide's kind over another hierarchy, such as some rows of its plates.

        :param loc: where its end is to start.
        """
        build = cast(flows.Build, self.build)
        name, within = type(self).__name__, self.end != "diagonal"
        return whitened(name, build, loc, self.init_scale, hierarchy, row_build=self.row_build, within=within)

    def extra_repr(self) -> str:
        if self._latents is None:
            return ""
        flow = self.layer and cast(Whitened, self.layer.layer).flow
        structure = described(self._hierarchy, self.latents, self._rows, self._end, flow)
        amortized = ["rows by an encoder of their data"] if self.amortizer is not None else []
        return "; ".join([structure, *amortized, *shown(self.latents.centers)])

    def __repr__(self) -> str:
        known = {} if self._latents is None else self.latents.sites
        shapes = {name: latent.shape if latent.subsampled else latent.value_shape for name, latent in known.items()}
        return printed(type(self).__name__, self.extra_repr(), shapes, self.layer, self.amortizer)

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

        :param args: as for :meth:`~pyro_nflows.AutoFlow.constrain`, with ``kwargs``.
        :raises NotImplementedError: for flows with auxiliary variables (``AutoCIF``).
        :raises ValueError: if ``NeuTraReparam`` asks for it inside a plate or a scale. It would be silently wrong.
        """
        self._need_setup()
        checks.refuse_plates(type(self).__name__, self._prototype_frames)
        checks.refuse_scales()
        flow = as_transform(self._current_layer(), type(self).__name__)
        if not self.latents.centering:
            return flow
        with outside():  # `NeuTraReparam` asks within a run of the model
            return Coordinates(self._joint_on(self._latest(args, kwargs)), flow)

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """A fresh :class:`~pyro_nflows.FlowDistribution` over the flat unconstrained latent."""
        row_checks.need_rows(type(self).__name__, self.amortizer)
        layer = self._current_layer()
        if self._latents is None or not self._latents.centering:
            return FlowDistribution(layer, path_gradient=True)
        return InformedPosterior(layer, functools.partial(self.get_transform, *args, **kwargs), path_gradient=True)

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
        row_checks.need_rows(type(self).__name__, self.amortizer)
        if args or kwargs:
            self.receive(args, kwargs)
        layer = self._need_setup()
        levels = numbers_in(f"{type(self).__name__}.quantiles", "levels", quantiles).to(next(layer.parameters()))
        checks.check_levels(type(self).__name__, levels)
        draws, _ = layer(*sites.symmetric_normal(layer))
        found, moving = sites.quantiles(self.latents, draws, levels), self.latents.moving
        values = self.constrain(draws, *args, **kwargs) if moving else {}
        return {n: values[n].quantile(levels, 0) if n in moving else found[n] for n in self.latents.names}

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
        :param args: as for :meth:`~pyro_nflows.AutoFlow.constrain`, with ``kwargs``.
        :raises ValueError: if a site is missing, or has another shape.
        """
        latent, log_det = self.unconstrain(values, *args, **kwargs)
        return self.get_posterior().log_prob(latent, num_samples) - log_det
