"""What an event stream holds, in which order, and how it ends (docs/contract.md, section 3), through HTTP on each backend."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import pytest

from sse_broker.presence import Reason, device_id_of
from tests.event_client import EventClient
from tests.served import Serve, ServedBroker
from tests.waiting import until

DAY_MS = 86_400_000
# What the kernel takes at most that a client does not read.
KERNEL_BYTES = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text("ascii").split()[2])


async def send(broker: ServedBroker, *texts: str, **to: object) -> None:
    """Send some frames, one after the other."""
    for text in texts:
        answer = await broker.api.send(text, **to)  # type: ignore[arg-type]
        assert answer.status == 200, answer


async def texts_of(client: EventClient, count: int) -> list[str | None]:
    """Wait for so many frames in all and return the data of every frame that came."""
    await client.wait_for(lambda _: len(client.frames) >= count, what=f"{count} frames")
    return [frame.data for frame in client.frames]


async def last_frame_of(broker: ServedBroker, uid: str, device: str) -> int:
    """Connect a device, send it one frame, disconnect it, and return the frame's id."""
    async with broker.client(uid, device) as client:
        await send(broker, "first", device=device)
        frame = await client.next_frame()
    await offline(broker, device)
    assert frame.id
    return frame.id


async def offline(broker: ServedBroker, device: str) -> None:
    """Wait until a device is not online any more."""

    async def gone() -> bool:
        return not (await broker.api.info(device=device)).result["online"]

    await until(gone, what=f"{device} offline")


# --- opening ---


async def test_the_first_event_is_the_clients_address_with_a_retry(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as client:
        assert len(client.events) == 1
        first = client.events[0]
        assert (first.event, first.data, first.id) == ("sys_connected", client.address, None)
        assert first.retry is not None
        assert 1000 <= first.retry <= 5000


async def test_without_a_last_id_a_stream_starts_with_live_frames(serve: Serve) -> None:
    broker = await serve()
    await last_frame_of(broker, "u", "d")
    await send(broker, "missed", device="d")
    await send(broker, "missed too")
    async with broker.client("u", "d") as client:
        await send(broker, "live")
        assert await texts_of(client, 1) == ["live"]
        assert [event.event for event in client.events] == ["sys_connected", "message"]


async def test_ids_rise_over_every_way_of_sending(serve: Serve) -> None:
    broker = await serve()
    before = time.time_ns() // 1000
    async with broker.client("u", "d") as client:
        for number in range(10):
            await send(broker, str(number), **[{}, {"uid": "u"}, {"device": "d"}][number % 3])  # type: ignore[arg-type]
        assert await texts_of(client, 10) == [str(number) for number in range(10)]
        ids = [frame.id or 0 for frame in client.frames]
        assert ids == sorted(set(ids))
        assert before < ids[0]
        assert ids[-1] < 2**53


async def test_a_frame_goes_to_each_device_that_it_is_for_and_to_no_other(serve: Serve) -> None:
    broker = await serve()
    async with (
        broker.client("anna", "a1") as a1,
        broker.client("anna", "a2") as a2,
        broker.client("ben", "b1") as b1,
    ):
        await send(broker, "anna", uid="anna")
        await send(broker, "b1", device="b1")
        await send(broker, "both", uid="anna", device=["a1", "b1"])
        await send(broker, "all")
        assert await texts_of(a1, 3) == ["anna", "both", "all"]
        assert await texts_of(a2, 3) == ["anna", "both", "all"]
        assert await texts_of(b1, 3) == ["b1", "both", "all"]


# --- replay ---


async def test_frames_that_were_missed_come_first_oldest_first_each_once(serve: Serve) -> None:
    """To the device, to its user and to everyone, in the order of their ids; none that was for others."""
    broker = await serve()
    last_id = await last_frame_of(broker, "anna", "a1")
    await send(broker, "1 device", device="a1")
    await send(broker, "2 user", uid="anna")
    await send(broker, "3 all")
    await send(broker, "other user", uid="ben")
    await send(broker, "other device", device="a2")
    await send(broker, "4 both", uid=["anna", "ben"], device=["a1", "a2"])
    await send(broker, "5 all")
    async with broker.client("anna", "a1", last_id=last_id) as client:
        await send(broker, "6 live", device="a1")
        assert await texts_of(client, 6) == ["1 device", "2 user", "3 all", "4 both", "5 all", "6 live"]
        ids = [frame.id or 0 for frame in client.frames]
        assert ids == sorted(set(ids))
        assert min(ids) > last_id
        assert [event.event for event in client.system] == ["sys_connected"]


@pytest.mark.parametrize("uid", ['a"b', "back\\slash", '"}, {"uid": "x', "\u00e9\u2028", "tab\there", "sp ace"])
async def test_a_user_may_have_any_name(serve: Serve, uid: str) -> None:
    """What a device gets while it is online is kept for it and for its user, whatever JSON makes of the name."""
    broker = await serve()
    async with broker.client(uid, "d") as client:
        for number in range(2):
            await broker.api.request("POST", "/send", json={"data": str(number), "device": ["d"]})
        first, _ = [await client.next_frame() for _ in range(2)]
    async with broker.client(uid, "d", last_id=first.id) as client:
        assert (await client.next_frame()).data == "1"


async def test_a_long_replay_is_complete(serve: Serve) -> None:
    """More than a page of each log."""
    broker = await serve({"sse": {"device_frame_cache_size": 200}})
    last_id = await last_frame_of(broker, "u", "d")
    targets: list[dict[str, object]] = [{}, {"uid": "u"}, {"device": "d"}]
    for number in range(90):
        await send(broker, str(number), **targets[number % 3])
    async with broker.client("u", "d", last_id=last_id) as client:
        assert await texts_of(client, 90) == [str(number) for number in range(90)]
        assert [event.event for event in client.system] == ["sys_connected"]


async def test_nothing_is_lost_or_doubled_between_replay_and_live(serve: Serve) -> None:
    """Clients come back in the midst of sends, again and again; each sees every frame once."""
    broker = await serve({"sse": {"device_frame_cache_size": 500}})
    last_id = await last_frame_of(broker, "u", "d")
    sending = asyncio.create_task(send(broker, *(str(number) for number in range(120)), uid="u"))
    seen: list[str | None] = []
    while len(seen) < 120:
        async with broker.client("u", "d", last_id=last_id) as client:
            wanted = min(7, 120 - len(seen))
            seen += (await texts_of(client, wanted))[:wanted]
            last_id = client.frames[wanted - 1].id or 0
    await sending
    assert seen == [str(number) for number in range(120)]


async def test_a_return_on_another_instance_is_replayed(serve_on_redis: Serve) -> None:
    first, second = await serve_on_redis(), await serve_on_redis()
    last_id = await last_frame_of(first, "u", "d")
    await send(first, "one", device="d")
    await send(second, "two", uid="u")
    await send(second, "three")
    async with second.client("u", "d", last_id=last_id) as client:
        await send(first, "live", device="d")
        assert await texts_of(client, 4) == ["one", "two", "three", "live"]


async def test_a_loss_is_never_silent(serve: Serve) -> None:
    """Where retention dropped frames, a notice says which id was asked for and which is the oldest that is there."""
    broker = await serve({"sse": {"device_frame_cache_size": 3}})
    last_id = await last_frame_of(broker, "u", "d")
    await send(broker, *"123456", device="d")
    async with broker.client("u", "d", last_id=last_id) as client:
        await send(broker, "live", device="d")
        texts = await texts_of(client, 4)
        assert texts[-4:] == ["4", "5", "6", "live"]
        assert [event.event for event in client.events[:2]] == ["sys_connected", "sys_replay_gap"]
        gap = client.events[1]
        assert gap.id is None
        assert json.loads(gap.data or "") == {"requested": last_id, "oldest": client.frames[0].id}
        assert len(client.system) == 2


async def test_the_notice_of_a_loss_reaches_to_its_end_where_one_log_lost_more_than_another(serve: Serve) -> None:
    """The first frame that is there stands before some of those that are not."""
    broker = await serve({"sse": {"device_frame_cache_size": 3}})
    last_id = await last_frame_of(broker, "u", "d")
    await send(broker, "kept", device="d")
    await send(broker, *"123456")
    async with broker.client("u", "d", last_id=last_id) as client:
        assert await texts_of(client, 4) == ["kept", "4", "5", "6"]
        assert json.loads(client.events[1].data or "") == {"requested": last_id, "oldest": client.frames[1].id}
        assert len(client.system) == 2


async def test_a_full_log_without_a_loss_is_no_gap(serve: Serve) -> None:
    broker = await serve({"sse": {"device_frame_cache_size": 3}})
    async with broker.client("u", "d") as client:
        await send(broker, *"123456", device="d")
        await texts_of(client, 6)
        asked = client.frames[2].id
    await offline(broker, "d")
    async with broker.client("u", "d", last_id=asked) as client:
        assert await texts_of(client, 3) == ["4", "5", "6"]
        assert [event.event for event in client.system] == ["sys_connected"]


@pytest.mark.parametrize("last_id", [0, 1, 1_000_000_000_000_000])
async def test_an_id_older_than_retention_is_a_gap(serve: Serve, last_id: int) -> None:
    broker = await serve()
    await send(broker, "kept", device="d")
    async with broker.client("u", "d", last_id=last_id) as client:
        assert await texts_of(client, 1) == ["kept"]
        gap = client.events[1]
        assert json.loads(gap.data or "") == {"requested": last_id, "oldest": client.frames[0].id}


async def test_the_embedded_broker_forgets_with_its_end_and_says_so(serve_embedded: Serve) -> None:
    last_id = await last_frame_of(await serve_embedded(), "u", "d")
    broker = await serve_embedded()
    async with broker.client("u", "d", last_id=last_id) as client:
        gap = await client.next_event("sys_replay_gap")
        assert json.loads(gap.data or "")["requested"] == last_id
        await send(broker, "live")
        assert (await client.next_frame()).data == "live"


@pytest.mark.parametrize("last_id", [2**53 - 1, 2**53, 10**16 - 1])
async def test_an_id_from_the_future_does_not_silence_the_stream(serve: Serve, last_id: int) -> None:
    broker = await serve()
    async with broker.client("u", "d", last_id=last_id) as client:
        await send(broker, "live", device="d")
        assert await texts_of(client, 1) == ["live"]
        assert [event.event for event in client.system] == ["sys_connected", "sys_replay_gap"]
        assert json.loads(client.system[1].data or "")["requested"] == min(last_id, 2**53 - 1)


async def test_a_device_under_another_user_gets_nothing_of_the_former(serve: Serve) -> None:
    """Neither what was sent to the device by its name, nor what was sent to the former user; broadcasts are for all."""
    broker = await serve()
    last_id = await last_frame_of(broker, "anna", "d")
    await send(broker, "for anna's device", device="d")
    await send(broker, "for anna", uid="anna")
    await send(broker, "for all")
    async with broker.client("ben", "d", last_id=last_id) as client:
        await send(broker, "for ben", uid="ben")
        await send(broker, "for the device", device="d")
        assert await texts_of(client, 3) == ["for all", "for ben", "for the device"]
    await offline(broker, "d")
    async with broker.client("anna", "d", last_id=last_id) as client:
        await send(broker, "anna again", uid="anna")
        assert "for ben" not in await texts_of(client, 3)
        assert "for the device" not in [frame.data for frame in client.frames]
        assert client.frames[-1].data == "anna again"


# --- silence ---


async def test_silence_is_broken_by_heartbeats_alone(serve_embedded: Serve) -> None:
    """One comment line for each interval of silence, and none while frames come."""
    interval = 0.4
    broker = await serve_embedded({"sse": {"heartbeat_interval": interval}})
    async with broker.client("silent", "silent") as silent, broker.client("busy", "busy") as busy:
        opened = time.monotonic()
        while silent.heartbeats < 5:
            await send(broker, "x", uid="busy")
            assert time.monotonic() < opened + 20 * interval
        # On a busy machine the sends may pause for long enough themselves.
        pauses = [later.seen_at - earlier.seen_at for earlier, later in itertools.pairwise(busy.events)]
        assert busy.heartbeats <= sum(pause > interval / 2 for pause in pauses)
        between = [later - earlier for earlier, later in itertools.pairwise(silent.heartbeat_times)]
        assert min(between) > interval / 2
        assert min(between) < 1.5 * interval, "a busy machine makes some of them later, not all"
        assert silent.heartbeat_times[0] - opened > interval / 4
        assert len(silent.events) == 1


# --- who does not read ---


@pytest.mark.parametrize("to", [{"uid": "u"}, {}], ids=["to the user", "to everyone"])
async def test_a_client_that_does_not_read_is_closed_at_the_bound(serve_embedded: Serve, to: dict[str, str]) -> None:
    """By the bytes that wait alone: no heartbeat is due. What the kernel takes is known to it."""
    bound, text = 1024 * 1024, "x" * 60_000
    broker = await serve_embedded({"sse": {"heartbeat_interval": 60, "max_buffer_bytes": bound}})
    async with broker.client("u", "stalled", receive_buffer_bytes=4096) as stalled:
        stalled.stop_reading()
        stream = broker.broker.registry.device(device_id_of("stalled"))
        assert stream is not None
        sent = most = 0
        while not stream.ended:
            await send(broker, text, **to)
            await asyncio.sleep(0)
            sent += len(text)
            most = max(most, stream.backlog_bytes)
            assert sent < bound + KERNEL_BYTES + 10 * len(text)
        assert stream.end_reason == Reason.HEARTBEAT_FAIL
        assert bound / 2 < most < bound + 2 * len(text)


async def test_a_client_that_slowly_takes_a_frame_far_beyond_the_bound_has_it(serve_embedded: Serve) -> None:
    """Line breaks alone make seven bytes of one; heartbeats fall due on the way."""
    interval, size = 1, 2 * 1024 * 1024
    tables = {"sse": {"heartbeat_interval": interval, "max_buffer_bytes": size}, "server": {"max_body_bytes": size}}
    broker = await serve_embedded(tables)
    async with broker.client("u", "d", receive_buffer_bytes=65_536) as client:
        client.stop_reading()
        await send(broker, text := "\n" * 1_000_000, uid="u")
        stream = broker.broker.registry.device(device_id_of("d"))
        assert stream is not None
        assert stream.backlog_bytes > size
        began = time.monotonic()
        while not client.frames:
            client.resume_reading()
            for _ in range(2):  # it takes a turn of the loop until it reads
                await asyncio.sleep(0)
            client.stop_reading()
            await asyncio.sleep(interval / 20)
            assert not stream.ended, (time.monotonic() - began, stream.failure)
        client.resume_reading()
        assert client.frames[0].data == text
        assert time.monotonic() - began > 2 * interval


# --- ends ---


async def test_a_kick_ends_the_stream_with_its_data(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as client:
        assert (await broker.api.kick(device="d", data="go\naway")).result == 1
        end = await client.next_event("sys_kick_offline")
        assert (end.data, end.id) == ("go\naway", None)
        assert end.retry is not None
        assert DAY_MS / 2 <= end.retry <= DAY_MS * 2
        assert await client.wait_closed() == "clean"
        await offline(broker, "d")


async def test_a_kick_without_data_has_empty_data(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as client:
        await broker.api.kick(uid="u")
        assert (await client.next_event("sys_kick_offline")).data == ""


async def test_a_newer_stream_of_the_device_replaces_the_older(serve: Serve) -> None:
    broker = await serve()
    async with broker.client("u", "d") as older, broker.client("u", "d") as newer:
        end = await older.next_event("sys_extrude_offline")
        assert (end.data, end.id) == (newer.address, None)
        assert end.retry is not None
        assert DAY_MS / 2 <= end.retry <= DAY_MS * 2
        assert await older.wait_closed() == "clean"
        assert (await broker.api.send("x", device="d")).result == 1
        assert (await newer.next_frame()).data == "x"
        assert not older.frames


async def test_a_newer_stream_on_another_instance_replaces_the_older(serve_on_redis: Serve) -> None:
    first, second = await serve_on_redis(), await serve_on_redis()
    async with first.client("u", "d") as older, second.client("u", "d") as newer:
        assert (await older.next_event("sys_extrude_offline")).data == newer.address
        assert await older.wait_closed() == "clean"
        assert (await first.api.send("x", device="d")).result == 1
        assert (await newer.next_frame()).data == "x"


async def test_an_instance_that_closes_says_its_address(serve: Serve) -> None:
    """With a random retry of one to five seconds, so that a restart is no stampede."""
    broker = await serve()
    clients = [await broker.client("u", f"d{number}").open() for number in range(12)]
    try:
        address = broker.address
        await broker.stop()
        retries = set()
        for client in clients:
            end = await client.next_event("sys_instance_close")
            assert (end.data, end.id) == (address, None)
            assert end.retry is not None
            assert 1000 <= end.retry <= 5000
            retries.add(end.retry)
            assert await client.wait_closed() == "clean"
        assert len(retries) > 6
    finally:
        for client in clients:
            await client.close()


async def test_a_kicked_devices_token_is_refused(serve: Serve) -> None:
    """That token alone: a new one, and another device's, are good."""
    broker = await serve()
    token = broker.mint("u", "d")
    async with broker.client("u", "d", token=token) as client, broker.client("u", "other") as other:
        await broker.api.kick(device="d")
        await client.wait_closed()
        answer = await broker.client("u", "d", token=token).connect()
        assert (answer.status, answer.body["code"], answer.result) == (401, 401, "")
        assert "revoked" in answer.msg
        assert not other.closed
        async with broker.client("u", "d", token=broker.mint("u", "d", ttl=301)):
            pass


async def test_a_kicked_devices_token_is_refused_on_every_instance(serve_on_redis: Serve) -> None:
    first, second = await serve_on_redis(), await serve_on_redis()
    token = first.mint("u", "d")
    async with first.client("u", "d", token=token) as client:
        assert (await second.api.kick(uid="u", data="bye")).result == 1
        assert (await client.next_event("sys_kick_offline")).data == "bye"
    for broker in (first, second, await serve_on_redis()):
        assert (await broker.client("u", "d", token=token).connect()).status == 401


async def test_a_kick_reaches_only_who_is_meant_and_only_those_online(serve: Serve) -> None:
    broker = await serve()
    token = broker.mint("away", "away")
    async with broker.client("u", "d"):
        assert (await broker.api.kick(uid=["away", "nobody"], device="away")).result == 0
        async with broker.client("away", "away", token=token):
            pass
