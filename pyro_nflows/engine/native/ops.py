"""Elementwise operations of torch as C expressions.

``{0}`` and on are the arguments as torch lists them, ``{T}`` the result's C type and ``{p}`` the prefix of functions
of that type in ``support.h``.
"""

import math
from typing import Any

#: By the name of the operation without its overload; a missing argument takes the value given here.
EXPRESSIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "abs": ("({0} < 0 ? -{0} : {0})", ()),
    "acos": ("({T})acos({0})", ()),
    "add": ("{0} + {1}", ()),
    "addcdiv": ("{0} + {value} * ({1} / {2})", ()),
    "addcmul": ("{0} + {value} * {1} * {2}", ()),
    "asin": ("({T})asin({0})", ()),
    "atan": ("({T})atan({0})", ()),
    "atan2": ("({T})atan2({0}, {1})", ()),
    "bitwise_and": ("{0} & {1}", ()),
    "bitwise_or": ("{0} | {1}", ()),
    "bitwise_xor": ("{0} ^ {1}", ()),
    "ceil": ("({T})ceil({0})", ()),
    "clamp_max": ("TMIN({0}, ({T}){1})", ()),
    "clamp_min": ("TMAX({0}, ({T}){1})", ()),
    "cos": ("({T})cos({0})", ()),
    "cosh": ("({T})cosh({0})", ()),
    "digamma": ("{p}digamma({0})", ()),
    "div": ("({T}){0} / ({T}){1}", ()),
    "eq": ("{0} == {1}", ()),
    "erf": ("({T})erf({0})", ()),
    "erfc": ("({T})erfc({0})", ()),
    "exp": ("{p}exp({0})", ()),
    "exp2": ("({T})exp2({0})", ()),
    "expm1": ("{p}expm1({0})", ()),
    "floor": ("({T})floor({0})", ()),
    "ge": ("{0} >= {1}", ()),
    "gt": ("{0} > {1}", ()),
    "heaviside": ("({0} > 0 ? 1 : {0} < 0 ? 0 : {1})", ()),
    "isinf": ("({0} - {0} != 0) & ({0} == {0})", ()),
    "isnan": ("{0} != {0}", ()),
    "le": ("{0} <= {1}", ()),
    "leaky_relu": ("({0} > 0 ? {0} : {0} * {1})", (0.01,)),
    "leaky_relu_backward": ("({1} > 0 ? {0} : {0} * {2})", ()),
    "lerp": ("{0} + {2} * ({1} - {0})", ()),
    "lgamma": ("({T})lgamma({0})", ()),
    "log": ("{p}log({0})", ()),
    "log10": ("{p}log({0}) * ({T})0.43429448190325176", ()),
    "log1p": ("{p}log1p({0})", ()),
    "log2": ("{p}log({0}) * ({T})1.4426950408889634", ()),
    "log_sigmoid_backward": ("{0} * {p}sigmoid(-{1})", ()),
    "logical_and": ("({0} != 0) & ({1} != 0)", ()),
    "logical_not": ("{0} == 0", ()),
    "logical_or": ("({0} != 0) | ({1} != 0)", ()),
    "logical_xor": ("({0} != 0) ^ ({1} != 0)", ()),
    "lt": ("{0} < {1}", ()),
    "masked_fill": ("{1} ? ({T}){2} : ({T}){0}", ()),
    "maximum": ("TMAX({0}, {1})", ()),
    "minimum": ("TMIN({0}, {1})", ()),
    "mul": ("{0} * {1}", ()),
    "ne": ("{0} != {1}", ()),
    "neg": ("-{0}", ()),
    "reciprocal": ("1 / ({T}){0}", ()),
    "relu": ("TMAX({0}, ({T})0)", ()),
    "round": ("({T})rint({0})", ()),
    "rsqrt": ("1 / ({T})sqrt({0})", ()),
    "rsub": ("{1} - {alpha} * {0}", ()),
    "sgn": ("SIGN({0})", ()),
    "sigmoid": ("{p}sigmoid({0})", ()),
    "sigmoid_backward": ("{0} * {1} * (1 - {1})", ()),
    "sign": ("SIGN({0})", ()),
    "silu": ("{0} * {p}sigmoid({0})", ()),
    "silu_backward": ("{0} * {p}sigmoid({1}) * (1 + {1} * (1 - {p}sigmoid({1})))", ()),
    "sin": ("({T})sin({0})", ()),
    "sinh": ("({T})sinh({0})", ()),
    "softplus": ("{p}softplus({0}, {1}, {2})", (1, 20)),
    "softplus_backward": ("({1} * {2} > {3} ? {0} : {0} * {p}sigmoid({1} * {2}))", ()),
    "sqrt": ("({T}){sqrt}({0})", ()),
    "square": ("{0} * {0}", ()),
    "sub": ("{0} - {alpha} * {1}", ()),
    "tan": ("({T})tan({0})", ()),
    "tanh": ("{p}tanh({0})", ()),
    "tanh_backward": ("{0} * (1 - {1} * {1})", ()),
    "threshold": ("({0} <= {1} ? ({T}){2} : {0})", ()),
    "threshold_backward": ("({1} <= {2} ? 0 : {0})", ()),
    "trunc": ("({T})trunc({0})", ()),
    "where": ("{0} ? ({T}){1} : ({T}){2}", ()),
    "xlogy": ("({1} != {1} ? {1} : {0} == 0 ? 0 : {0} * {p}log({1}))", ()),
}
#: Keyword arguments that an expression names.
KEYWORDS = {"alpha": 1, "value": 1}
#: Integer types are not what these are made for.
NEED_FLOAT = ("{p}", "({T})s", "({T})c", "({T})l", "{sqrt}")
#: Powers by numbers, which need no logarithm.
POWERS = {
    -2.0: "1 / ({0} * {0})",
    -1.5: "1 / ({0} * ({T}){sqrt}({0}))",
    -1.0: "1 / {0}",
    -0.5: "1 / ({T}){sqrt}({0})",
    0.5: "({T}){sqrt}({0})",
    1.0: "{0}",
    1.5: "{0} * ({T}){sqrt}({0})",
    2.0: "{0} * {0}",
    3.0: "{0} * {0} * {0}",
    4.0: "({0} * {0}) * ({0} * {0})",
}


def literal(value: Any) -> str:
    """A Python number in C."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return f"({value})"
    if math.isinf(value) or math.isnan(value):
        return "((T)NAN)" if math.isnan(value) else f"({'-' if value < 0 else ''}(T)INFINITY)"
    return f"((T){value!r})"


def expression(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    """An operation's C template and its arguments in full, or None if it has none here."""
    if name == "pow":
        return _power(args)
    if name == "div" and kwargs.get("rounding_mode"):
        return None
    if name in ("clamp", "hardtanh"):
        return _clamp(args, kwargs)
    if name not in EXPRESSIONS:
        return None
    template, defaults = EXPRESSIONS[name]
    if set(kwargs) - set(KEYWORDS) - {"self"}:
        return None
    full = (*args, *defaults[len(args) - 1 :]) if defaults else args
    alpha = kwargs.get("alpha", 1)
    if name == "add" and alpha != 1:
        template = "{0} + {alpha} * {1}"
    if name == "sub" and alpha == 1:
        template = "{0} - {1}"
    if name == "rsub" and len(full) > 2:
        full, alpha = full[:2], full[2]
    values = {key: literal(kwargs.get(key, default)) for key, default in KEYWORDS.items()}
    values["alpha"] = literal(alpha)
    for key, text in values.items():
        template = template.replace("{" + key + "}", text)
    return template, full


def _power(args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    base, exponent = args
    if isinstance(exponent, int | float) and float(exponent) in POWERS:
        return POWERS[float(exponent)], (base,)
    return "({T})POWER({T}, {0}, {1})", args


def _clamp(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    value, low, high = [*args, None, None][:3]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    if low is None:
        return "TMIN({0}, ({T}){1})", (value, high)
    if high is None:
        return "TMAX({0}, ({T}){1})", (value, low)
    return "TMIN(TMAX({0}, ({T}){1}), ({T}){2})", (value, low, high)
