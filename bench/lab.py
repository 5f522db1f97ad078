"""How a number is measured: rounds on the broker and on the C loop in turn, each checked for loss, and the median of the pairs. It knows
what a row of the table is, and neither scenarios nor how rows are shown.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import BenchError, LoadClient, Process, Result, broker, load_client, redis_server, send_loop, write_tokens

ERRORS = ("wrong_status", "wrong_result", "broken")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `value` is in `unit`, without the load client's share; `redis` is the part of it that Redis spent. `ratio` is `value` over the C
    loop's CPU per delivery `c_us`, both from the same pairs. The limit of issue 6 is on the ratio or on the value. Only rows that are
    `tracked` are compared with the baseline: latencies on a shared machine are not.
    """

    name: str
    value: float
    unit: str
    redis: float = 0.0
    c_us: float | None = None
    ratio: float | None = None
    max_ratio: float | None = None
    max_value: float | None = None
    min_value: float | None = None
    tracked: bool = True
    client_share: float | None = None
    client_is_bottleneck: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        if self.max_ratio is not None and self.ratio is not None:
            return self.ratio <= self.max_ratio
        if self.max_value is not None:
            return self.value <= self.max_value
        return None if self.min_value is None else self.value >= self.min_value


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU in µs per unit of work in one round."""

    server: float
    redis: float
    result: Result

    @property
    def total(self) -> float:
        """Server and Redis."""
        return self.server + self.redis


def clean(result: Result) -> Result:
    """Return the result of a command in which every frame came once, in order, and every reply was right. Raises: BenchError."""
    faults = {name: count for name, count in result["errors"].items() if count}
    faults |= {name: result[name] for name in ("refused", "dropped", *ERRORS) if result.get(name)}
    if (
        result["missing"] and result["command"] != "open"
    ):  # a stream that has just been opened may still be reading its replay
        faults["missing"] = result["missing"]
    if not result.get("complete", True):
        faults["incomplete"] = f"{result['deliveries']} of {result['expected']} deliveries"
    if faults:
        said = result.get("first_wrong_reply") or result.get("first_refusal") or ""
        raise BenchError(f"{result['command']}: {faults} {said}".strip())
    return result


def cost(result: Result, count: int) -> Cost:
    """Return what each of `count` units of work cost in a clean result. Raises: BenchError."""
    clean(result)
    return Cost(result["server_cpu_us"] / count, result["redis_cpu_us"] / count, result)


def broadcasts(client: LoadClient, count: int, options: str = "") -> Cost:
    """Send broadcasts, each after the last one was delivered; return the cost per delivery. Raises: BenchError."""
    result = client.ask(f"broadcast count={count} after_delivery=1 {options}")
    return cost(result, max(1, result["expected"]))


def open_streams(client: LoadClient, count: int, options: str = "") -> Result:
    """Open streams; return the result once all are open. Raises: BenchError."""
    result = clean(client.ask(f"open count={count} {options}"))
    if result["open"] < count:
        raise BenchError(f"only {result['open']} of {count} streams are open")
    return result


@dataclass(frozen=True, slots=True)
class Bed:
    """A broker and the C loop, each with its load client and the same number of streams."""

    server: Process
    redis: Process | None
    subject: LoadClient
    reference: LoadClient


class Lab:
    """What all scenarios share: how many rounds, and how much in each."""

    def __init__(self, *, quick: bool) -> None:
        self.rounds = 3 if quick else 5
        self.quick = quick

    def deliveries(self, streams: int) -> int:
        """How many broadcasts make a round of about a third of a second, or half that when quick."""
        return max(2, (30_000 if self.quick else 60_000) // streams)

    @contextlib.contextmanager
    def backend(self, name: str) -> Iterator[Process | None]:
        """Run the Redis that a backend needs."""
        if name == "embedded":
            yield None
        else:
            with redis_server() as redis:
                yield redis

    @contextlib.contextmanager
    def reference(self, streams: int) -> Iterator[LoadClient]:
        """Run the C loop with open streams, warmed up."""
        with send_loop() as loop, load_client(loop, write_tokens("c", streams)) as client:
            open_streams(client, streams)
            broadcasts(client, 2)
            yield client

    @contextlib.contextmanager
    def bed(self, backend: str, streams: int, *, workers: int = 1, tables: str = "") -> Iterator[Bed]:
        """Run a broker on a backend and the C loop; both have `streams` open and are warmed up."""
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(self.backend(backend))
            server = stack.enter_context(broker(redis, workers=workers, tables=tables))
            tokens = write_tokens("main", streams)
            subject = stack.enter_context(load_client(server, tokens, redis))
            open_streams(subject, streams)
            broadcasts(subject, 2)
            reference = stack.enter_context(self.reference(streams))
            yield Bed(server, redis, subject, reference)

    def probe_tokens(self, streams: int) -> Path:
        """Write the tokens of a second load client beside the main one."""
        return write_tokens("probe", streams)

    def row(
        self, name: str, unit: str, subject: Callable[[], Cost], reference: Callable[[], Cost], **options: Any
    ) -> Row:
        """Measure subject and reference in turn; return a row of medians. Raises: BenchError."""
        pairs = [(subject(), reference()) for _ in range(self.rounds)]
        results = [pair[0].result for pair in pairs]
        last = {
            key: value for key, value in results[-1].items() if key in ("latency", "reply", "open_latency", "reads")
        }
        details = options.pop("details", {})
        return Row(
            name,
            statistics.median(mine.total for mine, _ in pairs),
            unit,
            redis=statistics.median(mine.redis for mine, _ in pairs),
            c_us=statistics.median(loop.total for _, loop in pairs),
            ratio=statistics.median(mine.total / loop.total for mine, loop in pairs),
            client_share=statistics.median(result["client_share"] for result in results),
            client_is_bottleneck=any(result["client_is_bottleneck"] for result in results),
            details=details
            | last
            | {
                "pairs": [[round(mine.total, 2), round(loop.total, 2)] for mine, loop in pairs],
                "server_share": statistics.median(result["server_share"] for result in results),
                "server_wait_us": sum(result["server_wait_us"] for result in results),
                "per_second": statistics.median(
                    1e6 * max(r["deliveries"], r["connected"]) / r["wall_us"] for r in results
                ),
            },
            **options,
        )
