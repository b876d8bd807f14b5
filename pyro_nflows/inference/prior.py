r"""A fitted posterior as the prior of the next data: what has been learned so far, in the place of the model's prior.

With :math:`q` the flow over flat unconstrained latents :math:`z = T^{-1}(\theta)`, the density of the sites' values is

.. math:: \log q(\theta) = \log q(T^{-1}(\theta)) - \log \lvert \det T'(T^{-1}(\theta)) \rvert .

A model with this prior runs the same code as before. Its latent sites keep the distributions that the model gives
them, so that plates, supports and coordinates informed by the prior stay, and one more term is added to its log
density: :math:`\log q(\theta) - \log p(\theta)`, with :math:`p` the model's own prior. That cancels, and :math:`q`
is left.
Where a site is drawn and not given, it is drawn from :math:`q`, all sites in one joint draw.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import as_shape, check_mapping, check_sizes, counted
from ..flows.distribution import FlowDistribution
from ..guides import AutoFlow
from ..guides.joint import looked
from ..layers import Rescaled
from ..layers.base import Exactness, Layer
from ..model import values as moved
from ..model.bound import BoundModel
from ..model.handlers import outside
from ..model.log_joint import LogJoint
from ..system.exclusive import seeded
from ..system.memory import enough
from ..system.shapes import broadcast_shapes
from .portable import packed, unpacked
from .updated import Updated


class FittedPrior:
    r"""A distribution over the latent sites of a model: the flow that a run has trained.

    ``vi.posterior.as_prior()`` makes one. It does not change when the guide is trained further.

    :param guide: what the latents are, and the model.
    :param layer: the trained flow.
    :param call: the model's arguments in the fit; None where they are not at hand.
    :param has_parameters: whether the model has parameters of its own.
    :raises ValueError: if the flow has no exact density, or the latents are in subsampled plates.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_nflows import VI, AutoFlow
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(y)):
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> first = VI(AutoFlow(model), seed=0, progress_bar=False).run(torch.full((3,), 2.0))
        >>> prior = first.posterior.as_prior()
        >>> second = VI(AutoFlow(prior.on(model)), seed=0, progress_bar=False).run(torch.full((4,), 1.0))
        >>> round(second.get_samples()["z"].mean().item(), 1)  # (3 x 2 + 4 x 1) / 8
        1.2
    """

    def __init__(
        self,
        guide: AutoFlow,
        layer: Rescaled,
        call: tuple[tuple[Any, ...], dict[str, Any]] | None,
        has_parameters: bool = False,
    ):
        _check(guide, layer, call, has_parameters)
        self.guide, self.latents, self.call = guide, guide.latents, call
        self.layer: Layer = layer.plain().requires_grad_(False)
        self._joint = self._fitted()

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each site's value."""
        return self.latents.value_shapes

    @property
    def flat(self) -> FlowDistribution:
        """The distribution over the flat unconstrained latent."""
        return FlowDistribution(self.layer)

    def sample(self, sample_shape: Sequence[int] = ()) -> dict[str, Tensor]:
        """Joint draws, a dict from site to ``(*sample_shape, *site shape)``.

        They are those of the flow by itself: they are not resampled by importance weights.
        """
        sample_shape = as_shape("FittedPrior.sample", sample_shape)
        check_sizes("FittedPrior.sample", **{f"sample_shape[{i}]": size for i, size in enumerate(sample_shape)})
        num, remedy = math.prod(sample_shape), "ask for fewer at a time"
        num_bytes = num * self.latents.dim * next(self.layer.parameters()).dtype.itemsize
        with torch.no_grad(), enough("FittedPrior.sample", counted(num, "draw"), 2 * num_bytes, remedy):
            z = self.flat.sample(torch.Size(sample_shape))
            rows = z.reshape(-1, z.shape[-1])
            with outside():
                values = moved.constrained(self._joint, rows) if self._joint else self.latents.constrain(rows)
        return {name: value.reshape((*sample_shape, *self.shapes[name])) for name, value in values.items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of values of all sites, in their own space.

        :param values: site to ``(..., *site shape)``.
        :return: ``(...)``, what the leading dimensions are broadcast to; ``-inf`` off the support.
        :raises ValueError: if a site is missing, or has another shape, or there is one that the fit did not have.
        """
        check_mapping("FittedPrior.log_prob", values=values)
        unknown = [name for name in values if name not in self.shapes]
        if unknown:
            raise ValueError(f"FittedPrior.log_prob: got values of {unknown}, but the sites are {list(self.shapes)}")
        values = {name: torch.as_tensor(value) for name, value in values.items()}
        for name, shape in self.shapes.items():
            found = None if name not in values else tuple(values[name].shape)
            if found is None or found[len(found) - len(shape) :] != tuple(shape):
                raise ValueError(
                    f"FittedPrior.log_prob: site {name!r} has {'no value' if found is None else f'shape {found}'}, "
                    f"expected (..., {', '.join(map(str, shape))}); the sites are {list(self.shapes)}"
                )
        if self._joint:
            with outside():
                z, log_det = moved.unconstrained(self._joint, values)
        else:
            leading = [v.shape[: v.dim() - len(self.shapes[n])] for n, v in values.items()]
            batch = broadcast_shapes(*leading)
            whole = {n: values[n].expand((*batch, *shape)) for n, shape in self.shapes.items()}
            z, log_det = self.latents.unconstrain(whole)
        off = z.isnan().any(-1) & ~nan_in(values, self.shapes)
        z = torch.where(off[..., None], 0.0, z).to(next(self.layer.parameters()).dtype)
        return torch.where(off, -torch.inf, self.flat.log_prob(z) - log_det)

    def _fitted(self) -> LogJoint | None:
        """The model of the fit, which says where supports are that depend on other latents."""
        if not self.latents.moving:
            return None
        args, kwargs = self.call or ((), {})
        with seeded(0):  # the model is run for its structure
            return looked(LogJoint(BoundModel(self.guide.bare_model, args, kwargs), self.latents))

    def on(self, model: Callable[..., Any]) -> Updated:
        r"""A model with this prior in the place of its own; its code, its other sites and its arguments stay.

        It can be fitted by ``VI`` or ``SVI`` with any guide, by ``MCMC``, and be run by ``Predictive``. The evidence of
        its fit is that of the new data given those before: :math:`\log p(y_2 \mid y_1)`.

        :param model: a Pyro model with all of the latent sites, in the shapes of the fit; usually the same one. Latent
            sites that the fit did not have keep the model's prior given the others.
        :return: a Pyro model of the same arguments. When it is run, it raises ValueError if a latent site is
            missing, or has another shape.
        """
        return Updated(model, self)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {tuple(shape)}" for name, shape in self.shapes.items())
        return f"FittedPrior of {sites}"

    def __getstate__(self) -> dict[str, Any]:
        kept = {**self.__dict__, "guide": None, "call": None, "_joint": None}
        return {**kept, **packed(self.guide, self.call)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        guide, call, absent = unpacked(state)
        if state["latents"].moving and call is None:
            raise ValueError(f"this prior {absent}; its sites need the model to be found. {_RELOAD}")
        self.__dict__.update({**state, "guide": guide, "call": call})
        self._joint = self._fitted()


_RELOAD = "Save the fit with vi.save(path), and have it again with VI.load(path, guide, *args).posterior.as_prior()"


def _check(guide: AutoFlow, layer: Rescaled, call: Any, has_parameters: bool) -> None:
    """Refuse a flow whose density is not known at given values.

    :raises ValueError: says what to do.
    """
    if guide.latents.one_run is not None:
        raise ValueError(
            "as_prior: the model has latents in subsampled plates, whose rows are others in each run; fit all rows, "
            "without subsample_size"
        )
    if guide.needs_model or layer.exactness is not Exactness.EXACT or not layer.has_inverse:
        raise ValueError(
            f"as_prior: the flow of {type(guide).__name__} has no exact density at given values; fit AutoFlow, "
            "AutoRealNVP, AutoSpline or AutoMAF"
        )
    if guide.latents.moving and call is None:
        raise ValueError(
            "as_prior: latents of this guide are in coordinates informed by the model's prior, and the data of the fit "
            f"are not at hand. {_RELOAD}"
        )
    if guide.latents.moving and has_parameters:
        raise ValueError(
            "as_prior: latents of this guide are in coordinates informed by the model's prior, and the model has "
            "parameters of its own (pyro.param), which the next fit would move; use AutoFlow(model, centering=None)"
        )


def nan_in(values: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Tensor:
    """Which joint values of some sites have NaN in them.

    :param values: site to ``(..., *site shape)``.
    :param shapes: of the sites.

    Example::

        >>> nan_in({"a": torch.tensor([1.0, torch.nan])}, {"a": torch.Size()})
        tensor([False,  True])
    """
    found = torch.zeros((), dtype=torch.bool)
    for name, value in values.items():
        own = value.isnan()
        found = found | (own.flatten(own.dim() - len(shapes[name])).any(-1) if shapes[name] else own)
    return found
