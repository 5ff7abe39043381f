"""The clock of a request and the buckets it fills, against sums done here."""

from __future__ import annotations

import gc
import math
import time
import weakref

import numpy as np
import pytest

from tests.unit.triton import fake_pb_utils
from tidemill.base.errors import HostError
from tidemill.frontends.triton import metric_table as table
from tidemill.frontends.triton.metrics import MetricSet, publish_harvest
from tidemill.frontends.triton.stub_api import make_metric, make_metric_family
from tidemill.frontends.triton.traffic import BucketCounts, Traffic
from tidemill.host.messages import Update


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where the test puts it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def news(tokens: int, finish: str | None = None, total: int = 0) -> Update:
    return Update("r", [1] * tokens, "", finish, 7, total)


def test_buckets_count_as_numpy_does() -> None:
    bounds = [0.1, 0.5, 1.0]
    values = [0.0, 0.1, 0.100001, 0.5, 0.7, 1.0, 1.1, 50.0]
    buckets = BucketCounts(bounds)
    for value in values:
        buckets.add(value)
    expected = [int(np.sum(np.array(values) <= bound)) for bound in [*bounds, np.inf]]
    assert buckets.cumulative() == expected
    assert buckets.sum == pytest.approx(sum(values))


def test_stream_of_three_steps_gives_one_first_token_and_its_gaps(clock: list[float]) -> None:
    traffic = Traffic()
    request = traffic.begin()
    for at, update in (
        (100.2, news(1)),
        (100.3, news(2)),  # two tokens of one step: 0.05 s each
        (100.4, news(1)),
        (100.4, news(0, "length", 4)),
    ):
        clock[0] = at
        request.hear(update)
    harvest = traffic.harvest()
    assert harvest.first_token_s == [pytest.approx(0.2)]
    assert harvest.duration_s == [pytest.approx(0.4)]
    assert harvest.inter_token.cumulative()[-1] == 3
    assert harvest.inter_token.sum == pytest.approx(0.2)
    assert (harvest.input_tokens, harvest.output_tokens) == ([7], [4])
    assert harvest.reason_to_requests == {"length": 1} and traffic.num_in_flight == 0


def test_whole_answer_has_a_duration_but_no_first_token(clock: list[float]) -> None:
    traffic = Traffic()
    request = traffic.begin()
    clock[0] = 101.0
    request.hear(news(5, "end_id", 5))
    harvest = traffic.harvest()
    assert not harvest.first_token_s and harvest.duration_s == [1.0]


def test_failed_request_counts_once_and_in_no_length(clock: list[float]) -> None:
    traffic = Traffic()
    request = traffic.begin()
    assert traffic.num_in_flight == 1
    for _ in range(2):
        request.hear(Update.failed("r", HostError("gone")))
    harvest = traffic.harvest()
    assert harvest.reason_to_requests == {"error": 1} and not harvest.output_tokens
    assert traffic.num_in_flight == 0 and not traffic.harvest().reason_to_requests


def test_unchanged_gauge_is_not_sent_again() -> None:
    metrics = MetricSet("m", "1")
    metrics.introduce()
    metrics.set(table.QUEUE_DEPTH, "", 3)
    (metric,) = fake_pb_utils.MetricFamily.made["tidemill_queue_depth"].metrics
    metric.value = -1.0
    metrics.set(table.QUEUE_DEPTH, "", 3)
    assert metric.value == -1.0
    metrics.set(table.QUEUE_DEPTH, "", 4)
    assert metric.value == 4 and metric.labels == {"model": "m", "version": "1"}


@pytest.mark.parametrize("is_to_be_repeated", [False, True])
def test_farewell_leaves_gauges_of_a_model_that_is_gone_and_totals_as_they_were(
    is_to_be_repeated: bool,
) -> None:
    metrics, made = MetricSet("m", "1"), fake_pb_utils.MetricFamily.made
    metrics.introduce()
    metrics.set(table.QUEUE_DEPTH, "", 3)
    metrics.set(table.ENGINE_UP, "", 1)
    metrics.accumulate(table.INTER_TOKEN_COUNT, "", 7)
    if is_to_be_repeated:
        metrics.forget_what_was_set()
    metrics.say_farewell()
    values = {name: [each.value for each in family.metrics] for name, family in made.items()}
    assert values["tidemill_queue_depth"] == [0.0]
    assert np.isnan(values["tidemill_engine_up"]).all()
    assert values["tidemill_inter_token_latency_seconds_count"] == [7.0]


def test_gauge_that_an_older_stub_overwrote_is_put_right() -> None:
    metrics = MetricSet("m", "1")
    metrics.set(table.ENGINE_UP, "", 1)
    (metric,) = fake_pb_utils.MetricFamily.made["tidemill_engine_up"].metrics
    metric.value = math.nan
    metrics.forget_what_was_set()
    metrics.set(table.ENGINE_UP, "", 1)
    assert metric.value == 1


def test_metric_outlives_everybody_who_knew_it() -> None:
    family = make_metric_family("tidemill_kept", "", "gauge")
    metric = make_metric(family, {"model": "m"})
    alive = weakref.ref(metric)
    fake_pb_utils.MetricFamily.made.pop("tidemill_kept").metrics.clear()
    del metric, family
    gc.collect()
    assert alive() is not None


def test_harvest_reaches_every_counter_and_histogram(clock: list[float]) -> None:
    traffic, metrics = Traffic(), MetricSet("m", "1")
    request = traffic.begin()
    for at, update in ((100.004, news(1)), (100.006, news(1)), (100.006, news(0, "length", 2))):
        clock[0] = at
        request.hear(update)
    publish_harvest(metrics, traffic.harvest())
    made = fake_pb_utils.MetricFamily.made
    (output,) = made["nv_llm_output_token_len"].metrics
    assert output.observed == [2]
    buckets = made["tidemill_inter_token_latency_seconds_bucket"].metrics
    by_bound = {metric.labels["le"]: metric.value for metric in buckets}
    assert by_bound["0.001"] == 0 and by_bound["0.0025"] == 1 and by_bound["+Inf"] == 1
