"""What a guide does where the data are on another device than the default one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_nflows import ELBO
from tests.guide_registry import Case, cases
from tests.models import PAIRS, pairs


@pytest.mark.gpu
@cases()
def test_the_guide_is_on_the_device_of_the_models_latents(case: Case) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("unit", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide, x = case(model), PAIRS.cuda()
    for elbo in (ELBO(3), Trace_ELBO()):
        SVI(model, guide, Adam({"lr": 1e-2}), elbo).step(x)
    tensors = [*guide(x).values(), *guide.median().values(), *guide.parameters(), guide.sample_latent()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    moved_back = case(pairs)
    moved_back.load_state_dict({name: value.cpu() for name, value in guide.state_dict().items()})
    torch.testing.assert_close(moved_back.median(), {"z": guide.median()["z"].cpu()})
