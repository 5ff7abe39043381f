"""The tensors that deployments of either style take and give: one row for each name.

The names are TensorRT-LLM's, of the generations that live clients speak: what was renamed is
declared under both names. `deploy` writes these rows into config.pbtxt, the backend reads requests
by them, so that the two cannot disagree.
"""

from __future__ import annotations

from tidemill.frontends.triton.classic_tensors import PERF_OUTPUTS
from tidemill.frontends.triton.config_pbtxt import DataType, TensorConfig

ANY = (-1,)


def _optional(name: str, data_type: DataType, dims: tuple[int, ...] = (1,)) -> TensorConfig:
    return TensorConfig(name, data_type, dims, is_optional=True)


def _option_rows(*rows: tuple[DataType, str]) -> tuple[TensorConfig, ...]:
    """One optional single-element input for each name in each row's space-separated list."""
    return tuple(_optional(name, data_type) for data_type, names in rows for name in names.split())


TEXT_INPUTS: tuple[TensorConfig, ...] = (
    TensorConfig("text_input", DataType.STRING),
    TensorConfig("max_tokens", DataType.INT32),
    *_option_rows(
        (DataType.BOOL, "stream exclude_input_in_output stop"),
        (DataType.INT32, "end_id pad_id top_k min_tokens min_length beam_width"),
        (DataType.INT32, "num_return_sequences"),
        (DataType.FP32, "temperature top_p length_penalty repetition_penalty"),
        (DataType.FP32, "presence_penalty frequency_penalty"),
        (DataType.UINT64, "seed random_seed"),
        (DataType.BOOL, "return_num_input_tokens return_num_output_tokens return_output_ids"),
        (DataType.BOOL, "return_log_probs return_context_logits return_generation_logits"),
        (DataType.BOOL, "return_perf_metrics"),
        (DataType.UINT64, "lora_task_id"),
        (DataType.STRING, "guided_decoding_guide_type guided_decoding_guide"),
    ),
    _optional("stop_words", DataType.STRING, ANY),
    _optional("bad_words", DataType.STRING, ANY),
    _optional("embedding_bias_words", DataType.STRING, ANY),
    _optional("embedding_bias_weights", DataType.FP32, ANY),
)

TEXT_OUTPUTS: tuple[TensorConfig, ...] = (
    TensorConfig("text_output", DataType.STRING, ANY),
    TensorConfig("finish_reason", DataType.STRING, ANY),
    TensorConfig("num_input_tokens", DataType.INT32),
    TensorConfig("num_output_tokens", DataType.INT32),
    TensorConfig("output_ids", DataType.INT32, (-1, -1)),
    TensorConfig("sequence_length", DataType.INT32, ANY),
    TensorConfig("batch_index", DataType.INT32),
    TensorConfig("sequence_index", DataType.INT32),
    TensorConfig("cum_log_probs", DataType.FP32, ANY),
    TensorConfig("output_log_probs", DataType.FP32, (-1, -1)),
    TensorConfig("context_logits", DataType.FP32, (-1, -1)),
    TensorConfig("generation_logits", DataType.FP32, (-1, -1, -1)),
    *PERF_OUTPUTS,
)

TOKENS_INPUTS: tuple[TensorConfig, ...] = (
    TensorConfig("input_ids", DataType.INT32, ANY),
    TensorConfig("input_lengths", DataType.INT32, ANY),
    _optional("request_output_len", DataType.INT32, ANY),
    *_option_rows(
        (DataType.BOOL, "streaming stop"),
        (DataType.INT32, "end_id pad_id runtime_top_k min_tokens min_length beam_width"),
        (DataType.INT32, "num_return_sequences"),
        (DataType.FP32, "temperature runtime_top_p len_penalty repetition_penalty"),
        (DataType.FP32, "presence_penalty frequency_penalty"),
        (DataType.UINT64, "seed random_seed"),
        (DataType.BOOL, "return_log_probs return_context_logits return_generation_logits"),
    ),
)

TOKENS_OUTPUTS: tuple[TensorConfig, ...] = (
    TensorConfig("output_ids", DataType.INT32, ANY),
    TensorConfig("output_lengths", DataType.INT32, ANY),
)
