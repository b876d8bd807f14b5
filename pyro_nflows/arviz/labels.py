"""Values of a model's sites and arguments as arrays whose dimensions have names."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.constants import arguments, array, arrays, as_array, same
from ..model.data_checks import is_deterministic
from ..model.pointwise import log_prob_and_mask
from ..model.predictive import Answers, Run
from ..model.site_kinds import Site, is_observation

SAMPLE_DIMS = ["chain", "draw"]


class Variable(NamedTuple):
    """An array, the names of its dimensions, and labels along those that are not simply counted."""

    values: np.ndarray
    dims: list[str]
    coords: Mapping[str, Sequence[Any]] = {}


Groups = dict[str, dict[str, Variable]]


class Labels:
    """Turns values into arrays with named dimensions, by the plates of the sites of a model.

    :param sites: of the model.
    :param dims: names of the dimensions of a site or an argument, where plates do not name them.
    """

    def __init__(self, sites: Mapping[str, Site], dims: Mapping[str, Sequence[str]]) -> None:
        self.sites, self.given = sites, dims

    def drawn(self, answers: Answers, shape: tuple[int, ...]) -> Groups:
        """Groups of variables that have draws."""
        groups: Groups = {}
        for (group, name), values in answers.items():
            variable = self._variable(group, name, values)
            held = variable.values.reshape(shape + variable.values.shape[1:])
            if held.size:
                groups.setdefault(group, {})[name] = variable._replace(values=held)
        return groups

    def observed(self) -> dict[str, Variable]:
        """Values of the observed sites."""
        data = {n: torch.as_tensor(s["value"]) for n, s in self.sites.items() if is_observation(s)}
        return {n: Variable(array(v), self._dims(n, v.shape)) for n, v in data.items()}

    def constant(self, run: Run) -> tuple[dict[str, Variable], list[str]]:
        """Arrays among the arguments that are not observed, by their names, and why some are not there."""
        data = [torch.as_tensor(s["value"]) for s in self.sites.values() if is_observation(s)]
        found, notes = dict[str, Variable](), list[str]()
        for name, value in arrays(arguments(run.model, run.args, run.kwargs)):
            try:
                held = as_array(value)
            except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
                notes.append(f"no constant_data of {name}: {type(error).__name__}: {error}".splitlines()[0])
                continue
            if not any(same(value, held, other) for other in data):
                found[name] = Variable(held, self._dims(name, held.shape))
        return found, notes

    def plates(self) -> dict[str, int]:
        """The plates of the model, and their sizes."""
        frames = [frame for site in self.sites.values() for frame in site["cond_indep_stack"] if frame.vectorized]
        return {frame.name: frame.size for frame in frames}

    def _variable(self, group: str, name: str, values: Tensor) -> Variable:
        if group == "log_likelihood":
            return self._pointwise(name, values)
        event_dim = 0 if group == "log_prior" else None
        return Variable(array(values), self._dims(name, values.shape[1:], event_dim))

    def _pointwise(self, name: str, values: Tensor) -> Variable:
        mask = log_prob_and_mask(self.sites[name])[1]
        if mask.all():
            return Variable(array(values), self._dims(name, values.shape[1:], event_dim=0))
        kept, dim = mask.flatten().nonzero().squeeze(-1), f"{name}_unmasked"
        return Variable(array(values.reshape(len(values), -1)[:, kept]), [dim], {dim: kept.tolist()})

    def _dims(self, name: str, shape: tuple[int, ...], event_dim: int | None = None) -> list[str]:
        named = dict(enumerate(self.given.get(name, ()))) or self._plates(name, shape, event_dim)
        number = itertools.count()
        return [named[axis] if axis in named else f"{name}_dim_{next(number)}" for axis in range(len(shape))]

    def _plates(self, name: str, shape: tuple[int, ...], event_dim: int | None) -> dict[int, str]:
        """The plate along each axis that has one."""
        if name not in self.sites:
            return {}
        site = self.sites[name]
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        num_batch = len(shape) - (site["fn"].event_dim if event_dim is None else event_dim)
        # pyro.deterministic takes every dimension for an event's unless told otherwise.
        num_batch = num_batch or (len(shape) if is_deterministic(site) else 0)
        axes = {num_batch + frame.dim: frame for frame in frames}
        return {a: f.name for a, f in axes.items() if a >= 0 and shape[a] == f.size}
