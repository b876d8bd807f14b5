"""A model's continuous latents as a value: what each site looks like, and where one flat vector holds it."""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Transform

from ..system.shapes import broadcast_shapes
from . import checks, supports
from .centering import bijection
from .noncentered import Center, ScaleSite, scaled_elsewhere
from .placed import is_masked

#: What is kept of a site of a trace.
KEPT = ("type", "name", "fn", "value", "is_observed", "scale", "mask", "cond_indep_stack")


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent site of a model.

    :param site: of a trace of the model: the distribution, a value to start from, the mask, the scale and the plates,
        without gradients, data or arguments.
    :param shape: of its unconstrained value.
    :param columns: where flat vectors hold that.
    :param centering: :math:`c` of a site in prior-informed coordinates (:mod:`~pyro_nflows.model.centering`), or None.
    :param scales: of a site that is written non-centered, what makes its scale, where that is known
        (:mod:`~pyro_nflows.model.noncentered`).
    """

    site: Mapping[str, Any]
    shape: torch.Size
    columns: slice
    centering: Tensor | None = None
    scales: tuple[ScaleSite, ...] = ()

    @property
    def name(self) -> str:
        """The site's name."""
        return str(self.site["name"])

    @property
    def event_dim(self) -> int:
        """How many dimensions of a value belong to one event."""
        return int(self.site["fn"].event_dim)

    @property
    def value_shape(self) -> torch.Size:
        """The shape of a value on the support."""
        shape: torch.Size = self.site["value"].shape
        return shape

    @property
    def transform(self) -> Transform:
        """The bijection from unconstrained values to the support, as the site was at first."""
        return bijection(self.site["fn"], self.centering)

    @property
    def plates(self) -> tuple[Any, ...]:
        """The plates around the site, as Pyro's frames, the outermost first."""
        return tuple(self.site["cond_indep_stack"])

    @property
    def subsampled(self) -> tuple[str, ...]:
        """The plates of which one run of the model has some rows only."""
        return tuple(frame.name for frame in self.plates if frame.full_size not in (None, frame.size))

    @property
    def axes(self) -> dict[str, int]:
        """The axis of the unconstrained value along each plate."""
        num = len(self.value_shape) - self.event_dim
        return {frame.name: num + frame.dim for frame in self.plates if frame.vectorized}

    @property
    def is_masked(self) -> bool:
        """Whether the site has a mask."""
        return is_masked(self.site)


class OneRun(NamedTuple):
    """The latents of one run of a model whose plates are subsampled.

    :param latents: of that run.
    :param columns: which of these each coordinate of all rows is like, as a place to start from.
    """

    latents: "Latents"
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Latents:
    r"""The continuous latents of a model, one flat unconstrained vector :math:`z`, and the way between the two.

    It does not change: what a later run of the model shows is put into a new one by :meth:`following`.

    :param owner: who asks, usually the name of a guide's class; error messages begin with it.
    :param sites: the latent sites by name, in the order in which :math:`z` holds them.
    :param moving: sites whose support depends on other latents, on parameters or on the model's arguments; see
        :mod:`~pyro_nflows.model.following`.
    :param filled: masked sites that count with their prior, and whether their mask depends on an enumerated site.
    :param one_run: where plates are subsampled, the latents of one run of the model; these are then those of all rows
        (:mod:`~pyro_nflows.model.all_rows`).

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        ...     pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        ...
        >>> latents = Latents.of("demo", pyro.poutine.trace(model).get_trace())
        >>> latents.dim, latents.shapes["weights"]
        (3, torch.Size([2]))
        >>> latents.constrain(torch.zeros(1, 3))["scale"]
        tensor([1.])
    """

    owner: str
    sites: Mapping[str, Latent]
    moving: frozenset[str] = frozenset()
    filled: Mapping[str, bool] = field(default_factory=dict)
    one_run: "OneRun | None" = None

    @staticmethod
    def of(owner: str, trace: Any) -> "Latents":
        """The latents of a trace of a model: its sites that are neither observed nor summed out.

        :raises ValueError: if no bijection from real vectors to the support of a site is known.
        """
        sites, start = dict[str, Latent](), 0
        for node in latent_sites(trace):
            if is_enumerated(node):
                continue
            name, shape = node["name"], unconstrained_shape(owner, node)
            sites[name] = Latent(_alone(node), shape, slice(start, start + shape.numel()))
            start += shape.numel()
        return Latents(owner, sites)

    def following(self, moving: frozenset[str], filled: Mapping[str, bool]) -> "Latents":
        """The same latents with what is known of moving supports and of masked sites."""
        known = moving == self.moving and dict(filled) == dict(self.filled)
        return self if known else replace(self, moving=moving, filled=dict(filled))

    def centered(self, centering: Mapping[str, Tensor]) -> "Latents":
        """The same latents, some of them in prior-informed coordinates: their values are found by running the model."""
        taken = {name: _first(c, self.sites[name].shape) for name, c in centering.items()}
        sites = {name: replace(latent, centering=taken.get(name)) for name, latent in self.sites.items()}
        one_run = self.one_run and self.one_run._replace(latents=self.one_run.latents.centered(centering))
        moving = (self.moving - self.centering.keys()) | centering.keys()
        return replace(self, sites=sites, moving=moving, one_run=one_run)

    @property
    def centering(self) -> dict[str, Tensor]:
        """The centering of each site that is in prior-informed coordinates."""
        return {name: latent.centering for name, latent in self.sites.items() if latent.centering is not None}

    def scaled(self, scales: Mapping[str, tuple[ScaleSite, ...]]) -> "Latents":
        """The same latents with what is known of the scales of sites that are written non-centered."""
        sites, values = dict(self.sites), {name: latent.site["value"] for name, latent in self.sites.items()}
        for name, found in scales.items():
            site = {**sites[name].site, "fn": scaled_elsewhere(sites[name].site["fn"], found, values)}
            sites[name] = replace(sites[name], site=site, scales=tuple(found))
        return replace(self, sites=sites)

    @property
    def centers(self) -> dict[str, Center]:
        """The same, with the sites that make the scale of what is written non-centered."""
        return {name: Center(c, self.sites[name].scales) for name, c in self.centering.items()}

    @property
    def names(self) -> list[str]:
        """The names of the sites."""
        return list(self.sites)

    @property
    def dim(self) -> int:
        """The length of the flat vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each site's unconstrained value."""
        return {name: latent.shape for name, latent in self.sites.items()}

    @property
    def value_shapes(self) -> dict[str, torch.Size]:
        """The shape of each site's value on its support."""
        return {name: latent.value_shape for name, latent in self.sites.items()}

    @property
    def masked(self) -> list[str]:
        """The sites that have a mask."""
        return [name for name, latent in self.sites.items() if latent.is_masked]

    @property
    def may_move(self) -> bool:
        """Whether a run of the model is needed to know which supports move and which masks count."""
        return bool(self.masked) or any(supports.has_bounds(latent.site["fn"]) for latent in self.sites.values())

    def init_loc(self) -> Tensor:
        """The flat vector of the values to start from."""
        if self.one_run is not None:
            return self.one_run.latents.init_loc()[self.one_run.columns]
        values = {name: latent.transform.inv(latent.site["value"]) for name, latent in self.sites.items()}
        return self.pack(values)

    def pack(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained values ``(..., *site shape)`` to flat vectors ``(..., dim)``: the inverse of :meth:`unpack`."""
        rows = [_row(parts[name], len(shape)) for name, shape in self.shapes.items()]
        return torch.cat(rows, -1)

    def unpack(self, z: Tensor) -> dict[str, Tensor]:
        """Flat vectors ``(..., dim)`` to each site's unconstrained value ``(..., *site shape)``."""
        batch, shapes = z.shape[:-1], self.shapes
        parts = z.split([shape.numel() for shape in shapes.values()], -1)
        return {name: part.reshape(batch + shape) for (name, shape), part in zip(shapes.items(), parts)}

    def unpack_in_plates(self, z: Tensor) -> dict[str, Tensor]:
        """The same where the leading dimensions of ``z`` are plates, which stand to the left of the sites' own.

        :param z: ``(..., 1, ..., 1, dim)``, with a dimension of one for each plate of the model.
        """
        batch, found = z.shape[:-1], dict[str, Tensor]()
        for name, latent in self.sites.items():
            event_dim = latent.event_dim + len(latent.shape) - len(latent.value_shape)
            shape = broadcast_shapes(latent.shape, batch + (1,) * event_dim)
            found[name] = z[..., latent.columns].reshape(shape)
        return found

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Flat vectors to values of the sites, on the supports that these had at first.

        Where a support moves, :func:`pyro_nflows.model.values.constrained` finds the values by running the model.
        """
        return {name: self.sites[name].transform(part) for name, part in self.unpack(z).items()}

    def unconstrain(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r"""Values ``(..., *site shape)`` to flat vectors, and :math:`\log|\det|` of :meth:`constrain` there."""
        pairs = [unconstrained_value(at.site, values[name], len(at.shape)) for name, at in self.sites.items()]
        rows, log_dets = zip(*pairs)
        return torch.cat(rows, -1), sum(log_dets)

    def prototype(self) -> Trace:
        """The sites as a trace, as Pyro's autoguides keep one."""
        trace = Trace()
        for name, latent in self.sites.items():
            trace.add_node(name, **latent.site)
        return trace


def _first(centering: Tensor, shape: torch.Size) -> Tensor:
    """The entries of a centering for as many rows as a shape has, from the first on."""
    for axis in range(-min(centering.dim(), len(shape)), 0):
        centering = centering.narrow(axis, 0, min(centering.shape[axis], shape[axis]))
    return centering


def unconstrained_value(site: Mapping[str, Any], value: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """A site's value in unconstrained space, its last ``num_dims`` dimensions made one, and the log-determinant."""
    transform = supports.bijection(site["fn"])
    part = transform.inv(value)
    return row_and_log_det(part, transform.log_abs_det_jacobian(part, value), num_dims)


def row_and_log_det(part: Tensor, log_det: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
    """The last ``num_dims`` dimensions of an unconstrained value made one, and its log-determinants added up."""
    return _row(part, num_dims), log_det.reshape(*part.shape[: part.dim() - num_dims], -1).sum(-1)


def _row(part: Tensor, num_dims: int) -> Tensor:
    return part.reshape(*part.shape[: part.dim() - num_dims], -1)


def unconstrained_shape(owner: str, site: Mapping[str, Any]) -> torch.Size:
    """The shape of a site's value in unconstrained space."""
    try:
        return supports.bijection(site["fn"]).inv(site["value"]).shape
    # torch's transforms of pieces that change the number of dimensions have an assertion
    except (NotImplementedError, AssertionError) as error:
        raise checks.no_bijection(owner, site) from error


def _alone(node: Mapping[str, Any]) -> dict[str, Any]:
    """A site without the data, parameters and arguments that the model was run with."""
    node = {**node, "fn": getattr(node["fn"], "as_written", node["fn"])}  # where a handler has put another sampler
    return {**{key: _detached(node[key]) for key in KEPT}, "args": (), "kwargs": {}, "infer": {}}


def _detached(thing: Any) -> Any:
    """A tensor, or a distribution's, without the parameters that it was made of: those cannot be copied or pickled."""
    if isinstance(thing, Tensor):
        return thing.detach()
    if not isinstance(thing, Distribution):
        return thing
    new = copy(thing)
    new.__dict__.update({key: _detached(value) for key, value in vars(thing).items()})
    return new


def latent_sites(trace: Any) -> Iterator[dict[str, Any]]:
    """Sample sites that are neither observed, conditioned nor subsampled indices."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site):
            yield site


def is_enumerated(site: Mapping[str, Any]) -> bool:
    """Whether a site is to be summed out."""
    return bool(site["infer"].get("enumerate") == "parallel")
