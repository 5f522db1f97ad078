"""The container: every instruction of the Dockerfile carried out, the image used as an engine would, and compose.yaml's
cluster behind its proxy.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.broker_process import ROOT, SECRET, BrokerProcess
from tests.event_client import Api, EventClient
from tests.machine import NAMESPACES, first_process
from tests.processes import ChildProcess
from tests.redis_servers import RedisServer
from tests.smoke import smoke
from tests.waiting import free_port, until

pytestmark = pytest.mark.timeout(600)

KEY = "Zr4tq8Wn2Xc6Vb0Ym3Kl9Pj5"
ENGINE = (*NAMESPACES, sys.executable, str(ROOT / "tests" / "container_image.py"))
COMPOSE = ROOT / "compose.yaml"


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The image: each stage's layer."""
    with tempfile.TemporaryDirectory(prefix="image-") as folder:
        result = subprocess.run(
            [*ENGINE, "build", folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-6000:]
        yield Path(folder)


class Container(BrokerProcess):
    """A broker in the image, configured by environment alone, on 127.0.0.1 of this machine."""

    def __init__(self, image: Path, **variables: str) -> None:
        super().__init__()
        given = {
            "SSE_BROKER_SERVER_HOST": "127.0.0.1",
            "SSE_BROKER_SERVER_PORT": str(self.port),
            "SSE_BROKER_JWT_SECRET": SECRET,
            "SSE_BROKER_API_KEYS": KEY,
        }
        self._env |= given | variables
        self._command = [*ENGINE, "run", str(image)]
        self.image = image

    @property
    def pid(self) -> int:
        """The first process in the container."""
        return first_process(self.process.pid)

    def api(self, key: str | None = None) -> Api:
        """Return a client with the key."""
        return Api(self.base_url, key or KEY)

    async def terminate(self, *, seconds: float = 20) -> tuple[int, float]:
        """Send SIGTERM to the first process, as an engine does."""
        start = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        return await self.wait(seconds=seconds), time.monotonic() - start

    def health(self) -> int:
        """Run the health check and return its code."""
        command = [*ENGINE, "run", str(self.image), "HEALTHCHECK"]
        return subprocess.run(command, env=self._env, timeout=30, check=False, capture_output=True).returncode


# The image


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_image_holds_the_program_and_no_tools(image: Path) -> None:
    added = {path.relative_to(image / "1" / "changes") for path in (image / "1" / "changes").rglob("*")}
    program = Path("opt/sse-broker")
    assert program / "bin/sse-broker" in added
    assert {path.parts[0] for path in added} <= {"opt", "etc", "var"}  # the latter two for ldconfig's cache
    packages = {path.name for path in added if path.parent.name == "site-packages"}
    assert {"sse_broker", "aiohttp", "uvloop"} <= packages
    assert not packages & {"pip", "setuptools", "pytest", "PyInstaller"}
    assert any(path.suffix == ".pyc" for path in added), "compiled at build, since nothing can be written later"


async def test_the_image_passes_the_smoke_suite(image: Path) -> None:
    async with Container(image) as broker:
        await smoke(broker)


async def test_its_process_may_do_nothing_and_write_nowhere(image: Path) -> None:
    async with Container(image) as broker:
        check_process(Path(f"/proc/{broker.pid}"))


def check_process(process: Path) -> None:
    """See what the kernel lets it do."""
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NSpid"].split()[-1] == "1", "the first process of its namespace"
    assert (process / "exe").resolve().name.startswith("python")
    mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
    disks = {words[1]: words[3].split(",")[0] for words in mounts if words[2] in ("overlay", "tmpfs")}
    assert disks["/"] == disks["/usr/local"] == disks["/tmp"] == "ro"


async def test_the_health_check_tells_a_broker_that_answers(image: Path) -> None:
    async with Container(image) as broker:
        assert broker.health() == 0
        await broker.terminate()
        assert broker.health() == 1


def test_without_secrets_it_says_what_to_set(image: Path) -> None:
    """The image listens on every address, where nobody may run it unprotected by mistake."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SSE_BROKER_")}
    result = subprocess.run(
        [*ENGINE, "run", str(image)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert re.fullmatch(
        r"sse-broker: SSE_BROKER_SERVER_HOST: jwt.secret is not set: while server.host is 0.0.0.0 .*\n", result.stderr
    ), result.stderr


# The composition


def composition() -> dict[str, Any]:
    """Return compose.yaml with its variables filled in."""
    variables = {"SSE_BROKER_JWT_SECRET": SECRET, "SSE_BROKER_API_KEYS": KEY}
    return yaml.safe_load(re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: variables[match[1]], COMPOSE.read_text()))


def test_compose_starts_two_locked_up_brokers_behind_a_proxy() -> None:
    services: Mapping[str, Any] = composition()["services"]
    assert set(services) == {"redis", "broker1", "broker2", "proxy"}
    for name in ("broker1", "broker2"):
        broker = services[name]
        assert broker["read_only"] is True
        assert broker["cap_drop"] == ["ALL"]
        assert "ports" not in broker, "only the proxy is reached from outside"
        assert (
            broker["environment"]["SSE_BROKER_SERVER_TRUSTED_PROXIES"]
            == (services["proxy"]["networks"]["inside"]["ipv4_address"])
        )
    for source, target in [volume.split(":")[:2] for volume in services["proxy"]["volumes"]]:
        assert (ROOT / source).is_file(), target


@pytest.fixture
async def cluster(redis_server: RedisServer, tmp_path: Path) -> Any:
    """The services of compose.yaml on this machine: brokers with its environment, nginx with its file."""
    services = composition()["services"]
    config = (ROOT / "packaging/container/nginx.conf").read_text()
    brokers: dict[str, BrokerProcess] = {}
    port = free_port()
    for name in ("broker1", "broker2"):
        broker = brokers[name] = BrokerProcess(
            env=services[name]["environment"]
            | {
                "SSE_BROKER_REDIS_ADDRS": redis_server.config["addrs"][0],
                "SSE_BROKER_SERVER_TRUSTED_PROXIES": "127.0.0.1",
            }
        )
        config = config.replace(f"{name}:8080", broker.address)
    config = config.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(config)
    assert shutil.which("nginx")
    proxy = ChildProcess(
        ["nginx", "-c", str(tmp_path / "nginx.conf"), "-e", "stderr", "-g", "daemon off; user root;"],
        tmp_path / "output.txt",
    )
    try:
        for broker in brokers.values():
            await broker.start()
        async with Api(f"http://127.0.0.1:{port}", KEY) as api:

            async def answers() -> bool:
                try:
                    return (await api.info()).status == 200
                except OSError:
                    return False

            await until(answers, what="the proxy")
            yield api, brokers
        assert proxy.running, proxy.text()
    finally:
        await proxy.terminate()
        for broker in brokers.values():
            await broker.discard()


async def test_frames_pass_the_proxy_at_once_and_outlive_a_broker(
    cluster: tuple[Api, dict[str, BrokerProcess]],
) -> None:
    api, brokers = cluster
    token = await api.token_for("ann", "phone", ttl=300)
    async with EventClient(api.base_url, token=token, device="phone") as stream:
        assert (await api.send("one", uid="ann")).result == 1
        first = await stream.next_frame(seconds=2)
        assert first.data == "one"
        (device,) = (await api.info(uid="ann")).result["devices"]
        assert device["device_address"] == "127.0.0.1", "the client's, as the proxy tells it"
        (home,) = (name for name, broker in brokers.items() if broker.address == device["instance_address"])
        code, _ = await brokers[home].terminate()
        assert code == 0
        await stream.next_event("sys_instance_close")
    assert (await api.send("two", uid="ann")).status == 200
    async with EventClient(api.base_url, token=token, device="phone", last_id=first.id) as stream:
        assert (await stream.next_frame()).data == "two"
