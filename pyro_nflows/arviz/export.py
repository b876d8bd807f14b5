"""Everything that ArviZ asks of a model at posterior draws, found by running the model once for each draw."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..checks import check_flags, check_mapping, check_seed
from ..model.predictive import Answers, Draw, Run, each_draw, isolated
from ..model.site_kinds import Site, is_observation, is_partial, is_row_factor
from .containers import Facts, contained
from .factors import factor_notes
from .labels import Labels
from .names import check_coords, check_dims, check_fresh, check_likelihood
from .predictions import predicted
from .renamed import names_of

#: Is asked.
WHO = "to_arviz"

__all__ = ["Options", "to_arviz"]


class Options(TypedDict, total=False):
    """What may be asked of an export besides the draws; see :func:`to_arviz`."""

    log_likelihood: bool | Sequence[str]
    unconstrained: bool
    predictions: Sequence[Any] | Mapping[str, Any] | None
    fresh: Sequence[str]
    coords: Mapping[str, Sequence[Any]] | None
    dims: Mapping[str, Sequence[str]] | None


def to_arviz(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    sample_stats: Mapping[str, Tensor] | None = None,
    group_by_chain: bool = False,
    log_likelihood: bool | Sequence[str] = True,
    log_prior: bool = True,
    posterior_predictive: bool = True,
    num_prior: int | None = None,
    unconstrained: bool = False,
    predictions: Sequence[Any] | Mapping[str, Any] | None = None,
    fresh: Sequence[str] = (),
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Facts | None = None,
    seed: int | None = None,
) -> Any:
    r"""Turn posterior draws of a model into ArviZ data.

    - The log-likelihood is that of single observations, without ``poutine.scale``. Of a site with masked entries it
      has only the others, along the one dimension ``{site}_unmasked``.
    - A ``pyro.factor`` in a plate, such as that of censored rows, counts as observations, one a row, and the attribute
      ``notes`` names it. Of one outside of all plates the rows are not known: it is left out, and a
      :class:`FactorWarning` says so.
    - Discrete latents that are enumerated are summed out of the log-likelihood where that leaves one term an
      observation, as in a mixture; in replicated data they are drawn anew, as for new units.
    - What cannot be had is left out, and the attribute ``notes`` of the group ``posterior`` says why: the prior if a
      site has none to draw from (``ImproperUniform``), data in a plate that shows a random part of it only.
    - A slash in a name becomes a dot, which a netCDF file can hold. A name that another has, such as ``draw`` or
      ``x/b`` beside ``x.b``, is changed further, and ``notes`` says to what. Arguments take the model's names.

    The model runs under ``torch.vmap``, or once a draw if it cannot. The param store is left as it was.

    :param model: a Pyro model.
    :param samples: draws of every latent site, shape ``(num_samples, ...)``.
    :param args: positional arguments of the model.
    :param kwargs: keyword arguments of the model.
    :param sample_stats: statistics of each draw, shape ``(num_samples,)``.
    :param group_by_chain: draws and statistics have shape ``(num_chains, num_samples, ...)``, as from ``MCMC``.
    :param log_likelihood: whether to include the log-likelihood, or of which sites.
    :param log_prior: whether to include the log density of each latent site.
    :param posterior_predictive: whether to include replicated data.
    :param num_prior: how many prior draws, 0 for none; by default as many as there are draws, at most 1,000.
    :param unconstrained: whether to include ``unconstrained_posterior``, the latent sites as Pyro's ``biject_to`` has
        them.
    :param predictions: other arguments of the model, a sequence by position or a mapping by name: what it draws there
        is the group ``predictions``, and they are ``predictions_constant_data``.
    :param fresh: latent sites that predictions draw from their prior given the others, such as the effects of new
        groups; they are in ``predictions`` too.
    :param coords: labels along a dimension, such as ``{"school": ["A", "B"]}``; those of predictions have them where
        there are as many.
    :param dims: names of the dimensions of a site or argument, where plates do not name them.
    :param attrs: facts about the draws, words or numbers, for the attributes of ``posterior``, ``sample_stats`` and
        the whole.
    :param seed: makes the result reproducible and leaves torch's random state alone.
    :return: ``InferenceData`` or ``DataTree``.
    :raises ValueError: if a latent site is missing from ``samples``, the numbers of draws differ, a name in
        ``coords``, ``dims``, ``fresh`` or ``log_likelihood`` is none of the model's, or a plate has no rows or a random
        part of them at the arguments of ``predictions``.

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
    check_seed("to_arviz", seed)
    check_mapping("to_arviz", coords=coords, dims=dims, sample_stats=sample_stats)
    check_flags("to_arviz", log_prior=log_prior, posterior_predictive=posterior_predictive, unconstrained=unconstrained)
    check_fresh(fresh, predictions)
    run = Run(model, args, kwargs or {})
    shape, draws = _flatten("samples", samples, group_by_chain)
    num_prior = min(shape[0] * shape[1], 1000) if num_prior is None else num_prior
    with isolated(seed):
        sites = run.sites({name: values[0] for name, values in draws.items()})
        check_likelihood(log_likelihood, sites)
        answers, notes = _ask(run, draws, log_likelihood, log_prior, posterior_predictive)
        answers |= each_draw(run.unconstrained, draws, WHO) if unconstrained else {}
        if sample_stats:
            stats = _flatten("sample_stats", sample_stats, group_by_chain, shape)[1]
            answers |= {("sample_stats", name): values for name, values in stats.items()}
        prior, no_prior = _had(lambda: each_draw(run.prior, {"": torch.arange(num_prior)}, WHO), "prior", num_prior > 0)
        label = Labels(sites, dims or {})
        groups = label.drawn(answers, shape) | label.drawn(prior, (1, num_prior))
        constant, no_constant = label.constant(run)
        groups |= {"observed_data": label.observed(), "constant_data": constant}
        elsewhere = {} if predictions is None else predicted(model, predictions, fresh, draws, shape, dims or {})
    check_dims(dims or {}, groups, label)
    names = names_of(groups | elsewhere, plates := label.plates())
    labels = check_coords(coords or {}, names.renamed(groups), plates, names)
    notes = no_prior + notes + no_constant + _left_out(sites, answers, log_likelihood)
    if log_likelihood is True:
        notes += factor_notes(sites)
    notes += names.notes()
    facts = {**(attrs or {}), **({"notes": "; ".join(notes)} if notes else {})}
    return contained(names.renamed(groups | elsewhere), labels, facts)


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


def _ask(
    run: Run, draws: Draw, log_likelihood: bool | Sequence[str], log_prior: bool, posterior_predictive: bool
) -> tuple[Answers, list[str]]:
    answers = {("posterior", name): values for name, values in draws.items()}
    answers |= each_draw(run.deterministic, draws, WHO)
    if log_likelihood:
        found = each_draw(run.log_likelihood, draws, WHO)
        answers |= {key: term for key, term in found.items() if _is_asked(key[1], log_likelihood)}
    if log_prior:
        answers |= each_draw(run.log_prior, draws, WHO)
    replicated, notes = _had(
        lambda: each_draw(run.posterior_predictive, draws, WHO), "posterior_predictive", posterior_predictive
    )
    return answers | replicated, notes


def _is_asked(name: str, log_likelihood: bool | Sequence[str]) -> bool:
    return log_likelihood if isinstance(log_likelihood, bool) else name in log_likelihood


def _had(ask: Callable[[], Answers], group: str, wanted: bool) -> tuple[Answers, list[str]]:
    """The answers, or why there are none: a distribution may have a density and no sampler."""
    try:
        return ask() if wanted else {}, []
    except (NotImplementedError, RuntimeError, ValueError) as error:
        message = (str(error) or "a distribution has no sampler").splitlines()[0]
        return {}, [f"no {group}: {type(error).__name__}: {message}"]


def _left_out(sites: Mapping[str, Site], answers: Answers, log_likelihood: bool | Sequence[str]) -> list[str]:
    partial = [f"no data of {n}: a plate shows a random part of it" for n, s in sites.items() if is_partial(s)]
    whole = [n for n, s in sites.items() if (is_observation(s) or is_row_factor(s)) and _is_asked(n, log_likelihood)]
    coupled = [n for n in whole if ("log_likelihood", n) not in answers]
    return partial + [f"no log_likelihood of {n}: its discrete latents do not split by observation" for n in coupled]
