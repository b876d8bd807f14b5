"""Other people's transforms as layers, and layers as transforms."""

import copy
import pickle

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from torch.distributions import transforms as torch_transforms

from pyro_nflows import FlowDistribution, flows
from pyro_nflows.flows.transforms import LayerTransform, TransformLayer, as_layer, as_transform
from pyro_nflows.layers import Coupling, Indexed, LocScale, Planar, TriangularAffine
from pyro_nflows.layers.base import Chain, Inverse
from pyro_nflows.testing import (
    check_copies,
    check_forward_is_pure,
    check_log_weight_is_slogdet,
    check_path_gradient,
    check_rows_are_independent,
    check_unit_evidence,
    perturbed,
)

PYRO = {
    "planar": lambda: pyro_transforms.planar(3),
    "radial": lambda: pyro_transforms.radial(3),
    "affine coupling": lambda: pyro_transforms.affine_coupling(3),
    "affine autoregressive": lambda: pyro_transforms.affine_autoregressive(3),
    "spline": lambda: pyro_transforms.spline(3),
    "spline coupling": lambda: pyro_transforms.spline_coupling(3),
    "Householder": lambda: pyro_transforms.householder(3),
    "matrix exponential": lambda: pyro_transforms.matrix_exponential(3),
    "Sylvester": lambda: pyro_transforms.sylvester(3),
    "polynomial": lambda: pyro_transforms.polynomial(3),
    "block autoregressive": lambda: pyro_transforms.block_autoregressive(3),
    "permute": lambda: pyro_transforms.permute(3, torch.tensor([2, 0, 1])),
}
INEXACT = ["matrix exponential", "polynomial", "Sylvester"]
WITHOUT_INVERSE = ["planar", "radial", "Sylvester", "polynomial", "block autoregressive"]


def in_a_chain(make):
    return lambda: Chain(Planar(3), as_layer(make(), 3), LocScale(3))


@pytest.mark.parametrize("name", PYRO)
@pytest.mark.parametrize("law", [check_forward_is_pure, check_log_weight_is_slogdet, check_path_gradient, check_copies])
def test_pyros_transforms_in_a_chain_obey(name, law):
    if law is check_log_weight_is_slogdet and name in INEXACT:
        pytest.skip("Pyro's log-determinant is not exact")
    law(in_a_chain(PYRO[name]))


@pytest.mark.parametrize("name", PYRO)
def test_a_layer_gives_what_the_transform_gives(name):
    transform = PYRO[name]()
    x = torch.randn(5, 3)
    y, log_weight = TransformLayer(transform, 3)(x)
    expected = transform(x)
    assert torch.allclose(y, expected)
    log_det = transform.log_abs_det_jacobian(x, expected)
    assert log_weight.shape == (5,)
    assert torch.allclose(log_weight, log_det.sum(-1) if log_det.dim() > 1 else log_det)


@pytest.mark.parametrize("name", PYRO)
def test_an_inverse_undoes_forward_or_is_refused(name):
    layer = TransformLayer(PYRO[name](), 3)
    x = torch.randn(5, 3)
    y, log_weight = layer(x)
    if name in WITHOUT_INVERSE:
        with pytest.raises(NotImplementedError, match="cannot invert a point that it has not just produced"):
            layer.inverse(y.clone())
    else:
        again, same = layer.inverse(y.clone())
        assert torch.allclose(again, x, atol=1e-6)
        assert torch.allclose(same, log_weight, atol=1e-6)


def test_the_parameters_of_a_transform_train():
    transform = pyro_transforms.affine_coupling(3)
    layer = Chain(Planar(3), TransformLayer(transform, 3))
    assert set(transform.parameters()) < set(layer.parameters())


def test_wrapping_leaves_the_transforms_cache_alone():
    transform = pyro_transforms.spline_coupling(3)
    TransformLayer(transform, 3)(torch.randn(5, 3))
    assert transform._cached_x_y == (None, None)
    copy.deepcopy(transform)


ELEMENT_WISE = {
    "exp": (torch_transforms.ExpTransform(), lambda x: x),
    "tanh": (torch_transforms.TanhTransform(cache_size=1), lambda x: (1 - x.tanh() ** 2).log()),
    "affine": (torch_transforms.AffineTransform(1.0, -3.0), lambda x: torch.full_like(x, 3.0).log()),
    "sigmoid": (torch_transforms.SigmoidTransform(), lambda x: (x.sigmoid() * (1 - x.sigmoid())).log()),
}


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_the_log_determinants_of_element_wise_transforms_add(name):
    transform, log_slope = ELEMENT_WISE[name]
    x = torch.randn(5, 2)
    layer = TransformLayer(transform, 2)
    y, log_weight = layer(x)
    assert torch.allclose(y, transform(x))
    assert torch.allclose(log_weight, log_slope(x).sum(-1))
    check_path_gradient(layer)
    check_rows_are_independent(layer)


def test_a_composition_becomes_a_chain_whose_parameters_train():
    parts = [pyro_transforms.planar(3), torch_transforms.AffineTransform(1.0, 2.0), pyro_transforms.affine_coupling(3)]
    x = torch.randn(5, 3)
    for compose in (torch_transforms.ComposeTransform, pyro_transforms.ComposeTransformModule):
        transform = compose(parts)
        layer = as_layer(transform, 3)
        assert isinstance(layer, Chain)
        assert len(layer) == 3
        assert set(parts[0].parameters()) | set(parts[2].parameters()) == set(layer.parameters())
        y, log_weight = layer(x)
        expected = transform(x)
        assert torch.allclose(y, expected)
        assert torch.allclose(log_weight, transform.log_abs_det_jacobian(x, expected))


def test_the_inverse_of_a_transform_becomes_an_inverse_that_can_be_copied():
    transform = pyro_transforms.affine_autoregressive(3)
    layer = as_layer(transform.inv, 3)
    assert isinstance(layer, Inverse)
    assert set(transform.parameters()) == set(layer.parameters())
    x = torch.randn(5, 3)
    y, log_weight = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x)[0], y)
    assert torch.allclose(transform(y), x)
    assert torch.allclose(log_weight, -transform.log_abs_det_jacobian(y, x))


def test_an_independent_transform_becomes_an_element_wise_layer():
    transform = torch_transforms.IndependentTransform(torch_transforms.ExpTransform(), 1)
    x = torch.randn(5, 3)
    y, log_weight = as_layer(transform, 3)(x)
    assert torch.equal(y, x.exp())
    assert torch.allclose(log_weight, transform.log_abs_det_jacobian(x, y))


def test_a_transform_may_change_the_dimension():
    layer = as_layer(torch_transforms.StickBreakingTransform(), 3)
    assert (layer.input_dim, layer.output_dim) == (3, 4)
    y, _ = layer(torch.randn(5, 3))
    assert torch.allclose(y.sum(-1), torch.ones(5))
    with pytest.raises(NotImplementedError, match="no path gradient"):
        layer.transport(torch.randn(5, 3), y, torch.randn(5, 3))


def test_a_transform_inside_an_indexed_layer_weighs_right():
    check_unit_evidence(lambda: Indexed(as_layer(pyro_transforms.affine_coupling(2), 2)))


# ---- layers as transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Planar(2), lambda: flows.iaf(2, 2), lambda: flows.spline(2, 2)])
def test_a_transformed_distribution_is_the_flow(make):
    layer = perturbed(make)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    transformed, flow = dist.TransformedDistribution(base, [LayerTransform(layer)]), FlowDistribution(layer)
    assert (transformed.batch_shape, transformed.event_shape) == (flow.batch_shape, flow.event_shape)
    y = transformed.rsample((20,))
    assert torch.allclose(transformed.log_prob(y), flow.log_prob(y), atol=1e-7)
    assert transformed.expand([3]).rsample((20,)).shape == (20, 3, 2)


def test_a_layer_composes_with_other_transforms():
    layer = perturbed(lambda: Coupling(2))
    for cache_size in (0, 1):
        transform = torch_transforms.ComposeTransform(
            [LayerTransform(layer), torch_transforms.ExpTransform(), torch_transforms.AffineTransform(1.0, 2.0)],
            cache_size=cache_size,
        )
        x = torch.randn(5, 2)
        y = transform(x)
        jacobian = torch.func.vmap(torch.func.jacrev(transform))(x)
        assert torch.allclose(transform.inv(y.clone()), x)
        assert torch.allclose(transform.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian).logabsdet)


def test_a_transform_of_a_layer_is_never_stale():
    layer = perturbed(lambda: Planar(2))
    transform, x = LayerTransform(layer), torch.randn(5, 2)
    transform(x)
    with torch.no_grad():
        layer.u += 1.0
    assert torch.equal(transform(x), layer(x)[0])
    assert torch.equal(transform.log_abs_det_jacobian(x, transform(x)), layer(x)[1])


def test_there_and_back_unwraps():
    layer, transform = Planar(2), pyro_transforms.planar(2)
    assert as_layer(layer, 2) is layer
    assert as_layer(as_transform(layer), 2) is layer
    assert as_transform(as_layer(transform, 2)) is transform


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_a_layer_with_auxiliary_variables_has_no_transform():
    with pytest.raises(
        NotImplementedError, match=r"Indexed is not a bijection of x alone .* use a guide of exact layers"
    ):
        as_transform(Indexed(TriangularAffine(2)))


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (torch_transforms.AbsTransform(), ValueError, "expected a bijective transform"),
        (torch_transforms.LowerCholeskyTransform(), ValueError, "expected a bijective transform"),
        (torch.nn.Linear(2, 2), TypeError, "expected a pyro_nflows Layer or a torch Transform, got Linear"),
        (torch.exp, TypeError, "expected a pyro_nflows Layer or a torch Transform"),
    ],
)
def test_what_is_no_bijection_is_refused(transform, error, message):
    with pytest.raises(error, match=message):
        as_layer(transform, 2)


class Unsummed(torch_transforms.ExpTransform):
    """A user's transform of vectors that forgets to sum over them."""

    domain = codomain = torch.distributions.constraints.real_vector


def test_a_transform_of_another_dimension_or_with_slopes_unsummed_is_told():
    with pytest.raises(
        ValueError, match=r"TransformLayer: Planar cannot take a point of 3 dimensions \(.*\); give as_l"
    ):
        as_layer(pyro_transforms.planar(2), 3)(torch.ones(5, 3))
    with pytest.raises(
        ValueError, match=r"TransformLayer.forward: expected .* got \(5, 3\) and \(5, 3\); log_weight is"
    ):
        as_layer(Unsummed(), 3)(torch.ones(5, 3))


def test_a_composition_is_not_wrapped_whole():
    transform = torch_transforms.ComposeTransform([pyro_transforms.planar(2)])
    with pytest.raises(ValueError, match=r"made of other transforms.*use as_layer\(transform, 2\)"):
        TransformLayer(transform, 2)
