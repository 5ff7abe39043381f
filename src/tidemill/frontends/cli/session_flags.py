"""The flags that say how an engine is run: one table, shared by the verbs that run or deploy one.

A verb that `takes_settings` has all of them, and is given what the user chose as text by the name
of the parameter of config.pbtxt; the library reads it. Spellings of TensorRT-LLM's run.py and
trtllm-bench are accepted, too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.frontends.cli.shell import say

if TYPE_CHECKING:
    from tidemill.host.config import SessionConfig


@dataclass(frozen=True)
class SessionFlag:
    """One flag: the parameter it sets, the type of its value, its help, other spellings."""

    name: str
    type: type
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def parameter(self) -> inspect.Parameter:
        """The flag as a parameter of a verb; None is what nobody chose."""
        names = [f"--{name}" for name in (self.name, *self.aliases)]
        if self.type is bool:
            names = [f"{name}/--no_{name.removeprefix('--')}" for name in names]
        option = typer.Option(*names, help=self.help, show_default=False)
        annotation: Any = Annotated[(self.type | None, option)]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )


FLAGS = (
    SessionFlag(
        "batch_scheduler_policy",
        str,
        "guaranteed_no_evict, max_utilization or static_batch.",
        ("scheduler_policy",),
    ),
    SessionFlag(
        "enable_chunked_context",
        bool,
        "Cut long prompts over several steps; default: yes.",
        ("enable_chunked_prefill",),
    ),
    SessionFlag("context_chunking_policy", str, "first_come_first_served or equal_progress."),
    SessionFlag("max_step_ms", float, "How long prompts may make a step for others; 0: no bound."),
    SessionFlag("max_queue_size", int, "Most requests that wait; 0: no bound."),
    SessionFlag(
        "enable_kv_cache_reuse",
        bool,
        "Reuse cached beginnings of prompts; default: yes.",
        ("kv_cache_enable_block_reuse",),
    ),
    SessionFlag("enable_partial_reuse", bool, "Reuse part of a block, too; default: yes."),
    SessionFlag("max_tokens_in_paged_kv_cache", int, "Size of the KV cache.", ("kv_cache_tokens",)),
    SessionFlag(
        "kv_cache_free_gpu_mem_fraction",
        float,
        "Share of the free memory that the KV cache may take.",
        ("kv_cache_free_gpu_memory_fraction", "kv_cache_fraction"),
    ),
    SessionFlag(
        "kv_cache_host_memory_bytes",
        int,
        "Memory for cached blocks that are evicted; default: none.",
        ("host_cache_size",),
    ),
    SessionFlag(
        "secondary_offload_min_priority",
        int,
        "Retention priority from which evicted blocks are worth it; default: 30.",
    ),
    SessionFlag("max_draft_len", int, "Tokens guessed a step by n-gram lookup; default: none."),
    SessionFlag("max_matching_ngram_size", int, "Longest n-gram that is looked up."),
    SessionFlag("num_threads", int, "Default: the physical cores."),
    SessionFlag("pin_threads", bool, "Keep each thread on a core; default: if they take all."),
    SessionFlag("iter_stats_max_iterations", int, "Iterations whose statistics are kept."),
    SessionFlag("event_buffer_max_size", int, "Events of requests' lives that are kept."),
)


def takes_settings(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb every flag of the table; it takes what was chosen as `settings`.

    The verb is called by name, by the command line and by other verbs.
    """
    signature = inspect.signature(verb, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name != "settings"]
    parameters = [*own, *(flag.parameter for flag in FLAGS)]

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        texts = {flag.name: values.pop(flag.name, None) for flag in FLAGS}
        chosen = {name: str(value).lower() for name, value in texts.items() if value is not None}
        verb(**values, settings=chosen)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__
    return run


def read_session(settings: Mapping[str, str]) -> SessionConfig:
    """Read what was chosen, and say on stderr how the engine will be run and who chose it.

    Raises: ConfigError naming a value that cannot be accepted.
    """
    from tidemill.host.runtime_settings import read_session_settings, tell_settings

    session = read_session_settings(settings).in_own_process
    say(f"runtime: {tell_settings(session, settings)}")
    return session
