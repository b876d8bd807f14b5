"""The table that ``summary`` prints, like Pyro's ``MCMC.summary``."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


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


def _scalars(samples: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, values in samples.items():
        columns = values.double().flatten(1) if values.dim() > 1 else values.double()[:, None]
        for i, index in enumerate(itertools.product(*(range(n) for n in values.shape[1:]))):
            yield f"{name}[{','.join(map(str, index))}]" if index else name, columns[:, i]


def _number(x: float) -> str:
    """Two decimals where that says something, else three significant digits."""
    return f"{x:10.2f}" if 0.1 <= abs(x) < 1e6 or x == 0 else f"{x:10.3g}"
