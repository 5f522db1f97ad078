"""One round of torture: carries out a plan on three nodes and a Redis of the kind, records everything, and has it judged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import aiohttp

from tests.broker_process import BrokerProcess
from tests.devices import Device
from tests.event_client import Api
from tests.history import Finding, History, decide
from tests.recorder import Recorder
from tests.redis_servers import RedisServer
from tests.redis_sets import RedisCluster, SentinelSet
from tests.torture.faults import (
    AFTER_SECONDS,
    HEARTBEAT_SECONDS,
    NodeFaults,
    RedisFaults,
    Servers,
    end_node,
    start_nodes,
)
from tests.torture.plan import DEVICES, NODES, USERS, Operation, Plan
from tests.traffic import at_rest, make_devices, settle
from tests.waiting import until

# Without asyncio's debugging aids, so that hours of it say something of what people run.
PROGRAM = (sys.executable, "-m", "sse_broker")
SETTLE_SECONDS = 40
# How long presence may take to follow a client that vanished, without any fault: three heartbeats, and some for the machine.
PRESENCE_SECONDS = 3 * HEARTBEAT_SECONDS + 3
LATE_SECONDS = 6


@dataclass(slots=True)
class Report:
    """What came of a round. `void` says why it could not be judged: something of the machinery itself failed."""

    plan: Plan
    history: History = field(default_factory=History)
    findings: list[Finding] = field(default_factory=list)
    void: str = ""
    seconds: float = 0.0
    answers: Counter[int] = field(default_factory=Counter)
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def frame_count(self) -> int:
        """How many frames all clients saw."""
        return sum(len(session.frames) for session in self.history.sessions)

    def line(self) -> str:
        """Return the round in one line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(f.kind for f in self.findings).items())
        answers = " ".join(f"{status}:{count}" for status, count in sorted(self.answers.items()))
        verdict = (self.void and f"VOID: {self.void.splitlines()[0][:200]}") or kinds or "nothing found"
        return (
            f"{self.plan.kind:10} seed {self.plan.seed:<10} {len(self.plan.operations)} operations, "
            f"{len(self.history.sends)} sends ({answers}), {len(self.history.sessions)} streams, "
            f"{self.frame_count} frames, {self.seconds:.0f} s [{', '.join(self.plan.faults)}]: {verdict}"
        )


def make_servers(kind: str) -> Servers:
    """Return the servers of a kind of Redis, not started yet."""
    makers: dict[str, Callable[[], Servers]] = {
        "standalone": lambda: RedisServer(persist=True),
        "sentinel": SentinelSet,
        "cluster": RedisCluster,
    }
    return makers[kind]()


async def play(plan: Plan) -> Report:
    """Play a round and judge it."""
    report, start = Report(plan), time.monotonic()
    try:
        async with make_servers(plan.kind) as redis:
            await Round(plan, redis, report).run()
    except Exception as error:
        report.void = "\n".join([*_causes(error), *traceback.format_exception(error)])
    report.seconds = time.monotonic() - start
    return report


def _causes(error: BaseException) -> Iterator[str]:
    """Name what is behind an error, each in one line."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    else:
        yield f"{type(error).__name__}: {error}".splitlines()[0]


class Round:
    """Nodes, devices and recorder of one round; `run` fills the report."""

    def __init__(self, plan: Plan, redis: Servers, report: Report) -> None:
        self.plan, self.redis, self.report = plan, redis, report
        tables = {"sse": {"heartbeat_interval": HEARTBEAT_SECONDS, "device_frame_cache_size": plan.cache_frames}}
        self.nodes = [BrokerProcess(tables, redis=redis, program=PROGRAM) for _ in range(NODES)]
        for node in self.nodes:
            node.expect_trouble("cluster_error_retry_attempts")
        devices = make_devices(self.nodes, random.Random(plan.seed), count=DEVICES, users=USERS)
        self.devices: dict[str, Device] = {device.name: device for device in devices}
        self.recorder = Recorder(devices)
        self.apis: list[Api] = []

    async def run(self) -> None:
        """Start everything, carry out the plan, come to rest, judge, and end everything."""
        async with AsyncExitStack() as stack:
            for node in self.nodes:
                stack.push_async_callback(node.discard)
            stack.push_async_callback(self.recorder.stop)
            await start_nodes(self.nodes)
            self.apis = [
                await stack.enter_async_context(Api(node.base_url, seconds=6)) for node in self.nodes
            ]  # fmt: skip
            await self._listen(stack)
            for device in self.devices.values():
                device.start()
            async with self.recorder.stalls(self._pids, after=AFTER_SECONDS):
                await self._carry_out()
                await self._come_to_rest()
            self.report.history = self._history()
            self.report.findings += decide(self.report.history)
            await self.recorder.stop()
            await self._end_nodes()

    async def _listen(self, stack: AsyncExitStack) -> None:
        server = self.redis if isinstance(self.redis, RedisServer) else self.redis.servers[0]
        await self.recorder.listen(await stack.enter_async_context(server.client()))

    def _pids(self) -> list[int]:
        servers = [self.redis] if isinstance(self.redis, RedisServer) else self.redis.servers
        return [one.process.pid for one in (*self.nodes, *servers) if one.running]

    # The plan

    async def _carry_out(self) -> None:
        lanes: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.plan.operations:
            lanes[operation.lane].append(operation)
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for lane, operations in lanes.items():
                group.create_task(self._carry_out_lane(start, operations), name=lane)

    async def _carry_out_lane(self, start: float, operations: Sequence[Operation]) -> None:
        words: dict[str, Callable[[Operation], Awaitable[None]]] = {
            "redis": RedisFaults(self.redis, self.recorder).play,
            "nodes": NodeFaults(self.nodes, self.recorder).play,
        }
        for operation in operations:
            await asyncio.sleep(max(0.0, start + operation.at - time.monotonic()))
            if operation.lane in words:
                print(f"{time.monotonic() - start:7.2f} {operation.word}")
                if time.monotonic() - start < self.plan.seconds:  # not where those before it took so long
                    await words[operation.lane](operation)
            elif operation.word == "send":
                await self._send(operation)
            else:
                await self._disturb(operation)

    async def _send(self, operation: Operation) -> None:
        answer = await self.recorder.send(
            self.apis[operation.node],
            operation.text,
            users=operation.users,
            devices=operation.devices,
            event=operation.event,
        )
        self.report.answers[answer.status if answer else 0] += 1
        if answer and answer.status not in (200, 503):
            self.report.findings.append(Finding("status", f"{answer.status} {answer.body}"))

    async def _disturb(self, operation: Operation) -> None:
        device = self.devices[operation.devices[0]] if operation.devices else None
        if device is None or operation.word == "kick device":
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self.apis[operation.node].kick(
                    uid=operation.users or None, device=operation.devices or None, data="go"
                )
            return
        url = self.nodes[operation.node].base_url
        match operation.word:
            case "drop" | "drop abruptly":
                device.prefer(url)
                await device.drop(abrupt=operation.word == "drop abruptly")
            case "leave":
                await device.drop(stay_away=True)
            case "come back":
                device.prefer(url)
                device.come_back()
            case "move":
                await device.move(url)
            case "vanish":
                await device.vanish()
            case "forget":
                device.forget()
                await device.drop()
            case "become":
                device.become(operation.users[0])
                await device.drop()
            case word:
                raise AssertionError(f"unknown word: {word}")

    # The end

    async def _come_to_rest(self) -> None:
        for device in self.devices.values():
            device.come_back()
        async with Api(self.nodes[0].base_url, seconds=6) as api:
            try:
                await settle(self.recorder, api, seconds=SETTLE_SECONDS)
            except AssertionError as failure:
                self.report.findings.append(Finding("unsettled", str(failure)))
                return
            for name in list(self.devices)[:: DEVICES // 4]:
                await self.devices[name].drop(stay_away=True)
            self.online = await at_rest(self.recorder, api, seconds=PRESENCE_SECONDS)

    def _history(self) -> History:
        history = self.recorder.history(
            presence_seconds=PRESENCE_SECONDS, cache_frames=self.plan.cache_frames, late_seconds=LATE_SECONDS
        )
        history.online_at_end = getattr(self, "online", None)
        return history

    async def _end_nodes(self) -> None:
        """End all by SIGTERM, as an operator does; nothing of it may be amiss."""
        for node in self.nodes:
            self.report.logs[node.address] = node.stderr_text()
            try:
                await end_node(node)
                node.assert_clean_output()
            except AssertionError as failure:
                self.report.findings.append(Finding("trouble", str(failure)))
            self.report.logs[node.address] = node.stderr_text()
        await until(lambda: not any(node.running for node in self.nodes), what="the end of all nodes")
