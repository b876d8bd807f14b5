"""One fit in two processes of ``torch.distributed``: that of one process, the same on both; nobody waits for ever."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import IWAE, SBC, VI, AutoFlow, flows
from pyro_nflows.engine import Round, part_of_steps
from pyro_nflows.inference.schedule import Schedule
from pyro_nflows.system.ranks import RankError, each_for_itself

TWO = partial(flows.realnvp, num_layers=2, hidden_dims=(4,))
TINY = Schedule(end=Round(5, 4, 5e-2), rounds=(Round(5, 4, 1e-3),), num_samples=40, max_ends=1)
Y = torch.tensor([0.3, 1.2, -0.4, 2.0, 0.9, 1.1, 0.2, 0.6], dtype=torch.float64)

COUNTS = torch.tensor([0.0, 2.0, 1.0, 1.0, 3.0, 0.0, 1.0, 2.0, 4.0], dtype=torch.float64)


def normal(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def own_parameter(y: Tensor) -> None:
    width = pyro.param("width", lambda: torch.tensor(1.0), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, width).expand([len(y)]).to_event(1), obs=y)


def rows(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(y), subsample_size=4) as chosen:
        pyro.sample("y", dist.Normal(loc.sum(), 1.0), obs=y[chosen])


def local(y: Tensor) -> None:
    """A latent in each row, of which a run of the model has some."""
    where = pyro.param("where", lambda: torch.tensor(0.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("row", len(y), subsample_size=3) as chosen:
        z = pyro.sample("z", dist.StudentT(4.0, mu, 1.0))
        pyro.sample("y", dist.Normal(z + where, 1.0), obs=y[chosen])


def untuned(y: Tensor) -> None:
    """The same without parameters of the model's own, so that starts may be fitted apart."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("row", len(y), subsample_size=3) as chosen:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[chosen])


def two_plates(y: Tensor) -> None:
    """Rows and columns of a table with latents of their own, some of both in a run of the model."""
    rows = pyro.plate("rows", 4, subsample_size=2, dim=-2)
    columns = pyro.plate("columns", 6, subsample_size=3, dim=-1)
    with rows as i:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns as j:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("y", dist.Poisson((a + b).exp()), obs=y[i[:, None] + j])


def overflows(y: Tensor) -> None:
    """A density that is not finite at a few draws in a hundred."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("rare", torch.where(z > 0.6, torch.nan, 0.0))
    pyro.sample("y", dist.Normal(z, 1.0).expand([len(y)]).to_event(1), obs=y - 0.8)


def impossible(y: Tensor) -> None:
    pyro.sample("y", dist.Uniform(5.0, 6.0).expand([len(y)]).to_event(1), obs=y)
    pyro.sample("z", dist.Normal(0.0, 1.0))


def fit(model: Callable[..., Any] = normal, y: Tensor = Y, **options: Any) -> VI:
    given: dict[str, Any] = {"num_steps": 24, "engine": "traced", "seed": 3, "progress_bar": False}
    return VI(AutoFlow(model, TWO), **{**given, **options}).run(y)


def by_encoder(**options: Any) -> VI:
    return VI(
        AutoFlow(untuned, TWO, amortize=True), num_steps=12, seed=3, progress_bar=False, engine="traced", **options
    ).run(Y)


BY_MINIBATCHES: dict[str, Callable[[], VI]] = {
    "local": lambda: fit(local),
    "local, eager": lambda: fit(untuned, num_steps=12, engine="eager"),
    "local, starts with a parameter": lambda: fit(local, num_steps=12, num_starts=2),
    "encoder": by_encoder,
    "two plates": lambda: fit(two_plates, COUNTS, num_steps=12),
}


def calibrated() -> SBC:
    options: dict[str, Any] = {"num_samples": 9, "schedule": TINY, "engine": "eager", "seed": 3, "progress_bar": False}
    return SBC(AutoFlow(normal, TWO), num_simulations=5, **options).run(Y)


def told(vi: VI) -> dict[str, Any]:
    """What a run left, as tensors and plain values."""
    posterior = vi.posterior
    return {
        "parameters": torch.cat([p.detach().reshape(-1) for _, p in sorted(vi.guide.named_parameters())]),
        "z": posterior.draws.z,
        "log_weight": posterior.draws.log_weight,
        "sentence": vi.verdict().sentence,
        "leaves": [leaf.clone() for leaf in posterior.leaves],
        "engines": [engine.value for engine in posterior.history.engines],
        "num_steps": posterior.history.num_steps,
    }


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def scenarios(rank: int, folder: Path) -> dict[str, Any]:
    """All that two processes can do without any of them ending."""
    found: dict[str, Any] = {"fit": told(fit(checkpoint=folder / "run.pt"))}
    found["again"] = told(fit(checkpoint=folder / "run.pt"))
    pyro.clear_param_store()
    found["eager"] = told(fit(own_parameter, engine="eager"))
    found["width"] = float(pyro.param("width").detach())
    found["overflows"] = told(fit(overflows))
    found["iwae"] = told(fit(num_steps=6, objective=IWAE(5)))
    found["starts"] = told(fit(num_starts=3, num_steps=6, engine="eager"))
    found["rows"] = told(fit(rows, num_steps=10))
    found["local, starts"] = told(fit(untuned, num_steps=12, num_starts=3))
    for name, run in BY_MINIBATCHES.items():
        pyro.clear_param_store()
        found[name] = told(run())
    found["ranks"] = {name: ranks.tolist() for name, ranks in calibrated().ranks.items()}
    found["data"] = refused(lambda: fit(y=Y + rank))
    found["impossible"] = refused(lambda: fit(impossible))
    with each_for_itself():
        found["alone"] = told(fit(y=Y + rank, num_steps=4))
    return found


LONG = {"all rows": normal, "minibatches": local}


def begin(rank: int, folder: Path, what: str) -> None:
    """A process of two."""
    import torch.distributed

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    part_of_steps.LEAST = part_of_steps.LEAST_COMPILED = 0.0  # else steps of so small models are not shared
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    if what == "scenarios":
        torch.save(scenarios(rank, folder), folder / f"{rank}.pt")
        return

    def look(at: Any) -> None:
        if rank == 0 and at.step >= 150:
            (folder / "training").touch()
        time.sleep(0.05)

    try:
        options: dict[str, Any] = {"checkpoint": folder / "run.pt", "checkpoint_seconds": 0.0, "callback": look}
        fit(LONG[what], num_steps=4000, **options)
    except RankError as error:
        (folder / f"{rank}.txt").write_text(str(error))


@contextlib.contextmanager
def two(folder: Path, what: str) -> Iterator[list[Any]]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=begin, args=(rank, folder, what)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with two(folder, "scenarios") as processes:
        for process in processes:
            process.join(300.0)
            assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


FITS = "fit", "again", "eager", "overflows", "iwae", "starts", "rows", "local, starts", *BY_MINIBATCHES


@pytest.mark.parametrize("name", FITS)
def test_all_ranks_end_with_the_same_fit(found: list[dict[str, Any]], name: str) -> None:
    first, second = (each[name] for each in found)
    for part in ("parameters", "z", "log_weight"):
        assert torch.equal(first[part], second[part])
    assert first["sentence"] == second["sentence"]
    assert all(torch.equal(a, b) for a, b in zip(first["leaves"], second["leaves"], strict=True))


@pytest.mark.parametrize("name", ["fit", "eager", "overflows", "iwae"])
def test_it_is_the_fit_of_one_process(found: list[dict[str, Any]], name: str) -> None:
    models: dict[str, Any] = {"eager": {"model": own_parameter, "engine": "eager"}, "overflows": {"model": overflows}}
    options = models.get(name, {})
    if name == "iwae":
        options = {"num_steps": 6, "objective": IWAE(5)}
    alone = told(fit(**options))
    for part in ("parameters", "z", "log_weight"):
        assert torch.allclose(found[0][name][part], alone[part], rtol=1e-5, atol=1e-6, equal_nan=name == "overflows")
    assert found[0][name]["engines"] == alone["engines"]
    assert found[0][name]["num_steps"] == alone["num_steps"]


def test_some_draws_have_no_finite_density_where_that_is_tried(found: list[dict[str, Any]]) -> None:
    share = found[0]["overflows"]["log_weight"].isfinite().double().mean()
    assert 0.8 < share < 1.0


@pytest.mark.parametrize("name", BY_MINIBATCHES)
def test_minibatches_whose_particles_and_rows_are_divided_give_the_fit_of_one_process(
    found: list[dict[str, Any]], name: str
) -> None:
    pyro.clear_param_store()
    alone = told(BY_MINIBATCHES[name]())
    for part in ("parameters", "z", "log_weight"):
        assert torch.allclose(found[0][name][part], alone[part], rtol=1e-5, atol=1e-6)
    assert found[0][name]["engines"] == alone["engines"]
    assert found[0][name]["num_steps"] == alone["num_steps"]


def test_starts_by_minibatches_are_divided(found: list[dict[str, Any]]) -> None:
    assert found[0]["local, starts"]["num_steps"] == 3 * found[0]["local, eager"]["num_steps"]


def test_parameters_of_the_model_are_the_same_too(found: list[dict[str, Any]]) -> None:
    assert found[0]["width"] == found[1]["width"] != 1.0


def test_a_run_that_is_complete_is_loaded_on_all_ranks(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["fit"]["z"], found[1]["again"]["z"])


def test_simulations_are_divided_and_ranks_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    alone = {name: ranks.tolist() for name, ranks in calibrated().ranks.items()}
    assert found[0]["ranks"] == found[1]["ranks"] == alone


def test_other_data_on_another_rank_are_refused_on_all(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert "VI.run: argument 1 is another one on rank 1 than on rank 0" in each["data"]
        assert not torch.equal(found[0]["alone"]["z"], found[1]["alone"]["z"])


def test_an_error_is_the_same_on_all_ranks(found: list[dict[str, Any]]) -> None:
    assert "log density is not finite at its start" in found[0]["impossible"]
    assert found[0]["impossible"] == found[1]["impossible"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("what", LONG)
def test_a_rank_that_is_killed_ends_the_other_and_the_checkpoint_is_whole(
    tmp_path: Path, victim: int, what: str
) -> None:
    with two(tmp_path, what) as processes:
        began = time.monotonic()
        while not (tmp_path / "training").exists():
            assert time.monotonic() - began < 200
            time.sleep(0.1)
        os.kill(processes[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        processes[1 - victim].join(60.0)
        assert processes[1 - victim].exitcode == 0
    assert time.monotonic() - began < 30.0
    text = (tmp_path / f"{1 - victim}.txt").read_text()
    assert f"rank {1 - victim} of 2: another process of this fit has ended" in text
    steps = list[int]()
    options: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "callback": lambda at: steps.append(at.step) or True}
    fit(LONG[what], num_steps=4000, **options)
    assert steps[0] >= 150  # one process goes on from where two were
