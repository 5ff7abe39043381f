"""Opens whatever `--model_dir` points at as one kind of thing that can be converted.

In: a path or hub id, and perhaps a weight map. Out: an `OpenedModel`: config, whole tensors by
checkpoint name with a loader, and the files that go beside them. The kind is told by the content:
a GGUF file, a TensorRT-LLM checkpoint, a Hugging Face directory, or custom files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tidemill.api.tokenizer_files import files_from_gguf, files_from_hf
from tidemill.base.dtypes import DType
from tidemill.base.errors import CheckpointError, ConfigError, UnsupportedError
from tidemill.checkpoint.checkpoint import Checkpoint
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.custom_source import CustomSource
from tidemill.checkpoint.dtype_conversion import convert_floats
from tidemill.checkpoint.file_bytes import Array, FileBytes
from tidemill.checkpoint.gguf_config import config_from_gguf
from tidemill.checkpoint.hf_config import config_from_hf
from tidemill.checkpoint.json_file import read_json_object
from tidemill.checkpoint.sharding import TensorRow, expected_tensors
from tidemill.checkpoint.source import GgufSource, SafetensorsSource, TensorSource
from tidemill.checkpoint.weight_map import WeightMap, load, resolve, settle_tie
from tidemill.network.registry import ModelDescription, find_architecture, find_gguf_architecture

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to be converted; `loaders` gives whole tensors in the asked type.

    With `has_levels`, those of the layers' matrices that are asked for in q8 are the stored ones.
    """

    kind: str
    label: str
    config: CheckpointConfig
    rows: dict[str, TensorRow]
    loaders: dict[str, Callable[[DType], Array]]
    files: dict[str, bytes]
    notes: list[str] = field(default_factory=list)
    has_levels: bool = False


def open_model(model_dir: Path | str, weight_map: Path | None) -> OpenedModel:
    """Open a model of any supported kind.

    Raises: CheckpointError, UnsupportedError or ConfigError; nothing has been written then.
    """
    path = local_path(model_dir)
    if weight_map is not None:
        return _open_custom(path, weight_map)
    if path.is_file():
        return _open_gguf(path)
    config_path = path / "config.json"
    has_safetensors = any(path.glob("*.safetensors"))
    if not has_safetensors and any(path.glob("*.gguf")):
        return _open_gguf(_only_gguf(path))
    values = read_json_object(config_path)
    if "architecture" in values:
        return _open_checkpoint(path)
    return _open_hf(path, values)


def local_path(model_dir: Path | str) -> Path:
    """Return a path as it is, and a hub id as the directory of its download.

    Raises: CheckpointError, ConfigError.
    """
    path = Path(model_dir)
    return path if path.exists() else _download(str(model_dir))


def _download(model_id: str) -> Path:
    if not _HUB_ID.fullmatch(model_id):
        raise CheckpointError(
            "model not found",
            where=model_id,
            expected="a directory, a .gguf file or a hub id such as org/name",
            got="no such path",
            hint="check the path; 'tidemill sample' fetches a model to try",
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            "model is neither a path nor can it be downloaded",
            where=model_id,
            expected="an existing path, or the package huggingface_hub for hub ids",
            got="huggingface_hub is not installed",
            hint="pip install huggingface_hub",
        ) from None
    try:
        return Path(snapshot_download(model_id, allow_patterns=_HUB_PATTERNS))
    except Exception as error:
        # The hub's own tree of errors differs between its versions; all mean: no files here.
        raise CheckpointError(
            "download from the hub failed",
            where=model_id,
            expected="a public model, or a token for it, and a network",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="check the name and the network, or download the files and give their directory",
        ) from error


def _only_gguf(directory: Path) -> Path:
    paths = sorted(directory.glob("*.gguf"))
    if len(paths) > 1:
        raise ConfigError(
            "directory holds several GGUF files",
            where=str(directory),
            expected="one",
            got=", ".join(path.name for path in paths),
            hint="give the path of one of them as --model_dir",
        )
    return paths[0]


def _open_hf(directory: Path, values: Mapping[str, Any]) -> OpenedModel:
    model, config = _hf_config(directory, values)
    source = SafetensorsSource.open_directory(directory)
    is_stated = values.get("tie_word_embeddings") is not None
    config = settle_tie(config, model.hf_map, source, is_stated)
    files, notes = files_from_hf(directory)
    return _mapped("huggingface", directory, config, (model.hf_map, source), (files, notes))


def _hf_config(
    directory: Path, values: Mapping[str, Any]
) -> tuple[ModelDescription, CheckpointConfig]:
    where = str(directory / "config.json")
    names = values.get("architectures")
    model = find_architecture(str(names[0]) if isinstance(names, list) and names else "", where)
    quantization = values.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UnsupportedError(
            "quantised Hugging Face checkpoints are not supported yet",
            where=where,
            expected="no quantization_config",
            got=str(method),
            hint="convert from the unquantised model",
        )
    config = config_from_hf(values, model.architecture, where)
    model.check(config, values, where)
    return model, config


def _open_gguf(path: Path) -> OpenedModel:
    source = GgufSource(path)
    metadata = source.file.metadata
    num_files = metadata.get("split.count", 1)
    if num_files != 1:
        raise UnsupportedError(
            "GGUF model is split over several files",
            where=str(path),
            expected="one file",
            got=f"{num_files} files",
            hint="join them: llama-gguf-split --merge",
        )
    prefix = str(metadata.get("general.architecture", ""))
    model = find_gguf_architecture(prefix, str(path))
    config = config_from_gguf(source, model.architecture, prefix)
    model.check(config, {}, str(path))
    files = files_from_gguf(metadata)
    return _mapped("gguf", path, config, (model.gguf_map, source), (files, []))


def _open_custom(directory: Path, map_path: Path) -> OpenedModel:
    source = CustomSource(SafetensorsSource.open_directory(directory), map_path)
    config_path = directory / "config.json"
    values = read_json_object(config_path)
    if "architecture" in values:
        config = CheckpointConfig.from_json(values, str(config_path))
        model = find_architecture(config.architecture, str(config_path))
        model.check(config, {}, str(config_path))
    else:
        model, config = _hf_config(directory, values)
    is_stated = values.get("tie_word_embeddings") is not None
    config = settle_tie(config, model.hf_map, source, is_stated)
    return _mapped("custom", directory, config, (model.hf_map, source), files_from_hf(directory))


def _mapped(
    kind: str,
    path: Path,
    config: CheckpointConfig,
    mapped_source: tuple[WeightMap, TensorSource],
    files_and_notes: tuple[dict[str, bytes], list[str]],
) -> OpenedModel:
    weight_map, source = mapped_source
    tensors = resolve(weight_map, config, source, str(path))
    rows = {tensor.name: tensor.row for tensor in tensors}
    loaders: dict[str, Callable[[DType], Array]] = {
        tensor.name: partial(load, tensor, source, config=config) for tensor in tensors
    }
    files, notes = files_and_notes
    return OpenedModel(kind, path.name, config, rows, loaders, files, notes)


def _open_checkpoint(directory: Path) -> OpenedModel:
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config
    find_architecture(config.architecture, str(directory / "config.json")).check(
        config, {}, str(directory / "config.json")
    )

    def load_converted(name: str, target: DType) -> Array:
        if checkpoint.dtype(name) is target:
            return checkpoint.read(name)
        return convert_floats(checkpoint.read(name), checkpoint.dtype(name), target, name)

    files = {path.name: FileBytes(path).read_all() for path in checkpoint.tokenizer_files()}
    label = (config.tidemill or {}).get("source") or directory.name
    return OpenedModel(
        "tensorrt_llm",
        str(label),
        config,
        expected_tensors(config),
        {name: partial(load_converted, name) for name in checkpoint.tensor_names()},
        files,
        has_levels=checkpoint.has_levels,
    )
