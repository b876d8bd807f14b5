"""What a site of a run of the model is: latent, data, or a term of the density that is neither."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.util import site_is_factor

from .data_checks import is_deterministic

Site = Mapping[str, Any]


def is_marked(site: Any) -> bool:
    """Whether the site is a discrete latent marked for enumeration, in parallel or one value after the other."""
    return site["infer"].get("enumerate") is not None and is_latent(site)


def is_latent(site: Any) -> bool:
    """Whether the site is neither observed nor was so before it was drawn anew."""
    return not (site["is_observed"] or site["infer"].get("was_observed"))


def is_observation(site: Any) -> bool:
    """Whether the site is data, and all of it."""
    return is_data(site) and _is_whole(site)


def is_factor(site: Any) -> bool:
    """Whether the site is a ``pyro.factor``."""
    return bool(site_is_factor(site))


def is_row_factor(site: Any) -> bool:
    """Whether the site is a ``pyro.factor`` in a plate, all of whose rows are there: one term a row.

    Example::

        >>> import pyro, torch
        >>> with pyro.poutine.trace() as capture:
        ...     pyro.factor("one", torch.tensor(-1.0))
        ...     with pyro.plate("rows", 3):
        ...         pyro.factor("each", -torch.ones(3))
        ...
        >>> [name for name, site in capture.trace.nodes.items() if site["type"] == "sample" and is_row_factor(site)]
        ['each']
    """
    return is_factor(site) and bool(site["cond_indep_stack"]) and _is_whole(site)


def is_partial(site: Any) -> bool:
    """Whether the site is data in a plate that shows a part of it, another one in each run."""
    return is_data(site) and not _is_whole(site)


def is_data(site: Any) -> bool:
    """Whether the site is data, or a part of it."""
    return not (is_latent(site) or is_deterministic(site) or is_factor(site))


def _is_whole(site: Any) -> bool:
    return all(frame.full_size in (None, frame.size) for frame in site["cond_indep_stack"])
