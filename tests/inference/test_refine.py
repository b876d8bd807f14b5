"""Chains that use a trained guide: right even where the guide is not."""

import pickle

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import VI, AutoCIF, AutoFlow, flows
from pyro_nflows.inference.exported import UntrustedWarning
from pyro_nflows.inference.refined import Mixing, Refined
from tests.models import PAIRS, pairs


def rough(seed=0, num_steps=3):
    """A guide that has hardly been trained."""
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    return VI(guide, num_steps=num_steps, seed=seed, progress_bar=False).run(PAIRS)


def within_errors(draws, mean, sd, ess):
    """Moments of ``(S, D)`` draws that are worth ``ess``."""
    error = sd / ess**0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    assert ((draws.std(0) - sd).abs() < 5 * error).all()


@pytest.mark.parametrize("method", ["nuts", pytest.param("hmc", marks=pytest.mark.slow), "independence"])
def test_refined_draws_are_posterior_draws(method):
    vi = rough()
    num = 150 if method == "nuts" else 300
    refined = vi.refine(num, 100, 3, method=method)
    z = refined.get_samples()["z"]
    assert z.shape == (3 * num, 4)
    assert 20 < refined.ess < 3000
    within_errors(z, PAIRS / 2, 0.5**0.5, refined.ess)
    assert refined.get_samples(group_by_chain=True)["z"].shape == (3, num, 4)


def test_chains_of_a_good_guide_are_trusted(capsys):
    refined = rough(num_steps=300).refine(1000, num_chains=4, method="independence")
    assert refined.accepted > 0.9
    assert refined.mixed
    refined.summary()
    shown = capsys.readouterr().out
    assert "z[3]" in shown
    assert "Trust these draws: R-hat is" in shown


def funnel() -> None:
    log_tau = pyro.sample("log_tau", dist.Normal(0.0, 3.0))
    with pyro.plate("row", 3):
        pyro.sample("z", dist.Normal(0.0, log_tau.exp()))


def test_chains_of_a_guide_that_misses_a_part_are_not_trusted_though_they_agree():
    """All chains miss the same: the guide's draws do not go into the neck, nor far out."""
    vi = VI(AutoFlow(funnel, centering=None, init_scale=0.5), seed=0, engine="eager", progress_bar=False).judge()
    refined = vi.refine(1000, num_chains=4, method="independence")
    assert refined.pareto_k > 0.7
    agreeing = Refined(vi.posterior, torch.randn(4, 500, 4), 0.9, pareto_k=refined.pareto_k)
    assert agreeing.mixed
    assert agreeing.verdict().outcome is Mixing.PROPOSALS
    assert "take method='nuts'" in agreeing.verdict().sentence
    assert not agreeing.to_arviz(untrusted=True).posterior.attrs["trusted"]


def test_chains_that_disagree_are_not_trusted():
    posterior = rough().posterior
    z = torch.randn(4, 500, 4) + torch.arange(4.0)[:, None, None]
    refined = Refined(posterior, z, 0.9)
    assert not refined.mixed
    assert refined.verdict().sentence.startswith("Do not trust these draws yet: R-hat is")
    assert not Refined(posterior, torch.randn(2, 3, 4), 0.9).mixed  # too few to tell


def test_the_same_seed_gives_the_same_chains_and_the_global_one_is_left_alone():
    vi = rough(seed=3)
    before = torch.get_rng_state()
    first, second = (vi.refine(50, 20, 2).z for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_done_is_refused():
    vi = rough()
    with pytest.raises(ValueError, match=r"method must be one of \['nuts', 'hmc', 'independence'\], got 'gibbs'"):
        vi.refine(method="gibbs")
    with pytest.raises(ValueError, match="num_chains"):
        vi.refine(num_chains=0)
    with pytest.raises(RuntimeError, match="call run"):
        VI(AutoFlow(pairs)).refine()
    cif = VI(AutoCIF(pairs), num_steps=2, seed=0, progress_bar=False).run(PAIRS)
    with pytest.raises(ValueError, match="needs a bijective flow with an inverse, got AutoCIF"):
        cif.refine()
    assert cif.refine(100, method="independence").z.shape == (4, 100, 4)
    came_back = pickle.loads(pickle.dumps(vi.refine(20, method="independence")))
    with pytest.raises(ValueError, match="draws came back without their chains"):
        came_back.more(10)


def test_without_a_seed_chains_are_others_each_time_and_with_one_the_same():
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)))
    vi = VI(guide, num_steps=3, progress_bar=False).run(PAIRS)
    first, second = (vi.refine(5, 5, 2, "hmc").z for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (vi.refine(5, 5, 2, "hmc", seed=5).z for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("method", ["hmc", "independence", pytest.param("nuts", marks=pytest.mark.slow)])
def test_chains_go_on_where_they_are(method):
    """The further draws are draws of the posterior too, and what there was stays."""
    begun = rough(seed=2).refine(60, 60, 8, method=method)
    before = begun.z.clone()
    longer = begun.more(200)
    assert torch.equal(begun.z, before)
    assert torch.equal(longer.z[:, :60], before)
    assert longer.z.shape == (8, 260, 4)
    assert longer.ess > begun.ess
    within_errors(longer.get_samples()["z"], PAIRS / 2, 0.5**0.5, longer.ess)
    assert torch.equal(begun.more(9).z, begun.more(9).z)
    assert torch.equal(begun.more(9, seed=1).z, begun.more(9, seed=1).z)
    if method != "independence":  # where nearly all proposals are accepted, whatever the random numbers
        assert not torch.equal(begun.more(9, seed=1).z, begun.more(9, seed=2).z)


def test_a_chain_begins_where_the_last_one_ended():
    """Chains that accept hardly anything stand still from one batch to the next."""
    guide = AutoFlow(pairs, lambda dim: flows.realnvp(dim, 2, (4,)), init_loc_fn=lambda _: torch.full((4,), 4.0))
    vi = VI(guide, seed=0, engine="eager", progress_bar=False).judge(PAIRS)
    begun = vi.refine(200, num_chains=3, method="independence")
    longer = begun.more(50)
    assert longer.accepted < 0.2
    stays = (longer.z[:, 200] == longer.z[:, 199]).all(-1)
    assert stays.sum() >= 2


def test_nuts_keeps_the_step_size_and_the_mass_matrix_that_it_has_found():
    begun = rough().refine(10, 60, 1)
    (warmth,) = begun._chains.warmth
    assert warmth.step_size != 1.0
    (again,) = begun.more(5)._chains.warmth
    assert again.step_size == warmth.step_size
    for name, inverse_mass in warmth.inverse_mass.items():
        assert not torch.equal(inverse_mass, torch.ones(4, dtype=inverse_mass.dtype))
        torch.testing.assert_close(again.inverse_mass[name], inverse_mass)


def test_independence_chains_take_fresh_draws_where_those_of_the_fit_are_used_up():
    vi = rough(num_steps=20)
    num = len(vi.log_weight)
    refined = vi.refine(num // 2, num_chains=3, method="independence")
    assert refined.z.shape == (3, num // 2, 4)
    assert len(refined.z.flatten(0, 1).unique(dim=0)) > 0.5 * num


def test_numbers_are_those_of_arviz_for_every_scalar():
    refined = rough(seed=1).refine(150, 50, 4, method="hmc")
    data = refined.to_arviz(untrusted=True)
    assert refined.r_hat == pytest.approx(float(az.rhat(data)["z"].max()), rel=1e-6)
    of_tails = az.ess(data, method="tail", prob=(0.05, 0.95))
    least = min(float(found["z"].min()) for found in (az.ess(data, method="bulk"), of_tails))
    assert refined.ess == pytest.approx(least, rel=1e-4)


def test_chains_go_to_arviz_as_chains():
    vi = rough(num_steps=100)
    refined = vi.refine(1000, num_chains=4, method="independence")
    assert refined.mixed
    data = refined.to_arviz(coords={"unit": list("abcd")})
    assert data["posterior"]["z"].shape == (4, 1000, 4)
    torch.testing.assert_close(torch.tensor(data["posterior"]["z"].values), refined.z)
    lp = torch.distributions.Normal(0.0, 1.0).log_prob(refined.z)
    lp = (lp + torch.distributions.Normal(refined.z, 1.0).log_prob(PAIRS)).sum(-1)
    torch.testing.assert_close(torch.tensor(data["sample_stats"]["lp"].values), lp)
    assert data["log_likelihood"]["x"].shape == (4, 1000, 4)
    attrs = data["posterior"].attrs
    assert (attrs["verdict"], attrs["trusted"], attrs["r_hat"]) == ("MIXED", 1, refined.r_hat)
    assert attrs["verdict_sentence"] == refined.verdict().sentence


def test_chains_that_are_not_to_be_trusted_are_exported_with_a_warning():
    refined = rough().refine(20, num_chains=2, method="independence")
    with pytest.warns(UntrustedWarning, match="Do not trust these draws yet"):
        data = refined.to_arviz()
    assert data.attrs["trusted"] == 0
    refined.to_arviz(untrusted=True)  # a warning would be an error here


def test_constrained_sites_come_back_constrained():
    def model():
        pyro.sample("scale", dist.Gamma(3.0, 2.0))

    vi = VI(AutoFlow(model), num_steps=20, seed=0, progress_bar=False).run()
    scale = vi.refine(1000, 100, 2, method="independence").get_samples()["scale"]
    assert (scale > 0).all()
    assert scale.mean().item() == pytest.approx(1.5, abs=0.15)


def test_many_chains_of_hmc_agree_on_a_posterior_that_the_guide_has_wrong():
    refined = rough(seed=1).refine(250, 100, 16, method="hmc")
    assert refined.z.shape == (16, 250, 4)
    assert 0.6 < refined.accepted < 0.95
    assert refined.mixed
    within_errors(refined.get_samples()["z"], PAIRS / 2, 0.5**0.5, refined.ess)
