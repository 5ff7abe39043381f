"""How a checkpoint stores the layers' matrices: plainly, as int8 levels or as fp8, with scales.

In: a config and the names of a rank file's tensors. Out: which of these it is, the tensors to
expect, and a matrix put together from elements and scales. A config may ask for int8, int4 or fp8
layers of weights that are stored plainly: build quantises those, by the scheme named here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tidemill.base.dtypes import DType
from tidemill.base.errors import UnsupportedError
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.file_bytes import Array
from tidemill.checkpoint.sharding import TensorRow, expected_tensors
from tidemill.checkpoint.stored_fp8 import (
    ONE_SCALE,
    SCALE_BY_OUTPUT,
    as_f8,
    fp8_rows,
    fp8_scale_name,
    is_fp8,
)
from tidemill.checkpoint.weight_only import (
    GROUP_SIZES,
    INT4_ALGO,
    NO_QUANT_ALGO,
    PLAIN_LAYOUT_KEY,
    QUANT_ALGO,
    as_q8,
    is_matrix,
    is_weight_only,
    scale_name,
    stored_rows,
)

_ALGO_TO_SCHEME = {QUANT_ALGO: "w8a16", ONE_SCALE: "fp8", SCALE_BY_OUTPUT: "fp8"}
_ALGO_TO_ELEMENT = {QUANT_ALGO: "int8", INT4_ALGO: "int4"}
_ALGORITHMS = (QUANT_ALGO, INT4_ALGO, ONE_SCALE, SCALE_BY_OUTPUT)
# As safetensors spells them; TensorRT-LLM writes e4m3 also as a view of its bits as int8.
_ELEMENT_TYPES = {DType.Q8: ("I8",), DType.F8: ("F8_E4M3", "I8")}
_FLOAT_TYPES = ("F32", "F16", "BF16")
_SCALE_ENDINGS = (".per_channel_scale", ".weights_scaling_factor")


@dataclass(frozen=True)
class StoredMatrices:
    """`dtype` is q8 or f8 where the matrices have scales, and None where they are plain."""

    dtype: DType | None

    @staticmethod
    def find(config: CheckpointConfig, names: Collection[str], where: str) -> StoredMatrices:
        """Tell how matrices are stored by config and names.

        Raises: UnsupportedError for scales that the config does not explain, and for layouts that
        only one GPU's kernels understand.
        """
        if not any(name.endswith(_SCALE_ENDINGS) for name in names):
            return StoredMatrices(None)
        if is_fp8(config):
            return StoredMatrices(DType.F8)
        if is_weight_only(config) and config.extra.get(PLAIN_LAYOUT_KEY):
            return StoredMatrices(DType.Q8)
        algorithm = config.quantization.get("quant_algo")
        if algorithm not in _ALGO_TO_ELEMENT:
            raise UnsupportedError(
                "matrices have scales, but config.json does not say what their elements are",
                where=where,
                expected="quantization.quant_algo one of " + ", ".join(_ALGORITHMS),
                got=str(algorithm),
                hint="take config.json and rank files from one conversion",
            )
        raise UnsupportedError(
            f"{_ALGO_TO_ELEMENT[algorithm]} weights are permuted for one GPU's kernels",
            where=where,
            expected=f"{PLAIN_LAYOUT_KEY} true in config.json: plain [in, out] int8 weights",
            got=f"{PLAIN_LAYOUT_KEY} {config.extra.get(PLAIN_LAYOUT_KEY)}",
            hint="convert from the original model: tidemill convert --use_weight_only",
        )

    def rows(self, config: CheckpointConfig) -> dict[str, TensorRow]:
        """Return the tensors that the rank files hold."""
        if self.dtype is None:
            return expected_tensors(config)
        return stored_rows(config) if self.dtype is DType.Q8 else fp8_rows(config)

    def type_names(self, name: str) -> tuple[str, ...]:
        """The types that a tensor of the rank files may have, as safetensors spells them."""
        if self.dtype is None or not is_matrix(name):
            return _FLOAT_TYPES
        return _ELEMENT_TYPES[self.dtype]

    def is_e4m3(self, name: str) -> bool:
        """Whether a tensor's bytes are codes of e4m3, whatever type they are stored as."""
        return self.dtype is DType.F8 and is_matrix(name)

    def scale_name(self, name: str, config: CheckpointConfig) -> str:
        """The name of the scales of a matrix."""
        return scale_name(name) if self.dtype is DType.Q8 else fp8_scale_name(name, config)

    def join(self, elements: Array, scales: Array, scale_dtype: DType) -> Array:
        """Put a matrix together as stored rows of `dtype`."""
        if self.dtype is DType.Q8:
            return as_q8(elements, scales, scale_dtype)
        return as_f8(elements, scales, scale_dtype)


def scheme_asked_for(config: CheckpointConfig) -> str:
    """The name of the scheme that a checkpoint's config asks for."""
    algorithm = str(config.quantization.get("quant_algo"))
    if algorithm != INT4_ALGO:
        return _ALGO_TO_SCHEME.get(algorithm, "none")
    stated = config.quantization.get("group_size")
    size = stated if stated in GROUP_SIZES else GROUP_SIZES[0]
    return f"w4a16_g{size}" + ("" if config.quantization.get("has_zero_point") else "_sym")


def refuse_other_algorithms(config: CheckpointConfig, where: str) -> None:
    """Raise UnsupportedError for quantised checkpoints of kinds that are not read."""
    algorithm = config.quantization.get("quant_algo")
    if algorithm not in (None, NO_QUANT_ALGO, *_ALGORITHMS):
        raise UnsupportedError(
            "this kind of quantised checkpoint is not supported yet",
            where=where,
            expected="quantization.quant_algo null or one of " + ", ".join(_ALGORITHMS),
            got=str(algorithm),
            hint="convert from the unquantised model",
        )
