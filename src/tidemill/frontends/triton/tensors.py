"""The tensors that the text and the tokens style take and give: one row for each name.

The names are TensorRT-LLM's, of the generations that live clients speak: what was renamed is
declared under both names. `deploy` writes these rows into config.pbtxt, the backend reads requests
by them, so that the two cannot disagree.
"""

from __future__ import annotations

from tidemill.frontends.triton.classic_tensors import PERF_OUTPUTS
from tidemill.frontends.triton.tensor_table import read_table

TEXT_INPUTS = read_table("""
text_input                       STRING [1]
max_tokens                       INT32  [1]
stream,exclude_input_in_output   BOOL   [1]  opt
stop                             BOOL   [1]  opt
end_id,pad_id,top_k              INT32  [1]  opt
min_tokens,min_length            INT32  [1]  opt
beam_width,num_return_sequences  INT32  [1]  opt
temperature,top_p,length_penalty FP32   [1]  opt
repetition_penalty               FP32   [1]  opt
presence_penalty                 FP32   [1]  opt
frequency_penalty                FP32   [1]  opt
seed,random_seed                 UINT64 [1]  opt
return_num_input_tokens          BOOL   [1]  opt
return_num_output_tokens         BOOL   [1]  opt
return_output_ids                BOOL   [1]  opt
return_log_probs                 BOOL   [1]  opt
return_context_logits            BOOL   [1]  opt
return_generation_logits         BOOL   [1]  opt
return_perf_metrics              BOOL   [1]  opt
lora_task_id                     UINT64 [1]  opt
guided_decoding_guide_type       STRING [1]  opt
guided_decoding_guide            STRING [1]  opt
stop_words,bad_words             STRING [-1] opt
embedding_bias_words             STRING [-1] opt
embedding_bias_weights           FP32   [-1] opt
""")

TEXT_OUTPUTS = (
    *read_table("""
text_output,finish_reason        STRING [-1]
num_input_tokens                 INT32  [1]
num_output_tokens                INT32  [1]
output_ids                       INT32  [-1,-1]
sequence_length                  INT32  [-1]
batch_index,sequence_index       INT32  [1]
cum_log_probs                    FP32   [-1]
output_log_probs                 FP32   [-1,-1]
context_logits                   FP32   [-1,-1]
generation_logits                FP32   [-1,-1,-1]
"""),
    *PERF_OUTPUTS,
)

TOKENS_INPUTS = read_table("""
input_ids,input_lengths          INT32  [-1]
request_output_len               INT32  [-1] opt
streaming,stop                   BOOL   [1]  opt
end_id,pad_id,runtime_top_k      INT32  [1]  opt
min_tokens,min_length            INT32  [1]  opt
beam_width,num_return_sequences  INT32  [1]  opt
temperature,runtime_top_p        FP32   [1]  opt
len_penalty,repetition_penalty   FP32   [1]  opt
presence_penalty                 FP32   [1]  opt
frequency_penalty                FP32   [1]  opt
seed,random_seed                 UINT64 [1]  opt
return_log_probs                 BOOL   [1]  opt
return_context_logits            BOOL   [1]  opt
return_generation_logits         BOOL   [1]  opt
""")

TOKENS_OUTPUTS = read_table("""
output_ids,output_lengths        INT32  [-1]
""")
