"""What a model draws at other arguments than those that its latent sites were drawn at."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..checks import names_in
from .arguments import ready
from .batches import OfAllRows
from .call_checks import told
from .predictive import Answers, Run, each_draw
from .random_rows import RandomRows
from .site_kinds import Site


class Predicted(NamedTuple):
    """A model at other arguments, its sites there in one run, and what it draws at each of the draws."""

    run: Run
    sites: dict[str, Site]
    answers: Answers


def predicted(
    who: str,
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    fresh: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    numbered: Collection[str] = (),
) -> Predicted:
    """Data and deterministic sites drawn at other arguments of a model, and the sites in ``fresh``.

    A model of minibatches is run on the rows that it is given.

    :param who: is asked; messages begin with it.
    :param model: a Pyro model.
    :param samples: draws of its latent sites, ``(num_samples, ...)``.
    :param fresh: those that are drawn from their prior given the others.
    :param args: the model's arguments, with ``kwargs``.
    :param numbered: plates of which ``samples`` have all rows, told apart by their numbers.
    :raises ValueError: if a latent site has another shape at these arguments, a name in ``fresh`` is none of them, a
        plate has no rows, or it shows a random part of them.
    :raises TypeError: if these are not the arguments that the model takes.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(x)):
        ...         pyro.deterministic("mean", slope * x)
        ...
        >>> predicted("predict", model, {"slope": torch.tensor([1.0, 2.0])}, (), (torch.ones(3),), {}).answers
        {('predictions', 'mean'): tensor([[1., 1., 1.],
                [2., 2., 2.]])}
    """
    kept = _kept(who, samples, names_in(who, "fresh", fresh))
    model = model.model if isinstance(model, OfAllRows) else model
    run = Run(model, *ready(who, model, tuple(args), dict(kwargs)))
    with told(who, model, run.args, run.kwargs):
        rows = RandomRows(who, kept, run.tensors)
        sites = run.predicted_sites({name: values[0] for name, values in kept.items()}, numbered, rows)
        rows.check(sites)
        return Predicted(run, sites, each_draw(functools.partial(run.prediction, numbered=numbered), kept, who))


def _kept(who: str, samples: Mapping[str, Tensor], fresh: Sequence[str]) -> dict[str, Tensor]:
    """The draws of the sites that are not drawn anew."""
    unknown = [name for name in fresh if name not in samples]
    if unknown:
        raise ValueError(f"{who}: fresh has {unknown}, but the latent sites are {list(samples)}")
    kept = {name: values for name, values in samples.items() if name not in fresh}
    if not kept:
        raise ValueError(f"{who}: fresh has all latent sites, so that nothing of the posterior is left")
    return kept
