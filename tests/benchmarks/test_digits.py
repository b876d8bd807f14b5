"""The digits' benchmark: its unit, a density from every method, equal sizes, starts and a difference of a pair."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from benchmarks import digits, image_flows
from benchmarks.images import SIZES, Digits, Images, bits_per_dimension, dequantised, load
from pyro_nflows.flows import num_params
from pyro_nflows.layers import Residual


@pytest.fixture(scope="module")
def images() -> Digits:
    """Random levels in the place of digits, a shape with one bright half."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(17, (160, 64), generator=generator).to(torch.get_default_dtype())
    levels[:, :32] *= torch.linspace(0.1, 1.0, 32)
    classes = one_hot(torch.randint(10, (160,), generator=generator), 10).to(levels)
    every = Images(levels.floor(), classes)
    return Digits(*(every.rows(part) for part in (slice(100), slice(100, 130), slice(130, None))))


def test_a_fair_coin_for_each_level_needs_as_many_bits_as_there_are() -> None:
    uniform = torch.full((3,), -64 * math.log(17))
    assert torch.allclose(bits_per_dimension(uniform), torch.tensor(math.log2(17)))


def test_each_seed_tests_images_of_its_own_and_uses_all() -> None:
    pytest.importorskip("sklearn")
    splits = [load(seed) for seed in range(6)]
    assert all(tuple(len(part.levels) for part in (s.train, s.valid, s.test)) == SIZES for s in splits)
    every = torch.cat([part.levels for part in (splits[0].train, splits[0].valid, splits[0].test)]).unique(dim=0)
    assert len(every) == sum(SIZES)  # no two images are the same
    tested = torch.cat([split.test.levels for split in splits])
    assert len(tested.unique(dim=0)) == len(tested) == 6 * SIZES[-1]
    for split in splits:
        assert len(torch.cat([split.train.levels, split.valid.levels, split.test.levels]).unique(dim=0)) == sum(SIZES)


@pytest.mark.parametrize("method", digits.METHODS)
def test_every_method_makes_a_density(method: str, images: Digits) -> None:
    row, bits = digits.run(method, images, seed=0, steps=2)
    assert row.method == method
    assert row.params > 0
    assert bits.shape == (30,)
    assert row.bits == pytest.approx(bits.mean().item())
    assert 2 < row.bits < 100


def test_a_gaussian_for_each_pixel_has_its_entropy(images: Digits) -> None:
    log_density, _ = digits.diagonal_gaussian(images, 0)
    x = dequantised(images.train, 20)
    entropy = (x.levels.std(0).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
    assert log_density(x).mean().item() == pytest.approx(-entropy.item(), abs=0.1)


def test_the_indexed_flow_has_no_more_parameters_and_layers_than_its_baseline() -> None:
    indexed, baseline = image_flows.indexed_residual(), image_flows.residual()
    assert num_params(indexed) <= num_params(baseline) <= 1.01 * num_params(indexed)
    layers = [sum(isinstance(part, Residual) for part in flow.modules()) for flow in (indexed, baseline)]
    assert 1 <= layers[0] <= layers[1]


def test_a_conditional_glow_looks_at_the_class_and_a_glow_does_not(images: Digits) -> None:
    x = dequantised(images.train)
    other = Images(x.levels, x.classes.roll(1, -1))
    for make, told in ((image_flows.glow, False), (image_flows.conditional_glow, True)):
        flow = image_flows.from_data(make)(x)
        image_flows.maximised(flow, images, 3, 1e-2, 50)
        first, second = (image_flows.log_density(flow, y) for y in (x, other))
        assert torch.allclose(first, second) is not told


def test_the_start_is_the_one_that_is_better_on_validation_images(images: Digits) -> None:
    def start(scale: float, x: Images) -> image_flows.Layer:
        end = image_flows.ActNorm(64)
        end.initialize(scale * x.levels)
        return end

    good, bad = (lambda x, scale=scale: start(scale, x) for scale in (1.0, 30.0))
    for starts in ([good, bad], [bad, good]):
        log_density, _ = image_flows.chosen(starts, images, 2, rate=1e-6)
        assert bits_per_dimension(log_density(dequantised(images.test))).mean() < 5


def test_a_difference_is_in_bits_and_in_nats_of_an_image() -> None:
    bits = {"ResFlow": [torch.full((9,), 2.5)] * 3, "CIF-ResFlow": [torch.full((9,), 2.25)] * 3}
    text = digits.compare(bits)
    assert "-0.2500 +- 0.0000 bits" in text
    assert f"{0.25 * 64 * math.log(2):+.2f} +- 0.00 nats" in text
    assert text.endswith("better: CIF-ResFlow")
