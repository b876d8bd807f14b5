"""Subsampled plates of a model: the rows that a run has, and runs with given rows."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..system.exclusive import validation
from ..system.randomness import forked
from .bound import BoundModel

#: A mark of plates whose rows another handler may choose.
CREATED = "_created"
#: What to do where a model is to be run on rows that its arguments do not give.
PASS_ROWS = "pass the rows' numbers, and their data, as its arguments"


class Chosen(Messenger):
    """The plates of a model take given rows, in the place of those that they would draw.

    Pyro's plates keep their ``subsample_size``, so a plate that has one takes as many rows as that says.

    :param owner: who asks; error messages begin with it.
    :param rows: the rows' numbers, by plate; other plates are left alone.
    :param remedy: what to do where the model's arguments give it other rows.
    :raises ValueError: when run, if a plate takes another number of rows, or is given other rows by the model.

    Example::

        >>> import pyro
        >>> def model():
        ...     return pyro.plate("groups", 10, subsample_size=2).indices
        ...
        >>> Chosen("demo", {"groups": torch.tensor([3, 4])})(model)()
        tensor([3, 4])
    """

    def __init__(self, owner: str, rows: Mapping[str, Tensor], remedy: str = PASS_ROWS):
        super().__init__()
        self.owner, self.rows, self.remedy = owner, rows, remedy

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["name"] not in self.rows:
            return
        rows, size = self.rows[msg["name"]], msg["fn"].subsample_size
        given = None if msg["infer"].get(CREATED) else msg["value"]
        if given is not None and not _same(given, rows):
            raise ValueError(
                f"{self.owner}: the model gives plate '{msg['name']}' its rows by subsample=, so it cannot be run on "
                f"other rows; {self.remedy}"
            )
        if size is not None and size != len(rows):
            raise ValueError(
                f"{self.owner}: plate '{msg['name']}' has subsample_size={size} in this run of the model, and is to "
                f"have {len(rows)} rows; the rows of model and guide must be as many"
            )
        msg["value"], msg["done"] = rows, True


@dataclass(frozen=True)
class InCreatedPlates:
    """A model in which a plate of all rows has those of the plates that a function makes.

    So Pyro's autoguides are told of minibatches that the model does not know of; under ``SVI`` it has the guide's rows.

    :param model: the Pyro model.
    :param create_plates: of the model's arguments, a plate or several.

    Example::

        >>> import pyro
        >>> def model():
        ...     return pyro.plate("groups", 10).indices
        ...
        >>> def create_plates():
        ...     return pyro.plate("groups", 10, subsample=torch.tensor([3, 4]))
        ...
        >>> InCreatedPlates(model, create_plates)()
        tensor([3, 4])
    """

    model: Callable[..., Any]
    create_plates: Callable[..., Any]

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return _Created(functools.partial(self.create_plates, *args, **kwargs))(self.model)(*args, **kwargs)


class _Created(Messenger):
    def __init__(self, create_plates: Callable[[], Any]):
        super().__init__()
        self.create_plates, self.made = create_plates, dict[str, Any]()
        self.is_made = False

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) or msg["value"] is not None or _is_part(msg["fn"]):
            return
        if not self.is_made:
            self.is_made, self.made = True, self._sites_made()
        site = self.made.get(msg["name"])
        if site is None:
            return
        if _is_part(site["fn"]):  # as if the model had its subsample_size
            msg["fn"] = site["fn"]
        elif len(site["value"]) < site["fn"].size:
            msg["value"], msg["infer"] = torch.as_tensor(site["value"]), {**msg["infer"], CREATED: True}

    def _sites_made(self) -> dict[str, Any]:
        with poutine.block(), forked(), poutine.trace() as made:
            self.create_plates()
        return subsample_sites(made.trace)


def _is_part(fn: Any) -> bool:
    """Whether a plate draws some of its rows."""
    return fn.subsample_size not in (None, fn.size)


def _same(given: Any, rows: Tensor) -> bool:
    given = torch.as_tensor(given)
    return given.shape == rows.shape and bool((given.to(rows.device) == rows).all())


def subsample_sites(trace: Any) -> dict[str, Any]:
    """The sites of a trace at which plates have their rows, by plate."""
    return {n: site for n, site in trace.nodes.items() if site["type"] == "sample" and site_is_subsample(site)}


def is_given(site: Mapping[str, Any]) -> bool:
    """Whether the model, by its arguments, says which rows a plate has; or it has all."""
    return site["fn"].subsample_size is None and not site["infer"].get(CREATED)


def rows_of(trace: Any) -> dict[str, Tensor]:
    """The rows that each plate has in a trace of a model."""
    return {name: torch.as_tensor(site["value"]) for name, site in subsample_sites(trace).items()}


class Alike(Messenger):
    """Latents take the values of given sites, so that nothing is drawn: those of rows take the first row's.

    :param sites: name to a site with a value and plates, such as :attr:`~pyro_nflows.model.latents.Latent.site`.
    :param watched: whether values have gradients, to see what depends on them.
    """

    def __init__(self, sites: Mapping[str, Mapping[str, Any]], watched: bool = False):
        super().__init__()
        self.sites, self.watched = sites, watched

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.sites:
            return
        site, shape = self.sites[msg["name"]], msg["fn"].shape()
        value, num_dims = site["value"], msg["fn"].event_dim
        for frame in site["cond_indep_stack"]:
            axis = value.dim() - num_dims + frame.dim
            value = value.narrow(axis, 0, 1) if value.shape[axis] != shape[axis] else value
        value = value.expand(shape)
        msg["value"], msg["done"] = value.clone().requires_grad_() if self.watched else value, True


def look(bound: BoundModel, sites: Mapping[str, Mapping[str, Any]], watched: bool = False) -> Any:
    """A trace of a model, run only to see its rows and data: its latents take values of an earlier run.

    :param bound: the model and its arguments.
    :param sites: those values; see :class:`Alike`.
    :param watched: whether the latents have gradients, to see what depends on them.
    """
    with poutine.block(), validation(False), torch.set_grad_enabled(watched):
        return poutine.trace(Alike(sites, watched)(bound.model)).get_trace(*bound.args, **bound.kwargs)
