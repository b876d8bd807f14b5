"""Numbers as they are shown: the evidence of a fit in lines of text, rows as a table of HTML, names of scalars."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any


def evidence_lines(found: Mapping[str, Any]) -> list[str]:
    """The evidence in a line, and a second one where training was interrupted.

    :param found: as ``VI.diagnostics`` gives it.
    """
    line = (
        f"ELBO {elbo_in_words(found)}   "
        f"log evidence {found['iwae']:.3f} ± {found['iwae_se']:.3f}   ESS {found['ess']:.1%}   "
        f"k-hat {found['pareto_k']:.2f}   {found['num_steps']} steps in {found['seconds']:.1f} s"
    )
    interrupted = "Training was interrupted; the draws are those of the state reached."
    return [line, interrupted] if found["interrupted"] else [line]


def elbo_in_words(found: Mapping[str, Any]) -> str:
    """The ELBO with its standard error; where a few outliers make it what it is, the trimmed one, and that it is.

    :param found: as ``VI.diagnostics`` gives it.

    Example::

        >>> elbo_in_words({"elbo": -31.3174, "elbo_se": 0.0041, "num_outliers": 0})
        '-31.317 ± 0.004'
        >>> found = {"elbo": -4.8e13, "elbo_se": 4.8e13, "elbo_trimmed": -31.3174, "elbo_trimmed_se": 0.0041}
        >>> elbo_in_words({**found, "num_outliers": 1})
        '-31.317 ± 0.004 (without 1 draw far out; with it -4.8e+13)'
        >>> elbo_in_words({**found, "elbo": -math.inf, "num_outliers": 300})
        '-31.317 ± 0.004 (without 300 draws of zero density; with them -inf)'
    """
    num = found["num_outliers"]
    if not num:
        return f"{found['elbo']:.3f} ± {found['elbo_se']:.3f}"
    which, those = ("draw", "it") if num == 1 else ("draws", "them")
    trimmed = f"{found['elbo_trimmed']:.3f} ± {found['elbo_trimmed_se']:.3f}"
    where = "far out" if math.isfinite(found["elbo"]) else "of zero density"
    return f"{trimmed} (without {num:,} {which} {where}; with {those} {found['elbo']:.3g})"


def html_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows of a name and cells as a table whose numbers are flush right, wherever it is shown.

    :param heads: of the columns.
    :param rows: one without cells is a line of words.

    Example::

        >>> html_table(["mean"], [("mu", ["4.4"])]).count("<tr>")
        2
    """
    cell, left = (
        'style="text-align: right; padding: 0.1em 0.6em"',
        'style="text-align: left; padding: 0.1em 0.6em 0.1em 0"',
    )
    lines = ["<th></th>" + "".join(f"<th {cell}>{html.escape(head)}</th>" for head in heads)]
    for name, cells in rows:
        span = "" if cells else f' colspan="{1 + len(heads)}"'
        numbers = "".join(f"<td {cell}>{html.escape(text)}</td>" for text in cells)
        lines.append(f"<th {left}{span}>{html.escape(name)}</th>{numbers}")
    head, *body = (f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"


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
