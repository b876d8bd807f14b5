"""Log densities that single precision rounds too much: weights in double precision, and no fault of the guide's."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.engine.rounding import CLOSE, Rounding
from pyro_nflows.engine.trainer import Trainer
from pyro_nflows.layers import LocScale
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.objectives.draws import Draws


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def counts() -> tuple[Tensor, Tensor]:
    """Of a Poisson regression, so that nothing bounds the size of a negative binomial from above."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, generator=made)
    return x, torch.poisson((1 + x @ torch.tensor([0.5, -0.3])).exp(), generator=made)


def model(x: Tensor, y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 100.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
    size = pyro.sample("size", dist.HalfCauchy(25.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.NegativeBinomial(size, logits=level + x @ slopes - size.log()), obs=y)


def test_a_negative_binomial_of_unbounded_size_is_fitted_in_single_precision():
    vi = VI(AutoFlow(model), seed=0, progress_bar=False).run(*counts())
    d = vi.diagnostics()
    assert d["outcome"] is Outcome.TRUST
    assert d["ess"] > 0.9  # whether a draw of this guide lies where it is rounded, is left to chance


def test_a_fit_says_that_its_weights_are_those_of_double_precision():
    joint, _ = drawn(tail=4.0)
    trainer = Trainer(joint, progress_bar=False)
    layer = LocScale(4, torch.tensor([1.0, 0.5, -0.3, 12.0]), init_scale=0.05)
    with torch.no_grad():
        layer.log_scale[3] = 0.0
    draws = trainer.sampler.sample(layer, 2000)
    trainer.close()
    torch.testing.assert_close(draws.log_p, joint.double(draws.z.double()))
    assert any("double precision" in note for note in trainer.history.engine_notes)


def drawn(tail: float) -> tuple[LogJoint, Draws]:
    """Draws near the mode of all but the size, whose logarithm is up to ``tail``."""
    guide = AutoFlow(model)
    guide(*counts())
    joint = LogJoint(BoundModel(model, counts()), guide.latents)
    torch.manual_seed(0)
    z = torch.tensor([1.0, 0.5, -0.3, 0.0]) + 0.05 * torch.randn(2000, 4)
    z[:, 3] = torch.linspace(3.0, tail, len(z))
    return joint, Draws(z, joint(z).double(), joint(z).double() - torch.randn(2000, dtype=torch.float64))


def test_weights_of_a_tail_are_those_of_double_precision():
    joint, draws = drawn(tail=16.0)
    rounding = Rounding(joint)
    corrected = rounding.corrected(draws)
    exact = joint.double(draws.z.double())
    assert (draws.log_p - exact).abs().max() > 10 * CLOSE
    torch.testing.assert_close(corrected.log_p, exact)
    assert rounding.error > CLOSE
    assert rounding.note is not None


def test_weights_that_are_rounded_little_stay_as_they_are():
    joint, draws = drawn(tail=4.0)
    rounding = Rounding(joint)
    assert rounding.corrected(draws) is draws
    assert rounding.note is None


def test_good_weights_are_not_looked_at():
    joint, draws = drawn(tail=16.0)
    draws = Draws(draws.z, draws.log_p, draws.log_p.clone())
    rounding = Rounding(joint)
    assert rounding.corrected(draws) is draws


def test_a_model_with_constants_in_single_precision_stays_as_it_is():
    x, y = counts()
    closed = lambda: model(x, y)  # noqa: E731
    guide = AutoFlow(closed)
    guide()
    joint, draws = LogJoint(BoundModel(closed), guide.latents), drawn(tail=16.0)[1]
    assert Rounding(joint).corrected(draws) is draws


def test_a_model_with_random_numbers_of_its_own_is_not_taken_for_rounded():
    def subsampled(x: Tensor, y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x), subsample_size=5) as rows:
            pyro.sample("y", dist.Poisson(level.exp()), obs=y[rows])

    guide = AutoFlow(subsampled)
    guide(*counts())
    joint = LogJoint(BoundModel(subsampled, counts()), guide.latents)
    torch.manual_seed(0)
    z = 1 + 0.1 * torch.randn(2000, 1)
    draws = Draws(z, joint(z).double(), torch.randn(2000, dtype=torch.float64))
    assert Rounding(joint).corrected(draws) is draws
