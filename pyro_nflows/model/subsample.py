"""Subsampled plates of a model: the rows that a run has, and runs with given rows."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..system.exclusive import validation
from .bound import BoundModel

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
        rows, size, given = self.rows[msg["name"]], msg["fn"].subsample_size, msg["value"]
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


def _same(given: Any, rows: Tensor) -> bool:
    given = torch.as_tensor(given)
    return given.shape == rows.shape and bool((given.to(rows.device) == rows).all())


def subsample_sites(trace: Any) -> dict[str, Any]:
    """The sites of a trace at which plates have their rows, by plate."""
    return {n: site for n, site in trace.nodes.items() if site["type"] == "sample" and site_is_subsample(site)}


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
