"""An interrupt comes out of compiled code as itself, soon, and leaves whole states behind."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import ELBO, VI, AutoFlow
from pyro_nflows.engine import Engine, History, Round, Trainer, history, trainer
from pyro_nflows.engine.course import Course, finish
from pyro_nflows.engine.ensemble import _side_by_side
from pyro_nflows.engine.given import inputs_of, schedule_of
from pyro_nflows.engine.native import Run, Scan, build, scan, turns
from pyro_nflows.engine.native.lower import Lowering
from pyro_nflows.engine.pace import Pace, unbroken
from pyro_nflows.engine.program import Program
from pyro_nflows.engine.runners import Compiled
from pyro_nflows.engine.tape import Tape
from pyro_nflows.inference.foreseen import NEEDED, SYMBOLIC
from pyro_nflows.layers import LocScale
from pyro_nflows.layers.base import Chain
from pyro_nflows.objectives.base import Gradient
from pyro_nflows.system.signals import imported

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer")


class Alarm(Exception):
    """What a handler of the user's raises."""


@contextlib.contextmanager
def raised_after(seconds, error):
    """A signal handler raises this, once, so long from now."""

    def handler(*_):
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def for_ever(action):
    while True:
        action()


def sorting(s, x):
    """Steps that leave something to torch, and more to C: most signals come while Python is not running."""
    s = (s + x).sort(-1)[0].tanh()
    for _ in range(10):
        s = s.exp().sin().lgamma().tanh()
    return s, s.sum()


@pytest.fixture(scope="module")
def sorter():
    return Scan(Tape(sorting, [torch.zeros(40, 20), torch.zeros(40, 20)]), 1)


@needs_compiler
@needs_timer
@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm])
def test_what_a_signal_handler_raises_comes_out_of_compiled_code_as_itself(sorter, error):
    run, rng = Run(sorter), random.Random(0)
    x = torch.randn(2000, 40, 20)
    few = sorter.run([x[0]], [x[:5]])
    for _ in range(30):
        with pytest.raises(error), raised_after(rng.uniform(0.001, 0.05), error):
            for_ever(lambda: run.run([x[0]], [x]))
    (state,), (sums,) = run.run([x[0]], [x[:5]])
    assert torch.equal(state, few[0][0])
    assert torch.equal(sums, few[1][0])


@needs_compiler
@needs_timer
def test_code_that_leaves_nothing_to_torch_hears_a_signal_within_a_moment():
    quick = Scan(Tape(lambda s, x: (s + x, s.sum()), [torch.zeros(100), torch.zeros(100)]), 1)
    x = torch.zeros(1, 100).expand(200_000, 100).contiguous()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), raised_after(0.05, KeyboardInterrupt):
        for_ever(lambda: quick.run([x[0]], [x]))
    assert time.perf_counter() - began < 5


@needs_compiler
def test_an_error_of_torch_is_raised_each_time_and_none_is_kept():
    inverse = Scan(Tape(lambda x: [torch.linalg.inv_ex(x, check_errors=True)[0] * 2], [torch.eye(2)]), 0)
    run = Run(inverse)
    for scale in (0.0, 2.0, 0.0, 4.0):
        if scale:
            assert torch.equal(run.run([], [scale * torch.eye(2)[None]])[1][0], 2 / scale * torch.eye(2)[None])
        else:
            with pytest.raises(RuntimeError, match="singular"):
                run.run([], [torch.zeros(1, 2, 2)])


def many_kinds(s, x):
    y = (x @ x.mT).exp() + s
    factor = torch.linalg.cholesky_ex(y @ y.mT + torch.eye(4))[0]
    z = torch.linalg.solve_triangular(factor, x, upper=False).sort(0)[0]
    return z.sum(0).mean() + s / 2, z.cumsum(0), factor


@needs_compiler
def test_where_a_step_pauses_changes_nothing(monkeypatch):
    inputs = [torch.zeros(()), torch.randn(4, 3)]
    x = torch.randn(7, 4, 3)
    found, stops = [], []
    for seconds in (1e9, 0.0):
        monkeypatch.setattr(turns, "SECONDS", seconds)
        made = Scan(Tape(many_kinds, inputs), 1)
        (state,), collected = made.run([torch.ones(())], [x])
        found.append([state, *collected])
        stops.append(made.program.source.count("case ") - 1)
    assert stops[0] == 1  # the sort
    assert stops[1] > 5
    for one, other in zip(*found):
        assert torch.equal(one, other)


def test_heavy_steps_are_divided_and_light_ones_are_not():
    heavy, light = (Tape(lambda a: [(a @ a).tanh() @ a], [torch.randn(n, n)]) for n in (1000, 10))
    assert turns.pauses(Lowering(heavy).plan.steps)
    assert not turns.pauses(Lowering(light).plan.steps)


def test_a_pace_covers_every_step_once_in_parts_of_about_a_moment():
    pace = Pace(seconds=0.02)
    parts = []
    for part in pace.parts(40):
        time.sleep(0.005 * (part.stop - part.start))
        parts.append(part)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(40))
    assert max(part.stop - part.start for part in parts) <= 10


def test_what_must_be_whole_is_done_again_after_an_interrupt():
    done = []

    def action():
        done.append(1)
        if len(done) < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unbroken(action)
    assert len(done) == 3


def log_joint(z):
    return -0.5 * (z.sort(-1)[0] - torch.arange(3.0)).square().sum(-1)


def test_an_interrupt_while_a_round_is_recorded_loses_none_of_its_steps(monkeypatch):
    made, layer, calls = Trainer(log_joint, engine=Engine.EAGER, progress_bar=False), Chain(LocScale(3)), []

    def interrupted_once(courses):
        finish(courses)
        calls.append(courses)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(history, "finish", interrupted_once)
    made.run(layer, ELBO(), Gradient.PATH, Round(7, 4, 1e-2), "")
    assert made.history.interrupted
    assert made.history.num_steps == 7
    assert calls[0][0].state.steps == 7


def test_steps_that_were_counted_in_part_are_counted_once():
    course = Course(Program(log_joint, Chain(LocScale(3)), ELBO(), Gradient.PATH, 4), None)
    state, losses = course.state._replace(steps=torch.tensor(2.0)), torch.zeros(2)
    course.advance(state, losses)
    course._arrived = state, course.elbos[-1]  # as if interrupted before the last line
    course._pending.clear()
    course._take_arrived()
    assert len(course.elbos) == len(course._pending) == 1
    assert course.state is state


@needs_timer
@pytest.mark.parametrize("engine", [Engine.TRACED, pytest.param(Engine.COMPILED, marks=needs_compiler)])
def test_an_interrupted_round_ends_at_the_state_of_the_steps_it_counts(engine, monkeypatch):
    """At dozens of moments: the parameters are those of an undisturbed run after so many steps."""
    monkeypatch.setattr(trainer, "PAUSE", 0.001)
    plan, made = Round(600, 64, 1e-2), Trainer(log_joint, engine=engine, progress_bar=False)
    fresh = Chain(LocScale(3, init_scale=0.5))
    made.run(fresh, ELBO(), Gradient.PATH, Round(1, 64, 0.0), "")
    rng, counts, longest = random.Random(1), [], 0.02 if engine is Engine.COMPILED else 0.2
    for _ in range(30):
        layer, made.history = Chain(LocScale(3, init_scale=0.5)), History()
        torch.manual_seed(5)
        began = time.perf_counter()
        returned = False
        with contextlib.suppress(KeyboardInterrupt), raised_after(rng.uniform(0.001, longest), KeyboardInterrupt):
            made.run(layer, ELBO(), Gradient.PATH, plan, "")
            returned = True
        assert time.perf_counter() - began < 5
        program, runner = made._get(layer, ELBO(), Gradient.PATH, plan)
        torch.manual_seed(5)
        start = Chain(LocScale(3, init_scale=0.5))
        schedule = schedule_of(plan, 0.0, program.params())
        inputs = inputs_of(program, schedule, 0, plan.num_steps)
        num = made.history.num_steps
        before = made._get(start, ELBO(), Gradient.PATH, plan)[0].init()
        if num:
            few = type(inputs)(*(rows[:num] for rows in inputs))
            before, _ = runner.run(before, few)
        assert torch.equal(program.params(), before.params)
        # What comes before the round begins, on a busy machine, is not the round's, and goes to its caller
        assert made.history.interrupted or num == 600 or (num == 0 and not returned)
        counts.append(num)
    assert len(set(counts)) > 5


@needs_compiler
def test_an_interrupt_ends_all_members_of_an_ensemble(sorter, monkeypatch):
    """The thread that waits for them hears it; they stop within a moment."""
    made = Trainer(log_joint, engine=Engine.COMPILED, progress_bar=False)
    layer = Chain(LocScale(3))
    made.run(layer, ELBO(), Gradient.PATH, Round(1, 64, 0.0), "")
    plan = Round(200_000, 64, 1e-3)
    program, runner = made._get(layer, ELBO(), Gradient.PATH, plan)
    members = [runner.runner.bound(program, None) for _ in range(3)]
    assert all(isinstance(member, Compiled) for member in members)
    inputs = inputs_of(program, schedule_of(plan, 0.0, program.params()), 0, plan.num_steps)
    began = time.perf_counter()
    with raised_after(0.3, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        _side_by_side(members, [program.init()] * 3, [inputs] * 3)
    assert time.perf_counter() - began < 5
    assert threading.active_count() < 10
    for member in members:
        member.memory.halted = False
    few = type(inputs)(*(rows[:5] for rows in inputs))
    results = _side_by_side(members, [program.init()] * 3, [few] * 3)
    assert torch.equal(results[0][0].params, results[2][0].params)


@needs_compiler
def test_a_halted_run_says_so(sorter):
    run = Run(sorter)
    run.halted = True
    with pytest.raises(scan.Halted, match="interrupted"):
        run.run([torch.zeros(40, 20)], [torch.zeros(5, 40, 20)])


HALF_IMPORTED = """
import os, signal, sys, threading, time
from pyro_nflows.inference.foreseen import SYMBOLIC
from pyro_nflows.system.signals import imported, imported_before
import torch

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "sympy.polys.polytools":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

sys.meta_path.insert(0, Interrupting())
try:
    {block}
except KeyboardInterrupt:
    print("interrupted")
import sympy
print(sympy.core.numbers.Integer(2) + 1)
print(*torch.broadcast_shapes((2, 1), (3,)))
"""
#: An import that is asked for, and one that torch makes on its way.
BLOCKS = [
    'imported("sympy")',
    """with imported_before(*SYMBOLIC):
        torch.broadcast_shapes((2, 1), (3,))""",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_interrupt_breaks_off_no_import(block):
    script = HALF_IMPORTED.format(block=block)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("interrupted\n3\n2 3\n", "")


def two_latents():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.StudentT(3.0, 0.0, 1.0))
    pyro.sample("y", dist.Normal(z + torch.stack([s, z]).sort()[0][0], 1.0), obs=torch.tensor(0.3))


@contextlib.contextmanager
def sent_after(seconds, send):
    """``Ctrl-C``, sent from another thread; one that comes late is heard here."""
    timer = threading.Timer(seconds, send)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def noted(send, struck):
    """Sends, and notes when: a thread may be late, and a fit end in the meantime."""

    def sent():
        struck.append(time.perf_counter())
        send()

    return sent


WAYS = {
    "a handler's": lambda seconds, struck: raised_after(seconds, KeyboardInterrupt),
    "another process's": lambda seconds, struck: sent_after(
        seconds, noted(lambda: os.kill(os.getpid(), signal.SIGINT), struck)
    ),
    "a thread's": lambda seconds, struck: sent_after(
        seconds, noted(lambda: signal.raise_signal(signal.SIGINT), struck)
    ),
}


@needs_compiler
@needs_timer
@pytest.mark.parametrize("num", [3, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_any_moment_leaves_a_fit(way, num, tmp_path, monkeypatch):
    """While tracing, compiling, in compiled code, drawing and searching; the fit comes soon, and can be used."""
    imported(NEEDED, *SYMBOLIC)
    rng, swallowed = random.Random(num), []
    # Python itself drops an interrupt that strikes in a destructor or a weak reference's callback, and says so here.
    monkeypatch.setattr(sys, "unraisablehook", lambda found: swallowed.append(found.exc_type))
    for i in range(num):
        monkeypatch.setenv("PYRO_NFLOWS_CACHE", str(tmp_path / str(i // 2)))  # every other one compiles
        pyro.clear_param_store()
        vi = VI(AutoFlow(two_latents), engine=rng.choice([None, "compiled"]), seed=i, progress_bar=False)
        seconds, began = rng.uniform(0.3, 3.0), time.perf_counter()
        struck = list[float]()
        with contextlib.suppress(KeyboardInterrupt), WAYS[way](seconds, struck):
            try:
                vi.run()
            finally:
                ended = time.perf_counter()
        waited = time.perf_counter() - began - seconds
        was_before = ended < (struck[0] if struck else began + seconds)
        heard = KeyboardInterrupt not in swallowed
        swallowed.clear()
        assert waited < 10 or not heard  # about a second on a machine that does nothing else
        assert vi.history.interrupted or was_before or not heard
        assert all(value.isfinite().all() for value in vi.get_samples(100).values())
