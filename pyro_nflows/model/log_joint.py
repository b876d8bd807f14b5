r"""The model as a function: :math:`\log p(x, T(z)) + \log|\det T'(z)|` of flat unconstrained latents, many at a time.

The value is exactly Pyro's: constraints, plates, scales, masks, factors, subsampling and ``pyro.param`` included, and
enumerated discrete latents summed out by Pyro's own contraction. Rows are vectorised by ``torch.vmap``, which makes
no demands on how the model broadcasts; where it cannot run, by Pyro's particle plate; and else by a loop.
"""

import contextlib
import enum
import functools
import warnings
from collections.abc import Callable, Collection
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..checks import first_line
from ..system.exclusive import validation
from . import checks, data_checks, enumeration_checks
from .following import filled_sites, moving_sites
from .handlers import BRANCHES, Enumerate, cause, restored_dims, summed_out, total
from .latents import is_enumerated, latent_sites
from .placed import Lifted, Placed, is_masked
from .transformable import transformable


class Vectorization(enum.Enum):
    """How several latent values are sent through the model at once, the best first."""

    VMAP = "torch.vmap"
    PLATE = "Pyro's particle plate"
    LOOP = "a loop over particles"


class VectorizationWarning(UserWarning):
    """The model could not be vectorised by ``torch.vmap``; results are right, but slower."""


class LogJoint:
    r"""Log joint density of a model at rows of a guide's flat latent.

    :param model: the Pyro model; usually ``guide.model``, perhaps scaled or conditioned.
    :param guide: a guide that has been called once: it says which sites the latent holds, and where.
    :raises ValueError: when evaluated, if the model's sites are not those the guide was made for (the site is named).

    Example::

        >>> import pyro.distributions as dist
        >>> from pyro_nflows import AutoFlow
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        ...
        >>> guide = AutoFlow(model)
        >>> _ = guide()
        >>> LogJoint(model, guide)(torch.zeros(3, 1))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, model: Callable[..., Any], guide: Any):
        self.model, self.guide = model, guide
        self.how: Vectorization | None = None
        self.start: Tensor | None = None
        self.enumerates = False
        self.max_plate_nesting = 0
        #: Whether shapes are checked: where Pyro's own objectives do, unless the user turned that off.
        self.checks_shapes = is_validation_enabled()

    def __call__(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``z (num_particles, latent_dim)`` to ``(num_particles,)``."""
        how = self.how or self.prepare(*args, **kwargs)
        return self._rows(how)(z, args, kwargs)

    @torch.no_grad()
    def prepare(self, *args: Any, **kwargs: Any) -> Vectorization:
        """Run the model near ``start`` (by default the guide's), and choose how to vectorise it."""
        near = self.look(*args, **kwargs)
        self.how = self._choose(near, args, kwargs)
        return self.how

    @torch.no_grad()
    def look(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model at two points near ``start``: refuse what the guide cannot follow, and learn its structure.

        :return: the two points, one a row.
        """
        start = self.guide._init_loc() if self.start is None else self.start
        near = torch.stack([start, start + 0.01])
        with validation(False):  # a first look: the start may yet prove infeasible
            traces = [self._look(row, args, kwargs) for row in near]
        frames = [f for s in traces[0].nodes.values() for f in s.get("cond_indep_stack", ())]
        self.max_plate_nesting = -min((f.dim for f in frames if f.vectorized), default=0)
        self.enumerates = any(is_enumerated(site) for site in latent_sites(traces[0]))
        enumeration_checks.refuse_endless(type(self.guide).__name__, filter(is_enumerated, latent_sites(traces[0])))
        with validation(False):
            self._learn(near, traces, args, kwargs)
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
            data_checks.check_log_prob_shapes(type(self.guide).__name__, trace, nesting)

    def _look(self, z: Tensor, args: Any, kwargs: Any) -> Any:
        name, trace = type(self.guide).__name__, self.run(z, *args, **kwargs)
        checks.refuse_nan(name, trace)
        if self.checks_shapes:
            with validation(True):
                data_checks.need_tensors(name, trace)
        return trace

    def _learn(self, near: Tensor, traces: list[Any], args: Any, kwargs: Any) -> None:
        """Tell the guide what it has to follow."""
        guide = self.guide
        moving = guide.moving | moving_sites(self, near, traces, args, kwargs)
        masked = [name for name in guide._unconstrained_shapes if is_masked(guide.prototype_trace.nodes[name])]
        guide.follow(moving, filled_sites(self, near, args, kwargs) if masked else {}, args, kwargs)

    def run(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A trace of the model at one flat latent, without log densities."""
        return self._run(self.model, self.placed(z), args, kwargs)

    def visit(self, handler: Placed | Lifted, args: Any, kwargs: Any) -> Any:
        """A trace of the model under a handler of its latents, its discrete sites enumerated rather than drawn."""
        if not self.enumerates:
            return self._run(self.model, handler, args, kwargs)
        with restored_dims():
            return self._run(self._enumerate(), handler, args, kwargs)

    def at(self, z: Tensor, args: Any, kwargs: Any, filled: Collection[str]) -> tuple[Any, Tensor, Placed]:
        """A trace of the model at one flat latent, its log density without constraints, and the handler of its latents.

        :param filled: masked sites that count with their prior.
        """
        placed = self.placed(z, filled)
        trace, log_p = self._density(placed, args, kwargs)
        return trace, log_p, placed

    def placed(self, z: Tensor, filled: Collection[str] | None = None) -> Placed:
        """The handler that puts one flat latent into the model."""
        guide, nodes = self.guide, self.guide.prototype_trace.nodes
        parts = guide.parts(z)
        shapes = {name: nodes[name]["value"].shape for name in parts}
        filled = guide.filled if filled is None else filled
        return Placed(type(guide).__name__, parts, shapes, filled, self.enumerates)

    def _rows(self, how: Vectorization) -> Callable[..., Tensor]:
        return {
            Vectorization.VMAP: self._by_vmap,
            Vectorization.PLATE: self._by_plate,
            Vectorization.LOOP: self._by_loop,
        }[how]

    def _choose(self, rows: Tensor, args: Any, kwargs: Any) -> Vectorization:
        """The best way that runs and agrees with the loop, with a warning unless it is vmap."""
        loop = self._by_loop(rows, args, kwargs)  # the user's own mistakes surface here
        reason = self._objection(Vectorization.VMAP, loop, rows, args, kwargs)
        if reason is None:
            return Vectorization.VMAP
        how = Vectorization.PLATE if self._takes_plate(loop, rows, args, kwargs) else Vectorization.LOOP
        warnings.warn(
            f"torch.vmap cannot run this model ({reason[0]}); particles go through {how.value}. Results are right, "
            f"but slower; {reason[1]}",
            VectorizationWarning,
            stacklevel=4,
        )
        return how

    def _objection(
        self, how: Vectorization, loop: Tensor, rows: Tensor, args: Any, kwargs: Any
    ) -> tuple[str, str] | None:
        """Why a way is not to be taken and whose code that comes from, if there is a reason."""
        try:
            values = self._rows(how)(rows, args, kwargs)
        except Exception as error:
            return first_line(error), cause(error)
        close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-4, equal_nan=True)
        # A model that subsamples differs from run to run, and cannot be compared.
        if close(values, loop) or not all(close(self._by_loop(rows, args, kwargs), loop) for _ in range(4)):
            return None
        apart = float((values - loop).abs().max())
        return f"its values there differ from those of single runs by up to {apart:.2g}", BRANCHES

    def _takes_plate(self, loop: Tensor, rows: Tensor, args: Any, kwargs: Any) -> bool:
        """Whether a plate gives what the loop gives, and mixes no particles, which shows little where they are near."""
        if self.enumerates or self._objection(Vectorization.PLATE, loop, rows, args, kwargs) is not None:
            return False
        try:
            with torch.enable_grad():
                z = rows.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self._by_plate(z, args, kwargs)[0], z)
            return not bool(slope[1:].any())
        except RuntimeError:
            return False

    def leaves(self, z: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The model's trainable leaf tensors: unconstrained ``pyro.param`` values and module parameters."""
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            self.single(z, *args, **kwargs)
        values = [site["value"] for site in capture.trace.nodes.values()]
        found = [value.unconstrained() for value in values if value is not None]
        return [leaf for leaf in found if leaf.requires_grad]

    # ---- three ways to run rows -----------------------------------------------------------------------------

    def _by_vmap(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        # Validation branches on values, which vmap refuses; the first, looped evaluation was validated.
        with validation(False):
            return torch.vmap(lambda row: self.single(row, *args, **kwargs), randomness="same")(z)

    def _by_loop(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        return torch.stack([self.single(row, *args, **kwargs) for row in z])

    @transformable()
    def _by_plate(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        nesting = self.max_plate_nesting
        latent = z.reshape(len(z), *(1,) * nesting, -1)
        parts = {site["name"]: part for site, part in self.guide._unpack_latent(latent)}
        placed = Placed(type(self.guide).__name__, parts, filled=self.guide.filled)
        plate = pyro.plate("num_particles_vectorized", len(z), dim=-1 - nesting)
        trace = self._trace(plate(self.model), placed, args, kwargs)
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
    def single(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One flat latent ``(latent_dim,)`` to a scalar."""
        placed = self.placed(z)
        log_p = self._density(placed, args, kwargs)[1]
        log_det = z.new_zeros(())
        for step in placed.log_dets.values():
            log_det = log_det + step.sum()
        return _as(z, log_det + log_p)

    def _density(self, placed: Placed, args: Any, kwargs: Any) -> tuple[Any, Tensor]:
        """A trace of the model at given latents, and its log density, with enumerated sites summed out."""
        if self.enumerates:
            return self._enumerated(placed, args, kwargs)
        trace = self._trace(self.model, placed, args, kwargs)
        self._check_shapes(trace, float("inf"))
        return trace, total(trace, next(iter(placed.parts.values())).dtype)

    def _enumerate(self) -> Callable[..., Any]:
        model: Callable[..., Any] = Enumerate(first_available_dim=-1 - self.max_plate_nesting)(self.model)
        return model

    def _trace(self, model: Callable[..., Any], placed: Placed, args: Any, kwargs: Any) -> Any:
        trace = prune_subsample_sites(self._run(model, placed, args, kwargs))
        with data_checks.explained(type(self.guide).__name__, args, kwargs):
            trace.compute_log_prob()
        return trace

    def _run(self, model: Callable[..., Any], handler: Placed | Lifted, args: Any, kwargs: Any) -> Any:
        """A trace of the model at given latents, without log densities."""
        hidden = poutine.block(hide_fn=lambda msg: msg["type"] == "sample")
        with hidden, data_checks.explained(type(self.guide).__name__, args, kwargs):
            trace = poutine.trace(handler(model)).get_trace(*args, **kwargs)
        unknown = [site["name"] for site in latent_sites(trace) if not is_enumerated(site)]
        checks.check_run(type(self.guide).__name__, unknown, sorted(handler.names - trace.nodes.keys()))
        return trace

    # ---- enumeration ----------------------------------------------------------------------------------------

    @restored_dims()
    def _enumerated(self, placed: Placed, args: Any, kwargs: Any) -> tuple[Any, Tensor]:
        nesting = self.max_plate_nesting
        trace = self._trace(self._enumerate(), placed, args, kwargs)
        self._check_shapes(trace, nesting)
        with enumeration_checks.explained_scales(type(self.guide).__name__, trace):
            return trace, summed_out(trace)


def _as(z: Tensor, log_p: Tensor) -> Tensor:
    """In the latents' precision, whatever that of the data."""
    return log_p.to(z.dtype)


def tensors_of(call: Any) -> tuple[list[Tensor], Any]:
    """The tensors among a model's arguments, and all else that a recording of the model depends on."""
    leaves, spec = tree_flatten(call)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, ([_form(leaf) for leaf in leaves], spec)


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, int | float | str | None) else id(leaf)
