"""The forms in which prompts may be given, and what makes one a list of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

from tidemill.api.generation_result import AskedPrompt
from tidemill.api.sampling_params import SamplingParams
from tidemill.base.errors import InvalidRequestError, SessionError
from tidemill.host.request_reader import encode_prompt
from tidemill.host.session import Session
from tidemill.text.tokenizer import Tokenizer


class _Tokens(TypedDict):
    prompt_token_ids: list[int]


class TokensPrompt(_Tokens, total=False):
    """A prompt in tokens; `prompt` is its text, if it is to be echoed."""

    prompt: str


Prompt = str | list[int] | TokensPrompt
Prompts = list[Prompt] | list[str] | list[list[int]] | list[TokensPrompt] | tuple[Prompt, ...]


def is_one(inputs: Prompt | Prompts) -> bool:
    """Whether this is one prompt: text, tokens or a dictionary, and no list of such."""
    if isinstance(inputs, (str, dict)):
        return True
    return bool(inputs) and isinstance(next(iter(inputs)), int)


def as_list(inputs: Prompt | Prompts) -> list[Prompt]:
    """Return all prompts, one too, as a list."""
    return [cast(Prompt, inputs)] if is_one(inputs) else list(cast(Sequence[Prompt], inputs))


def one_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> Sequence[SamplingParams]:
    """Return as many parameters as there are prompts.

    Raises: InvalidRequestError when another number was given.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise InvalidRequestError(
            "prompts and sampling parameters do not match",
            where="generate",
            expected=f"{num_prompts} sampling parameters, or one for all",
            got=f"{len(params)}",
            hint="give a list as long as the prompts, or a single SamplingParams",
        )
    return params


def parts(asked: AskedPrompt) -> tuple[str, str | None, list[int]]:
    """Return what a request is made from; the echo of a cut prompt is that of its tokens."""
    text = None if asked.is_cut else asked.prompt
    return asked.request_id, text, asked.prompt_token_ids


def read_prompt(
    number: int, prompt: Prompt, params: SamplingParams, session: Session
) -> AskedPrompt:
    """Bring a prompt into both forms, as far as they are known.

    Raises: InvalidRequestError for text that is none, SessionError where text needs a tokenizer.
    """
    text: str | None = None
    if isinstance(prompt, dict):
        text, tokens = prompt.get("prompt"), list(prompt["prompt_token_ids"])
    elif isinstance(prompt, str):
        text, tokens = (
            prompt,
            encode_prompt(tokenizer_of(session), prompt, params.add_special_tokens),
        )
    else:
        tokens = list(prompt)
    kept = tokens[-(params.truncate_prompt_tokens or 0) :]
    return AskedPrompt(number, text, kept, is_cut=len(kept) < len(tokens))


def tokenizer_of(session: Session) -> Tokenizer:
    """Return a session's tokenizer.

    Raises: SessionError when the engine has none.
    """
    if session.tokenizer is None:
        raise SessionError(
            "the engine has no tokenizer",
            where="a prompt or conversation in text",
            expected="tokenizer.json in the engine directory",
            got="no such file",
            hint="give prompts as tokens, or copy the model's tokenizer files there",
        )
    return session.tokenizer
