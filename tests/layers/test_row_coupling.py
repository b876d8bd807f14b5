"""Couplings within rows: what one row reads, and what no row does."""

import pytest
import torch

from pyro_nflows.layers import RowCoupling
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.transformers import SinhArcsinh

PLATES = {"feature": 0}
PAIRS = Hierarchy.of_outlines({"tau": Outline((), {}), "a": Outline((3,), PLATES), "b": Outline((3,), PLATES)})
#: More coordinates outside of plates than a row reads one by one.
MANY = Hierarchy.of_outlines({"tau": Outline((20,), {}), "z": Outline((3, 2), PLATES)})


def random(hierarchy, **options):
    torch.manual_seed(0)
    layer = RowCoupling(hierarchy, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer, torch.randn(hierarchy.dim, dtype=torch.float64)


@pytest.mark.parametrize(("flip", "moves"), [(False, 1), (True, 0)])
def test_a_coordinate_depends_on_its_own_row_and_on_what_is_outside_alone(flip, moves):
    layer, x = random(PAIRS, flip=flip)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x) != 0
    expected = torch.eye(7, dtype=torch.bool)
    for row in range(3):
        first = 1 + 2 * row
        expected[first + moves, [0, first, first + 1]] = True
    assert torch.equal(jacobian, expected)


@pytest.mark.parametrize("options", [{}, {"flip": True, "transformer": SinhArcsinh()}])
def test_features_of_many_coordinates_outside_of_plates_are_a_bijection_too(options):
    layer, x = random(MANY, **options)
    y, log_weight = layer(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
    assert log_weight.item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-10)
    back, same = layer.inverse(y)
    assert torch.allclose(back, x)
    assert same.item() == pytest.approx(log_weight.item(), abs=1e-10)
    score = torch.randn_like(x)
    expected = torch.linalg.solve(jacobian.mT, score - torch.func.grad(lambda x: layer(x)[1])(x))
    assert torch.allclose(layer.transport(x, y, score), expected)


def test_rows_of_one_coordinate_stay_as_they_are():
    layer = RowCoupling(Hierarchy.of_outlines({"tau": Outline((), {}), "z": Outline((3,), PLATES)}))
    x = torch.randn(5, 4)
    assert list(layer.parameters()) == []
    assert torch.equal(layer(x)[0], x)


def test_a_width_that_another_coordinate_of_the_row_sets_is_learned():
    """Each row's second coordinate is normal with a standard deviation of 1 / (1 + exp(first)): a funnel a row."""
    torch.manual_seed(0)
    layer = RowCoupling(PAIRS).double()
    first = torch.randn(2000, 3, dtype=torch.float64)
    second = torch.randn(2000, 3, dtype=torch.float64) / (1 + first.exp())
    y = PAIRS.join([torch.zeros(2000, 1, dtype=torch.float64), torch.stack([first, second], -1)])
    optimiser = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(150):
        x, log_weight = layer.inverse(y)
        loss = (0.5 * x.square().sum(-1) + log_weight).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    best = (0.5 * (first.square() + ((1 + first.exp()) * second).square()) - (1 + first.exp()).log()).sum(-1).mean()
    assert loss.item() - best.item() < 0.02
