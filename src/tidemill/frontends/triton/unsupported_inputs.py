"""Refuses inputs whose feature this version lacks, at any value that asks for something.

In: the named tensors of a request. Out: one error that names all of them, or nothing. At their
neutral values they are accepted, since clients send whole sets of them; never ignored otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidemill.base.errors import InvalidRequestError
from tidemill.frontends.triton.request_inputs import RequestInputs


@dataclass(frozen=True)
class Neutral:
    """The values of an input that ask for nothing: a test, and its words for the error."""

    accepts: Callable[[float], bool]
    words: str


def _equals(value: float) -> Neutral:
    return Neutral(lambda got: got == value, f"{value:g}")


OFF = _equals(0)
NEUTRAL_NUMBERS = {
    "lora_task_id": OFF,
    "lora_id": OFF,
    "prompt_vocab_size": OFF,
    "num_draft_tokens": OFF,
    "use_draft_logits": OFF,
    "return_kv_cache_reuse_stats": OFF,
}
TEXTS = (
    "decoder_text_input",
    "DECODER_QUERY",
    "image_url_input",
    "IMAGE_URL",
    "image_url",
    "lora_name",
    "lora_path",
)
# Whatever they hold: with one element or more they ask for a feature.
ARRAYS = (
    "encoder_input_features",
    "draft_input_ids",
    "draft_logits",
    "prompt_embedding_table",
    "prompt_table_extra_ids",
    "prompt_table_extra_id",
    "PROMPT_TABLE_EXTRA_ID",
    "cross_attention_mask",
    "mrope_rotary_cos_sin",
    "mrope_position_deltas",
    "lora_weights",
    "lora_config",
    "context_phase_params",
    "skip_cross_attn_blocks",
    "multimodal_embedding",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "image_input",
    "image_bytes_input",
    "video_bytes_input",
    "IMAGE_BYTES",
    "VIDEO_BYTES",
)
# Accepted at any value because nothing reads them without their feature: pad_id (answers are never
# padded), length_penalty, len_penalty and early_stopping (beams only), embedding_bias_weights
# (words decide), runtime_top_p_min and _reset_ids (decay only), decoder_input_ids and its length
# (preprocessing always sends one), encoder_output_lengths, draft_acceptance_threshold,
# lora_ckpt_source.


def refuse_unsupported(inputs: RequestInputs) -> None:
    """Refuse values that ask for features this version lacks.

    Raises: InvalidRequestError naming every such input.
    """
    faults = [*_wrong_numbers(inputs), *_wrong_texts(inputs), *_wrong_arrays(inputs)]
    if faults:
        raise InvalidRequestError(
            "the request asks for what this version cannot do yet",
            where=", ".join(name for name, _, _ in faults),
            expected="; ".join(f"{name} {words}" for name, words, _ in faults),
            got="; ".join(f"{name} {got}" for name, _, got in faults),
            hint="leave these inputs out",
        )


def _wrong_numbers(inputs: RequestInputs) -> list[tuple[str, str, str]]:
    faults = []
    for name, neutral in NEUTRAL_NUMBERS.items():
        got = [value for value in inputs.numbers(name) if value is not None]
        if any(not neutral.accepts(value) for value in got):
            faults.append((name, neutral.words, ", ".join(f"{value:g}" for value in got)))
    return faults


def _wrong_texts(inputs: RequestInputs) -> list[tuple[str, str, str]]:
    name_to_words = {name: [w for row in inputs.text_lists(name) for w in row] for name in TEXTS}
    return [(name, "no words", repr(words)) for name, words in name_to_words.items() if words]


def _wrong_arrays(inputs: RequestInputs) -> list[tuple[str, str, str]]:
    shapes = {name: array.shape for name in ARRAYS if (array := inputs.array(name)) is not None}
    return [(name, "none", f"shape {list(shape)}") for name, shape in shapes.items()]
