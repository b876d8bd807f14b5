"""Arguments of the wrong kind, to what can be asked of a fit: each is told in our words, not in torch's or Python's."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_nflows import VI, AutoFlow, FlowDistribution, diagnostics, fit_jko, flows, plots, testing
from pyro_nflows.layers import Autoregressive, Conditional, Coupling, Indexed, LocScale, Planar, Rescaled
from pyro_nflows.layers.base import Chain, Inverse
from tests.models import schools

Y = torch.tensor([1.0, 5.0, -3.0, 2.0])


@pytest.fixture(scope="module")
def vi() -> VI:
    return VI(AutoFlow(schools), effort="quick", seed=0, progress_bar=False).run(Y)


REFINE = {"num_samples": 5, "num_chains": 1, "method": "independence"}
CALLS: dict[str, tuple[Callable[[VI], Any], str]] = {
    "summary: a number": (lambda vi: vi.summary(3), "var_names must be the name of a site or a list of names, got 3"),
    "summary: a number within": (lambda vi: vi.summary(["mu", 3]), "var_names must be the name of a site"),
    "summary: prob": (lambda vi: vi.summary(prob="most"), "prob must be between 0 and 1, got 'most'"),
    "plot: a number": (lambda vi: vi.plot(3), "var_names must be the name of a site"),
    "get_samples: resample": (lambda vi: vi.get_samples(10, resample="no"), "resample must be True or False, got 'no'"),
    "predict: num_samples": (lambda vi: vi.predict(Y, num_samples="a"), "predict: num_samples must be a positive"),
    "predict: fresh": (lambda vi: vi.predict(Y, fresh=3), "fresh must be the name of a site or a list of names"),
    "predict: seed": (lambda vi: vi.predict(Y, seed=1.5), "seed must be an integer or None, got 1.5"),
    "refine: seed": (lambda vi: vi.refine(**REFINE, seed="a"), "refine: seed must be an integer or None"),
    "a plate": (lambda vi: vi.leave_one_group_out(["school"]), "plate must be the name of a plate of the model"),
    "to_arviz: num_samples": (lambda vi: vi.to_arviz("a"), "to_arviz: num_samples must be a positive integer"),
    "to_arviz: a list": (lambda vi: vi.to_arviz(50, untrusted=True, coords=[1]), "coords must be a dict by name, got"),
    "to_arviz: dims": (
        lambda vi: vi.to_arviz(50, untrusted=True, dims=["a"]),
        "dims must be a dict by name, got a list",
    ),
    "to_arviz: terms": (
        lambda vi: vi.to_arviz(50, untrusted=True, log_likelihood=3),
        "log_likelihood must be the name",
    ),
    "to_arviz: flag": (lambda vi: vi.to_arviz(50, untrusted=True, unconstrained="x"), "unconstrained must be True or"),
    "with_draws": (lambda vi: vi.posterior.with_draws("a"), "num_samples must be a positive integer, got 'a'"),
    "save: a number": (lambda vi: vi.save(3), "save: expected the path of a file, got 3"),
    "save: nothing": (lambda vi: vi.save(""), "save: expected the path of a file, got ''"),
    "load: a number": (lambda vi: VI.load(3, AutoFlow(schools)), "VI.load: expected the path of a file, got 3"),
    "quantiles: a word": (lambda vi: vi.guide.quantiles("half"), "levels must be a number or a list of numbers"),
    "centering: a word": (
        lambda vi: AutoFlow(schools, centering="x")(Y),
        "centering must be a number, a dict, None or",
    ),
    "centering: words": (
        lambda vi: AutoFlow(schools, centering={"theta": "x"})(Y),
        "centering of 'theta' must be a nu",
    ),
    "centering: a shape": (
        lambda vi: AutoFlow(schools, centering={"theta": torch.zeros(3)})(Y),
        r"a tensor of the site's shape, \(4,\), got shape \(3,\)",
    ),
    "a prior's shape": (lambda vi: prior(vi).sample(5), r"sample_shape must be a sequence such as \(100,\), got 5"),
    "a prior's values": (lambda vi: prior(vi).log_prob([1.0]), "values must be a dict by name, got a list"),
    "a prior's site": (lambda vi: prior(vi).log_prob({**sites(), "x": 1.0}), r"got values of \['x'\], but the sites"),
    "a flow's layer": (lambda vi: FlowDistribution(3), "FlowDistribution: expected a Layer"),
    "a flow's base": (lambda vi: FlowDistribution(Planar(2), 3), "as base_dist a distribution or None, got"),
    "a flow's value": (lambda vi: FlowDistribution(Planar(2)).log_prob([1.0]), "expected a tensor, got list"),
    "data that are words": (lambda vi: fit_jko("data"), "an array of numbers, got str"),
}


def sites() -> dict[str, Any]:
    return {"mu": torch.tensor(0.0), "tau": torch.tensor(1.0), "theta": torch.zeros(4)}


def prior(vi: VI) -> Any:
    return vi.posterior.as_prior(untrusted=True)


@pytest.mark.parametrize("name", CALLS)
def test_what_was_expected_is_said(vi: VI, name: str) -> None:
    call, says = CALLS[name]
    with pytest.raises((TypeError, ValueError), match=says):
        call(vi)


def test_a_folder_is_no_file(vi: VI, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for call in (lambda: vi.save(tmp_path), lambda: VI.load(tmp_path, AutoFlow(schools))):
        with pytest.raises(IsADirectoryError, match="is a folder; expected the path of a file in it"):
            call()
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_a_fitted_prior_has_no_mass_off_its_support_and_takes_numbers(vi: VI) -> None:
    found = prior(vi)
    assert float(found.log_prob({**sites(), "tau": -1.0})) == -math.inf
    both = found.log_prob({**sites(), "tau": torch.tensor([1.0, -1.0])})
    assert float(both[1]) == -math.inf
    torch.testing.assert_close(both[0], found.log_prob({**sites(), "mu": 0.0}))
    assert found.log_prob({**sites(), "mu": math.nan}).isnan()


def test_whole_numbers_are_points_too() -> None:
    flow = FlowDistribution(Planar(2))
    torch.testing.assert_close(flow.log_prob(torch.tensor([1, 2])), flow.log_prob(torch.tensor([1.0, 2.0])))


LAYER_CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a point that is a list": (lambda: Planar(2)([1.0, 2.0]), "Planar.forward: expected x to be a floating-point tens"),
    "whole numbers": (lambda: Coupling(2)(torch.tensor([1, 2])), "floating-point tensor, got dtype torch.int64"),
    "no point": (
        lambda: Coupling(2).inverse(None),
        "Coupling.inverse: expected y to be a floating-point tensor, got No",
    ),
    "a chain of a list": (
        lambda: Chain([Planar(2)]),
        r"got list; layers of a list are Chain\(\*layers\)",
    ),
    "a chain of a number": (lambda: Chain(Planar(2), 3), "Chain: expected layers, got int"),
    "an inverse": (lambda: Inverse(3), "Inverse: expected layers, got int"),
    "an index": (lambda: Indexed(3), "Indexed: expected layers, got int"),
    "a context": (lambda: Conditional(3, 2), "Conditional: expected layers, got int"),
    "stored": (lambda: Rescaled(3), "Rescaled: expected layers, got int"),
    "a map": (lambda: Coupling(2, "affine"), r"transformer to be an object such as Affine\(\)"),
    "a map by position": (lambda: Autoregressive(2, 3), r"transformer to be an object such as Affine\(\)"),
    "where to start": (lambda: LocScale(2, "here"), "init_loc must be a number or a list of numbers, got 'here'"),
    "a flow's size": (lambda: flows.realnvp("two"), "must be a positive integer, got 'two'"),
    "the default's size": (lambda: flows.default(None), "latent_dim must be a positive integer, got None"),
    "weights": (lambda: diagnostics.pareto_k("w"), "log_weight must be a number or a list of numbers, got 'w'"),
    "rows of weights": (lambda: diagnostics.fit_tail(torch.randn(2, 10)), r"shape \(num_samples,\), got \(2, 10\)"),
    "what to draw": (lambda: plots.plot_elbo("losses"), "elbos must be a number or a list of numbers, got 'losses'"),
    "a path": (lambda: plots.plot_path([1.0, 2.0]), "expected a list of tuples of tensors"),
    "a law": (lambda: testing.check_shapes(3), "expected a layer, or a function that makes one, got 3"),
}


@pytest.mark.parametrize("name", LAYER_CALLS)
def test_parts_of_flows_say_so_too(name: str) -> None:
    call, says = LAYER_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=says):
        call()


def test_weights_may_be_a_list() -> None:
    assert diagnostics.ess([0.0, 0.0, 0.0]) == 1
