r"""Training as a program: one pure step of tensors, which a backend runs eagerly, traced or compiled."""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..layers.base import Layer
from ..nets.steps import step_factors
from ..nets.views import in_every_place
from ..numerics import LogDensity
from ..objectives.base import Among, Gradient, Objective
from ..objectives.draws import Draws, draw

T = TypeVar("T")

#: A share of draws without a finite log-weight with which a step still goes by the others.
FEW = 0.125


class State(NamedTuple):
    """All that a step changes: parameters, Adam's moments, the step count and the steps skipped."""

    params: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    skipped: Tensor


class Inputs(NamedTuple):
    """What a step is given: noise ``(K, width)``, the step size, the power of ``log p`` (1 unless annealed), and the
    objective's share (see :meth:`~pyro_nflows.ELBO.mixed`)."""

    noise: Tensor
    step_size: Tensor
    power: Tensor
    share: Tensor


class _Draw(nn.Module):
    """The layer with the objective's draws as its forward pass, so that ``functional_call`` reaches it."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.layer = layer

    def forward(self, draws: Callable[[Layer], T]) -> T:
        return draws(self.layer)


class _Swap(TorchFunctionMode):
    """Every operation that reads a leaf tensor reads a given tensor in its place."""

    def __init__(self, leaves: Sequence[Tensor], values: Sequence[Tensor]):
        super().__init__()
        self.table = {id(leaf): value for leaf, value in zip(leaves, values)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda a: self.table.get(id(a), a), (args, kwargs or {}))
        return func(*args, **kwargs)


class Program:
    r"""The step that trains a layer, and a model's own parameters, on an objective with Adam [1].

    A draw without a finite log-weight, such as one of overflow far out, does not move the layer. A step of which more
    than an eighth are such, or whose gradient is not finite, changes nothing and is counted. Gradients are clipped by
    norm. Weights of many inputs take smaller steps (:mod:`~pyro_nflows.nets.steps`).

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param layer: the flow.
    :param objective: what to maximise.
    :param gradient: its estimator.
    :param num_particles: draws a step.
    :param leaves: the model's trainable leaf tensors (unconstrained ``pyro.param`` values).
    :param max_norm: largest norm of a gradient.

    **References**

    [1] D. Kingma, J. Ba (2015). Adam: A Method for Stochastic Optimization.
    """

    def __init__(
        self,
        log_joint: LogDensity,
        layer: Layer,
        objective: Objective,
        gradient: Gradient,
        num_particles: int,
        leaves: Sequence[Tensor] = (),
        max_norm: float = 100.0,
    ):
        self.log_joint, self.layer, self.objective = log_joint, layer, objective
        self.gradient, self.num_particles, self.max_norm = gradient, num_particles, max_norm
        self.leaves = list(leaves)
        self._module = _Draw(layer)
        self._names = [name for name, p in self._module.named_parameters() if p.requires_grad]
        self._tensors = [p for p in self._module.parameters() if p.requires_grad]
        self.factors = self._step_factors()

    def at(self, log_joint: LogDensity, layer: Layer | None = None) -> "Program":
        """The same step on another log density, such as the model's with other data.

        :param layer: modules of the same parameters to draw with, where those depend on the data too.
        """
        new = copy.copy(self)
        new.log_joint = log_joint
        if layer is not None and layer is not self.layer:
            new.layer, new._module = layer, _Draw(layer)
        return new

    def _step_factors(self) -> Tensor | None:
        """What each parameter's step size is multiplied by; None if that is 1."""
        factors = step_factors(self._module)
        if min(factors, default=1.0) == 1.0:
            return None
        parts = [p.new_full((p.numel(),), factor) for p, factor in zip(self._tensors, factors)]
        return torch.cat([*parts, *(leaf.new_ones(leaf.numel()) for leaf in self.leaves)])

    @property
    def noise_width(self) -> int:
        """Standard normal numbers a draw takes."""
        return self.layer.input_dim + self.layer.noise_dim

    @property
    def shapes(self) -> tuple[tuple[str, torch.Size], ...]:
        """Of the layer's parameters, by name: where they are equal, a recording of one layer serves the other."""
        return tuple((name, p.shape) for name, p in self.layer.named_parameters())

    def params(self) -> Tensor:
        """The parameters that the layer and the leaves have, as one vector."""
        return torch.cat([p.detach().reshape(-1) for p in [*self._tensors, *self.leaves]]).clone()

    def init(self) -> State:
        """The state that the layer and the leaves are in."""
        params = self.params()
        zeros = (torch.zeros_like(params), torch.zeros_like(params), params.new_zeros(()), params.new_zeros(()))
        return State(params, *zeros)

    @torch.no_grad()
    def write(self, state: State) -> None:
        """Put a state's parameters into the layer and the leaves."""
        for tensor, part in zip([*self._tensors, *self.leaves], self.split(state.params)):
            tensor.copy_(part)

    def split(self, params: Tensor) -> list[Tensor]:
        """A vector of all parameters as the tensors that they are."""
        tensors = [*self._tensors, *self.leaves]
        parts = params.split([p.numel() for p in tensors])
        return [part.view(p.shape) for part, p in zip(parts, tensors)]

    def loss(self, params: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """A scalar with the estimator's gradient, and minus the estimated bound."""
        objective = self.objective.mixed(inputs.share)

        def log_p(z: Tensor) -> Tensor:
            return inputs.power * self.log_joint(z)

        result = self._call(params, lambda layer: objective.draws(log_p, layer, inputs.noise, self.gradient))
        return -objective.surrogate(result, self.gradient), -bound_of_most(objective, result.log_weight.detach())

    def draws(self, params: Tensor, noise: Tensor) -> Draws:
        """Draws with their weights, at given parameters."""
        return self._call(params, lambda layer: draw(self.log_joint, layer, noise))

    def _call(self, params: Tensor, draws: Callable[[Layer], T]) -> T:
        parts = self.split(params)
        with _Swap(self.leaves, parts[len(self._names) :]) if self.leaves else nullcontext():
            now = in_every_place(self._module, dict(zip(self._names, parts)))
            return cast(T, functional_call(self._module, now, (draws,), tie_weights=False))

    def gradient_at(self, params: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """The clipped gradient, the loss, and whether both are finite; where they are not, the gradient is zero."""
        with torch.enable_grad():
            params = params.detach().requires_grad_()
            surrogate, loss = self.loss(params, inputs)
            (gradient,) = torch.autograd.grad(surrogate, params)
        return self.clipped(gradient, loss)

    def clipped(self, gradient: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A gradient of at most the largest norm, the loss, and whether both are finite."""
        norm = gradient.norm()
        good = torch.isfinite(norm) & torch.isfinite(loss)
        return torch.where(good, gradient, 0.0) * (self.max_norm / norm.clamp(min=self.max_norm)), loss, good

    def part_of_gradient(self, params: Tensor, inputs: Inputs, among: Among) -> Tensor:
        """What some of the particles add to the gradient, before it is clipped; the sum of finite log-weights, and how
        many these are. One vector.

        :param inputs: with the noise of these particles only.
        :param among: the log-weights of all particles, and which of them these are.
        """
        objective = self.objective.mixed(inputs.share)

        def log_p(z: Tensor) -> Tensor:
            return inputs.power * self.log_joint(z)

        with torch.enable_grad():
            params = params.detach().requires_grad_()
            draws = self._call(params, lambda layer: objective.draws(log_p, layer, inputs.noise, self.gradient))
            surrogate = -objective.surrogate(draws, self.gradient, among)
            (gradient,) = torch.autograd.grad(surrogate, params)
        log_weight = draws.log_weight.detach()
        good = log_weight.isfinite()
        return torch.cat([gradient, torch.stack([torch.where(good, log_weight, 0.0).sum(), good.sum().to(gradient)])])

    def log_weights(self, params: Tensor, inputs: Inputs) -> Tensor:
        """The log-weights of particles, as :meth:`loss` has them."""
        annealed = self.at(lambda z: inputs.power * self.log_joint(z))
        return annealed.draws(params, inputs.noise).log_weight.detach()

    def step(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        """One step of Adam: the next state, and the loss before it."""
        gradient, loss, good = self.gradient_at(state.params, inputs)
        return self.moved(state, gradient, good, inputs.step_size), loss

    def moved(self, state: State, gradient: Tensor, good: Tensor, step_size: Tensor) -> State:
        """The state after a step of Adam along a clipped gradient, if that is finite."""
        steps = state.steps + 1
        mean = 0.9 * state.mean + 0.1 * gradient
        square = 0.999 * state.square + 0.001 * gradient.square()
        step_size = step_size * (1 - 0.999**steps).sqrt() / (1 - 0.9**steps)
        step_size = step_size if self.factors is None else step_size * self.factors
        moved = State(state.params - step_size * mean / (square.sqrt() + 1e-8), mean, square, steps, state.skipped)
        stayed = state._replace(skipped=state.skipped + 1)
        return State(*(torch.where(good, a, b) for a, b in zip(moved, stayed)))


def bound_of_most(objective: Objective, log_weight: Tensor) -> Tensor:
    """An objective's bound; where it is not finite on account of a few draws, that of the others.

    :param log_weight: one a draw.

    Example::

        >>> bound_of_most(Objective(), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, torch.nan]))
        tensor(2.1429)
        >>> bound_of_most(Objective(), torch.tensor([1.0, torch.nan]))
        tensor(nan)
    """
    good = log_weight.isfinite()
    others = torch.where(good, log_weight, 0.0).sum() / good.sum().clamp(min=1)
    patched = objective.bound(torch.where(good, log_weight, others))
    value, few = objective.bound(log_weight), good.sum() >= (1 - FEW) * len(log_weight)
    return torch.where(few & ~value.isfinite(), patched, value)
