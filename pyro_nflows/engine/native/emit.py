"""From a plan to C: equal loops become one function, called with other pointers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .lower import Lowering
from .memory import place, share
from .plan import C_TYPES, Access, Buffer, Cholesky, Extern, Loop, Operand, Product, Ref, Solve, Statement, Step
from .turns import SKELETON, pauses

_PREFIX = {"float": "f", "double": "d"}
_COMBINE = {"sum": "{0} += {1};", "max": "{0} = MAX({0}, {1});", "min": "{0} = MIN({0}, {1});"}
_NEUTRAL = {"sum": "0", "max": "-INFINITY", "min": "INFINITY"}
#: Functions of ``linear.c``, in the order in which a program is handed their addresses.
LINEAR = [prefix + name for prefix in _PREFIX.values() for name in ("product", "solve", "cholesky")]
#: At most so many columns does ``product`` pack at once.
MAX_WIDE = 32


@dataclass
class Emitted:
    """C source and what it needs at run time: offsets into one piece of memory, constants, and calls of torch."""

    source: str
    size: int
    constants: list[Buffer]
    externs: list[Extern]
    pack: int


@dataclass
class _Kernel:
    """A function under construction: its pointer parameters in order of appearance."""

    params: list[tuple[str, Buffer, int]] = field(default_factory=list)
    names: dict[tuple[Buffer, int], str] = field(default_factory=dict)
    values: dict[Buffer, str] = field(default_factory=dict)
    loads: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def pointer(self, buffer: Buffer, offset: int) -> str:
        """A parameter that points into a buffer: offsets are the caller's, so that equal loops have equal texts."""
        buffer = buffer.alias or buffer
        if (buffer, offset) not in self.names:
            self.names[buffer, offset] = f"p{len(self.names)}"
            self.params.append((C_TYPES[buffer.dtype], buffer, offset))
        return self.names[buffer, offset]

    def element(self, access: Access) -> str:
        """The C text of an element, by the loop counters ``i0``, ``i1``, ..."""
        terms = [f"i{d}" if s == 1 else f"i{d} * {s}" for d, s in enumerate(access.strides) if s]
        for index, stride, size in access.indices:
            at = self.load(index)
            terms.append(f"({at} < 0 ? {at} + {size} : {at}) * {stride}")
        return f"{self.pointer(access.buffer, access.offset)}[{' + '.join(terms) or '0'}]"

    def operand(self, operand: Operand) -> str:
        if isinstance(operand, str):
            return operand
        return self.values.get(operand.buffer) or self.load(operand)

    def load(self, access: Access) -> str:
        """A name for what is read: within a ``?:``, reading would keep the loop from being vectorised."""
        element = self.element(access)
        if element not in self.loads:
            self.loads[element] = f"l{len(self.loads)}"
            self.lines.append(f"const {C_TYPES[access.buffer.dtype]} {self.loads[element]} = {element};")
        return self.loads[element]


def _collapsed(loop: Loop) -> tuple[list[int], list[list[int]]]:
    """Sizes after neighbouring loops are joined where every access allows it, and which loops each one joins."""
    strides = [a.strides for s in loop.statements for a in _every(s)]
    groups: list[list[int]] = []
    for d, size in enumerate(loop.shape):
        if groups and not loop.closed and all(s[groups[-1][-1]] == s[d] * size for s in strides):
            groups[-1].append(d)
        else:
            groups.append([d])
    return [math.prod(loop.shape[d] for d in group) for group in groups], groups


def _every(statement: Statement) -> list[Access]:
    found = [o for o in [*statement.operands, statement.out] if isinstance(o, Access)]
    return found + [index for access in found for index, _, _ in access.indices]


def _joined(statement: Statement, groups: list[list[int]]) -> Statement:
    def narrow(access: Access) -> Access:
        inner = tuple((narrow(index), stride, size) for index, stride, size in access.indices)
        return Access(access.buffer, access.offset, tuple(access.strides[g[-1]] for g in groups), inner)

    operands: list[Operand] = [narrow(o) if isinstance(o, Access) else o for o in statement.operands]
    return Statement(statement.kind, statement.template, operands, narrow(statement.out), statement.dtype)


def _value(statement: Statement, operands: Sequence[str]) -> str:
    c_type = C_TYPES[statement.dtype]
    prefix = _PREFIX.get(c_type, "d")
    names = {"T": c_type, "p": prefix, "sqrt": "sqrtf" if prefix == "f" else "sqrt"}
    compared = [C_TYPES[o.buffer.dtype] for o in statement.operands if isinstance(o, Access)]
    number = compared[0] if c_type == "u8" and compared else c_type
    text = statement.template
    for i, operand in enumerate(operands):
        text = text.replace(f"{{{i}}}", operand)
    for key, name in names.items():
        text = text.replace(f"{{{key}}}", name)
    return text.replace("(T)", f"({number})")


def _loop(loop: Loop) -> tuple[str, list[tuple[str, Buffer, int]]]:
    """A loop's function body and its parameters."""
    sizes, groups = _collapsed(loop)
    statements = [_joined(s, groups) for s in loop.statements]
    kernel, before, after, reductions = _Kernel(), [], [], []
    inner = kernel.lines
    last = len(sizes) - 1
    ordered = any(s.kind == "scatter" or (s.kind == "running" and not last) for s in statements)
    for i, statement in enumerate(statements):
        value = _value(statement, [kernel.operand(o) for o in statement.operands])
        out, c_type = statement.out, C_TYPES[statement.dtype]
        if statement.kind == "let":
            local = "_Bool" if c_type == "u8" else c_type
            inner.append(f"const {local} v{i} = {value};")
            kernel.values[out.buffer] = f"v{i}"
            if out.buffer.needed:
                inner.append(f"{kernel.element(out)} = v{i};")
        elif statement.kind == "store":
            inner.append(f"{kernel.element(out)} = {value};")
        elif statement.kind == "running":
            here = kernel.element(out)  # the same pointer for both: it is a restricted one
            so_far = f"(i0 ? {here[:-1]} - {out.strides[0]}] : 0)" if sizes else "0"
            inner.append(f"{here} = {value} + {so_far};")
        elif statement.kind == "scatter":
            inner.append(f"{kernel.element(out)} += {value};")
        else:
            neutral, combine = _NEUTRAL[statement.kind], _COMBINE[statement.kind]
            pointer = kernel.pointer(out.buffer, 0)
            before.append(f"for (i64 j = 0; j < {out.buffer.numel}; j++) {pointer}[j] = {neutral};")
            if sizes and out.strides[last] == 0:
                reductions.append((statement.kind, c_type, f"r{i}", neutral))
                inner.append(combine.format(f"r{i}", f"({value})"))
                after.append(combine.format(kernel.element(out), f"r{i}"))
            else:
                inner.append(combine.format(kernel.element(out), f"({value})"))
    return _nest(sizes, inner, before, after, reductions, ordered), kernel.params


def _nest(
    sizes: list[int],
    inner: list[str],
    before: list[str],
    after: list[str],
    reductions: list[tuple[str, str, str, str]],
    ordered: bool,
) -> str:
    lines, last = list(before), len(sizes) - 1
    for d, size in enumerate(sizes):
        if d == last:
            lines += [f"{c_type} {name} = {neutral};" for _, c_type, name, neutral in reductions]
            if not ordered:
                marks = {"sum": "+", "max": "max", "min": "min"}
                clauses = "".join(f" reduction({marks[kind]}:{name})" for kind, _, name, _ in reductions)
                lines.append(f"#pragma omp simd{clauses}")
        lines.append(f"for (i64 i{d} = 0; i{d} < {size}; i{d}++) {{")
    lines += inner
    for d in reversed(range(len(sizes))):
        lines.append("}")
        if d == last:
            lines += after
    return "\n".join(lines)


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
        self.pack = 0

    def program(self) -> Emitted:
        """The source, after every buffer has its place."""
        for new, old in zip(self.results, self.inputs[: self.num_carried]):
            share(self.plan, new, old)
        size = place(self.plan)
        calls = self._calls(self.plan.steps)
        functions = [
            f"static __attribute__((noinline)) void {name}({params}) {{\n{body}\n}}"
            for (params, body), name in self.functions.items()
        ]
        source = SKELETON.format(
            pointers="\n".join(f"static {name}_t *{name};" for name in LINEAR),
            addresses="\n".join(f"{name} = linear[{i}];" for i, name in enumerate(LINEAR)),
            functions="\n".join(functions),
            calls="\n".join(calls),
            inputs=self._inputs(),
            results=self._results(),
        )
        return Emitted(source, size, list(self.constants), self.externs, self.pack)

    def _pointer(self, buffer: Buffer, offset: int) -> str:
        c_type = C_TYPES.get(buffer.dtype, "u8")
        if buffer.constant is not None:
            number = self.constants.setdefault(buffer, len(self.constants))
            return f"({c_type} *)constants[{number}] + {offset}"
        return f"({c_type} *)(memory + {buffer.offset + offset * buffer.dtype.itemsize})"

    def _calls(self, steps: Sequence[Step]) -> list[str]:
        """Every step, and stops at which Python has a turn: calls of torch, numbered from one, and then pauses."""
        calls, paused = [self._step(step) for step in steps], pauses(steps)
        for number, i in enumerate(sorted(paused), len(self.externs) + 1):
            calls[i] += f"\nreturn {number}; case {number}:;"
        return calls

    def _step(self, step: Step) -> str:
        if isinstance(step, Extern):
            self.externs.append(step)
            return f"return {len(self.externs)}; case {len(self.externs)}:;"
        if isinstance(step, Product):
            return self._product(step)
        if isinstance(step, Solve):
            return self._solve(step)
        if isinstance(step, Cholesky):
            return self._cholesky(step)
        body, params = _loop(step)
        declared = ", ".join(f"{c_type} *restrict p{i}" for i, (c_type, _, _) in enumerate(params))
        name = self.functions.setdefault((declared, body), f"k{len(self.functions)}")
        return f"{name}({', '.join(self._pointer(buffer, offset) for _, buffer, offset in params)});"

    def _product(self, step: Product) -> str:
        m, k = step.a.meta.shape[-2:]
        n = step.b.meta.shape[-1]
        self.pack = max(self.pack, MAX_WIDE * k)
        return self._batched("product", f"{m}, {n}, {k}", [step.a, step.b, step.c], "pack")

    def _solve(self, step: Solve) -> str:
        n, m = step.b.meta.shape[-2:]
        rest = f"{int(step.upper)}, {int(step.unit)}"
        return self._batched("solve", f"{n}, {m}", [step.a, step.b, step.x], rest)

    def _cholesky(self, step: Cholesky) -> str:
        info = self._pointer(step.info.buffer, 0)
        rest = f"{info} + " + ("i" if step.a.meta.dim() > 2 else "0")
        return self._batched("cholesky", str(step.a.meta.shape[-1]), [step.a, step.l], rest)

    def _batched(self, name: str, sizes: str, matrices: list[Ref], rest: str) -> str:
        """A call for each matrix of a batch."""
        prefix = _PREFIX[C_TYPES[matrices[-1].buffer.dtype]]
        *batch, _, _ = matrices[0].meta.shape
        if len(batch) > 1:
            matrices = [Ref(ref.buffer, ref.meta.flatten(0, -3)) for ref in matrices]
        parts = ", ".join(self._matrix(ref) for ref in matrices)
        call = f"{prefix}{name}({sizes}, {parts}, {rest});"
        return f"for (i64 i = 0; i < {math.prod(batch)}; i++) {call}" if batch else call

    def _matrix(self, ref: Ref) -> str:
        """A matrix as C is given it: where it begins, and its two strides."""
        jump = f" + i * {int(ref.meta.stride(0))}" if ref.meta.dim() > 2 else ""
        row, column = (int(s) for s in ref.meta.stride()[-2:])
        return f"{self._pointer(ref.buffer, int(ref.meta.storage_offset()))}{jump}, {row}, {column}"

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
