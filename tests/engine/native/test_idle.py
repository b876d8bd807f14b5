"""Numbers that a step leaves as they are take no time, and any that it would change are changed."""

import pytest
import torch

from pyro_nflows import ELBO, flows
from pyro_nflows.engine import Inputs, Program
from pyro_nflows.engine.backends import record
from pyro_nflows.engine.native import Run, Scan, build, idle, segments, shares
from pyro_nflows.engine.program import State
from pyro_nflows.engine.runners import Eager
from pyro_nflows.engine.tape import Tape
from pyro_nflows.inference.elbo import Gradient

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def short_vectors_are_long(monkeypatch):
    monkeypatch.setattr(idle, "LARGE", 1000)
    monkeypatch.setattr(segments, "WORTH", 0.0)
    monkeypatch.setattr(shares, "LONG_LOOP", 0.0)


@pytest.fixture(scope="module")
def step():
    """Weights of which the mask leaves out nearly half."""
    program = Program(lambda z: -((z - 1) ** 2).sum(-1), flows.iaf(256, 1, (256,)), ELBO(), Gradient.TOTAL, 64)
    given = Inputs(torch.randn(3, 64, program.noise_width), *(torch.full((3,), value) for value in (1e-2, 1.0, 0.0)))
    return program, given, record(program, given)


def shared_by(scan, num):
    run = Run(scan)
    run.most, run.chosen.next = num, lambda most: most
    return run


@pytest.mark.parametrize("moments", [0.0, 0.5])
def test_weights_that_a_mask_leaves_out_are_what_they_are_eagerly(step, moments):
    """Their moments are zero, or somebody has given them others."""
    program, given, tape = step
    scan = Scan(tape, len(State._fields))
    assert "RUNS(((" in scan.program.source
    start = program.init()
    start = start._replace(mean=start.mean + moments, square=start.square + moments)
    (found, losses), (same, _) = (shared_by(scan, num).run(start, given) for num in (1, 2))
    right, right_losses = Eager(program).run(start, given)
    stays = (right.params == start.params).double().mean()
    assert stays < 0.01 if moments else stays > 0.3
    assert torch.allclose(losses[0], right_losses)
    for one, other, expected in zip(found, same, right, strict=True):
        assert torch.equal(one, other)
        assert torch.allclose(one, expected)


def test_a_run_that_goes_on_looks_again(step):
    """Moments that were zero at its first call need not be at the next."""
    program, given, tape = step
    run, start = shared_by(Scan(tape, len(State._fields)), 1), program.init()
    run.run(start, given)
    start = start._replace(mean=start.mean + 1.0)
    found, right = run.run(start, given)[0], Eager(program).run(start, given)[0]
    assert torch.allclose(found[0], right.params)


def added(x, mean, *parts):
    """Part of a vector moves."""
    moved = 0.5 * mean + torch.cat([x.reshape(-1).sin(), *parts])
    return [moved * 2.0]


def test_zeros_that_are_data_may_be_other_numbers():
    x, mean, data = torch.randn(32, 64), torch.zeros(4096), torch.zeros(2048)
    tape = Tape(lambda x, mean: added(x, mean, data.exp() - 1), [x, mean], [data])
    again = tape.bound([torch.ones(2048)])
    (found,) = Run(Scan(tape, 0), again).run([], [x[None], mean[None]])[1]
    assert torch.allclose(found[0], added(x, mean, torch.ones(2048).exp() - 1)[0])


PARTS = {
    "zeros": lambda x: [torch.zeros(2048)],
    "in between": lambda x: [torch.zeros(512), x[:16].reshape(-1).cos(), torch.zeros(512)],
    "partly": lambda x: [torch.nn.functional.pad(x[:16].reshape(-1) * 2, (0, 1024))],
    "ones": lambda x: [torch.ones(2048)],
    "shorter rows": lambda x: [torch.cat([x[:, :20] * 2, torch.zeros(32, 44)], 1).reshape(-1)],
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_put_together_with_zeros_is_torchs(name):
    """Step after step, whatever was in memory before."""
    x, mean = torch.randn(3, 32, 64), torch.randn(3, 4096)
    scan = Scan(Tape(lambda x, mean: added(x, mean, *PARTS[name](x)), [x[0], mean[0]]), 0)
    for (found,) in (shared_by(scan, num).run([], [x, mean])[1] for num in (1, 2, 3)):
        for one, *given in zip(found, x, mean, strict=True):
            assert torch.allclose(one, added(*given, *PARTS[name](given[0]))[0])
