"""A loop of a plan as the body of a C function: all of it, or from ``lo`` to ``hi`` of one of its dimensions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .plan import C_TYPES, Access, Buffer, Loop, Operand, Statement

PREFIX = {"float": "f", "double": "d"}
_COMBINE = {"sum": "{0} += {1};", "max": "{0} = MAX({0}, {1});", "min": "{0} = MIN({0}, {1});"}
_NEUTRAL = {"sum": "0", "max": "-INFINITY", "min": "INFINITY"}
Groups = list[list[int]]
#: From this stride on, a power of two is kept from the compiler: GCC takes such reads for parts of a group that it
#: cannot load at once, and does not vectorise the loop (version 12: from 32 to 4,096).
HIDDEN = 16
#: As many results of a sum over the last loop but one stay in a register at once.
LANES = 16


class Param(NamedTuple):
    """A pointer that a loop is given: into a buffer, and so many elements further for each block of particles."""

    c_type: str
    buffer: Buffer
    offset: int
    jump: int


class _Reduction(NamedTuple):
    """A reduction over the innermost loop, in a variable of its own; or over the last but one, in several."""

    kind: str
    c_type: str
    name: str


@dataclass
class _Kernel:
    """A function under construction: its pointer parameters in order of appearance."""

    params: list[Param] = field(default_factory=list)
    names: dict[tuple[Buffer, int, int], str] = field(default_factory=dict)
    values: dict[Buffer, str] = field(default_factory=dict)
    loads: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)

    def pointer(self, buffer: Buffer, offset: int, jump: int = 0) -> str:
        """A parameter that points into a buffer: offsets are the caller's, so that equal loops have equal texts."""
        buffer = buffer.alias or buffer
        if (buffer, offset, jump) not in self.names:
            self.names[buffer, offset, jump] = f"p{len(self.names)}"
            self.params.append(Param(C_TYPES[buffer.dtype], buffer, offset, jump))
        return self.names[buffer, offset, jump]

    def element(self, access: Access) -> str:
        """The C text of an element, by the loop counters ``i0``, ``i1``, ..."""
        terms = [f"i{d}" if s == 1 else f"i{d} * {s}" for d, s in enumerate(access.strides) if s]
        if access.strides and _is_hidden(access.strides[-1]):
            self.hidden.add(access.strides[-1])
            terms[-1] = f"i{len(access.strides) - 1} * s{access.strides[-1]}"
        for index, stride, size in access.indices:
            at = self.load(index)
            terms.append(f"({at} < 0 ? {at} + {size} : {at}) * {stride}")
        return f"{self.pointer(access.buffer, access.offset, access.jump)}[{' + '.join(terms) or '0'}]"

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


def kernel(loop: Loop, cut: int | None = None, part: bool = False) -> tuple[str, list[Param]]:
    """A loop's function body and its parameters.

    :param cut: the dimension that runs from ``lo`` to ``hi``; none, and the loop is whole.
    :param part: whether the loop has only a part of what its results are.
    """
    groups = _collapsed(loop, cut)
    sizes = [math.prod(loop.shape[d] for d in group) for group in groups]
    bounds = [("lo", "hi") if group == [cut] else ("0", str(size)) for group, size in zip(groups, sizes)]
    statements = [_joined(s, groups) for s in loop.statements]
    made, before, after, reductions = _Kernel(), list[str](), list[str](), list[_Reduction]()
    inner, last = made.lines, len(sizes) - 1
    ordered = any(s.kind == "scatter" or (s.kind == "running" and not last) for s in statements)
    fits = last > 1 and groups[last] != [cut] and sizes[last] % LANES == 0 and not ordered
    in_lanes = fits and not any(s.kind in _COMBINE and not s.out.strides[last] for s in statements)
    for i, statement in enumerate(statements):
        value = _value(statement, [made.operand(o) for o in statement.operands])
        out, c_type = statement.out, C_TYPES[statement.dtype]
        if statement.kind == "let":
            local = "_Bool" if c_type == "u8" else c_type
            inner.append(f"const {local} v{i} = {value};")
            made.values[out.buffer] = f"v{i}"
            if out.buffer.needed:
                inner.append(f"{made.element(out)} = v{i};")
        elif statement.kind == "store":
            inner.append(f"{made.element(out)} = {value};")
        elif statement.kind == "running":
            here = made.element(out)  # the same pointer for both: it is a restricted one
            so_far = f"(i0 ? {here[:-1]} - {out.strides[0]}] : 0)" if sizes else "0"
            inner.append(f"{here} = {value} + {so_far};")
        elif statement.kind == "scatter":
            inner.append(f"{made.element(out)} += {value};")
        else:
            before += _cleared(made, statement, bounds, cut is None and not part)
            if sizes and out.strides[last] == 0:
                reductions.append(_Reduction(statement.kind, c_type, f"r{i}"))
                inner.append(_COMBINE[statement.kind].format(f"r{i}", f"({value})"))
                after.append(_COMBINE[statement.kind].format(made.element(out), f"r{i}"))
            elif in_lanes and out.strides[last - 1] == 0:
                reductions.append(_Reduction(statement.kind, c_type, f"r{i}"))
                inner.append(_COMBINE[statement.kind].format(f"r{i}[j]", f"({value})"))
                after.append(_COMBINE[statement.kind].format(made.element(out), f"r{i}[j]"))
            else:
                inner.append(_COMBINE[statement.kind].format(made.element(out), f"({value})"))
    strides = [f"volatile i64 h{s} = {s}; const i64 s{s} = h{s};" for s in sorted(made.hidden)]
    if in_lanes and reductions:
        return _in_lanes(bounds, inner, [*strides, *before], after, reductions), made.params
    return _nest(bounds, inner, [*strides, *before], after, reductions, ordered), made.params


def _is_hidden(stride: int) -> bool:
    """Whether the compiler is not to know an innermost loop's stride."""
    return stride >= HIDDEN and stride & (stride - 1) == 0


def _cleared(made: _Kernel, statement: Statement, bounds: list[tuple[str, str]], whole: bool) -> list[str]:
    """A reduction's result before it begins: all of it, or the part that belongs to the loop's part."""
    out, neutral = statement.out, _NEUTRAL[statement.kind]
    if whole:
        return [f"for (i64 j = 0; j < {out.buffer.numel}; j++) {made.pointer(out.buffer, 0)}[j] = {neutral};"]
    heads = [
        f"for (i64 i{d} = {low}; i{d} < {high}; i{d}++) " for d, (low, high) in enumerate(bounds) if out.strides[d]
    ]
    return ["".join(heads) + f"{made.element(out)} = {neutral};"]


def _collapsed(loop: Loop, cut: int | None) -> Groups:
    """Which loops are joined to one: neighbours, where every access allows it and neither is cut."""
    strides = [a.strides for s in loop.statements for a in _every(s)]
    groups: Groups = []
    for d, size in enumerate(loop.shape):
        joins = groups and not loop.closed and cut not in (d, groups[-1][-1])
        if joins and all(s[groups[-1][-1]] == s[d] * size for s in strides):
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups


def _every(statement: Statement) -> list[Access]:
    found = [o for o in [*statement.operands, statement.out] if isinstance(o, Access)]
    return found + [index for access in found for index, _, _ in access.indices]


def _joined(statement: Statement, groups: Groups) -> Statement:
    def narrow(access: Access) -> Access:
        inner = tuple((narrow(index), stride, size) for index, stride, size in access.indices)
        return Access(access.buffer, access.offset, tuple(access.strides[g[-1]] for g in groups), inner, access.jump)

    operands: list[Operand] = [narrow(o) if isinstance(o, Access) else o for o in statement.operands]
    return Statement(statement.kind, statement.template, operands, narrow(statement.out), statement.dtype)


def _value(statement: Statement, operands: Sequence[str]) -> str:
    c_type = C_TYPES[statement.dtype]
    prefix = PREFIX.get(c_type, "d")
    names = {"T": c_type, "p": prefix, "sqrt": "sqrtf" if prefix == "f" else "sqrt"}
    compared = [C_TYPES[o.buffer.dtype] for o in statement.operands if isinstance(o, Access)]
    number = compared[0] if c_type == "u8" and compared else c_type
    text = statement.template
    for i, operand in enumerate(operands):
        text = text.replace(f"{{{i}}}", operand)
    for key, name in names.items():
        text = text.replace(f"{{{key}}}", name)
    return text.replace("(T)", f"({number})")


def _nest(
    bounds: list[tuple[str, str]],
    inner: list[str],
    before: list[str],
    after: list[str],
    reductions: list[_Reduction],
    ordered: bool,
) -> str:
    lines, last = list(before), len(bounds) - 1
    for d, (low, high) in enumerate(bounds):
        if d == last:
            lines += [f"{r.c_type} {r.name} = {_NEUTRAL[r.kind]};" for r in reductions]
            if not ordered:
                marks = {"sum": "+", "max": "max", "min": "min"}
                clauses = "".join(f" reduction({marks[r.kind]}:{r.name})" for r in reductions)
                lines.append(f"#pragma omp simd{clauses}")
        lines.append(f"for (i64 i{d} = {low}; i{d} < {high}; i{d}++) {{")
    lines += inner
    for d in reversed(range(len(bounds))):
        lines.append("}")
        if d == last:
            lines += after
    return "\n".join(lines)


def _in_lanes(
    bounds: list[tuple[str, str]], inner: list[str], before: list[str], after: list[str], reductions: list[_Reduction]
) -> str:
    """A nest in which the last loop goes through so many lanes at once, outside of the last but one."""
    last, lines, name = len(bounds) - 1, list(before), f"i{len(bounds) - 1}"
    lanes = [f"for (i64 j = 0; j < {LANES}; j++) {{", f"const i64 {name} = t + j;"]
    heads = [f"for (i64 i{d} = {low}; i{d} < {high}; i{d}++) {{" for d, (low, high) in enumerate(bounds[:last])]
    lines += [*heads[:-1], f"for (i64 t = 0; t < {bounds[last][1]}; t += {LANES}) {{"]
    for r in reductions:
        lines += [
            f"{r.c_type} {r.name}[{LANES}];",
            f"for (i64 j = 0; j < {LANES}; j++) {r.name}[j] = {_NEUTRAL[r.kind]};",
        ]
    lines += [heads[-1], "#pragma omp simd", *lanes, *inner, "}", "}", *lanes, *after, "}"]
    return "\n".join([*lines, *["}"] * last])
