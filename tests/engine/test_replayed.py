"""A recording that is asked for often is compiled, and gives what it gave."""

import copy

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine import replayed
from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.engine.native import build
from pyro_nflows.engine.replayed import PATIENCE, Replayed
from pyro_nflows.engine.tape import Tape

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
CPU = torch.device("cpu")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling pays after five runs."""
    monkeypatch.setattr(replayed, "runs_that_pay", lambda tape: 5)


def function(x: Tensor) -> list[Tensor]:
    return [x.sin().exp() / x, (x > 0).sum(), x[:, 1:].cumsum(1)]


def test_what_is_asked_for_often_is_compiled(hurried: None) -> None:
    code = Replayed(Tape(function, [torch.ones(4, 3)]), CPU)
    found = []
    for number in range(5 * PATIENCE + 3):
        x = torch.randn(4, 3)
        found.append(code.run([x]))
        torch.testing.assert_close(found[-1], function(x))
        assert code.is_compiled == (number + 1 >= 5 * PATIENCE)
    again = code.run([torch.randn(4, 3)])
    assert not copy.deepcopy(code).is_compiled
    assert not any(part.data_ptr() in {p.data_ptr() for row in found for p in row} for part in again)  # nothing is lost


def test_recordings_at_other_data_are_compiled_by_themselves(hurried: None) -> None:
    data = torch.tensor([1.0, 2.0])
    first = Replayed(Tape(lambda x: [(x * data).sum()], [torch.ones(2)], [data]), CPU)
    other = first.bound([torch.tensor([10.0, 20.0])])
    for _ in range(5 * PATIENCE):
        one, ten = first.run([torch.ones(2)]), other.run([torch.ones(2)])
    assert first.is_compiled
    assert other.is_compiled
    assert (float(one[0]), float(ten[0])) == (3.0, 30.0)


def test_code_that_gives_other_numbers_is_not_used(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = replayed._given
    monkeypatch.setattr(replayed, "_given", lambda code, inputs: [part + 1 for part in right(code, inputs)])
    code, x = Replayed(Tape(lambda x: [x.sin()], [torch.ones(3)]), CPU), torch.randn(3)
    for _ in range(5 * PATIENCE + 2):
        assert torch.equal(code.run([x])[0], x.sin())
    assert not code.is_compiled


def test_gradients_of_a_density_are_compiled(hurried: None) -> None:
    density = DensityGradient(lambda z: -z.square().square().sum(-1) + z[:, 0] * z[:, 1].exp())
    z, at = torch.randn(300, 3), torch.randn(3)
    before = *density.values_and_grads(z), *density.value_and_grad(at)
    for _ in range(5 * PATIENCE):
        after = *density.values_and_grads(z), *density.value_and_grad(at)
    assert all(tape is not None and tape.is_compiled for tape in density._tapes.values())
    torch.testing.assert_close(after, before)
