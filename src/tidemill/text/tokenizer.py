"""Tokenizer: text to token ids and back, with a checkpoint's special tokens and chat template.

In: a directory with tokenizer.json and, where present, tokenizer_config.json,
special_tokens_map.json, generation_config.json and chat_template.jinja. Out: ids and text.
There are two ways back to text. `decode` is for ids that are a whole text: it is Hugging Face's.
`decode_continuation` is for generated ids, which follow a prompt: it keeps the leading space that
Llama's decoder strips from a text's first word. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.base.errors import CheckpointError, InvalidRequestError
from tidemill.text.token_bytes import TokenBytes
from tidemill.text.tokenizer_config import TokenizerConfig, read_tokenizer_config

if TYPE_CHECKING:
    import tokenizers

    from tidemill.text.chat_template import ChatTemplate


class Tokenizer:
    """A loaded tokenizer; it never changes, so threads may share it."""

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        self._backend = backend
        self._config = config
        # Batches are ours to pad and cut: a tokenizer.json may ask for either.
        backend.no_padding()
        backend.no_truncation()
        self._token_bytes = TokenBytes(backend)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(place for place, token in added.items() if token.special)
        self._chat_template: ChatTemplate | None = None
        self.vocab_size: int = backend.get_vocab_size()
        self.bos_token_id = self._special_id("bos_token", config.generation_bos_token_id)
        self.pad_token_id = self._special_id("pad_token", config.generation_pad_token_id)
        own_eos = self._special_id("eos_token", None)
        eos_ids = (() if own_eos is None else (own_eos,)) + config.generation_eos_token_ids
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(eos_ids))

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a checkpoint or engine directory.

        Raises: CheckpointError if tokenizer.json or a file beside it is missing or broken;
        UnsupportedError if its decoder cannot be streamed.
        """
        import tokenizers  # costs a process without text 6 ms

        directory = Path(path)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(
                "the tokenizer is missing",
                where=str(file),
                expected="a tokenizer.json beside the model",
                got="no such file",
                hint="copy the model's tokenizer files there, or convert the model again",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        # The Rust library raises bare Exception.
        except Exception as error:
            raise CheckpointError(
                "the tokenizer cannot be read",
                where=str(file),
                expected="a tokenizer.json as Hugging Face's tokenizers writes it",
                got=str(error),
                hint="fetch the file again, or convert the model again",
            ) from error
        return cls(backend, read_tokenizer_config(directory))

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end token, or the first that generation_config.json names."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

    def token_id(self, token: str) -> int | None:
        """Look one token up by its text in the vocabulary."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids; special tokens written in the text are recognised.

        Which are added, tokenizer.json's post-processor decides alone, as in transformers. A chat
        template writes its own: encode its text with add_special_tokens off.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn the ids of a whole text back into it."""
        known = [token_id for token_id in token_ids if token_id >= 0]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def decode_continuation(
        self, token_ids: Iterable[int], skip_special_tokens: bool = True
    ) -> str:
        """Turn generated ids into the text that follows a prompt.

        It differs from `decode` in two things, both only with Llama's kind of decoder: a leading
        space is kept; and in a malformed run of byte tokens only the malformed bytes become
        U+FFFD, so that a character never depends on what follows it.
        """
        return self.token_ids_to_bytes(token_ids, skip_special_tokens).decode("utf-8", "replace")

    def token_ids_to_bytes(
        self, token_ids: Iterable[int], skip_special_tokens: bool = True
    ) -> bytes:
        """Join the bytes that the ids add to a text; an id without a token adds none."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        found = self._token_bytes
        return b"".join([found[token_id] for token_id in token_ids if token_id not in skipped])

    def to_json(self) -> str:
        """Return the tokenizer as the text of a tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Write a conversation as the prompt that the model was trained on.

        `variables` are the template's own switches, such as enable_thinking.
        Raises: InvalidRequestError if there is no template or it refuses the messages;
        CheckpointError if the template itself is broken.
        """
        if self._chat_template is None:
            self._chat_template = self._compile_chat_template()
        return self._chat_template.render(
            messages,
            {
                **self._config.special_tokens,
                "tools": list(tools) if tools is not None else None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **(variables or {}),
            },
        )

    def _compile_chat_template(self) -> ChatTemplate:
        from tidemill.text.chat_template import ChatTemplate  # costs 50 ms of a server's start

        if self._config.chat_template is None:
            raise InvalidRequestError(
                "this model cannot chat",
                where="tokenizer_config.json, chat_template",
                expected="a chat template beside the model",
                got="none",
                hint="send plain text, or use the model's instruction-tuned variant",
            )
        return ChatTemplate(self._config.chat_template)

    def _special_id(self, name: str, otherwise: int | None) -> int | None:
        token = self._config.special_tokens.get(name)
        found = None if token is None else self.token_id(token)
        return otherwise if found is None else found
