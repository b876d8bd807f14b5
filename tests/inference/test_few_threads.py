"""A fit whose rows take few operations runs on one thread; what was set before is there again afterwards."""

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.engine import threads_for


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_fit_of_few_rows_is_on_one_thread() -> None:
    seen = []

    def model(y: Tensor) -> None:
        seen.append(torch.get_num_threads())
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean.sum(-1, keepdim=True), 1.0), obs=y)

    VI(AutoFlow(model), num_steps=2, seed=0, progress_bar=False, engine="eager").run(torch.ones(10))
    assert torch.get_num_threads() == 2
    assert seen.count(1) > seen.count(2)  # only the first looks at the model, which say how much work it is, are on two


def test_many_operations_keep_all_threads() -> None:
    with threads_for(10_000_000):
        assert torch.get_num_threads() == 2


def test_a_number_that_was_set_is_there_again_after_an_error() -> None:
    def fails() -> None:
        with threads_for(1):
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert torch.get_num_threads() == 2
