"""Adapts one model directory that a user wrote for TensorRT-LLM, in a copy.

In: config.pbtxt with `platform: "tensorrt_llm"` or with upstream's Python code, and version
directories, a model.yaml in them where it is the llmapi model. Out: the same served by our models
in the Python backend, on the device that is there, with ranks for instances; every change is said.
protobuf reads and writes the config, so nothing else that the user wrote is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tidemill.base.errors import ServerError
from tidemill.frontends.triton.config_pbtxt import TensorConfig
from tidemill.frontends.triton.deploy_layouts import model_py
from tidemill.frontends.triton.known_models import Outline, find_module
from tidemill.frontends.triton.model_yaml import apply_model_yaml
from tidemill.frontends.triton.repository import CONFIG_NAME, bring
from tidemill.frontends.triton.staged_repository import is_foreign_code
from tidemill.frontends.triton.tensors import TOKENS_INPUTS, TOKENS_OUTPUTS

Say = Callable[[str], None]

LLMAPI_MODULE = "llmapi_model"
NEEDED = {"input": ("input_ids", "input_lengths"), "output": ("output_ids",)}


def stage_model(model: Path, staged: Path, say: Say, link: str = "symbolic") -> None:
    """Write a model's working copy: its config adapted, all other files linked or copied.

    Raises: ServerError when the config cannot be read or has other tensors, ConfigError when its
    model.yaml cannot be read.
    """
    config = read_user_config(model / CONFIG_NAME)
    module = find_module(outline_of(config))
    changes = adapt_config(config, model) if config.platform else []
    if module == LLMAPI_MODULE:
        changes += apply_model_yaml(config, model)
    for change in changes:
        say(f"{model.name}: {change}")
    staged.mkdir(exist_ok=True)
    (staged / CONFIG_NAME).write_text(text_format.MessageToString(config), encoding="utf-8")
    for path in sorted(model.iterdir()):
        if not (path.is_dir() and path.name.isdecimal()):
            if path.name != CONFIG_NAME:
                bring(path, staged / path.name, link)
        elif _stage_version(path, staged / path.name, module, link):
            say(f"{model.name}: {path.name}/model.py -> {module} of tidemill")


def outline_of(config: Any) -> Outline:
    """Return what of a parsed config tells its kind."""
    return Outline(
        name=config.name,
        inputs={tensor.name for tensor in config.input},
        outputs={tensor.name for tensor in config.output},
        has_batch=config.max_batch_size > 0,
        parameters=set(config.parameters),
    )


def read_user_config(path: Path) -> Any:
    """Parse a config.pbtxt with protobuf's own parser.

    Raises: ServerError naming the line and column of the fault.
    """
    config = model_config_pb2.ModelConfig()
    try:
        return text_format.Parse(path.read_text("utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise ServerError(
            "a config.pbtxt cannot be read",
            where=str(path),
            expected="a ModelConfig in protobuf's text format",
            got=str(error),
            hint="the place is line:column",
        ) from error


def adapt_config(config: Any, model: Path) -> list[str]:
    """Change a parsed config in place so that it can be served; return what was changed.

    Raises: ServerError when its tensors are not the packed-token ones.
    """
    if find_module(outline_of(config)) in (None, "tokens_model"):
        _check_tensors(config, model)
    changes = [f'platform "{config.platform}" -> backend "python"']
    config.platform, config.backend = "", "python"
    kind_name = model_config_pb2.ModelInstanceGroup.Kind.Name
    groups = [f"{group.count} x {kind_name(group.kind)}" for group in config.instance_group]
    if groups != ["1 x KIND_CPU"]:
        del config.instance_group[:]
        config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
        was = ", ".join(groups) or "unset"
        changes.append(f"instance_group {was} -> 1 x KIND_CPU (the engine has its own ranks)")
    if config.HasField("dynamic_batching"):
        config.ClearField("dynamic_batching")
        changes.append("dynamic_batching removed: the engine batches in flight")
    if find_module(outline_of(config)) == "tokens_model":
        added = _declare(config.input, TOKENS_INPUTS) + _declare(config.output, TOKENS_OUTPUTS)
        if added:
            changes.append("optional tensors declared: " + ", ".join(added))
    return changes


def _check_tensors(config: Any, model: Path) -> None:
    faults = [
        f"{kind} {name}"
        for kind, names in NEEDED.items()
        for name in names
        if name not in {tensor.name for tensor in getattr(config, kind)}
    ]
    if config.max_batch_size != 0:
        faults.append(f"max_batch_size 0, not {config.max_batch_size}")
    if faults:
        raise ServerError(
            "this layout of a tensorrt_llm model cannot be served yet",
            where=str(model / CONFIG_NAME),
            expected="packed tokens: input_ids, input_lengths -> output_ids, max_batch_size 0",
            got="missing: " + ", ".join(faults),
            hint="tidemill deploy writes a layout that works",
        )


def _declare(tensors: Any, wanted: tuple[TensorConfig, ...]) -> list[str]:
    """Add the tensors that are not declared, so that clients may use them; return their names."""
    declared = {tensor.name for tensor in tensors}
    added = []
    for tensor in wanted:
        if tensor.name not in declared:
            new = tensors.add(
                name=tensor.name,
                data_type=model_config_pb2.DataType.Value(tensor.data_type.value),
                dims=tensor.dims,
            )
            if tensor.is_optional:
                new.optional = True
            added.append(tensor.name)
    return added


def _stage_version(version: Path, staged: Path, module: str | None, link: str) -> bool:
    """Bring a version's files; say whether ours stands in for a model.py that upstream wrote.

    A model.py of the user's own stays, a missing one is written.
    """
    staged.mkdir()
    is_ours = module is not None and is_foreign_code(version / "model.py")
    for path in version.iterdir():
        if not (is_ours and path.name == "model.py"):
            bring(path, staged / path.name, link)
    if module is not None and is_ours:
        (staged / "model.py").write_text(model_py(module), encoding="utf-8")
    return is_ours and (version / "model.py").exists()
