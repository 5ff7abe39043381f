"""Powers of two and silu against float64: the stated errors, and the exact ends."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tidemill.base.target import Target, host_targets
from tidemill.codegen.compile import compile_module
from tidemill.codegen.emitter import Function, Value
from tidemill.codegen.isa import LANES, Isa, isa_for
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I64, PTR
from tidemill.codegen.vector_math import exp2, exp2_by_tables, exp2_tables, silu
from tidemill.device.cpu import LoadedCode

Floats = npt.NDArray[np.float32]

ISA = isa_for(host_targets()[0])
STATED_ERRORS = {"fine": 2e-7, "rough": 3.1e-6, "tables": 2.4e-4}


def power(isa: Isa, f: Function, x: Value, kind: str) -> Value:
    if kind != "tables":
        return exp2(x, kind == "rough")
    tables = f.stack(F32, 2 * LANES)
    for i, value in enumerate(exp2_tables()):
        tables[i] = value
    return exp2_by_tables(isa, x, tables)


def powers_of(x: Floats, kind: str) -> Floats:
    return results_of(ISA, lambda f, lanes: power(ISA, f, lanes, kind), x)


def results_of(isa: Isa, compute: Callable[[Function, Value], Value], x: Floats) -> Floats:
    module = Module()
    f = module.function("all", exported=True, x=PTR, y=PTR, count=I64)
    source, to = (arg.as_pointer(F32) for arg in f.args[:2])
    with f.loop(0, f.args[2], LANES) as i:
        to.put(i, compute(f, source.vec(i, LANES)))
    image = compile_module(module, isa)
    code = LoadedCode(image.data, image.entry_offsets)
    y = np.empty_like(x)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    call(code.address("all"))(x.ctypes.data, y.ctypes.data, len(x))
    return y


@pytest.mark.parametrize("kind", STATED_ERRORS)
def test_powers_of_two_keep_their_stated_error_and_end_in_zero(kind: str) -> None:
    if kind == "tables" and not ISA.has_lookup:
        pytest.skip("this machine has no lookup in a vector")
    x = np.linspace(-126, 0, 1 << 16, dtype=np.float32)
    error = powers_of(x, kind) / np.exp2(x.astype(np.float64)) - 1
    assert np.abs(error).max() <= STATED_ERRORS[kind]
    ends = np.array([0, -1, -126, -127, -128, -3e38, -np.inf, -1e30] * 2, np.float32)
    assert powers_of(ends, kind).tolist() == [1, 0.5, 2.0**-126, 0, 0, 0, 0, 0] * 2


@pytest.mark.parametrize("is_rough", [False, True])
@pytest.mark.parametrize("target", host_targets(), ids=lambda target: target.name)
def test_silu_keeps_its_stated_error_and_its_ends_are_no_nan(
    target: Target, is_rough: bool
) -> None:
    isa = isa_for(target)
    x = np.linspace(-80, 80, 1 << 14, dtype=np.float32)
    x = np.concatenate([x, np.array([-np.inf, -3e38, -201, np.inf, np.nan, 3e38, 0, -0.0] * 2)])
    x = x.astype(np.float32)
    y = results_of(isa, lambda f, lanes: silu(isa, lanes, is_rough), x)
    wide = x[:-16].astype(np.float64)
    bound = 3e-7 * (1 + np.abs(wide)) + is_rough * 3e-6
    assert (np.abs(y[:-16] / (wide / (1 + np.exp(-wide))) - 1) <= bound).all()
    assert (y[-16:-13] <= 0).all()
    assert (y[-16:-13] > -1e-35).all()
    np.testing.assert_equal(y[-13:-8], np.array([np.inf, np.nan, 3e38, 0, -0.0], np.float32))
