"""The deploy verb: an engine to a Triton model repository.

One of the CLI's two doors to the Triton frontend; the import contracts name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidemill.base.errors import ConfigError
from tidemill.frontends.cli.session_flags import takes_settings
from tidemill.frontends.cli.shell import check_choice, print_json, say

STYLES = ("text", "tokens", "inflight_batcher_llm", "llmapi")
LINKS = ("copy", "hard", "symbolic")

HELP = """Write a Triton model repository for an engine.

--style text takes and gives text, with all sampling inputs and streaming; --style tokens is the
packed-token layout (input_ids, input_lengths, output_ids). --style inflight_batcher_llm writes
TensorRT-LLM's five models (preprocessing, tensorrt_llm, postprocessing, tensorrt_llm_bls and the
ensemble) under their own names, which --name begins if it is given; --style llmapi is the model of
its LLM API.

--from takes a model directory that was written for TensorRT-LLM, in the packed-token layout or any
other, and writes it so that it is served without a change; each change is printed.

\b
Examples:
  tidemill deploy --engine_dir ./engine --model_repository ./repository --name llama2_7b
  tidemill deploy --engine_dir ./engine --model_repository ./repository --name llama2_7b \\
      --style tokens
  tidemill deploy --engine_dir ./engine --model_repository ./repository \\
      --style inflight_batcher_llm
  tidemill deploy --from ./old_models/llama2_7b --model_repository ./repository
"""


@takes_settings
def deploy(
    model_repository: Annotated[
        Path, typer.Option("--model_repository", help="Repository, made if it is not there.")
    ],
    engine_dir: Annotated[
        Path | None, typer.Option("--engine_dir", help="Engine that build wrote.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A model directory of TensorRT-LLM's, engine and all."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Name that clients use; five models have their own.")
    ] = "",
    style: Annotated[
        str, typer.Option("--style", help="One of: " + ", ".join(STYLES) + ".")
    ] = "text",
    is_decoupled: Annotated[
        bool | None,
        typer.Option(
            "--decoupled/--no-decoupled",
            help="Whether answers may stream; default: yes, but for tokens no.",
        ),
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option("--max_batch_size", min=0, help="Rows of one request; default: engine's."),
    ] = None,
    exclude_input_in_output: Annotated[
        bool,
        typer.Option("--exclude_input_in_output", help="Answer without the prompt by default."),
    ] = False,
    link: Annotated[
        str, typer.Option("--link", help="Engine files: " + ", ".join(LINKS) + ".")
    ] = "copy",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a model of that name.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    *,
    settings: dict[str, str],
) -> None:
    check_choice("--style of deploy", style, STYLES)
    check_choice("--link of deploy", link, LINKS)

    if engine_dir is None or source is not None:
        shaping: dict[str, object] = {
            "--name": name,
            "--style": style != STYLES[0],
            "--decoupled": is_decoupled is not None,
            "--max_batch_size": max_batch_size is not None,
            "--exclude_input_in_output": exclude_input_in_output,
            **{f"--{flag}": True for flag in settings},
        }
        source = _check_source(engine_dir, source, [flag for flag, was in shaping.items() if was])
        _deploy_from(source, model_repository, link, replace, as_json)
        return

    from tidemill.frontends.triton.deploy import DeployRequest
    from tidemill.frontends.triton.deploy import deploy as deploy_engine

    request = DeployRequest(
        engine_dir=engine_dir,
        model_repository=model_repository,
        name=name,
        style=style,
        is_decoupled=is_decoupled,
        max_batch_size=max_batch_size,
        exclude_input_in_output=exclude_input_in_output,
        link=link,
        replace=replace,
        settings=settings,
    )
    report = deploy_engine(request)
    if as_json:
        print_json(report)
    else:
        say(f"deployed {report}")


def _check_source(engine_dir: Path | None, source: Path | None, shaping: list[str]) -> Path:
    """Return the model to take over, whose config.pbtxt says itself what `shaping` flags would.

    Raises: ConfigError when it is not the only one named, or such flags were given.
    """
    if engine_dir is not None or source is None:
        raise ConfigError(
            "deploy takes an engine or a model directory",
            where="--engine_dir, --from",
            expected="one of the two",
            got="neither" if source is None else "both",
            hint="--engine_dir is what build wrote; --from has a config.pbtxt",
        )
    if shaping:
        raise ConfigError(
            "deploy --from takes a model as its config.pbtxt has it",
            where=", ".join(shaping),
            expected="--link, --replace and --json beside --from",
            got="flags that shape a new model",
            hint="edit the config.pbtxt; serve can override how engines are run",
        )
    return source


def _deploy_from(source: Path, repository: Path, link: str, replace: bool, as_json: bool) -> None:
    from tidemill.frontends.triton.deploy_from import DeployFromRequest, deploy_from

    path = deploy_from(DeployFromRequest(source, repository, link, replace), say)
    if as_json:
        print_json({"model_dir": path})
    else:
        say(f"deployed {path}")
