import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import ELBO, IWAE, AutoCIF, AutoFlow, recipes
from pyro_nflows.engine import (
    Engine,
    EngineWarning,
    Gaussian,
    Inputs,
    Program,
    Round,
    Trainer,
    best_start,
    compile_step,
)
from pyro_nflows.layer import Chain
from pyro_nflows.layers import LocScale, TriangularAffine
from pyro_nflows.log_joint import LogJoint
from pyro_nflows.objectives import Gradient

PRECISION = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


def log_gaussian(z):
    return -0.5 * ((z - 1) @ PRECISION * (z - 1)).sum(-1)


def two_couplings(dim):
    return recipes.realnvp(dim, 2, (8, 8))


def two_indexed_couplings(dim):
    return recipes.cif(dim, two_couplings)


def inputs(program, rate=1e-2):
    noise = torch.randn(program.num_particles, program.noise_width)
    return Inputs(noise, torch.tensor(rate), torch.tensor(1.0))


def run(step, state, rows):
    losses = []
    for row in rows:
        state, loss = step(state, row)
        losses.append(loss)
    return state, torch.stack(losses)


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [(ELBO(), "total"), (ELBO(), "path"), (IWAE(), "total"), (IWAE(), "path"), (IWAE(), "dreg")],
)
@pytest.mark.parametrize("recipe", [two_couplings, two_indexed_couplings])
def test_traced_and_eager_give_the_same_losses(recipe, objective, gradient):
    layer = Chain(recipe(2), TriangularAffine(2))
    program = Program(log_gaussian, layer, objective, Gradient(gradient), 8)
    rows = [inputs(program) for _ in range(20)]
    step, engine = compile_step(program, Engine.TRACED, rows[0])
    assert engine is Engine.TRACED
    (_, eager), (_, traced) = (run(s, program.init(), rows) for s in (program.step, step))
    assert torch.allclose(eager, traced, rtol=1e-9)


def test_a_step_is_the_step_of_torch_adam():
    layer = Chain(TriangularAffine(2, init_scale=0.3))
    program = Program(log_gaussian, layer, ELBO(), Gradient.TOTAL, 4, max_norm=1e9)
    rows = [inputs(program) for _ in range(5)]
    state, _ = run(program.step, program.init(), rows)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for row in rows:
        adam.zero_grad()
        draws = ELBO().draws(log_gaussian, layer, row.noise, Gradient.TOTAL)
        (-draws.log_weight.mean()).backward()
        adam.step()
    expected = torch.cat([p.detach().reshape(-1) for p in layer.parameters()])
    assert torch.allclose(state.params, expected, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    program = Program(lambda z: z.sum(-1) * torch.nan, Chain(LocScale(2)), ELBO(), Gradient.PATH, 4)
    state = program.init()
    after, _ = program.step(state, inputs(program))
    assert after.skipped == 1
    assert torch.equal(after.params, state.params)
    assert after.steps == 0


def test_gradients_are_clipped_by_norm():
    program = Program(lambda z: 1e8 * z.sum(-1), Chain(LocScale(2)), ELBO(), Gradient.PATH, 4, max_norm=1.0)
    after, _ = program.step(program.init(), inputs(program))
    assert after.mean.norm() <= 0.1 + 1e-9


def test_writing_a_state_puts_it_into_the_layer():
    layer = Chain(LocScale(2))
    program = Program(log_gaussian, layer, ELBO(), Gradient.PATH, 4)
    state = program.init()
    program.write(state._replace(params=torch.arange(4.0)))
    assert torch.equal(layer[0].loc, torch.tensor([0.0, 1.0]))


def test_model_parameters_train_with_the_flow():
    """With z = x in the posterior's exact Gaussian, the evidence is greatest where the mean of z is that of x."""
    x = torch.tensor([1.0, 2.0, 6.0])

    def model():
        mean = pyro.param("mean", torch.tensor(0.0))
        with pyro.plate("n", 3):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoFlow(model, lambda d: LocScale(d))
    guide()
    joint = LogJoint(model, guide)
    joint.prepare()
    leaves = joint.leaves(guide._init_loc())
    trainer = Trainer(joint, leaves, progress_bar=False)
    trainer.run(guide.layer, ELBO(), Gradient.PATH, Round(1000, 16, 3e-2), "")
    assert trainer.history.engines == [Engine.TRACED]
    assert pyro.param("mean").item() == pytest.approx(3.0, abs=0.01)


def test_a_model_that_branches_on_values_runs_eagerly_with_one_warning():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=torch.tensor(1.0))

    guide = AutoFlow(model)
    guide()
    joint = LogJoint(model, guide)
    with pytest.warns(UserWarning, match=r"torch\.vmap cannot run this model"):
        joint.prepare()
    program = Program(joint, guide.layer, ELBO(), Gradient.PATH, 2)
    with pytest.warns(EngineWarning, match="traced engine cannot run this model"):
        _, engine = compile_step(program, None, inputs(program))
    assert engine is Engine.EAGER


def test_python_randomness_is_found_out_and_runs_eagerly():
    import random

    program = Program(lambda z: log_gaussian(z) * random.random(), Chain(LocScale(2)), ELBO(), Gradient.PATH, 4)
    with pytest.warns(EngineWarning, match="at fresh points"):
        _, engine = compile_step(program, None, inputs(program))
    assert engine is Engine.EAGER


def test_the_best_start_is_the_laplace_approximation_where_that_is_exact():
    init = Gaussian(torch.full((2,), 30.0), 0.1 * torch.eye(2))
    start = best_start(log_gaussian, init)
    assert torch.allclose(start.loc, torch.ones(2), atol=1e-4)
    assert torch.allclose(start.scale_tril @ start.scale_tril.T, torch.linalg.inv(PRECISION), atol=1e-4)


def test_the_best_start_is_not_fooled_by_a_density_without_a_mode():
    """A centered hierarchy: the density grows without bound as the scale falls, but its mass does not."""

    def log_joint(z):
        log_tau, theta = z[..., 0], z[..., 1:]
        return log_tau - 0.5 * log_tau**2 / 9 - 8 * log_tau - 0.5 * (theta / log_tau.exp()[..., None]).square().sum(-1)

    init = Gaussian(torch.zeros(9), 0.1 * torch.eye(9))
    start = best_start(log_joint, init)
    noise = torch.randn(1000, 9)
    assert start.elbo(log_joint, noise) >= init.elbo(log_joint, noise)
    assert torch.isfinite(start.scale_tril).all()


def test_the_schedule_falls_to_zero_and_the_power_grows_to_one():
    plan = Round(100, 8, 0.3, annealing=0.5)
    like = torch.zeros(())
    rates, powers = plan.rates(like), plan.powers(like)
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] < 1e-3
    assert rates.diff().max() < 0
    assert powers[0] == pytest.approx(0.01)
    assert torch.equal(powers[50:], torch.ones(50))
    assert torch.equal(Round(3, 8, 0.3).powers(like), torch.ones(3))


def test_ctrl_c_keeps_what_has_been_reached():
    calls = [0]

    def log_joint(z):
        calls[0] += 1
        if calls[0] > 120:
            raise KeyboardInterrupt
        return log_gaussian(z)

    layer = Chain(LocScale(2, init_scale=0.1))
    trainer = Trainer(log_joint, engine=Engine.EAGER, progress_bar=False)
    trainer.run(layer, ELBO(), Gradient.PATH, Round(500, 8, 5e-2), "")
    assert trainer.history.interrupted
    assert trainer.stopped
    assert trainer.history.num_steps == 100
    assert (layer[0].loc - 1).abs().max() < 0.9


def test_training_stops_where_most_steps_are_not_finite():
    trainer = Trainer(lambda z: z.sum(-1) * torch.nan, progress_bar=False)
    layer = Chain(LocScale(2))
    trainer.run(layer, ELBO(), Gradient.PATH, Round(500, 4, 1e-2), "")
    assert trainer.history.failed
    assert trainer.history.num_steps == trainer.history.skipped == 50
    assert torch.equal(layer[0].loc, torch.zeros(2))


def test_the_bar_shows_the_elbo(capsys):
    Trainer(log_gaussian).run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(60, 4, 1e-2), "flow")
    shown = capsys.readouterr().err
    assert "flow" in shown
    assert "ELBO" in shown
    assert "60/60" in shown


def test_subsampled_data_runs_traced_and_unbiased():
    data = torch.randn(40) + 1

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("n", 40, subsample_size=10) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    guide = AutoFlow(model, lambda d: LocScale(d))
    guide()
    joint = LogJoint(model, guide)
    joint.prepare()
    trainer = Trainer(joint, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(guide.layer, ELBO(), Gradient.PATH, Round(1500, 32, 2e-2), "")
    assert trainer.history.engines == [Engine.TRACED]
    assert guide.median()["z"].item() == pytest.approx(data.sum().item() / 41, abs=0.03)


def test_indexed_guides_train_on_the_traced_engine():
    def model():
        pyro.sample("z", dist.MultivariateNormal(torch.ones(2), precision_matrix=PRECISION))

    guide = AutoCIF(model, two_couplings, init_scale=1.0)
    guide()
    joint = LogJoint(model, guide)
    joint.prepare()
    trainer = Trainer(joint, progress_bar=False)
    trainer.run(guide.layer, ELBO(), Gradient.PATH, Round(400, 32, 2e-2), "")
    assert trainer.history.elbos[-1].mean() > -0.05
    assert math.isfinite(trainer.history.seconds)
