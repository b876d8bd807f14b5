"""What becomes of the ``pyro.factor`` statements of a model: rows of the log-likelihood, or a warning."""

import math
import warnings
from collections.abc import Mapping

from ..model.site_kinds import Site, is_factor, is_row_factor
from ..system.frames import user_level


class FactorWarning(UserWarning):
    """A ``pyro.factor`` of the model is in no row of the log-likelihood, so LOO and its like do not see it."""


def factor_notes(sites: Mapping[str, Site]) -> list[str]:
    """Which factors are in the log-likelihood, and which are not; of these a warning tells.

    :param sites: of the model.
    """
    factors = {name: site for name, site in sites.items() if is_factor(site)}
    apart = [name for name, site in factors.items() if not is_row_factor(site)]
    if apart:
        warnings.warn(
            f"to_arviz: {_listed(apart)} outside of all plates, or in a plate that shows a random part of its rows, so "
            "log_likelihood has no rows of it, and LOO does not see it. If it is a part of the likelihood, put it into "
            "a pyro.plate, one term a row; if not, name what is: log_likelihood=[...].",
            FactorWarning,
            stacklevel=user_level(),
        )
    counted = [f"log_likelihood has {_rows(name, site)}" for name, site in factors.items() if is_row_factor(site)]
    return counted + [f"no log_likelihood of the factor {name}: it has no rows" for name in apart]


def _rows(name: str, site: Site) -> str:
    frames = site["cond_indep_stack"]
    num = math.prod(frame.size for frame in frames if frame.vectorized)
    plates = " and ".join(sorted({frame.name for frame in frames}))
    return f"the factor {name}, {num} row{'s' * (num != 1)} of {plates}"


def _listed(names: list[str]) -> str:
    quoted = " and ".join(repr(name) for name in names)
    return f"the factor{'s' * (len(names) > 1)} {quoted} {'are' if len(names) > 1 else 'is'}"
