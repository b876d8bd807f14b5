import enum
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_sizes, is_number
from ..nets.field import Dynamics
from .base import Exactness, Layer

#: A point, and the integral of the divergence up to it.
_State = tuple[Tensor, Tensor]


class Trace(enum.Enum):
    r"""How a continuous layer comes by the divergence :math:`\mathrm{tr}\,\partial f / \partial x`.

    Example::

        >>> Trace("exact") is Trace.EXACT
        True
    """

    #: From the Jacobian, which costs as much as :math:`D` evaluations of the field.
    EXACT = "exact"
    #: :math:`v^\top J v` with one random sign vector a row: right on average, at the cost of one evaluation.
    HUTCHINSON = "hutchinson"


class Solver(enum.Enum):
    r"""What integrates a continuous layer.

    Example::

        >>> Solver("rk4") is Solver.RK4
        True
    """

    #: Runge and Kutta's method of order four, in steps of one size: runs under every transform, and compiled.
    RK4 = "rk4"
    #: Dormand and Prince's, of order five, in steps that adapt to a tolerance: eager only, by ``torchdiffeq``.
    DOPRI5 = "dopri5"


class Continuous(Layer):
    r"""Follow a vector field for one unit of time: a continuous normalizing flow [1], with FFJORD's trace [2].

    .. math:: \dot x = f(t, x), \quad t \in [0, 1], \qquad
        \log w = \int_0^1 \mathrm{tr}\,\frac{\partial f}{\partial x}(t, x(t))\, dt

    :math:`f` is a perceptron that reads all coordinates and the time, without any restriction. The inverse follows it
    backwards. It starts at the identity. All this is as accurate as the solver: with ``"rk4"``, the inverse and the
    log-weight are off by :math:`O(\mathrm{num\_steps}^{-4})`; with ``"dopri5"``, by about the tolerance. Gradients are
    those of the steps that were taken. Adaptive steps are chosen for a batch at once, so that a row's result depends on
    the others, within the tolerance.

    :param input_dim: dimension :math:`D`; ``x`` and ``y`` have shape ``(..., D)``.
    :param hidden_dims: widths of the hidden layers of :math:`f`.
    :param trace: a :class:`Trace` or its value: ``"exact"`` or ``"hutchinson"``. The latter's log-weight is
        ``UNBIASED``: it serves the ELBO with the total gradient, not importance sampling.
    :param solver: a :class:`Solver` or its value: ``"rk4"`` or ``"dopri5"``.
    :param num_steps: steps of ``"rk4"``.
    :param tolerance: absolute and relative, of ``"dopri5"``.
    :param context_dim: size of a context that :math:`f` reads too; then use ``layer.at(context)``.
    :raises ImportError: if ``solver`` is ``"dopri5"`` and ``torchdiffeq`` is not installed.
    :raises ValueError: if a size is not a positive integer, ``tolerance`` is not positive, or ``trace`` or ``solver``
        is none of those.

    Example::

        >>> y, log_weight = Continuous(3)(torch.randn(10, 3))
        >>> layer = Continuous(100, trace="hutchinson")
        >>> layer.exactness.name, layer.noise_dim
        ('UNBIASED', 100)

    **References**

    [1] R. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud (2018). Neural Ordinary Differential Equations.

    [2] W. Grathwohl, R. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud (2019). FFJORD: Free-form Continuous Dynamics
    for Scalable Reversible Generative Models.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        hidden_dims: Sequence[int] = (32, 32),
        trace: Trace | str = Trace.EXACT,
        solver: Solver | str = Solver.RK4,
        num_steps: int = 8,
        tolerance: float = 1e-6,
        context_dim: int = 0,
    ):
        super().__init__(input_dim)
        check_sizes("Continuous", num_steps=num_steps)
        if not is_number(tolerance) or not tolerance > 0:
            raise ValueError(f"Continuous: tolerance must be positive, got {tolerance!r}")
        self.trace, self.solver = _member(Trace, "trace", trace), _member(Solver, "solver", solver)
        self.num_steps, self.tolerance = num_steps, tolerance
        self.net = Dynamics(input_dim, hidden_dims, context_dim)
        if self.solver is Solver.DOPRI5:
            _torchdiffeq()
        if self.trace is Trace.HUTCHINSON:
            self.exactness = Exactness.UNBIASED
            self.noise_dim = self.inverse_noise_dim = input_dim

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._integrate(x, noise, 0.0, 1.0)

    def inverse(self, y: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_weight = self._integrate(y, noise, 1.0, 0.0)
        return x, -log_weight

    def _integrate(self, x: Tensor, noise: Tensor | None, start: float, end: float) -> _State:
        columns = torch.eye(self.input_dim, dtype=x.dtype, device=x.device)
        if noise is not None:
            columns = torch.where(noise < 0, -1.0, 1.0).to(x)[..., None]
        field = functools.partial(self._field, columns)
        state = (x, torch.zeros_like(x[..., 0]))
        if self.solver is Solver.RK4:
            return _runge_kutta(field, state, start, (end - start) / self.num_steps, self.num_steps)
        times, tolerance = torch.tensor([start, end]).to(x), self.tolerance
        path = _torchdiffeq().odeint(field, state, times, rtol=tolerance, atol=tolerance, method=self.solver.value)
        return path[0][-1], path[1][-1]

    def _field(self, columns: Tensor, time: Tensor, state: _State) -> _State:
        """The field at a point, and its divergence there."""
        value, pushed = self.net(time, state[0], columns)
        return value, (columns * pushed).sum((-2, -1))

    def extra_repr(self) -> str:
        return f"{self.input_dim}, trace={self.trace.value!r}, solver={self.solver.value!r}"


def _runge_kutta(
    field: Callable[[Tensor, _State], _State], state: _State, start: float, step: float, num_steps: int
) -> _State:
    x, total = state
    for i in range(num_steps):
        now = torch.tensor(start + i * step, dtype=x.dtype, device=x.device)
        a, trace_a = field(now, (x, total))
        b, trace_b = field(now + 0.5 * step, (x + 0.5 * step * a, total))
        c, trace_c = field(now + 0.5 * step, (x + 0.5 * step * b, total))
        d, trace_d = field(now + step, (x + step * c, total))
        x = x + step / 6 * (a + 2 * (b + c) + d)
        total = total + step / 6 * (trace_a + 2 * (trace_b + trace_c) + trace_d)
    return x, total


def _member(kind: Any, name: str, value: Any) -> Any:
    if value not in list(kind) and value not in [member.value for member in kind]:
        raise ValueError(f"Continuous: {name} must be one of {[member.value for member in kind]}, got {value!r}")
    return kind(value)


def _torchdiffeq() -> Any:
    try:
        return importlib.import_module("torchdiffeq")
    except ImportError:
        raise ImportError(
            "Continuous: solver='dopri5' needs torchdiffeq, which is not installed; pip install 'pyro-nflows[ode]', "
            "or use solver='rk4'"
        ) from None
