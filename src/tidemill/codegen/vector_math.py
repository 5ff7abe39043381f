"""Vector functions: exp2, exp and silu over f32 lanes, with stated errors."""

from __future__ import annotations

import math

from tidemill.codegen.emitter import Pointer, Value
from tidemill.codegen.isa import LANES, Isa
from tidemill.codegen.types import I32

_LOG2_E = 1.44269504088896341

_EXP2 = (1.5353362e-4, 1.3398874e-3, 9.6184373e-3, 5.5503324e-2, 2.4022648e-1, 6.9314720e-1, 1.0)
_EXP2_ROUGH = (9.58285179e-3, 5.59064267e-2, 2.40240987e-1, 6.93124193e-1, 1.0)
_SIXTEENTHS = 1.5 * 2.0**19  # a float less than 2^18 added to this is rounded to sixteenths
_SILU_END = -200.0  # from here on down silu is 0 in f32
_EXP = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip


def _polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    total = x.f.constant(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        total = total.fma(x, coefficient)
    return total


def _scale_by_power_of_two(value: Value, exponent: Value) -> Value:
    lanes = value.type.lanes
    return (value.bits_as(I32.x(lanes)) + (exponent.to(I32) << 23)).bits_as(value.type)


def exp2(x: Value, is_rough: bool = False) -> Value:
    """2 ** x for x <= 127; from -127 down the result is 0; 2 ** 0 is 1.

    The relative error is 2e-7, or roughly 3e-6, for results that are rounded to bf16.
    """
    x = x.max(-127.0)
    whole = x.call("rint")
    coefficients = _EXP2_ROUGH if is_rough else _EXP2
    return _scale_by_power_of_two(_polynomial(x - whole, coefficients), whole)


def exp2_tables() -> list[float]:
    """Powers of two by sixteenths, and their slopes."""
    powers = [2.0 ** (i / LANES) for i in range(LANES)]
    return powers + [power * math.log(2.0) for power in powers]


def exp2_by_tables(isa: Isa, x: Value, tables: Pointer) -> Value:
    """exp2 with a relative error of 2.4e-4, with a single product.

    Where dot products are the limit, it is products that count: what else there is goes beside
    them. `tables` are in memory as `exp2_tables` says.
    """
    x = x.max(-127.0)
    shifted = x + _SIXTEENTHS
    index = shifted.bits_as(I32.x(LANES))
    power, slope = (isa.look_up(tables.vec(at, LANES), index) for at in (0, LANES))
    near = (x - (shifted - _SIXTEENTHS)).fma(slope, power)
    return (near.bits_as(index.type) + ((index >> 4) << 23)).bits_as(x.type)


def power_of_two(x: Value) -> Value:
    """2 ** x for whole x <= 127; from -127 down the result is 0."""
    words = I32.x(x.type.lanes)
    return ((x.max(-127.0).to(words) + 127) << 23).bits_as(x.type)


def exp(x: Value) -> Value:
    """e ** x, relative error about 1.2e-7; the argument is clamped to [-87.3, 88.7]."""
    x = x.max(-87.3).min(88.7)
    whole = (x * _LOG2_E).call("rint")
    rest = whole.fma(-1.42860677e-6, whole.fma(-0.693145751953125, x))
    power = _polynomial(rest, _EXP).fma(rest * rest, rest + 1.0)
    return _scale_by_power_of_two(power, whole)


def silu(isa: Isa, x: Value, is_rough: bool = False) -> Value:
    """x * sigmoid(x); relative error 3e-7 times 1 + |x|, or 3e-6 more where it may be rough.

    Far below 0 it is -0, on some targets about -1e-36. Infinities are the ends; NaN stays NaN.
    """
    x_log2 = x * -_LOG2_E
    if isa.has_scale:
        whole = x_log2.call("rint")
        power = isa.scale(_polynomial(x_log2 - whole, _EXP2_ROUGH if is_rough else _EXP2), whole)
    else:
        power = exp2(x_log2.min(126.0), is_rough)
    # Bounded, as -inf / inf is NaN; the constant comes first, since `max` drops a NaN there.
    return x.f.constant(_SILU_END, x.type).max(x) / (power + 1.0)
