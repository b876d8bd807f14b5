"""Arguments of the wrong kind, to what can be asked of a fit: each is told in our words, not in torch's or Python's."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_nflows import (
    ELBO,
    SBC,
    VI,
    AutoCIF,
    AutoDAIS,
    AutoFlow,
    AutoIAF,
    AutoSpline,
    FlowDistribution,
    diagnostics,
    fit_jko,
    flows,
    plots,
    testing,
)
from pyro_nflows.diagnostics.invertibility import round_trip_errors
from pyro_nflows.diagnostics.mixing import r_hat
from pyro_nflows.diagnostics.outliers import outliers
from pyro_nflows.diagnostics.ranks import count_band, rank, uniformity
from pyro_nflows.layers import (
    Autoregressive,
    Conditional,
    Continuous,
    Coupling,
    FlowifiedActivation,
    Hamiltonian,
    Indexed,
    LocScale,
    LULinear,
    Planar,
    PlateAffine,
    Rescaled,
    Residual,
    SequenceAutoregressive,
    SparseAffine,
    Split,
    TriangularAffine,
)
from pyro_nflows.layers.base import Chain, Inverse
from pyro_nflows.transformers import RationalQuadratic
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
    "draws by number": (
        lambda vi: vi.posterior.constrained(torch.tensor([0, 10**6])),
        "constrained: index must be of rows from 0 to ",
    ),
    "draws by halves": (lambda vi: vi.posterior.constrained(torch.ones(3)), "index must be numbers of rows, integers"),
    "draws in rows": (
        lambda vi: vi.posterior.constrained(torch.ones(2, 3, dtype=torch.long)),
        r"of shape \(num_rows,\), got shape \(2, 3\)",
    ),
    "values at": (
        lambda vi: vi.posterior.sites_at(torch.ones(2, 3)),
        r"unconstrained draws, a tensor of shape \(num_samples, 6\), got shape \(2, 3\)",
    ),
    "constrain: a list": (lambda vi: vi.guide.constrain([0.0]), "a tensor of shape .*, got list"),
    "log_prob: a number": (lambda vi: vi.guide.log_prob(3), "values must be a dict by name, got a int"),
    "unconstrain: words": (lambda vi: vi.guide.unconstrain({"mu": "a"}), "the value of site 'mu' must be a number or"),
    "more draws than memory": (
        lambda vi: vi.leave_one_group_out("school", 10**9),
        "num_samples must be at most 44,739,242 with 6 latents, lest memory runs out, got 1,000,000,000; the default",
    ),
    "as_prior: a word": (lambda vi: vi.posterior.as_prior(untrusted="yes"), "untrusted must be True or False"),
    "to_arviz: a word": (lambda vi: vi.to_arviz(50, untrusted="yes"), "untrusted must be True or False, got 'yes'"),
    "VI: a bar": (lambda vi: VI(AutoFlow(schools), progress_bar="no"), "VI: progress_bar must be True or False"),
    "SBC: resample": (lambda vi: SBC(AutoFlow(schools), resample="no"), "SBC: resample must be True or False"),
    "SBC: data": (
        lambda vi: SBC(AutoFlow(schools), num_simulations=2, progress_bar=False).run("data"),
        "site 'y' is observed with a builtins.str; expected a tensor",
    ),
    "ELBO: compile": (lambda vi: ELBO(compile="no"), "ELBO: compile must be True or False, got 'no'"),
    "with_draws": (lambda vi: vi.posterior.with_draws("a"), "num_samples must be a positive integer, got 'a'"),
    "save: a number": (lambda vi: vi.save(3), "save: expected the path of a file, got 3"),
    "save: nothing": (lambda vi: vi.save(""), "save: expected the path of a file, got ''"),
    "load: a number": (lambda vi: VI.load(3, AutoFlow(schools)), "VI.load: expected the path of a file, got 3"),
    "quantiles: a word": (lambda vi: vi.guide.quantiles("half"), "levels must be a number or a list of numbers"),
    "centering: a word": (lambda vi: AutoFlow(schools, centering="x"), "centering must be a number, a dict, None or"),
    "centering: a share": (lambda vi: AutoFlow(schools, centering=1.5), "centering must be between 0 and 1, got 1.5"),
    "an option": (lambda vi: AutoIAF(schools, num_layers=0), "num_layers must be a positive integer, got 0"),
    "an option's kind": (lambda vi: AutoCIF(schools, inner="iaf"), "cif: expected inner to be a function, got str"),
    "widths": (lambda vi: AutoSpline(schools, hidden_dims=8), "hidden_dims must be a sequence of positive integers"),
    "damping": (lambda vi: AutoDAIS(schools, damping="a"), "a damping of at least 0 and below 1, got 'a'"),
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
    "a flow's sample": (
        lambda vi: FlowDistribution(Planar(2)).sample(5),
        r"FlowDistribution.sample: sample_shape must be a sequence such as \(100,\), got 5",
    ),
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
    "how wide": (lambda: LocScale(2, init_scale="a"), "LocScale: init_scale must be a positive number, got 'a'"),
    "how wide at all": (
        lambda: TriangularAffine(2, init_scale=math.nan),
        "init_scale must be a positive number, got n",
    ),
    "where to start each": (lambda: LocScale(2, torch.ones(3)), r"a tensor of shape \(2,\), got shape \(3,\)"),
    "plates": (lambda: PlateAffine(3), "PlateAffine: expected hierarchy to be a model.hierarchy.Hierarchy, .*, got 3"),
    "a pattern": (lambda: SparseAffine(3), "SparseAffine: expected elimination to be a model.elimination.Elimination"),
    "part of a point": (lambda: Split("a", 4), "Split: expected layers, got str"),
    "an index's law": (lambda: Indexed(Planar(2), transformer="a"), r"Indexed: expected transformer to be an object"),
    "a contraction": (lambda: Residual(2, lipschitz="a"), "lipschitz must be between 0 and 1, got 'a'"),
    "a probability": (lambda: Residual(2, keep="a"), "keep is a probability between 0 and 1, got 'a'"),
    "a tolerance": (lambda: Continuous(2, tolerance="a"), "tolerance must be positive, got 'a'"),
    "slopes": (lambda: FlowifiedActivation(3, torch.ones(2)), r"tensor of shape \(3,\), got shape \(2,\)"),
    "a step": (lambda: Hamiltonian(2, step_size="a"), "expected step_size to be a number, got 'a'"),
    "an order": (lambda: LULinear(3, "a"), "permutation must be a number or a list of numbers, got 'a'"),
    "bins": (lambda: RationalQuadratic(min_size="a"), "min_size must be between 0 and .*, got 'a'"),
    "dilations": (lambda: flows.wavenet(8, dilations="a"), "dilations must be a sequence of positive integers"),
    "positions": (lambda: SequenceAutoregressive(8), r"size must be \(positions, coordinates of each\), got 8"),
    "parameters of a number": (lambda: flows.num_params(3), "num_params: expected layer to be a layer or .*, got 3"),
    "a flow of hubs": (lambda: flows.on_hubs(3), "on_hubs: expected elimination to be a model.elimination.Elim"),
    "a flow of plates": (lambda: flows.on_plates(3), "on_plates: expected hierarchy to be a model.hierarchy.Hier"),
    "a flow in rows": (lambda: flows.within_rows(3, Planar(2)), "within_rows: expected hierarchy to be a"),
    "an inner flow": (lambda: flows.cif(2, "iaf"), "cif: expected inner to be a function, got str"),
    "a flow's blocks": (lambda: flows.jko(2, build=3), "jko: expected build to be a function, got int"),
    "a wider flow": (lambda: flows.widened(3, 10), "widened: expected build to be a function, got int"),
    "a flow's size": (lambda: flows.realnvp("two"), "must be a positive integer, got 'two'"),
    "the default's size": (lambda: flows.default(None), "latent_dim must be a positive integer, got None"),
    "weights": (lambda: diagnostics.pareto_k("w"), "log_weight must be a number or a list of numbers, got 'w'"),
    "rows of weights": (lambda: diagnostics.fit_tail(torch.randn(2, 10)), r"shape \(num_samples,\), got \(2, 10\)"),
    "a threshold": (lambda: diagnostics.k_threshold("a"), "num_samples: got 'a', expected a number of at least 2"),
    "a tail": (lambda: diagnostics.tail_length("a"), "num_samples must be a positive integer, got 'a'"),
    "a tail's draws": (lambda: diagnostics.tail_length(100, "a"), "r_eff: got 'a', expected a number of more than 0"),
    "a tail's length": (lambda: diagnostics.psis(torch.randn(9), num_tail=2.5), "num_tail: got 2.5, expected a whole"),
    "a shape": (lambda: diagnostics.min_num_samples("a"), "k: got 'a', expected a number"),
    "chosen draws": (lambda: diagnostics.psis_resample("w", 3), "log_weight must be a number or a list of numbers"),
    "so many draws": (lambda: diagnostics.psis_resample([0.0, 0.0], 2.5), "num_samples: got 2.5, expected a whole"),
    "far draws": (lambda: outliers("w"), "log_weight must be a number or a list of numbers, got 'w'"),
    "chains": (lambda: r_hat(torch.randn(9)), r"draws of shape \(num_chains, num_samples\), got \(9,\)"),
    "a rank": (lambda: rank(torch.randn(9), torch.ones(2)), r"a truth of shape \(...\), got \(9,\) and \(2,\)"),
    "ranks": (lambda: uniformity("a", 9), "ranks must be a number or a list of numbers, got 'a'"),
    "a band": (lambda: count_band(9, 2.0), "share must be between 0 and 1, got 2.0"),
    "there and back": (lambda: round_trip_errors("a", torch.ones(2)), "expected a layer, such as guide.layer, got 'a'"),
    "a density": (lambda: plots.plot_density(3), "plot_density: expected log_prob to be a function, got int"),
    "a density's values": (
        lambda: plots.plot_density(lambda x: x, num_grid=5),
        r"at points of shape \(25, 2\) a density gave shape \(25, 2\), expected \(25,\)",
    ),
    "limits": (lambda: plots.plot_density(torch.ones, limits=3), r"limits: got 3, expected \(low, high\)"),
    "steps": (lambda: plots.plot_elbo([1.0, 2.0], steps=[1]), "expected one number for each of 2 values"),
    "pictures of ranks": (lambda: plots.plot_calibration([1], 9), "ranks must be a dict by name, got a list"),
    "no way": (lambda: plots.plot_path(3), "path: got 3, expected vi.history.path"),
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
