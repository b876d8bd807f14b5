"""Numbers as lines of text: the evidence of a fit, and the table of a calibration."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .calibration import PValues


def calibration_table(ranks: Mapping[str, Tensor], p_values: Mapping[str, PValues], num_samples: int) -> str:
    """Where the truth lies among draws, 0 below all and 1 above, and the p-values of each parameter.

    Under calibration the mean is 0.5 and the standard deviation 0.29.

    :param ranks: by parameter, each ``(num_simulations,)``.
    :param p_values: by parameter.
    :param num_samples: among how many draws.
    """
    width = max(map(len, ranks))
    lines = [" " * width + "".join(f"{head:>11}" for head in ("mean rank", "std", "SBC p", "VSBC p"))]
    for name, values in ranks.items():
        place = (values.double() + 0.5) / (num_samples + 1)
        parts = f"{float(place.mean()):11.2f}{float(place.std()):11.2f}"
        lines.append(f"{name:<{width}}{parts}" + "".join(f"{p:11.2g}" for p in p_values[name]))
    return "\n".join(lines)


def evidence_lines(found: Mapping[str, Any]) -> list[str]:
    """The evidence in a line, and a second one where training was interrupted.

    :param found: as ``VI.diagnostics`` gives it.
    """
    line = (
        f"ELBO {found['elbo']:.3f} ± {found['elbo_se']:.3f}   "
        f"log evidence {found['iwae']:.3f} ± {found['iwae_se']:.3f}   ESS {found['ess']:.1%}   "
        f"k-hat {found['pareto_k']:.2f}   {found['num_steps']} steps in {found['seconds']:.1f} s"
    )
    interrupted = "Training was interrupted; the draws are those of the state reached."
    return [line, interrupted] if found["interrupted"] else [line]


def scalar_names(name: str, shape: Sequence[int]) -> list[str]:
    """Names of a site's scalars, in the order in which ``flatten`` puts them.

    Example::

        >>> scalar_names("mu", ()), scalar_names("x", (1, 2))
        (['mu'], ['x[0,0]', 'x[0,1]'])
    """
    indices = itertools.product(*(range(n) for n in shape))
    return [f"{name}[{','.join(map(str, index))}]" if index else name for index in indices]


def number(x: float) -> str:
    """Two decimals where that says something, else three significant digits.

    Example::

        >>> number(3.14159).strip(), number(0.00123).strip()
        ('3.14', '0.00123')
    """
    return f"{x:10.2f}" if 0.1 <= abs(x) < 1e6 or x == 0 else f"{x:10.3g}"
