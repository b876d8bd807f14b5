"""Log ratios of a model to a guide, row by row, of many draws on one minibatch after another: recorded and compiled."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..checks import first_line
from ..flows.by_row import draw_by_row
from ..flows.whitened import Whitened
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..nets.views import on_rows, with_parameters
from .compiling import Code, Compiling, compile_seconds
from .runners import Engine
from .tape import Tape

#: Draws that are made at once: of so many numbers, and as many draws at most.
AT_ONCE, MOST = 2**16, 1024
#: Draws times rows for which a recording pays, and seconds that it takes for each of them.
MANY, SECONDS = 2_000_000, 1e-7
#: Runs of the model for one value, because of other subsampled plates, beyond which a recording is too long.
MOST_RUNS = 20


class Ratios(NamedTuple):
    """Draws ``(S, dim)`` of chosen rows, with log ratios: outside of the plate ``(S,)``, of each row ``(S, rows)``."""

    z: Tensor
    outside: Tensor
    rows: Tensor


class RowRatios:
    r"""Draws of a layer on chosen rows of a plate, with each row's part of :math:`\log p - \log q`.

    The model's Python runs once, where it can be recorded: the rows' numbers, and what the layer has for them, are
    inputs of the recording.

    :param layer: over all rows, or of the rows that the model is at; its parameters may change between calls.
    :param terms: the model on chosen rows.
    :param rows: makes chosen rows of their numbers.
    :param engine: asked for, or None for the fastest.
    """

    def __init__(self, layer: nn.Module, terms: RowTerms, rows: Callable[[Tensor], Rows], engine: Engine | None = None):
        self.layer, self.terms, self.rows, self.asked = layer, terms, rows, engine
        self.note: str | None = None
        self._view = self._on(torch.arange(terms.size))
        self._size = max(1, min(MOST, AT_ONCE // terms.hierarchy.dim))
        self._tape: Tape | None = None
        self._memory: Code | None = None

    @property
    def engine(self) -> Engine:
        """What runs now."""
        if self._memory is not None:
            return Engine.COMPILED
        return Engine.EAGER if self._tape is None else Engine.TRACED

    def expect(self, num: int) -> None:
        """Record, and compile, if so many draws times rows are worth that."""
        is_long = self.terms.num_runs > MOST_RUNS
        if self.note is not None or self.asked is Engine.EAGER or is_long or (self.asked is None and num < MANY):
            return
        try:
            tape = self._tape = self._tape or self._recorded()
            long = self.asked is Engine.COMPILED or SECONDS * num > 2 * compile_seconds(tape)
            if long and self._memory is None and self.asked is not Engine.TRACED:
                self._compile(tape)
        except Exception as error:  # what cannot be recorded, for whatever reason, runs as it is
            self.note = first_line(error)

    @torch.no_grad()
    def __call__(self, numbers: Tensor, base: Tensor, inner: Tensor) -> Ratios:
        """Draws from base points.

        :param numbers: the rows' numbers, as many as a minibatch has.
        :param base: of what is outside of the plate, ``(S, width)``, with the noise of its flow.
        :param inner: of the rows, ``(S, rest)``, block by block.
        """
        size, params = self._size, self._params(numbers)
        if self._tape is None:
            steps = [self._step(params, a, b, numbers)[1:] for a, b in zip(base.split(size), inner.split(size))]
            return Ratios(*(torch.cat(parts) for parts in zip(*steps)))
        num = -(-len(base) // size)
        chunks = [_filled(part, num * size).unflatten(0, (num, size)) for part in (base, inner)]
        found: Sequence[Tensor]
        if self._memory is not None:
            _, found = self._memory.run([params], [*chunks, numbers.expand(num, -1)])
        else:
            with torch.inference_mode():
                steps = [tuple(self._tape.run([params, a, b, numbers])[1:]) for a, b in zip(*chunks)]
            found = [torch.stack(parts) for parts in zip(*steps)]
        return Ratios(*(part.flatten(0, 1)[: len(base)] for part in found))

    # ---- one step -------------------------------------------------------------------------------------------

    def _params(self, numbers: Tensor) -> Tensor:
        """What the layer has for chosen rows, as one vector."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in self._on(numbers).parameters()])

    @torch.no_grad()
    def _on(self, numbers: Tensor) -> Whitened:
        self.terms.choose(numbers)
        return cast(Whitened, on_rows(self.layer, self.rows(numbers)))

    def _step(self, params: Tensor, base: Tensor, inner: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        """The parameters as they were, and draws with their log ratios."""
        terms, hierarchy = self.terms, self.terms.hierarchy
        terms.choose(numbers)
        named = dict(self._view.named_parameters())
        parts = params.split([tensor.numel() for tensor in named.values()])
        filled = {name: part.view(tensor.shape) for (name, tensor), part in zip(named.items(), parts)}
        layer, num_top = with_parameters(self._view, filled), len(hierarchy.top)
        noise = base[:, num_top:] if layer.noise_dim else None
        found = draw_by_row(layer, torch.cat([base[:, :num_top], inner], -1), noise)
        outside, rows = terms(found.z)
        log_q = torch.zeros_like(rows)
        for block, part in zip(hierarchy.blocks, found.rows):
            log_q = log_q.index_add(-1, hierarchy.index_in(block, terms.plate), part)
        return params, found.z, outside - found.outside, rows - log_q

    def _example(self, numbers: Tensor) -> list[Tensor]:
        params, num_top = self._params(numbers), len(self.terms.hierarchy.top)
        generator = torch.Generator().manual_seed(int(numbers[0]))
        widths = num_top + self._view.noise_dim, self.terms.hierarchy.dim - num_top
        base, inner = (torch.randn(self._size, width, generator=generator, device="cpu").to(params) for width in widths)
        return [params, base, inner, numbers]

    def _recorded(self) -> Tape:
        """A recording that is right on other rows too."""
        first = torch.arange(self.terms.size)
        tape = Tape(self._step, self._example(first))
        other = self._example(first.flip(0) + self.terms.num_rows - self.terms.size)
        if tape.is_random or _differ(tape.run(other), self._step(*other)):
            raise RuntimeError("a recording of the model's rows differs from the model on other rows")
        return tape

    def _compile(self, tape: Tape) -> None:
        example = self._example(torch.arange(self.terms.size))
        compiling = Compiling(tape, 1, example[0])
        compiling.start()

        def differs(run: Code) -> str | None:
            params, *streams = example
            found = run.run([params], [stream[None] for stream in streams])[1]
            return "compiled code gives other ratios" if _differ([p[0] for p in found], tape.run(example)[1:]) else None

        self._memory = compiling.take(differs)
        self.note = compiling.refused


def _filled(part: Tensor, num: int) -> Tensor:
    """So many rows, the last ones as the first."""
    return part if len(part) == num else torch.cat([part, part[:1].expand(num - len(part), -1)])


def _differ(found: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(found, right))
