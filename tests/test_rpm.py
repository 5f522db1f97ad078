"""The rpm and the deb: what is in them, and what they do to a computer with systemd when they come, change and go."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from sse_broker.version import VERSION
from tests.broker_process import ROOT, BrokerProcess
from tests.built import build
from tests.event_client import Api
from tests.machine import Machine
from tests.smoke import smoke
from tests.waiting import free_port, until

# The build counts as part of the first test.
pytestmark = pytest.mark.timeout(1600)

# This machine's rpm knows nothing of what Debian has installed, so it can not check what the package requires.
RPM = ("rpm", "--force-debian", "--nodeps")
CONFIG = "etc/sse-broker/config.toml"
UNIT = ROOT / "etc" / "sse-broker.service"


class Service(BrokerProcess):
    """The broker as systemd runs it in a machine, with what the package's first installation made up."""

    def __init__(self, machine: Machine) -> None:
        made_up = tomlkit.parse((machine.root / CONFIG).read_text()).unwrap()
        super().__init__({"jwt": {"secret": made_up["jwt"]["secret"]}}, port=free_port())
        self._folder.cleanup()  # systemd knows where its output goes
        self.machine, (self.key,) = machine, made_up["api"]["keys"]
        drop_in = machine.root / "etc/systemd/system/sse-broker.service.d/port.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(f"[Service]\nEnvironment=SSE_BROKER_SERVER_PORT={self.port}\n")
        machine.run("systemctl", "daemon-reload")

    def api(self, key: str | None = None) -> Api:
        """Return a client with the key."""
        return Api(self.base_url, key or self.key)

    async def start(self, *, seconds: float = 30) -> None:
        """Start it and wait until it answers."""
        self.machine.run("systemctl", "start", "sse-broker")
        await until(self.answers, seconds=seconds, what="service", pause_seconds=0.1)

    async def answers(self) -> bool:
        """Say whether it answers."""
        assert self.show("ActiveState") in ("active", "activating", "reloading"), self.stderr_text()
        async with self.api() as api:
            try:
                return (await api.info()).status == 200
            except OSError:
                return False

    async def terminate(self, *, seconds: float = 30) -> tuple[int, float]:
        """Have systemd stop it."""
        self.machine.run("systemctl", "stop", "sse-broker", seconds=seconds)
        assert self.show("Result") == "success", self.stderr_text()
        return int(self.show("ExecMainStatus")), 0.0

    def stderr_text(self) -> str:
        """Return what it wrote to the journal."""
        return self.machine.run("journalctl", "--no-pager", "--unit", "sse-broker", check=False).stdout

    def show(self, name: str) -> str:
        """Return a property of the unit."""
        return self.machine.run("systemctl", "show", "--value", "--property", name, "sse-broker").stdout.strip()


def processes(machine: Machine) -> Sequence[str]:
    """Return the command lines of the broker's processes."""
    lines = machine.run("ps", "-eo", "args").stdout.splitlines()
    return [line for line in lines if "/usr/lib/sse-broker/" in line or "/usr/bin/sse-broker" in line]


def check_first_configuration(machine: Machine) -> dict[str, Any]:
    """See that a secret and a key were made up, and that nothing else changed; return the values."""
    text = (machine.root / CONFIG).read_text()
    secrets = re.findall(r'^(?:secret = |keys = \[)"([0-9a-f]{64})"\]?$', text, re.MULTILINE)
    assert len(set(secrets)) == 2, text
    example = (ROOT / "etc" / "config.toml").read_text()
    expected = re.sub(r'^(secret = ""|keys = \[\])$', "", example, flags=re.MULTILINE)
    assert re.sub(r'^(secret|keys) = .*"\]?$', "", text, flags=re.MULTILINE) == expected
    assert machine.run("stat", "-c", "%a %U:%G", "/" + CONFIG).stdout == "640 root:sse-broker\n"
    return tomlkit.parse(text).unwrap()


# The files


def test_the_rpm_holds_what_a_service_needs(rpm: Path) -> None:
    listed = subprocess.run(["rpm", "-qp", "--dump", rpm], capture_output=True, text=True, check=True, timeout=60)
    files = {words[0]: words for words in map(str.split, listed.stdout.splitlines())}
    for path, mode, group, config in [
        ("/usr/lib/sse-broker/sse-broker", "0100755", "root", "0"),
        ("/usr/lib/sse-broker/first-install", "0100755", "root", "0"),
        ("/usr/lib/sse-broker/_internal/sse_broker/templates/demo.html", "0100644", "root", "0"),
        ("/usr/lib/systemd/system/sse-broker.service", "0100644", "root", "0"),
        ("/usr/share/man/man1/sse-broker.1.gz", "0100644", "root", "0"),
        ("/usr/share/bash-completion/completions/sse-broker", "0100644", "root", "0"),
        ("/usr/share/zsh/site-functions/_sse-broker", "0100644", "root", "0"),
        ("/etc/logrotate.d/sse-broker", "0100644", "root", "1"),
        ("/etc/sse-broker/config.toml", "0100640", "sse-broker", "1"),
        ("/var/log/sse-broker", "040750", "sse-broker", "0"),
    ]:
        assert (files[path][4], files[path][6], files[path][7]) == (mode, group, config), path
    assert files["/usr/bin/sse-broker"][10] == "../lib/sse-broker/sse-broker"
    assert all(words[5] == "root" for path, words in files.items() if path != "/var/log/sse-broker")


def test_no_library_inside_remembers_the_machine_that_built_it(bundle: Path) -> None:
    for path in bundle.rglob("*.so*"):
        shown = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True, timeout=60).stdout
        assert "RPATH" not in shown, path
        assert "RUNPATH" not in shown, path


def test_rpmlint_finds_nothing_that_has_no_reason(rpm: Path) -> None:
    folder = ROOT / "rpm"
    result = subprocess.run(
        ["rpmlint", "-c", folder / "rpmlint.toml", rpm, folder / "sse-broker.spec"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "0 errors, 0 warnings" in result.stdout, result.stdout


def test_the_unit_is_valid_and_locked_up(tmp_path: Path) -> None:
    """With the program standing in for one that is installed, which the check wants to see."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/sse-broker", "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-300:]


def test_the_man_page_is_clean_and_names_what_the_help_names() -> None:
    page = ROOT / "docs" / "man" / "sse-broker.1"
    lint = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", page], capture_output=True, text=True, timeout=60, check=False
    )
    assert (lint.returncode, lint.stdout) == (0, "")
    shown = subprocess.run(["mandoc", "-Tascii", page], capture_output=True, text=True, timeout=60, check=True).stdout
    plain = re.sub(r".\x08", "", shown)
    program = [sys.executable, "-m", "sse_broker", "--help"]
    text = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
    options = set(re.findall(r"(?<![\w-])--?[a-z]+", text))
    commands = set(re.findall(r"^  ([a-z]+(?: [a-z]+)?)  +\w", text.partition("commands")[2], re.MULTILINE))
    assert {"--config", "-v"} <= options
    assert {"serve", "config show"} <= commands
    for word in (*options, *commands, "SIGHUP", "SIGTERM"):
        assert re.search(rf"(?<!\w){re.escape(word)}\b", plain), word


# What they do


async def test_a_first_installation_runs_as_a_service(rpm: Path, machine: Machine) -> None:
    """Under all of the unit's sandboxing, started and stopped by systemd."""
    machine.run(*RPM, "--install", machine.put(rpm))
    check_first_configuration(machine)
    assert re.match(r"sse-broker:x:\d+:\d+:.*:/usr/sbin/nologin$", machine.run("getent", "passwd", "sse-broker").stdout)
    assert not processes(machine), "an rpm starts nothing by itself"
    assert machine.run("/usr/bin/sse-broker", "--version").stdout == f"sse-broker {VERSION}\n"
    machine.run(*RPM, "--verify", "sse-broker")
    service = Service(machine)
    await service.start()
    user = machine.run("ps", "-o", "user=", "-p", service.show("MainPID")).stdout.strip()
    assert user == "sse-broker"
    await smoke(service)
    service.assert_clean_output()


async def test_an_upgrade_keeps_the_configuration_and_the_service(rpm: Path, machine: Machine) -> None:
    newer = build("rpm", version="99.0.0")
    machine.run(*RPM, "--install", machine.put(rpm))
    text = (machine.root / CONFIG).read_text().replace("drain_seconds = 10", "drain_seconds = 5  # mine")
    (machine.root / CONFIG).write_text(text)
    service = Service(machine)
    await service.start()
    before = service.show("MainPID")
    async with service.client("ann", "phone") as stream:
        machine.run(*RPM, "--upgrade", machine.put(newer))
        await stream.next_event("sys_instance_close")
    await until(service.answers, seconds=30, what="the new service", pause_seconds=0.1)
    assert service.show("MainPID") not in (before, "0")
    assert (machine.root / CONFIG).read_text() == text
    assert machine.run(*RPM[:2], "-q", "sse-broker").stdout == "sse-broker-99.0.0-1.x86_64\n"


async def test_a_removal_leaves_no_process_and_keeps_what_the_operator_wrote(rpm: Path, machine: Machine) -> None:
    machine.run(*RPM, "--install", machine.put(rpm))
    text = (machine.root / CONFIG).read_text()
    service = Service(machine)
    machine.run("systemctl", "enable", "sse-broker")
    await service.start()
    async with service.client("ann", "phone") as stream:
        machine.run(*RPM, "--erase", "sse-broker")
        await stream.next_event("sys_instance_close")
    assert not processes(machine)
    for path in ("usr/lib/sse-broker", "usr/bin/sse-broker", "usr/lib/systemd/system/sse-broker.service", CONFIG):
        assert not (machine.root / path).exists(), path
    assert not list((machine.root / "etc/systemd/system").glob("*.wants/sse-broker*"))
    assert (machine.root / f"{CONFIG}.rpmsave").read_text() == text


async def test_log_files_rotate_and_lose_nothing(rpm: Path, machine: Machine) -> None:
    machine.run(*RPM, "--install", machine.put(rpm))
    config = machine.root / CONFIG
    logs = machine.root / "var/log/sse-broker"
    paths = {
        f'{name}_log_path = ""': f'{name}_log_path = "/var/log/sse-broker/{name}.log"' for name in ("access", "broker")
    }
    text = config.read_text()
    for old, new in paths.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    service = Service(machine)
    await service.start()
    async with service.api() as api:
        await api.token("before")
        await until(lambda: "/token" in (logs / "access.log").read_text(), what="line in the log")
        machine.run("logrotate", "--force", "/etc/logrotate.d/sse-broker")
        await until(lambda: (logs / "access.log.1").exists(), what="rotated log")
        count = (logs / "access.log.1").read_text().count("\n")

        async def arrives() -> bool:
            await api.token("after")
            return "/token" in (logs / "access.log").read_text()

        await until(arrives, what="line in the new log")
        # What came between renaming and SIGHUP went into the old one.
        assert (logs / "access.log.1").read_text().count("\n") >= count
    assert service.show("ActiveState") == "active"
    assert machine.run("stat", "-c", "%a %U", "/var/log/sse-broker/access.log").stdout == "640 sse-broker\n"


async def test_the_deb_installs_starts_upgrades_and_purges(deb: Path, machine: Machine) -> None:
    machine.run("dpkg", "--install", machine.put(deb))
    first = check_first_configuration(machine)
    assert machine.run("systemctl", "is-enabled", "sse-broker").stdout == "enabled\n"
    service = Service(machine)
    machine.run("systemctl", "restart", "sse-broker")  # on the port of the test
    await until(service.answers, seconds=30, what="service", pause_seconds=0.1)
    newer = build("deb", version="99.0.0")
    machine.run("dpkg", "--install", machine.put(newer))
    assert check_first_configuration(machine) == first
    await until(service.answers, seconds=30, what="service", pause_seconds=0.1)
    machine.run("dpkg", "--remove", "sse-broker")
    assert not processes(machine)
    assert (machine.root / CONFIG).exists()
    machine.run("dpkg", "--purge", "sse-broker")
    for path in ("usr/lib/sse-broker", "usr/bin/sse-broker", "etc/sse-broker", "etc/logrotate.d/sse-broker"):
        assert not (machine.root / path).exists(), path
