"""The tensors of the five classic models, as TensorRT-LLM's repositories declare them.

Names of its later releases, with those that earlier ones had (`random_seed`, `min_length`) beside
them as optional inputs. A few rows are ours: `stop` on the text models; `prompt_text`,
`output_text` and `ENGINE_TEXT`, by which the ensemble's text is the engine's own and its echo the
prompt as sent.
Source: tensorrtllm_backend all_models/inflight_batcher_llm, r25.05 and v0.19.0.
"""

from __future__ import annotations

from dataclasses import replace

from tidemill.frontends.triton.tensor_table import read_table

TENSORRT_LLM_INPUTS = read_table("""
input_ids                        INT32  [-1]    opt ragged
encoder_input_features           FP16   [-1,-1] opt ragged
encoder_output_lengths           INT32  [1]     opt rs
input_lengths                    INT32  [1]     rs
request_output_len               INT32  [1]     rs
num_return_sequences             INT32  [1]     opt rs
draft_input_ids                  INT32  [-1]    opt ragged
decoder_input_ids                INT32  [-1]    opt ragged
decoder_input_lengths            INT32  [1]     opt rs
draft_logits                     FP32   [-1,-1] opt ragged
draft_acceptance_threshold       FP32   [1]     opt rs
end_id,pad_id                    INT32  [1]     opt rs
stop_words_list,bad_words_list   INT32  [2,-1]  opt ragged
embedding_bias                   FP32   [-1]    opt ragged
beam_width                       INT32  [1]     opt rs
temperature                      FP32   [1]     opt rs
runtime_top_k                    INT32  [1]     opt rs
runtime_top_p                    FP32   [1]     opt rs
runtime_top_p_min                FP32   [1]     opt rs
runtime_top_p_decay              FP32   [1]     opt rs
runtime_top_p_reset_ids          INT32  [1]     opt rs
len_penalty                      FP32   [1]     opt rs
early_stopping                   BOOL   [1]     opt rs
repetition_penalty               FP32   [1]     opt rs
min_tokens,min_length            INT32  [1]     opt rs
beam_search_diversity_rate       FP32   [1]     opt rs
presence_penalty                 FP32   [1]     opt rs
frequency_penalty                FP32   [1]     opt rs
seed,random_seed                 UINT64 [1]     opt rs
return_log_probs                 BOOL   [1]     opt rs
return_context_logits            BOOL   [1]     opt rs
return_generation_logits         BOOL   [1]     opt rs
return_perf_metrics              BOOL   [1]     opt rs
return_num_input_tokens          BOOL   [1]     opt rs
return_num_output_tokens         BOOL   [1]     opt rs
exclude_input_in_output          BOOL   [1]     opt rs
stop                             BOOL   [1]     opt rs
streaming                        BOOL   [1]     opt rs
prompt_embedding_table           FP16   [-1,-1] opt ragged
prompt_table_extra_ids           UINT64 [-1]    opt ragged
prompt_vocab_size                INT32  [1]     opt rs
cross_attention_mask             BOOL   [-1,-1] opt ragged
mrope_rotary_cos_sin             FP32   [-1]    opt
mrope_position_deltas            INT64  [1]     opt
lora_task_id                     UINT64 [1]     opt rs
lora_weights                     FP16   [-1,-1] opt ragged
lora_config                      INT32  [-1,3]  opt ragged
context_phase_params             UINT8  [-1]    opt ragged
skip_cross_attn_blocks           BOOL   [1]     opt ragged
retention_token_range_starts     INT32  [-1]    opt ragged
retention_token_range_ends       INT32  [-1]    opt ragged
retention_token_range_priorities INT32  [-1]    opt ragged
retention_token_range_durations_ms INT32 [-1]   opt ragged
retention_decode_priority        INT32  [1]     opt ragged
retention_decode_duration_ms     INT32  [1]     opt ragged
guided_decoding_guide_type       STRING [1]     opt ragged
guided_decoding_guide            STRING [1]     opt ragged
prompt_text                      STRING [1]     opt rs
lookahead_window_size            INT32  [1]     opt ragged
lookahead_ngram_size             INT32  [1]     opt ragged
lookahead_verification_set_size  INT32  [1]     opt ragged
""")

# What an answer cost: asked for by `return_perf_metrics`.
PERF_OUTPUTS = read_table("""
kv_cache_alloc_new_blocks        INT32  [1]
kv_cache_reused_blocks           INT32  [1]
kv_cache_alloc_total_blocks      INT32  [1]
arrival_time_ns                  INT64  [1]
first_scheduled_time_ns          INT64  [1]
first_token_time_ns              INT64  [1]
last_token_time_ns               INT64  [1]
acceptance_rate                  FP32   [1]
total_accepted_draft_tokens      INT32  [1]
total_draft_tokens               INT32  [1]
""")

# What every model that answers gives beside its tokens or its text.
ANSWER_OUTPUTS = (
    *read_table("""
cum_log_probs                    FP32   [-1]
output_log_probs                 FP32   [-1,-1]
context_logits                   FP32   [-1,-1]
generation_logits                FP32   [-1,-1,-1]
batch_index                      INT32  [1]
sequence_index                   INT32  [1]
num_input_tokens                 INT32  [1]
num_output_tokens                INT32  [1]
"""),
    *PERF_OUTPUTS,
)

TENSORRT_LLM_OUTPUTS = (
    *read_table("""
output_ids                       INT32  [-1,-1]
sequence_length                  INT32  [-1]
context_phase_params             UINT8  [-1]
output_text                      STRING [-1]
"""),
    *ANSWER_OUTPUTS,
)

PREPROCESSING_INPUTS = read_table("""
QUERY                            STRING [1]
DECODER_QUERY                    STRING [1]     opt
IMAGE_BYTES                      UINT8  [-1,-1,-1,-1] opt
IMAGE_URL                        STRING [1]     opt
VIDEO_BYTES                      UINT8  [-1,-1,-1,-1] opt
REQUEST_OUTPUT_LEN               INT32  [1]
BAD_WORDS_DICT                   STRING [-1]    opt
STOP_WORDS_DICT                  STRING [-1]    opt
EMBEDDING_BIAS_WORDS             STRING [-1]    opt
EMBEDDING_BIAS_WEIGHTS           FP32   [-1]    opt
END_ID                           INT32  [1]     opt
PAD_ID                           INT32  [1]     opt
PROMPT_TABLE_EXTRA_ID            UINT64 [1]     opt
""")

PREPROCESSING_OUTPUTS = read_table("""
INPUT_ID                         INT32  [-1]
REQUEST_INPUT_LEN                INT32  [1]
DECODER_INPUT_ID                 INT32  [-1]
REQUEST_DECODER_INPUT_LEN        INT32  [1]
BAD_WORDS_IDS                    INT32  [2,-1]
STOP_WORDS_IDS                   INT32  [2,-1]
EMBEDDING_BIAS                   FP32   [-1]
REQUEST_OUTPUT_LEN               INT32  [-1]
OUT_END_ID                       INT32  [1]
OUT_PAD_ID                       INT32  [1]
OUT_PROMPT_TABLE_EXTRA_IDS       UINT64 [-1]
PIXEL_VALUES                     FP16   [-1,-1,-1,-1]
ASPECT_RATIO_IDS                 INT64  [-1]
ASPECT_RATIO_MASK                INT64  [-1,-1]
CROSS_ATTENTION_MASK             INT64  [-1,-1,-1]
IMAGE_SIZES                      INT64  [2]
IS_VIDEO_INPUT                   BOOL   [1]
ATTENTION_MASK                   INT64  [-1]
IMAGE_GRID_THW                   INT64  [3]
VISION_INPUT_ID                  INT32  [-1]
""")

POSTPROCESSING_INPUTS = read_table("""
TOKENS_BATCH                     INT32  [-1,-1]
SEQUENCE_LENGTH                  INT32  [-1]
ENGINE_TEXT                      STRING [-1]    opt
""")
POSTPROCESSING_OUTPUTS = read_table("OUTPUT STRING [-1]")

# The inputs that the ensemble and the BLS model share.
ENSEMBLE_INPUTS = read_table("""
text_input                       STRING [1]
decoder_text_input               STRING [1]     opt
max_tokens                       INT32  [1]
num_return_sequences             INT32  [1]     opt
bad_words,stop_words             STRING [-1]    opt
exclude_input_in_output          BOOL   [1]     opt
end_id,pad_id,top_k              INT32  [1]     opt
top_p,temperature,length_penalty FP32   [1]     opt
repetition_penalty               FP32   [1]     opt
min_tokens,min_length            INT32  [1]     opt
presence_penalty                 FP32   [1]     opt
frequency_penalty                FP32   [1]     opt
seed,random_seed                 UINT64 [1]     opt
return_log_probs                 BOOL   [1]     opt
return_context_logits            BOOL   [1]     opt
return_generation_logits         BOOL   [1]     opt
return_perf_metrics              BOOL   [1]     opt
return_num_input_tokens          BOOL   [1]     opt
return_num_output_tokens         BOOL   [1]     opt
beam_width                       INT32  [1]     opt
stream,stop                      BOOL   [1]     opt
prompt_embedding_table           FP16   [-1,-1] opt
prompt_table_extra_id            UINT64 [1]     opt
prompt_vocab_size                INT32  [1]     opt
embedding_bias_words             STRING [-1]    opt
embedding_bias_weights           FP32   [-1]    opt
lora_task_id                     UINT64 [1]     opt
lora_weights                     FP16   [-1,-1] opt ragged
lora_config                      INT32  [-1,3]  opt ragged
guided_decoding_guide_type       STRING [1]     opt ragged
guided_decoding_guide            STRING [1]     opt ragged
""")

# Where upstream's BLS model declares the ensemble's inputs with other flags.
BLS_DROPS_DIMS = frozenset(
    {"return_log_probs", "return_context_logits", "return_generation_logits", "lora_task_id"}
    | {"num_return_sequences", "return_perf_metrics"}
)
BLS_RAGGED = frozenset({"lora_weights", "lora_config"})

BLS_INPUTS = (
    *(
        replace(each, drops_dims=each.name in BLS_DROPS_DIMS, is_ragged=each.name in BLS_RAGGED)
        for each in ENSEMBLE_INPUTS
    ),
    *read_table("""
image_input                      FP16   [-1,3,-1,-1]    opt
image_bytes_input                UINT8  [-1,-1,-1,-1]   opt
image_url_input                  STRING [1]             opt
video_bytes_input                UINT8  [-1,-1,-1,-1]   opt
num_draft_tokens                 INT32  [1]             opt
use_draft_logits                 BOOL   [1]             opt rs
"""),
)
ENSEMBLE_OUTPUTS = (*read_table("text_output STRING [-1]"), *ANSWER_OUTPUTS)
