"""One bar for a run in a terminal or a notebook; in a pipe a line a phase."""

import io
import sys
import types
from typing import Any

import pytest

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.engine import Progress
from pyro_nflows.engine.progress import MOST_LINES
from tests.models import PAIRS, pairs
from tests.streams import Terminal


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every bar that is made."""
    import tqdm.auto

    made: list[Any] = []

    class Counted(tqdm.auto.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Counted)
    return made


def fit(**options: Any) -> VI:
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, **{"seed": 0, "engine": "eager", "num_steps": 40, **options})


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, run: Any) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        run()
    return stream.getvalue()


def phases(text: str) -> list[str]:
    return [line.split(":")[0] for line in text.splitlines()]


def test_a_terminal_has_one_bar_with_all_phases(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    text = shown(monkeypatch, Terminal(), lambda: fit().run(PAIRS))
    assert len(bars) == 1
    assert text.count("\n") == 1
    for said in ("start", "Gaussian", "30/30", "flow, round 2", "search for other modes", "verdict", "ELBO -6."):
        assert said in text
    assert "then 10 more steps" in text
    assert text.rstrip().rsplit("\r", 1)[-1].startswith("done [00:0")


def test_several_starts_have_one_bar(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    text = shown(monkeypatch, Terminal(), lambda: fit(num_starts=3, num_steps=4).run(PAIRS))
    assert len(bars) == 1
    assert "3 starts, flow" in text


def test_its_seconds_are_those_of_the_run(bars: list[Any]) -> None:
    with Progress(stream=Terminal()) as progress:
        with progress.phase("one", 10):
            progress.advance(10)
        progress._began -= 100
        with progress.phase("two", 10):
            assert 99 < bars[0].format_dict["elapsed"] < 130
            assert (bars[0].n, bars[0].total) == (0, 10)


def test_a_phase_within_another_gives_its_place_back(bars: list[Any]) -> None:
    with Progress(stream=Terminal()) as progress, progress.phase("outer", 10):
        progress.advance(4)
        with progress.phase("inner", 3):
            progress.advance(3)
            assert (bars[0].desc, bars[0].n) == ("inner", 3)
        assert (bars[0].desc, bars[0].n, bars[0].total) == ("outer", 4, 10)


def test_a_pipe_has_a_line_a_phase(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    text = shown(monkeypatch, io.StringIO(), lambda: fit().run(PAIRS))
    assert phases(text) == ["start", "Gaussian", "flow", "flow, round 2", "search for other modes", "verdict"]
    flow = text.splitlines()[2]
    assert flow.startswith("flow: 30 steps, ELBO -6.")
    assert flow.endswith(" s")
    assert "\r" not in text
    assert bars == []


def test_seconds_within_are_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with Progress(stream=log) as progress, progress.phase("search"):
        now[0] = 1.0
        with progress.phase("flow", 10):
            now[0] = 4.0
        now[0] = 4.5
    assert log.getvalue() == "flow: 3.0 s\nsearch: 1.5 s\n"


def test_what_follows_a_phase_comes_after_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with Progress(stream=log) as progress, progress.phase("start"):
        now[0] = 1.0
        progress.end_phase(then="weighing draws")
        progress.end_phase(then="weighing draws")
        with progress.phase("block 1", 10, measure="log density"):
            progress.advance(10, elbo=-1.5)
            now[0] = 4.0
    assert log.getvalue() == "start: 1.0 s\nblock 1: 10 steps, log density -1.500, 3.0 s\n"


def test_many_phases_have_few_lines() -> None:
    log = io.StringIO()
    with Progress(stream=log) as progress:
        for number in range(100):
            with progress.phase(f"round {number}", 50):
                progress.advance(50, elbo=-float(number))
    lines = log.getvalue().splitlines()
    assert len(lines) == MOST_LINES + 1 < 40
    assert lines[-1].startswith("76 further phases: 3,800 steps, ELBO -99.000, ")


def test_a_script_in_a_pipe_prints_less_than_forty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The table and the verdict included, with several starts."""
    fit(num_starts=2).run(PAIRS).summary()
    said = capsys.readouterr()
    assert phases(said.err)[0] == "2 starts, start"
    assert len((said.out + said.err).splitlines()) < 40


def test_nothing_is_shown_where_nothing_is_wanted(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    for stream in (Terminal(), io.StringIO()):
        assert shown(monkeypatch, stream, lambda: fit(progress_bar=False).run(PAIRS)) == ""
    assert bars == []


def test_a_notebook_has_a_bar_though_it_is_no_terminal(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))

    def run() -> None:
        with Progress() as progress, progress.phase("flow", 10):
            progress.advance(10)

    shown(monkeypatch, io.StringIO(), run)
    assert len(bars) == 1


def test_a_stream_that_nobody_reads_loses_no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    for stream in (Broken(), closed, None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with Progress() as progress:
                for _ in range(2):
                    with progress.phase("flow", 10):
                        progress.advance(10)


def test_an_error_in_a_phase_closes_the_bar(bars: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(stream=Terminal()) as progress, progress.phase("flow", 10):
        raise KeyboardInterrupt
    assert bars[0].disable  # what tqdm sets where a bar is closed
