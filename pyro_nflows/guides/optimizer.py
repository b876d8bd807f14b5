r"""An optimiser for a loop of one's own that ends at the optimum: steps that decay, and the mean of the last ones."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

#: What parameters of a loop belong to.
PARTS = ("end", "flow", "encoder", "model")
#: How much of a schedule has full steps, what they have decayed to at its end, and how much of it is averaged.
HOLD, FINAL, TAIL = 0.5, 0.01, 0.25
#: The step size of parts that are not named.
LR = 0.03
#: How fast the means of a gradient and of its square follow it.
BETAS = (0.9, 0.99)

#: One step size, or one for each part that is named.
StepSize = float | Mapping[str, float]


class DecayingAdam(Adam):
    r"""Adam whose steps are long for the first half of a run, and then decay, with the mean of the last quarter.

    Step :math:`t` of :math:`T` has the size

    .. math:: \eta_t = \eta \cdot 0.01^{\max(0,\, 2t / T - 1)} ,

    and at step :math:`T` each number becomes the mean of what it was in the last quarter of them [2]: the noise of the
    gradients, which the decaying steps have made small, is averaged out. Later steps keep the size
    :math:`\eta / 100`. The moments of Adam [1] are :math:`\beta = (0.9, 0.99)`: with the usual 0.999, large gradients
    far from the posterior keep steps short for a thousand steps after. A gradient that is not finite moves nothing.

    :param params: what to train.
    :param lr: :math:`\eta`.
    :param num_steps: :math:`T`; without it, steps stay as they are, and nothing is averaged.
    :param average: whether the last quarter is averaged.

    Example::

        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> optimizer = DecayingAdam([x], lr=0.1, num_steps=200)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     (x - 1).square().backward()
        ...     optimizer.step()
        ...
        >>> abs(x.item() - 1) < 1e-3
        True

    **References**

    [1] D. P. Kingma, J. Ba (2015). Adam: A Method for Stochastic Optimization.

    [2] B. T. Polyak, A. B. Juditsky (1992). Acceleration of Stochastic Approximation by Averaging.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, num_steps: int | None = None, average: bool = True):
        super().__init__(params, lr=lr, betas=BETAS, foreach=True)
        own = {"first_lr": lr, "num_steps": num_steps, "average": average, "number": 0}
        self.defaults.update(own)
        for group in self.param_groups:
            group.update(own)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each parameter that has a finite gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _next_step(group)
            for param in group["params"]:
                if param.grad is not None and not param.grad.isfinite().all():
                    param.grad = None  # Adam leaves such a parameter, and its moments, as they are
        super().step()
        for group in self.param_groups:
            moved = [param for param in group["params"] if self.state.get(param)]
            _average(group, moved, [self.state[param] for param in moved])
        return loss


class GuideOptim(PyroOptim):
    """Pyro's optimiser of many :class:`DecayingAdam`, one a parameter, which take their steps together.

    A flow has a hundred parameters, and of a step of each by itself nearly all is the call. States are those of Pyro's
    optimiser, by the parameter's name.
    """

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """One step of each parameter."""
        params = list(params)
        together = [] if args or kwargs else [p for p in params if self._has_moved(p) and p.grad is not None]
        chosen = set(together)
        super().__call__([p for p in params if p not in chosen], *args, **kwargs)
        _step_together(together, [self.optim_objs[p] for p in together])

    def _has_moved(self, param: Tensor) -> bool:
        """Whether it has the state that its first step makes."""
        return param in self.optim_objs and bool(self.optim_objs[param].state.get(param))


@torch.no_grad()
def _step_together(params: Sequence[Tensor], optimisers: Sequence[DecayingAdam]) -> None:
    """One step of each parameter by its optimiser, in which it has taken a step before."""
    finite = _are_finite([param.grad for param in params if param.grad is not None])
    alike: dict[tuple[Any, ...], list[tuple[Tensor, DecayingAdam, bool]]] = defaultdict(list)
    for param, optimiser, is_finite in zip(params, optimisers, finite):
        (group,) = optimiser.param_groups
        _next_step(group)
        if not is_finite:
            param.grad = None
        key = tuple(group[name] for name in ("lr", "number", "num_steps", "average"))
        alike[key].append((param, optimiser, is_finite))
    for members in alike.values():
        group = members[0][1].param_groups[0]
        moved = [(param, optimiser.state[param]) for param, optimiser, is_finite in members if is_finite]
        _adam(group, [param for param, _ in moved], [state for _, state in moved])
        _average(group, [param for param, *_ in members], [each.state[param] for param, each, _ in members])


def _adam(group: Mapping[str, Any], params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
    """A step of Adam of all of these parameters in one call, each with its own state."""
    if not params:
        return
    adam(
        list(params),
        [param.grad for param in params if param.grad is not None],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        foreach=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )


def _are_finite(grads: Sequence[Tensor]) -> list[bool]:
    """Whether all numbers of a gradient are, of each of them; that all are is seen at once."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for grad in grads:
        kinds[grad.dtype, grad.device].append(grad.reshape(-1))
    if all(bool(torch.cat(flat).isfinite().all()) for flat in kinds.values()):
        return [True] * len(grads)
    return [bool(grad.isfinite().all()) for grad in grads]


def _next_step(group: dict[str, Any]) -> None:
    """Count a step, and set its size."""
    group["number"] += 1
    group["lr"] = group["first_lr"] * decay(group["number"], group["num_steps"])


def _average(group: Mapping[str, Any], params: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
    """Keep the mean of the last quarter, and take it at the end, where that is wanted."""
    if group["num_steps"] is None or not group["average"]:
        return
    tail = max(1, round(TAIL * group["num_steps"]))
    number = group["number"] - (group["num_steps"] - tail)
    if not 1 <= number <= tail:
        return
    for param, state in zip(params, states):
        state.setdefault("average", param.clone()).lerp_(param, 1 / number)
        if number == tail:
            param.copy_(state.pop("average"))


def decay(step: int, num_steps: int | None) -> float:
    """By how much a step is shorter than the first one.

    Example::

        >>> decay(10, None), decay(500, 1000), round(decay(750, 1000), 6), round(decay(2000, 1000), 6)
        (1.0, 1.0, 0.1, 0.01)
    """
    if num_steps is None:
        return 1.0
    return float(FINAL ** min(1.0, max(0.0, (step / num_steps - HOLD) / (1 - HOLD))))


def guide_optimizer(
    name: str, part_of: Callable[[str], str], lr: StepSize, num_steps: int | None, average: bool
) -> PyroOptim:
    """A Pyro optimiser with a step size for each part.

    :param name: of the guide's class, for errors.
    :param part_of: from a parameter's name to the part that it belongs to.
    """
    sizes = _checked(name, lr, num_steps, average)

    def arguments(param_name: str) -> dict[str, Any]:
        return {"lr": sizes[part_of(param_name)], "num_steps": num_steps, "average": average}

    return GuideOptim(DecayingAdam, arguments)


def _checked(name: str, lr: Any, num_steps: Any, average: Any) -> dict[str, float]:
    """The step size of each part."""
    if num_steps is not None and (isinstance(num_steps, bool) or not isinstance(num_steps, int)):
        raise TypeError(f"{name}.optimizer: num_steps must be a whole number or None, got {num_steps!r}")
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"{name}.optimizer: num_steps must be at least 1, got {num_steps}")
    if not isinstance(average, bool):
        raise TypeError(f"{name}.optimizer: average must be True or False, got {average!r}")
    given = lr if isinstance(lr, Mapping) else dict.fromkeys(PARTS, lr)
    unknown = [str(part) for part in given if part not in PARTS]
    if unknown:
        raise ValueError(f"{name}.optimizer: lr has no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    for part, size in given.items():
        if isinstance(size, bool) or not isinstance(size, Real):
            raise TypeError(f"{name}.optimizer: expected lr to be a number, or a dict of them, got {size!r} for {part}")
        if not 0 <= float(size) < math.inf:
            raise ValueError(f"{name}.optimizer: lr must be finite and not negative, got {size} for {part}")
    return {part: float(given.get(part, LR)) for part in PARTS}
