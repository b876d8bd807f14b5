"""The digits' benchmark: its unit, and a density from every method."""

import math

import pytest
import torch

from benchmarks import digits


@pytest.fixture(scope="module")
def images() -> digits.Digits:
    """Random levels in the place of digits, a shape with one bright half."""
    levels = torch.randint(17, (160, 64), generator=torch.Generator().manual_seed(0)).to(torch.get_default_dtype())
    levels[:, :32] *= torch.linspace(0.1, 1.0, 32)
    return digits.Digits(levels[:100].floor(), levels[100:130].floor(), levels[130:].floor())


def test_a_fair_coin_for_each_level_needs_as_many_bits_as_there_are() -> None:
    uniform = torch.full((3,), -64 * math.log(17))
    assert torch.allclose(digits.bits_per_dimension(uniform), torch.tensor(math.log2(17)))


@pytest.mark.parametrize("method", digits.METHODS)
def test_every_method_makes_a_density(method: str, images: digits.Digits) -> None:
    row = digits.run(method, images, seed=0, steps=2)
    assert row.method == method
    assert row.params > 0
    assert math.isfinite(row.bits)
    assert row.bits > 2


def test_a_gaussian_for_each_pixel_has_its_entropy(images: digits.Digits) -> None:
    log_density, _ = digits.diagonal_gaussian(images, 0)
    x = digits.dequantised(images.train, 20)
    entropy = (x.std(0).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert log_density(x).mean().item() == pytest.approx(-entropy.item(), abs=0.1)
