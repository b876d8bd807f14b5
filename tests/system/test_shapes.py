"""The same as torch's own functions, and none of what these import."""

import subprocess
import sys

import pytest
import torch

from pyro_nflows.system.shapes import broadcast_shapes, unravel_index

SHAPES = [(), (1,), (3,), (0,), (2, 1), (1, 3), (2, 3), (4, 1, 1), (4, 2, 3), (2, 0)]


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_shapes_are_broadcast_as_torch_does_it(first, second):
    try:
        right = torch.broadcast_shapes(first, second, (1,))
    except RuntimeError:
        with pytest.raises(RuntimeError, match="cannot be broadcast"):
            broadcast_shapes(first, second, (1,))
        return
    assert broadcast_shapes(first, second, (1,)) == right
    assert isinstance(broadcast_shapes(first, second), torch.Size)


def test_no_shapes_are_that_of_a_number():
    assert broadcast_shapes() == torch.broadcast_shapes() == ()


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 1, 3), ()])
def test_places_are_torchs(shape):
    index = torch.arange(torch.Size(shape).numel())
    places, right = unravel_index(index, shape), torch.unravel_index(index, shape)
    assert len(places) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(places, right))


FIT = """
import sys
import torch, pyro, pyro.distributions as dist
from pyro_nflows import VI, AutoFlow

def model(y):
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.StudentT(4.0, 0.0, s))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)

vi = VI(AutoFlow(model), num_steps=20, seed=0, progress_bar=False).run(torch.tensor([0.3, -0.2, 1.0]))
vi.get_samples(10)
print("sympy" in sys.modules)
"""


def test_a_fit_does_without_a_library_of_symbolic_algebra():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FIT], capture_output=True, text=True, timeout=200)
    assert (done.stdout, done.stderr) == ("False\n", "")
