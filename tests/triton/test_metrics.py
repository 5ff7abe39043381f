"""Metrics on Triton's own port, read as Prometheus reads them, and judged by what was asked."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.triton.conftest import Served
from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call
from tests.triton.serve_process import wait_for
from tests.triton.spelled_repository import STREAMING, UNARY
from tidemill.frontends.triton import metric_table as table

Samples = Mapping[tuple[str, str, str], float]

# TensorRT-LLM's table of labels (its Triton backend, both runtimes), written out here again.
UPSTREAM = {
    "nv_trt_llm_request_metrics": "request_type=active,max,scheduled,context,waiting",
    "nv_trt_llm_runtime_memory_metrics": "memory_type=cpu,gpu,pinned",
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type="
    "max,free,used,tokens_per,reused,fraction",
    "nv_trt_llm_inflight_batcher_metrics": "inflight_batcher_specific_metric="
    "total_context_tokens,generation_requests,micro_batch_id,paused_requests",
    "nv_trt_llm_general_metrics": "general_type=timestamp,iteration_counter",
    "nv_trt_llm_disaggregated_serving_metrics": "disaggregated_serving_type="
    "kv_cache_transfer_ms,request_count",
}


def scrape(served: Served) -> Samples:
    """Return every sample of ours as (name, model, the label that is neither model nor version)."""
    try:
        with urllib.request.urlopen(served.server.endpoints.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:  # Triton opens this port last, a moment after it is ready
        return {}
    samples: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            model, _ = labels.pop("model", ""), labels.pop("version", "")
            labels.pop("response_metric_type", "")
            # The parser, not Prometheus, appends this to counters without it.
            name = sample.name if sample.name in text else sample.name.removesuffix("_total")
            samples[name, model, ",".join(labels.values())] = sample.value
    return samples


def rises(served: Served, key: tuple[str, str, str], to: float) -> Callable[[], bool]:
    return lambda: scrape(served).get(key, 0.0) >= to


def settled(served: Served) -> Samples:
    """Return the samples once what earlier tests asked for has been published, too."""
    latest: list[Samples] = [scrape(served)]

    def stands_still() -> bool:
        time.sleep(2.5)  # two rounds of an idle model and more
        latest.append(scrape(served))
        key = "tidemill_requests_total"
        one, other = ({k: v for k, v in each.items() if k[0] == key} for each in latest[-2:])
        return one == other

    wait_for(stands_still, "requests of earlier tests")
    return latest[-1]


def test_every_family_of_tensorrt_llm_is_there_with_its_labels(served: Served) -> None:
    wait_for(lambda: scrape(served).get(("tidemill_engine_up", "sample", "")) == 1.0, "metrics")
    samples = scrape(served)
    for name, labels in UPSTREAM.items():
        _, _, values = labels.partition("=")
        for value in values.split(","):
            assert (name, "sample", value) in samples, (name, value)
    for name in ("nv_llm_input_token_len", "nv_llm_output_token_len"):
        for bound in ("10", "50", "100", "500", "1000", "+Inf"):
            assert (f"{name}_bucket", "sample", bound) in samples, (name, bound, sorted(samples))


def test_every_family_of_the_table_is_exported_under_the_name_it_has_there(served: Served) -> None:
    wait_for(rises(served, ("tidemill_engine_up", "sample", ""), 1), "metrics")
    names = {name for name, model, _ in scrape(served) if model == "sample"}
    for family in table.FAMILIES:
        suffix = "_count" if family.kind == table.HISTOGRAM else ""
        assert family.name + suffix in names


@pytest.mark.parametrize("model", [STREAMING, UNARY])
def test_a_request_moves_the_metrics_of_its_model_and_of_no_other(
    served: Served, model: str
) -> None:
    url = f"{served.server.endpoints.http_url}/v2/models/{model}/generate"
    ended = ("tidemill_requests_total", model, "end_id")
    wait_for(rises(served, ("tidemill_engine_up", model, ""), 1), "metrics")
    before = settled(served)
    prompt, answer = "count >12345", "12345"
    for _ in range(3):
        assert call(url, {"text_input": prompt, "max_tokens": 9})[0] == 200
    wait_for(rises(served, ended, before[ended] + 3), "three ends")
    after = scrape(served)

    def change(name: str, label: str = "") -> float:
        return after[name, model, label] - before.get((name, model, label), 0.0)

    assert change("nv_llm_input_token_len_count") == 3
    assert change("nv_llm_input_token_len_sum") == change("tidemill_prompt_tokens_total") > 0
    assert change("nv_llm_output_token_len_sum") == 3 * len(answer)
    assert change("tidemill_output_tokens_total") == 3 * len(answer)
    assert change("tidemill_request_duration_seconds_count") == 3
    assert 0 < change("tidemill_request_duration_seconds_sum") < 30
    others = [key for key in after if key[0] == ended[0] and key[1] not in ("", model)]
    assert others and all(after[key] == before[key] for key in others)


def test_a_stream_is_timed_from_its_first_token_to_its_last(served: Served) -> None:
    first = ("tidemill_time_to_first_token_seconds_count", STREAMING, "")
    wait_for(rises(served, ("tidemill_engine_up", STREAMING, ""), 1), "metrics")
    before = scrape(served)
    payload = {"text_input": "no end", "max_tokens": 50, "stream": True}
    events = list(stream_generate(served.server.endpoints.http_url, STREAMING, payload))
    wait_for(rises(served, first, before[first] + 1), "a first token")
    wait_for(
        rises(served, ("tidemill_requests_total", STREAMING, "length"), 1), "the end of the stream"
    )
    gaps = "tidemill_inter_token_latency_seconds"
    counted = (f"{gaps}_count", STREAMING, "")
    # Families are published one after the other; the count of gaps comes last.
    num_gaps = before.get(counted, 0.0) + len(events) - 1
    wait_for(rises(served, counted, num_gaps), "every gap")
    after = scrape(served)
    assert after[counted] == num_gaps and len(events) == 50
    buckets = [after[f"{gaps}_bucket", STREAMING, bound] for bound in table.TOKEN_BOUNDS]
    assert buckets == sorted(buckets) and buckets[-1] == after[f"{gaps}_count", STREAMING, ""]
    mean = after[f"{gaps}_sum", STREAMING, ""] / buckets[-1]
    assert 0.001 < mean < 1.0  # the engine that spells takes 2 ms for a step


def test_cancelled_and_refused_requests_are_counted_as_such(served: Served) -> None:
    url = f"{served.server.endpoints.http_url}/v2/models/sample/generate"
    key = ("tidemill_requests_total", "sample", "error")
    wait_for(rises(served, ("tidemill_engine_up", "sample", ""), 1), "metrics")
    before = scrape(served)[key]
    assert call(url, {"text_input": "word " * 600, "max_tokens": 4})[0] == 400
    wait_for(rises(served, key, before + 1), "an error")


def test_gauges_agree_with_one_another(served: Served) -> None:
    wait_for(rises(served, ("tidemill_engine_up", "sample", ""), 1), "metrics")
    samples = scrape(served)

    def kv(label: str) -> float:
        return samples["nv_trt_llm_kv_cache_block_metrics", "sample", label]

    assert kv("max") == kv("free") + kv("used") and kv("tokens_per") > 0
    assert kv("fraction") == pytest.approx(kv("used") / kv("max"))
    assert samples["nv_trt_llm_runtime_memory_metrics", "sample", "cpu"] > 1e6


def test_prompt_that_comes_again_raises_the_hit_rate(served: Served) -> None:
    reused = ("nv_trt_llm_kv_cache_block_metrics", "sample", "reused")
    wait_for(rises(served, ("tidemill_engine_up", "sample", ""), 1), "metrics")
    before = scrape(served).get(reused, 0.0)
    url = f"{served.server.endpoints.http_url}/v2/models/sample/generate"
    for _ in range(2):
        body = {"text_input": "The mill by the sea turns with the tide. " * 20, "max_tokens": 2}
        assert call(url, body)[0] == 200
    wait_for(rises(served, reused, before + 1), "a block found again")
    assert 0 < scrape(served)["tidemill_kv_cache_hit_rate", "sample", ""] <= 1
