"""What the package promises, on real posteriors and with default settings. Slow."""

import os

import pytest
import torch

from benchmarks.models import POSTERIORS, errors, reference
from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine import Engine
from pyro_nflows.engine.native import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not os.environ.get("POSTERIORDB"), reason="set POSTERIORDB to the posterior_database folder"),
]


@pytest.mark.parametrize(
    "name",
    [
        "eight_schools-eight_schools_centered",
        "eight_schools-eight_schools_noncentered",
        "kidiq-kidscore_interaction",
    ],
)
def test_default_draws_are_as_good_as_long_mcmc(name):
    posterior = POSTERIORS[name]
    vi = VI(AutoFlow(posterior.model), seed=0, progress_bar=False).run(*posterior.args())
    assert vi.diagnostics()["ess"] >= 0.9
    torch.manual_seed(0)
    mean_error, _ = errors(posterior.to_reference(vi.get_samples(20_000)), reference(name))
    assert mean_error <= 0.03


@pytest.mark.skipif(build.compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("name", POSTERIORS)
def test_every_posterior_compiles_and_gives_the_same_losses(name):
    posterior = POSTERIORS[name]
    fits = {}
    for engine in (Engine.TRACED, Engine.COMPILED):
        vi = VI(AutoFlow(posterior.model), num_steps=50, seed=0, engine=engine, progress_bar=False)
        fits[engine] = vi.run(*posterior.args()).history
        assert set(fits[engine].engines) == {engine}
    traces = [fits[engine].trace() for engine in fits]
    assert torch.allclose(*traces, rtol=1e-5, atol=1e-5)
