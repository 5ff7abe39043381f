"""A checkpoint directory read as one model, however many ranks it was split over.

In: a directory in TensorRT-LLM's format. Out: its config, and whole tensors by global name (layer
index of the model, not of the stage), put together when read. Opening validates every tensor of
every rank file against the config and lists all faults. Knows no architecture beyond the table of
tensors.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.file_bytes import Array, has_equal_bits
from tidemill.checkpoint.json_file import read_json_object
from tidemill.checkpoint.numbers_only import refuse_non_numbers
from tidemill.checkpoint.safetensors_source import SafetensorsSource
from tidemill.checkpoint.sharding import (
    EMBEDDING,
    LM_HEAD,
    Split,
    TensorRow,
    assemble,
    expected_tensors,
    full_shape,
    local_name,
    shard_shape,
    stage_of,
)
from tidemill.checkpoint.stored_fp8 import UNUSED_ENDINGS
from tidemill.checkpoint.stored_matrices import StoredMatrices, refuse_other_algorithms
from tidemill.checkpoint.weight_only import is_matrix
from tidemill.checkpoint.writer import TOKENIZER_FILES

_MAX_LISTED = 20


class Checkpoint:
    """An open checkpoint; nothing is in memory until it is read."""

    def __init__(self, directory: Path, config: CheckpointConfig, ranks: list[SafetensorsSource]):
        self.directory = directory
        self._ranks = ranks
        self._matrices = StoredMatrices.find(config, ranks[0].names(), str(directory))
        self.config = self._settle_tie(config)
        self._rows = expected_tensors(self.config)
        self._check_tensors()

    @staticmethod
    def open(directory: Path | str) -> Checkpoint:
        """Open a directory and validate it.

        Raises: CheckpointError for missing, truncated or disagreeing files; UnsupportedError for
        quantised checkpoints other than weight-only int8 and fp8.
        """
        directory = Path(directory)
        config_path = directory / "config.json"
        config = CheckpointConfig.from_json(read_json_object(config_path), str(config_path))
        refuse_other_algorithms(config, str(config_path))
        return Checkpoint(directory, config, _open_ranks(directory, config))

    def tensor_names(self) -> list[str]:
        """Return the global names of the whole model's tensors, in the order of the model."""
        return list(self._rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return full_shape(self._rows[name], self.config)

    def dtype(self, name: str) -> DType:
        """Return the type that `read` gives: q8 and f8 for a matrix that is stored with scales."""
        if self._matrices.dtype is not None and is_matrix(name):
            return self._matrices.dtype
        return self._stored_dtype(name)

    @property
    def has_levels(self) -> bool:
        """Whether the layers' matrices are int8 levels."""
        return self._matrices.dtype is DType.Q8

    def read(self, name: str) -> Array:
        """Read a whole tensor in storage type, put together from its ranks.

        Raises: CheckpointError for values that are not numbers, and for scales that disagree.
        """
        rows = self._matrices.rows(self.config)
        stored = self._read_stored(name, rows[name])
        if self._matrices.dtype is None or not is_matrix(name):
            return stored
        scales = self._matrices.scale_name(name, self.config)
        scale_dtype = self._stored_dtype(scales)
        return self._matrices.join(stored, self._read_scales(scales, rows[scales]), scale_dtype)

    def _stored_dtype(self, name: str) -> DType:
        return self._stage(name)[0].dtype(local_name(name, self.config))

    def _read_scales(self, name: str, row: TensorRow) -> Array:
        """Read scales; where every rank has all of them, they must be the same."""
        scales = self._read_stored(name, row)
        if row.split is not Split.REPLICATED:
            return scales
        others = [rank.read(local_name(name, self.config)) for rank in self._stage(name)[1:]]
        if not all(has_equal_bits(other, scales) for other in others):
            raise CheckpointError(
                "scales differ between ranks",
                where=f"{self.directory}, {name}",
                expected="the scales of whole outputs, the same on every tensor-parallel rank",
                got="different values",
                hint="quantise the whole matrix, then split it",
            )
        return scales

    def _read_stored(self, name: str, row: TensorRow) -> Array:
        ranks = self._stage(name)
        inside = local_name(name, self.config)
        if row.split is Split.REPLICATED and not row.is_levels:
            values = ranks[0].read(inside)
        else:
            values = assemble(row, self.config, [rank.read(inside) for rank in ranks])
        dtype = DType.U8 if self._matrices.is_e4m3(name) else self._stored_dtype(name)
        refuse_non_numbers(values, dtype, f"{self.directory}, {name}")
        return values

    def tokenizer_files(self) -> list[Path]:
        """Return the tokenizer and generation files that the checkpoint carries."""
        paths = [self.directory / name for name in TOKENIZER_FILES]
        return [path for path in paths if path.is_file()]

    def _stage(self, name: str) -> list[SafetensorsSource]:
        tp_size = self.config.mapping.tp_size
        first = stage_of(name, self.config) * tp_size
        return self._ranks[first : first + tp_size]

    def _settle_tie(self, config: CheckpointConfig) -> CheckpointConfig:
        """Decide whether the head is the embedding: by the tensors, not by what config.json says.

        A missing head means tied. A head that is stored although the config says tied counts as
        tied only if it equals the embedding.
        """
        stored = {name for rank in self._ranks for name in rank.names()}
        if LM_HEAD not in stored:
            return replace(config, tie_word_embeddings=True)
        if not config.tie_word_embeddings:
            return config
        untied = replace(config, tie_word_embeddings=False)
        self.config, self._rows = untied, expected_tensors(untied)
        # A faulty pair cannot be compared; the check of all tensors will list it.
        is_readable = not any(EMBEDDING in fault or LM_HEAD in fault for fault in self._faults())
        is_copy = is_readable and has_equal_bits(self.read(LM_HEAD), self.read(EMBEDDING))
        return replace(config, tie_word_embeddings=is_copy)

    def _faults(self) -> list[str]:
        """List every tensor of every rank file that disagrees with the config."""
        faults: list[str] = []
        for number, rank in enumerate(self._ranks):
            stage = number // self.config.mapping.tp_size
            expected = {
                local_name(name, self.config): (
                    shard_shape(row, self.config),
                    self._matrices.type_names(name),
                )
                for name, row in self._matrices.rows(self.config).items()
                if stage_of(name, self.config) == stage
            }
            faults += _tensor_faults(f"rank{number}", rank, expected)
        return faults

    def _check_tensors(self) -> None:
        faults = self._faults()
        if faults:
            listed = faults[:_MAX_LISTED]
            if len(faults) > _MAX_LISTED:
                listed.append(f"and {len(faults) - _MAX_LISTED} more")
            layout = self.config.mapping
            raise CheckpointError(
                f"{len(faults)} tensor(s) disagree with config.json",
                where=str(self.directory),
                expected=f"shapes and types for tp_size {layout.tp_size}, pp_size {layout.pp_size}",
                got="\n    ".join(listed),
                hint="do config.json and rank files come from one conversion?",
            )


def _tensor_faults(
    label: str,
    rank: SafetensorsSource,
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]],
) -> list[str]:
    """Compare a rank file with the shape and the types that each of its tensors may have."""
    stored = set(rank.names())
    faults = [f"{label}: {name} is missing" for name in expected if name not in stored]
    for name in [name for name in expected if name in stored]:
        shape, type_names = expected[name]
        if rank.shape(name) != shape:
            guess = _guess_split(rank.shape(name), shape)
            faults.append(f"{label}: {name} has shape {rank.shape(name)}, expected {shape}{guess}")
        if rank.type_name(name) not in type_names:
            kinds = " or ".join(type_names)
            faults.append(f"{label}: {name} has type {rank.type_name(name)}, expected {kinds}")
    # A tied model's last stage may hold a copy of the embedding as its head.
    extra = {name for name in stored - set(expected) if not name.endswith(UNUSED_ENDINGS)}
    extra -= {LM_HEAD}
    faults += [f"{label}: {name} is not a tensor of this model" for name in sorted(extra)]
    return faults


def _guess_split(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Say which split would explain a shape, if one dimension is a fraction of the expected."""
    if len(got) != len(expected):
        return ""
    unequal = [(a, b) for a, b in zip(got, expected, strict=True) if a != b]
    if len(unequal) == 1 and 0 < unequal[0][0] < unequal[0][1]:
        ratio, rest = divmod(unequal[0][1], unequal[0][0])
        if rest == 0:
            return f"; already split for tp={ratio}?"
    return ""


def _open_ranks(directory: Path, config: CheckpointConfig) -> list[SafetensorsSource]:
    paths = [directory / f"rank{r}.safetensors" for r in range(config.mapping.world_size)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(paths)} rank files are missing",
            where=str(directory),
            expected=f"rank0 to rank{len(paths) - 1}, as mapping.world_size says",
            got="no " + ", ".join(missing),
            hint="copy the whole directory, or convert the model again",
        )
    return [SafetensorsSource([path]) for path in paths]
