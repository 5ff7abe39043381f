"""Publishes a model's metrics through Triton, so that they are scraped on Triton's own port.

In: the engine's counters, asked of its host, and the model's `Traffic`. Out: the families of
`metric_table`. One thread does all of it: Triton 2.51 dies of two that call at once
(docs/decisions/051). Busy models publish twice a second, idle ones once:
a round is some thirty calls, each of which wakes both processes on cores the engine wants.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from typing import Protocol

from tidemill.base import debug
from tidemill.base.errors import TidemillError
from tidemill.frontends.triton import metric_table as table
from tidemill.frontends.triton.metric_table import Family
from tidemill.frontends.triton.stub_api import Metric, make_metric, make_metric_family
from tidemill.frontends.triton.traffic import BucketCounts, Harvest, Traffic
from tidemill.host.messages import HostInfo

PERIOD_S = 0.5
IDLE_PERIOD_S = 1.0
INFO_TIMEOUT_S = 2.0
ROUNDS_BETWEEN_REPEATS = 20


class Client(Protocol):
    """What this module needs of the host's client."""

    def info(self, timeout_seconds: float = 10.0) -> HostInfo: ...


class MetricSet:
    """The metrics of one model, made when they first have a value. For one thread only."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._family_to_handle = {
            family: make_metric_family(family.name, family.help, family.kind)
            for family in table.FAMILIES
        }
        self._metrics: dict[tuple[Family, str], Metric] = {}
        self._latest: dict[tuple[Family, str], float] = {}
        self._totals: dict[tuple[Family, str], float] = {}

    def set(self, family: Family, label: str, value: float) -> None:
        """Set a gauge, where it has changed: each call crosses to the server and back."""
        if self._latest.get((family, label)) != value:
            self._metric(family, label).set(value)
            self._latest[family, label] = value

    def increase(self, family: Family, label: str, amount: float) -> None:
        """Add to a counter; an amount of 0 makes it known to whoever scrapes."""
        metric = self._metric(family, label)
        if amount:
            metric.increment(amount)

    def accumulate(self, family: Family, label: str, amount: float) -> None:
        """Add to a gauge that only rises."""
        total = self._totals.get((family, label), 0.0) + amount
        self._totals[family, label] = total
        self.set(family, label, total)

    def forget_what_was_set(self) -> None:
        """Send each gauge once more: an older stub of this model may have said farewell since."""
        self._latest.clear()

    def say_farewell(self) -> None:
        """Leave gauges that are true of a model that is gone, since they cannot be deleted."""
        for family, label in set(self._metrics) - set(self._totals):
            if family.kind == table.GAUGE:
                self.set(family, label, math.nan if family is table.ENGINE_UP else 0.0)

    def observe(self, family: Family, label: str, value: float) -> None:
        """Count a value in a histogram."""
        self._metric(family, label).observe(value)

    def _metric(self, family: Family, label: str) -> Metric:
        key = (family, label)
        if key not in self._metrics:
            labels = {**self._labels, family.label: label} if family.label else self._labels
            handle = self._family_to_handle[family]
            self._metrics[key] = make_metric(handle, labels, family.buckets)
        return self._metrics[key]

    def introduce(self) -> None:
        """Make every metric that does not come by itself, so that rates start from 0."""
        for reason in table.FINISH_REASONS:
            self.increase(table.FINISHED, reason, 0)
        self.accumulate(table.INTER_TOKEN_SUM, "", 0.0)
        self.accumulate(table.INTER_TOKEN_COUNT, "", 0.0)
        for bound in table.TOKEN_BOUNDS:
            self.accumulate(table.INTER_TOKEN_BUCKET, bound, 0.0)
        for kind in ("kv_cache_transfer_ms", "request_count"):
            self.increase(table.DISAGGREGATED, kind, 0)
        for family in (table.FIRST_TOKEN, table.DURATION):
            self._metric(family, "")
        self._metric(table.INPUT_LENGTH, "total_input_tokens")
        self._metric(table.OUTPUT_LENGTH, "total_output_tokens")


class MetricsPublisher:
    """The metrics thread of one model, from `start` to `close`."""

    def __init__(
        self,
        client: Client,
        traffic: Traffic,
        labels: tuple[str, str],
        on_iteration: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._client = client
        self._traffic = traffic
        self._labels = labels
        self._on_iteration = on_iteration
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._is_busy = False

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._traffic.has_started.set()
        self._thread.join(timeout=INFO_TIMEOUT_S + 1.0)

    def _run(self) -> None:
        try:
            metrics = MetricSet(*self._labels)
            metrics.introduce()
        except Exception as error:
            # Served with --allow-metrics=false: there is nowhere to publish to. Probes still need
            # to hear of the engine's steps.
            debug.say(debug.Level.DECISIONS, "triton", f"no metrics are published: {error}")
            metrics = None
        for number in itertools.count(1):
            if self._closed.is_set():
                break
            try:
                self._publish(metrics)
            except Exception as error:  # of Triton's; the next round may be better
                debug.say(debug.Level.DECISIONS, "triton", f"metrics were not published: {error}")
            if metrics is not None and number % ROUNDS_BETWEEN_REPEATS == 0:
                metrics.forget_what_was_set()
            if not self._is_busy:
                self._traffic.has_started.wait(IDLE_PERIOD_S)
            self._traffic.has_started.clear()
            self._closed.wait(PERIOD_S)
        if metrics is not None:
            metrics.say_farewell()

    def _publish(self, metrics: MetricSet | None) -> None:
        num_in_flight = self._traffic.num_in_flight
        harvest = self._traffic.harvest()
        self._is_busy = bool(num_in_flight or harvest.reason_to_requests)
        info: HostInfo | None = None
        try:
            info = self._client.info(INFO_TIMEOUT_S)
            self._on_iteration(info.stats.iteration)
        except TidemillError:
            pass  # the host is being restarted: the gauge says so
        if metrics is not None:
            metrics.set(table.IN_FLIGHT, "", num_in_flight)
            publish_engine(metrics, info)
            publish_harvest(metrics, harvest)


def publish_engine(metrics: MetricSet, info: HostInfo | None) -> None:
    """Set every gauge of the engine, or that it is away."""
    if info is None:
        metrics.set(table.ENGINE_UP, "", 0)
        return
    for (family, label), value in table.gauge_values(info.stats, info.memory_bytes).items():
        metrics.set(family, label, value)


def publish_harvest(metrics: MetricSet, harvest: Harvest) -> None:
    """Add what happened to counters and histograms."""
    for value in harvest.first_token_s:
        metrics.observe(table.FIRST_TOKEN, "", value)
    for value in harvest.duration_s:
        metrics.observe(table.DURATION, "", value)
    for length in harvest.input_tokens:
        metrics.observe(table.INPUT_LENGTH, "total_input_tokens", length)
    for length in harvest.output_tokens:
        metrics.observe(table.OUTPUT_LENGTH, "total_output_tokens", length)
    for reason, count in harvest.reason_to_requests.items():
        metrics.increase(table.FINISHED, reason, count)
    metrics.increase(table.PROMPT_TOKENS, "", sum(harvest.input_tokens))
    metrics.increase(table.OUTPUT_TOKENS, "", sum(harvest.output_tokens))
    _publish_gaps(metrics, harvest.inter_token)


def _publish_gaps(metrics: MetricSet, gaps: BucketCounts) -> None:
    counts = gaps.cumulative()
    for bound, count in zip(table.TOKEN_BOUNDS, counts, strict=True):
        metrics.accumulate(table.INTER_TOKEN_BUCKET, bound, count)
    metrics.accumulate(table.INTER_TOKEN_SUM, "", gaps.sum)
    metrics.accumulate(table.INTER_TOKEN_COUNT, "", counts[-1])
