r"""Draws of a model as ArviZ data, with everything that ``az.summary``, ``az.loo`` and ``az.plot_ppc`` ask for.

======================== ==========================================================================================
``posterior``            the draws, and deterministic sites computed from them
``sample_stats``         what the caller knows of each draw: ``lp``, ``log_q``, ``log_weight``
``log_likelihood``       log density of every observation given every draw
``posterior_predictive`` one replicated data set a draw
``prior``                latent and deterministic sites drawn from the prior
``prior_predictive``     data drawn from the prior
``observed_data``        the values of the observed sites
``constant_data``        tensors passed to the model that are not the value of an observed site
======================== ==========================================================================================

A dimension is named by its plate, and ``{site}_dim_{i}`` if it has none. The result is an ``InferenceData`` on ArviZ
0.x and an ``xarray.DataTree`` on ArviZ 1.x.
"""

import importlib.metadata
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .model.constants import arguments, array, arrays, as_array, same
from .model.predictive import (
    Answers,
    Draw,
    Run,
    Site,
    each_draw,
    is_deterministic,
    is_observation,
    is_partial,
    isolated,
    log_prob_and_mask,
)

__all__ = ["to_arviz"]

SAMPLE_DIMS = ["chain", "draw"]


class Variable(NamedTuple):
    """An array, the names of its dimensions, and labels along those that are not simply counted."""

    values: np.ndarray
    dims: list[str]
    coords: Mapping[str, Sequence[Any]] = {}


Groups = dict[str, dict[str, Variable]]


def to_arviz(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    sample_stats: Mapping[str, Tensor] | None = None,
    group_by_chain: bool = False,
    log_likelihood: bool = True,
    posterior_predictive: bool = True,
    num_prior: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> Any:
    r"""Turn posterior draws of a model into ArviZ data.

    - The log-likelihood is that of single observations, without ``poutine.scale``. Of a site with masked entries it
      has only the others, along the one dimension ``{site}_unmasked``. ``pyro.factor`` is no observation.
    - Discrete latents that are enumerated are summed out of the log-likelihood where that leaves one term an
      observation, as in a mixture; in replicated data they are drawn anew, as for new units.
    - What cannot be had is left out, and the attribute ``notes`` of the group ``posterior`` says why: the prior if a
      site has none to draw from (``ImproperUniform``), data in a plate that shows a random part of it only.

    The model runs under ``torch.vmap``, or once a draw if it cannot. The param store is left as it was.

    :param model: a Pyro model.
    :param samples: draws of every latent site, shape ``(num_samples, ...)``.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param sample_stats: statistics of each draw, shape ``(num_samples,)``.
    :param group_by_chain: draws and statistics have shape ``(num_chains, num_samples, ...)``, as from ``MCMC``.
    :param log_likelihood: whether to include the log-likelihood.
    :param posterior_predictive: whether to include replicated data.
    :param num_prior: how many prior draws, 0 for none; by default as many as there are draws, at most 1,000.
    :param coords: labels along a dimension, such as ``{"school": ["A", "B"]}``.
    :param dims: names of the dimensions of a site or argument, where plates do not name them.
    :param seed: makes the result reproducible and leaves torch's random state alone.
    :return: ``InferenceData`` or ``DataTree``.
    :raises ValueError: if a latent site is missing from ``samples``, or the numbers of draws differ.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("unit", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> data = to_arviz(model, {"mu": torch.randn(100)}, (torch.zeros(5),), seed=0)
        >>> data["log_likelihood"]["y"].dims
        ('chain', 'draw', 'unit')
    """
    run = Run(model, args, kwargs or {})
    shape, draws = _flatten("samples", samples, group_by_chain)
    num_prior = min(shape[0] * shape[1], 1000) if num_prior is None else num_prior
    with isolated(seed, next(iter(draws.values())).device):
        sites = run.sites({name: values[0] for name, values in draws.items()})
        answers, notes = _ask(run, draws, log_likelihood, posterior_predictive)
        if sample_stats:
            stats = _flatten("sample_stats", sample_stats, group_by_chain, shape)[1]
            answers |= {("sample_stats", name): values for name, values in stats.items()}
        prior, no_prior = _had(lambda: each_draw(run.prior, {"": torch.arange(num_prior)}), "prior", num_prior > 0)
        label = _Labels(sites, dims or {})
        groups = label.drawn(answers, shape) | label.drawn(prior, (1, num_prior))
        constant, no_constant = label.constant(run)
        groups |= {"observed_data": label.observed(), "constant_data": constant}
    notes = no_prior + notes + no_constant + _left_out(sites, answers, log_likelihood)
    return _build(groups, coords or {}, notes)


def _flatten(
    argument: str, values: Draw, group_by_chain: bool, expected: tuple[int, ...] | None = None
) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The shape (num_chains, num_samples), and the values with both along one dimension."""
    ndim = 2 if group_by_chain else 1
    shapes = {name: (1, *value.shape[:ndim])[-2:] for name, value in values.items()}
    expected = expected or max(shapes.values(), key=len, default=(1,))
    if len(expected) < 2 or set(shapes.values()) != {expected}:
        raise ValueError(
            f"{argument}: got (num_chains, num_samples) = {shapes}, expected {expected} for every name. "
            "Draw all sites together; group_by_chain=True is for values with a leading dimension of chains."
        )
    return expected, {name: value.detach().flatten(0, ndim - 1) for name, value in values.items()}


def _ask(run: Run, draws: Draw, log_likelihood: bool, posterior_predictive: bool) -> tuple[Answers, list[str]]:
    answers = {("posterior", name): values for name, values in draws.items()}
    answers |= each_draw(run.deterministic, draws)
    if log_likelihood:
        answers |= each_draw(run.log_likelihood, draws)
    replicated, notes = _had(
        lambda: each_draw(run.posterior_predictive, draws), "posterior_predictive", posterior_predictive
    )
    return answers | replicated, notes


def _had(ask: Callable[[], Answers], group: str, wanted: bool) -> tuple[Answers, list[str]]:
    """The answers, or why there are none: a distribution may have a density and no sampler."""
    try:
        return ask() if wanted else {}, []
    except (NotImplementedError, RuntimeError, ValueError) as error:
        message = (str(error) or "a distribution has no sampler").splitlines()[0]
        return {}, [f"no {group}: {type(error).__name__}: {message}"]


def _left_out(sites: Mapping[str, Site], answers: Answers, log_likelihood: bool) -> list[str]:
    partial = [f"no data of {n}: a plate shows a random part of it" for n, s in sites.items() if is_partial(s)]
    whole = [n for n, s in sites.items() if is_observation(s) and log_likelihood]
    coupled = [n for n in whole if ("log_likelihood", n) not in answers]
    return partial + [f"no log_likelihood of {n}: its discrete latents do not split by observation" for n in coupled]


class _Labels:
    """Turns values into arrays with named dimensions, by the plates of the sites of a model."""

    def __init__(self, sites: Mapping[str, Site], dims: Mapping[str, Sequence[str]]) -> None:
        self.sites, self.given = sites, dims

    def drawn(self, answers: Answers, shape: tuple[int, ...]) -> Groups:
        """Groups of variables that have draws."""
        groups: Groups = {}
        for (group, name), values in answers.items():
            variable = self._pointwise(name, values) if group == "log_likelihood" else self._draws(name, values)
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

    def _draws(self, name: str, values: Tensor) -> Variable:
        return Variable(array(values), self._dims(name, values.shape[1:]))

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
        return {a: _renamed(f.name) for a, f in axes.items() if a >= 0 and shape[a] == f.size}


def _build(groups: Groups, coords: Mapping[str, Sequence[Any]], notes: list[str]) -> Any:
    """The groups that are not empty, as what the installed ArviZ works on."""
    import arviz

    attrs = {"inference_library": "pyro_nflows", "inference_library_version": _version()}
    datasets = {group: _dataset(group, variables, coords, attrs) for group, variables in groups.items() if variables}
    if notes:
        datasets["posterior"].attrs["notes"] = "; ".join(notes)
    if not _is_modern(arviz.__version__):
        return arviz.InferenceData(**datasets, attrs=attrs)
    from xarray import DataTree

    tree = DataTree.from_dict(datasets)
    tree.attrs.update(attrs)
    return tree


def _dataset(group: str, variables: Mapping[str, Variable], coords: Mapping[str, Any], attrs: dict[str, str]) -> Any:
    import arviz

    keyword = "sample_dims" if _is_modern(arviz.__version__) else "default_dims"
    sample_dims = {keyword: [] if group.endswith("_data") else SAMPLE_DIMS}
    coords = {**coords, **{dim: labels for v in variables.values() for dim, labels in v.coords.items()}}
    values = {_safe(name): variable.values for name, variable in variables.items()}
    dims = {_safe(name): [_safe(dim) for dim in variable.dims] for name, variable in variables.items()}
    coords = {_safe(dim): labels for dim, labels in coords.items()}
    return arviz.dict_to_dataset(values, dims=dims, coords=coords, attrs=attrs, **sample_dims)


def _is_modern(version: str) -> bool:
    return int(version.split(".")[0]) >= 1


def _renamed(plate: str) -> str:
    return f"{plate}_plate" if plate in SAMPLE_DIMS else plate


def _safe(name: str) -> str:
    """Without the slash of ``pyro.contrib.autoname.scope``, which a netCDF file takes for a group."""
    return name.replace("/", ".")


def _version() -> str:
    try:
        return importlib.metadata.version("pyro_nflows")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
