"""What is put together of parts is written in place, and nothing is written elsewhere that something else reads."""

import pytest
import torch

from pyro_nflows.engine.native import Scan, build
from pyro_nflows.engine.native.lower import Lowering
from pyro_nflows.engine.native.plan import Loop
from pyro_nflows.engine.tape import Tape

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


def copies(function, *inputs):
    """Statements that only copy."""
    plan = Lowering(Tape(function, [*inputs])).plan
    statements = [s for step in plan.steps if isinstance(step, Loop) for s in step.statements]
    return sum(s.kind == "store" and s.template == "{0}" and not isinstance(s.operands[0], str) for s in statements)


def results(function, *inputs):
    _, found = Scan(Tape(function, [*inputs]), 0).run([], [x[None] for x in inputs])
    return [y[0] for y in found]


IN_PLACE = {
    "products": lambda x, w: [torch.cat([x @ w, w @ x.t() @ x])],
    "flat": lambda x, w: [torch.cat([(x @ w).reshape(-1), (w * 2).reshape(-1)]).exp()],
    "side by side": lambda x, w: [torch.cat([x @ w, x.exp()], 1).tanh()],
    "nested": lambda x, w: [torch.cat([torch.cat([x @ w, x.exp()], 1), torch.cat([x * 2, x @ w.t()], 1)]).reshape(-1)],
    "zeros": lambda x, w: [torch.cat([torch.cat([x @ w, torch.zeros(4, 20)], 1), torch.zeros(3, 100)]).sin()],
    "batches": lambda x, w: [torch.cat([x.expand(3, 4, 80) @ (w * torch.ones(3, 1, 1)), torch.zeros(3, 1, 80)], 1) + 1],
}
IN_PART = {
    "read twice": lambda x, w: [torch.cat([x @ w, (x @ w).exp()]), (x @ w) * 3],
    "results": lambda x, w: [x @ w, torch.cat([x @ w, x])],
    "turned": lambda x, w: [torch.cat([(x @ w).t(), w.exp()], 1), torch.cat([(x @ w).t().reshape(-1), x.reshape(-1)])],
    "twice the same": lambda x, w: [torch.cat([x.exp(), x.exp()]), torch.stack([x @ w, x @ w])],
    "halves": lambda x, w: [torch.cat([(x @ w)[:2], x]), torch.cat([(x @ w)[:, 1:], x], 1)],
    "sums": lambda x, w: [torch.cat([x.sum(0), w.amax(1), x.cumsum(0).reshape(-1)])],
    "sorted": lambda x, w: [torch.cat([x.sort(0)[0], x.exp()]).sort(0)[0]],
    "padded": lambda x, w: [
        torch.nn.functional.pad(x @ w, (1, 2)),
        torch.nn.functional.pad(x.exp(), (1, 0), value=3.0),
    ],
    "indices": lambda x, w: [torch.cat([x[:, [1, 0]] * 2, x[:, torch.tensor([4, 4])]], 1)],
}


@pytest.mark.parametrize("name", [*IN_PLACE, *IN_PART])
@pytest.mark.parametrize("again", [False, True])
def test_parts_are_torchs(name, again):
    """Of what is given, and of what was just computed."""
    function, x, w = {**IN_PLACE, **IN_PART}[name], torch.randn(4, 80), torch.randn(80, 80) / 9

    def whole(x, w):
        return function(x.sin() * 2, w.cos()) if again else function(x, w)

    for found, expected in zip(results(whole, x, w), whole(x, w), strict=True):
        assert torch.allclose(found, expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_parts_that_are_made_for_it_are_written_in_place(name):
    assert (
        copies(IN_PLACE[name], torch.randn(4, 80), torch.randn(80, 80) / 9) == 0
        if name not in ("zeros", "batches")
        else 2
    )


def test_gradients_in_weights_are_not_copied():
    x = torch.randn(64, 40)

    def slope(*weights):
        with torch.enable_grad():
            flat = torch.cat([w.reshape(-1) for w in weights]).requires_grad_()
            first, second = (part.view(40, 40) for part in flat.split(1600))
            return torch.autograd.grad((torch.tanh(x @ first) @ second).sin().sum(), flat)

    given = [torch.randn(40, 40) / 6 for _ in range(2)]
    assert copies(slope, *given) == 2  # of the weights themselves
    assert torch.allclose(results(slope, *given)[0], slope(*given)[0])
