"""Ranks and p-values of every parameter of a calibration: printed short, whole as a data frame."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .calibration import PValues
from .table import html_table, number

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

#: Rows that are printed where no parameters were asked for: beyond that, those with the least p-values.
MOST = 30
HEADS = ("mean rank", "std", "SBC p", "VSBC p")


class CalibrationSummary:
    """Where the truth lies among draws, 0 below all and 1 above, and the p-values of each parameter.

    Under calibration the mean is 0.5 and the standard deviation 0.29. Of more than thirty parameters those with the
    least p-values are printed, unless they were asked for by name. ``summary.frame`` has all of them, as a
    ``pandas.DataFrame``; ``summary["SBC p"]`` and ``summary.loc["mu", "SBC p"]`` look into that.

    :param ranks: by parameter, each ``(num_simulations,)``.
    :param p_values: by parameter.
    :param num_samples: among how many draws.
    :param var_names: sites, or scalars of them such as ``"theta[0]"``; by default all.
    :param notes: lines to print below.
    :raises ValueError: if a name is that of no parameter.

    Example::

        >>> import torch
        >>> ranks = {"mu": torch.arange(10), "theta[0]": torch.arange(10)}
        >>> p_values = dict.fromkeys(ranks, PValues(0.9, 0.8))
        >>> print(CalibrationSummary(ranks, p_values, 9, "theta"))
                   mean rank        std      SBC p     VSBC p
        theta[0]        0.50       0.30        0.9        0.8
    """

    def __init__(
        self,
        ranks: Mapping[str, Tensor],
        p_values: Mapping[str, PValues],
        num_samples: int,
        var_names: Sequence[str] | str | None = None,
        notes: Sequence[str] = (),
    ):
        asked = [var_names] if isinstance(var_names, str) else var_names
        self._ranks, self._p_values, self._num_samples = ranks, p_values, num_samples
        self._names, self._is_short, self.notes = selected(list(ranks), asked), asked is None, list(notes)

    @functools.cached_property
    def frame(self) -> "DataFrame":
        """A row for each parameter, as a ``pandas.DataFrame``."""
        from pandas import DataFrame

        rows = {name: self._row(name) for name in self._names}
        return DataFrame.from_dict(rows, orient="index", columns=list(HEADS))

    @property
    def loc(self) -> Any:
        """``summary.loc["mu", "SBC p"]``, as of a data frame."""
        return self.frame.loc

    def __getitem__(self, column: str) -> Any:
        return self.frame[column]

    def __len__(self) -> int:
        return len(self._names)

    def __str__(self) -> str:
        shown, width = self._shown(), max(map(len, self._names))
        lines = [" " * width + "".join(f"{head:>11}" for head in HEADS)]
        lines += [f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in self._cells(name)) for name in shown]
        lines += [self._hidden()] if len(shown) < len(self) else []
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def __repr__(self) -> str:
        return f"<ranks of {len(self)} parameters; .frame has them as a pandas.DataFrame>"

    def _ipython_display_(self) -> None:
        """Nothing: it has been printed already."""

    def to_html(self) -> str:
        """The printed rows as a table."""
        rows: list[tuple[str, list[str]]] = [(name, self._cells(name)) for name in self._shown()]
        return html_table(HEADS, [*rows, *([(self._hidden(), [])] if len(rows) < len(self) else [])])

    def _shown(self) -> list[str]:
        if not self._is_short or len(self) <= MOST:
            return self._names
        least = set(sorted(self._names, key=lambda name: min(self._p_values[name]))[:MOST])
        return [name for name in self._names if name in least]

    def _hidden(self) -> str:
        return f"... {len(self) - MOST} more, with larger p-values: summary().frame has them"

    def _row(self, name: str) -> tuple[float, ...]:
        place = (self._ranks[name].double() + 0.5) / (self._num_samples + 1)
        return float(place.mean()), float(place.std()), *self._p_values[name]

    def _cells(self, name: str) -> list[str]:
        mean, std, *p_values = self._row(name)
        return [number(mean).strip(), number(std).strip(), *(f"{p:.2g}" for p in p_values)]


def selected(parameters: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The parameters that are asked for by their own names or by those of their sites.

    :raises ValueError: if a name is that of none.

    Example::

        >>> selected(["mu", "theta[0]", "theta[1]"], ["theta", "mu"])
        ['theta[0]', 'theta[1]', 'mu']
    """
    if asked is None:
        return list(parameters)
    found = {name: [one for one in parameters if name in (one, one.partition("[")[0])] for name in asked}
    unknown = [name for name, ones in found.items() if not ones]
    if unknown:
        raise ValueError(f"SBC: no parameter is named {unknown[0]!r}; expected some of {list(parameters)}")
    return list(dict.fromkeys(one for ones in found.values() for one in ones))
