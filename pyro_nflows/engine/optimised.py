r"""Training steps by an optimiser of torch's in the place of Adam.

The gradient of a step is that of every engine, recorded where that is possible, and clipped in the same way; what is
made of it is left to the optimiser. Its step size is the schedule's, which falls to zero in each round. Where somebody
has given it a step size of its own, that takes the place of the first round's of the flow, and all others keep their
proportion to it.

Compiled code has Adam built in. So with another optimiser, steps are traced, or eager where that is not possible.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import PyroOptim
from torch import Tensor, nn

from ..checks import first_line
from .backends import EngineWarning
from .program import Inputs, Program, State
from .runners import Engine, Runner
from .tape import Tape

#: Makes an optimiser of parameters.
Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
#: What a user may give: the class of an optimiser, a function that makes one, or one of Pyro's.
Optim = type[torch.optim.Optimizer] | Factory | PyroOptim
#: What to give, for the messages.
EXPECTED = (
    "a class such as torch.optim.AdamW, a function that makes an optimiser of parameters, such as "
    "lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9), or one of pyro.optim"
)


class Choice:
    """An optimiser that somebody has chosen.

    :param optim: see :data:`Optim`.
    :param step_size: of the schedule's first round, to which a step size of its own corresponds.
    :raises TypeError: if it makes no optimiser, or one whose steps need more than a gradient.

    Example::

        >>> str(Choice(torch.optim.AdamW, 5e-3)), Choice(torch.optim.AdamW, 5e-3).unit
        ('AdamW', None)
        >>> Choice(lambda params: torch.optim.SGD(params, lr=0.1), 5e-3).unit
        0.005
    """

    def __init__(self, optim: Any, step_size: float):
        self.factory, own = _factory(optim)
        self.unit = step_size if own else None
        try:
            made = self.factory([nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))])
        except Exception as error:
            raise TypeError(
                f"it cannot be made of parameters ({type(error).__name__}: {first_line(error)}); expected {EXPECTED}"
            ) from error
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"it gave a {type(made).__name__} in place of an optimiser; expected {EXPECTED}")
        if isinstance(made, torch.optim.LBFGS):
            raise TypeError("LBFGS evaluates the loss several times a step, which draws of a guide do not allow")
        self.name = type(made).__name__

    def __str__(self) -> str:
        return self.name


def _factory(optim: Any) -> tuple[Factory, bool]:
    """What makes the optimiser, and whether that gives it a step size of its own."""
    if isinstance(optim, PyroLRScheduler):
        raise TypeError("the schedule of VI sets step sizes, so a scheduler has no place here; give its optimiser")
    if isinstance(optim, PyroOptim):
        if callable(optim.pt_optim_args):
            raise TypeError("options of each parameter by a function are not for VI; give them as one dict")
        options = dict(optim.pt_optim_args)
        make = cast(Any, optim.pt_optim_constructor)
        return lambda params: cast(torch.optim.Optimizer, make(params, **options)), "lr" in options
    if isinstance(optim, torch.optim.Optimizer):
        raise TypeError(
            f"got an {type(optim).__name__} that holds its parameters already, which are not the guide's; "
            f"expected {EXPECTED}"
        )
    if isinstance(optim, type) and issubclass(optim, torch.optim.Optimizer):
        kind = cast(Any, optim)
        return lambda params: cast(torch.optim.Optimizer, kind(params, lr=1.0)), False
    if isinstance(optim, type) or not callable(optim):
        raise TypeError(f"got {optim!r}; expected {EXPECTED}")
    return cast(Factory, optim), True


class Optimised(Runner):
    """Steps by an optimiser. It begins anew where a fit does not go on from where it has led.

    :param program: gives the gradient.
    :param choice: of the optimiser.
    :param tape: a recording of the gradient; None to compute it by the program's own Python.
    :param note: why it is no faster.
    """

    note: str | None = None

    def __init__(self, program: Program, choice: Choice, tape: Tape | None, note: str | None = None):
        self.program, self.choice, self.tape, self.note = program, choice, tape, note
        self._led: Tensor | None = None
        self._params = list[nn.Parameter]()
        self._optim: torch.optim.Optimizer | None = None
        self._bases = list[float]()

    @property
    def engine(self) -> Engine:
        return Engine.EAGER if self.tape is None else Engine.TRACED

    @property
    def is_random(self) -> bool:
        return self.tape is not None and self.tape.is_random

    def run(self, state: State, inputs: Inputs) -> tuple[State, Tensor]:
        if self._led is None or not torch.equal(state.params, self._led):
            self._begin(state.params)
        losses = []
        for row in (Inputs(*each) for each in zip(*inputs)):
            gradient, loss, good = self._gradient(state.params, row)
            losses.append(loss)
            if not bool(good):
                state = state._replace(skipped=state.skipped + 1)
                continue
            self._step(gradient, float(row.step_size))
            state = state._replace(params=self._flat(), steps=state.steps + 1)
        self._led = state.params
        return state, torch.stack(losses)

    def bound(self, program: Program, data: Sequence[Tensor] | None) -> "Optimised":
        tape = self.tape if self.tape is None or data is None else self.tape.bound(data)
        return Optimised(program, self.choice, tape, self.note)

    def _begin(self, params: Tensor) -> None:
        """A fresh optimiser; weights of many inputs are in groups of their own, whose steps are smaller."""
        with torch.enable_grad():
            self._params = [nn.Parameter(part.detach().clone()) for part in self.program.split(params)]
        self._optim = optim = self.choice.factory(self._params)
        if self.program.factors is not None:
            factors = [float(part.reshape(-1)[0]) for part in self.program.split(self.program.factors)]
            _regroup(optim, {id(p): factor for p, factor in zip(self._params, factors) if p.numel()})
        self._bases = [float(group.get("lr", 1.0)) * group.get("factor", 1.0) for group in optim.param_groups]

    def _step(self, gradient: Tensor, step_size: float) -> None:
        optim = cast(torch.optim.Optimizer, self._optim)
        for param, part in zip(self._params, self.program.split(gradient)):
            param.grad = part.detach().clone()
        scale = step_size if self.choice.unit is None else step_size / self.choice.unit
        for group, base in zip(optim.param_groups, self._bases):
            group["lr"] = base * scale
        with torch.inference_mode(False), torch.enable_grad():
            optim.step()

    @torch.no_grad()
    def _flat(self) -> Tensor:
        return torch.cat([param.detach().reshape(-1) for param in self._params])

    def _gradient(self, params: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        if self.tape is None:
            return self.program.gradient_at(params, inputs)
        with torch.no_grad():
            gradient, loss, good = self.tape.run([params, *inputs])
        return gradient, loss, good


def _regroup(optim: torch.optim.Optimizer, factors: dict[int, float]) -> None:
    """Have a group of parameters for each factor of their step sizes."""
    groups = list[dict[str, Any]]()
    for group in optim.param_groups:
        for factor in sorted({factors.get(id(param), 1.0) for param in group["params"]}, reverse=True):
            chosen = [param for param in group["params"] if factors.get(id(param), 1.0) == factor]
            groups.append({**group, "params": chosen, "factor": factor})
    optim.param_groups[:] = groups


def optimised(
    program: Program, choice: Choice, engine: Engine | None, inputs: Inputs, data: Sequence[Tensor] = ()
) -> Optimised:
    """A runner by an optimiser; its gradient is recorded where the recording gives what the program's Python gives.

    :param engine: that was asked for, or None; what is no slower than that is taken where there is any.
    :param inputs: example inputs of a block of at least one step.
    :param data: see :func:`~pyro_nflows.engine.prepare`.
    """
    note = f"compiled: its steps are Adam's, and these are by {choice}"
    if engine is Engine.EAGER:
        return Optimised(program, choice, None, note)
    state = program.init()
    first = Inputs(*(part[0] for part in inputs))
    try:
        tape = Tape(lambda *all: program.gradient_at(all[0], Inputs(*all[1:])), [state.params, *first], data)
        found, right = tape.run([state.params, *first]), program.gradient_at(state.params, first)
        tolerance = 1e3 * torch.finfo(right[1].dtype).eps
        pairs = zip(found[:2], right[:2])
        same = all(torch.allclose(a, b, rtol=1e-2, atol=tolerance, equal_nan=True) for a, b in pairs)
        reason = None if same else "its gradient differs from the model's"
    except Exception as error:
        reason = first_line(error)
    if reason is None:
        return Optimised(program, choice, tape, note)
    warnings.warn(
        f"the traced engine cannot run this model ({reason}); using the eager engine, which is slower",
        EngineWarning,
        stacklevel=4,
    )
    return Optimised(program, choice, None, f"traced: {reason}")
