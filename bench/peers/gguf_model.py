"""A Hugging Face directory of a Llama as a GGUF file in bfloat16, for llama.cpp.

The weights are the directory's, bit for bit (norms widened to float32, as llama.cpp wants them);
the vocabulary is copied from the sample's GGUF file, whose tokenizer the directory has, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bench.parts.llama_directory import to_gguf_name
from tidemill.api.sample import fetch_sample
from tidemill.base.dtypes import DType
from tidemill.checkpoint.dtype_conversion import widen
from tidemill.checkpoint.gguf_file import GgufFile
from tidemill.checkpoint.safetensors_source import SafetensorsSource


def write_gguf(hf_dir: Path, path: Path) -> None:
    """Write the file; whole or not at all."""
    config = json.loads((hf_dir / "config.json").read_text("utf-8"))
    staged = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(staged, "llama", use_temp_file=True)
    _add_shape(writer, config)
    _add_vocabulary(writer, GgufFile(fetch_sample()).metadata)
    source = SafetensorsSource([hf_dir / "model.safetensors"])
    for name in source.names():
        values = source.read(name)
        if values.ndim == 1:
            writer.add_tensor(to_gguf_name(name), widen(values, DType.BF16))
            continue
        if "q_proj" in name:
            values = pair_rotary_rows(values, config["num_attention_heads"])
        elif "k_proj" in name:
            values = pair_rotary_rows(values, config["num_key_value_heads"])
        writer.add_tensor(
            to_gguf_name(name), values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staged.rename(path)


def pair_rotary_rows(rows: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """Interleave each head's two rotary halves: row j becomes 2j, row width / 2 + j, 2j + 1."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _add_shape(writer: Any, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_vocabulary(writer: Any, metadata: dict[str, Any]) -> None:
    of = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    writer.add_tokenizer_model(of["model"])
    writer.add_tokenizer_pre(of["pre"])
    writer.add_token_list(of["tokens"])
    writer.add_token_types(of["token_type"])
    writer.add_token_merges(of["merges"])
    writer.add_bos_token_id(of["bos_token_id"])
    writer.add_eos_token_id(of["eos_token_id"])
