"""``ELBO(compile=True)``: the same training in a loop of the user's own."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.optim import Adam

from pyro_nflows import ELBO, IWAE, AutoCIF, AutoFlow
from pyro_nflows.engine import EngineWarning, compiling
from pyro_nflows.engine.native import build, ops
from pyro_nflows.inference import recorded
from pyro_nflows.layers import LocScale
from pyro_nflows.model.log_joint import VectorizationWarning


def regression(x, y):
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, scale), obs=y)


def batches(num, size=6):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        x = torch.randn(size, 2, generator=generator)
        yield x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(size, generator=generator)


def train(objective, make, num_steps=25):
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    svi = SVI(regression, make(regression), Adam({"lr": 1e-2}), loss=objective)
    return [svi.step(*batch) for batch in batches(num_steps)], dict(pyro.get_param_store().named_parameters())


@pytest.mark.parametrize(
    "make_objective",
    [
        lambda **k: ELBO(4, **k),
        lambda **k: ELBO(4, "total", **k),
        lambda **k: IWAE(4, **k),
        lambda **k: IWAE(4, "path", **k),
    ],
)
@pytest.mark.parametrize("make", [AutoFlow, pytest.param(AutoCIF, marks=pytest.mark.slow)])
def test_steps_on_minibatches_are_those_without(make_objective, make):
    (plain, params), (recorded, others) = (train(make_objective(compile=c), make) for c in (False, True))
    assert recorded == pytest.approx(plain, rel=1e-8)
    assert params.keys() == others.keys()
    for name, value in params.items():
        assert torch.allclose(others[name], value, atol=1e-8)


def test_the_model_is_not_run_again():
    calls = [0]

    def model(y):
        calls[0] += 1
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    svi = SVI(model, AutoFlow(model), Adam({"lr": 1e-2}), loss=ELBO(4, compile=True))
    svi.step(torch.tensor(1.0))
    before = calls[0]
    for y in (1.0, 2.0, 3.0):
        svi.step(torch.tensor(y))
    assert calls[0] == before


def test_other_shapes_are_recorded_anew():
    svi = SVI(regression, AutoFlow(regression), Adam({"lr": 1e-2}), loss=ELBO(4, compile=True))
    for size in (6, 9, 6):
        for batch in batches(2, size):
            assert svi.step(*batch) < float("inf")


def test_gradients_add_up_as_torchs_do():
    objective, guide = ELBO(4, compile=True), AutoFlow(regression, lambda d: LocScale(d))
    batch = next(batches(1))
    guide(*batch)
    grads = []
    for _ in range(2):
        pyro.set_rng_seed(0)
        objective.loss_and_grads(regression, guide, *batch)
        grads.append([p.grad.clone() for p in guide.parameters() if p.grad is not None])
    for once, twice in zip(*grads, strict=True):
        assert torch.allclose(twice, 2 * once)


def test_a_model_that_cannot_be_recorded_runs_step_by_step_with_one_warning():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z if z > 0 else -z, 1.0), obs=y)

    svi = SVI(model, AutoFlow(model), Adam({"lr": 1e-2}), loss=ELBO(2, compile=True))
    with pytest.warns(EngineWarning, match="step by step"), pytest.warns(VectorizationWarning):
        svi.step(torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        assert svi.step(torch.tensor(1.0)) < float("inf")


def own_guide(x, y):
    loc = pyro.param("loc", torch.zeros(2))
    pyro.sample("beta", dist.Normal(loc, 1.0).to_event(1))


def guide_of_parts(model):
    guide = AutoGuideList(model)
    guide.append(AutoFlow(model))
    return guide


def messages(objective, make, num_steps=3, sizes=(6,)):
    """What is said of engines while training, and the losses."""
    pyro.clear_param_store()
    pyro.set_rng_seed(2)
    svi = SVI(regression, make(regression), Adam({"lr": 1e-2}), loss=objective)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", EngineWarning)
        losses = [svi.step(*batch) for size in sizes for batch in batches(num_steps, size)]
    return [str(warning.message) for warning in told], losses


@pytest.mark.parametrize("make_objective", [ELBO, IWAE])
@pytest.mark.parametrize(
    ("make", "name"),
    [(AutoNormal, "AutoNormal"), (guide_of_parts, "AutoGuideList"), (lambda _: own_guide, "own_guide")],
)
def test_guides_that_cannot_be_compiled_are_named_once(make_objective, make, name):
    told, losses = messages(make_objective(4, compile=True), make)
    assert told == [f"compile=True: {name} is not one flow guide for all latents; the model runs step by step"]
    assert losses == messages(make_objective(4), make)[1]


def test_gradients_by_torch_are_said_to_run_step_by_step_once():
    objective, guide, batch = ELBO(4, compile=True), AutoFlow(regression), next(batches(1))
    guide(*batch)
    with pytest.warns(EngineWarning, match="what is differentiated by torch runs step by step"):
        objective.differentiable_loss(regression, guide, *batch).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.differentiable_loss(regression, guide, *batch).backward()


def test_without_a_compiler_that_is_said_once_whatever_the_shapes(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: None)
    told, losses = messages(ELBO(4, compile=True), AutoFlow, sizes=(6, 9, 6))
    assert len(told) == 1
    assert "no C compiler was found" in told[0]
    assert "the recording is replayed" in told[0]
    assert losses == pytest.approx(messages(ELBO(4), AutoFlow, sizes=(6, 9, 6))[1], rel=1e-8)


def test_elsewhere_than_on_the_cpu_that_is_said_once(monkeypatch):
    monkeypatch.setattr(compiling, "compiles", lambda like: False)
    told, _ = messages(ELBO(4, compile=True), AutoFlow)
    assert [message.split(";")[0] for message in told] == [f"compile=True: {compiling.NEEDS}"]


def wait_for_compilers(monkeypatch):
    start = compiling.Compiling.start

    def started(self):
        start(self)
        if self.scan is not None:
            self.scan.load()

    monkeypatch.setattr(compiling.Compiling, "start", started)


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_compiled_code_is_compared_with_the_recording_before_it_is_used(monkeypatch):
    wait_for_compilers(monkeypatch)
    told, losses = messages(ELBO(4, compile=True), AutoFlow, num_steps=25)
    assert told == []
    plain = messages(ELBO(4), AutoFlow, num_steps=25)[1]
    assert losses == pytest.approx(plain, rel=1e-8)
    monkeypatch.setitem(ops.EXPRESSIONS, "mul", ("{0} * {1} * 1.5", ()))
    told, losses = messages(ELBO(4, compile=True), AutoFlow, num_steps=25)
    assert len(told) == 1
    assert "compiled code gives a loss of" in told[0]
    assert losses == pytest.approx(plain, rel=1e-8)


def test_a_wrong_gradient_is_found_where_the_loss_is_right():
    loss, right = torch.tensor(2.0), torch.ones(3)
    assert recorded._difference([loss, right], [loss, right]) is None
    for wrong in ([1.0, 1.0, 1.1], [1.0, torch.nan, 1.0], [1.0, 1.0, torch.inf]):
        reason = recorded._difference([loss, torch.tensor(wrong)], [loss, right])
        assert reason == "compiled code gives another gradient"
    nothing = [torch.tensor(torch.nan), torch.full((3,), torch.nan)]
    assert recorded._difference(nothing, nothing) is None


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
def test_a_model_with_random_numbers_of_its_own_goes_over_without_a_change_of_them(monkeypatch):
    wait_for_compilers(monkeypatch)

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y + torch.randn(()))

    found = []
    for compile in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = SVI(model, AutoFlow(model, lambda d: LocScale(d)), Adam({"lr": 1e-2}), loss=ELBO(4, compile=compile))
        found.append([svi.step(torch.tensor(1.0)) for _ in range(10)])
    assert found[1] == pytest.approx(found[0], rel=1e-8)
