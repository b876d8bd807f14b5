"""The product of matrices that all compiled programs share, called by itself."""

import ctypes
import itertools

import pytest
import torch

from pyro_nflows.engine.native import build
from pyro_nflows.engine.native.plan import Loops

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")

#: Few and many rows and columns, multiples of what is computed at once (6, 16, 32) and others; rows, columns, sums.
SIZES = [
    (1, 9, 40),
    (5, 40, 5),
    (12, 150, 13),
    (32, 96, 64),
    (33, 131, 70),
    (48, 200, 48),
    (70, 32, 96),
    (128, 300, 129),
]


def laid(rows, columns, turned, dtype, generator):
    """Numbers with rows, or columns, side by side, within a larger matrix."""
    wide = torch.randn(*((columns, rows + 3) if turned else (rows, columns + 3)), generator=generator).to(dtype)
    return wide[:, :-3].t() if turned else wide[:, :-3]


def product(a, b, c, more):
    """``a b`` into ``c``, or added to it."""
    prefix = "d" if a.dtype is torch.float64 else "f"
    function = getattr(build.linear_library(prefix).load(), prefix + "product")
    pack = torch.full((32 * a.shape[1] + 64,), torch.nan, dtype=a.dtype)
    size, place = ctypes.c_int64, ctypes.c_void_p
    sizes = [size(n) for n in (c.shape[0], c.shape[1], a.shape[1])]
    matrices = [v for m in (a, b, c) for v in (place(m.data_ptr()), *map(size, m.stride()))]
    function(*sizes, *matrices, place(pack.data_ptr()), ctypes.c_int(more))
    return c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_a_product_is_torchs_however_its_matrices_lie(size, dtype):
    """And leaves alone what lies beside its result."""
    generator = torch.Generator().manual_seed(0)
    m, n, k = size
    for a_turned, b_turned, c_turned, more in itertools.product([False, True], repeat=4):
        a, b = laid(m, k, a_turned, dtype, generator), laid(k, n, b_turned, dtype, generator)
        c = laid(m, n, c_turned, dtype, generator)
        around = torch.as_strided(c, (n if c_turned else m, (m if c_turned else n) + 3), (max(c.stride()), 1))
        beside = around[:, -3:].clone()
        expected = a.double() @ b.double() + more * c.double()
        found = product(a, b, c, more).double()
        bound = 4 * k * torch.finfo(dtype).eps * (a.double().abs() @ b.double().abs() + expected.abs())
        assert ((found - expected).abs() <= bound).all(), (a_turned, b_turned, c_turned, more)
        assert torch.equal(around[:, -3:], beside)


def test_rows_are_the_same_numbers_however_many_there_are():
    """So that threads may divide a product among them."""
    generator = torch.Generator().manual_seed(0)
    for turned in itertools.product([False, True], repeat=2):
        a, b = laid(128, 160, turned[0], torch.float32, generator), laid(160, 300, turned[1], torch.float32, generator)
        whole = product(a, b, torch.empty(128, 300, dtype=a.dtype), 0)
        for rows in (16, 32, 48):
            assert torch.equal(product(a[:rows], b, torch.empty(rows, 300, dtype=a.dtype), 0), whole[:rows])
        for columns in (16, 150):
            assert torch.equal(
                product(a, b[:, :columns], torch.empty(128, columns, dtype=a.dtype), 0), whole[:, :columns]
            )


@pytest.mark.parametrize(("num_rows", "turned"), [(1000, True), (600, True), (400, False)])
def test_what_a_model_makes_of_rows_of_data_lies_particle_by_particle(num_rows: int, turned: bool) -> None:
    """Loops run over the rows of each particle: what lies otherwise takes them five times as long."""
    plan = Loops()
    rows, particles = plan.constant(torch.ones(num_rows, 20)), plan.ref((20, 128), torch.float32)
    made = plan.product(rows, particles)
    assert made.meta.stride() == ((1, num_rows) if turned else (128, 1))
    computed = plan.ref((num_rows, 20), torch.float32)
    assert plan.product(computed, particles).meta.stride() == (128, 1)
