"""aarch64 code run in an emulator: linear layers against their references, one thread.

The emulator (`pip install unicorn`) has the byte dot products of Armv8.2 and no later ones, so the
target with bf16 and mixed dots stays unrun. A sweep, skipped where the emulator is not installed.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.compare import TOLERANCES, assert_close
from tests.ops.test_cpu_linear import FORMATS, draw_cases, shapes_of
from tidemill.base.dtypes import DType
from tidemill.base.target import AARCH64, AARCH64_DOTPROD, Target
from tidemill.builder.build_config import BuildConfig
from tidemill.builder.cpu_kernels import KernelLibrary
from tidemill.codegen.compile import compile_module
from tidemill.codegen.isa import isa_for
from tidemill.ir.storage import Array

CODE, STACK, DATA, RETURN = 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x7000_0000
REGION_BYTES = 1 << 22
NUM_ROWS = 5


class Machine:
    """A processor with nothing in its memory but one image of code and a call's operands."""

    def __init__(self, image: bytes) -> None:
        self.arm = pytest.importorskip("unicorn.arm64_const")
        unicorn = pytest.importorskip("unicorn")
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.cpu.ctl_set_cpu_model(self.arm.UC_CPU_ARM64_MAX)
        for base in (CODE, STACK, DATA, RETURN):
            self.cpu.mem_map(base, REGION_BYTES)
        self.cpu.mem_write(CODE, image)
        self.cpu.reg_write(self.arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors are not trapped
        self.end = DATA + 4096

    def place(self, array: Array) -> int:
        """Copy an array in, with room behind it for what prefetches and whole vectors touch."""
        at = self.end
        self.cpu.mem_write(at, array.tobytes())
        self.end += (array.nbytes + 65536) // 64 * 64
        return at

    def call(self, entry: int, record: list[int]) -> None:
        """Call a kernel as the only thread of its team."""
        self.cpu.mem_write(DATA, np.array([entry, *record], np.int64).tobytes())
        names = ("SP", "X0", "X1", "X2", "LR")
        values = (STACK + REGION_BYTES // 2, DATA, 0, 1, RETURN)
        for name, value in zip(names, values, strict=True):
            self.cpu.reg_write(getattr(self.arm, f"UC_ARM64_REG_{name}"), value)
        self.cpu.emu_start(entry, RETURN)

    def read(self, at: int, like: Array) -> Array:
        raw = bytes(self.cpu.mem_read(at, like.nbytes))
        return np.frombuffer(raw, like.dtype).reshape(like.shape)


@pytest.mark.sweep
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("target", [AARCH64, AARCH64_DOTPROD], ids=lambda target: target.name)
def test_emulated_linear_layers_equal_their_references(
    target: Target, formats: tuple[DType, DType]
) -> None:
    cases = draw_cases(formats, NUM_ROWS, shapes_of(formats[0])[0], seed=3)
    isa = isa_for(target)
    library = KernelLibrary(isa, BuildConfig(1, 1, 1, 1, 1, 32))
    kernels = [library.kernel(case.op) for case in cases]
    image = compile_module(library.module, isa)
    for case, kernel in zip(cases, kernels, strict=True):
        machine = Machine(bytes(image.data))
        places = {
            name: value if isinstance(value, int) else machine.place(value)
            for name, value in case.record.items()
        }
        machine.call(
            CODE + image.entry_offsets[kernel.symbol], [places[name] for name in kernel.fields]
        )
        y = case.record["y"]
        assert isinstance(y, np.ndarray)
        y[...] = machine.read(places["y"], y)
        tolerance = TOLERANCES[case.op.kind, case.tolerance]
        assert_close(case.result(), case.expected(), tolerance, case.op.kind)
