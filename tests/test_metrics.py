"""What an operator's tools see: /metrics, /healthz, /readyz, the dashboard and the alert rules."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sse_broker.presence import Reason
from tests.broker_process import BrokerProcess
from tests.redis_servers import RedisServer
from tests.waiting import free_port, until

ROOT = Path(__file__).parents[1]
KEY = "a-key-for-operators-1234567890"

Run = Callable[..., Awaitable[BrokerProcess]]


async def _get(url: str, key: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def _metrics(broker: BrokerProcess, key: str = "") -> dict[str, float]:
    """Return every sample by name, with its one label's value behind a colon."""
    status, text = await _get(f"{broker.base_url}/metrics", key)
    assert status == 200
    return {
        ":".join([sample.name, *sample.labels.values()]) if len(sample.labels) == 1 else sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_goes_through_is_counted(run_broker: Run, redis_server: RedisServer) -> None:
    broker = await run_broker(redis=redis_server)
    stream = await broker.client("ann", "phone").open()
    async with broker.api() as api:
        await api.send("one", uid="ann")
        await api.send("two")
        await stream.wait_for(lambda event: event.data == "two")
        first = stream.last_id
        await stream.close()
        back = await broker.client("ann", "phone", last_id=first - 1).open()
        await back.wait_for(lambda event: event.data == "two")
        numbers = await _metrics(broker)
        assert numbers["sse_broker_streams"] == 1
        assert numbers["sse_broker_cluster_users"] == numbers["sse_broker_cluster_devices"] == 1
        assert numbers["sse_broker_messages_total"] == 2
        assert numbers["sse_broker_deliveries_total"] == 2
        assert numbers["sse_broker_delivered_bytes_total"] > 20
        assert numbers["sse_broker_streams_opened_total"] == 2
        assert numbers["sse_broker_streams_resumed_total"] == 1
        assert numbers["sse_broker_replayed_frames_total"] == 1
        assert numbers["sse_broker_backend_up"] == 1
        assert numbers["sse_broker_backend_round_trip_seconds_count"] > 2
        assert numbers["sse_broker_draining"] == 0
        assert "sse_broker_loop_lag_seconds" in numbers
        assert "process_resident_memory_bytes" in numbers
        await api.kick(uid="ann")
        await until(lambda: _ended(broker, Reason.KICK), what="the kick to be counted")
        await back.close()


async def _ended(broker: BrokerProcess, reason: Reason) -> bool:
    return (await _metrics(broker))[f"sse_broker_streams_ended_total:{reason}"] == 1


async def test_without_redis_an_instance_is_alive_and_not_ready(run_broker: Run, redis_server: RedisServer) -> None:
    broker = await run_broker(redis=redis_server)
    assert (await _get(f"{broker.base_url}/readyz"))[0] == 200
    await redis_server.kill()

    async def is_not_ready() -> bool:
        return (await _get(f"{broker.base_url}/readyz"))[0] == 503

    await until(is_not_ready, what="/readyz to say 503")
    assert (await _get(f"{broker.base_url}/healthz"))[0] == 200
    async with broker.api() as api:
        assert (await api.send("x")).status == 503
    numbers = await _metrics(broker)
    assert numbers["sse_broker_backend_up"] == 0
    assert numbers["sse_broker_refused_messages_total"] == 1
    assert "sse_broker_cluster_users" not in numbers
    await redis_server.start()

    async def is_ready() -> bool:
        return (await _get(f"{broker.base_url}/readyz"))[0] == 200

    await until(is_ready, seconds=20, what="/readyz to say 200 again")
    assert (await _metrics(broker))["sse_broker_backend_reconnects_total"] >= 1


async def test_the_metrics_need_a_key_where_there_are_keys_but_not_on_the_admin_port(run_broker: Run) -> None:
    admin_port = free_port()
    broker = await run_broker({"api": {"keys": [KEY]}, "server": {"admin_port": admin_port}})
    assert (await _get(f"{broker.base_url}/metrics"))[0] == 401
    assert (await _metrics(broker, KEY))["sse_broker_streams"] == 0
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await _get(f"http://127.0.0.1:{admin_port}{path}"))[0] == 200
    assert (await _get(f"http://127.0.0.1:{admin_port}/info"))[0] == 404
    assert (await _get(f"{broker.base_url}/healthz"))[0] == 200


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yml"])
async def test_dashboard_and_alerts_name_metrics_that_exist(name: str, run_broker: Run) -> None:
    text = (ROOT / "docs" / "monitoring" / name).read_text()
    if name.endswith(".json"):
        text = "\n".join(target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"])
    named = set(re.findall(r"\b(?:sse_broker|process)_\w+", text))
    broker = await run_broker()
    known = {metric.partition(":")[0] for metric in await _metrics(broker)}
    assert named
    assert named <= known


def test_the_operators_page_names_every_alert_and_only_tests_that_exist() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docs" / "monitoring" / "alerts.yml").read_text())
    assert len(alerts) > 5
    assert [name for name in alerts if f"| `{name}` |" not in page] == []
    tests = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(tests) > 5
    assert [name for name in tests if not (ROOT / "tests" / name).exists()] == []
