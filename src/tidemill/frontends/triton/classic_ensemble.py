"""How the classic ensemble joins its three models: which tensor goes where, by name.

Source: tensorrtllm_backend all_models/inflight_batcher_llm/ensemble/config.pbtxt. Ours beside it:
`stop` and the aliases of renamed inputs, the prompt's text to the engine, which echoes it, and the
engine's own text to the postprocessing.
"""

from __future__ import annotations

from tidemill.frontends.triton.classic_tensors import ANSWER_OUTPUTS, ENSEMBLE_INPUTS
from tidemill.frontends.triton.config_pbtxt import EnsembleStep

PREPROCESSING_IN = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}
# Output of preprocessing -> input of tensorrt_llm; between them `_` and the former's name.
TOKENISED = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "BAD_WORDS_IDS": "bad_words_list",
    "STOP_WORDS_IDS": "stop_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
# Outer name -> name at tensorrt_llm; every input that preprocessing does not take goes there.
RENAMED = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
}


def ensemble_steps(prefix: str) -> tuple[EnsembleStep, ...]:
    """Return the three steps; `prefix` begins the names of the models."""
    passed = {
        RENAMED.get(tensor.name, tensor.name): tensor.name
        for tensor in ENSEMBLE_INPUTS
        if tensor.name not in PREPROCESSING_IN.values()
    }
    tokens = {name: f"_{name.upper()}" for name in ("output_ids", "sequence_length", "output_text")}
    return (
        EnsembleStep(
            f"{prefix}preprocessing", PREPROCESSING_IN, {name: f"_{name}" for name in TOKENISED}
        ),
        EnsembleStep(
            f"{prefix}tensorrt_llm",
            {
                **{own: f"_{name}" for name, own in TOKENISED.items()},
                **passed,
                "prompt_text": "text_input",
            },
            {**tokens, **{tensor.name: tensor.name for tensor in ANSWER_OUTPUTS}},
        ),
        EnsembleStep(
            f"{prefix}postprocessing",
            {
                "TOKENS_BATCH": tokens["output_ids"],
                "SEQUENCE_LENGTH": tokens["sequence_length"],
                "ENGINE_TEXT": tokens["output_text"],
            },
            {"OUTPUT": "text_output"},
        ),
    )
