"""Threads share long steps, and no number depends on how many there are."""

import os
import signal
import threading
import time

import pytest
import torch

from pyro_nflows import ELBO, flows
from pyro_nflows.engine import Inputs, Program
from pyro_nflows.engine.backends import record
from pyro_nflows.engine.ensemble import Ensemble
from pyro_nflows.engine.native import Run, Scan, blocks, build, emit, linear, segments
from pyro_nflows.engine.native.team import TEAMS, Chosen
from pyro_nflows.engine.runners import Compiled
from pyro_nflows.engine.tape import Tape
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.layers import TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.system.exclusive import exclusive

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module", autouse=True)
def teams_are_there():
    TEAMS.start()
    while TEAMS._build is not None and not TEAMS._build.is_ready:
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def everything_is_worth_threads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "WORTH", 0.0)
        patch.setattr(segments, "WORTH_SEGMENT", 0.0)
        yield


def shared_by(scan, num):
    """A run by so many threads, whether that is faster or not."""
    run = Run(scan)
    run.most, run.chosen.next = num, lambda most: most
    return run


def log_joint(x):
    """A regression of some hundred rows whose rows are summed for each particle."""
    return lambda z: -torch.nn.functional.softplus(-z @ x.T).sum(-1) - 0.5 * z.square().sum(-1)


def training_step(num_particles, dim=6, rows=300):
    layer = Chain(flows.realnvp(dim, 2, (16, 16)), TriangularAffine(dim))
    program = Program(log_joint(torch.randn(rows, dim)), layer, ELBO(), Gradient.PATH, num_particles)
    given = Inputs(
        torch.randn(4, num_particles, program.noise_width), torch.full((4,), 1e-2), torch.ones(4), torch.zeros(4)
    )
    return program, given


@pytest.fixture(scope="module")
def step():
    program, given = training_step(128)
    return program, given, Scan(record(program, given), len(program.init()))


@pytest.mark.parametrize("num_particles", [128, 100, 64])
def test_one_two_and_three_threads_give_the_same_numbers(num_particles):
    program, given = training_step(num_particles)
    tape = record(program, given)
    scan = Scan(tape, len(program.init()))
    assert scan.program.is_shared
    (state, losses), *others = [shared_by(scan, num).run(program.init(), given) for num in (1, 2, 3)]
    for other, found in others:
        for one, same in zip([*state, *losses], [*other, *found]):
            assert torch.equal(one, same)
    *_, loss = tape.run([*program.init(), *(part[0] for part in given)])
    assert torch.allclose(losses[0][0], loss)


def test_particles_are_found_where_layers_are_as_wide_as_there_are_latents(monkeypatch):
    """There are more dimensions of that size than of the other."""
    found, divide = [], emit.segments
    monkeypatch.setattr(emit, "segments", lambda *given: found.append(divide(*given)) or found[-1])
    precision = torch.eye(96) + torch.full((96, 96), 0.1)
    layer = flows.iaf(96, 3, (96, 96))
    program = Program(lambda z: -0.5 * (z @ precision * z).sum(-1), layer, ELBO(), Gradient.TOTAL, 128)
    given = Inputs(torch.randn(2, 128, program.noise_width), *(torch.full((2,), value) for value in (1e-2, 1.0, 0.0)))
    scan = Scan(record(program, given), len(program.init()))
    assert [size for _, size in found] == [128]
    (state, _), (other, _) = (shared_by(scan, num).run(program.init(), given) for num in (1, 2))
    assert torch.equal(state[0], other[0])


def test_a_large_matrix_is_fetched_once_for_all_blocks(monkeypatch):
    """What is computed is the same."""
    program, given = training_step(128)
    tape, found = record(program, given), []
    for many in (2**24, 1000):
        monkeypatch.setattr(blocks, "MANY_BYTES", many)
        scan = Scan(tape, len(program.init()))
        (state, losses), other = (shared_by(scan, num).run(program.init(), given) for num in (1, 3))
        assert torch.equal(state[0], other[0][0])
        found.append((scan.program.source.count("for (i64 block"), scan.program.own, state[0], losses[0]))
    (loops, own, params, losses), (more, larger, *same) = found
    assert more > loops
    assert larger > own
    assert torch.allclose(params, same[0])
    assert torch.allclose(losses, same[1])


OPERATIONS = {
    "running sums": lambda x: [x.cumsum(1), x.cumsum(0).sum(1)],
    "picking": lambda x: [x[:, torch.arange(0, 300, 3)] * 2, x.index_select(0, torch.tensor([5, 1])).exp()],
    "adding at indices": lambda x: [x.new_zeros(128, 7).index_add(1, torch.arange(300) % 7, x)],
    "turned around": lambda x: [(x.flip(1) + x).exp(), x.t().softmax(0), x.softmax(0)],
    "put together": lambda x: [torch.cat([x[:, :100].exp(), x[:, 100:] * 2], 1).tanh(), torch.cat([x, -x]).sin()],
    "products": lambda x: [x @ x[:50].t(), x.t() @ x, (x @ x.t()) @ x, x[:, :1] * x],
    "batches": lambda x: [
        x.view(128, 20, 15) @ x.view(128, 15, 20),
        torch.linalg.cholesky_ex(x[:, :9].view(128, 3, 3) @ x[:, :9].view(128, 3, 3).mT + torch.eye(3))[0],
        torch.linalg.solve_triangular(99 * torch.eye(300).to(x) + 0.1 * x[:1].t() * x[:1], x.t(), upper=False),
    ],
    "greatest and least": lambda x: [x.amax(0), x.amin(1), x.logsumexp(1), x.logsumexp(0), (x > 0).all(1), x.norm()],
    "no particles": lambda x: [x.reshape(-1).exp() * 2, x.reshape(-1)[::2].sin(), x.t().reshape(-1).cos() + 1],
    "one particle's part": lambda x: [x[3] * x, x[:, 7:8] + x[7:8], x.diagonal() * 2, x[5, 6] * x],
    "sorted": lambda x: [x.exp().sort(1)[0] * x, x.sort(0)[0].cumsum(1)],
}


@pytest.mark.parametrize(
    ("dtype", "many"), [(torch.float32, 2**24), (torch.float64, 2**24), pytest.param(torch.float64, 0, id="together")]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_shared_operations_are_torchs(name, dtype, many, monkeypatch):
    """By themselves, and of what was just computed; blocks one after the other, or through each step together."""
    monkeypatch.setattr(blocks, "MANY_BYTES", many)
    function = OPERATIONS[name]

    def twice(x):
        y = (x.sin().exp().tanh() * x).sigmoid()
        return [*function(x), *function(y), y]

    x = torch.randn(128, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    scan = Scan(Tape(twice, [x]), 0)
    assert scan.program.is_shared
    results = [shared_by(scan, num).run([], [x[None]])[1] for num in (1, 2, 5)]
    tolerance = 1e3 * torch.finfo(dtype).eps
    for one, two, five, expected in zip(*results, twice(x), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, five)
        size = float(expected.double().abs().max())  # terms of a sum may be that large where they cancel
        assert torch.allclose(one[0], expected, rtol=tolerance, atol=tolerance * max(size, 1.0))


@pytest.mark.parametrize("size", [2**18, 2**18 + 7, 300_001])
def test_a_long_norm_is_shared_in_pieces(size, monkeypatch):
    x, y = torch.randn(size), torch.randn(128)
    found, divide = [], emit.segments
    monkeypatch.setattr(emit, "segments", lambda *given: found.append(divide(*given)) or found[-1])
    scan = Scan(Tape(lambda x, y: [x.norm(), y.sum()], [x, y]), 0)
    (made, _), pieces = found[0], linear.PIECES
    assert any(
        part.cut == (0, pieces) and part.step.shape == (pieces, size // pieces) for s in made for part in s.parts
    )
    one, two = (shared_by(scan, num).run([], [x[None], y[None]])[1][0] for num in (1, 2))
    assert torch.equal(one, two)
    assert torch.allclose(one[0], x.norm())


def test_a_short_step_is_left_to_one_thread(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(segments, "WORTH", 2e-3)
    assert not Scan(Tape(lambda x: [x.exp() * 2], [torch.zeros(128)]), 0).program.is_shared


def test_an_interrupt_is_heard_while_threads_share_a_step(step):
    program, given, scan = step
    run = shared_by(scan, 2)
    many = Inputs(*(part[:1].expand(100_000, *part.shape[1:]) for part in given))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run.run(program.init(), many)
    assert time.perf_counter() - began < 20  # all of it would take minutes
    (state, _), (right, _) = (shared_by(scan, num).run(program.init(), given) for num in (2, 1))
    assert torch.equal(state[0], right[0])
    assert TEAMS.num_busy == 0


def test_fits_side_by_side_have_no_more_threads_than_torch(step, monkeypatch):
    program, given, scan = step
    torch.set_num_threads(4)
    monkeypatch.setattr("pyro_nflows.engine.ensemble.num_cores", lambda: 2)
    seen, lent = [], TEAMS.lent

    def counted(size):
        seen.append(size)
        return lent(size)

    monkeypatch.setattr(TEAMS, "lent", counted)
    base = Compiled(Run(scan), record(program, given))
    ensemble = Ensemble(base, [program] * 3, [None] * 3)
    together = ensemble.run([program.init()] * 3, [given] * 3)
    assert max(seen) == 2  # of each of two that go at the same time
    alone, _ = ensemble.run([program.init()], [given], [1])[0]
    assert max(seen) == 4
    for state, _ in together:
        assert torch.equal(state.params, alone.params)


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX warns of it, where another test has imported that
def test_a_forked_process_has_threads_of_its_own(step):
    program, given, scan = step
    right, _ = shared_by(scan, 2).run(program.init(), given)
    child = os.fork()
    if not child:
        code = 1
        try:
            with exclusive():  # OpenMP's threads, of which torch has several here, do not survive a fork
                found, _ = shared_by(scan, 2).run(program.init(), given)
            code = 0 if torch.equal(found[0], right[0]) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_thread_goes_on_where_threads_cannot_be_had(step, monkeypatch):
    program, given, scan = step
    monkeypatch.setattr(TEAMS, "_failed", True)
    monkeypatch.setattr(TEAMS, "_library", None)
    found, _ = shared_by(scan, 2).run(program.init(), given)
    monkeypatch.undo()
    right, _ = shared_by(scan, 2).run(program.init(), given)
    assert torch.equal(found[0], right[0])


def test_what_is_slower_is_tried_again_now_and_then():
    chosen = Chosen()
    busy = {1: 1.0, 2: 3.0}
    tried = []
    for part in range(200):
        seconds = busy if part < 100 else {1: 1.0, 2: 0.5}
        tried.append(chosen.next(2))
        chosen.note(tried[-1], seconds[tried[-1]])
    assert tried[:100].count(2) < 10
    assert tried[140:].count(1) < 5
