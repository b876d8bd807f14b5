"""A model whose latent sites have a fitted posterior as their joint prior."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..model.site_kinds import is_latent, is_marked

#: The term that puts one prior in the place of the other.
TERM = "fitted_prior"


class Joint(Protocol):
    """A joint distribution over sites: a :class:`~pyro_nflows.inference.prior.FittedPrior`."""

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each site's value."""

    def sample(self, sample_shape: Sequence[int] = ()) -> dict[str, Tensor]:
        """Joint draws."""

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of values of all sites."""


class Updated:
    """A Pyro model that runs another one, its prior replaced; see :mod:`pyro_nflows.inference.prior`.

    :param model: the Pyro model.
    :param prior: of its latent sites.
    :raises TypeError: if the model cannot be called.
    """

    def __init__(self, model: Callable[..., Any], prior: Joint):
        if not callable(model):
            raise TypeError(f"FittedPrior.on: expected a Pyro model, which can be called, got {type(model).__name__}")
        self.prior = prior
        functools.update_wrapper(self, model, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = _Swap(self.prior)
        with handler:
            answer = self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]
        pyro.factor(TERM, handler.term())
        return answer

    def __repr__(self) -> str:
        return f"{getattr(self, '__name__', 'model')} with {self.prior!r}"


class _Swap(Messenger):
    """Has sites drawn from a joint prior, and notes their values and what their own priors say of them."""

    def __init__(self, prior: Joint):
        super().__init__()
        self.prior = prior
        self.draws = _Draws(prior)
        self.values: dict[str, Tensor] = {}
        self.event_dims: dict[str, int] = {}
        self.own: list[Tensor] = []
        self.others: list[str] = []
        self.depth = 0

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not is_latent(msg) or is_marked(msg):
            return
        name, shapes = msg["name"], self.prior.shapes
        if name not in shapes:
            self.others.append(name)
            return
        found, shape = tuple(msg["fn"].shape()), tuple(shapes[name])
        num_own = len(shape) - int(msg["fn"].event_dim)
        depth = -min((frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized), default=0)
        # further dimensions to the left come from values that have rows of plates outside of the model
        if found[len(found) - len(shape) :] != shape or depth > num_own:
            raise ValueError(
                f"the latent site {name!r} has shape {found} in this model and {shape} in the fitted prior. Give data "
                "of the same groups, in the same order"
            )
        self.depth = max(self.depth, num_own)
        msg["fn"] = drawn_from(msg["fn"], self.draws, name)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.prior.shapes and not site_is_subsample(msg):
            self.values[msg["name"]] = msg["value"]
            self.event_dims[msg["name"]] = msg["fn"].event_dim
            own = msg["fn"].log_prob(msg["value"])
            self.own.append(scale_and_mask(own, msg["scale"], msg["mask"]))

    def term(self) -> Tensor:
        """The log density of the joint prior less that of the sites' own, a number for each row of plates outside.

        :raises ValueError: if a site is missing.
        """
        missing = [name for name in self.prior.shapes if name not in self.values]
        if missing:
            raise ValueError(
                f"the model has no latent site {missing}, which the fitted prior has; it has "
                f"{[*self.values, *self.others]}. Use the model of the fit, or one whose sites have the same names"
            )
        joint = self.prior.log_prob({name: self._in_rows(name) for name in self.prior.shapes})
        joint = joint.reshape(joint.shape + (1,) * self.depth) if joint.dim() else joint
        return joint - sum(self._of_rows(own) for own in self.own)

    def _in_rows(self, name: str) -> Tensor:
        """A site's value, in which rows of plates outside of the model come first and the site's own dimensions last.

        In between, Pyro has a dimension of one for each of the model's plates that the site is not in.
        """
        value, shape = self.values[name], self.prior.shapes[name]
        event_dim = self.event_dims[name]
        batch, event = value.shape[: value.dim() - event_dim], value.shape[value.dim() - event_dim :]
        rows = batch[: max(len(batch) - self.depth, 0)]
        num_own = len(shape) - event_dim
        own = ((1,) * num_own + tuple(batch[len(rows) :]))[-num_own:] if num_own else ()
        return value.reshape((*rows, *own, *event)).expand((*rows, *shape))

    def _of_rows(self, own: Tensor) -> Tensor:
        """A site's log density, summed over the model's own plates."""
        num_rows = max(own.dim() - self.depth, 0)
        if not num_rows:
            return own.sum()
        return own.reshape((*own.shape[:num_rows], -1)).sum(-1).reshape(own.shape[:num_rows] + (1,) * self.depth)


class _Draws:
    """Joint draws of one run of the model, of which each site takes its part."""

    def __init__(self, prior: Joint):
        self.prior = prior
        self.found: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def part(self, name: str, sample_shape: torch.Size, batch_shape: torch.Size, event_dim: int) -> Tensor:
        """A site's part: the same draw for all sites, but a fresh one where several are asked for."""
        shape = self.prior.shapes[name]
        outside = batch_shape[: len(batch_shape) - (len(shape) - event_dim)]
        rows = tuple(size for size in outside if size > 1)  # sites differ in the dimensions of one
        if sample_shape:
            drawn = self.prior.sample((*sample_shape, *rows))
        else:
            drawn = self.found.setdefault(rows, {}) or self.prior.sample(rows)
            self.found[rows] = drawn
        return drawn[name].reshape((*sample_shape, *outside, *shape))


def drawn_from(fn: Any, draws: _Draws, name: str) -> Any:
    """A distribution that is another one, but for its draws, which are a site's part of joint draws.

    It is a copy, of the same class: whatever looks at a site's distribution sees what the model has.
    """
    new = copy.copy(fn)
    new.as_written = fn
    new.sample = new.rsample = lambda sample_shape=torch.Size(): draws.part(
        name, torch.Size(sample_shape), fn.batch_shape, fn.event_dim
    )
    new.expand = lambda batch_shape, _instance=None: drawn_from(fn.expand(torch.Size(batch_shape)), draws, name)
    return new
