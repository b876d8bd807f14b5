"""Matrices of few numbers: the same values and gradients as when they are written out, which they are not."""

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine.native.few_written import of_few_numbers
from pyro_nflows.engine.native.scan import Scan
from pyro_nflows.engine.tape import Tape

SIZE = 40
LAGS = torch.arange(SIZE)[:, None] - torch.arange(SIZE)
PAST = LAGS >= 0


def response(phi: Tensor) -> Tensor:
    """What a shock is worth later: zero before it."""
    return torch.where(PAST, phi[:, None, None] ** torch.where(PAST, LAGS, 0), 0.0)


def autoregression(phi: Tensor, z: Tensor) -> Tensor:
    return (response(phi) @ z[..., None])[..., 0].sin().sum(-1)


def from_the_left(phi: Tensor, z: Tensor) -> Tensor:
    return (z[:, None, :] @ response(phi))[:, 0].sin().sum(-1)


def turned(phi: Tensor, z: Tensor) -> Tensor:
    return (response(phi).mT @ z[..., None])[..., 0].sin().sum(-1)


def smooth(phi: Tensor, z: Tensor) -> Tensor:
    """A kernel of a scale, row by row of unit sum, which takes sums and vectors besides products."""
    kernel = torch.exp(-((LAGS * phi[:, None, None]) ** 2))
    return ((kernel / kernel.sum(-1, keepdim=True)) @ z[..., None])[..., 0].sin().sum(-1)


def summed(phi: Tensor, z: Tensor) -> Tensor:
    """Sums of pairs, over columns and then over all."""
    pairs = torch.exp(-(phi[:, None, None] ** 2) * LAGS.abs()) * (z[:, :, None] - z[:, None, :])
    return pairs.tanh().sum(-1).square().sum(-1) + pairs.square().sum((1, 2))


def rectangular(phi: Tensor, z: Tensor) -> Tensor:
    """Numbers of the same kind far apart, and not as many columns as rows."""
    kind = torch.arange(3 * SIZE)[:, None] % 7 - torch.arange(SIZE) % 5
    return ((phi[:, None, None] * kind).cos() @ z[..., None])[..., 0].sin().sum(-1)


MODELS = [autoregression, from_the_left, turned, smooth, summed, rectangular]


def gradient(model):
    def function(phi: Tensor, z: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            phi, z = phi.detach().requires_grad_(), z.detach().requires_grad_()
            value = model(phi, z)
            return [value.detach(), *torch.autograd.grad(value.sum(), [phi, z])]

    return function


def given(num: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [0.1 + 0.8 * torch.rand(num), torch.randn(num, SIZE)]


def matrices(tape: Tape, num: int) -> list[tuple[int, ...]]:
    """The shapes of matrices, one a particle, that a recording computes."""
    shapes = [tuple(tape.metas[n][0]) for call in tape.calls for n in call.results]
    return [shape for shape in shapes if len(shape) == 3 and shape[0] == num and 1 not in shape]


@pytest.mark.parametrize("num", [8, 16, 64])
@pytest.mark.parametrize("model", MODELS)
def test_values_and_gradients_are_the_same(model, num):
    tape, at = Tape(gradient(model), given(num)), given(num)
    rewritten, apart = of_few_numbers(tape)
    assert apart
    assert matrices(tape, num)
    assert not matrices(rewritten, num)
    for found, right in zip(rewritten.run(at), gradient(model)(*at)):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("num", [13, 16, 48])
@pytest.mark.parametrize("model", MODELS)
def test_compiled_they_are_the_same(model, num):
    at = given(num)
    scan = Scan(Tape(gradient(model), at), num_carried=0)
    found = scan.run([], [part[None] for part in at])[1]
    for part, right in zip(found, gradient(model)(*at)):
        torch.testing.assert_close(part[0], right)


def test_no_memory_grows_with_the_matrix():
    """That the program has for itself, which one matrix for each particle would be ten times."""
    big, num = 200, 64
    lags = (torch.arange(big)[:, None] - torch.arange(big)).abs()

    def model(phi: Tensor, z: Tensor) -> Tensor:
        return ((phi[:, None, None] ** lags) @ z[..., None])[..., 0].sin().sum(-1)

    at = [torch.rand(num), torch.randn(num, big)]
    program = Scan(Tape(gradient(model), at), num_carried=0).program
    assert program.size + program.own < num * big**2 * 8 / 10


def test_what_needs_the_matrix_gets_it():
    def factored(phi: Tensor, z: Tensor) -> Tensor:
        kernel = torch.exp(-((LAGS * phi[:, None, None]) ** 2)) + torch.eye(SIZE)
        return (torch.linalg.cholesky(kernel) @ z[..., None])[..., 0].sin().sum(-1)

    tape = Tape(gradient(factored), given(16))
    assert of_few_numbers(tape) == (tape, set())


def test_many_different_numbers_are_written_out():
    torch.manual_seed(1)
    different = torch.randn(SIZE, SIZE)
    tape = Tape(lambda phi, z: ((phi[:, None, None] * different).cos() @ z[..., None],), given(16))
    assert of_few_numbers(tape) == (tape, set())


def test_data_may_change_and_are_not_counted():
    """Lags that are data may be others in the next fit, where other entries are equal."""
    data = LAGS.abs().double()
    tape = Tape(lambda phi, z: ((phi[:, None, None] ** data) @ z[..., None],), given(16), [data])
    assert of_few_numbers(tape) == (tape, set())


def test_data_beside_few_numbers_are_exchanged():
    torch.manual_seed(1)
    data, other, at = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE), given(16)
    kernel = LAGS.abs()

    def weighed(phi: Tensor, z: Tensor, weights: Tensor) -> Tensor:
        return ((phi[:, None, None] ** kernel * weights) @ z[..., None])[..., 0]

    tape = Tape(lambda phi, z: (weighed(phi, z, data),), at, [data])
    rewritten, apart = of_few_numbers(tape)
    assert apart
    torch.testing.assert_close(rewritten.bound([other]).run(at)[0], weighed(*at, other))


def test_a_nan_in_the_constants_stays_one():
    holes = torch.where(PAST, LAGS.double(), torch.nan)
    tape = Tape(
        lambda phi, z: ((phi[:, None, None] * holes).nan_to_num().sum(-1) + z.sum(-1, keepdim=True),), given(16)
    )
    plain = Tape(lambda phi, z: (torch.where(PAST, phi[:, None, None] * holes, z[:, None, :]).sum(-1),), given(16))
    for each in (tape, plain):
        torch.testing.assert_close(of_few_numbers(each)[0].run(given(16)), each.run(given(16)))
