"""Data that a posterior expects, at other arguments of the model than those of the fit."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checks import check_seed
from ..model.predicted import predicted as model_predicted
from ..model.predictive import isolated


def predicted(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    fresh: Sequence[str],
    seed: int | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    numbered: Collection[str] = (),
) -> dict[str, Tensor]:
    """What the model draws at each of the draws, by the names of its sites.

    :param model: a Pyro model.
    :param samples: draws of its latent sites, ``(num_samples, ...)``.
    :param fresh: those that are drawn from their prior given the others.
    :param seed: makes the result reproducible.
    :param args: the model's arguments, with ``kwargs``.
    :param numbered: plates of which ``samples`` have all rows, told apart by their numbers.
    :raises ValueError: if a latent site has another shape at these arguments, a name in ``fresh`` is none of them, a
        plate has no rows, or it shows a random part of them.
    :raises TypeError: if these are not the arguments that the model takes.
    """
    check_seed("predict", seed)
    with isolated(seed):
        answers = model_predicted("predict", model, samples, fresh, args, kwargs, numbered).answers
    return {name: values for (_, name), values in answers.items()}
