r"""An objective's loss and gradient recorded once, for a training loop that is not ours."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..checks import first_line
from ..engine.compiling import Code, Compiling
from ..engine.program import Inputs, Program
from ..engine.tape import Tape, TraceError
from ..guides import AutoFlow
from ..layers.base import Layer
from ..model.bound import BoundModel
from ..model.log_joint import LogJoint
from ..objectives.base import Gradient, Objective
from ..objectives.draws import base_noise
from ..system.randomness import forked, random_state, set_random_state

#: Draws the base points of so many particles of a layer.
NoiseOf = Callable[[Layer, int], Tensor]


class Recorded:
    """The loss and gradient of a flow guide, as a function of parameters, noise and the model's tensor arguments.

    :param objective: what to maximise.
    :param gradient: its estimator.
    :param joint: the model at its arguments, prepared; later arguments must have the same shapes.
    :param guide: whose flow is trained, set up.
    :param noise_of: draws the base points of a layer's particles.
    :param tell: is told why the recording is not compiled, if it is not.
    :raises TraceError: if the model cannot be recorded faithfully.
    """

    def __init__(
        self,
        objective: Objective,
        gradient: Gradient,
        joint: LogJoint,
        guide: AutoFlow,
        noise_of: NoiseOf = base_noise,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self.joint, self.guide, self.layer, self.tell = joint, guide, cast(Layer, guide.layer), tell
        self.noise_of = noise_of
        self._form = joint.bound.form
        self.names = _param_names(joint)
        leaves = joint.leaves(joint.latents.init_loc())
        self.program = Program(joint, self.layer, objective, gradient, objective.num_particles, leaves)
        self.tensors = [p for p in self.layer.parameters() if p.requires_grad] + leaves
        self.tape = self._record()
        self.memory: Code | None = None
        self.compiling, self._is_told = Compiling(self.tape, 0, self.program.params()), False
        self.compiling.start()
        self._tell()

    def fits(self, bound: BoundModel, guide: Any) -> bool:
        """Whether it was recorded for this model, guide and kind of arguments."""
        same = self.joint.bound.model is bound.model and self.guide is guide and guide.layer is self.layer
        return same and bound.form == self._form

    def _record(self) -> Tape:
        inputs = [self.program.init().params, base_noise(self.layer, self.program.num_particles)]
        data = self.joint.bound.tensors
        fresh = [inputs[0], 0.5 * inputs[1].flip(0), *data]
        try:
            tape = Tape(self._gradient, [*inputs, *data])
            pairs = list(zip(tape.run(fresh), self._gradient(*fresh)))
        except Exception as error:
            raise TraceError(first_line(error)) from error
        if not tape.is_random and not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in pairs):
            raise TraceError("its loss or gradient at fresh points differs from the model's")
        return tape

    def _gradient(self, params: Tensor, noise: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the bound, and the estimator's gradient of it."""
        joint, one = self.joint.on(self.joint.bound.with_data(data)), params.new_ones(())
        program = self.program.at(joint, self.guide.layer_on(joint))
        with torch.enable_grad():
            params = params.detach().requires_grad_()
            surrogate, loss = program.loss(params, Inputs(noise, one, one, 0 * one))
            (gradient,) = torch.autograd.grad(surrogate, params)
        return loss.detach(), gradient

    def _tell(self) -> None:
        """Say once why there will be no compiled code; until there is, the recording is replayed."""
        if self.compiling.refused is not None and not self._is_told:
            self._is_told = True
            self.tell(f"{self.compiling.refused}; the recording is replayed, which is slower than compiled code")

    def loss_and_grads(self, data: Sequence[Tensor]) -> float:
        """Minus the estimated bound at such data; its gradient is added to the parameters' ``.grad``."""
        for name in self.names:  # so that Pyro's SVI sees them used
            pyro.param(name)
        params = torch.cat([p.detach().reshape(-1) for p in self.tensors])
        noise = self.noise_of(self.layer, self.program.num_particles)
        loss, gradient = self._run([params, noise, *data])
        for tensor, part in zip(self.tensors, gradient.split([p.numel() for p in self.tensors])):
            part = part.view(tensor.shape)
            tensor.grad = part.clone() if tensor.grad is None else tensor.grad + part
        return float(loss)

    def _run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.memory is not None:
            return self._compiled(self.memory, inputs)
        before = random_state() if self.compiling.is_ready else None
        with torch.no_grad():
            results = self.tape.run(inputs)
        if before is not None:
            with forked():
                set_random_state(before)
                self.memory = self.compiling.take(lambda run: _difference(self._compiled(run, inputs), results))
            self._tell()
        return results

    def _compiled(self, memory: Code, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        _, results = memory.run([], [tensor.detach()[None] for tensor in inputs])
        return [result[0] for result in results]


def _difference(found: Sequence[Tensor], right: Sequence[Tensor]) -> str | None:
    """Why a loss and gradient are not to be trusted, if they are not."""
    (loss, gradient), (right_loss, right_gradient) = found, right
    tolerance = 1e3 * torch.finfo(loss.dtype).eps
    if not torch.isclose(loss, right_loss, rtol=tolerance, atol=tolerance, equal_nan=True):
        return f"compiled code gives a loss of {float(loss):.6g}, not {float(right_loss):.6g}"
    apart = torch.dist(gradient.nan_to_num(), right_gradient.nan_to_num())
    size = right_gradient.nan_to_num().norm()
    if not torch.equal(gradient.isfinite(), right_gradient.isfinite()) or apart > 1e-2 * size + 1e-12:
        return "compiled code gives another gradient"
    return None


def _param_names(joint: LogJoint) -> list[str]:
    with poutine.trace(param_only=True) as capture, torch.no_grad():
        joint.single(joint.latents.init_loc())
    return [name for name, site in capture.trace.nodes.items() if site["value"] is not None]
