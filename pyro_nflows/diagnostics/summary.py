"""Moments and intervals of every scalar of draws, with what they are worth: printed short, whole as a data frame."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import check_share, names_in
from .table import html_table, number, scalar_names

if TYPE_CHECKING:
    from pandas import DataFrame, Series  # type: ignore[import-untyped]

#: Scalars of a site that are printed where it was not asked for by name, and of those the last ones.
MOST, LAST = 12, 2
KINDS = ("all", "stats", "diagnostics")
#: Draws of a scalar, ``(num_samples,)``, to numbers by the names of their columns.
Worth = Callable[[str, Tensor], dict[str, float]]


class Summary:
    """Mean, standard deviation, median and central interval of every scalar, and what the draws are worth.

    Printed, sites of many scalars are shortened, unless they were asked for by name. ``summary.frame`` has all of them,
    as a ``pandas.DataFrame``; ``summary["mean"]`` and ``summary.loc["mu", "mean"]`` look into that.

    :param samples: site to ``(num_samples, ...)``.
    :param worth: further columns of a scalar, by its site and its draws.
    :param var_names: the sites, by default all.
    :param kind: ``"stats"``, ``"diagnostics"`` (the columns of ``worth``) or ``"all"``.
    :param prob: mass of the interval.
    :param notes: lines to print below.
    :raises ValueError: if ``prob`` is not between 0 and 1, ``kind`` is another, or a name is no site's.

    Example::

        >>> summary = Summary({"z": torch.linspace(0, 1, 101, dtype=torch.float64)})
        >>> print(summary)
                mean       std    median      5.0%     95.0%
        z       0.50      0.29      0.50      0.05      0.95
        >>> float(summary.loc["z", "mean"])
        0.5
    """

    def __init__(
        self,
        samples: Mapping[str, Tensor],
        worth: Worth = lambda name, values: {},
        *,
        var_names: Sequence[str] | str | None = None,
        kind: str = "all",
        prob: float = 0.9,
        notes: Sequence[str] = (),
    ):
        check_share("summary", prob=prob)
        if kind not in KINDS:
            raise ValueError(f"summary: kind must be one of {list(KINDS)}, got {kind!r}")
        self.notes, self._kind, self._prob, self._worth = list(notes), kind, prob, worth
        self._samples, self._is_short = chosen_sites("summary", samples, var_names), var_names is None

    @property
    def samples(self) -> dict[str, Tensor]:
        """The draws of the sites that were asked for."""
        return dict(self._samples)

    @functools.cached_property
    def frame(self) -> "DataFrame":
        """A row for each scalar."""
        from pandas import DataFrame

        rows = {scalar: self._row(name, index) for name in self._samples for scalar, index in self._scalars(name)}
        return DataFrame.from_dict(rows, orient="index", columns=self.columns)

    @property
    def columns(self) -> list[str]:
        """Their names."""
        name = next((name for name, values in self._samples.items() if values[0].numel()), None)
        return [] if name is None else list(self._row(name, 0))

    @property
    def loc(self) -> Any:
        """``summary.loc["mu", "mean"]``, as of a data frame."""
        return self.frame.loc

    def __getitem__(self, column: str) -> "Series":
        return self.frame[column]

    def __len__(self) -> int:
        return sum(value[0].numel() for value in self._samples.values())

    def __str__(self) -> str:
        rows = self._shown()
        width = max((len(name) for name, row in rows if row is not None), default=0)
        lines = [" " * width + "".join(f"{head:>10}" for head in self.columns)]
        lines += [
            name if row is None else f"{name:<{width}}" + "".join(cell(*item) for item in row.items())
            for name, row in rows
        ]
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def __repr__(self) -> str:
        return f"<summary of {len(self)} scalars; .frame has them as a pandas.DataFrame>"

    def _ipython_display_(self) -> None:
        """Nothing: it has been printed already."""

    def to_html(self) -> str:
        """The printed rows as a table."""
        rows = [(name.strip(), [cell(*item).strip() for item in (row or {}).items()]) for name, row in self._shown()]
        return html_table(self.columns, rows)

    def _scalars(self, name: str) -> list[tuple[str, int]]:
        return [(scalar, i) for i, scalar in enumerate(scalar_names(name, self._samples[name].shape[1:]))]

    def _shown(self) -> list[tuple[str, dict[str, float] | None]]:
        """The rows to print; None for a line of words."""
        rows: list[tuple[str, dict[str, float] | None]] = []
        for name in self._samples:
            scalars = self._scalars(name)
            hidden = len(scalars) - MOST if self._is_short and len(scalars) > MOST + 1 else 0
            first = MOST - LAST if hidden else len(scalars)
            rows += [(scalar, self._row(name, index)) for scalar, index in scalars[:first]]
            if hidden:
                rows.append((f'... {hidden} more: summary(var_names=["{name}"]) prints them', None))
                rows += [(scalar, self._row(name, index)) for scalar, index in scalars[-LAST:]]
        return rows

    def _row(self, name: str, index: int) -> dict[str, float]:
        values = self._samples[name]
        values = values.reshape(len(values), -1)[:, index].double()
        found: dict[str, float] = {}
        if self._kind != "diagnostics":
            low, high = (1 - self._prob) / 2, (1 + self._prob) / 2
            middle = values.quantile(values.new_tensor([0.5, low, high])).tolist()
            found = dict(zip(("mean", "std"), (float(values.mean()), float(values.std()))))
            found |= dict(zip(("median", f"{low:.1%}", f"{high:.1%}"), middle))
        return found if self._kind == "stats" else found | self._worth(name, values)


def cell(column: str, value: float) -> str:
    """A number as it is printed in its column.

    Example::

        >>> cell("r_hat", 1.0123).strip(), cell("ess_bulk", 812.3).strip(), cell("mean", 0.012345).strip()
        ('1.012', '812', '0.0123')
    """
    digits = {"r_hat": 3, "ess_bulk": 0, "ess_tail": 0}.get(column)
    return number(value) if digits is None else f"{value:10.{digits}f}"


def by_weights(num_effective: float) -> Worth:
    """The Monte-Carlo standard error of each mean, where draws are worth so many independent ones.

    Example::

        >>> round(by_weights(100.0)("z", torch.linspace(0, 1, 101))["mcse"], 4)
        0.0293
    """
    return lambda _, values: {"mcse": float(values.std()) / max(num_effective, 1e-300) ** 0.5}


def chosen_sites(who: str, samples: Mapping[str, Tensor], var_names: Sequence[str] | str | None) -> dict[str, Tensor]:
    """The draws of the sites that are asked for.

    :param who: is asked; the message begins with it.
    :param samples: site to ``(num_samples, ...)``.
    :param var_names: the sites, by default all.
    :raises ValueError: if a name is no site's.

    Example::

        >>> list(chosen_sites("plot", {"a": torch.zeros(3), "b": torch.ones(3)}, "b"))
        ['b']
    """
    asked = list(samples) if var_names is None else names_in(who, "var_names", var_names)
    unknown = [name for name in asked if name not in samples]
    if unknown:
        raise ValueError(f"{who}: var_names has {unknown}, but the sites are {list(samples)}")
    return {name: samples[name] for name in asked}
