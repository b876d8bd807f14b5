"""The benchmark of latent paths: the precision that the model is given, and how marginals are compared."""

import math

import pytest
import torch

pytest.importorskip("numpyro")

from benchmarks import paths


def test_the_precision_is_that_of_a_stationary_path() -> None:
    distance = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    covariance = paths.SCALE**2 / (1 - paths.DECAY**2) * paths.DECAY**distance
    torch.testing.assert_close(paths.precision(5) @ covariance, torch.eye(5), rtol=0, atol=1e-4)


def test_errors_are_in_the_reference_s_deviations() -> None:
    reference = paths.Moments(torch.zeros(2), torch.tensor([1.0, 2.0]))
    found = paths.Moments(torch.tensor([0.1, -0.4]), torch.tensor([1.1, 1.0]))
    shift, ratio = paths.errors(found, reference)
    assert math.isclose(shift, 0.2, rel_tol=1e-6)
    assert ratio == 0.5
