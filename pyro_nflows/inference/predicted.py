"""Data that a posterior expects, at other arguments of the model than those of the fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..model.arguments import ready
from ..model.call_checks import told
from ..model.predictive import Run, each_draw, isolated


def predicted(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    fresh: Sequence[str],
    seed: int | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Tensor]:
    """What the model draws at each of the draws, by the names of its sites.

    :param model: a Pyro model.
    :param samples: draws of its latent sites, ``(num_samples, ...)``.
    :param fresh: those that are drawn from their prior given the others.
    :param seed: makes the result reproducible.
    :param args: the model's arguments, with ``kwargs``.
    :raises ValueError: if a latent site has another shape at these arguments, or a name in ``fresh`` is none of them.
    :raises TypeError: if these are not the arguments that the model takes.
    """
    unknown = [name for name in fresh if name not in samples]
    if unknown:
        raise ValueError(f"predict: fresh has {unknown}, but the latent sites are {list(samples)}")
    kept = {name: values for name, values in samples.items() if name not in fresh}
    size = next(iter(samples.values()))
    if not kept:
        raise ValueError("predict: fresh has all latent sites, so that nothing of the posterior is left")
    args, kwargs = ready("predict", model, args, dict(kwargs))
    with isolated(seed, size.device), told("predict", model, args, kwargs):
        answers = each_draw(Run(model, args, kwargs).prediction, kept)
    return {name: values for (_, name), values in answers.items()}
