"""From a plan to C: equal loops become one function, called with other pointers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import Blocks, Place, plain
from .idle import Idle, idle_of
from .kernels import PREFIX, kernel
from .lower import Lowering
from .memory import place, place_shared, share
from .plan import C_TYPES, Buffer, Extern, Loop, Product, Solve, Step, refs_of
from .segments import PLACES, Part, Segment, segments
from .shares import divided, length_of
from .turns import SECONDS, SKELETON, pauses

#: Functions of ``linear.c``, in the order in which a program is handed their addresses.
LINEAR = "product", "solve", "cholesky"
#: At most so many columns does ``product`` pack at once.
MAX_WIDE = 32
#: Bytes between what threads pack.
APART = 4096


@dataclass
class Emitted:
    """C source and what it needs at run time: offsets into one piece of memory, constants, and calls of torch.

    ``own`` are the bytes that each thread has for itself; ``is_shared`` says whether threads can share the work;
    ``linear`` are the prefixes of the functions of ``linear.c`` that it calls.
    """

    source: str
    size: int
    constants: list[Buffer]
    externs: list[Extern]
    own: int
    is_shared: bool
    linear: Sequence[str]


class Emitter:
    """Writes a plan's C.

    :param lowering: the plan, its inputs and results.
    :param num_carried: so many results are the next step's first inputs; the others are collected.
    """

    def __init__(self, lowering: Lowering, num_carried: int):
        self.plan, self.inputs, self.results = lowering.plan, lowering.inputs, lowering.results
        self.num_carried = num_carried
        self.functions: dict[tuple[str, str], str] = {}  # parameters and body to name
        self.constants: dict[Buffer, int] = {}  # those that are read, numbered as they turn up
        self.externs: list[Extern] = []
        self.looks: list[str] = []  # what is looked up before the first step
        self.size = 0
        self.linear = set[str]()
        self.segments: list[Segment] | None = None
        self.blocks: Blocks | None = None
        found = segments(self.plan, self.inputs[num_carried:])
        if found is not None:
            self.segments, size = found
            self.blocks = Blocks(self.plan, self.segments, size, length_of(size))
        packed = [_packed(step) for step in self.plan.steps if isinstance(step, Product)]
        self.pack = max([0, *packed]) + APART

    def program(self) -> Emitted:
        """The source, after every buffer has its place."""
        for new, old in zip(self.results, self.inputs[: self.num_carried]):
            share(self.plan, new, old, self.segments)
        own, shared = 0, list[str]()
        if self.segments is None or self.blocks is None:
            self.size, calls = place(self.plan), self._calls(self.plan.steps)
        else:
            self.size, own = place_shared(self.plan, self.segments, self.blocks)
            calls = self._shared(self.blocks, self.segments, shared)
        functions = [
            f"static __attribute__((noinline)) void {name}({params}) {{\n{body}\n}}"
            for (params, body), name in self.functions.items()
        ]
        linear = sorted(self.linear)
        names = [prefix + name for prefix in linear for name in LINEAR]
        source = SKELETON.format(
            pointers="\n".join(f"static {name}_t *{name};" for name in names),
            addresses="\n".join(f"{name} = linear[{i}];" for i, name in enumerate(names)),
            functions="\n".join([*functions, f"#define OWN {own + self.pack}", *shared]),
            before=f"if (!stop && !*step) {{ {' '.join(self.looks)} }}",
            calls="\n".join(calls),
            inputs=self._inputs(),
            results=self._results(),
        )
        return Emitted(
            source,
            self.size + len(self.looks),
            list(self.constants),
            self.externs,
            own + self.pack,
            bool(shared),
            linear,
        )

    def _pointer(self, buffer: Buffer, offset: int, jump: int = 0) -> str:
        """Into a buffer, of the block that is being done if blocks are ``jump`` apart."""
        c_type, further = C_TYPES.get(buffer.dtype, "u8"), f" + block * {jump}" if jump else ""
        if buffer.constant is not None:
            number = self.constants.setdefault(buffer, len(self.constants))
            return f"({c_type} *)constants[{number}] + {offset}{further}"
        memory = "own" if self.blocks is not None and buffer in self.blocks.own else "memory"
        return f"({c_type} *)({memory} + {buffer.offset + offset * buffer.dtype.itemsize}){further}"

    def _calls(self, steps: Sequence[Step]) -> list[str]:
        """Every step, and stops at which Python has a turn: calls of torch, numbered from one, and then pauses."""
        calls, paused = [self._step(Part(step, None, None)) for step in steps], pauses(steps)
        for number, i in enumerate(sorted(paused), len(self.externs) + 1):
            calls[i] += f"\nreturn {number}; case {number}:;"
        return calls

    def _shared(self, blocks: Blocks, parts: Sequence[Segment], functions: list[str]) -> list[str]:
        """The same for segments, each a function of its own, whose work threads share where that is worth it."""
        calls = list[str]()
        for segment in parts:
            if isinstance(segment.parts[0].step, Extern):
                calls.append(self._step(segment.parts[0]))
                continue
            name, body = f"s{len(functions)}", self._segment(blocks, segment)
            functions.append(f"static void {name}(const given_t *given, i64 part, i64 parts) {{\n{body}\n}}")
            calls.append(f"{name}(&given, 0, 1);" if segment.alone else f"SHARE({name});")
        number, done = len(self.externs), 0.0
        for i, segment in enumerate(parts):
            done = 0.0 if isinstance(segment.parts[0].step, Extern) else done + segment.cost
            if done > SECONDS:
                number, done = number + 1, 0.0
                calls[i] += f"\nreturn {number}; case {number}:;"
        return calls

    def _segment(self, blocks: Blocks, segment: Segment) -> str:
        """All blocks of a part, each through all steps or together; and then what is cut otherwise, or is whole."""
        inside = [part for part in segment.parts if blocks.cuts(part)]
        others = [part for part in segment.parts if not blocks.cuts(part)]
        sizes = sorted({part.cut.size for part in others if part.cut is not None})
        lines = ["u8 *memory = given->memory, **constants = given->constants;"]
        lines.append(f"u8 *pack = given->own + part * OWN, *own = pack + {self.pack};")
        lines += [f"const i64 a{n} = CUT({n}, part, parts), b{n} = CUT({n}, part + 1, parts);" for n in sizes]
        if inside:
            first, last = f"{blocks.num} * part / parts", f"{blocks.num} * (part + 1) / parts"
            loop, steps = f"for (i64 block = {first}; block < {last}; block++)", list(map(self._step, inside))
            lines += [f"{loop} {{ {step} }}" for step in steps] if blocks.together else [f"{loop} {{", *steps, "}"]
        return "\n".join([*lines, *map(self._other, others)])

    def _other(self, part: Part) -> str:
        call = self._step(part)
        return call if part.owner is None else f"if (part == parts * {part.owner.place} / {PLACES}) {{ {call} }}"

    def _step(self, part: Part) -> str:
        step = part.step
        if isinstance(step, Extern):
            self.externs.append(step)
            return f"return {len(self.externs)}; case {len(self.externs)}:;"
        return self._loop(part, step) if isinstance(step, Loop) else self._linear(part)

    def _loop(self, part: Part, loop: Loop) -> str:
        cut, inside = None, False
        if self.blocks is not None:
            inside = self.blocks.cuts(part)
            loop, cut = (self.blocks.one(part), None) if inside else self.blocks.every(part)
        body, params = kernel(loop, cut, inside)
        declared = ", ".join(f"{param.c_type} *restrict p{i}" for i, param in enumerate(params))
        given = ", ".join(self._pointer(param.buffer, param.offset, param.jump) for param in params)
        if cut is not None and part.cut is not None:
            declared, given = f"{declared}, i64 lo, i64 hi", f"{given}, a{part.cut.size}, b{part.cut.size}"
        name = self.functions.setdefault((declared, body), f"k{len(self.functions)}")
        found = idle_of(loop) if cut is not None else None
        return f"{name}({given});" if found is None else self._busy(found, name, given, loop)

    def _busy(self, idle: Idle, name: str, given: str, loop: Loop) -> str:
        """A call for each run of numbers that take part, or for all numbers where others than these are not zero."""
        table, num = self._pointer(self.plan.constant(idle.runs).buffer, 0), len(idle.runs)
        flag = f"memory[{self.size + len(self.looks)}]"
        zeros = [(PREFIX[C_TYPES[buffer.dtype]], self._pointer(buffer, 0)) for buffer in idle.zeros]
        looked = " | ".join(f"{prefix}beside({x}, {loop.shape[0]}, {table}, {num})" for prefix, x in zeros)
        self.looks.append(f"{flag} = {looked or 0};")
        ahead = " ".join(f"AHEAD(({self._pointer(buffer, 0)}))" for buffer in idle.read)
        call = f"{name}({given.rsplit(', ', 2)[0]}, lo, hi)"
        return f"if ({flag}) {name}({given}); else RUNS(({table}), {num}, part, parts, {ahead}, {call})"

    def _linear(self, part: Part) -> str:
        """A product, a system or a factor: for each matrix of a batch, and each block of a sum over particles."""
        blocks, step = self.blocks, part.step
        places = plain(part) if blocks is None else blocks.matrices(part)
        prefix = PREFIX[C_TYPES[places[1].buffer.dtype]]
        self.linear.add(prefix)
        sums, inside = blocks is not None and blocks.sums(part), blocks is not None and blocks.cuts(part)
        sizes = self._sizes(part, blocks.length if blocks is not None and (sums or inside) else 0, sums)
        if isinstance(step, Product):
            name, rest = "product", f"(void *)pack, {'block > 0' if sums else 0}"
        elif isinstance(step, Solve):
            name, rest = "solve", f"{int(step.upper)}, {int(step.unit)}"
        else:
            name, rest = "cholesky", self._pointer(places[2].buffer, places[2].offset, places[2].jump)
            rest, places = rest + (" + i" if len(places[0].strides) > 2 else ""), places[:2]
        along = [None] * 3 if part.cut is None else divided(step, part.cut)
        matrices = ", ".join(self._matrix(place, d, part, inside) for place, d in zip(places, along))
        call = f"{prefix}{name}({sizes}, {matrices}, {rest});"
        if len(places[0].strides) > 2:
            low, high = "0", str(math.prod(refs_of(step)[0][0].meta.shape[:-2]))
            if inside and blocks is not None:
                high = str(blocks.length)
            elif part.cut is not None:
                low, high = f"a{part.cut.size}", f"b{part.cut.size}"
            call = f"for (i64 i = {low}; i < {high}; i++) {call}"
        elif part.cut is not None and not inside:
            call = f"if (b{part.cut.size} > a{part.cut.size}) {call}"
        return f"for (i64 block = 0; block < {blocks.num}; block++) {call}" if sums and blocks is not None else call

    def _sizes(self, part: Part, length: int, sums: bool) -> str:
        """The sizes of matrices: of a block if ``length`` is not 0, of all of it, or from one index to another."""
        step, cut = part.step, part.cut

        def size(num: int, along: str) -> str:
            if cut is None or cut.along != along:
                return str(num)
            return str(length) if length and not sums else f"b{cut.size} - a{cut.size}"

        if isinstance(step, Product):
            m, k, n = *step.a.meta.shape[-2:], step.b.meta.shape[-1]
            return f"{size(m, 'rows')}, {size(n, 'columns')}, {length if sums else k}"
        if isinstance(step, Solve):
            return f"{step.b.meta.shape[-2]}, {size(step.b.meta.shape[-1], 'columns')}"
        return str(refs_of(step)[0][0].meta.shape[-1])

    def _matrix(self, place: Place, along: int | None, part: Part, inside: bool) -> str:
        """A matrix as C is given it: where it begins, and its two strides."""
        jump = f" + i * {place.strides[0]}" if len(place.strides) > 2 else ""
        if along is not None and part.cut is not None and part.cut.along != "batch" and not inside:
            jump += f" + a{part.cut.size} * {place.strides[along]}"
        row, column = place.strides[-2:]
        return f"{self._pointer(place.buffer, place.offset, place.jump)}{jump}, {row}, {column}"

    def _inputs(self) -> str:
        """Copies of a step's streamed inputs into place."""
        lines = []
        for i, ref in enumerate(self.inputs[self.num_carried :]):
            size = ref.meta.numel() * ref.buffer.dtype.itemsize  # none of a tensor without elements
            lines.append(f"memcpy(memory + {ref.buffer.offset}, streams[{i}] + *step * {size}, {size});")
        return "\n".join(lines)

    def _results(self) -> str:
        """Copies of a step's results to where the next step, or the caller, looks for them."""
        lines = []
        for i, ref in enumerate(self.results):
            size = ref.meta.numel() * ref.buffer.dtype.itemsize  # none of a tensor without elements
            source = f"memory + {ref.buffer.offset}, {size}"
            if i < self.num_carried and ref.buffer.alias is self.inputs[i].buffer:
                continue  # it is there already
            if i < self.num_carried:
                lines.append(f"memcpy(memory + {self.inputs[i].buffer.offset}, {source});")
            else:
                lines.append(f"memcpy(collected[{i - self.num_carried}] + *step * {size}, {source});")
        return "\n".join(lines)


def _packed(step: Product) -> int:
    """Bytes that a product packs matrices into."""
    return MAX_WIDE * int(step.a.meta.shape[-1]) * step.a.buffer.dtype.itemsize
