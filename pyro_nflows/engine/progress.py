r"""What a run shows while it goes on: one bar in a terminal or a notebook, and a line a phase anywhere else.

A run is a sequence of phases: the start, rounds of training, the search for other modes, the verdict. In a terminal or
a notebook there is one ``tqdm`` bar for all of them, with the phase's title, the seconds since the run began, and what
may still follow. Into a pipe or a file (a log, a job of CI) a line is written as each phase ends, with its steps, the
bound and its seconds; after :data:`MOST_LINES` of them there is one more for all the rest.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

#: Lines of a run that goes to a file, but for the last.
MOST_LINES = 24
#: What the bar shows while steps are taken, and while something without steps is done.
STEPS = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
NO_STEPS = "{desc} [{elapsed}{postfix}]"
#: What is counted.
UNIT = "step"
#: What steps raise.
MEASURE = "ELBO"


@dataclass
class Phase:
    """One phase of a run: how many steps there are, how many are done, and the bound that they have reached.

    :param title: such as ``"flow, round 2"``.
    :param num_steps: None for a phase without steps.
    :param follows: what may come after it, in words.
    :param unit: what is counted.
    :param measure: what the number is that steps have reached.
    """

    title: str
    num_steps: int | None = None
    follows: str = ""
    unit: str = UNIT
    measure: str = MEASURE
    done: int = 0
    elbo: float | None = None
    began: float = field(default_factory=lambda: time.perf_counter())
    #: Seconds of phases within it.
    inside: float = 0.0
    #: Whether its line is written, because what follows within it is no part of it.
    is_over: bool = False

    def line(self) -> str:
        """The phase in a line.

        Example::

            >>> Phase("flow", 600, done=600, elbo=-31.3172, inside=-2.5).line()
            'flow: 600 steps, ELBO -31.317, 2.5 s'
        """
        said = [f"{self.done:,} {self.unit}{'s' * (self.done != 1)}"] if self.done else []
        said += [self.reached] if self.elbo is not None else []
        return f"{self.title}: {', '.join([*said, f'{self.seconds:.1f} s'])}"

    @property
    def reached(self) -> str:
        """The bound, with its name; empty where there is none."""
        return "" if self.elbo is None else f"{self.measure} {self.elbo:.3f}"

    @property
    def seconds(self) -> float:
        """Since it began, but for phases within it."""
        return time.perf_counter() - self.began - self.inside


class Progress:
    """Shows the phases of one run; a context, at whose end nothing more is shown.

    :param shown: whether to show anything.
    :param stream: where; by default what ``sys.stderr`` is when the run begins.

    Example::

        >>> import io
        >>> log = io.StringIO()
        >>> with Progress(stream=log) as progress:
        ...     with progress.phase("flow", 100) as phase:
        ...         progress.advance(100, elbo=-1.5)
        >>> log.getvalue().startswith("flow: 100 steps, ELBO -1.500, ")
        True
    """

    def __init__(self, shown: bool = True, stream: TextIO | None = None):
        self.shown, self._stream = shown, stream
        self._bar: Any = None
        self._began = time.perf_counter()
        self._phases = list[Phase]()
        self._rest: Phase | None = None
        self._num_lines = self._num_rest = 0
        self._last: Phase | None = None

    def __enter__(self) -> "Progress":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def phase(
        self,
        title: str,
        num_steps: int | None = None,
        follows: str = "",
        unit: str = UNIT,
        measure: str = MEASURE,
    ) -> Iterator[Phase]:
        """A phase, which is shown until the block ends; one within another takes its place meanwhile.

        :param title: of the phase.
        :param num_steps: None for a phase without steps.
        :param follows: what may come after it, in words.
        :param unit: what is counted.
        :param measure: what the number is that steps reach.
        """
        phase = Phase(title, num_steps, follows, unit, measure)
        self._phases.append(phase)
        self._show(phase)
        try:
            yield phase
        finally:
            self._phases.pop()
            if not phase.is_over:
                self._write(phase)
            if self._phases:
                outer = self._phases[-1]
                outer.inside += time.perf_counter() - phase.began
                self._show(outer)

    def advance(self, num: int, elbo: float | None = None) -> None:
        """So many steps more of the phase under way are done.

        :param elbo: the bound that they have reached, where it is known.
        """
        if not self._phases:
            return
        phase = self._phases[-1]
        phase.done += num
        phase.elbo = phase.elbo if elbo is None else elbo
        if self._bar is not None:
            if elbo is not None:
                self._bar.set_postfix_str(_postfix(phase), refresh=False)
            self._bar.update(num)

    def end_phase(self, then: str) -> None:
        """Write the line of the phase under way, though it goes on: phases within it come after that line.

        :param then: what the bar says between these.
        """
        if self._phases and not self._phases[-1].is_over:
            phase = self._phases[-1]
            self._write(phase)
            phase.is_over, phase.title = True, then

    def say(self, text: str) -> None:
        """Show on the bar what is done now, such as ``"flow, compiling"``; a log has no line for it."""
        if self._bar is not None and self._bar.desc != text:
            self._bar.set_description_str(text)

    def close(self) -> None:
        """Leave one line of what has been done; what comes after is a run of its own."""
        if self._rest is not None:
            self._rest.title = f"{self._num_rest} further phases"
            self._print(self._rest.line())
            self._rest = None
        if self._bar is not None:
            last, bar = self._last, self._bar
            bar.bar_format = NO_STEPS
            bar.set_description_str("done", refresh=False)
            bar.set_postfix_str("" if last is None else last.reached, refresh=False)
            self._count(1, 1)
            bar.close()
            self._bar = None
        self._last, self._num_lines, self._num_rest = None, 0, 0

    def _show(self, phase: Phase) -> None:
        """The bar, made when the first phase begins, at the phase."""
        if not self.shown or not _has_bar(self._out):
            return
        if self._bar is None:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(total=phase.num_steps or 1, desc=phase.title, dynamic_ncols=True, file=self._stream)
        bar = self._bar
        bar.unit, bar.bar_format = phase.unit, NO_STEPS if phase.num_steps is None else STEPS
        bar.set_description_str(phase.title, refresh=False)
        bar.set_postfix_str(_postfix(phase), refresh=False)
        self._count(phase.done if phase.num_steps is not None else 0, phase.num_steps or 1)

    def _count(self, done: int, total: int) -> None:
        """Have the bar count anew, and its seconds go on."""
        bar = self._bar
        bar.reset(total)
        bar.n, bar.start_t = done, float(bar.last_print_t) - (time.perf_counter() - self._began)
        bar.refresh()

    def _write(self, phase: Phase) -> None:
        if phase.elbo is not None:
            self._last = phase
        if self._bar is not None:
            self._bar.refresh()
        if not self.shown or self._bar is not None or _has_bar(self._out):
            return
        if self._num_lines < MOST_LINES:
            self._num_lines += 1
            self._print(phase.line())
            return
        rest = self._rest = self._rest or Phase("")
        self._num_rest += 1
        rest.measure = rest.measure if phase.elbo is None else phase.measure
        rest.done, rest.elbo = rest.done + phase.done, rest.elbo if phase.elbo is None else phase.elbo

    def _print(self, line: str) -> None:
        try:
            print(line, file=self._out, flush=True)
        except (OSError, ValueError):  # nobody reads any more
            self.shown = False

    @property
    def _out(self) -> TextIO | None:
        return sys.stderr if self._stream is None else self._stream


def _postfix(phase: Phase) -> str:
    """What is beside the steps: the bound, and what may follow."""
    said = [] if phase.elbo is None else [phase.reached]
    return ", ".join([*said, *([f"then {phase.follows}"] if phase.follows else [])])


def _has_bar(stream: TextIO | None) -> bool:
    """Whether a line that is written over and over looks right there."""
    if stream is None:
        return False
    try:
        return bool(stream.isatty()) or (stream is sys.stderr and _in_notebook())
    except ValueError:  # it is closed
        return False


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    found = shell.get_ipython()
    return found is not None and "IPKernelApp" in found.config
