"""Operations of Pyro and torch as ``torch.func`` can transform them: no ``.data``, no masked writes, no branches.

Each has the value and the gradient of the original, which it stands for while :func:`transformable` is in force.
"""

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import hmm, projected_normal, stable
from pyro.distributions import stable_log_prob as densities
from pyro.distributions.transforms import normalize
from pyro.infer.reparam import projected_normal as projected_reparam
from pyro.infer.reparam import stable as stable_reparam
from pyro.ops import gaussian, special, tensor_utils
from torch import Tensor
from torch.distributions import lowrank_multivariate_normal
from torch.distributions.utils import broadcast_all

from ..system.shapes import broadcast_shapes


class SafeLog:
    """Pyro's logarithm with bounded slopes, for contractions and HMMs, without an ``autograd.Function``."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """``log(x)``, with slope ``1 / max(x, eps)``."""
        eps = torch.finfo(x.dtype).eps
        small, still = x < eps, x.detach()
        return torch.where(small, still.log() + (x - still) / eps, torch.where(small, 1.0, x).log())


def log_matmul_exp(x: Tensor, y: Tensor) -> Tensor:
    """Pyro's ``(x.exp() @ y.exp()).log()``."""
    least = torch.finfo(x.dtype).min
    x_shift = x.detach().amax(-1, keepdim=True).clamp(min=least)
    y_shift = y.detach().amax(-2, keepdim=True).clamp(min=least)
    product: Tensor = SafeLog.apply((x - x_shift).exp() @ (y - y_shift).exp())
    return product + x_shift + y_shift


def safe_cholesky(x: Tensor) -> Tensor:
    """Pyro's Cholesky factor of a matrix with a relative jitter, which has no gradient."""
    jitter = tensor_utils.CHOLESKY_RELATIVE_JITTER
    if x.shape[-1] == 1:
        return (x.clamp(min=torch.finfo(x.dtype).tiny) if jitter else x).sqrt()
    if jitter:
        largest = x.detach().abs().max(-1).values
        x = x + torch.diag_embed(jitter * torch.finfo(x.dtype).eps * largest)
    return torch.linalg.cholesky(x)


def safe_normalize(x: Tensor, *, p: float = 2) -> Tensor:
    """``x / norm(x)``, and the first unit vector at zero."""
    norm = torch.linalg.norm(x, dim=-1, ord=p, keepdim=True)
    x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
    first = torch.nn.functional.one_hot(torch.zeros((), dtype=torch.long, device=x.device), x.shape[-1])
    return x + first.to(x) * (x == 0).all(-1, keepdim=True).to(x)


def standard_stable_unsafe(alpha: Tensor, beta: Any, V: Tensor, W: Tensor, coords: str) -> Tensor:
    """A stable variable from a uniform angle and an exponential one, away from ``alpha = 1``."""
    eps, half_pi = torch.finfo(V.dtype).eps, math.pi / 2
    inv_alpha = alpha.reciprocal()
    V = V.clamp(min=2 * eps - half_pi, max=half_pi - 2 * eps)
    b = beta * (half_pi * alpha).tan()
    v = b.atan() - half_pi * alpha + alpha * (V + half_pi)
    Z = v.sin() / ((1 + b * b).rsqrt() * V.cos()).pow(inv_alpha)
    Z = Z * ((v - V).cos().clamp(min=eps) / W).pow(inv_alpha - 1)
    Z = torch.where(Z.isnan(), 0.0, Z)
    return Z - b if coords == "S0" else Z


def standard_stable(alpha: Tensor, beta: Tensor, V: Tensor, W: Tensor, coords: str) -> Tensor:
    """The same near ``alpha = 1`` too, by interpolation."""
    near = (alpha.detach() - 1).abs() <= stable.RADIUS
    if _none(near):
        return standard_stable_unsafe(alpha, beta, V, W, coords)
    if coords == "S":
        return torch.where(alpha == 1, 0.0, beta * (math.pi / 2 * alpha).tan()) + standard_stable(
            alpha, beta, V, W, "S0"
        )
    pairs, weights = _around_one(alpha, near, stable.RADIUS)
    beta, V, W = (part.unsqueeze(-1) for part in (beta, V, W))
    return (standard_stable_unsafe(pairs, beta, V, W, coords) * weights).sum(-1)


def safe_shift(alpha: Tensor, skew: Tensor, t_scale: Tensor, skew_abs: Tensor) -> Tensor:
    """Pyro's shift of a skewed stable variable, by interpolation where ``alpha`` is about 1."""
    near = (alpha.detach() - 1).abs() <= SHIFT_RADIUS
    if _none(near):
        return stable_reparam._unsafe_shift(alpha, skew, t_scale)
    pairs, weights = _around_one(alpha, near, SHIFT_RADIUS)
    t_scales = skew_abs.unsqueeze(-1).pow(pairs.reciprocal())
    return (stable_reparam._unsafe_shift(pairs, skew.unsqueeze(-1), t_scales) * weights).sum(-1)


#: Pyro's, which has no name there.
SHIFT_RADIUS = 0.005


def _none(mask: Tensor) -> bool:
    """Whether it is known that no element is true: under ``vmap`` it may depend on the row."""
    try:
        return not bool(mask.any())
    except RuntimeError:
        return False


def _around_one(alpha: Tensor, near: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The points on both sides of 1 and their weights; far from 1, the point itself twice.

    As in Pyro, the points have the slope of ``alpha`` and the weights have none.
    """
    sides = 1 + radius * torch.tensor([-1.0, 1.0]).to(alpha)
    still, close = alpha.detach().unsqueeze(-1), near.unsqueeze(-1)
    points = torch.where(close, sides, still)
    weights = torch.where(close, 1 - (points - still).abs() / (2 * radius), 0.5)
    return alpha.unsqueeze(-1) - still + points, weights


def symmetric_stable(self: Any, msg: Any) -> dict[str, Any]:
    """What ``SymmetricStableReparam`` makes of a site, without an assertion on values."""
    name = msg["name"]
    fn, event_dim = self._unwrap(msg["fn"])
    alpha = fn.stability
    one, half_pi = torch.ones_like(alpha), alpha.new_tensor(math.pi / 2)
    angle = self._wrap(dist.Uniform(-half_pi, half_pi).expand(alpha.shape), event_dim)
    u = pyro.sample(f"{name}_uniform", angle)
    e = pyro.sample(f"{name}_exponential", self._wrap(dist.Exponential(one), event_dim))
    z = stable_reparam._unsafe_standard_stable(alpha / 2, 1, u, e, coords="S")
    scale = fn.scale * (math.pi / 4 * alpha).cos().pow(alpha.reciprocal()) * z.sqrt()
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    normal = self._wrap(dist.Normal(fn.loc, scale * 2**0.5), event_dim)
    return {"fn": normal, "value": msg["value"], "is_observed": msg["is_observed"]}


def stable_log_prob(alpha: Tensor, beta: Tensor, value: Tensor, coords: str) -> Tensor:
    """Pyro's log density of a stable variable."""
    if coords == "S":
        value = torch.where(alpha == 1, value, value - beta * (math.pi / 2 * alpha)).tan()
    tolerance = densities.alpha_near_one_tolerance
    near = (alpha - 1).abs() < tolerance
    above = stable_log_prob_off_one(torch.where(near, 1 + tolerance, alpha), beta, value)
    if _none(near):
        return above
    below = stable_log_prob_off_one(torch.where(near, 1 - tolerance, alpha), beta, value)
    return _between(near, below, above, (alpha - 1) / (2 * tolerance) + 0.5)


def stable_log_prob_off_one(alpha: Tensor, beta: Tensor, Z: Tensor) -> Tensor:
    """The same where ``alpha`` is not about 1; near zero by interpolation."""
    Z = Z + beta * (math.pi / 2 * alpha).tan()
    at_zero = densities._unsafe_alpha_stable_log_prob_at_zero(alpha, 0)
    most = densities.value_near_zero_tolerance_density * at_zero.exp().reciprocal()
    tolerance = (densities.value_near_zero_tolerance_alpha * alpha / (1 - alpha).abs()).clamp(max=most)
    near = Z.abs() < tolerance
    above = densities._unsafe_stable_log_prob(alpha, beta, torch.where(near, tolerance, Z))
    if _none(near):
        return above
    below = densities._unsafe_stable_log_prob(alpha, beta, -tolerance)
    return _between(near, below, above, Z / (2 * tolerance) + 0.5)


def _between(near: Tensor, below: Tensor, above: Tensor, weight: Tensor) -> Tensor:
    """Where ``near``, the log of the mean of two densities; else the one above."""
    weight = torch.where(near, weight, 0.5)
    mean = torch.logaddexp(above + weight.log(), below + (1 - weight).log())
    return torch.where(near, mean, above)


def sine_skewed(self: Any, base_dist: Any, skewness: Tensor, validate_args: bool | None = None) -> None:
    """The constructor of Pyro's ``SineSkewed``, without a warning that depends on values."""
    if base_dist.event_shape != skewness.shape[-1:]:
        raise ValueError(
            f"SineSkewed: skewness must have a last dimension of the base's event, {tuple(base_dist.event_shape)}, "
            f"got shape {tuple(skewness.shape)}"
        )
    batch_shape = broadcast_shapes(base_dist.batch_shape, skewness.shape[:-1])
    self.skewness = skewness.broadcast_to(batch_shape + skewness.shape[-1:])
    self.base_dist = base_dist.expand(batch_shape)
    super(dist.SineSkewed, self).__init__(batch_shape, skewness.shape[-1:], validate_args=validate_args)


def ordered_logistic(self: Any, predictor: Tensor, cutpoints: Tensor, validate_args: bool | None = None) -> None:
    """The constructor of Pyro's ``OrderedLogistic``, its probabilities joined rather than written into zeros."""
    q = torch.sigmoid(cutpoints - predictor.unsqueeze(-1))
    self.predictor = predictor.expand(q.shape[:-1])
    self.cutpoints = cutpoints.expand(q.shape)
    p = torch.cat([q[..., :1], q[..., 1:] - q[..., :-1], 1 - q[..., -1:]], -1)
    super(dist.OrderedLogistic, self).__init__(p, validate_args=validate_args)


def multinomial_log_prob(self: Any, value: Tensor) -> Tensor:
    """The log density of torch's ``Multinomial``, without a masked write."""
    if self._validate_args:
        self._validate_sample(value)
    logits, value = broadcast_all(self.logits, value)
    ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
    logits = torch.where((value == 0) & (logits == -math.inf), 0.0, logits)
    return ways + (logits * value).sum(-1)


def capacitance_tril(W: Tensor, D: Tensor) -> Tensor:
    """torch's Cholesky factor for ``LowRankMultivariateNormal``, the identity added rather than written into a view."""
    K = (W.mT / D.unsqueeze(-2)) @ W
    return torch.linalg.cholesky(K + torch.eye(W.shape[-1]).to(K))


def unvalidated(constructor: Callable[..., None]) -> Callable[..., None]:
    """A constructor that heeds ``validate_args=`` only where torch validates distributions at all.

    A model that asks for it in a distribution has it where it is run first; checks are branches on values, which
    nothing that transforms or records the model could follow.
    """

    @functools.wraps(constructor)
    def made(self: Any, *args: Any, validate_args: bool | None = None, **kwargs: Any) -> None:
        is_checked = torch.distributions.Distribution._validate_args
        constructor(self, *args, validate_args=validate_args if is_checked else None, **kwargs)

    return made


def base_distribution(
    self: Any, batch_shape: Any = torch.Size(), event_shape: Any = torch.Size(), validate_args: bool | None = None
) -> None:
    """torch's constructor of any distribution, which all others call, some by position."""
    BASE(self, batch_shape, event_shape, validate_args=validate_args)


#: torch's own, which heeds ``validate_args=`` only where distributions are validated at all.
BASE = unvalidated(torch.distributions.Distribution.__init__)


class _Patch(NamedTuple):
    owner: Any
    name: str
    new: Callable[..., Any] | type


PATCHES = [
    _Patch(special, "_SafeLog", SafeLog),
    _Patch(hmm, "_logmatmulexp", log_matmul_exp),
    *(_Patch(owner, "safe_cholesky", safe_cholesky) for owner in (tensor_utils, gaussian, hmm)),
    *(
        _Patch(owner, "safe_normalize", safe_normalize)
        for owner in (tensor_utils, projected_normal, normalize, projected_reparam)
    ),
    *(_Patch(owner, "_unsafe_standard_stable", standard_stable_unsafe) for owner in (stable, stable_reparam)),
    *(_Patch(owner, "_standard_stable", standard_stable) for owner in (stable, stable_reparam)),
    _Patch(stable_reparam, "_safe_shift", safe_shift),
    _Patch(stable_reparam.SymmetricStableReparam, "apply", symmetric_stable),
    _Patch(stable, "_stable_log_prob", stable_log_prob),
    _Patch(dist.SineSkewed, "__init__", sine_skewed),
    _Patch(dist.OrderedLogistic, "__init__", ordered_logistic),
    _Patch(lowrank_multivariate_normal, "_batch_capacitance_tril", capacitance_tril),
    _Patch(torch.distributions.Multinomial, "log_prob", multinomial_log_prob),
    _Patch(torch.distributions.Distribution, "__init__", base_distribution),
    _Patch(torch.distributions.ContinuousBernoulli, "__init__", unvalidated(dist.ContinuousBernoulli.__init__)),
]


class _Swap:
    """Puts the operations in place for the first that asks, and back after the last, in whichever threads."""

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0
        self.originals: dict[_Patch, Any] = {}

    def enter(self) -> None:
        with self.lock:
            if self.depth == 0:
                for patch in PATCHES:
                    self._put(patch)
            self.depth += 1

    def _put(self, patch: _Patch) -> None:
        now = vars(patch.owner)[patch.name]
        if now is not patch.new:  # an interrupt may have left it there
            self.originals[patch] = now
            setattr(patch.owner, patch.name, patch.new)

    def leave(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                for patch in PATCHES:
                    setattr(patch.owner, patch.name, self.originals[patch])


_SWAP = _Swap()


@contextlib.contextmanager
def transformable() -> Iterator[None]:
    """Within it, Pyro's own operations can be transformed by ``torch.func``.

    Example::

        >>> log = torch.func.grad(lambda x: special.safe_log(x))
        >>> with transformable():
        ...     torch.vmap(log)(torch.tensor([0.5, 2.0]))
        tensor([2.0000, 0.5000])
    """
    _SWAP.enter()
    try:
        yield
    finally:
        _SWAP.leave()
