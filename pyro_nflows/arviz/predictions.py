"""What a model draws at other arguments than those of the fit, as groups of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..model.predicted import predicted as model_predicted
from ..model.predictive import Draw
from .labels import Groups, Labels


def predicted(
    model: Callable[..., Any],
    arguments: Sequence[Any] | Mapping[str, Any],
    fresh: Sequence[str],
    draws: Draw,
    shape: tuple[int, ...],
    dims: Mapping[str, Sequence[str]],
) -> Groups:
    """The groups ``predictions`` and ``predictions_constant_data``.

    :param model: a Pyro model.
    :param arguments: of the model, a sequence by position or a mapping by name.
    :param fresh: latent sites that are drawn from their prior given the others.
    :param draws: of its latent sites.
    :param shape: ``(num_chains, num_samples)`` of these.
    :param dims: names of dimensions, where plates do not name them.
    :raises TypeError: if the arguments are not in a sequence or a mapping, or not those that the model takes.
    :raises ValueError: if a latent site has another shape at these arguments, a name in ``fresh`` is none of them, a
        plate has no rows, or it shows a random part of them.
    """
    if not isinstance(arguments, Mapping | list | tuple):
        raise TypeError(
            f"to_arviz: got predictions of type {type(arguments).__name__}, expected the model's other arguments: a "
            "tuple by position, predictions=(x,), or a dict by name"
        )
    given: tuple[Any, Any] = ((), arguments) if isinstance(arguments, Mapping) else (arguments, {})
    run, sites, answers = model_predicted("to_arviz(predictions=)", model, draws, fresh, *given)
    label = Labels(sites, dims)
    return {**label.drawn(answers, shape), "predictions_constant_data": label.constant(run)[0]}
