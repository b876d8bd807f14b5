"""Weights of what is outside of a subsampled plate: rules over rows' base points, and rows that integrate out."""

import math

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine import Engine
from pyro_nflows.engine.row_ratios import RowRatios
from pyro_nflows.inference.collapsed import collapser_of
from pyro_nflows.inference.row_rules import RowRules
from pyro_nflows.inference.row_starts import place_rows
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.model.rows import Rows

from .test_minibatches import data, made, nudged


def rules_of(num_rows: int, dim: int) -> RowRules:
    return RowRules(Hierarchy.of_outlines({"z": Outline((num_rows, dim), {"groups": 0})}), "groups")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_a_rule_is_exact_for_polynomials_of_degree_three(dim):
    rules, square = rules_of(7, dim), torch.randn(dim, dim)
    slope, cubic = torch.randn(dim), torch.randn(dim)
    points, stretch = rules.draw(3)
    x = points.unflatten(-1, (7, dim))
    values = 1000 + x @ slope + (x @ square * x).sum(-1) + (x @ cubic) ** 3
    single, mean = rules.integrals(values.log(), stretch)
    expected = 1000 + square.trace()
    assert torch.allclose(single.exp(), expected.expand(3, 7))
    assert torch.allclose(mean.exp(), expected.expand(7))


@pytest.mark.parametrize("dim", [1, 3, 6])
def test_the_mean_over_rules_is_the_integral(dim):
    rules, slope = rules_of(20_000, dim), torch.full((dim,), 0.7 / dim**0.5)
    points, stretch = rules.draw(1)
    found = rules.integrals(points.unflatten(-1, (-1, dim)) @ slope, stretch)[1].exp()
    assert abs(found.mean() - math.exp(0.5 * 0.7**2)) < 5 * found.std() / len(found) ** 0.5


def test_rows_of_several_blocks_have_their_points_side_by_side():
    outlines = {"a": Outline((3,), {"groups": 0}), "b": Outline((3, 2), {"groups": 0, "within": 1})}
    hierarchy = Hierarchy.of_outlines(outlines)
    rules = RowRules(hierarchy, "groups")
    assert rules.places.shape == (3, 3)
    points, _ = rules.draw(2)
    assert not points[0].any()
    assert torch.allclose(points.sum(0), torch.zeros(()))
    radius = points[1:, rules.places].norm(dim=-1)  # one for all directions of a rule
    assert torch.allclose(radius[:3], radius[:1].expand(3, 3))


def log_marginal(g: Tensor, y: Tensor) -> Tensor:
    """Of mu and log tau, the rows integrated out."""
    mu, t = g[:, :1], g[:, 1:]
    variance, mean = (2 * t).exp() + 0.1, y.mean(0)
    found = -0.5 * (variance.log() + (mean - mu) ** 2 / variance).sum(-1)
    constant = -0.5 * (y - mean).square().sum() - 0.5 * y.shape[1] * (10 * math.log(2 * math.pi) + math.log(10))
    return found + constant - 0.5 * ((mu / 5) ** 2 + t**2).sum(-1) - math.log(2 * math.pi) - math.log(5)


def test_weights_are_those_with_the_rows_integrated_out():
    """With a guide whose rows are off in location, scale and shape, by parts of their widths."""
    y = data().double()
    guide, terms = made(y)
    layer = guide.plain_layer().double()
    with torch.no_grad():
        layer.end.loc[:2] = torch.tensor([1.0, -0.36])
        layer.end.log_scale[:2] = math.log(0.07)
        place_rows(layer.end, terms, lambda numbers: Rows.of(guide.hierarchy, {"groups": numbers}))
        for parameter in layer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    collapser = collapser_of(layer, terms)
    found = collapser.weigh(60, seed=1)
    numbers = torch.arange(terms.size)
    inner = torch.zeros(60, terms.hierarchy.dim - 2)
    drawn = collapser.ratios(numbers, found.base, inner)
    top = drawn.z[:, :2]
    prior = -0.5 * ((top[:, 0] / 5) ** 2 + top[:, 1] ** 2) - math.log(2 * math.pi) - math.log(5)
    log_q = prior - drawn.outside
    away = found.log_weight - (log_marginal(top, y) - log_q)
    assert found.uneven < 0.07
    assert away.std() < 5 * 0.05
    assert abs(away.mean()) < 0.1


@pytest.mark.parametrize("engine", [Engine.TRACED, Engine.COMPILED])
def test_engines_give_the_same_ratios_on_any_rows(engine):
    guide, terms = made(data())
    layer = nudged(guide).float()
    rows = lambda numbers: Rows.of(guide.hierarchy, {"groups": numbers})  # noqa: E731
    known, fast = RowRatios(layer, terms, rows), RowRatios(layer, terms, rows, engine)
    fast.expect(1)
    assert fast.engine is engine, fast.note
    numbers = torch.randperm(terms.num_rows)[: terms.size]
    base, inner = torch.randn(5, 2).float(), torch.randn(5, terms.size).float()
    with torch.no_grad():
        layer.end.loc += 0.1  # after the recording
    for found, right in zip(fast(numbers, base, inner), known(numbers, base, inner)):
        assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)
