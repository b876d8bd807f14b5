"""A layer, a network or a parameter in several places of a flow: one set of numbers, trained by all of them."""

import copy
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_nflows import ELBO, VI, AutoFlow
from pyro_nflows.engine.program import Program
from pyro_nflows.layers import Conditional, Coupling, Permutation, Planar, Rescaled
from pyro_nflows.layers.base import Chain, Layer
from pyro_nflows.nets.views import with_parameters
from pyro_nflows.objectives.base import Gradient, Objective

TURN = (1, 2, 0)


def same_layer(dim: int = 3) -> Chain:
    layer = Planar(dim)
    return Chain(layer, Permutation(TURN), layer)


def same_network(dim: int = 3) -> Chain:
    first, second = Coupling(dim), Coupling(dim)
    second.net = first.net
    return Chain(first, Permutation(TURN), second)


def same_parameter(dim: int = 3) -> Chain:
    first, second = Coupling(dim), Coupling(dim)
    second.net.hidden[0].weight = first.net.hidden[0].weight
    return Chain(first, Permutation(TURN), second)


TIED = [same_layer, same_network, same_parameter]
tied = pytest.mark.parametrize("make", TIED, ids=lambda make: make.__name__)
Make = Callable[[], Chain]


def away_from_start(layer: Layer) -> Layer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def apart(layer: Chain) -> Chain:
    """The same map, whose two layers have numbers of their own."""
    return Chain(*(copy.deepcopy(part) for part in layer))


def model(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z[0] + z[1] * z[2], 0.5), obs=y)


def standard(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def num_numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@tied
def test_the_stored_layer_is_the_same_map_and_stays_it(make: Make) -> None:
    layer, x = away_from_start(make()), torch.randn(5, 3)
    stored = Rescaled(layer)
    for _ in range(2):  # a call must leave the parameters where they were
        torch.testing.assert_close(stored(x), layer(x))
    assert num_numbers(stored) == num_numbers(layer) < num_numbers(apart(layer))
    torch.testing.assert_close(stored.plain()(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(stored)(x), layer(x))
    assert all(isinstance(parameter, nn.Parameter) for parameter in stored.parameters())


@tied
@pytest.mark.parametrize("gradient", [Gradient.TOTAL, Gradient.PATH])
def test_the_gradient_is_the_sum_over_all_places(make: Make, gradient: Gradient) -> None:
    layer = away_from_start(make())
    other, noise = apart(layer), torch.randn(8, 3)  # type: ignore[arg-type]
    found = []
    for each in (layer, other):
        program = Program(standard, each, Objective(), gradient, 8)
        params = program.params().requires_grad_()
        draws = program._call(params, lambda at: Objective().draws(standard, at, noise, gradient))
        found.append((each, program, torch.autograd.grad(-Objective().surrogate(draws, gradient), params)[0]))
    (_, program, sums), (_, free, parts) = found
    by_name = dict(zip((name.removeprefix("layer.") for name in free._names), free.split(parts)))
    names = [name.removeprefix("layer.") for name in program._names]
    for name, total in zip(names, program.split(sums)):
        parameter = dict(layer.named_parameters())[name]
        places = [n for n, p in layer.named_parameters(remove_duplicate=False) if p is parameter]
        torch.testing.assert_close(total, sum(by_name[place] for place in places))


@tied
def test_a_conditional_layer_moves_all_places(make: Make) -> None:
    layer = make()
    whole = away_from_start(Conditional(layer, 2))
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    y, log_weight = whole.at(context)(x)
    jacobian = torch.func.jacrev(lambda x: whole.at(context[0])(x)[0])(x[0])
    torch.testing.assert_close(log_weight[0], torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(whole.at(context)(x)[0], y)


def test_a_view_has_the_tensor_in_every_place() -> None:
    layer = same_layer()
    moved = {name: parameter + 1 for name, parameter in layer.named_parameters()}
    view = with_parameters(layer, moved)
    assert view[2].w is view[0].w is moved["layers.0.w"]


@tied
def test_fits_and_their_copies_are_of_one_set_of_numbers(make: Make, tmp_path) -> None:  # type: ignore[no-untyped-def]
    x, y = torch.randn(5, 3), torch.tensor(0.5)
    fresh = lambda: AutoFlow(model, lambda dim: make())  # noqa: E731
    vi = VI(fresh(), num_steps=60, seed=0, progress_bar=False).run(y)
    layer = vi.guide.layer
    assert num_numbers(layer.layer.flow) == num_numbers(make())
    vi.save(tmp_path / "fit")
    loaded = VI.load(tmp_path / "fit", fresh(), y).guide.layer
    torch.testing.assert_close(loaded(x), layer(x))


@tied
def test_a_loop_trains_them_and_the_store_gives_them_back_to_every_place(make: Make) -> None:
    guide, y, x = AutoFlow(model, lambda dim: make()), torch.tensor(0.5), torch.randn(5, 3)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO(8))
    losses = [svi.step(y) for _ in range(20)]
    assert all(map(torch.isfinite, map(torch.as_tensor, losses)))
    again = AutoFlow(model, lambda dim: make())  # of the same name: takes what the store holds
    again(y)
    torch.testing.assert_close(again.layer(x), guide.layer(x))
    assert num_numbers(again.layer) == num_numbers(guide.layer)
