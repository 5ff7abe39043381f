"""Makes the JSON of a KServe inference request safe for tritonserver 2.51.

In: the JSON part of a body. Out: the same request written anew, so that what was checked is what
is sent: no member twice, none spelled with escapes. Two requests that end the server are refused: a
shape of more elements than the body can hold, for which it takes memory at once, and a
classification of outputs, which divides by the size of a string.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

UNREADABLE = "the JSON of the inference request cannot be read: {}"
TOO_MANY = "input {} has shape {}: more elements than the body can hold"
NO_CLASSES = "classification of outputs is not served: tritonserver 2.51 dies of it"


class RefusedRequestError(Exception):
    """What a request is refused for, in words for its client."""


class _Tensor(msgspec.Struct, omit_defaults=True):
    name: str | UnsetType = UNSET
    shape: list[int] | UnsetType = UNSET
    datatype: Raw | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    data: Raw | UnsetType = UNSET

    def has_room(self, num_bytes: int) -> bool:
        """Say whether the elements of the shape can stand in a body of so many bytes."""
        if self.shape is UNSET or (self.parameters and "shared_memory_region" in self.parameters):
            return True
        # In JSON an element takes a character and a comma.
        room = num_bytes if self.data is UNSET else len(bytes(self.data)) // 2 + 1
        return math.prod(self.shape) <= room


class _Output(msgspec.Struct, omit_defaults=True):
    name: Raw | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET


class _Infer(msgspec.Struct, omit_defaults=True):
    id: Raw | UnsetType = UNSET
    parameters: Raw | UnsetType = UNSET
    inputs: list[_Tensor] | UnsetType = UNSET
    outputs: list[_Output] | UnsetType = UNSET


DECODER = msgspec.json.Decoder(_Infer)


def rewrite_infer(text: bytes, num_body_bytes: int) -> bytes:
    """Return the request's JSON written anew; the body, tensors behind it, has so many bytes.

    Raises: RefusedRequestError.
    """
    try:
        request = DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RefusedRequestError(UNREADABLE.format(error)) from error
    for tensor in request.inputs or ():
        if not tensor.has_room(num_body_bytes):
            raise RefusedRequestError(TOO_MANY.format(tensor.name, tensor.shape))
    for output in request.outputs or ():
        if output.parameters and output.parameters.get("classification", 0) != 0:
            raise RefusedRequestError(NO_CLASSES)
    return msgspec.json.encode(request)
