"""What the package promises, on real posteriors and with default settings. Slow."""

import os

import pytest
import torch

from benchmarks.models import POSTERIORS, errors, reference
from pyro_nflows import VI, AutoFlow

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
