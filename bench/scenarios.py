"""The scenarios of the table, each with the limit that it has to keep. A scenario starts what it needs, yields its rows and ends what it
started; how numbers are taken is the lab's matter, how they are shown that of `run`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import guarded
from harness import (
    OUT,
    BenchError,
    LoadClient,
    broker,
    cpu_seconds,
    load_client,
    minimal_server,
    read_stalls,
    write_tokens,
)
from lab import Bed, Cost, Lab, Row, broadcasts, clean, cost, open_streams

BACKENDS = ("embedded", "redis")
SMALL, LARGE = 3_000, 15_000
BURST = 10
PUBLISHERS = 8
BATCH_LINES = 500
SETTLE_SECONDS = 2
IDLE_SECONDS = 30
PROBES = 32

DELIVERY = "us/delivery"
SEND = "us/send"


def broadcast(lab: Lab) -> Iterator[Row]:
    """CPU per delivery of a broadcast; the next one is sent when all have the last one, so nothing is joined."""
    for streams in (SMALL, LARGE):
        count = lab.deliveries(streams)
        for backend in BACKENDS:
            limit = 1.5 if backend == "embedded" else 1.6
            with lab.bed(backend, streams) as bed:
                yield lab.row(
                    f"broadcast, {streams} streams, {backend}",
                    DELIVERY,
                    partial(broadcasts, bed.subject, count),
                    partial(broadcasts, bed.reference, count),
                    max_ratio=limit,
                )


def burst(lab: Lab) -> Iterator[Row]:
    """CPU per delivery of ten broadcasts whose requests are written back to back; the C loop calls send() for each frame."""
    options = f"burst={BURST} publishers={BURST}"
    count = max(2 * BURST, lab.deliveries(SMALL))
    for backend in BACKENDS:
        with lab.bed(backend, SMALL) as bed:
            yield lab.row(
                f"burst of {BURST} broadcasts, {SMALL} streams, {backend}",
                DELIVERY,
                partial(broadcasts, bed.subject, count, options),
                partial(broadcasts, bed.reference, count, options),
                max_ratio=0.5,
            )


def minimal(lab: Lab) -> Iterator[Row]:
    """The second reference: what aiohttp with uvloop costs when it does nothing else."""
    with (
        minimal_server() as server,
        load_client(server, write_tokens("main", SMALL)) as subject,
        lab.reference(SMALL) as loop,
    ):
        open_streams(subject, SMALL)
        count = lab.deliveries(SMALL)
        reference = partial(broadcasts, loop, count)
        yield lab.row(
            f"minimal aiohttp: broadcast, {SMALL} streams",
            DELIVERY,
            partial(broadcasts, subject, count),
            reference,
            tracked=False,
        )
        yield lab.row(
            "minimal aiohttp: targeted sends over HTTP",
            SEND,
            partial(_targeted, lab, subject),
            reference,
            tracked=False,
        )


def latency(lab: Lab) -> Iterator[Row]:
    """Targeted sends at a fixed rate, with as many pings, while broadcasts to 15,000 streams follow each other without a pause.

    The probe is a load client of its own, so that its times are not those of a client that is busy reading broadcasts.
    """
    seconds = 4 if lab.quick else 8
    stall_file = OUT / "stalls.json"
    for backend in BACKENDS:
        with lab.backend(backend) as redis, broker(redis, stall_file=stall_file) as server:
            with (
                load_client(server, write_tokens("main", LARGE), redis) as main,
                load_client(server, lab.probe_tokens(PROBES), redis, urgent=True) as probe,
            ):
                open_streams(main, LARGE)
                open_streams(probe, PROBES)
                broadcasts(main, 2, f"others={PROBES}")
                read_stalls(server, stall_file)
                main.begin(f"broadcast count=100000 after_delivery=1 others={PROBES} seconds={seconds + 1}")
                probe_command = (
                    f"targeted count={400 * seconds} rate=400 publishers=16 targets={PROBES} ping=/token?uid=ping"
                )
                result = clean(probe.ask(probe_command))
                stalls = read_stalls(server, stall_file)
                load = main.result()
        kept = ("latency", "reply", "ping", "late_max_us", "overslept_max_us", "server_wait_us")
        details = {key: result[key] for key in kept} | {"broadcasts": load["replies"], "stalls": stalls}
        details |= {"client_share": load["client_share"], "server_share": load["server_share"]}
        name = f"during {LARGE}-stream broadcasts, {backend}"
        p99 = result["latency"]["p99_us"] / 1e3
        yield Row(f"targeted p99 {name}", p99, "ms", max_value=15, tracked=False, details=details)
        yield Row(f"longest stall {name}", stalls["longest_wall_ms"], "ms", max_value=20, tracked=False)
        yield Row(f"longest stall, CPU time {name}", stalls["longest_cpu_ms"], "ms", max_value=20, tracked=False)


def memory(lab: Lab) -> Iterator[Row]:
    """Proportional set size per idle stream, after the program has served a few; kernel memory of both ends apart."""
    for backend in BACKENDS:
        with (
            lab.backend(backend) as redis,
            broker(redis) as server,
            load_client(server, write_tokens("main", LARGE), redis) as main,
        ):
            open_streams(main, 100)
            main.ask("drop")
            main.ask(f"idle seconds={SETTLE_SECONDS}")
            before = main.ask("memory")
            open_streams(main, LARGE)
            main.ask(f"idle seconds={SETTLE_SECONDS}")
            after = main.ask("memory")
            grown = {key: (after[key] - before[key]) / LARGE for key in after if key.endswith("_kb")}
            details = {"per_stream_kb": grown, "idle_broker_kb": before["server_pss_kb"]}
            yield Row(
                f"memory per idle stream, {LARGE} streams, {backend}",
                grown["server_pss_kb"],
                "KB",
                max_value=11,
                details=details,
            )
            if backend == "embedded":
                kernel = grown["kernel_tcp_kb"] + grown["kernel_slab_kb"]
                yield Row("kernel memory per stream, both ends", kernel, "KB", tracked=False, details=details)
            else:
                yield Row("Redis memory per stream", grown["redis_rss_kb"], "KB", tracked=False, details=details)


def _reopen(bed: Bed) -> Cost:
    bed.subject.ask("drop")
    bed.subject.ask(f"idle seconds={SETTLE_SECONDS}")
    return cost(open_streams(bed.subject, SMALL, "last_id=1" if bed.redis else ""), SMALL)


def connect(lab: Lab) -> Iterator[Row]:
    """CPU to open a stream with a token; on Redis with a last id, so that the replay lookup is in it."""
    for backend in BACKENDS:
        with lab.bed(backend, SMALL) as bed:
            count = lab.deliveries(SMALL)
            yield lab.row(
                f"connect with a token, {backend}",
                "us/connect",
                partial(_reopen, bed),
                partial(broadcasts, bed.reference, count),
                max_value=300 if backend == "embedded" else 450,
            )


def storm(lab: Lab) -> Iterator[Row]:
    """All streams break at once, miss a broadcast and come back together with their last ids, while others go on sending."""
    for backend in BACKENDS:
        with lab.backend(backend) as redis, broker(redis) as server:
            with (
                load_client(server, write_tokens("main", LARGE), redis) as main,
                load_client(server, lab.probe_tokens(PROBES), redis, urgent=True) as probe,
            ):
                open_streams(main, LARGE)
                open_streams(probe, PROBES)
                broadcasts(main, 1, f"others={PROBES}")
                probe.begin(f"targeted count=2000 rate=100 publishers=16 targets={PROBES}")
                begun = time.monotonic()
                main.ask("drop reset=1")
                missed = main.ask("broadcast count=1")  # its count depends on how many ends were noticed by then
                result = open_streams(main, LARGE, "last_id=1 concurrency=4000")
                clean(main.ask("wait seconds=30"))
                seconds = time.monotonic() - begun
                sends = clean(probe.result())
                if missed["wrong_status"] or result["gaps"]:
                    raise BenchError(f"storm: {missed['wrong_status']} sends failed, {result['gaps']} gaps")
                yield Row(
                    f"reconnect storm of {LARGE} with a last id, {backend}",
                    seconds,
                    "s",
                    tracked=False,
                    client_share=result["client_share"],
                    client_is_bottleneck=result["client_is_bottleneck"],
                    details={
                        "server_us_per_connect": result["server_cpu_us"] / LARGE,
                        "redis_us_per_connect": result["redis_cpu_us"] / LARGE,
                        "open_latency": result["open_latency"],
                        "sends_meanwhile": sends["latency"],
                        "replies_meanwhile": sends["reply"],
                    },
                )


def idle(lab: Lab) -> Iterator[Row]:
    """CPU of 15,000 streams that get nothing but heartbeats, with presence on Redis."""
    seconds = IDLE_SECONDS // 2 if lab.quick else IDLE_SECONDS
    with lab.backend("redis") as redis, broker(redis, heartbeat_seconds=15) as server:
        with load_client(server, write_tokens("main", LARGE), redis) as main:
            open_streams(main, LARGE)
            main.ask(f"idle seconds={SETTLE_SECONDS}")
            result = clean(main.ask(f"idle seconds={seconds}"))
            share = 100 * (result["server_cpu_us"] + result["redis_cpu_us"]) / result["wall_us"]
            redis_share = 100 * result["redis_cpu_us"] / result["wall_us"]
            details = {"heartbeats_per_stream": result["heartbeats"] / LARGE, "seconds": seconds}
            yield Row(
                f"idle, {LARGE} streams, Redis", share, "% of a core", redis=redis_share, max_value=5, details=details
            )


def _targeted(lab: Lab, client: LoadClient, streams: int = SMALL, publishers: int = PUBLISHERS) -> Cost:
    count = 2_000 if lab.quick else 6_000
    result = client.ask(f"targeted count={count} publishers={publishers} targets={streams}")
    return cost(result, count)


def targeted(lab: Lab) -> Iterator[Row]:
    """CPU per send delivered, one send in each request, from eight keep-alive publishers that send flat out."""
    for backend in BACKENDS:
        with lab.bed(backend, SMALL) as bed:
            count = lab.deliveries(SMALL)
            yield lab.row(
                f"targeted sends over HTTP, {backend}",
                SEND,
                partial(_targeted, lab, bed.subject),
                partial(broadcasts, bed.reference, count),
                max_value=130 if backend == "embedded" else 200,
            )


def batch(lab: Lab) -> Iterator[Row]:
    """CPU per frame delivered to its own device, many sends in one request: one per line, or an array."""
    requests = 10 if lab.quick else 30

    def sends(bed: Bed, array: int) -> Cost:
        command = f"targeted count={requests} lines={BATCH_LINES} array={array} publishers=2 targets={SMALL} seconds=20"
        return cost(bed.subject.ask(command), requests * BATCH_LINES)

    for backend in BACKENDS:
        with lab.bed(backend, SMALL) as bed:
            count = lab.deliveries(SMALL)
            for array, form in enumerate(("lines", "array")):
                yield lab.row(
                    f"batch sends as {form}, {backend}",
                    SEND,
                    partial(sends, bed, array),
                    partial(broadcasts, bed.reference, count),
                    max_value=30,
                )


def _growth_round(bed: Bed, work: Callable[[Bed], Cost]) -> dict[str, float]:
    """Do the work once; return deliveries per second of wall time and per CPU second of the busiest process."""
    pids = bed.server.pids
    before = [cpu_seconds(pid) for pid in pids]
    result = work(bed).result
    busiest = max(cpu_seconds(pid) - since for pid, since in zip(pids, before, strict=True))
    per_second = 1e6 * result["deliveries"] / result["wall_us"]
    return {"wall": per_second, "cpu": result["deliveries"] / busiest, "client_share": result["client_share"]}


def workers(lab: Lab) -> Iterator[Row]:
    """Growth of throughput from one worker to two.

    With the load client and Redis on the same cores, the wall clock can not show it on a small machine. So the growth of the table is
    that of work per CPU second of the busiest worker: what the wall clock shows when each worker has a core. The wall's is in the details.
    """
    count = 2 * lab.deliveries(SMALL)
    kinds: dict[str, Callable[[Bed], Cost]] = {
        "broadcast": lambda bed: broadcasts(bed.subject, count),
        "targeted": lambda bed: _targeted(lab, bed.subject, publishers=2 * PUBLISHERS),
    }
    with lab.bed("redis", SMALL) as one, lab.bed("redis", SMALL, workers=2) as two:
        for kind, work in kinds.items():
            pairs = [(_growth_round(one, work), _growth_round(two, work)) for _ in range(lab.rounds)]
            yield Row(
                f"growth with 2 workers, {kind}, Redis",
                statistics.median(second["cpu"] / first["cpu"] for first, second in pairs),
                "times",
                min_value=1.7,
                client_share=statistics.median(second["client_share"] for _, second in pairs),
                details={
                    "wall_growth": statistics.median(second["wall"] / first["wall"] for first, second in pairs),
                    "pairs": pairs,
                },
            )


def flat(lab: Lab) -> Iterator[Row]:
    """Cost at 15,000 streams over cost at 100, embedded.

    The cost of a broadcast's delivery is what each further stream adds: a broadcast less a targeted send, over the streams less one.
    """
    few = 100
    with lab.bed("embedded", few) as small, lab.bed("embedded", LARGE) as large:
        sends = [(_targeted(lab, small.subject, few), _targeted(lab, large.subject, LARGE)) for _ in range(lab.rounds)]
        casts = [
            (broadcasts(small.subject, lab.deliveries(few)), broadcasts(large.subject, lab.deliveries(LARGE)))
            for _ in range(lab.rounds)
        ]
        loops = [
            (broadcasts(small.reference, lab.deliveries(few)), broadcasts(large.reference, lab.deliveries(LARGE)))
            for _ in range(lab.rounds)
        ]
    send_few, send_many = (statistics.median(pair[i].total for pair in sends) for i in (0, 1))

    def further(cast: Cost, streams: int, send: float) -> float:
        return (cast.total * streams - send) / (streams - 1)

    growth = statistics.median(further(b, LARGE, send_many) / further(a, few, send_few) for a, b in casts)
    yield Row(f"targeted send at {LARGE} streams over {few}", send_many / send_few, "times", max_value=1.1)
    details = {
        "raw_growth": statistics.median(b.total / a.total for a, b in casts),
        "c_growth": statistics.median(b.total / a.total for a, b in loops),
        "us_per_further_delivery": [further(casts[0][0], few, send_few), further(casts[0][1], LARGE, send_many)],
    }
    yield Row(f"further delivery at {LARGE} streams over {few}", growth, "times", max_value=1.1, details=details)


def limits(lab: Lab) -> Iterator[Row]:
    """What looking at limits costs a send and an opening."""
    yield from guarded.limits(lab, lambda lab, bed: _targeted(lab, bed.subject), _reopen, SMALL)


SCENARIOS: dict[str, Callable[[Lab], Iterator[Row]]] = {
    scenario.__name__: scenario
    for scenario in (
        broadcast,
        burst,
        minimal,
        latency,
        memory,
        connect,
        storm,
        idle,
        targeted,
        batch,
        workers,
        flat,
        guarded.tls,
        limits,
    )
}
