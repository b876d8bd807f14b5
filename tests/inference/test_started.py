"""A fit may begin where another one ended."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow, flows
from pyro_nflows.diagnostics.verdict import Outcome
from tests.models import PAIRS, pairs

ROWS = torch.tensor([0.3, -0.2, 1.9, 2.4, 0.7, 1.1, 3.0, -0.4], dtype=torch.float64)


def curved(y: Tensor) -> None:
    """A posterior that is no Gaussian."""
    x = pyro.sample("x", dist.Normal(y.new_tensor(0.0), 1.0))
    z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z + 0.15 * x**2, 1.0), obs=y)


def groups(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(2.0)))
    with pyro.plate("groups", 4, dim=-1):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("rows", len(y), dim=-2):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def guide_of(model: Any, width: int = 16) -> AutoFlow:
    return AutoFlow(model, lambda dim: flows.realnvp(dim, 2, (width,)))


def fit(model: Any = curved, *, guide: AutoFlow | None = None, **options: Any) -> VI:
    return VI(guide or guide_of(model), **{"seed": 0, "engine": "traced", "progress_bar": False, **options})


@pytest.fixture(scope="module")
def first() -> VI:
    """A fit to all rows but the last."""
    return fit(num_steps=1500).run(ROWS[:-1])


@pytest.fixture(scope="module")
def longer() -> VI:
    """A fit to all rows."""
    return fit(num_steps=400).run(ROWS)


def means(vi: VI) -> list[float]:
    return [float(value.mean()) for value in vi.get_samples(4000).values()]


def test_with_one_row_more_it_is_there_already(first: VI, longer: VI) -> None:
    again = fit(start=first).run(ROWS)
    assert again.history.num_steps == 0
    assert again.verdict().outcome is Outcome.TRUST
    assert "no training was needed" in str(again.verdict())
    assert again.diagnostics()["iwae"] == pytest.approx(longer.diagnostics()["iwae"], abs=0.02)
    assert means(again) == pytest.approx(means(longer), abs=0.05)


def test_the_other_fit_stays_what_it_was(first: VI) -> None:
    before = {name: value.clone() for name, value in first.posterior.layer.state_dict().items()}
    fit(start=first.posterior, num_steps=20).run(ROWS)
    assert all(torch.equal(value, before[name]) for name, value in first.posterior.layer.state_dict().items())


def test_steps_that_are_asked_for_are_taken_from_there(first: VI) -> None:
    again = fit(start=first, num_steps=20).run(ROWS)
    assert again.history.num_steps == 20  # of the flow; none of its affine end
    assert float(again.history.trace()[0]) > float(fit(num_steps=20).run(ROWS).history.trace()[0])


def test_of_another_flow_its_gaussian_is_taken(first: VI, longer: VI) -> None:
    begun = fit(guide=guide_of(curved, 5), start=first, effort="quick").run(ROWS)
    assert begun.history.num_steps == 0
    assert begun.diagnostics()["iwae"] == pytest.approx(longer.diagnostics()["iwae"], abs=0.05)


def test_a_hierarchy_has_its_coordinates() -> None:
    y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = fit(groups, num_steps=60).run(y[:-1])
    again = fit(groups, start=before, num_steps=4).run(y)
    found, right = (vi.guide.latents.centering["theta"] for vi in (again, before))
    assert torch.equal(found, right)
    assert 0 < float(right.mean()) < 1


def test_several_starts_are_independent(first: VI) -> None:
    vi = fit(start=first, num_starts=2, num_steps=20).run(ROWS)
    assert vi.history.num_steps > 40  # the second one has an affine end to fit
    assert len(vi.posterior.starts) == 2


def test_a_fit_that_was_loaded_without_its_data_is_one(first: VI, tmp_path: Path) -> None:
    first.save(tmp_path / "fit.pt")
    loaded = VI.load(tmp_path / "fit.pt", guide_of(curved))
    again = fit(start=loaded).run(ROWS)
    assert again.history.num_steps == 0


def test_a_copy_that_has_not_been_run_has_the_start_too(first: VI) -> None:
    for copied in (
        copy.deepcopy(fit(start=first)),
        pickle.loads(pickle.dumps(fit(guide=AutoFlow(curved), start=first))),
    ):
        assert copied._source is not None
        assert torch.equal(copied._source.draws.z, first.posterior.draws.z)


def test_run_again_it_goes_on_from_its_own_fit(first: VI) -> None:
    vi = fit(start=first, num_steps=10).run(ROWS)
    reached = vi.posterior.layer.state_dict()
    vi.run(ROWS)
    assert any(not torch.equal(value, reached[name]) for name, value in vi.posterior.layer.state_dict().items())
    assert vi.history.num_steps == 10


def test_another_model_is_refused_and_the_guide_stays_as_it_was(first: VI) -> None:
    vi = fit(pairs, start=first)
    with pytest.raises(
        ValueError, match=r"VI: start is of another model: site '\w+' has unconstrained shape .* there and"
    ):
        vi.run(PAIRS)
    assert torch.equal(vi.guide.plain_layer().end.loc, vi.guide.init_loc())


def test_data_that_are_impossible_there_are_refused() -> None:
    def bounded(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.factor("above", torch.where(z > y, 0.0, -torch.inf))

    before = fit(bounded, num_steps=20).run(ROWS.new_tensor(-5.0))
    guide = AutoFlow(bounded, lambda d: flows.realnvp(d, 1, (4,)), init_loc_fn=lambda site: torch.tensor(9.0))
    vi = fit(bounded, start=before, guide=guide)
    with pytest.raises(ValueError, match="is not finite where start is"):
        vi.run(ROWS.new_tensor(3.0))


def test_what_is_no_fit_is_refused() -> None:
    with pytest.raises(TypeError, match=r"VI: start must be another fit, a VI that has been run .*, got int"):
        fit(start=3)
    with pytest.raises(ValueError, match=r"VI: start has not been run; call its run"):
        fit(start=fit())
