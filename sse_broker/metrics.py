"""The numbers of an instance in the text format of Prometheus. They are read off the broker when somebody asks, so that
nothing is counted twice and nothing on the way of a frame knows of it. No label has values without bound.

Names: https://prometheus.io/docs/practices/naming/
"""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from sse_broker.broker import Broker
from sse_broker.counters import Counters
from sse_broker.errors import Unavailable
from sse_broker.presence import Reason
from sse_broker.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "sse_broker_"
# A scrape must not hang on a backend that is away.
COUNTS_SECONDS = 1.0

ENDS = tuple(reason for reason in Reason if reason not in (Reason.CONNECTED, Reason.DEVICE_ONLINE))


class Metrics:
    """Renders the metrics of one broker; `refusals` are those that its gate counted."""

    def __init__(self, broker: Broker, refusals: Counters | None = None) -> None:
        self._broker = broker
        self._collector = _BrokerCollector(broker, refusals)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    async def render(self) -> bytes:
        """Return the text for one scrape. Numbers of the cluster are left out while the backend does not answer."""
        try:
            counts = await asyncio.wait_for(self._broker.backend.counts(), COUNTS_SECONDS)
        except (Unavailable, TimeoutError):
            counts = None
        self._collector.counts = counts
        return bytes(generate_latest(self._registry))


class _BrokerCollector(Collector):
    def __init__(self, broker: Broker, refusals: Counters | None) -> None:
        self._broker = broker
        self._refusals = refusals
        self.counts: tuple[int, int] | None = None

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily | SummaryMetricFamily]:
        broker, traffic = self._broker, self._broker.traffic
        yield InfoMetricFamily(f"{PREFIX}build", "The program.", {"version": VERSION, "backend": broker.backend.name})
        yield _gauge("streams", "Streams open on this instance.", len(broker.registry))
        yield _gauge("backlog_bytes", "Bytes that clients of this instance have not taken yet.", _backlog(broker))
        yield _gauge("draining", "1 while this instance is shutting down.", int(broker.draining))
        if self.counts is not None:
            yield _gauge("cluster_users", "Users online in the cluster.", self.counts[0])
            yield _gauge("cluster_devices", "Devices online in the cluster.", self.counts[1])
        yield _counter("messages", "Messages that back ends sent here and that were accepted.", traffic.messages)
        yield _counter(
            "refused_messages", "Messages that were not accepted, the backend being away.", traffic.refused_messages
        )
        yield _counter("deliveries", "Frames written to streams.", traffic.deliveries)
        yield _counter("delivered_bytes", "Bytes of frames written to streams.", traffic.delivered_bytes)
        yield _counter("streams_opened", "Streams opened.", traffic.opened)
        yield _counter("streams_resumed", "Streams opened with a last event id.", traffic.resumed)
        yield _counter("replayed_frames", "Frames written from the logs.", traffic.replayed_frames)
        yield _counter("replay_gaps", "Clients that were told of dropped frames.", traffic.gaps)
        yield _counter("catch_ups", "Times that all streams had to read on from the logs.", traffic.catch_ups)
        ended = CounterMetricFamily(f"{PREFIX}streams_ended", "Streams that ended, by reason.", labels=["reason"])
        for reason in ENDS:
            ended.add_metric([str(reason)], traffic.offline[reason])
        yield ended
        yield _gauge(
            "loop_lag_seconds", "The longest delay of the event loop in the last minute.", broker.loop_lag_seconds
        )
        yield from self._backend()
        yield from self._refused()

    def _backend(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily | SummaryMetricFamily]:
        health = self._broker.backend.health()
        yield _gauge("backend_up", "1 while the backend answers.", int(health.answers))
        yield _counter("backend_reconnects", "Times that the way to Redis was made anew.", health.reconnects)
        yield _counter(
            "backend_damaged_entries", "Entries read from Redis that were damaged and skipped.", health.damaged
        )
        yield _gauge(
            "bus_lag_seconds",
            "Age of the last frame when it came by the bus; 0 when none waits.",
            health.bus_lag_seconds,
        )
        yield SummaryMetricFamily(
            f"{PREFIX}backend_round_trip_seconds",
            "Round trips to Redis.",
            count_value=health.round_trips,
            sum_value=health.round_trip_seconds,
        )

    def _refused(self) -> Iterable[CounterMetricFamily]:
        if self._refusals is None:
            return
        refused = CounterMetricFamily(
            f"{PREFIX}door_events", "What was refused here, and reloads, by cause.", labels=["cause"]
        )
        for cause, count in asdict(self._refusals).items():
            refused.add_metric([cause], count)
        yield refused


def _backlog(broker: Broker) -> int:
    return sum(stream.backlog_bytes for stream in broker.registry)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value=value)
