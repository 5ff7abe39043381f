"""The tensors of TensorRT-LLM's llmapi model: text in and out, without a batch dimension.

Source: TensorRT-LLM triton_backend/all_models/llmapi/tensorrt_llm.
"""

from __future__ import annotations

from tidemill.frontends.triton.tensor_table import read_table

LLMAPI_INPUTS = read_table("""
text_input                       STRING [-1]
image_url                        STRING [-1] opt
streaming,stop                   BOOL   [1]  opt
sampling_param_best_of           INT32  [1]  opt
sampling_param_temperature       FP32   [1]  opt
sampling_param_top_k             INT32  [1]  opt
sampling_param_top_p             FP32   [1]  opt
sampling_param_frequency_penalty FP32   [1]  opt
sampling_param_presence_penalty  FP32   [1]  opt
sampling_param_max_tokens        INT32  [1]  opt
sampling_param_stop              STRING [-1] opt
sampling_param_seed              UINT64 [1]  opt
sampling_param_exclude_input_from_output BOOL [1] opt
sampling_param_return_perf_metrics BOOL [1]  opt
sampling_param_logits_post_processor_name STRING [1] opt
return_finish_reason             BOOL   [1]  opt
return_stop_reason               BOOL   [1]  opt
return_cumulative_logprob        BOOL   [1]  opt
lora_id                          UINT64 [1]  opt
lora_name,lora_path              STRING [1]  opt
lora_ckpt_source                 STRING [1]  opt
""")

LLMAPI_OUTPUTS = read_table("""
text_output,finish_reason,stop_reason STRING [-1]
cumulative_logprob               FP32   [-1]
kv_cache_reused_block            INT32  [-1]
kv_cache_missed_block            INT32  [-1]
kv_cache_alloc_new_blocks        INT32  [-1]
kv_cache_alloc_total_blocks      INT32  [-1]
kv_cache_hit_rate                FP32   [-1]
arrival_time_ns                  INT64  [1]
first_scheduled_time_ns          INT64  [1]
first_token_time_ns              INT64  [1]
last_token_time_ns               INT64  [1]
acceptance_rate                  FP32   [1]
total_accepted_draft_tokens      INT32  [1]
total_draft_tokens               INT32  [1]
""")
