"""Loops as C: what the compiler is told of them."""

import re

import pytest
import torch

from pyro_nflows.engine.native.kernels import kernel
from pyro_nflows.engine.native.plan import Loops


def text_of(rows, columns):
    """The C of a sum whose second term is read row by row, ``columns`` apart."""
    plan = Loops()
    shape = (rows, 70)
    turned = plan.ref((70, columns), torch.float32)
    first = plan.access(plan.room(shape, torch.float32), shape)
    second = plan.access(turned._replace(meta=turned.meta[:, :rows].t()), shape)
    plan.let("{0} + {1}", [first, second], shape, torch.float32).buffer.pinned = True
    (loop,) = plan.steps
    return kernel(loop)[0]


@pytest.mark.parametrize("columns", [32, 128, 4096])
def test_a_power_of_two_as_the_innermost_stride_is_kept_from_the_compiler(columns):
    """GCC would not vectorise the loop, and what blocks of particles give is read with such strides."""
    text = text_of(32, columns)
    assert f"[i0 + i1 * s{columns}]" in text
    assert re.search(rf"volatile i64 (\w+) = {columns}; const i64 s{columns} = \1;", text)


@pytest.mark.parametrize("columns", [8, 100])
def test_other_strides_are_told(columns):
    text = text_of(8, columns)
    assert f"[i0 + i1 * {columns}]" in text
    assert "volatile" not in text
