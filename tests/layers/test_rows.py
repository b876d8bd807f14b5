"""Layers over all rows of plates, restricted to chosen rows: the same map, looked up by number."""

import pytest
import torch

from pyro_nflows import flows
from pyro_nflows.flows.whitened import Whitened
from pyro_nflows.layers import PlateAffine, Rescaled
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.model.rows import Rows
from pyro_nflows.nets.views import on_rows
from pyro_nflows.transformers import RationalQuadratic

SITES = {
    "inner": Outline((4, 3, 2), {"schools": 0, "classes": 1}, ("schools", "classes")),
    "mu": Outline((2,), {}),
    "outer": Outline((4, 1), {"schools": 0}, ("schools",)),
}
CHOSEN = {"schools": torch.tensor([2, 0]), "classes": torch.tensor([1])}
WHOLE = Hierarchy.of_outlines(SITES)


@pytest.fixture(params=[flows.on_plates, lambda h: flows.on_plates(h, transformer=RationalQuadratic())])
def layer(request):
    torch.manual_seed(0)
    made = Rescaled(Whitened(request.param(WHOLE), PlateAffine(WHOLE)).double(), Whitened.END)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def base_columns(rows):
    """Where the base of all rows holds that of the chosen ones."""
    parts, start = [torch.arange(len(WHOLE.top))], len(WHOLE.top)
    for block, numbers in zip(WHOLE.blocks, rows.numbers):
        parts.append((start + torch.arange(block.columns.numel()).view(block.columns.shape)[numbers]).flatten())
        start += block.columns.numel()
    return torch.cat(parts)


def test_all_rows_are_the_layer_itself(layer):
    x = torch.randn(5, WHOLE.dim, dtype=torch.float64)
    view = on_rows(layer, Rows.of(WHOLE, {}))
    for ours, expected in zip(view(x), layer(x)):
        assert torch.allclose(ours, expected)


def test_chosen_rows_are_those_of_all(layer):
    x, rows = torch.randn(5, WHOLE.dim, dtype=torch.float64), Rows.of(WHOLE, CHOSEN)
    view, at = on_rows(layer, rows), base_columns(rows)
    y, log_weight = view(x[:, at])
    assert torch.allclose(y, layer(x)[0][:, rows.columns])
    back, same = view.inverse(y)
    assert torch.allclose(back, x[:, at])
    assert torch.allclose(same, log_weight)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: view(x)[0]))(x[:, at])
    assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, log_weight)


def test_what_is_outside_of_plates_is_a_layer_by_itself(layer):
    x = torch.randn(5, WHOLE.dim, dtype=torch.float64)
    top = on_rows(layer, Rows.none(WHOLE))
    assert torch.allclose(top(x[:, :2])[0], layer(x)[0][:, WHOLE.top])


def test_gradients_reach_the_chosen_rows_alone_and_are_those_of_the_layer(layer):
    x, rows = torch.randn(5, WHOLE.dim, dtype=torch.float64), Rows.of(WHOLE, CHOSEN)
    names = [name for name, _ in layer.named_parameters()]

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()), allow_unused=True)

    few = gradients(on_rows(layer, rows)(x[:, base_columns(rows)])[0])
    many = gradients(layer(x)[0][:, rows.columns])
    tables = 0
    for name, one, other in zip(names, few, many):
        assert torch.allclose(one, other), name
        if "bias.0" in name:
            tables += 1
            assert one[[1, 3]].abs().max() == 0 < one[[0, 2]].abs().max()
    assert tables == 2


def test_rows_one_block_after_the_other_are_the_layer(layer):
    x = torch.randn(5, WHOLE.dim, dtype=torch.float64)
    plain = layer.plain()
    row_layers = [*list(plain.flow)[1:], plain.end]
    blocks, (y, log_weight) = WHOLE.split(x)[1:], layer(x)
    white, total = plain.end.white_top(y[:, WHOLE.top]), plain.flow[0](x)[1] + plain.end.log_scale[WHOLE.top].sum()
    assert torch.allclose(white, plain.flow[0](x)[0][:, :2])
    stages = [[white] for _ in range(len(row_layers) + 1)]
    for number, (block, base) in enumerate(zip(WHOLE.blocks, blocks)):
        stages[0].append(base)
        for part, before, after in zip(row_layers, stages, stages[1:]):
            moved, step = part.rows(number, before[-1], before, after)
            back, same = part.rows_back(number, moved, before[:-1], after)
            assert torch.allclose(back, before[-1])
            assert torch.allclose(step, same)
            after.append(moved)
            total = total + step.sum(-1)
        assert torch.allclose(stages[-1][-1], y[:, block.columns])
    assert torch.allclose(total, log_weight)
