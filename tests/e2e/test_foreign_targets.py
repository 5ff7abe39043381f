"""Engines for CPUs that tests do not have: all kernels of a real plan compile, with their dots.

Each scheme on each aarch64 target is built whole, so that every kernel becomes object code and is
linked; the image must hold the target's own dot products, found by their encodings (Arm ARM, C7.2).
Nothing of it runs here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeTinyLlama
from tests.tiny_llama import TinyLlama
from tidemill.api.build import BuildRequest, build
from tidemill.api.convert import ConvertRequest, convert
from tidemill.base.target import AARCH64, AARCH64_BF16, AARCH64_DOTPROD
from tidemill.engine.reader import EngineFile
from tidemill.quant.schemes import NAME_TO_SCHEME, SCHEMES

DTYPE = "bfloat16"
# (mask, bits) of an instruction on 128-bit vectors: by vector, and by one element of it.
BFDOT = ((0xFFE0FC00, 0x6E40FC00), (0xFFC0F400, 0x4F40F000))
USDOT = ((0xFFE0FC00, 0x4E809C00), (0xFFC0F400, 0x4F80F000), (0xFFC0F400, 0x4F00F000))
SDOT = ((0xFFE0FC00, 0x4E809400), (0xFFC0F400, 0x4F80E000))
TARGETS = (AARCH64_BF16.name, AARCH64_DOTPROD.name, AARCH64.name)
CORNER = {
    *((AARCH64_BF16.name, name) for name in ("w8a8", "fp8", "w4a16_g32")),
    (AARCH64_DOTPROD.name, "w4a8_g32_sym"),
}


def has(image: bytes, encodings: tuple[tuple[int, int], ...]) -> bool:
    words = np.frombuffer(image[: len(image) // 4 * 4], "<u4")
    return any(bool(((words & mask) == bits).any()) for mask, bits in encodings)


@pytest.fixture(scope="module")
def checkpoint(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreign") / "checkpoint"
    shape = TinyLlama(hidden_size=128, num_heads=8, head_size=16, intermediate_size=256)
    convert(ConvertRequest(make_tiny_llama(shape), directory, dtype=DTYPE))
    return directory


@pytest.mark.parametrize(
    ("target", "quant"),
    [
        pytest.param(
            target, each.name, marks=() if (target, each.name) in CORNER else pytest.mark.sweep
        )
        for target in TARGETS
        for each in SCHEMES
    ],
)
def test_every_kernel_of_a_plan_compiles_with_the_targets_dot_products(
    target: str, quant: str, checkpoint: Path, tmp_path: Path
) -> None:
    report = build(BuildRequest(checkpoint, tmp_path / "engine", target=target, quant=quant))
    assert report.target == target
    with EngineFile.open(tmp_path / "engine") as engine:
        image = engine.code_image()
        assert {
            op.kernel for op in engine.manifest.plan
        } <= engine.manifest.code.entry_offsets.keys()
    takes_bytes = NAME_TO_SCHEME[quant].activation is not None
    # Attention multiplies bf16 in every engine of this type.
    assert has(image, BFDOT) == (target == AARCH64_BF16.name)
    assert has(image, USDOT) == (takes_bytes and target == AARCH64_BF16.name)
    assert has(image, SDOT) == (takes_bytes and target == AARCH64_DOTPROD.name)
