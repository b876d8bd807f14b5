"""Leave-one-out cross-validation and the data of an export, on either ArviZ line."""

import math
from typing import Any, NamedTuple

import numpy as np

from .containers import contained
from .labels import Variable


class Elpd(NamedTuple):
    """The expected log predictive density of LOO, with its standard error."""

    value: float
    se: float


def elpd_of(export: Any) -> Elpd:
    """LOO over all rows of all observed sites, by ``az.loo``, which takes one site; NaN where there are no rows.

    :param export: as ``to_arviz`` gives it, of independent draws.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_nflows.arviz import to_arviz
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     for i, value in enumerate(y):
        ...         pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=value)
        ...
        >>> _ = torch.manual_seed(0)
        >>> y = torch.tensor([0.1, -0.2, 0.3])
        >>> export = to_arviz(model, {"mu": y.sum() / 4 + torch.randn(4000) / 2}, (y,), seed=0)
        >>> print(f"{elpd_of(export).value:.1f}")
        -3.3
    """
    import arviz

    terms = [values.reshape(*values.shape[:2], -1) for values in _arrays(export, "log_likelihood")]
    if not terms:
        return Elpd(math.nan, math.nan)
    rows = np.concatenate(terms, -1)
    rows = rows[..., ~np.isnan(rows).any((0, 1))]
    names = ["chain", "draw", "row"]
    groups = {
        "posterior": {"row_density": Variable(rows[..., 0], names[:2])},
        "log_likelihood": {"rows": Variable(rows, names)},
    }
    found = arviz.loo(contained(groups, {}, {}), reff=1.0)
    value = found.elpd if hasattr(found, "elpd") else found["elpd_loo"]  # ArviZ 1.x, 0.x
    return Elpd(float(value), float(found.se if hasattr(found, "se") else found["se"]))


def observed(export: Any) -> np.ndarray:
    """All observed values, in ascending order: the names and the order of sites may differ between models."""
    values = [array.astype(float).ravel() for array in _arrays(export, "observed_data")]
    return np.sort(np.concatenate(values)) if values else np.zeros(0)


def _arrays(export: Any, group: str) -> list[np.ndarray]:
    if group not in (export.children if hasattr(export, "children") else export.groups()):
        return []
    variables = export[group].data_vars
    return [np.asarray(variables[name].values) for name in variables]
