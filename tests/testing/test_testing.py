"""A law can fail: for each there are layers that break it, and it says so."""

import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_nflows.layers import Coupling, Indexed, LocScale, Planar
from pyro_nflows.layers.base import Chain, Exactness, Layer, Scored
from pyro_nflows.model.centering import KINDS, Centering, Prior
from pyro_nflows.numerics import normal_log_prob, standard_normal_log_prob
from pyro_nflows.testing import (
    LAWS,
    LawError,
    check_coordinates,
    check_copies,
    check_dtypes,
    check_forward_is_pure,
    check_functional_transforms,
    check_gradients_reach_every_parameter,
    check_identity_at_initialisation,
    check_inverse_undoes_forward,
    check_layer,
    check_log_weight_is_slogdet,
    check_mean_log_weight,
    check_path_gradient,
    check_repr,
    check_rows_are_independent,
    check_shapes,
    check_unit_evidence,
    laws_of,
    perturbed,
)

# ---- right, in ways that no layer of the package is -------------------------------------------------------------


class Hutchinson(Layer):
    """``y = exp(A) x``, with an unbiased estimate of ``trace(A)``."""

    exactness = Exactness.UNBIASED

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.noise_dim = self.inverse_noise_dim = input_dim
        self.matrix = nn.Parameter(torch.zeros(input_dim, input_dim))

    def trace(self, noise: Tensor) -> Tensor:
        return (noise @ self.matrix * noise).sum(-1)

    def forward(self, x, noise=None):
        return x @ self.matrix.matrix_exp(), self.trace(noise)

    def inverse(self, y, noise=None):
        return y @ (-self.matrix).matrix_exp(), self.trace(noise)


class Pad(Layer):
    """One more coordinate, drawn from a normal: random forwards only."""

    noise_dim = 1

    def __init__(self, input_dim: int):
        super().__init__(input_dim, input_dim + 1)
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, x, noise=None):
        return torch.cat([x, self.log_scale.exp() * noise], -1), self.log_scale.sum() - standard_normal_log_prob(noise)

    def inverse(self, y, noise=None):
        return y[..., :-1], -normal_log_prob(y[..., -1:], torch.zeros_like(self.log_scale), self.log_scale)


class Drop(Layer):
    """One coordinate less, whose distribution given the others is learned: random backwards only."""

    inverse_noise_dim = 1
    exactness = Exactness.PROPER

    def __init__(self, input_dim: int):
        super().__init__(input_dim, input_dim - 1)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, noise=None):
        return x[..., :-1], normal_log_prob(x[..., -1:], self.loc, self.log_scale)

    def inverse(self, y, noise=None):
        last = self.loc + self.log_scale.exp() * noise
        return torch.cat([y, last], -1), normal_log_prob(last, self.loc, self.log_scale)


@pytest.mark.parametrize(
    "make",
    [lambda: Hutchinson(3), lambda: Pad(2), lambda: Drop(3), lambda: Chain(Pad(2), Drop(3)), Planar(2)],
    ids=["Hutchinson", "Pad", "Drop", "Chain", "a layer, not a maker"],
)
def test_a_layer_that_is_right_passes(make):
    square = not isinstance(make, Layer) and make().input_dim == make().output_dim
    check_layer(make, starts_at_identity=square and make().exactness is not Exactness.PROPER)


# ---- wrong ------------------------------------------------------------------------------------------------------


class WrongShape(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y, log_weight[..., None]


class SharedShape(LocScale):
    """Does not give a log-weight to each row."""

    def forward(self, x, noise=None):
        return super().forward(x)[0], self.log_scale.sum()


class Standardise(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y - y.mean(0), log_weight


class DrawsInForward(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y + 0 * torch.randn_like(y), log_weight


class Counter(LocScale):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, noise=None):
        self.calls += 1
        return super().forward(x)


class CachesByPoint(LocScale):
    last: Any = (None, None)

    def forward(self, x, noise=None):
        if self.last[0] is not x:
            self.last = x, super().forward(x)
        return self.last[1]


class CachesScale(LocScale):
    scale = None

    def forward(self, x, noise=None):
        if self.scale is None:
            self.scale = self.log_scale.detach().exp().clone()
        return self.loc + self.scale * x, self.log_scale.sum().expand(x.shape[:-1])


class Unused(LocScale):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.unused = nn.Parameter(torch.zeros(3))


class Muted(LocScale):
    def forward(self, x, noise=None):
        return 0 * self.loc + self.log_scale.exp() * x, self.log_scale.sum().expand(x.shape[:-1])


class InfiniteGradient(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y, log_weight + (0 * self.loc).sqrt().sum()


class BranchesOnValue(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return (y, log_weight) if x.sum() > 0 else (y * 1.0, log_weight)


class ReadsANumber(LocScale):
    """Correct, but a traced graph would keep today's number."""

    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y + float(self.loc.detach()[0]) - self.loc[0], log_weight


class SinglePrecision(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y, log_weight.float()


class DoublePrecision(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y + torch.zeros(self.input_dim, dtype=torch.float64), log_weight


class Unsaved(Layer):
    """A random order that ``state_dict`` does not hold."""

    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.sign = torch.randn(input_dim).sign()

    def forward(self, x, noise=None):
        return x * self.sign, x.new_zeros(x.shape[:-1])


class HoldsLambda(LocScale):
    def __init__(self, input_dim: int):
        super().__init__(input_dim)
        self.function = lambda x: x


class KeepsGraph(LocScale):
    """Cannot be copied once used."""

    def forward(self, x, noise=None):
        self.latest = super().forward(x)
        return self.latest


class ShowsAddress(LocScale):
    def extra_repr(self) -> str:
        return repr(object())


class Nameless(LocScale):
    def __repr__(self) -> str:
        return "layer"


class WrongLogDet(LocScale):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x)
        return y, log_weight + 1e-4 * self.loc[0]


class InverseOff(LocScale):
    def inverse(self, y, noise=None):
        x, log_weight = super().inverse(y)
        return x + 1e-3, log_weight


class InverseNegatesWeight(LocScale):
    def inverse(self, y, noise=None):
        x, log_weight = super().inverse(y)
        return x, -log_weight


class InverseWithoutGradient(LocScale):
    def inverse(self, y, noise=None):
        with torch.no_grad():
            return super().inverse(y)


class TransportForgetsWeight(Planar):
    def transport(self, x, y, score, weight=1.0):
        return super().transport(x, y, score, 0.0)


class TransportForgetsJacobian(LocScale):
    def transport(self, x, y, score, weight=1.0):
        return score


class ScoredIsNotForward(LocScale):
    def scored(self, x, noise, score, reverse):
        return super().scored(x, noise, score, reverse)._replace(log_weight=x.sum(-1))


class BiasedTrace(Hutchinson):
    def trace(self, noise):
        return 3.0 * super().trace(noise)


class InverseOfAnotherTrace(Hutchinson):
    def inverse(self, y, noise=None):
        x, log_weight = super().inverse(y, noise)
        return x, 10 * log_weight


class InverseOffWithTrace(Hutchinson):
    def inverse(self, y, noise=None):
        x, log_weight = super().inverse(y, noise)
        return x + 1e-3, log_weight


class ForgetsReverse(Indexed):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x, noise)
        u, x_prime, _ = self._advance(x, noise[..., :1])
        return y, log_weight - normal_log_prob(u, *self._gaussian(self.reverse, x_prime))


class ForgetsIndex(Indexed):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x, noise)
        return y, log_weight + normal_log_prob(noise[..., :1], torch.zeros(1), self._gaussian(self.index, x)[1])


class ForgetsBoth(Indexed):
    def forward(self, x, noise=None):
        y, _ = super().forward(x, noise)
        u, x_prime, _ = self._advance(x, noise[..., :1])
        return y, self.inner(x_prime, noise[..., 1:])[1] + self._affine(u)[1].sum(-1)


class ForgetsStretch(Indexed):
    def forward(self, x, noise=None):
        y, log_weight = super().forward(x, noise)
        u, _, _ = self._advance(x, noise[..., :1])
        return y, log_weight - self._affine(u)[1].sum(-1)


class InverseForgetsStretch(Indexed):
    def inverse(self, y, noise=None):
        x, log_weight = super().inverse(y, noise)
        x_prime, _ = self.inner.inverse(y, noise[..., 1:])
        loc, log_scale = self._gaussian(self.reverse, x_prime)
        return x, log_weight - self._affine(loc + log_scale.exp() * noise[..., :1])[1].sum(-1)


class InverseDrawsFromPrior(Indexed):
    """Draws ``u`` from a standard normal but weighs it as if from ``r``."""

    def inverse(self, y, noise=None):
        x_prime, inner = self.inner.inverse(y, noise[..., 1:])
        u = noise[..., :1]
        x, log_weight = self._retreat(x_prime, u)
        return x, inner + log_weight + normal_log_prob(u, *self._gaussian(self.reverse, x_prime))


class Forgets(Indexed):
    """Leaves out one of the things that ``scored`` carries."""

    def __init__(self, inner: Layer, field: str):
        super().__init__(inner)
        self.field = field

    def scored(self, x, noise, score, reverse) -> Scored:
        step = super().scored(x, noise, score, reverse)
        return step._replace(**{self.field: 0 * getattr(step, self.field)})


WRONG: dict[Callable[[Any], None], list[Callable[[], Layer]]] = {
    check_shapes: [lambda: WrongShape(2), lambda: SharedShape(2)],
    check_rows_are_independent: [lambda: Standardise(2)],
    check_forward_is_pure: [
        lambda: DrawsInForward(2),
        lambda: Counter(2),
        lambda: CachesByPoint(2),
        lambda: CachesScale(2),
    ],
    check_gradients_reach_every_parameter: [lambda: Unused(2), lambda: Muted(2), lambda: InfiniteGradient(2)],
    check_identity_at_initialisation: [lambda: LocScale(2, init_scale=2.0), lambda: LocScale(2, init_loc=1e-3)],
    check_functional_transforms: [lambda: BranchesOnValue(2), lambda: ReadsANumber(2)],
    check_dtypes: [lambda: SinglePrecision(2), lambda: DoublePrecision(2)],
    check_copies: [lambda: Unsaved(20), lambda: HoldsLambda(2), lambda: KeepsGraph(2)],
    check_repr: [lambda: ShowsAddress(2), lambda: Nameless(2)],
    check_log_weight_is_slogdet: [lambda: WrongLogDet(2)],
    check_inverse_undoes_forward: [
        lambda: InverseOff(2),
        lambda: InverseNegatesWeight(2),
        lambda: InverseWithoutGradient(2),
        lambda: InverseOfAnotherTrace(2),
        lambda: InverseOffWithTrace(2),
        lambda: InverseForgetsStretch(Coupling(2)),
        lambda: InverseDrawsFromPrior(Coupling(2)),
    ],
    check_unit_evidence: [
        lambda: ForgetsReverse(Coupling(2)),
        lambda: ForgetsIndex(Coupling(2)),
        lambda: ForgetsBoth(LocScale(2)),
        lambda: ForgetsStretch(Coupling(2)),
    ],
    check_mean_log_weight: [lambda: BiasedTrace(2)],
    check_path_gradient: [
        lambda: TransportForgetsWeight(2),
        lambda: TransportForgetsJacobian(2),
        lambda: ScoredIsNotForward(2),
        *(
            lambda field=field: Forgets(Coupling(2), field)
            for field in ("score", "reverse", "index_score", "index_reverse", "log_r")
        ),
    ],
}


@pytest.mark.parametrize(
    ("law", "make"),
    [
        pytest.param(law, make, id=f"{law.__name__}-{type(make()).__name__}-{i}")
        for law, makes in WRONG.items()
        for i, make in enumerate(makes)
    ],
)
def test_a_layer_that_is_wrong_is_caught_by_its_law(law, make):
    assert law in laws_of(make)
    with pytest.raises(LawError, match=f"^{type(make()).__name__} breaks {law.__name__}: "):
        law(make)


def test_every_law_can_fail():
    assert set(WRONG) == set(LAWS)


def test_an_error_says_what_came_and_what_was_expected():
    message = "WrongShape breaks check_shapes: ValueError: WrongShape.forward: expected the pair (y, log_weight), "
    message += "tensors of shapes (6, 2) and (6,), got (6, 2) and (6, 1); log_weight is one number a row"
    with pytest.raises(LawError, match=f"^{re.escape(message)}"):
        check_layer(lambda: WrongShape(2))
    message = "WrongLogDet breaks check_log_weight_is_slogdet: log-weight, against log |det J|: got "
    with pytest.raises(LawError, match=f"^{re.escape(message)}[-.0-9]+, expected [-.0-9]+$"):
        check_log_weight_is_slogdet(lambda: WrongLogDet(2))
    with pytest.raises(LawError, match=r"drew random numbers; declare noise_dim"):
        check_layer(lambda: DrawsInForward(2))


def test_laws_leave_the_callers_random_numbers_alone():
    before = torch.get_rng_state()
    check_unit_evidence(lambda: Planar(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_given_layer_is_not_changed():
    layer = Planar(2)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    check_layer(layer)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    assert not torch.equal(perturbed(layer).w, layer.w)


# ---- coordinates informed by the prior --------------------------------------------------------------------------


def hierarchy(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", 3):
        pyro.sample("z", dist.Normal(scale, scale))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_coordinates_of_a_right_model_pass_in_either_precision() -> None:
    check_coordinates(hierarchy, torch.zeros(3))
    check_coordinates(hierarchy, y=torch.zeros(3, dtype=torch.float32))


@pytest.mark.parametrize(
    ("method", "wrong", "complaint"),
    [
        ("log_abs_det_jacobian", lambda self, x, y: -self._log_factor().expand_as(x), "the log-determinant"),
        ("_inverse", lambda self, y: y, "coordinates there and back"),
    ],
)
def test_wrong_coordinates_are_found(method: str, wrong: Any, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Centering, method, wrong)
    with pytest.raises(LawError, match=complaint):
        check_coordinates(hierarchy, torch.zeros(3))


def test_a_matrix_that_is_not_triangular_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale * torch.tensor([[2.0, 1.0], [1.0, 2.0]])))

    check_coordinates(model)
    monkeypatch.setitem(KINDS, dist.MultivariateNormal, lambda fn: Prior(fn.loc, fn.covariance_matrix, True))
    with pytest.raises(LawError, match="there and back"):
        check_coordinates(model)


def test_a_model_without_a_hierarchy_has_no_coordinates_to_check() -> None:
    with pytest.raises(ValueError, match=r"no latent of the model has a prior .* got latents \['a'\]"):
        check_coordinates(lambda: pyro.sample("a", dist.Normal(0.0, 1.0)))
