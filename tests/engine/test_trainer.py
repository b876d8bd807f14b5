import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows import ELBO, IWAE, AutoCIF, AutoFlow, flows
from pyro_nflows.engine import Engine, EngineWarning, Inputs, Program, Round, Trainer, backends, prepare
from pyro_nflows.engine.backends import Best
from pyro_nflows.engine.ensemble import Ensemble
from pyro_nflows.engine.given import BLOCK
from pyro_nflows.engine.native import build, ops
from pyro_nflows.engine.runners import Eager
from pyro_nflows.engine.threads import restored_threads
from pyro_nflows.inference.elbo import Gradient
from pyro_nflows.layers import LocScale, TriangularAffine
from pyro_nflows.layers.base import Chain
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.numerics import normal_log_prob
from pyro_nflows.objectives.covering import Covering
from tests.streams import Terminal

pytestmark = pytest.mark.on_devices

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
PRECISION = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


def log_gaussian(z):
    return -0.5 * ((z - 1) @ PRECISION * (z - 1)).sum(-1)


def available(engines):
    return [engine for engine in engines if engine is not Engine.COMPILED or build.compiler()]


def two_couplings(dim):
    return flows.realnvp(dim, 2, (8, 8))


def two_indexed_couplings(dim):
    return flows.cif(dim, two_couplings)


def inputs(program, num=3, rate=1e-2, share=0.0):
    noise = torch.randn(num, program.num_particles, program.noise_width)
    return Inputs(noise, torch.full((num,), rate), torch.ones(num), torch.full((num,), share))


def rows(stack):
    return [Inputs(*row) for row in zip(*stack)]


@pytest.mark.parametrize(
    ("objective", "gradient"),
    [(ELBO(), "total"), (ELBO(), "path"), (IWAE(), "total"), (IWAE(), "path"), (IWAE(), "dreg")],
)
@pytest.mark.parametrize("flow", [two_couplings, two_indexed_couplings])
def test_all_engines_give_the_same_losses(flow, objective, gradient):
    layer = Chain(flow(2), TriangularAffine(2))
    program = Program(log_gaussian, layer, objective, Gradient(gradient), 8)
    given = inputs(program, 100)
    losses = {}
    for engine in available(Engine):
        runner = prepare(program, engine, given)
        assert runner.engine is engine
        _, losses[engine] = runner.run(program.init(), given)
    # Adam enlarges the rounding of gradients that are almost zero, of which an indexed flow on IWAE has some.
    tolerance = 1e-9 if type(objective) is ELBO else 1e-8
    for values in losses.values():
        assert torch.allclose(values, losses[Engine.EAGER], rtol=tolerance)


def test_a_step_is_the_step_of_torch_adam():
    layer = Chain(TriangularAffine(2, init_scale=0.3))
    program = Program(log_gaussian, layer, ELBO(), Gradient.TOTAL, 4, max_norm=1e9)
    given = inputs(program, 5)
    state, _ = Eager(program).run(program.init(), given)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for row in rows(given):
        adam.zero_grad()
        draws = ELBO().draws(log_gaussian, layer, row.noise, Gradient.TOTAL)
        (-draws.log_weight.mean()).backward()
        adam.step()
    expected = torch.cat([p.detach().reshape(-1) for p in layer.parameters()])
    assert torch.allclose(state.params, expected, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    program = Program(lambda z: z.sum(-1) * torch.nan, Chain(LocScale(2)), ELBO(), Gradient.PATH, 4)
    state = program.init()
    after, _ = program.step(state, rows(inputs(program))[0])
    assert after.skipped == 1
    assert torch.equal(after.params, state.params)
    assert after.steps == 0


@pytest.mark.parametrize("gradient", ["path", "total"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_step_goes_by_the_draws_that_are_finite_if_few_are_not(gradient, value):
    def without(num):
        def log_joint(z):
            cut = z[:, 0].sort(descending=True)[0][num - 1]
            return torch.where(z[:, 0] >= cut, value, log_gaussian(z)) if num else log_gaussian(z)

        return Program(log_joint, Chain(LocScale(2)), ELBO(), Gradient(gradient), 16)

    state, given = without(2).init(), rows(inputs(without(2)))[0]
    found, loss, good = without(2).gradient_at(state.params, given)
    others = given._replace(noise=given.noise[given.noise[:, 0].argsort()[:14]])
    expected, expected_loss, _ = without(0).gradient_at(state.params, others)
    assert good
    assert torch.allclose(found, expected * 14 / 16)
    assert torch.allclose(loss, expected_loss)
    assert not without(3).gradient_at(state.params, given)[2]


@needs_compiler
def test_a_rare_overflow_skips_no_compiled_step():
    trainer = Trainer(
        lambda z: torch.where(z.sum(-1) > 3.0, torch.nan, -0.5 * (z * z).sum(-1)),
        engine=Engine.COMPILED,
        progress_bar=False,
    )
    layer = Chain(LocScale(1))
    trainer.run(layer, ELBO(), Gradient.PATH, Round(200, 64, 1e-2), "")
    assert trainer.history.skipped == 0
    assert torch.isfinite(torch.cat(list(trainer.history.elbos))).all()


def test_gradients_are_clipped_by_norm():
    program = Program(lambda z: 1e8 * z.sum(-1), Chain(LocScale(2)), ELBO(), Gradient.PATH, 4, max_norm=1.0)
    after, _ = program.step(program.init(), rows(inputs(program))[0])
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
    joint = LogJoint(BoundModel(model), guide.latents)
    joint.prepare()
    leaves = joint.leaves(guide.init_loc())
    trainer = Trainer(joint, leaves, progress_bar=False)
    trainer.run(guide.plain_layer(), ELBO(), Gradient.PATH, Round(1000, 16, 3e-2), "")
    assert trainer.history.engines[0] is not Engine.EAGER
    assert pyro.param("mean").item() == pytest.approx(3.0, abs=0.01)


def test_a_model_that_branches_on_values_runs_eagerly_with_one_warning():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=torch.tensor(1.0))

    guide = AutoFlow(model)
    guide()
    joint = LogJoint(BoundModel(model), guide.latents)
    with pytest.warns(UserWarning, match=r"torch\.vmap cannot run this model"):
        joint.prepare()
    program = Program(joint, guide.layer, ELBO(), Gradient.PATH, 2)
    with pytest.warns(EngineWarning, match="traced engine cannot run this model"):
        runner = prepare(program, None, inputs(program))
    assert runner.engine is Engine.EAGER


def test_python_randomness_is_found_out_and_runs_eagerly():
    import random

    program = Program(lambda z: log_gaussian(z) * random.random(), Chain(LocScale(2)), ELBO(), Gradient.PATH, 4)
    with pytest.warns(EngineWarning, match="at fresh points"):
        runner = prepare(program, None, inputs(program))
    assert runner.engine is Engine.EAGER


def test_the_schedule_falls_to_zero_and_the_power_grows_to_one():
    plan = Round(100, 8, 0.3, annealing=0.5)
    like = torch.zeros(())
    rates, powers = plan.step_sizes(like), plan.powers(like)
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
    with restored_threads():
        torch.set_num_threads(1)  # with more, steps are timed first
        trainer.run(layer, ELBO(), Gradient.PATH, Round(500, 8, 5e-2), "")
    assert trainer.history.interrupted
    assert trainer.history.num_steps == 100
    assert (layer[0].loc - 1).abs().max() < 0.9


def test_training_stops_where_most_steps_are_not_finite():
    trainer = Trainer(lambda z: z.sum(-1) * torch.nan, progress_bar=False)
    layer = Chain(LocScale(2))
    trainer.run(layer, ELBO(), Gradient.PATH, Round(500, 4, 1e-2), "")
    assert trainer.history.failed
    assert trainer.history.num_steps == trainer.history.skipped == 50
    assert torch.equal(layer[0].loc, torch.zeros(2))


def test_the_bar_shows_the_elbo(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    Trainer(log_gaussian).run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(60, 4, 1e-2), "flow")
    shown = terminal.getvalue()
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
    joint = LogJoint(BoundModel(model), guide.latents)
    joint.prepare()
    trainer = Trainer(joint, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(layer := guide.plain_layer(), ELBO(), Gradient.PATH, Round(1500, 32, 2e-2), "")
    guide.adopt(layer)
    assert trainer.history.engines[0] is not Engine.EAGER
    assert guide.median()["z"].item() == pytest.approx(data.sum().item() / 41, abs=0.03)


def test_indexed_guides_train_on_the_traced_engine():
    def model():
        pyro.sample("z", dist.MultivariateNormal(torch.ones(2), precision_matrix=PRECISION))

    guide = AutoCIF(model, two_couplings, init_scale=1.0)
    guide()
    joint = LogJoint(BoundModel(model), guide.latents)
    joint.prepare()
    trainer = Trainer(joint, progress_bar=False)
    trainer.run(guide.plain_layer(), ELBO(), Gradient.PATH, Round(400, 32, 2e-2), "")
    assert trainer.history.elbos[-1].mean() > -0.05
    assert math.isfinite(trainer.history.seconds)


def couplings_program(num_particles=8):
    return Program(log_gaussian, Chain(two_couplings(2), TriangularAffine(2)), ELBO(), Gradient.PATH, num_particles)


def test_the_share_of_an_objective_may_change_from_step_to_step():
    layer = Chain(two_couplings(2), TriangularAffine(2))
    mixed = Program(log_gaussian, layer, Covering(0.0), Gradient.PATH, 8)
    plain = Program(log_gaussian, layer, ELBO(), Gradient.PATH, 8)
    given = inputs(plain)
    assert torch.equal(Eager(mixed).run(mixed.init(), given)[1], Eager(plain).run(plain.init(), given)[1])
    half = given._replace(share=torch.full((3,), 0.5))
    fixed = Program(log_gaussian, layer, Covering(0.5), Gradient.PATH, 8)
    (first, _), (second, _) = (Eager(p).run(p.init(), half) for p in (mixed, fixed))
    assert torch.equal(first.params, second.params)
    assert not torch.equal(first.params, Eager(plain).run(plain.init(), given)[0].params)


@needs_compiler
def test_training_goes_over_to_compiled_code_without_a_change_of_numbers():
    traces = {}
    for engine in (Engine.TRACED, Engine.COMPILED, None):
        torch.manual_seed(3)
        trainer = Trainer(log_gaussian, engine=engine, progress_bar=False)
        layer = Chain(two_couplings(2), TriangularAffine(2))
        torch.manual_seed(4)
        trainer.run(layer, ELBO(), Gradient.PATH, Round(6 * BLOCK, 8, 1e-2), "")
        traces[engine] = trainer.history.trace()
    assert torch.allclose(traces[Engine.COMPILED], traces[Engine.TRACED], rtol=1e-6, atol=1e-9)
    assert torch.allclose(traces[None], traces[Engine.TRACED], rtol=1e-6, atol=1e-9)


@needs_compiler
def test_the_default_compiles_what_will_take_long_and_nothing_else():
    program = couplings_program()
    best = prepare(program, None, inputs(program))
    assert isinstance(best, Best)
    best._seconds = 1e-3
    best.expect(num_steps=10)
    assert best.compiling.scan is None
    best.expect(num_steps=1_000_000)
    assert best.compiling.scan is not None
    best.wait(program.init())
    assert best.engine is Engine.COMPILED


@needs_compiler
def test_compiled_code_that_disagrees_is_not_used():
    program = couplings_program()
    best = prepare(program, None, inputs(program))
    other = prepare(
        Program(lambda z: 2 * log_gaussian(z), program.layer, ELBO(), Gradient.PATH, 8), None, inputs(program)
    )
    other.wait(program.init())
    best.compiling.scan = other.compiling.scan
    best.switch(program.init())
    assert best.engine is Engine.TRACED
    assert "at fresh points" in best.compiling.refused


def test_asking_for_the_compiled_engine_without_a_compiler_is_answered(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compiler", lambda: None)
    program = couplings_program()
    with pytest.warns(EngineWarning, match="no C compiler was found"):
        runner = prepare(program, Engine.COMPILED, inputs(program))
    assert runner.engine is Engine.TRACED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner = prepare(program, None, inputs(program))
        runner.expect(1_000_000)
    assert runner.engine is Engine.TRACED
    assert math.isfinite(runner.run(program.init(), inputs(program))[1].sum())


@pytest.fixture(params=[ELBO(), IWAE()], ids=["ELBO", "IWAE"])
def exact_program(request):
    """z ~ N(0, 1), x ~ N(z, 1), and its posterior for a guide, in single precision: every gradient is rounding."""
    x = torch.tensor([1.0, -2.0, 6.0], dtype=torch.float32)

    def log_joint(z):
        return normal_log_prob(z, 0 * x, 0 * x) + normal_log_prob(x, z, 0 * x)

    layer = LocScale(3).to(torch.float32)
    with torch.no_grad():
        layer.loc.copy_(x / 2)
        layer.log_scale.fill_(-0.5 * math.log(2))
    return Program(log_joint, Chain(layer), request.param, Gradient.PATH, 16)


@needs_compiler
def test_compiled_code_is_accepted_at_an_exact_optimum(exact_program):
    given = Inputs(*(part.to(torch.float32) for part in inputs(exact_program)))
    after, _ = exact_program.step(exact_program.init(), rows(given)[0])
    assert after.mean.abs().max() < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = prepare(exact_program, Engine.COMPILED, given)
    assert best.compiling.refused is None
    assert best.engine is Engine.COMPILED


class Steep(Eager):
    """Steps of which each enlarges a difference of parameters a million times, as Adam may on a steep flow."""

    is_random = False

    def __init__(self, rounding=0.0, carries=True, factor=1.0):
        self.rounding, self.carries, self.factor = rounding, carries, factor

    def run(self, state, inputs):
        start = state.params
        for _ in inputs.noise:
            x = state.params if self.carries else start
            x = self.factor * torch.sin(1e6 * (1 + self.rounding) * x)
            state = state._replace(params=x, mean=x)
        return state, torch.zeros(len(inputs.noise))


def test_rounding_that_grows_over_steps_is_no_reason_to_refuse_an_engine():
    program = couplings_program()
    why = [
        backends.difference(Steep(), other, program.init(), inputs(program))
        for other in (Steep(), Steep(rounding=1e-13), Steep(rounding=1e-13, carries=False), Steep(factor=1.1))
    ]
    far = (r.run(program.init()._replace(params=torch.ones(9)), inputs(program))[0] for r in (Steep(), Steep(1e-13)))
    assert torch.dist(*(state.params for state in far)) > 0.1
    assert why[:2] == [None, None]
    assert all("gradient at fresh points" in reason for reason in why[2:])


def why_not_compiled(log_joint, engine=None):
    """What a short round's history says."""
    trainer = Trainer(log_joint, engine=engine, progress_bar=False)
    trainer.run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(2 * BLOCK, 4, 1e-2), "")
    trainer.run(Chain(LocScale(2)), ELBO(), Gradient.PATH, Round(2 * BLOCK, 8, 1e-2), "")
    assert len(trainer.history.engines) == 2
    return trainer.history.engine_notes


@pytest.fixture
def eager_to_compile(monkeypatch):
    monkeypatch.setattr(backends, "compile_seconds", lambda tape: 0.0)


@pytest.fixture
def no_such_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    build.compiler.cache_clear()
    yield
    build.compiler.cache_clear()


def test_the_history_says_that_there_is_no_compiler(eager_to_compile, no_such_compiler):
    assert why_not_compiled(log_gaussian) == [
        "compiled: no C compiler was found (cc, gcc or clang; set CC to name another)"
    ]


@needs_compiler
def test_the_history_says_which_operation_is_not_compiled(eager_to_compile):
    def in_place(z):
        turned = torch.zeros_like(z)
        turned[:, 0] = z[:, 1]
        turned[:, 1] = z[:, 0]
        return log_gaussian(turned)

    assert why_not_compiled(in_place) == ["compiled: the function changes tensors in place"]


@needs_compiler
def test_the_history_says_that_compiled_code_was_refused(monkeypatch):
    monkeypatch.setitem(ops.EXPRESSIONS, "mul", ("{0} * {1} * 1.5", ()))
    with pytest.warns(EngineWarning, match="at fresh points"):
        notes = why_not_compiled(log_gaussian, Engine.COMPILED)
    assert notes
    assert all(note.startswith("compiled: its loss at fresh points is") for note in notes)


def test_the_history_says_why_the_model_was_not_recorded():
    def branching(z):
        return log_gaussian(z) if float(z.detach()[0, 0]) > -9 else z.sum(-1)

    with pytest.warns(EngineWarning, match="depend on the data"):
        (note,) = why_not_compiled(branching)
    assert note.startswith("traced: ")
    assert "depend on the data" in note


@pytest.mark.parametrize("engine", [None, *available(Engine)])
def test_the_history_says_nothing_of_engines_that_were_not_wanted(engine):
    assert why_not_compiled(log_gaussian, engine) == []


@pytest.mark.parametrize("engine", available(Engine))
def test_a_member_of_an_ensemble_goes_its_own_way(engine):
    program = couplings_program()
    runner = prepare(program, engine, inputs(program))
    members = [(program.init(), inputs(program, 20, rate)) for rate in (1e-2, 3e-2, 1e-1)]
    together = Ensemble(runner, [program] * 3, [None] * 3).run(*zip(*members))
    for member, (state, losses) in zip(members, together):
        ((alone, alone_losses),) = Ensemble(runner, [program], [None]).run(*([part] for part in member))
        assert torch.equal(losses, alone_losses)
        assert torch.equal(state.params, alone.params)
    assert not torch.equal(together[0][0].params, together[1][0].params)


@pytest.mark.parametrize("engine", available([Engine.TRACED, Engine.COMPILED]))
def test_new_data_are_taken_without_recording_the_model_again(engine):
    calls = [0]

    def at(data):
        def log_joint(z):
            calls[0] += 1
            center = data.exp().log() + data.mean() * 0  # computed from the data once
            return -0.5 * (z - center).square().sum(-1)

        return log_joint

    layer, plan = Chain(LocScale(2, init_scale=0.5)), Round(400, 16, 5e-2)
    first, second = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5])
    engine = engine if engine is Engine.COMPILED else None
    trainer = Trainer(at(first), engine=engine, progress_bar=False, data=[first])
    trainer.run(layer, ELBO(), Gradient.PATH, plan, "")
    assert torch.allclose(layer[0].loc, first, atol=1e-3)
    later = trainer.again(at(second), [second])
    assert list(later._runners) == list(trainer._runners)
    before = calls[0]
    later.run(layer, ELBO(), Gradient.PATH, plan, "")
    assert calls[0] == before
    assert torch.allclose(layer[0].loc, second, atol=1e-3)
    trainer.run(layer, ELBO(), Gradient.PATH, plan, "")  # has its own data still
    assert calls[0] == before
    assert torch.allclose(layer[0].loc, first, atol=1e-3)


def test_data_that_a_recording_cannot_follow_are_recorded_anew():
    def at(data):
        return lambda z: -0.5 * (z - float(data.sum())).square().sum(-1)  # a Python number made of data

    first, second = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5])
    trainer = Trainer(at(first), progress_bar=False, data=[first])
    trainer.run(Chain(LocScale(2, init_scale=0.5)), ELBO(), Gradient.PATH, Round(20, 16, 5e-2), "")
    assert trainer._runners
    assert not trainer.again(at(second), [second])._runners


def test_equal_rounds_share_a_recording():
    trainer = Trainer(log_gaussian, progress_bar=False)
    layer = Chain(LocScale(2))
    for share, rate in ((0.0, 1e-2), (0.5, 1e-3)):
        trainer.run(layer, Covering(share), Gradient.PATH, Round(20, 8, rate), "")
    assert len(trainer._runners) == 1
    trainer.run(layer, Covering(0.0), Gradient.PATH, Round(20, 16, 1e-2), "")
    assert len(trainer._runners) == 2


@pytest.mark.parametrize("engine", available(Engine))
def test_members_of_an_ensemble_may_have_data_of_their_own(engine):
    centers = [torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5]), torch.tensor([0.0, -2.5])]
    calls = [0]

    def at(center):
        def log_joint(z):
            calls[0] += 1
            outer = center.outer(center).expm1().log1p()  # made of data once
            return -0.5 * (z - outer @ center / center.square().sum()).square().sum(-1) + 0 * (z @ outer).sum(-1)

        return log_joint

    first = Trainer(at(centers[0]), engine=engine, progress_bar=False, data=[centers[0]])
    members = [first.at(at(c), [c], torch.zeros(2), seed) for seed, c in enumerate(centers)]
    assert all(member.shares(first) for member in members)
    plan, layers = Round(400, 16, 5e-2), [Chain(LocScale(2, init_scale=0.5)) for _ in centers]
    first.run_many(layers[:1], ELBO(), Gradient.PATH, Round(3, 16, 1e-2), "", members[:1])  # records and compiles
    before = calls[0]
    first.run_many(layers, ELBO(), Gradient.PATH, plan, "", members)
    if engine is not Engine.EAGER:
        assert calls[0] == before
    for layer, center in zip(layers, centers):
        assert torch.allclose(layer[0].loc, center, atol=1e-3)
    assert [member.history.num_steps for member in members] == [403, 400, 400]
    assert first.history.num_steps == 0


@pytest.mark.parametrize("engine", available(Engine))
def test_a_member_does_not_depend_on_its_company(engine):
    center, other = torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5])

    def at(center):
        return lambda z: -0.5 * ((z - center).square() + z.pow(4)).sum(-1)

    def trained(company, num_steps):
        first = Trainer(at(other), engine=engine, progress_bar=False, data=[other])
        members = [first.at(at(c), [c], torch.zeros(2), seed) for c, seed in [(center, 7), *company]]
        layers = [Chain(LocScale(2, init_scale=0.5)) for _ in members]
        for num in num_steps:
            first.run_many(layers, ELBO(), Gradient.TOTAL, Round(num, 16, 5e-2), "", members)
        return layers[0][0].loc

    torch.manual_seed(0)
    alone, before = trained([], [120, 100]), torch.get_rng_state()
    assert torch.equal(trained([(other, 8), (other, 9)], [120, 100]), alone)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_member_that_fails_leaves_the_others_alone():
    data = [torch.tensor(1.0), torch.tensor(torch.inf)]

    def at(scale):
        return lambda z: -(z - 1).square().sum(-1) * scale

    first = Trainer(at(data[0]), engine=Engine.TRACED, progress_bar=False, data=data[:1])
    members = [first.at(at(scale), [scale], torch.zeros(1), 0) for scale in data]
    layers = [Chain(LocScale(1)) for _ in members]
    first.run_many(layers, ELBO(), Gradient.PATH, Round(400, 8, 5e-2), "", members)
    assert [member.history.failed for member in members] == [False, True]
    assert layers[0][0].loc.item() == pytest.approx(1.0, abs=1e-3)


def test_data_that_decide_what_python_does_are_not_shared():
    data = [torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.5])]

    def at(center):
        return lambda z: -0.5 * (z - (1.0 if center.sum() > 0 else -1.0)).square().sum(-1)

    first = Trainer(at(data[0]), progress_bar=False, data=data[:1])
    same, other = (first.at(at(c), [c], torch.zeros(2), 0) for c in data)
    assert same.shares(first)
    assert not other.shares(first)
    layer = Chain(LocScale(2, init_scale=0.5))
    other.run(layer, ELBO(), Gradient.PATH, Round(400, 16, 5e-2), "")
    assert torch.allclose(layer[0].loc, -torch.ones(2), atol=1e-3)
