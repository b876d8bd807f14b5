r"""Fresh draws of a flow with their weights: many more than a step takes, and without gradients."""

import functools
import time
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..checks import first_line
from ..layers.base import Layer
from ..numerics import LogDensity
from ..objectives.base import Gradient, Objective
from ..objectives.draws import Draws, base_noise, concatenate, draw, even_noise
from ..system.randomness import forked
from .budget import Budget
from .compiling import Code, Compiling, compile_seconds, compiles
from .cost import MOMENT, RECORDING, DrawCosts, finish
from .program import Program
from .rounding import Rounding
from .tape import Tape
from .team import Team

#: Sizes of the chunks that the model's own Python evaluates: large ones are held up by memory, small ones by Python.
CHUNKS = (250, 2000)
#: Draws that compiled code takes at once.
BATCH = 128
#: Seconds that are long by any clock.
LONG = 20.0
#: Where time is limited, the share of what is left that draws may take, and those that only compare fits; and how many
#: there are even where there is no time.
DRAWS, LOOK, FEWEST = 0.5, 0.1, 20
#: Where so many would take more than the share of a look, there are fewer, but at least so many.
LEAST = 4
#: So many times longer their log densities take in double precision, by the model's own Python.
DOUBLE = 2.0
#: Draws at once, and seconds for them all, while somebody is waiting.
FEW, HURRY = 100, 1.0


@torch.no_grad()
def sample(log_joint: LogDensity, layer: Layer, num_samples: int) -> Draws:
    """Fresh draws with their log densities, in chunks of the size that runs fastest."""
    return Rounding(log_joint).corrected(_in_chunks(log_joint, layer, even_noise(layer, num_samples)))


def _in_chunks(log_joint: LogDensity, layer: Layer, noise: Tensor, sizes: Sequence[int] = CHUNKS) -> Draws:
    parts, done, pace = [], 0, dict.fromkeys(sizes, 0.0)
    while done < len(noise):
        size = min(pace, key=lambda num: pace[num])  # one that has not been tried goes first
        began = time.perf_counter()
        parts.append(draw(log_joint, layer, noise[done : done + size]))
        pace[size] = (time.perf_counter() - began) / len(parts[-1].z)
        done += size
    return _double(concatenate(parts))


def _double(draws: Draws) -> Draws:
    return Draws(draws.z, draws.log_p.double(), draws.log_q.double())


class Sampler:
    """Draws of copies of a layer; compiled in the background where many of them take long.

    :param log_joint: the model, ``(K, D) -> (K,)``.
    :param leaves: the model's trainable leaf tensors.
    :param compile: whether that may be.
    :param steady: whether draws are not to depend on the clock, not even by rounding: what is compiled is waited for,
        and that is done only where draws would take long by any clock.
    :param most: draws at once, whatever is asked for: where each is dear.
    """

    def __init__(
        self,
        log_joint: LogDensity,
        leaves: Sequence[Tensor] = (),
        compile: bool = True,
        steady: bool = False,
        most: int | None = None,
    ):
        self.log_joint, self.leaves, self.compile, self.steady = log_joint, leaves, compile, steady
        self.most = most
        self._sizes = CHUNKS[:1] if steady else CHUNKS
        self.note: str | None = None
        self.compiling: Compiling | None = None
        self.deadline: float | None = None
        self.budget, self.costs, self.rounding = Budget(), DrawCosts(log_joint), Rounding(log_joint)
        self.team: Team | None = None
        self._form: object = None

    def hurry(self) -> None:
        """Take no more than about a second for draws from now on: some hundreds of them at worst."""
        if self.deadline is None:
            self.deadline = time.perf_counter() + HURRY

    @torch.no_grad()
    def expect(self, layer: Layer, num_samples: int) -> None:
        """Begin to compile if so many draws would otherwise take longer."""
        if self.team is not None:
            self.team.expect(layer, num_samples)
            num_samples //= self.team.ranks.size
        if self.budget.is_limited and not self._has_time_to_record(layer):
            return
        program = self._program(layer)
        if self.compiling is not None or self.note is not None or not (self.compile and compiles(program.params())):
            return
        with forked():
            noise = base_noise(layer, CHUNKS[0])
        began = time.perf_counter()
        draw(self.log_joint, layer, noise)
        seconds = (time.perf_counter() - began) * num_samples / CHUNKS[0]
        if seconds > (LONG if self.steady else 1.0):
            self._begin(program, noise[:BATCH], seconds)

    def _has_time_to_record(self, layer: Layer) -> bool:
        seconds = self.budget.seconds
        return RECORDING * self.costs.at(layer, seconds).of(BATCH) < MOMENT * seconds

    def _begin(self, program: Program, noise: Tensor, seconds: float) -> None:
        try:
            tape = Tape(lambda params, rows: (params, *_parts(program.draws(params, rows))), [program.params(), noise])
        except Exception as error:
            self._drop(first_line(error))
            return
        if not tape.is_random and seconds > compile_seconds(tape):
            self.compiling, self._form = Compiling(tape, 1, noise), program.shapes
            self.compiling.start()
            if self.compiling.refused is not None:
                self._drop(self.compiling.refused)

    def _drop(self, reason: str) -> None:
        """Draws are made as they always can be; the note says why."""
        self.compiling, self.note = None, f"compiled draws: {reason}"

    @torch.no_grad()
    def sample(self, layer: Layer, num_samples: int, share: float = DRAWS) -> Draws:
        """Fresh draws with their log densities: from evenly spread points of the base, in random order.

        There are fewer than asked for where that are more than ``most``, somebody is waiting, or time is short.

        :param share: of the time that is left, which they may take.
        :raises OutOfTime: within a piece of work that has no time left for a few of them.
        """
        num_samples = num_samples if self.most is None else min(num_samples, self.most)
        if not self.budget.is_limited or self.deadline is not None:
            draws = self._sample(layer, num_samples)
            return draws if self.deadline is not None else self.rounding.corrected(draws)
        draws = self._in_time(layer, num_samples, share)
        again = DOUBLE * self.costs.at(layer, self.budget.seconds).of(len(draws.z))
        return self.rounding.corrected(draws) if again < share * self.budget.left else draws

    def _in_time(self, layer: Layer, num_samples: int, share: float) -> Draws:
        """As many of the draws as there is time for, a moment's at a time."""
        budget, cost = self.budget, self.costs.at(layer, self.budget.seconds)
        moment, until = MOMENT * budget.seconds, min(budget.deadline, time.perf_counter() + share * budget.left)
        if -(-num_samples // CHUNKS[0]) * cost.of(CHUNKS[0]) <= moment:
            budget.need()
            return self._sample(layer, num_samples)
        noise, parts, num_done = even_noise(layer, num_samples), list[Draws](), 0
        most = CHUNKS[1]
        if self.compiling is not None and self.compiling.is_ready:  # faster than the model's own Python
            most, cost = num_samples, cost.copy()
        while num_done < num_samples:
            num = min(cost.rows_in(moment), most, num_samples - num_done)
            if num_done < max(LEAST, min(FEWEST, cost.rows_in(LOOK * budget.seconds))):
                budget.need(cost.of(num))
            elif time.perf_counter() + cost.of(num) > until:
                break
            began, at = time.perf_counter(), functools.partial(self.at, sizes=(num,))
            some = noise[num_done : num_done + num]
            parts.append(at(layer, some) if self.team is None else self.team.draws(at, layer, some))
            finish(parts[-1].log_p)
            cost.note(num, time.perf_counter() - began)
            num_done += num
        return concatenate(parts)

    def _sample(self, layer: Layer, num_samples: int) -> Draws:
        if self.deadline is not None:
            return self._some(layer, num_samples)
        noise = even_noise(layer, num_samples)
        return self.at(layer, noise) if self.team is None else self.team.draws(self.at, layer, noise)

    @torch.no_grad()
    def at(self, layer: Layer, noise: Tensor, sizes: Sequence[int] = ()) -> Draws:
        """Draws at given points of the base.

        :param sizes: of the chunks that the model's own Python evaluates, if not those that are usual.
        """
        draws = self._compiled(layer, noise)
        return _in_chunks(self.log_joint, layer, noise, sizes or self._sizes) if draws is None else draws

    def _some(self, layer: Layer, num_samples: int) -> Draws:
        """As many as there is time for."""
        parts, left = list[Draws](), num_samples
        while left > 0 and (not parts or time.perf_counter() < cast(float, self.deadline)):
            parts.append(draw(self.log_joint, layer, base_noise(layer, min(left, FEW))))
            left -= FEW
        return _double(concatenate(parts))

    def _compiled(self, layer: Layer, noise: Tensor) -> Draws | None:
        program, compiling = self._program(layer), self.compiling
        if compiling is None or len(noise) < BATCH or program.shapes != self._form:
            return None
        if not (compiling.is_ready or (self.steady and not self.budget.is_limited)):
            return None
        num = -(-len(noise) // BATCH) * BATCH
        rows = torch.cat([noise, noise[: num - len(noise)]]).view(-1, BATCH, noise.shape[1])

        found: list[Draws] = []

        def differs(run: Code) -> str | None:
            """From the model's own Python, each time: it may decide anew, and draws like these are rare."""
            _, parts = run.run([program.params()], [rows])
            z, log_p, log_q = (part.flatten(0, 1)[: len(noise)] for part in parts)
            found.append(Draws(z, log_p, log_q))
            return _difference(found[0], draw(self.log_joint, layer, noise[:BATCH]))

        if compiling.take(differs) is None:
            if compiling.refused is not None:
                self._drop(compiling.refused)
            return None
        return _double(found[0])

    def _program(self, layer: Layer) -> Program:
        return Program(self.log_joint, layer, Objective(), Gradient.TOTAL, BATCH, self.leaves)

    def cancel(self) -> None:
        """Wait no more for compiled draws; what is compiled, or soon is, is kept."""
        if self.compiling is not None:
            self.compiling.cancel()
            if self.compiling.scan is None:
                self.compiling = None


def _difference(draws: Draws, right: Draws) -> str | None:
    """Why draws are not to be trusted, if they are not: the first of them, made by the model's own Python, differ."""
    for name, part, expected in zip(("the draws", "log p", "log q"), _parts(draws), _parts(right)):
        close = torch.isclose(part[: len(expected)], expected, rtol=1e-3, atol=1e-3, equal_nan=True)
        if not close.all():
            got, wanted = part[: len(expected)][~close][0], expected[~close][0]
            return f"{name} are {got:.6g} where they should be {wanted:.6g}"
    return None


def _parts(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    return draws.z, draws.log_p, draws.log_q
