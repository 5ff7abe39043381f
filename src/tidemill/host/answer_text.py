"""One request's answer as text: detokenised, cut at stop strings, collected or streamed.

In come the runtime's token updates, out go `Update`s for the client. The texts of a streamed
answer joined equal the text of the same answer not streamed. Knows nothing of scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from tidemill.base.errors import InvalidRequestError
from tidemill.host.messages import GenerateRequest, Update
from tidemill.host.observed_output import ObservedOutput
from tidemill.host.stop_word_hold import StopWordHold
from tidemill.runtime.observation import Observation
from tidemill.runtime.request import NOT_FINISHED, FinishReason, TokenUpdate
from tidemill.text.detokenizer import IncrementalDetokenizer
from tidemill.text.stop_strings import StopStringMatcher
from tidemill.text.tokenizer import Tokenizer


class AnswerText:
    """Turns token updates into client updates.

    `echo` is the prompt's text when the answer is to begin with it. Without a tokenizer there is
    no text, only tokens.
    """

    def __init__(
        self,
        request: GenerateRequest,
        tokenizer: Tokenizer | None,
        num_input_tokens: int,
        echo: str,
    ) -> None:
        self.request_id = request.request_id
        self._is_streaming = request.streaming
        self._tells_metrics = request.return_perf_metrics
        self._tells_text = request.detokenize
        self._num_input_tokens = num_input_tokens
        self._num_output_tokens = 0
        self._matcher = (
            StopStringMatcher(request.stop, request.include_stop_in_output)
            if request.stop
            else None
        )
        self._hold = (
            StopWordHold(request.stop_token_words, request.include_stop_in_output)
            if request.stop_token_words
            else None
        )
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, request.skip_special_tokens) if tokenizer else None
        )
        self._observed: ObservedOutput | None = None
        self._token_ids: list[int] = []
        self._untold: list[int] = []
        self._text = [echo] if echo and request.detokenize else []
        self._stop_reason: str | int | None = None

    def push(self, update: TokenUpdate) -> Update | None:
        """Take what a step gave; return what the client is to know now, if anything.

        An update with finish reason stop_words ends the answer before the runtime does.
        """
        tokens, reason = update.new_tokens, update.finish_reason
        if update.observations:
            failure = self._observe(update.observations)
            if failure:
                return Update.failed(self.request_id, _processor_error(failure))
        self._num_output_tokens += len(tokens)
        self._token_ids.extend(tokens)
        self._untold.extend(tokens if self._hold is None else self._hold.push(tokens, reason))
        # Text that nobody waits for and nothing is looked for in is made at the end, all at once.
        if reason is NOT_FINISHED and not self._is_streaming and self._matcher is None:
            return None
        self._take_text(is_last=reason is not NOT_FINISHED)
        if self._hold is not None and self._stop_reason is None:
            self._stop_reason = self._hold.stop_reason
        if self._stop_reason is not None:
            reason = FinishReason.STOP_WORDS
        if reason is NOT_FINISHED:
            return self._piece(update) if self._is_streaming else None
        last = self._drain(reason.name.lower())
        last.metrics = update.metrics
        return last

    def _observe(self, observations: Sequence[Observation]) -> str:
        """Take in what the step showed; returns how the request's own code failed, if it did."""
        if self._observed is None:
            self._observed = ObservedOutput()
        for observation in observations:
            if observation.error:
                return observation.error
            self._observed.add(observation)
        return ""

    def _piece(self, update: TokenUpdate) -> Update:
        piece = self._drain(None)
        if self._tells_metrics:
            piece.metrics = copy(update.metrics)  # the runtime's own goes on changing
        return piece

    def _take_text(self, is_last: bool) -> None:
        tokens, self._untold = self._untold, []
        if self._detokenizer is None:
            return
        text = self._detokenizer.push(tokens)
        if is_last:
            text += self._detokenizer.finish()
        if self._matcher is not None:
            text, self._stop_reason = self._matcher.push(text)
            if is_last and self._stop_reason is None:
                text += self._matcher.finish()
        if text and self._tells_text:
            self._text.append(text)

    def _drain(self, finish_reason: str | None) -> Update:
        token_ids, self._token_ids = self._token_ids, []
        text, self._text = "".join(self._text), []
        update = Update(
            self.request_id,
            token_ids,
            text,
            finish_reason,
            self._num_input_tokens,
            self._num_output_tokens,
            self._stop_reason,
        )
        if self._observed is not None:
            self._observed.drain_into(update)
        return update


def _processor_error(failure: str) -> InvalidRequestError:
    return InvalidRequestError(
        "the request's guide or logits processor failed",
        where="guided decoding or logits_processor",
        expected="a grammar that can be followed, a function that changes the logits in place",
        got=failure,
        hint="mend the function or the grammar; other requests and the engine are untouched",
    )
