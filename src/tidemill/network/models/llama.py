"""The Llama family: its config, and the function that draws its graph.

In: a checkpoint's config and its tensors by name. Out: a graph whose constants are read when
asked. Covers grouped heads, tied embeddings, biases, linear and llama3 rope scaling, and attention
windows by layer. Where the tensors come from in other formats is `llama_weights`' matter.

Source: TensorRT-LLM's LLaMAForCausalLM for names, transformers' LlamaForCausalLM for the maths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tidemill.base.dtypes import DType
from tidemill.checkpoint.attention_windows import Windows
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.ir.builder import GraphBuilder
from tidemill.ir.graph import Graph, TensorType, Value
from tidemill.network.layers.attention import AttentionShape, RopeInputs, draw_attention
from tidemill.network.layers.gated_mlp import draw_gated_mlp
from tidemill.network.layers.rotary import Rotary, draw_rotary_tables, read_scaling
from tidemill.network.layers.weights import TensorSource, Weights
from tidemill.ops.row import activation_dtype
from tidemill.ops.table import OPS


@dataclass(frozen=True)
class LlamaGraphConfig:
    """What drawing needs to know of a model. `dtype` is the element type of weight matrices."""

    dtype: DType
    vocab_size: int
    num_layers: int
    intermediate_size: int
    norm_epsilon: float
    attention: AttentionShape
    windows: Windows
    rotary: Rotary
    has_mlp_bias: bool
    is_tied: bool

    @staticmethod
    def from_checkpoint(config: CheckpointConfig) -> LlamaGraphConfig:
        """Take what concerns the graph from a checkpoint's config without unsupported settings.

        Raises: UnsupportedError for rotary scaling that this drawing does not have.
        """
        attention = AttentionShape(
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_size=config.head_size,
            rotary_dim=config.rotary_embedding_dim,
            has_bias=config.attn_bias,
        )
        scaling = read_scaling(config.rotary_scaling)
        return LlamaGraphConfig(
            dtype=config.weight_dtype,
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            intermediate_size=config.intermediate_size,
            norm_epsilon=float(config.norm_epsilon),
            attention=attention,
            windows=config.attention_windows,
            rotary=Rotary(config.rotary_embedding_dim, config.rotary_base, scaling),
            has_mlp_bias=config.mlp_bias,
            is_tied=config.tie_word_embeddings,
        )


def draw_llama(config: LlamaGraphConfig, tensors: TensorSource, max_seq_len: int) -> Graph:
    """Draw the whole model for positions 0 .. max_seq_len - 1.

    Raises: BuildError when sizes do not fit together.
    """
    pen = GraphBuilder("llama", OPS)
    weights = Weights(pen, tensors, config.dtype)
    hidden_size = config.attention.hidden_size
    tokens = pen.input("tokens", TensorType(DType.I32, ("T",)))
    positions = pen.input("positions", TensorType(DType.I32, ("T",)))
    logit_rows = pen.input("logit_rows", TensorType(DType.I32, ("L",)))
    rope = RopeInputs(positions, *draw_rotary_tables(pen, config.rotary, max_seq_len))

    table = weights.matrix("transformer.vocab_embedding.weight", config.vocab_size, hidden_size)
    h = pen.op("embedding", tokens, table, name="embedded")
    for index, window in enumerate(config.windows):
        is_felt = window is not None and window < max_seq_len
        shape = replace(config.attention, window=window or 0 if is_felt else 0)
        with pen.layer(index):
            h = _draw_layer(
                weights, replace(config, attention=shape), f"transformer.layers.{index}.", h, rope
            )
    # Rows are picked before the norm: prompts have many rows, and few of them need logits.
    last = pen.op("gather_last", h, logit_rows, name="last")
    normed = _draw_norm(weights, config, "transformer.ln_f.weight", last, "final_norm")
    head = table
    if not config.is_tied:
        head = weights.matrix("lm_head.weight", config.vocab_size, hidden_size)
    logits = pen.op("linear", normed, head, name="logits")
    return pen.finish([pen.op("sample", logits, name="next_tokens")])


def _draw_layer(
    weights: Weights, config: LlamaGraphConfig, prefix: str, h: Value, rope: RopeInputs
) -> Value:
    """Draw attention and MLP, each on a normalised copy of the residual stream."""
    pen = weights.pen
    x = _draw_norm(weights, config, prefix + "input_layernorm.weight", h, "input_norm")
    out = draw_attention(weights, prefix + "attention.", config.attention, x, rope)
    h = pen.op("add", h, out, name="h_attention")
    x = _draw_norm(weights, config, prefix + "post_layernorm.weight", h, "post_norm")
    out = draw_gated_mlp(
        weights, prefix + "mlp.", config.intermediate_size, x, has_bias=config.has_mlp_bias
    )
    return pen.op("add", h, out, name="h_mlp")


def _draw_norm(
    weights: Weights, config: LlamaGraphConfig, source: str, x: Value, name: str
) -> Value:
    weight = weights.vector(source, config.attention.hidden_size)
    dtype = activation_dtype(config.dtype).value
    return weights.pen.op(
        "rms_norm", x, weight, name=name, epsilon=config.norm_epsilon, dtype=dtype
    )
