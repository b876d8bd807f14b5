"""What a law is: a check of a layer that runs on random numbers of its own and says what broke it."""

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..layers.base import Layer
from ..system.randomness import forked

#: Something that makes a fresh layer; or a layer, of which copies are used.
Make = Layer | Callable[[], Layer]
Law = Callable[[Make], None]

#: All laws, in the order in which they run.
LAWS: list[Law] = []
_APPLIES: dict[str, Callable[[Layer], bool]] = {}


class LawError(AssertionError):
    """A layer breaks a law; the message names the law, and says what it gave and what it should have given."""


def laws_of(make: Make) -> list[Law]:
    """The laws that apply to a layer, as its exactness, its noise and its inverse decide.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> from pyro_nflows.testing import check_mean_log_weight, check_log_weight_is_slogdet
        >>> check_mean_log_weight in laws_of(Planar(2)), check_log_weight_is_slogdet in laws_of(Planar(2))
        (False, True)
    """
    layer = fresh(make)
    return [law for law in LAWS if _APPLIES[law.__name__](layer)]


def fresh(make: Make) -> Layer:
    """A new layer in double precision.

    :raises TypeError: if it is neither a layer nor a function that makes one.
    """
    if not callable(make):
        raise TypeError(f"testing: expected a layer, or a function that makes one, got {make!r}")
    return (copy.deepcopy(make) if isinstance(make, Layer) else make()).double()


def perturbed(make: Make, size: float = 0.5) -> Layer:
    r"""A new layer in double precision, away from its start: normal numbers are added to its parameters.

    :param make: makes a fresh layer, or is one.
    :param size: their standard deviation; in a matrix of :math:`n` columns, times :math:`1 / \sqrt n`, and in a chain
        of :math:`m` layers, times :math:`1 / \sqrt m`: what they do together is then of one size.
    """
    layer = fresh(make)
    kinds = [module for module in layer.modules() if isinstance(module, Layer)]
    size /= sum(not any(isinstance(m, Layer) for m in kind.modules() if m is not kind) for kind in kinds) ** 0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            columns = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.add_(torch.randn_like(parameter), alpha=size / max(1, columns) ** 0.5)
    return layer


def law(applies: Callable[[Layer], bool] = lambda layer: True) -> Callable[[Law], Law]:
    """Register a law; whatever goes wrong in it is a :class:`LawError` that names it.

    :param applies: whether a layer should obey it.
    """

    def decorate(check: Law) -> Law:
        @functools.wraps(check)
        def wrapped(make: Make) -> None:
            with forked(0):
                broken = f"{type(fresh(make)).__name__} breaks {check.__name__}"
                try:
                    check(make)
                except LawError as error:
                    raise LawError(f"{broken}: {error}") from None
                except Exception as error:
                    raise LawError(f"{broken}: {type(error).__name__}: {error}") from error

        LAWS.append(wrapped)
        _APPLIES[check.__name__] = applies
        return wrapped

    return decorate


def points(layer: Layer, *shape: int, spread: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """A batch of ``x`` with standard deviation ``spread``, and the layer's noise."""
    like = next(layer.parameters(), torch.zeros((), dtype=torch.float64))
    numbers = torch.randn(*shape, layer.input_dim + layer.noise_dim, dtype=torch.float64).to(like)
    x, noise = numbers[..., : layer.input_dim], numbers[..., layer.input_dim :]
    return spread * x, noise if layer.noise_dim else None


def agree(what: str, got: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    """Two tensors are equal, up to an absolute and relative tolerance."""
    if got.shape != expected.shape:
        raise LawError(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        worst = (got - expected).abs().nan_to_num(torch.inf, torch.inf).argmax()
        raise LawError(f"{what}: got {got.flatten()[worst]:.6g}, expected {expected.flatten()[worst]:.6g}")


def agree_pair(what: str, got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-8) -> None:
    """Two results of a layer are equal."""
    agree(f"the point {what}", got[0], expected[0], tolerance)
    agree(f"the log-weight {what}", got[1], expected[1], tolerance)


def agree_on_average(what: str, values: Tensor, expected: Tensor | float) -> None:
    """The mean over the first dimension is ``expected``, within five standard errors."""
    mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
    distance = (mean - expected).abs() / (error + 1e-9)
    if not (distance <= 5).all():
        worst = distance.nan_to_num(torch.inf, torch.inf).argmax()
        mean, error = mean.flatten()[worst], error.flatten()[worst]
        expected = torch.as_tensor(expected).expand_as(distance).flatten()[worst]
        raise LawError(f"{what}: got {mean:.4g} on average (standard error {error:.2g}), expected {expected:.4g}")
