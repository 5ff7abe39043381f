"""Powers of two as attention takes them, against float64: the stated errors, and the exact ends."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import pytest

from tidemill.base.target import host_targets
from tidemill.codegen.compile import compile_ir
from tidemill.codegen.emitter import Function, Value
from tidemill.codegen.isa import LANES, Isa, isa_for
from tidemill.codegen.link import link_object
from tidemill.codegen.module import Module
from tidemill.codegen.types import F32, I64, PTR
from tidemill.codegen.vector_math import exp2, exp2_by_tables, exp2_tables
from tidemill.device.cpu import LoadedCode

ISA = isa_for(host_targets()[0])
STATED_ERRORS = {"fine": 2e-7, "rough": 3.1e-6, "tables": 2.4e-4}


def power(isa: Isa, f: Function, x: Value, kind: str) -> Value:
    if kind != "tables":
        return exp2(x, kind == "rough")
    tables = f.stack(F32, 2 * LANES)
    for i, value in enumerate(exp2_tables()):
        tables[i] = value
    return exp2_by_tables(isa, x, tables)


def powers_of(x: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.float32]:
    module = Module()
    f = module.function("powers", exported=True, x=PTR, y=PTR, count=I64)
    source, to = (arg.as_pointer(F32) for arg in f.args[:2])
    with f.loop(0, f.args[2], LANES) as i:
        to.put(i, power(ISA, f, source.vec(i, LANES), kind))
    target = ISA.target
    text = module.text(target.triple, target.cpu, target.features, ISA.vector_bits)
    image = link_object(compile_ir(text, target))
    code = LoadedCode(image.data, image.entry_offsets)
    y = np.empty_like(x)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    call(code.address("powers"))(x.ctypes.data, y.ctypes.data, len(x))
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
