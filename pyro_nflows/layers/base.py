r"""The contract: a layer is a module that returns a point and a log-weight.

**The one equation.** Forward is always base -> posterior:

.. math:: \log \hat q(y) = \log q(x) - \log w, \qquad (y, \log w) = \mathrm{forward}(x, \epsilon).

For a bijection :math:`\log w = \log|\det \partial y / \partial x|` and :math:`\hat q` is the density of ``y``.
A layer with auxiliary variables draws :math:`u \sim q(u | x)` from the noise it is handed, maps
:math:`y = F(x; u)`, and pays for not integrating ``u`` out:

.. math:: \log w = \log|\det \partial F / \partial x| + \log r(u | y) - \log q(u | x),

so that :math:`E[\log \hat q | y] = \log q(y) + KL(q(u | y) \| r(u | y))`: the ELBO stays a lower bound.
``inverse(y)`` returns the ``x`` and *the same* log-weight. :class:`Chain` adds the weights.

**Randomness enters once, at the base.** ``forward`` is a deterministic function of ``(x, noise)``: no random
numbers, no cache, no branch on a value. Hence every layer runs under ``functional_call``, ``vmap``,
``make_fx`` and ``torch.compile``, and a layer with auxiliary variables is an ordinary bijection of the
extended space :math:`(x, \epsilon) \leftrightarrow (y, u)`.

**Path gradients** need :math:`\nabla \log q` at the end of the chain with the parameters held fixed. It is
carried forward with the draws, layer by layer [1]:

.. math:: \nabla_y \log q = J^{-\top} (\nabla_x \log q - \nabla_x \log w),

which is :meth:`~pyro_nflows.layers.Layer.transport`. A layer need not write it: the default differentiates the layer's
own ``inverse``, or solves against its Jacobian where there is none.

**References**

[1] L. Vaitl, L. Winkler, L. Richter, P. Kessel (2024). Fast and Unified Path Gradient Estimators for Normalizing
Flows.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..checks import check_sizes
from ..nets.context import bind
from ..nets.mlp import start_wide
from ..system.gradients import pullback
from .shapes import checked, need_layers

_L = TypeVar("_L", bound="Layer")


class Exactness(enum.IntEnum):
    r"""How far a log-weight can be trusted; a chain is as good as its worst layer.

    Example::

        >>> min(Exactness.EXACT, Exactness.PROPER).name
        'PROPER'
    """

    #: Right in expectation of the *log* (roulette log-determinants): for ELBO gradients only.
    UNBIASED = 1
    #: Right in expectation of the weight (auxiliary variables): importance sampling, IWAE and PSIS hold.
    PROPER = 2
    #: ``log|det J|`` itself.
    EXACT = 3


class Scored(NamedTuple):
    r"""A forward pass that carries the gradients which path estimators need.

    ``score`` and ``reverse`` are :math:`\nabla_y \log q` and :math:`\nabla_y \sum \log r` at fixed parameters
    (detached). ``index_score`` and ``index_reverse`` are their inner products with the auxiliary variables,
    whose gradients are the path through those variables; ``log_r`` is :math:`\sum \log r`, live.
    """

    y: Tensor
    log_weight: Tensor
    score: Tensor
    reverse: Tensor
    index_score: Tensor | float = 0.0
    index_reverse: Tensor | float = 0.0
    log_r: Tensor | float = 0.0


class Layer(nn.Module):
    r"""A map from base to posterior with a log-weight. Subclasses write ``forward`` and, if they can, ``inverse``.

    :param input_dim: last dimension of ``x``.
    :param output_dim: last dimension of ``y``; the same as ``input_dim`` unless given.
    :raises ValueError: if a size is not a positive integer.

    Example::

        >>> class Double(Layer):
        ...     def forward(self, x, noise=None):
        ...         return 2 * x, torch.full(x.shape[:-1], self.input_dim * 0.6931)
        ...
        >>> Double(3)(torch.ones(3))
        (tensor([2.0000, 2.0000, 2.0000]), tensor(2.0793))
        >>> Double(3)(torch.ones(2))
        Traceback (most recent call last):
        ValueError: Double.forward: expected x of shape (..., 3), got (2,)
    """

    #: How exact the log-weight is.
    exactness: Exactness = Exactness.EXACT
    #: How many standard normal numbers ``forward`` needs per row, and ``inverse``.
    noise_dim: int = 0
    inverse_noise_dim: int = 0
    #: How far an optimiser's step moves the numbers that it holds itself, in units of other layers'.
    step: float = 1.0
    #: Leading dimensions of the context that :meth:`at` has given it.
    batch_shape: torch.Size = torch.Size()
    __call__: Callable[..., tuple[Tensor, Tensor]]

    def __init__(self, input_dim: int, output_dim: int | None = None):
        super().__init__()
        output_dim = input_dim if output_dim is None else output_dim
        check_sizes(type(self).__name__, input_dim=input_dim, output_dim=output_dim)
        self.input_dim, self.output_dim = input_dim, output_dim

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in {"forward", "inverse"} & set(vars(cls)):
            setattr(cls, name, checked(name, vars(cls)[name]))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map ``x`` to ``(y, log_weight)``; ``noise`` is ``(..., noise_dim)`` standard normal."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(x, noise)")

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map ``y`` back to ``(x, log_weight)``; auxiliary variables are drawn unless ``noise`` is given."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse: it can be sampled and trained, "
            "but the density of a given point needs a layer with one (Coupling, Autoregressive)"
        )

    @property
    def has_inverse(self) -> bool:
        """Whether ``inverse`` is defined."""
        return type(self).inverse is not Layer.inverse

    def at(self: _L, context: Tensor) -> _L:
        """This layer at a context: a view of the same parameters, in which all that takes a context has this one.

        :param context: ``(..., context_dim)``; its leading dimensions broadcast with those of ``x``.
        :raises ValueError: if no part of the layer takes a context, or one takes a context of another size.
        """
        return bind(self, context)

    def initialize(self, y: Tensor) -> Tensor:
        """Start from data: set what starts from them (:class:`~pyro_nflows.layers.ActNorm`), and return their inverse.

        Networks are given weights that suit standardised data (:func:`~pyro_nflows.nets.mlp.start_wide`).

        :param y: a batch of outputs, ``(N, output_dim)``.
        """
        start_wide(self)
        with torch.no_grad():
            return self.inverse(y)[0]

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        r"""Carry a gradient from ``x`` to ``y = forward(x)``: :math:`J^{-\top}(s - c \nabla_x \log w)`.

        :param x: where the pass came from, ``(..., input_dim)``.
        :param y: where it went.
        :param score: :math:`s`, shaped like ``x``.
        :param weight: :math:`c`; 1 for a log density, 0 for a plain function of the point.
        :raises NotImplementedError: for layers with auxiliary variables, or between dimensions.
        """
        if self.noise_dim or self.input_dim != self.output_dim:
            raise NotImplementedError(f"{type(self).__name__} has no path gradient; use gradient='total'")
        if not self.has_inverse:
            return self._transport_by_jacobian(x, score, weight)
        (_, log_weight), pull = pullback(self.inverse, y)
        return pull((score, torch.full_like(log_weight, -weight)))[0]

    def _transport_by_jacobian(self, x: Tensor, score: Tensor, weight: float) -> Tensor:
        jacobian, gradient = self.jacobian(x)
        # solve_ex leaves a singular row without a finite result, rather than stop training with an error.
        return torch.linalg.solve_ex(jacobian.mT, (score - weight * gradient)[..., None])[0][..., 0]

    def jacobian(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``dy/dx``, ``(..., output_dim, input_dim)``, rows in one batch, and the gradient of the log-weight."""
        (y, log_weight), pull = pullback(lambda x: self(x, noise), x)
        rows = torch.eye(self.output_dim, dtype=x.dtype, device=x.device)
        rows = rows[(...,) + (None,) * (y.dim() - 1) + (slice(None),)].expand(-1, *y.shape)
        jacobian = torch.func.vmap(lambda row: pull((row, torch.zeros_like(log_weight)))[0])(rows)
        gradient = pull((torch.zeros_like(y), torch.ones_like(log_weight)))[0]
        return jacobian.movedim(0, -2), gradient

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        """A forward pass with the gradients of :class:`Scored`; see there."""
        y, log_weight = self(x, noise)
        at, to = x.detach(), y.detach()
        with torch.no_grad():
            score = self.transport(at, to, score).detach()
            reverse = self.transport(at, to, reverse, 0.0).detach() if reverse.numel() else reverse
        return Scored(y, log_weight, score, reverse)

    def extra_repr(self) -> str:
        return "" if self._modules else str(self.input_dim)


class Chain(Layer):
    r"""Layers one after the other; log-weights add. One that stands in several places is trained by all of them.

    :param layers: the layers, from base to posterior.
    :raises ValueError: if there are none, or one's ``output_dim`` is not the next one's ``input_dim``.

    Example::

        >>> from pyro_nflows.layers import LocScale, Planar
        >>> y, log_weight = Chain(Planar(3), LocScale(3))(torch.randn(10, 3))
    """

    def __init__(self, *layers: Layer):
        need_layers("Chain", *layers)
        for a, b in zip(layers, layers[1:]):
            if a.output_dim != b.input_dim:
                raise ValueError(
                    f"Chain: {type(a).__name__} gives {a.output_dim} dimensions, "
                    f"but the next layer, {type(b).__name__}, takes {b.input_dim}"
                )
        super().__init__(layers[0].input_dim, layers[-1].output_dim)
        self.layers = nn.ModuleList(layers)
        self.exactness = min(layer.exactness for layer in layers)
        self.count_noise()

    @property
    def has_inverse(self) -> bool:
        return all(layer.has_inverse for layer in self)

    def count_noise(self) -> None:
        """Know how much noise the layers take."""
        self.noise_dim, self.inverse_noise_dim = map(sum, zip(*((p.noise_dim, p.inverse_noise_dim) for p in self)))

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]  # type: ignore[return-value]

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-1])
        for layer, part in zip(self, _shares(noise, [layer.noise_dim for layer in self])):
            x, log_weight = layer(x, part)
            total = total + log_weight
        return x, total

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(y.shape[:-1])
        shares = _shares(noise, [layer.inverse_noise_dim for layer in self])
        for layer, part in zip(reversed(list(self)), reversed(shares)):
            y, log_weight = layer.inverse(y, part)
            total = total + log_weight
        return y, total

    def initialize(self, y: Tensor) -> Tensor:
        for layer in reversed(list(self)):
            y = layer.initialize(y)
        return y

    def transport(self, x: Tensor, y: Tensor, score: Tensor, weight: float = 1.0) -> Tensor:
        if self.noise_dim:
            return super().transport(x, y, score, weight)
        for layer in self:
            after, _ = layer(x)
            score = layer.transport(x, after, score, weight)
            x = after
        return score

    def scored(self, x: Tensor, noise: Tensor | None, score: Tensor, reverse: Tensor) -> Scored:
        sums: list[Tensor | float] = [0.0] * 4
        for layer, part in zip(self, _shares(noise, [layer.noise_dim for layer in self])):
            step = layer.scored(x, part, score, reverse)
            x, score, reverse = step.y, step.score, step.reverse
            sums = [a + b for a, b in zip(sums, (step.log_weight, *step[4:]))]
        return Scored(x, sums[0], score, reverse, *sums[1:])  # type: ignore[arg-type]


def _shares(noise: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    """Each layer's share of the noise, None for those that need none."""
    if noise is None:
        return [None] * len(sizes)
    return [part if size else None for part, size in zip(noise.split(list(sizes), -1), sizes)]


class Inverse(Layer):
    r"""A layer run backwards: ``forward`` is its ``inverse``. A MAF is ``Inverse`` of an IAF.

    :param layer: a layer with an inverse.
    :raises ValueError: if it has none.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> Inverse(LocScale(3, init_scale=2.0))(torch.ones(3))[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<DivBackward0>)
    """

    def __init__(self, layer: Layer):
        need_layers("Inverse", layer)
        if not layer.has_inverse:
            raise ValueError(f"Inverse: {type(layer).__name__} has no inverse")
        super().__init__(layer.output_dim, layer.input_dim)
        self.layer = layer
        self.exactness = layer.exactness
        self.noise_dim, self.inverse_noise_dim = layer.inverse_noise_dim, layer.noise_dim

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_weight = self.layer.inverse(x, noise)
        return y, -log_weight

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_weight = self.layer(y, noise)
        return x, -log_weight
