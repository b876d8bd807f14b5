"""The table that ``summary`` prints, like Pyro's ``MCMC.summary``."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .calibration import PValues


def summary_table(samples: dict[str, Tensor], prob: float = 0.9) -> str:
    """Mean, sd, median and central interval of every scalar.

    :param samples: site to ``(num_samples, ...)``.
    :param prob: mass of the interval.

    Example::

        >>> print(summary_table({"z": torch.linspace(0, 1, 101)}))
                mean       std    median      5.0%     95.0%
        z       0.50      0.29      0.50      0.05      0.95
    """
    low, high = (1 - prob) / 2, (1 + prob) / 2
    rows = list(_scalars(samples))
    width = max(len(name) for name, _ in rows)
    heads = ("mean", "std", "median", f"{low:.1%}", f"{high:.1%}")
    lines = [" " * width + "".join(f"{head:>10}" for head in heads)]
    for name, values in rows:
        quantiles = [torch.quantile(values, q) for q in (0.5, low, high)]
        numbers = (values.mean(), values.std(), *quantiles)
        lines.append(f"{name:<{width}}" + "".join(_number(float(x)) for x in numbers))
    return "\n".join(lines)


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


def print_summary(samples: dict[str, Tensor], found: dict[str, Any], sentence: str, prob: float) -> None:
    """Print the table, the evidence and the verdict.

    :param samples: site to ``(num_samples, ...)``.
    :param found: as ``VI.diagnostics`` gives it.
    :param sentence: the verdict.
    :param prob: mass of the interval.
    :raises ValueError: if it is not between 0 and 1.
    """
    if not 0 < prob < 1:
        raise ValueError(f"VI.summary: prob must be between 0 and 1, got {prob}")
    print(summary_table(samples, prob))
    print(
        f"\nELBO {found['elbo']:.3f} ± {found['elbo_se']:.3f}   "
        f"log evidence {found['iwae']:.3f} ± {found['iwae_se']:.3f}   ESS {found['ess']:.1%}   "
        f"k-hat {found['pareto_k']:.2f}   {found['num_steps']} steps in {found['seconds']:.1f} s"
    )
    if found["interrupted"]:
        print("Training was interrupted; the draws are those of the state reached.")
    print(sentence)


def scalar_names(name: str, shape: Sequence[int]) -> list[str]:
    """Names of a site's scalars, in the order in which ``flatten`` puts them.

    Example::

        >>> scalar_names("mu", ()), scalar_names("x", (1, 2))
        (['mu'], ['x[0,0]', 'x[0,1]'])
    """
    indices = itertools.product(*(range(n) for n in shape))
    return [f"{name}[{','.join(map(str, index))}]" if index else name for index in indices]


def _scalars(samples: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, values in samples.items():
        columns = values.double().flatten(1) if values.dim() > 1 else values.double()[:, None]
        yield from zip(scalar_names(name, values.shape[1:]), columns.T)


def _number(x: float) -> str:
    """Two decimals where that says something, else three significant digits."""
    return f"{x:10.2f}" if 0.1 <= abs(x) < 1e6 or x == 0 else f"{x:10.3g}"
