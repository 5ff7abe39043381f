"""The other kinds of NVIDIA's client, unmodified: asyncio over HTTP and gRPC, shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from tritonclient.utils import serialize_byte_tensor, shared_memory

from tests.triton.conftest import ADMIN_KEY, Served
from tests.triton.spelled_repository import STREAMING, UNARY
from tests.triton.test_tritonclient import inputs_of, on, text_arrays, text_of

ADMIN = {"admin-key": ADMIN_KEY}
REGION_BYTES = 4096


def test_http_aio_client_runs_requests_side_by_side(served: Served) -> None:
    async def ask_all() -> list[str]:
        async with http_aio.InferenceServerClient(served.server.endpoints.http_address) as client:
            prompts = [f"{number} >answer {number}" for number in range(6)]
            inputs = [
                inputs_of(http_aio, text_arrays(prompt, exclude_input_in_output=on()))
                for prompt in prompts
            ]
            results = await asyncio.gather(*(client.infer(UNARY, each) for each in inputs))
            return [text_of(result) for result in results]

    assert asyncio.run(ask_all()) == [f"answer {number}" for number in range(6)]


def test_grpc_aio_client_answers_whole_and_streams(served: Served) -> None:
    async def ask() -> tuple[str, list[str]]:
        async with grpc_aio.InferenceServerClient(served.server.endpoints.grpc_url) as client:
            arrays = text_arrays(">ab \U0001f40c", exclude_input_in_output=on())
            whole = await client.infer(UNARY, inputs_of(grpc_aio, arrays))

            async def requests() -> AsyncIterator[dict[str, Any]]:
                streaming = text_arrays(">ab \U0001f40c", stream=on())
                yield {"model_name": STREAMING, "inputs": inputs_of(grpc_aio, streaming)}

            pieces = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                pieces.append(text_of(result))
            return text_of(whole), pieces

    whole, pieces = asyncio.run(ask())
    assert whole == "".join(pieces) == "ab \U0001f40c" and len(pieces) > 1


@pytest.fixture
def region(served: Served) -> Iterator[Any]:
    """A region of shared memory that the server knows."""
    name, key = "tidemill_test", "/tidemill_test"
    handle = shared_memory.create_shared_memory_region(name, key, REGION_BYTES)
    with http_client.InferenceServerClient(served.server.endpoints.http_address) as client:
        client.register_system_shared_memory(name, key, REGION_BYTES, headers=ADMIN)
        yield handle
        client.unregister_system_shared_memory(name, headers=ADMIN)
    shared_memory.destroy_shared_memory_region(handle)


def test_prompt_and_answer_travel_through_system_shared_memory(served: Served, region: Any) -> None:
    prompt = np.array([[b">through the wall"]], dtype=np.object_)
    serialized = serialize_byte_tensor(prompt)
    shared_memory.set_shared_memory_region(region, [serialized])
    text_input = http_client.InferInput("text_input", [1, 1], "BYTES")
    text_input.set_shared_memory("tidemill_test", len(serialized.item()))
    rest = {**text_arrays("", exclude_input_in_output=on())}
    del rest["text_input"]
    output = http_client.InferRequestedOutput("text_output")
    output.set_shared_memory("tidemill_test", REGION_BYTES // 2, offset=REGION_BYTES // 2)
    with http_client.InferenceServerClient(served.server.endpoints.http_address) as client:
        inputs = [text_input, *inputs_of(http_client, rest)]
        result = client.infer(UNARY, inputs, outputs=[output])
    found = result.get_output("text_output")
    assert "data" not in found  # nothing of it came over the wire
    texts = shared_memory.get_contents_as_numpy(
        region, np.object_, found["shape"], offset=REGION_BYTES // 2
    )
    assert texts[0] == b"through the wall"
