"""The architectures we know: a row each, from a name to its weights and its drawing.

The next architecture is one file under `models` and one row here. Asked by the name in a Hugging
Face or checkpoint config, or by the name in a GGUF file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.base.errors import UnsupportedError
from tidemill.checkpoint.config import CheckpointConfig
from tidemill.checkpoint.weight_map import WeightMap
from tidemill.ir.graph import Graph
from tidemill.network.layers.weights import TensorSource
from tidemill.network.models import llama_weights
from tidemill.network.models.llama import LlamaGraphConfig, draw_llama

Draw = Callable[[CheckpointConfig, TensorSource, int], Graph]


@dataclass(frozen=True)
class ModelDescription:
    """What converting and building need to know of one architecture.

    `drawing` takes a checked config, its tensors, and the longest sequence to prepare for.
    """

    architecture: str
    gguf_name: str
    hf_map: WeightMap
    gguf_map: WeightMap
    unsupported_settings: Callable[[CheckpointConfig, Mapping[str, Any]], list[str]]
    drawing: Draw

    def check(self, config: CheckpointConfig, hf_values: Mapping[str, Any], where: str) -> None:
        """Refuse settings outside of what this version can do.

        Raises: UnsupportedError listing all of them.
        """
        faults = self.unsupported_settings(config, hf_values)
        if faults:
            raise UnsupportedError(
                f"{self.architecture} with settings that are not supported",
                where=where,
                expected="a model without them",
                got="; ".join(faults),
                hint="README.md lists what is supported; another model of the family may be",
            )

    def draw(self, config: CheckpointConfig, tensors: TensorSource, max_seq_len: int) -> Graph:
        """Draw the graph of a checkpoint for sequences of at most `max_seq_len` tokens.

        Raises: UnsupportedError listing all settings outside of what this version can do.
        """
        self.check(config, {}, "config.json of the checkpoint")
        return self.drawing(config, tensors, max_seq_len)


def _draw_llama(config: CheckpointConfig, tensors: TensorSource, max_seq_len: int) -> Graph:
    return draw_llama(LlamaGraphConfig.from_checkpoint(config), tensors, max_seq_len)


def _llama_like(architecture: str, gguf_name: str) -> ModelDescription:
    return ModelDescription(
        architecture,
        gguf_name,
        llama_weights.HF_MAP,
        llama_weights.GGUF_MAP,
        llama_weights.unsupported_settings,
        _draw_llama,
    )


ARCHITECTURES: dict[str, ModelDescription] = {
    "LlamaForCausalLM": _llama_like("LlamaForCausalLM", "llama"),
    "MistralForCausalLM": _llama_like("MistralForCausalLM", ""),
    # Mistral with windows in some layers only; TensorRT-LLM knows both by one name.
    "MinistralForCausalLM": _llama_like("MistralForCausalLM", ""),
}
_GGUF_NAME_TO_ARCHITECTURE = {
    model.gguf_name: model for model in ARCHITECTURES.values() if model.gguf_name
}


def find_architecture(name: str, where: str) -> ModelDescription:
    """Return the description of an architecture.

    Raises: UnsupportedError naming the ones we know.
    """
    return _find(ARCHITECTURES, name, where)


def find_gguf_architecture(name: str, where: str) -> ModelDescription:
    """Return the description of the architecture that a GGUF file names.

    Raises: UnsupportedError naming the ones we know.
    """
    return _find(_GGUF_NAME_TO_ARCHITECTURE, name, where)


def _find(table: Mapping[str, ModelDescription], name: str, where: str) -> ModelDescription:
    if name not in table:
        raise UnsupportedError(
            "unknown architecture",
            where=where,
            expected="one of " + ", ".join(table),
            got=name or "none",
            hint="a model of the same structure under another name may work: change the name in "
            "config.json",
        )
    return table[name]
