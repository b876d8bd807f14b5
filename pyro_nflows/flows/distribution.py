import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from ..checks import as_shape, check_sizes
from ..layers.base import Exactness, Layer
from ..nets.views import parameters_in
from ..numerics import finite_rows, in_pairs, standard_normal_log_prob
from ..system.memory import enough_for
from ..system.shapes import broadcast_shapes
from .padded import inside
from .stopped import stopped_inverse
from .transforms import as_transform


class FlowDistribution(TorchDistribution):
    r"""The distribution of a layer's output; a guide's posterior, or a prior or likelihood of a model.

    .. math:: y = \mathrm{forward}(x, \epsilon), \qquad \log \hat q(y) = \log q(x) - \log w

    With an ``EXACT`` layer, ``log_prob`` is the log density. With auxiliary variables it depends on where the point
    came from: for a value *drawn from this very object* it is :math:`\log \hat q` of that draw, whose mean given
    ``y`` is at least :math:`\log q(y)` (so an ELBO built on it is a lower bound); for any other value it is the
    importance estimate of :meth:`log_prob`, whose mean is at most :math:`\log q(y)`. A draw is forgotten once the
    layer's parameters change.

    :param layer: a :class:`~pyro_nflows.layers.base.Layer`, base to posterior.
    :param base_dist: distribution of ``x`` with event shape ``(layer.input_dim,)``; standard normal by default.
    :param path_gradient: whether Pyro's ELBOs get the gradient of the entropy without the score of :math:`q`, whose
        mean is zero (sticking the landing [2]): its noise vanishes as the flow comes to fit. Guides ask for it; it
        changes no value, and no gradient in the mean.
    :param event_shape: shape of a value, such as ``(T, D)`` for a sequence of ``T`` positions: the layer's output in
        that shape, row by row; ``(layer.output_dim,)`` by default.
    :param paired: whether the standard normal points of draws along the first dimension are in pairs, the second
        half the negatives of the first, in place of independent ones. Each draw has the same distribution as without.
    :raises ValueError: if the base has another event shape, ``event_shape`` holds another number of elements than the
        layer gives, or the layer is told of lengths and part of it, or the base, is not over positions.

    Example::

        >>> from pyro_nflows.layers import Planar
        >>> flow = FlowDistribution(Planar(2))
        >>> x = flow.rsample((10,))
        >>> flow.log_prob(x).shape
        torch.Size([10])

    As a likelihood, ``pyro.sample("x", FlowDistribution(layer), obs=x)`` is density estimation; with
    ``layer.at(context)``, of ``x`` given the context, a row of which is an element of the batch. As a latent site,
    ``pyro.sample("x", FlowDistribution(teacher))`` is distillation: a guide of that model is a student, and its ELBO is
    :math:`-KL(\mathrm{student} \| \mathrm{teacher})` [1].

    With ``flows.up_to(layer, lengths)``, sequences end where the lengths say: what is behind an end is zero in draws
    and does not count in densities.

    **References**

    [1] A. van den Oord et al. (2018). Parallel WaveNet: Fast High-Fidelity Speech Synthesis.

    [2] G. Roeder, Y. Wu, D. Duvenaud (2017). Sticking the Landing.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        layer: Layer,
        base_dist: TorchDistribution | None = None,
        *,
        batch_shape: torch.Size = torch.Size(),
        event_shape: Sequence[int] | None = None,
        path_gradient: bool = False,
        paired: bool = False,
    ):
        if not isinstance(layer, Layer) or not isinstance(base_dist, torch.distributions.Distribution | None):
            raise TypeError(
                "FlowDistribution: expected a Layer (as_layer makes one of a torch Transform), and as base_dist a "
                f"distribution or None, got {type(layer).__name__} and {type(base_dist).__name__}"
            )
        if base_dist is not None and base_dist.event_shape != (layer.input_dim,):
            raise ValueError(
                f"FlowDistribution: expected a base_dist of event shape ({layer.input_dim},), "
                f"got {tuple(base_dist.event_shape)}; use base_dist.to_event(1)"
            )
        event_shape = torch.Size((layer.output_dim,) if event_shape is None else event_shape)
        if event_shape.numel() != layer.output_dim or not event_shape:
            raise ValueError(
                f"FlowDistribution: expected an event_shape of {layer.output_dim} elements, as many as the layer "
                f"gives, got {tuple(event_shape)}"
            )
        self._inside = inside(layer)
        if self._inside is not None and base_dist is not None:
            raise ValueError("FlowDistribution: a flow of sequences of different lengths takes no base_dist")
        if base_dist is not None:
            batch_shape = broadcast_shapes(batch_shape, base_dist.batch_shape)
        parts = [part.batch_shape for part in layer.modules() if isinstance(part, Layer)]
        batch_shape = broadcast_shapes(batch_shape, *parts)
        self.layer, self.base_dist = layer, base_dist
        self.path_gradient = path_gradient and base_dist is None and self._inside is None
        self.paired = paired and base_dist is None
        self._path: Tensor | None = None
        self._drawn: tuple[Tensor, Tensor, list[tuple[Tensor, int]]] | None = None
        super().__init__(batch_shape, event_shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        return FlowDistribution(
            self.layer,
            self.base_dist,
            batch_shape=torch.Size(batch_shape),
            event_shape=self.event_shape,
            path_gradient=self.path_gradient,
            paired=self.paired,
        )

    def in_pairs(self) -> "FlowDistribution":
        """The same distribution, whose draws are in pairs (``paired``)."""
        return FlowDistribution(
            self.layer,
            self.base_dist,
            batch_shape=self.batch_shape,
            event_shape=self.event_shape,
            path_gradient=self.path_gradient,
            paired=True,
        )

    def _like(self) -> Tensor:
        """A tensor of the flow's dtype and device."""
        return next(self.layer.parameters(), torch.zeros(()))

    @property
    def transforms(self) -> list[torch.distributions.Transform]:
        """The layer as a torch ``Transform``, as ``TransformedDistribution`` has them.

        :raises NotImplementedError: if the layer has auxiliary variables.
        """
        return [as_transform(self.layer)]

    def base_log_prob(self, x: Tensor) -> Tensor:
        """Log density of the base at ``x``."""
        if self._inside is not None:
            each = standard_normal_log_prob(x[..., None])
            return torch.where(self._inside, each, 0.0).sum(-1)
        return standard_normal_log_prob(x) if self.base_dist is None else self.base_dist.log_prob(x)

    def base_sample(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """Draw ``x`` and the layer's noise; the only place where random numbers enter."""
        like = self._like()
        width = self.layer.input_dim if self.base_dist is None else 0
        numbers = torch.randn(*shape, width + self.layer.noise_dim, dtype=like.dtype, device=like.device)
        x, noise = numbers[..., :width], numbers[..., width:]
        if self.base_dist is not None:
            x = self.base_dist.expand(shape).rsample()
        elif self.paired and shape:
            x = in_pairs(x)
        return x, noise if self.layer.noise_dim else None

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw; the log density of this very tensor is remembered by this object.

        :raises MemoryError: if there is not enough memory for so many.
        """
        shape = as_shape("FlowDistribution.sample", sample_shape) + self.batch_shape
        with self._room("sample", "draws", shape):
            return self._rsample(shape)

    def _rsample(self, shape: torch.Size) -> Tensor:
        x, noise = self.base_sample(shape)
        y, log_weight = self._scored(x, noise) or self.layer(x, noise)
        if self.path_gradient and y.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(y):
            y.register_hook(finite_rows)
        if self._inside is not None:
            y = torch.where(self._inside, y, 0.0)
        if len(self.event_shape) > 1:  # not a view, so that it can be changed in place
            y = y.reshape(*y.shape[:-1], *self.event_shape).clone()
        self._drawn = (y, self.base_log_prob(x) - log_weight, self._parameters())
        return y

    def _scored(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """A pass that also carries the path gradient of the log density, where that is wanted and can be had."""
        self._path = None
        if not (self.path_gradient and torch.is_grad_enabled()):
            return None
        rows, rest = x.reshape(-1, x.shape[-1]), None if noise is None else noise.reshape(-1, noise.shape[-1])
        try:
            scored = self.layer.scored(rows, rest, -rows, rows[:, :0])
        except NotImplementedError:
            return None
        path = (scored.score * scored.y).sum(-1) + scored.index_score - scored.log_r
        self._path = path.reshape(x.shape[:-1])
        return scored.y.reshape(*x.shape[:-1], -1), scored.log_weight.reshape(x.shape[:-1])

    def _traced_path(self, y: Tensor) -> Tensor | None:
        """The log density of a draw, with the path gradient, in a trace of ``torch.jit``."""
        back = stopped_inverse(self.layer, y)
        return None if back is None else self.base_log_prob(back[0]) - back[1]

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """What Pyro's ELBOs ask for: the log density, and as ``entropy_term`` the same with the path gradient."""
        parts: ScoreParts = super().score_parts(x, *args, **kwargs)
        if self._remembered(x) is None:
            return parts
        if self._path is None and self.path_gradient and torch.jit.is_tracing() and torch.is_grad_enabled():
            self._path = self._traced_path(x)
        if self._path is None:
            return parts
        return parts._replace(entropy_term=parts.log_prob.detach() + (self._path - self._path.detach()))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _parameters(self) -> list[tuple[Tensor, int]]:
        """The layer's parameters, each with a number that changes with its values."""
        found = [held.parameter for held in parameters_in(self.layer).values()]
        return [(p, 0 if p.is_inference() else p._version) for p in found]

    def _remembered(self, value: Tensor) -> Tensor | None:
        """Log density of a value drawn from this object: unless outdated, or without the gradients it should have."""
        if self._drawn is None or value is not self._drawn[0]:
            return None
        _, log_prob, then = self._drawn
        now = self._parameters()
        if len(now) != len(then) or any(p is not q or i != j for (p, i), (q, j) in zip(now, then)):
            return None
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p, _ in now)
        return None if wanted and not log_prob.requires_grad and self.layer.has_inverse else log_prob

    def log_prob(self, value: Tensor, num_samples: int = 1) -> Tensor:
        r"""Log density, or an estimate of it where the layer has auxiliary variables.

        .. math:: \log \hat q_M(y) = \log \frac1M \sum_{m=1}^M \frac{q(x_m)}{w_m}, \qquad (x_m, w_m) \sim
            \mathrm{inverse}(y)

        Its mean is at most :math:`\log q(y)` and increases to it with ``num_samples``.

        :param value: ``(..., *event_shape)``.
        :param num_samples: :math:`M`; unused where the layer is exact. More than one asks for the estimate, of a value
            drawn from this object too.
        :raises ValueError: if ``num_samples < 1``.
        :raises NotImplementedError: if the layer has no inverse and ``value`` was not drawn from this object, or
            if its log-weight is right in log space only.
        """
        check_sizes("FlowDistribution.log_prob", num_samples=num_samples)
        if not isinstance(value, Tensor):
            raise TypeError(f"FlowDistribution.log_prob: expected a tensor, got {type(value).__name__}")
        value = value if value.is_floating_point() else value.to(self._like().dtype)
        remembered = self._remembered(value) if num_samples == 1 else None
        if remembered is not None:
            return remembered
        value = self._flat(value)
        value = value.expand(broadcast_shapes(value.shape[:-1], self.batch_shape) + value.shape[-1:])
        if self.layer.exactness is Exactness.EXACT or num_samples == 1:
            return self._log_prob(value)
        self._need_proper()
        with self._room("log_prob", "inverses", (num_samples, *value.shape[:-1])):
            estimates = self._log_prob(value.expand(num_samples, *value.shape))
            return estimates.logsumexp(0) - math.log(num_samples)

    def _room(self, who: str, what: str, shape: Sequence[int]) -> AbstractContextManager[None]:
        """Within it, that there is not enough memory for points of this shape is said in a sentence."""
        each = self.layer.input_dim + self.layer.noise_dim + self.layer.output_dim
        return enough_for(f"FlowDistribution.{who}", what, shape, each, self._like())

    def _flat(self, value: Tensor) -> Tensor:
        """A value as the layer has it."""
        event_dim = len(self.event_shape)
        if event_dim == 1:
            return value
        if value.shape[-event_dim:] != self.event_shape:
            raise ValueError(
                f"FlowDistribution: expected a value of shape (..., {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(value.shape)}"
            )
        return value.flatten(-event_dim)

    def _log_prob(self, value: Tensor) -> Tensor:
        x, log_weight = self.layer.inverse(value)
        return self.base_log_prob(x) - log_weight

    def _need_proper(self) -> None:
        if self.layer.exactness < Exactness.PROPER:
            raise NotImplementedError(
                "this flow's log-weight is unbiased in log space only, so averaging weights is wrong; "
                "use num_samples=1, or a layer with an exact log-determinant"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None, "_path": None}

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("a flow has no closed-form mean; average draws of rsample")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError("a flow has no closed-form variance; use draws of rsample")

    def __repr__(self) -> str:
        return f"FlowDistribution({type(self.layer).__name__}, event_shape={tuple(self.event_shape)})"
