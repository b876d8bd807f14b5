"""Whether a model has data at the arguments that it is given, and which arguments could have brought them."""

from collections.abc import Callable, Collection
from typing import Any

from pyro.poutine.util import site_is_factor, site_is_subsample

from .constants import signature_of
from .data_checks import is_deterministic


class NothingObservedWarning(UserWarning):
    """Nothing is observed where an argument of the model is ``None``, so that the posterior is the prior."""


def has_data(trace: Any, latent_names: Collection[str]) -> bool:
    """Whether anything is observed in a run of a model: a site with a value, or a ``pyro.factor``.

    :param trace: of the run.
    :param latent_names: sites whose values were put there.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        ...
        >>> [has_data(pyro.poutine.trace(model).get_trace(y), ["z"]) for y in (None, torch.tensor(0.5))]
        [False, True]
    """
    sites = [s for n, s in trace.nodes.items() if s["type"] == "sample" and n not in latent_names]
    return any(site["is_observed"] and not site_is_subsample(site) and _counts(site) for site in sites)


def _counts(site: Any) -> bool:
    """Whether an observed site says anything: a computed value does not, nor do no rows at all."""
    return site_is_factor(site) or (site["value"].numel() > 0 and not is_deterministic(site))


def left_out(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The names of a model's arguments that are ``None``, whether they were given so or left out.

    Example::

        >>> left_out(lambda x, y=None: None, (1.0,), {})
        ['y']
    """
    try:
        bound = signature_of(model).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return []
    bound.apply_defaults()
    return [name for name, value in bound.arguments.items() if value is None]
