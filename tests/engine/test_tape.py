"""A recording replays what was recorded, whatever the function does to its tensors."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from pyro_nflows.engine.tape import Tape, TraceError

pytestmark = pytest.mark.on_devices


def scaled_in_place(x: Tensor) -> Sequence[Tensor]:
    y = x * 2
    before = y + 1
    y.masked_fill_(x > 0, 0.5)
    y.mul_(3.0)
    return before, y


def through_a_view(x: Tensor) -> Sequence[Tensor]:
    y = x.new_zeros(2, 3)
    y[0] = x
    first = y.sum(0)
    y[1].copy_(x * x)
    return first, y


def constant_filled(x: Tensor) -> Sequence[Tensor]:
    mask = torch.zeros(3, dtype=x.dtype)
    used = x + mask
    mask.fill_(2.0)
    return used, x * mask


def derivative(x: Tensor) -> Sequence[Tensor]:
    return (vmap(grad(lambda t: (t.tanh() * t.clamp(min=0.1)).pow(2)))(x), grad(lambda t: t.norm())(x))


def lists_and_numbers(x: Tensor) -> Sequence[Tensor]:
    first, second = torch.cat([x, 1 - 0.5 * x]).split([2, 4])
    return first, second.view(2, 2).t(), torch.where(x > 0.2, x, -torch.inf), x.sum(), x


def masked_by_integers(x: Tensor) -> Sequence[Tensor]:
    return (x[torch.tensor([2, 0, 0])],)


def masked_by_a_constant(x: Tensor) -> Sequence[Tensor]:
    below = torch.ones(3, 3).tril(-1).bool()
    return (x.outer(x)[below], grad(lambda t: t.outer(t)[..., below].sum())(x))


def number_of_a_constant(x: Tensor) -> Sequence[Tensor]:
    """Beside a change through a view."""
    y = through_a_view(x)[1]
    table, place = torch.arange(6.0, dtype=x.dtype).reshape(2, 3), torch.tensor(1)
    return y + table[place], x * table[place, 2].item()


def written_where_a_mask_says(x: Tensor) -> Sequence[Tensor]:
    """Which leaves the mask what it was."""
    y, below = through_a_view(x)[1], torch.ones(2, 3).tril(-1).bool()
    y[below] = x[2:]
    return y, y[below]


CASES = [
    written_where_a_mask_says,
    number_of_a_constant,
    scaled_in_place,
    through_a_view,
    constant_filled,
    derivative,
    lists_and_numbers,
    masked_by_integers,
    masked_by_a_constant,
]


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replays_at_other_points(function: Callable[..., Sequence[Tensor]], dtype: torch.dtype) -> None:
    tape = Tape(function, [torch.tensor([0.3, -0.7, 1.1], dtype=dtype)])
    x = torch.tensor([-0.4, 0.9, 0.05], dtype=dtype)
    for _ in range(2):  # the second replay must not see traces of the first
        for got, expected in zip(tape.run([x.clone()]), function(x.clone()), strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)


def test_notes_only_what_is_needed_and_only_once() -> None:
    def function(x: Tensor) -> Sequence[Tensor]:
        x.cos()
        return (x.sin() + x.sin() * torch.ones(3).exp(),)

    assert [str(call.target) for call in Tape(function, [torch.zeros(3)]).calls] == [
        "aten.sin.default",
        "aten.mul.Tensor",
        "aten.add.Tensor",
    ]


def test_keeps_every_random_number() -> None:
    tape = Tape(lambda x: (x + torch.randn(3), x + torch.randn(3)), [torch.zeros(3)])
    torch.manual_seed(0)
    expected = [torch.randn(3), torch.randn(3)]
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(tape.run([torch.zeros(3)]), expected))


@pytest.mark.parametrize("function", [lambda x: (x * x.sum().item(),), lambda x: (x[x > 0],), lambda x: (x.nonzero(),)])
def test_refuses_what_depends_on_values(function: Callable[..., Sequence[Tensor]]) -> None:
    with pytest.raises(TraceError, match="depend on the data"):
        Tape(function, [torch.ones(3)])


@pytest.mark.parametrize(
    "change",
    [
        lambda y, x: y[0].copy_(x[0]),
        lambda y, x: y.view(-1).add_(x),
        lambda y, x: torch.add(x, 1, out=y),
        lambda y, x: y[:2].normal_(),
        lambda y, x: y[1:].masked_fill_(x[1:] > 0, 2.0),
    ],
)
def test_refuses_what_depends_on_values_that_were_written(change: Callable[[Tensor, Tensor], object]) -> None:
    def function(x: Tensor) -> Sequence[Tensor]:
        y = torch.zeros(3)
        change(y, x)
        return (x * y.sum().item(),)

    with pytest.raises(TraceError, match="depend on the data"):
        Tape(function, [torch.ones(3)])
