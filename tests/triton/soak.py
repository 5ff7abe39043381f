"""Mixed load with every kind of trouble, and a record of what must never happen.

In: a served repository and prompts with the answers they must get. Workers ask, stream, leave in
the middle, stop streams by their ids and send rubbish; a killer ends stubs, hosts and servers. A
violation is an answer that is wrong or mixed, a failure while nothing was being killed, a request
that hangs, rubbish that is accepted, a server that says it is ready and cannot answer or the other
way round, and at the end whatever was not given back: blocks, requests, memory, shared memory. Used
by a short test and by scripts/soak.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.triton.event_stream import stream_generate
from tests.triton.http_calls import call
from tests.triton.serve_process import ServeProcess, wait_for
from tidemill.base.errors import ServerError
from tidemill.frontends.triton.shared_memory import SHM_DIR

HANG_S = 60.0
BACK_WITHIN_S = 30.0
# Requests that began just before the service was back may still fail.
AFTERMATH_S = 2.0
# How long a death may be missed by what readiness says, on a machine that others load, too.
NOTICED_WITHIN_S = 3.0
MAX_GROWTH_MB = 64


@dataclass(frozen=True)
class SoakPlan:
    """What is asked, for how long, and how often something is killed. Units: seconds."""

    streaming_model: str
    unary_model: str
    make_case: Callable[[random.Random], tuple[str, int, str]]
    duration_s: float
    kill_period_s: float
    num_workers: int = 8
    seed: int = 20261124


@dataclass
class SoakReport:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    back_after_s: list[tuple[str, float]] = field(default_factory=list)
    resident_mb: dict[str, list[int]] = field(default_factory=dict)
    shared_regions: list[int] = field(default_factory=list)


class Soak:
    """One run against one `tidemill serve`."""

    def __init__(self, serve: ServeProcess, plan: SoakPlan) -> None:
        self._serve = serve
        self._plan = plan
        self._deadline = time.monotonic() + plan.duration_s
        self._windows: list[list[float]] = []
        self._lock = threading.Lock()
        self.report = SoakReport()

    def run(self) -> SoakReport:
        """Run until the time is over and everything has ended."""
        threads = [
            threading.Thread(target=self._work, args=(random.Random(self._plan.seed + index),))
            for index in range(self._plan.num_workers)
        ]
        for thread in threads:
            thread.start()
        self._kill_now_and_then(random.Random(self._plan.seed - 1))
        for thread in threads:
            thread.join(timeout=HANG_S + BACK_WITHIN_S)
            if thread.is_alive():
                self._violate("a worker hangs")
        self._check_rest()
        return self.report

    def _work(self, rng: random.Random) -> None:
        actions = [self._whole] * 4 + [self._stream] * 4 + [self._leave] * 2 + [self._rubbish] * 2
        actions += [self._stop, self._look]
        while time.monotonic() < self._deadline:
            action = rng.choice(actions)
            start = time.monotonic()
            try:
                action(rng)
                outcome = "ok"
            except AssertionError as error:
                self._violate(f"{action.__name__}: {error}")
                outcome = "wrong"
            except (ServerError, OSError, http.client.HTTPException) as error:
                outcome = self._judge_failure(action.__name__, start, error)
            with self._lock:
                self.report.counts[f"{action.__name__[1:]} {outcome}"] += 1
            if outcome != "ok":
                time.sleep(0.2)

    def _judge_failure(self, name: str, start: float, error: Exception) -> str:
        end = time.monotonic()
        if end - start > HANG_S:
            self._violate(f"{name}: hung for {end - start:.0f} s: {error}")
        with self._lock:
            is_excused = any(start <= last and end >= first for first, last in self._windows)
        if not is_excused:
            self._violate(f"{name}: failed while nothing was killed: {error!r}"[:400])
        return "failed at a kill"

    def _whole(self, rng: random.Random) -> None:
        prompt, max_tokens, expected = self._plan.make_case(rng)
        body = self._body(prompt, max_tokens)
        status, answer = self._post(self._plan.unary_model, json.dumps(body).encode())
        if status == 503 or (status == 400 and b"host" in answer):
            raise ServerError(f"{status} {answer.decode()[:200]}")
        assert status == 200, (status, answer)
        text = json.loads(answer)["text_output"]
        assert text == expected, f"{prompt!r} gave {text!r}, not {expected!r}"

    def _stream(self, rng: random.Random) -> None:
        prompt, max_tokens, expected = self._plan.make_case(rng)
        body = {**self._body(prompt, max_tokens), "stream": True}
        url, model = self._serve.http_url, self._plan.streaming_model
        text = "".join(event["text_output"] for event in stream_generate(url, model, body, HANG_S))
        assert text == expected, f"{prompt!r} streamed {text!r}, not {expected!r}"

    def _leave(self, rng: random.Random) -> None:
        prompt, _, _ = self._plan.make_case(rng)
        body = {**self._body(prompt.replace(">", ""), 1000), "end_id": -1, "stream": True}
        url, model = self._serve.http_url, self._plan.streaming_model
        stream = stream_generate(url, model, body, HANG_S)
        for _ in range(rng.randrange(4)):
            next(stream, None)
        stream.close()

    def _stop(self, rng: random.Random) -> None:
        """Stop a stream that has no end of its own: it ends in order, with what it has."""
        prompt, _, _ = self._plan.make_case(rng)
        name, model = f"stop-{rng.random()}", self._plan.streaming_model
        body = {**self._body(prompt.replace(">", ""), 1000), "end_id": -1, "stream": True}
        stream = stream_generate(self._serve.http_url, model, {**body, "id": name}, HANG_S)
        events = [next(stream)]
        stop = {**self._body("", 1), "stop": True, "id": name}
        status, answer = self._post(model, json.dumps(stop).encode())
        events += stream
        if status == 503:
            raise ServerError("503")
        assert status == 200, (status, answer)
        reason = events[-1].get("finish_reason")
        assert reason in ("cancelled", "length") and len(events) <= 1000, events[-1]

    def _look(self, rng: random.Random) -> None:
        """Readiness: what says that it is not ready while nothing was killed is judged like one."""
        if not self._is_ready():
            raise ServerError("not ready")

    def _rubbish(self, rng: random.Random) -> None:
        bodies = [
            b"",
            b"{",
            b'{"text_input": 3, "max_tokens": 4}',
            b'{"text_input": "no length"}',
            b'{"text_input": "x", "max_tokens": -1}',
            b'{"text_input":' + b"[" * 300_000,
            json.dumps(self._body("word " * 20_000, 4)).encode(),
            bytes(rng.randrange(256) for _ in range(500)),
        ]
        body = rng.choice(bodies)
        status, answer = self._post(self._plan.unary_model, body)
        if status == 503:
            raise ServerError("503")
        assert 400 <= status <= 500, (status, answer[:100], body[:50])

    @staticmethod
    def _body(prompt: str, max_tokens: int) -> Mapping[str, object]:
        return {"text_input": prompt, "max_tokens": max_tokens, "exclude_input_in_output": True}

    def _post(self, model: str, body: bytes) -> tuple[int, bytes]:
        address = urlsplit(self._serve.http_url).netloc
        connection = http.client.HTTPConnection(address, timeout=HANG_S)
        try:
            connection.request("POST", f"/v2/models/{model}/generate", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _kill_now_and_then(self, rng: random.Random) -> None:
        while time.monotonic() + self._plan.kill_period_s < self._deadline:
            time.sleep(self._plan.kill_period_s)
            self._note_memory()
            self._kill(rng.choice(["stub", "host", "server", "host", "stub"]))
        while (left := self._deadline - time.monotonic()) > 0:
            time.sleep(left)

    def _kill(self, what: str) -> None:
        victims: dict[str, Callable[[], Sequence[int]]] = {
            "stub": lambda: [self._serve.stub_id(self._plan.streaming_model)],
            "host": lambda: self._serve.host_ids,
            "server": lambda: [self._serve.server_id],
        }
        found = victims[what]()
        start = time.monotonic()
        window = [start, float("inf")]
        with self._lock:
            self._windows.append(window)
        for process_id in found:
            os.kill(process_id, signal.SIGKILL)
        time.sleep(0.3)  # what was killed is noticed: an answer from now on is the new one's
        try:
            wait_for(lambda: self._is_back(start), f"service after the {what}'s end", BACK_WITHIN_S)
        except AssertionError as error:
            self._violate(str(error))
        now = time.monotonic()
        self.report.back_after_s.append((what, round(now - start, 2)))
        with self._lock:
            window[1] = now + AFTERMATH_S

    def _is_back(self, killed_at: float) -> bool:
        was_ready = self._is_ready() and time.monotonic() > killed_at + NOTICED_WITHIN_S
        is_back = self._answers()
        if was_ready and not is_back and self._is_ready():
            self._violate("ready, but not able to answer")
        return is_back

    def _answers(self) -> bool:
        prompt, max_tokens, expected = self._plan.make_case(random.Random(0))
        for model in (self._plan.unary_model, self._plan.streaming_model):
            status, answer = self._serve.ask(model, prompt, max_tokens)
            if status != 200 or not isinstance(answer, dict) or answer["text_output"] != expected:
                return False
        return True

    def _is_ready(self) -> bool:
        try:
            return call(f"{self._serve.http_url}/v2/health/ready")[0] == 200
        except OSError:
            return False

    def _note_memory(self) -> None:
        server, hosts = self._serve.server_id, self._serve.host_ids
        stub = self._serve.stub_id(self._plan.streaming_model)
        named = [("serve", self._serve.process.pid), ("server", server), ("stub", stub)]
        for name, process_id in [*named, *(("host", host) for host in hosts)]:
            self.report.resident_mb.setdefault(name, []).append(resident_mb(process_id))
        regions = list(SHM_DIR.glob(f"tidemill_{self._serve.process.pid}_*"))
        self.report.shared_regions.append(len(regions))

    def _check_rest(self) -> None:
        """All blocks and requests are given back, and health is the truth."""
        try:
            wait_for(lambda: self._gauges() == (0.0, 0.0), "blocks and requests given back", 15)
        except AssertionError as error:
            self._violate(f"{error}: (blocks in use, requests in flight) are {self._gauges()}")
        self._note_memory()
        if not self._is_ready() or not self._answers():
            self._violate("nothing was killed any more, but it is not ready or cannot answer")
        for name, sizes in self.report.resident_mb.items():
            quarter = max(1, len(sizes) // 4)
            growth = statistics.median(sizes[-quarter:]) - statistics.median(sizes[:quarter])
            if growth > MAX_GROWTH_MB:
                self._violate(f"the memory of {name} grew by {growth:.0f} MB: {sizes}")
        regions = self.report.shared_regions
        if regions[-1] > regions[0]:
            self._violate(f"regions of shared memory were left: {regions}")

    def _gauges(self) -> tuple[float, float]:
        with urllib.request.urlopen(self._serve.metrics_url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        used = [x for x in lines if "kv_cache_block_metrics" in x and '"used"' in x]
        flying = [x for x in lines if x.startswith("tidemill_requests_in_flight")]
        return tuple(sum(float(x.rsplit(" ", 1)[1]) for x in each) for each in (used, flying))  # type: ignore[return-value]

    def _violate(self, text: str) -> None:
        with self._lock:
            self.report.violations.append(f"{time.strftime('%H:%M:%S')} {text}")


def resident_mb(process_id: int) -> int:
    """Return the memory of a process without the file pages it maps, in MiB; 0 when it is gone."""
    try:
        with open(f"/proc/{process_id}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
    except OSError:
        return 0
    return int(fields["RssAnon"].split()[0]) // 1024
