"""The flags of convert_checkpoint.py that the convert verb does not act on, and what it says.

Data only. Whatever would change the written tensors is refused, never ignored. Source:
TensorRT-LLM examples/llama/convert_checkpoint.py, 0.17 to 1.0.
"""

from __future__ import annotations

from tidemill.frontends.cli.foreign_flags import ForeignFlag, Kind

TOOL = "convert"

_META = "Meta's original weights; convert them to a Hugging Face directory first"
_FROM_MODEL = "the model directory's config.json says it"
_SMOOTH = "SmoothQuant"
_FP8 = "floating-point weights of 8 and 4 bits when converted; build --quant has fp8"
_WEIGHT_ONLY = "weights that were calibrated or grouped when converted; build --quant has groups"
_EXPERTS = "mixtures of experts"
_STREAMED = "tensors are always converted one by one"
_NO_CALIBRATION = "nothing is calibrated"


def _shape(name: str, kind: Kind = Kind.INTEGER) -> ForeignFlag:
    """Return the row of a flag that describes Meta's weights, which carry no config of shape."""
    return ForeignFlag(name, kind, _FROM_MODEL)


TABLE = (
    ForeignFlag("--meta_ckpt_dir", Kind.TEXT, _META, is_refused=True),
    ForeignFlag("--cp_size", Kind.INTEGER, "context parallelism", is_refused=True, neutral=("1",)),
    ForeignFlag("--moe_tp_size", Kind.INTEGER, _EXPERTS, is_refused=True, neutral=("-1", "1")),
    ForeignFlag("--moe_ep_size", Kind.INTEGER, _EXPERTS, is_refused=True, neutral=("-1", "1")),
    ForeignFlag("--load_by_shard", Kind.SWITCH, _STREAMED),
    ForeignFlag("--load_model_on_cpu", Kind.SWITCH, "conversion never uses a GPU"),
    ForeignFlag("--disable_weight_only_quant_plugin", Kind.SWITCH, "layouts are always plain"),
    ForeignFlag("--per_group", Kind.SWITCH, _WEIGHT_ONLY, is_refused=True),
    ForeignFlag("--group_size", Kind.INTEGER, _WEIGHT_ONLY, is_refused=True),
    ForeignFlag("--quant_ckpt_path", Kind.TEXT, _WEIGHT_ONLY, is_refused=True),
    ForeignFlag("--smoothquant", Kind.NUMBER, _SMOOTH, is_refused=True, aliases=("-sq",)),
    ForeignFlag("--per_channel", Kind.SWITCH, _SMOOTH, is_refused=True),
    ForeignFlag("--per_token", Kind.SWITCH, _SMOOTH, is_refused=True),
    ForeignFlag("--calib_dataset", Kind.TEXT, _NO_CALIBRATION),
    ForeignFlag("--calib_size", Kind.INTEGER, _NO_CALIBRATION),
    ForeignFlag("--calib_max_seq_length", Kind.INTEGER, _NO_CALIBRATION),
    ForeignFlag("--use_fp8", Kind.SWITCH, _FP8, is_refused=True),
    ForeignFlag("--use_nvfp4", Kind.SWITCH, _FP8, is_refused=True),
    ForeignFlag("--use_fp8_rowwise", Kind.SWITCH, _FP8, is_refused=True),
    ForeignFlag("--use_meta_fp8_rowwise_recipe", Kind.SWITCH, _FP8, is_refused=True),
    ForeignFlag("--use_qserve", Kind.SWITCH, _WEIGHT_ONLY, is_refused=True),
    ForeignFlag(
        "--use_embedding_sharing",
        Kind.SWITCH,
        "the head shares the embedding exactly where the model ties them",
    ),
    ForeignFlag(
        "--remove_duplicated_kv_heads", Kind.SWITCH, "merging of KV heads", is_refused=True
    ),
    _shape("--rotary_base", Kind.NUMBER),
    _shape("--hidden_act", Kind.TEXT),
    _shape("--rms_norm_eps", Kind.NUMBER),
    _shape("--vocab_size"),
    _shape("--n_positions"),
    _shape("--n_layer"),
    _shape("--n_head"),
    _shape("--n_kv_head"),
    _shape("--n_embd"),
    _shape("--inter_size"),
    _shape("--multiple_of"),
    _shape("--ffn_dim_multiplier", Kind.NUMBER),
    ForeignFlag("--moe_num_experts", Kind.INTEGER, _EXPERTS, is_refused=True, neutral=("0",)),
    ForeignFlag("--moe_top_k", Kind.INTEGER, _EXPERTS, is_refused=True, neutral=("0",)),
    ForeignFlag("--moe_renorm_mode", Kind.INTEGER, "the model has no experts"),
    ForeignFlag(
        "--log_level",
        ("internal_error", "error", "warning", "info", "verbose", "debug", "trace"),
        "TIDEMILL_DEBUG=0..5 chooses what is shown",
    ),
)
