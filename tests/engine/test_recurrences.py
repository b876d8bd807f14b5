"""Draws position by position, by compiled loops: the same numbers, whatever is asked for."""

import copy
import functools
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.engine import CompiledRecurrence, recurrences
from pyro_nflows.flows import up_to
from pyro_nflows.layers import SequenceAutoregressive
from pyro_nflows.nets import CausalConvNet, CausalTransformer
from pyro_nflows.nets.recurrence import Recurrence
from pyro_nflows.testing import perturbed
from pyro_nflows.transformers import Affine, RationalQuadratic

CONV = functools.partial(CausalConvNet, width=6, dilations=(1, 3))
pytestmark = pytest.mark.skipif(not recurrences.compiles(torch.zeros(1)), reason="no compiled code here")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The first run is compared with compiled code, and the second is by it."""
    monkeypatch.setattr(recurrences, "PAYS", 0)


def sequence(size=(7, 2), transformer=Affine(1.0), **kwargs):
    return perturbed(lambda: SequenceAutoregressive(size, transformer, **{"net": CONV} | kwargs))


def compiled(layer) -> list[CompiledRecurrence]:
    return [*recurrences._found.get(layer.net, {}).values()]


@torch.no_grad()
def check(layer, y, tolerance=1e-10, owner=None) -> None:
    right = layer.inverse(y)
    found = layer.inverse(y)
    (code,) = compiled(owner or layer)
    assert code.refused is None
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)
    with torch.enable_grad():
        torch.testing.assert_close(layer.inverse(y.requires_grad_()), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [(), (1,), (3, 7), (40,)])
@pytest.mark.parametrize("reverse", [False, True])
def test_draws_are_those_without(rows, reverse):
    check(sequence(reverse=reverse), torch.randn(*rows, 14, dtype=torch.float64))


def test_in_single_precision():
    check(sequence().float(), torch.randn(5, 14, dtype=torch.float32), 1e-4)


@pytest.mark.parametrize("transformer", [Affine(1.0), RationalQuadratic(4, 3.0)])
@pytest.mark.parametrize("dim", [1, 3])
def test_with_any_transformer_and_coordinates(transformer, dim):
    check(sequence((6, dim), transformer), torch.randn(9, 6 * dim, dtype=torch.float64))


@pytest.mark.parametrize("rows", [(), (20,)])
def test_a_context_is_told_to_each_position(rows):
    layer = sequence(context_dim=3).at(torch.randn(*rows, 21, dtype=torch.float64))
    check(layer, torch.randn(20, 14, dtype=torch.float64))


def test_a_context_may_have_more_rows_than_what_is_given():
    layer = sequence(context_dim=3).at(torch.randn(20, 21, dtype=torch.float64))
    check(layer, torch.randn(14, dtype=torch.float64))


def test_biases_of_each_position_are_told():
    check(sequence(net=functools.partial(CONV, per_position=True)), torch.randn(20, 14, dtype=torch.float64))


def test_sequences_may_end_before():
    layer = up_to(sequence(), torch.tensor([3, 7, 5]))
    check(layer, torch.randn(3, 14, dtype=torch.float64), owner=layer)


def test_code_reads_the_weights_as_they_are():
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    for change in (
        lambda: None,
        lambda: layer.net.head.detach().mul_(2),
        lambda: layer.net.skip.data.add_(0.1),
        lambda: layer.load_state_dict(sequence().state_dict()),
        lambda: setattr(layer.net, "bias", torch.nn.Parameter(torch.ones_like(layer.net.bias))),
    ):
        change()
        check(layer, y.detach())


def test_a_copy_has_code_of_its_own():
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    check(layer, y)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.net.bias.add_(1.0)
    check(other, y.detach())
    check(layer, y.detach())


def test_gradients_and_transformations_are_those_of_torch():
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    check(layer, y)
    y = y.detach()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: layer.inverse(row)[0]))(y)
    _, log_weight = layer.inverse(y)
    torch.testing.assert_close(torch.linalg.slogdet(jacobians).logabsdet, -log_weight)
    with torch.no_grad():
        mapped = torch.func.vmap(lambda row: layer.inverse(row)[0])(y)
    torch.testing.assert_close(mapped, layer.inverse(y)[0])


def test_threads_may_draw_at_once():
    layer, rows = sequence((40, 1)), torch.randn(12, 30, 40, dtype=torch.float64)
    check(layer, rows[0].clone())
    right = [layer.inverse(y)[0].detach() for y in rows]

    def run(y):
        with torch.no_grad():
            return layer.inverse(y)[0]

    with ThreadPoolExecutor(3) as pool:
        torch.testing.assert_close(list(pool.map(run, rows)), right)


def test_what_grows_with_the_past_is_not_compiled():
    layer = sequence(net=functools.partial(CausalTransformer, width=8))
    with torch.no_grad():
        layer.inverse(torch.randn(5, 14, dtype=torch.float64))
    assert compiled(layer) == []


def test_code_that_gives_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(recurrences, "CLOSE", dict.fromkeys(recurrences.CLOSE, -1.0))
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    with torch.no_grad():
        right = layer.inverse(y)
        assert "off by" in compiled(layer)[0].refused
        assert all(map(torch.equal, layer.inverse(y), right))


def test_without_a_compiler_draws_are_those_of_torch(monkeypatch):
    monkeypatch.setattr(recurrences.Compiling, "start", lambda self: setattr(self, "refused", "no compiler"))
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    with torch.no_grad():
        assert all(map(torch.equal, layer.inverse(y), layer.inverse(y)))
    assert compiled(layer)[0].refused == "no compiler"


def test_few_draws_compile_nothing(monkeypatch):
    monkeypatch.setattr(recurrences, "PAYS", 21)
    layer, y = sequence(), torch.randn(5, 14, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(4):
            assert compiled(layer) == [] or compiled(layer)[0]._code is None
            layer.inverse(y)
    assert compiled(layer)[0]._code is not None


def test_a_recurrence_knows_nothing_of_what_is_given_later():
    """A running sum, by hand."""
    owner = torch.nn.Linear(1, 1, bias=False).double()
    total = Recurrence(
        owner,
        "total",
        lambda: [owner.weight[0]],
        lambda rows: [torch.zeros_like(rows)],
        lambda prepared, state, given: ([state[0] + prepared[0] * given[0]], [state[0]]),
        is_steady=True,
    )
    x = torch.randn(4, 6, 1, dtype=torch.float64)
    code = CompiledRecurrence()
    with torch.no_grad():
        for _ in range(2):
            (before,) = code.run(total, [x])
            torch.testing.assert_close(before, owner.weight * (x.cumsum(-2) - x))


def test_code_goes_with_its_flow():
    flow = FlowDistribution(flows.wavenet(9, 1, 6, (1, 2), inverted=True))
    for _ in range(2):
        flow.sample((3,))
    (net,) = [module for module in flow.layer.modules() if isinstance(module, CausalConvNet)]
    gone = weakref.ref(net)
    del net, flow
    gc.collect()
    assert gone() is None
