r"""The model as a function: :math:`\log p(x, T(z)) + \log|\det T'(z)|` of flat unconstrained latents, many at a time.

The value is exactly Pyro's: constraints, plates, scales, masks, factors, subsampling and ``pyro.param`` included, and
enumerated discrete latents summed out by Pyro's own contraction. Rows are vectorised by ``torch.vmap``, which makes
no demands on how the model broadcasts; where it cannot run, by Pyro's particle plate; and else by a loop.
"""

import enum
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from .guides import AutoFlow


class Vectorization(enum.Enum):
    """How several latent values are sent through the model at once, the best first."""

    VMAP = "torch.vmap"
    PLATE = "Pyro's particle plate"
    LOOP = "a loop over particles"


class VectorizationWarning(UserWarning):
    """The model could not be vectorised by ``torch.vmap``; results are right, but slower."""


class _Enum(EnumMessenger):
    """Pyro's, without its use of ``value.data``, which vmap refuses."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is None or not hasattr(msg["fn"], "event_dim"):
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        dim_to_id = msg["infer"].setdefault("_dim_to_id", {})
        dim_to_id.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {
            dim: id_ for dim, id_ in dim_to_id.items() if len(shape) >= -dim and shape[dim] > 1
        }


class LogJoint:
    r"""Log joint density of a model at rows of a guide's flat latent.

    :param model: the Pyro model; usually ``guide.model``, perhaps scaled or conditioned.
    :param guide: a guide that has been called once: it says which sites the latent holds, and where.
    :raises ValueError: when evaluated, if the model's sites are not those the guide was made for (the site is named).

    Example::

        >>> import pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        ...
        >>> guide = AutoFlow(model)
        >>> _ = guide()
        >>> LogJoint(model, guide)(torch.zeros(3, 1))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, model: Callable[..., Any], guide: AutoFlow):
        self.model, self.guide = model, guide
        self.how: Vectorization | None = None
        self.enumerates = False
        self.max_plate_nesting = 0

    def __call__(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``z (num_particles, latent_dim)`` to ``(num_particles,)``."""
        if self.how is None:
            self.prepare(*args, **kwargs)
        assert self.how is not None
        return self._rows(self.how)(z, args, kwargs)

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Run the model near the guide's starting point, and choose how to vectorise it."""
        loc = self.guide._init_loc()
        rows = torch.stack([loc, loc + 0.01])
        with torch.no_grad():
            self._look(rows[0], args, kwargs)
            self.how = self._choose(rows, args, kwargs)

    def _rows(self, how: Vectorization) -> Callable[..., Tensor]:
        return {
            Vectorization.VMAP: self._by_vmap,
            Vectorization.PLATE: self._by_plate,
            Vectorization.LOOP: self._by_loop,
        }[how]

    def _choose(self, rows: Tensor, args: Any, kwargs: Any) -> Vectorization:
        """The best way that runs and agrees with the loop, with a warning unless it is vmap."""
        loop = self._by_loop(rows, args, kwargs)  # the user's own mistakes surface here
        try:
            self._by_vmap(rows, args, kwargs)
            return Vectorization.VMAP
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
        how = Vectorization.PLATE if self._plate_agrees(rows, loop, args, kwargs) else Vectorization.LOOP
        warnings.warn(
            f"torch.vmap cannot run this model ({reason}); particles go through {how.value}. Results are right, "
            "but slower; Python branches on values and .item() are the usual cause",
            VectorizationWarning,
            stacklevel=4,
        )
        return how

    def _plate_agrees(self, rows: Tensor, loop: Tensor, args: Any, kwargs: Any) -> bool:
        try:
            return torch.allclose(self._by_plate(rows, args, kwargs), loop, rtol=1e-4, atol=1e-4)
        except Exception:
            return False

    # ---- three ways to run rows -----------------------------------------------------------------------------

    def _by_vmap(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        # Validation branches on values, which vmap refuses; the first, looped evaluation was validated.
        with pyro.validation_enabled(False):
            return torch.vmap(lambda row: self.single(row, *args, **kwargs), randomness="different")(z)

    def _by_loop(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        return torch.stack([self.single(row, *args, **kwargs) for row in z])

    def _by_plate(self, z: Tensor, args: Any, kwargs: Any) -> Tensor:
        nesting = self.max_plate_nesting
        latent = z.reshape(len(z), *(1,) * nesting, -1)
        values, log_det = {}, z.new_zeros(len(z))
        for site, unconstrained in self.guide._unpack_latent(latent):
            values[site["name"]], step = _constrain(site, unconstrained)
            log_det = log_det + step.reshape(len(z), -1).sum(-1)
        plate = pyro.plate("num_particles_vectorized", len(z), dim=-1 - nesting)
        trace = self._trace(plate(self.model), values, args, kwargs)
        for site in trace.nodes.values():
            if site["type"] == "sample":
                log_prob = site["log_prob"]
                wide = log_prob.dim() == nesting + 1
                log_det = log_det + (log_prob.reshape(len(log_prob), -1).sum(-1) if wide else log_prob.sum())
        return log_det

    # ---- one row --------------------------------------------------------------------------------------------

    def single(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One flat latent ``(latent_dim,)`` to a scalar."""
        values, log_det = {}, z.new_zeros(())
        for site, unconstrained in self.guide._unpack_rows(z):
            values[site["name"]], step = _constrain(site, unconstrained)
            log_det = log_det + step.sum()
        if self.enumerates:
            return log_det + self._enumerated(values, args, kwargs)
        trace = self._trace(self.model, values, args, kwargs)
        return log_det + trace.log_prob_sum()

    def _trace(self, model: Callable[..., Any], values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        conditioned = poutine.trace(poutine.condition(model, values))
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample"):
            trace = conditioned.get_trace(*args, **kwargs)
        self._check_sites(trace, values)
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        return trace

    def _check_sites(self, trace: Any, values: dict[str, Tensor]) -> None:
        name = type(self.guide).__name__
        for site in _latents(trace):
            if site["infer"].get("enumerate") != "parallel":
                raise ValueError(
                    f"{name}: the model has a latent site '{site['name']}' that the guide does not know. Either the "
                    "model's sites change from run to run (they must not), or the site was hidden from the guide: "
                    'mark it infer={"enumerate": "parallel"} if it is discrete, else include it'
                )
        for missing in values.keys() - trace.nodes.keys():
            raise ValueError(
                f"{name}: the guide has a latent site '{missing}' that this run of the model did not reach; "
                "models whose sites change from run to run are not supported"
            )

    # ---- enumeration ----------------------------------------------------------------------------------------

    def _look(self, z: Tensor, args: Any, kwargs: Any) -> None:
        """Find the model's plate nesting, and whether it has enumerated sites."""
        values = {site["name"]: _constrain(site, part)[0] for site, part in self.guide._unpack_rows(z)}
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample"):
            trace = poutine.trace(poutine.condition(self.model, values)).get_trace(*args, **kwargs)
        self.enumerates = any(s["infer"].get("enumerate") == "parallel" for s in _latents(trace))
        frames = [f for s in trace.nodes.values() for f in s.get("cond_indep_stack", ())]
        self.max_plate_nesting = -min((f.dim for f in frames if f.vectorized), default=0)

    def _enumerated(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """Log density with the enumerated sites summed out."""
        nesting = self.max_plate_nesting
        with _Enum(first_available_dim=-1 - nesting):
            trace = self._trace(self.model, values, args, kwargs)
        trace.pack_tensors()
        log_prob: Tensor = TraceEinsumEvaluator(trace, True, nesting).log_prob(trace)
        return log_prob


def _constrain(site: dict[str, Any], unconstrained: Tensor) -> tuple[Tensor, Tensor]:
    """A site's value and the log-determinant of its constraint's transform."""
    transform = biject_to(site["fn"].support)
    value = transform(unconstrained)
    return value, transform.log_abs_det_jacobian(unconstrained, value)


def _latents(trace: Any) -> Iterator[dict[str, Any]]:
    """Sample sites that are neither observed, conditioned nor subsampled indices."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site):
            yield site
