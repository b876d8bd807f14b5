"""What flow guides keep: copies, pickles, checkpoints, precision, and the param store."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from pyro.optim import Adam
from torch import Tensor

from pyro_nflows import ELBO, AutoFlow
from pyro_nflows.guides import AutoFlow as AnyGuide
from pyro_nflows.layers import Planar
from tests.guide_registry import Case, cases, moved
from tests.models import PAIRS, one_of_each, pairs

pytestmark = pytest.mark.on_devices


def draws(guide: AnyGuide) -> Tensor:
    pyro.set_rng_seed(5)
    result: Tensor = guide.get_posterior().sample((3,))
    return result


def trained(case: Case, model: Callable[..., Any] = pairs, **options: Any) -> AnyGuide:
    guide = case(model, **options)
    guide()
    return moved(guide)


# ---- copies and pickles -------------------------------------------------------------------------------------


@cases()
def test_a_deepcopy_is_the_same_and_apart(case: Case) -> None:
    guide = trained(case)
    twin, before = copy.deepcopy(guide), draws(guide)
    assert torch.equal(draws(twin), before)
    assert twin.model is not None
    assert twin.bare_model is pairs
    moved(twin)
    assert torch.equal(draws(guide), before)
    assert not torch.equal(draws(twin), before)


@cases()
def test_a_fresh_guide_can_be_copied_before_its_first_call(case: Case) -> None:
    twin = copy.deepcopy(case(pairs))
    assert twin()["z"].shape == (4,)


def by_pickle(guide: AnyGuide) -> AnyGuide:
    result: AnyGuide = pickle.loads(pickle.dumps(guide))
    return result


def by_torch(guide: AnyGuide) -> AnyGuide:
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    result: AnyGuide = torch.load(buffer, weights_only=False)
    return result


@cases(needs_model=False)
@pytest.mark.parametrize("round_trip", [by_pickle, by_torch])
def test_pickles_hold_all_but_the_model(case: Case, round_trip: Callable[[AnyGuide], AnyGuide]) -> None:
    guide = trained(case, one_of_each, centering=None)
    again = round_trip(guide)
    pyro.clear_param_store()
    assert torch.equal(draws(again), draws(guide))
    assert again().keys() == guide().keys()
    torch.testing.assert_close(again.median(), guide.median())
    samples = Predictive(one_of_each, guide=again, num_samples=2)()
    assert samples["nested"].shape == (2, 2, 3)
    for attribute in ("model", "bare_model"):
        with pytest.raises(RuntimeError, match=r"has no model.*load_state_dict\(\) into it"):
            getattr(again, attribute)
    assert guide.bare_model is one_of_each


@cases(needs_model=False)
def test_a_pickled_guide_of_a_hierarchy_says_that_its_values_need_the_model(case: Case) -> None:
    guide = trained(case, one_of_each)
    again = by_pickle(guide)
    assert torch.equal(draws(again), draws(guide))
    with pytest.raises(RuntimeError, match=r"has no model.*load_state_dict\(\) into it"):
        again()
    fresh = case(one_of_each)
    fresh.load_state_dict(again.state_dict())
    fresh.set_up((), {})
    z = draws(guide)
    torch.testing.assert_close(fresh.constrain(z)["nested"], guide.constrain(z)["nested"])


@cases()
def test_pickling_does_not_disturb_the_guide(case: Case) -> None:
    guide = AutoGuideList(pairs)
    guide.append(trained(case))
    part = guide[0]
    pickle.dumps(part)
    assert part.model is not None
    assert part.master() is guide


# ---- checkpoints --------------------------------------------------------------------------------------------


@cases(needs_model=False)
def test_state_dict_into_a_fresh_guide(case: Case) -> None:
    guide = trained(case, one_of_each)
    buffer = io.BytesIO()
    torch.save(guide.state_dict(), buffer)
    buffer.seek(0)
    fresh = case(one_of_each)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(draws(fresh), draws(guide))
    fresh()
    assert torch.equal(draws(fresh), draws(guide))
    torch.testing.assert_close(fresh.median(), guide.median())


@cases()
def test_state_dict_into_a_guide_that_has_been_called(case: Case) -> None:
    guide, other = trained(case), case(pairs)
    other()
    other.load_state_dict(guide.state_dict())
    assert torch.equal(draws(other), draws(guide))


@cases(needs_model=False)
def test_state_dict_of_a_list_of_guides(case: Case) -> None:
    def make() -> AutoGuideList:
        guide = AutoGuideList(pairs)
        guide.append(case(pairs))
        return guide

    guide, fresh = make(), make()
    guide()
    moved(guide[0])
    fresh.load_state_dict(guide.state_dict())
    assert torch.equal(draws(fresh[0]), draws(guide[0]))


@cases(needs_model=False)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_keeps_its_precision(case: Case, dtype: torch.dtype) -> None:
    state = trained(case).to(dtype).state_dict()
    fresh = case(pairs)
    fresh.load_state_dict(state)
    assert {param.dtype for param in fresh.parameters()} == {dtype}
    assert draws(fresh).dtype == dtype


def renamed() -> None:
    with pyro.plate("unit", 4):
        pyro.sample("other", dist.Normal(0.0, 1.0))


def longer() -> None:
    with pyro.plate("unit", 5):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@cases()
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (renamed, r"site 'z' has unconstrained shape \[4\] there and absent here"),
        (longer, r"site 'z' has unconstrained shape \[4\] there and \[5\] here"),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_a_checkpoint_of_another_model_is_refused(
    case: Case, model: Callable[[], None], message: str, called: bool
) -> None:
    state, other = trained(case).state_dict(), case(model)
    pyro.clear_param_store()
    if called:
        other()
        before = draws(other)
        with pytest.raises(ValueError, match=f"{case.name}: the loaded state is of another model: {message}"):
            other.load_state_dict(state)
        assert torch.equal(draws(other), before)
        return
    other.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            other()


def test_the_last_checkpoint_counts() -> None:
    guide, other = AutoFlow(pairs), AutoFlow(renamed)
    guide()
    pyro.clear_param_store()
    other()
    pyro.clear_param_store()
    fresh = AutoFlow(pairs)
    fresh.load_state_dict(other.state_dict())
    fresh.load_state_dict(guide.state_dict())
    assert fresh()["z"].shape == (4,)


# ---- precision ----------------------------------------------------------------------------------------------


@cases()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_guide_has_the_precision_of_the_models_latents(case: Case, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        data = PAIRS.to(dtype)
        guide = case(pairs)
        for elbo in (ELBO(3), Trace_ELBO()):
            SVI(pairs, guide, Adam({"lr": 1e-2}), elbo).step(data)
        tensors = [*guide(data).values(), *guide.median().values(), *guide.parameters(), guide.sample_latent()]
        assert {tensor.dtype for tensor in tensors} == {dtype}
    finally:
        torch.set_default_dtype(torch.float64)


@cases()
def test_latents_of_another_precision_than_the_default(case: Case) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float32), 1.0).to_event(1))

    guide = case(model)
    assert guide()["z"].dtype == torch.float32
    assert ELBO(2).loss_and_grads(model, guide) < torch.inf


# ---- the param store ----------------------------------------------------------------------------------------


@cases()
def test_a_second_guide_of_the_same_shapes_shares_parameters_as_in_pyro(case: Case) -> None:
    first = trained(case)
    first()
    second = case(pairs)
    second()
    assert torch.equal(draws(second), draws(first))


@cases()
def test_a_second_guide_of_other_shapes_is_refused(case: Case) -> None:
    case(pairs)()
    message = rf"param store holds '{case.name}\.layer\$\$\$.*from another guide.*call pyro.clear_param_store\(\)"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            case(longer)()
    pyro.clear_param_store()
    assert case(longer)()["z"].shape == (5,)


@cases(needs_model=False)
def test_loaded_parameters_win_over_stored_ones(case: Case) -> None:
    """Pyro's rule, that the store wins, would silently undo the load."""
    guide = trained(case)
    state, expected = copy.deepcopy(guide.state_dict()), draws(guide)
    pickled = pickle.dumps(guide)
    moved(guide, seed=2)
    guide()
    loaded = case(pairs)
    loaded.load_state_dict(state)
    for again in (loaded, pickle.loads(pickled)):
        again()
        assert torch.equal(draws(again), expected)


@cases()
def test_an_adopted_layer_wins_over_stored_parameters(case: Case) -> None:
    trained(case)()
    guide = case(pairs)
    guide.set_up((), {})
    layer = moved(copy.deepcopy(guide)).layer
    assert layer is not None
    guide.adopt(layer)
    guide()
    assert guide.layer is layer
    names = [name for name in pyro.get_param_store() if name.startswith(f"{case.name}.layer$$$")]
    assert len(names) == len(list(layer.parameters()))
    loss_before = Trace_ELBO().loss(pairs, guide)
    svi = SVI(pairs, guide, Adam({"lr": 0.1}), ELBO(8))
    for _ in range(5):
        svi.step()
    assert Trace_ELBO(num_particles=20).loss(pairs, guide) != loss_before
    assert guide.layer is layer


@cases()
def test_module_local_params(case: Case) -> None:
    with pyro.settings.context(module_local_params=True):
        guide, other = case(pairs), case(longer)
        for each, model in ((guide, pairs), (other, longer)):
            assert Trace_ELBO()(model, each)() < torch.inf
        assert len(pyro.get_param_store()) == 0
        optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
        before = draws(guide)
        for elbo in (ELBO(4), Trace_ELBO()):
            optimizer.zero_grad()
            elbo(pairs, guide)().backward()
            optimizer.step()
        assert not torch.equal(draws(guide), before)


def test_svi_trains_the_guides_own_parameters() -> None:
    guide = AutoFlow(pairs, Planar)
    guide()
    before = dict(guide.named_parameters())
    SVI(pairs, guide, Adam({"lr": 0.1}), ELBO(4)).step()
    assert all(before[name] is param for name, param in guide.named_parameters())
    assert set(poutine.trace(guide).get_trace().param_nodes) == set(pyro.get_param_store().keys())
