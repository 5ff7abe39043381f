"""What LLVM makes of a module depends on its text and target alone: tests may keep it."""

from __future__ import annotations

import inspect

import pytest

from tests.ops.judge import make_op, tensor
from tidemill.base.target import TARGETS, Target
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary
from tidemill.codegen import compile
from tidemill.codegen.isa import isa_for


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_equal_text_and_target_give_equal_code(target: Target) -> None:
    isa = isa_for(target)
    library = KernelLibrary(isa, BuildConfig(1, 1, 1, 1, 1, 32))
    library.kernel(make_op("sample", [tensor("f32", "L", 33)]))
    text, compiles = library.module.text(isa), inspect.unwrap(compile.emit_object)
    first = compiles(text, target)
    assert compiles(text, target) == first == compile.emit_object(text, target)
    assert compiles(text + "\n; another", target) == first
