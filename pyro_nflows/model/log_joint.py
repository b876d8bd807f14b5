r"""The model as a function: :math:`\log p(x, T(z)) + \log|\det T'(z)|` of flat unconstrained latents, many at a time.

The value is exactly Pyro's: constraints, plates, scales, masks, factors, subsampling and ``pyro.param`` included, and
enumerated discrete latents summed out by Pyro's own contraction. Rows are vectorised by ``torch.vmap``, which makes
no demands on how the model broadcasts; where it cannot run, by Pyro's particle plate; and else by a loop.
"""

import contextlib
import copy
from collections.abc import Callable, Collection
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..system.exclusive import validation
from ..system.randomness import forked
from . import checks, data_checks, enumeration_checks
from .at_once import AtOnce, at_once
from .blocks import block_size, in_blocks
from .bound import BoundModel
from .factors import FailingAlone
from .following import filled_sites, moving_sites
from .handlers import Enumerate, as_validated, restored_dims, summed_out, total
from .latents import Latents, is_enumerated, latent_sites
from .observed import has_data
from .placed import Lifted, Placed
from .transformable import transformable
from .vectorization import Vectorization, VectorizationWarning, chosen

__all__ = ["LogJoint", "Vectorization", "VectorizationWarning"]


class LogJoint:
    r"""Log joint density of a model at rows of a flat vector of its latents.

    :param bound: the Pyro model with its arguments; the model is usually ``guide.bare_model``, perhaps scaled or
        conditioned. :meth:`on` gives the log joint of other arguments.
    :param latents: which sites the flat vector holds, and where; usually ``guide.latents``. What a run of the model
        shows of moving supports and of masked sites is put into this object's own ``latents``.
    :raises ValueError: when evaluated, if the model's sites are not these (the site is named).

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_nflows import AutoFlow
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        ...
        >>> guide = AutoFlow(model)
        >>> _ = guide()
        >>> LogJoint(BoundModel(model), guide.latents)(torch.zeros(3, 1))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, bound: BoundModel, latents: Latents):
        self.bound, self.latents = bound, latents
        self.how: Vectorization | None = None
        self.start: Tensor | None = None
        self.enumerates = False
        self.max_plate_nesting = 0
        self.has_data = True
        #: How many latent values go through the model at once; None for any number.
        self.block: int | None = None
        self._has_parameters: bool | None = None
        #: Whether a long model's like operations may be done at once, and the model so.
        self.gathers, self.at_once = True, cast(AtOnce | None, None)
        self._double: LogJoint | None = None
        #: Whether shapes are checked: where Pyro's own objectives do, unless the user turned that off.
        self.checks_shapes = is_validation_enabled()

    def __call__(self, z: Tensor) -> Tensor:
        """``z (num_particles, latent_dim)`` to ``(num_particles,)``, in blocks where they would take much memory."""
        rows = self._ways[self.how or self.prepare()]
        return in_blocks(rows, z, self.block, self.has_parameters)

    def on(self, bound: BoundModel) -> "LogJoint":
        """The log joint of a model with other arguments, or of one with handlers around it; what is known is kept."""
        new = copy.copy(self)
        new.bound, new.at_once, new._double = bound, None, None
        return new

    @property
    def double(self) -> "LogJoint":
        """The log joint of the arguments' data in double precision; made where that is torch's default."""
        if self._double is None:
            data = [value.double() if value.is_floating_point() else value for value in self.bound.tensors]
            self._double = self.on(self.bound.with_data(data))
            if self.at_once is not None:
                self._double.gather(self.latents.init_loc().double())
        return self._double

    @torch.no_grad()
    def prepare(self) -> Vectorization:
        """Run the model near ``start`` (by default the latents' own), and choose how to vectorise it."""
        near = self.look()
        self.how = chosen(self._ways, near, may_plate=not self.enumerates)
        if self.how is Vectorization.VMAP:
            self.gather(near[0])
        self.block = block_size(self._ways[self.how], near)
        return self.how

    def gather(self, near: Tensor) -> None:
        """Have like operations of a long model done at once, if they can be.

        :param near: a point at which it is recorded.
        """
        self.at_once = None
        if self.gathers and not self.has_parameters():
            with validation(False):
                self.at_once = at_once(self.single, near, self.bound.tensors)

    def row(self, z: Tensor) -> Tensor:
        """One flat latent ``(latent_dim,)`` to a scalar, like operations at once if they are gathered."""
        gathered = self.at_once is not None and z.dtype == self.at_once.dtype
        return cast(AtOnce, self.at_once)(z) if gathered else self.single(z)

    @torch.no_grad()
    def look(self) -> Tensor:
        """Run the model at two points near ``start``: refuse what cannot be followed, and learn its structure.

        :return: the two points, one a row.
        """
        start = self.latents.init_loc() if self.start is None else self.start
        near = torch.stack([start, start + 0.01])
        with validation(False):  # a first look: the start may yet prove infeasible
            traces = [self._look(row) for row in near]
        self.has_data = has_data(traces[0], self.latents.names)
        frames = [f for s in traces[0].nodes.values() for f in s.get("cond_indep_stack", ())]
        self.max_plate_nesting = -min((f.dim for f in frames if f.vectorized), default=0)
        self.enumerates = any(is_enumerated(site) for site in latent_sites(traces[0]))
        enumeration_checks.refuse_endless(self.latents.owner, filter(is_enumerated, latent_sites(traces[0])))
        with validation(False):
            self._learn(near, traces)
        self._look_at_shapes(traces[0])
        return near

    def _look_at_shapes(self, trace: Any) -> None:
        """Refuse a site whose log density has another shape than its plates, wherever it can be computed."""
        trace = prune_subsample_sites(trace)
        for name in trace.nodes:
            with contextlib.suppress(ValueError, RuntimeError), validation(False), transformable():
                trace.compute_log_prob(lambda site, _, name=name: site == name)
        self._check_shapes(trace, float("inf"))

    def _check_shapes(self, trace: Any, nesting: float) -> None:
        if self.checks_shapes:
            data_checks.check_log_prob_shapes(self.latents.owner, trace, nesting)

    def _look(self, z: Tensor) -> Any:
        name, trace = self.latents.owner, self.run(z)
        checks.refuse_nan(name, trace)
        if self.checks_shapes:
            with validation(True):
                data_checks.need_tensors(name, trace)
        return trace

    def _learn(self, near: Tensor, traces: list[Any]) -> None:
        """Note which supports move, and which masked sites count with their prior."""
        moving = self.latents.moving | moving_sites(self, near, traces)
        filled = filled_sites(self, near) if self.latents.masked else {}
        self.latents = self.latents.following(moving, filled)

    def run(self, z: Tensor) -> Any:
        """A trace of the model at one flat latent, without log densities."""
        return self._run(self.bound.model, self.placed(z))

    def visit(self, handler: Placed | Lifted) -> Any:
        """A trace of the model under a handler of its latents, its discrete sites enumerated rather than drawn."""
        if not self.enumerates:
            return self._run(self.bound.model, handler)
        with restored_dims():
            return self._run(self._enumerate(), handler)

    def at(self, z: Tensor, filled: Collection[str]) -> tuple[Any, Tensor, Placed]:
        """A trace of the model at one flat latent, its log density without constraints, and the handler of its latents.

        :param filled: masked sites that count with their prior.
        """
        placed = self.placed(z, filled)
        trace, log_p = self._density(placed)
        return trace, log_p, placed

    def placed(self, z: Tensor, filled: Collection[str] | None = None) -> Placed:
        """The handler that puts one flat latent into the model."""
        latents = self.latents
        filled = latents.filled if filled is None else filled
        shapes = latents.value_shapes
        return Placed(latents.owner, latents.unpack(z), shapes, filled, self.enumerates, latents.centers)

    @property
    def _ways(self) -> dict[Vectorization, Callable[[Tensor], Tensor]]:
        return {
            Vectorization.VMAP: self._by_vmap,
            Vectorization.PLATE: self._by_plate,
            Vectorization.LOOP: self._by_loop,
        }

    def leaves(self, z: Tensor) -> list[Tensor]:
        """The model's trainable leaf tensors: unconstrained ``pyro.param`` values and module parameters."""
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            self.single(z)
        values = [site["value"] for site in capture.trace.nodes.values()]
        found = [value.unconstrained() for value in values if value is not None]
        return [leaf for leaf in found if leaf.requires_grad]

    def has_parameters(self) -> bool:
        """Whether the log density depends on tensors that have gradients, besides the latents."""
        if self._has_parameters is None:
            with torch.enable_grad(), forked():
                start = self.latents.init_loc() if self.start is None else self.start
                self._has_parameters = self.single(start.detach()).requires_grad
        return self._has_parameters

    # ---- three ways to run rows -----------------------------------------------------------------------------

    def _by_vmap(self, z: Tensor) -> Tensor:
        # Validation branches on values, which vmap refuses; the first, looped evaluation was validated.
        with validation(False):
            return torch.vmap(self.row, randomness="same")(z)

    def _by_loop(self, z: Tensor) -> Tensor:
        return torch.stack([self.single(row) for row in z])

    @transformable()
    def _by_plate(self, z: Tensor) -> Tensor:
        nesting = self.max_plate_nesting
        latent = z.reshape(len(z), *(1,) * nesting, -1)
        parts, known = self.latents.unpack_in_plates(latent), self.latents
        placed = Placed(known.owner, parts, filled=known.filled, centering=known.centers)
        plate = pyro.plate("num_particles_vectorized", len(z), dim=-1 - nesting)
        trace = self._trace(plate(self.bound.model), placed)
        log_p = z.new_zeros(len(z))
        for log_det in placed.log_dets.values():
            log_p = log_p + log_det.reshape(len(z), -1).sum(-1)
        for site in trace.nodes.values():
            if site["type"] == "sample":
                log_prob = site["log_prob"]
                wide = log_prob.dim() == nesting + 1
                log_p = log_p + (log_prob.reshape(len(log_prob), -1).sum(-1) if wide else log_prob.sum())
        return _as(z, log_p)

    # ---- one row --------------------------------------------------------------------------------------------

    @transformable()
    def single(self, z: Tensor) -> Tensor:
        """One flat latent ``(latent_dim,)`` to a scalar."""
        placed = self.placed(z)
        log_p = self._density(placed)[1]
        log_det = z.new_zeros(())
        for step in placed.log_dets.values():
            log_det = log_det + step.sum()
        return _as(z, log_det + log_p)

    def _density(self, placed: Placed) -> tuple[Any, Tensor]:
        """A trace of the model at given latents, and its log density, with enumerated sites summed out."""
        if self.enumerates:
            return self._enumerated(placed)
        trace = self._trace(self.bound.model, placed)
        self._check_shapes(trace, float("inf"))
        return trace, total(trace, next(iter(placed.parts.values())).dtype)

    def _enumerate(self) -> Callable[..., Any]:
        model: Callable[..., Any] = Enumerate(first_available_dim=-1 - self.max_plate_nesting)(self.bound.model)
        return model

    def _trace(self, model: Callable[..., Any], placed: Placed) -> Any:
        trace = prune_subsample_sites(self._run(model, placed))
        with FailingAlone(), data_checks.explained(self.latents.owner, *self.bound.call):
            trace.compute_log_prob()
        return trace

    def _run(self, model: Callable[..., Any], handler: Placed | Lifted) -> Any:
        """A trace of the model at given latents, without log densities."""
        hidden = poutine.block(hide_fn=lambda msg: msg["type"] == "sample")
        with FailingAlone(), hidden, data_checks.explained(self.latents.owner, *self.bound.call):
            trace = as_validated(poutine.trace(handler(model)).get_trace(*self.bound.args, **self.bound.kwargs))
        unknown = [site["name"] for site in latent_sites(trace) if not is_enumerated(site)]
        checks.check_run(self.latents.owner, unknown, sorted(handler.names - trace.nodes.keys()))
        return trace

    # ---- enumeration ----------------------------------------------------------------------------------------

    @restored_dims()
    def _enumerated(self, placed: Placed) -> tuple[Any, Tensor]:
        nesting = self.max_plate_nesting
        trace = self._trace(self._enumerate(), placed)
        self._check_shapes(trace, nesting)
        with enumeration_checks.explained_scales(self.latents.owner, trace):
            return trace, summed_out(trace)


def _as(z: Tensor, log_p: Tensor) -> Tensor:
    """In the latents' precision, whatever that of the data."""
    return log_p.to(z.dtype)
