"""One smoke suite for every way in which the program is delivered: page, token, stream, send, kick, stop by signal.

Knows a broker by its address and by how it is asked to end, and nothing of what it was built from.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.broker_process import BrokerProcess
from tests.event_client import Api, EventClient

TEXT = "two\nlines, ünïcode and 🎈"


async def smoke(broker: BrokerProcess) -> None:
    """Use a running broker from its page to its end; it must end with code 0 and with a word to its clients."""
    async with broker.api() as api:
        await check_pages(api)
        await check_frames(broker, api)
        await check_kick(broker, api)
        await check_stop(broker)


def own_key(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, dict[str, dict[str, Any]]]:
    """Return a new private key, and the configuration of a broker that takes its tokens."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(pem)
    return private, {"jwt": {"public_keys": [str(folder / "key.pem")]}}


async def check_own_key(broker: BrokerProcess, private: ec.EllipticCurvePrivateKey) -> None:
    """Open a stream with a token of a private key. The library for it is optional for who installs from Python's index; nobody
    can add one to a bundle.
    """
    now = int(time.time())
    token = jwt.encode({"uid": "ann", "iat": now, "exp": now + 60}, private, algorithm="ES256")
    async with EventClient(broker.base_url, token=token, device="phone") as stream:
        assert stream.system[0].event == "sys_connected"


async def check_pages(api: Api) -> None:
    """See that both pages come, with the assets that they name."""
    for path in ("/", "/demo"):
        page = await api.request("GET", path)
        assert page.status == 200, page
        assert "<title>" in page.body
        names = re.findall(r'(?:src|href)="\./?(static/[^"]+)"', page.body)
        assert len(names) >= 3, page.body[:1000]
        for name in names:
            asset = await api.request("GET", f"/{name}")
            assert asset.status == 200, name
            assert asset.body, name


async def check_frames(broker: BrokerProcess, api: Api) -> None:
    """Get a token, open a stream, and get what is sent to the user and to all, and what was sent while away."""
    token = await api.token_for("ann", "phone", ttl=300)
    async with EventClient(broker.base_url, token=token, device="phone") as stream:
        assert (await api.send(TEXT, uid="ann", event="greeting")).result == 1
        assert (await api.send("for all")).result == 1
        first, second = await stream.next_frame(), await stream.next_frame()
        assert (first.event, first.data) == ("greeting", TEXT)
        assert (second.event, second.data) == ("message", "for all")
        online = (await api.info(uid="ann")).result
        assert [device["device_name"] for device in online["devices"]] == ["phone"]
    assert (await api.send("missed", device="phone")).status == 200
    async with EventClient(broker.base_url, token=token, device="phone", last_id=second.id) as stream:
        assert (await stream.next_frame()).data == "missed"


async def check_kick(broker: BrokerProcess, api: Api) -> None:
    """Kick a device: it is told why, and its token is good for nothing any more."""
    token = await api.token_for("bob", "laptop", ttl=300)
    async with EventClient(broker.base_url, token=token, device="laptop") as stream:
        assert (await api.kick(device="laptop", data="enough")).result == 1
        assert (await stream.next_event("sys_kick_offline")).data == "enough"
        await stream.wait_closed()
    back = EventClient(broker.base_url, token=token, device="laptop")
    try:
        assert (await back.connect()).status == 401
    finally:
        await back.close()


async def check_stop(broker: BrokerProcess) -> None:
    """End the program by its signal, with a stream open."""
    async with broker.client("cid", "tablet") as stream:
        code, _ = await broker.terminate()
        assert (await stream.next_event("sys_instance_close")).data == broker.address
        assert await stream.wait_closed() == "clean"
    assert code == 0, broker.stderr_text()[-4000:]
