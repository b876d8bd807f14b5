"""How a layer behaves as a piece of a program."""

import copy
import pickle

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..system.randomness import random_state
from .law import LawError, Make, agree, agree_pair, fresh, law, perturbed, points


@law()
def check_shapes(make: Make) -> None:
    """The results have the batch shape of ``x``, on which their values do not depend."""
    layer = perturbed(make)
    x, noise = points(layer, 6)
    y, log_weight = layer(x, noise)
    for shape in ((6,), (2, 3), (6, 1, 1)):
        got = layer(x.reshape(*shape, -1), None if noise is None else noise.reshape(*shape, -1))
        agree_pair(f"of a batch of shape {shape}", got, (y.reshape(*shape, -1), log_weight.reshape(shape)))
    agree_pair("of a single vector", layer(x[0], None if noise is None else noise[0]), (y[0], log_weight[0]))


@law()
def check_rows_are_independent(make: Make) -> None:
    """A row gives the same alone as in a batch."""
    layer = perturbed(make)
    x, noise = points(layer, 5)
    y, log_weight = layer(x, noise)
    for i in range(len(x)):
        row = slice(i, i + 1)
        alone = layer(x[row], None if noise is None else noise[row])
        agree_pair("of a row in a batch, against that row alone", (y[row], log_weight[row]), alone)


@law()
def check_forward_is_pure(make: Make) -> None:
    """``forward`` draws no random numbers, changes no state and remembers nothing."""
    layer = perturbed(make)
    twin, state = copy.deepcopy(layer), copy.deepcopy(layer.state_dict())
    x, noise = points(layer, 5)
    before = random_state()
    first = layer(x, noise)
    if not all(torch.equal(now, then) for now, then in zip(random_state(), before)):
        raise LawError("forward drew random numbers; declare noise_dim and use the noise that it is handed")
    agree_pair("of a second call", layer(x, noise), first)
    for name, value in layer.state_dict().items():
        agree(f"'{name}' after a call", value, state[name])
    with torch.no_grad():
        for parameter in (*layer.parameters(), *twin.parameters()):
            parameter.add_(0.1)
    agree_pair("of a layer whose parameters changed, against a new one", layer(x, noise), twin(x, noise))


@law()
def check_gradients_reach_every_parameter(make: Make) -> None:
    """Every trainable parameter has a finite gradient that is not zero."""
    layer = perturbed(make)
    y, log_weight = layer(*points(layer, 64))
    loss = (y * torch.randn_like(y)).sum() + (log_weight * torch.randn_like(log_weight)).sum()
    named = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True) if named else ()
    for name, grad in zip(named, grads):
        if grad is None or not grad.any():
            raise LawError(f"'{name}' has {'no' if grad is None else 'a zero'} gradient; use it, or do not train it")
        if not grad.isfinite().all():
            raise LawError(f"'{name}' has a gradient that is not finite")


@law()
def check_identity_at_initialisation(make: Make) -> None:
    """A fresh layer is the identity, with log-weight 0."""
    layer = fresh(make)
    x, noise = points(layer, 50)
    y, log_weight = layer(x, noise)
    agree_pair("of a fresh layer", (y, log_weight), (x, torch.zeros_like(log_weight)))


@law()
def check_functional_transforms(make: Make) -> None:
    """Results are the same under ``functional_call``, ``vmap`` and ``make_fx`` replayed at new points."""
    layer = perturbed(make)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    old, new = ({name: p.detach() for name, p in each.named_parameters()} for each in (layer, other))
    x, noise = points(layer, 5)
    agree_pair("under functional_call", torch.func.functional_call(layer, new, (x, noise)), other(x, noise))
    agree_pair("under vmap", torch.func.vmap(layer, (0, None if noise is None else 0))(x, noise), layer(x, noise))

    def run(params: dict[str, Tensor], x: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], list[Tensor]]:
        def loss(params: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
            y, log_weight = torch.func.functional_call(layer, params, (x, noise))
            return y.sum() + log_weight.sum(), [y, log_weight]

        return torch.func.grad(loss, has_aux=True)(params)

    graph = make_fx(run)(old, x, noise)
    x, noise = points(layer, 5, spread=3.0)
    (got, pair), (expected, expected_pair) = graph(new, x, noise), run(new, x, noise)
    agree_pair("of a traced graph at a new point", pair, expected_pair)
    for name, value in expected.items():
        agree(f"the gradient of '{name}' in a traced graph at a new point", got[name], value)


@law()
def check_dtypes(make: Make) -> None:
    """Single and double precision in is the same precision out, and they agree loosely."""
    double = perturbed(make)
    single = copy.deepcopy(double).float()
    x, noise = points(double, 20)
    expected = double(x, noise)
    got = single(x.float(), None if noise is None else noise.float())
    for dtype, pair in ((torch.float64, expected), (torch.float32, got)):
        for name, result in zip(("the point", "the log-weight"), pair):
            if result.dtype is not dtype:
                raise LawError(f"{name} of {dtype} input: got {result.dtype}, expected {dtype}")
    agree_pair("in single precision, against double", [t.double() for t in got], expected, 1e-3)


@law()
def check_copies(make: Make) -> None:
    """After use, ``deepcopy``, ``pickle`` and ``state_dict`` into a fresh layer give the same layer."""
    layer = perturbed(make)
    x, noise = points(layer, 5)
    expected = layer(x, noise)
    loaded = perturbed(make)
    loaded.load_state_dict(layer.state_dict())
    copied, pickled = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for name, twin in (("deepcopy", copied), ("pickle", pickled), ("state_dict in a fresh layer", loaded)):
        agree_pair(f"after {name}", twin(x, noise), expected)
    with torch.no_grad():
        for parameter in (*copied.parameters(), *loaded.parameters()):
            parameter.add_(1.0)
    agree_pair("after a copy of the layer changed", layer(x, noise), expected)


@law()
def check_repr(make: Make) -> None:
    """``repr`` names the layer, the same each time, without an address in memory."""
    text, again = repr(fresh(make)), repr(fresh(make))
    name = type(fresh(make)).__name__
    if not text.startswith(name) or " at 0x" in text or text != again:
        raise LawError(f"got {text!r}, expected {name}(...) without an address; give what it holds a repr")
