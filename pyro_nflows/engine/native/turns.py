"""The loop around compiled steps, and where it gives Python a turn: for a call of torch, and to hear an interrupt."""

import math
from collections.abc import Sequence

from .plan import Cholesky, Extern, Loop, Product, Solve, Step

#: After so much work, in seconds of an ordinary processor, Python has a turn; a turn takes microseconds.
SECONDS = 0.05


#: It stops by returning the number of a stop, and goes on from there when it is called with that number.
SKELETON = """#include "support.h"
{pointers}
{functions}

int run(u8 *memory, u8 **constants, u8 **streams, u8 **collected, void **linear, u8 *pack, i64 *step, i64 end,
        int stop, team_t *team, share_t *share) {{
const given_t given = {{memory, constants, pack}};
{addresses}
{before}
switch (stop) {{
case 0:
for (; *step < end; ++*step) {{
{inputs}
{calls}
{results}
}}
}}
return 0;
}}
"""


def pauses(steps: Sequence[Step]) -> set[int]:
    """The steps after which to pause; a call of torch is a pause by itself."""
    found, done = set[int](), 0.0
    for i, step in enumerate(steps):
        done = 0.0 if isinstance(step, Extern) else done + seconds(step)
        if done > SECONDS:
            found.add(i)
            done = 0.0
    return found


def seconds(step: Step) -> float:
    """About how long a step takes: a nanosecond for each element of each statement, a tenth for each product."""
    if isinstance(step, Loop):
        return 1e-9 * math.prod(step.shape) * len(step.statements)
    if isinstance(step, Product):
        return 1e-10 * step.a.meta.numel() * step.b.meta.shape[-1]
    if isinstance(step, Solve):
        return 1e-10 * step.a.meta.shape[-1] * step.b.meta.numel()
    if isinstance(step, Cholesky):
        return 1e-10 * step.a.meta.shape[-1] * step.a.meta.numel()
    return 0.0
