"""The bundle: a folder with the program and all it needs, built as people build it and used without any Python."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from sse_broker.version import VERSION
from tests.broker_process import BrokerProcess
from tests.redis_servers import RedisServer
from tests.smoke import check_own_key, own_key, smoke
from tests.waiting import until

# The build counts as part of the first test.
pytestmark = pytest.mark.timeout(1600)


def run(program: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with nothing in the environment that would help it."""
    return subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": "/nowhere"} | (env or {}),
        check=False,
    )


async def test_the_bundle_passes_the_smoke_suite(bundle: Path) -> None:
    async with BrokerProcess(program=(str(bundle / "sse-broker"),)) as broker:
        await smoke(broker)


async def test_the_bundle_works_with_redis(bundle: Path, redis_server: RedisServer) -> None:
    async with BrokerProcess(program=(str(bundle / "sse-broker"),), redis=redis_server) as broker:
        await smoke(broker)


async def test_the_bundle_starts_its_own_workers(bundle: Path, redis_server: RedisServer) -> None:
    """There is no Python beside it to start them with."""
    program = (str(bundle / "sse-broker"),)
    async with BrokerProcess({"server": {"workers": 2}}, program=program, redis=redis_server) as broker:
        async with broker.api() as api:

            async def both() -> bool:
                return bool((await api.info()).result["instance_count"] == 2)

            await until(both, seconds=30, what="two instances")
        async with broker.client("ann", "phone") as stream:
            code, _ = await broker.terminate()
            await stream.next_event("sys_instance_close")
        assert code == 0


async def test_the_bundle_checks_tokens_of_public_keys(bundle: Path, tmp_path: Path) -> None:
    private, config = own_key(tmp_path)
    async with BrokerProcess(config, program=(str(bundle / "sse-broker"),)) as broker:
        await check_own_key(broker, private)


def test_it_needs_neither_python_nor_its_folder(bundle: Path, tmp_path: Path) -> None:
    """Moved elsewhere, with an empty environment."""
    moved = tmp_path / "moved to"
    shutil.copytree(bundle, moved, symlinks=True)
    result = run(moved / "sse-broker", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"sse-broker {VERSION}\n", "")


def test_it_finds_the_configuration_beside_it(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(bundle, moved, symlinks=True)
    (moved / "config.toml").write_text("[server]\nport = 'x'\n")
    result = run(moved / "sse-broker")
    assert result.returncode == 2
    assert result.stderr == f"sse-broker: {moved}/config.toml: server.port must be a whole number, not text\n"


def test_the_fast_loop_is_inside(bundle: Path) -> None:
    assert list(bundle.rglob("uvloop/loop*.so"))


def test_nothing_but_the_program_is_inside(bundle: Path) -> None:
    """No test tools, no build tools, no links out of it, nothing that others may write."""
    names = {path.name for path in (bundle / "_internal").iterdir()}
    assert not names & {"pytest", "mypy", "ruff", "PyInstaller", "setuptools", "pip", "tcl", "tk"}
    for path in bundle.rglob("*"):
        assert not path.is_symlink() or path.resolve().is_relative_to(bundle.resolve()), path
        assert path.is_symlink() or not path.stat().st_mode & stat.S_IWOTH, path
    assert sum(path.stat().st_size for path in bundle.rglob("*") if not path.is_symlink()) < 120e6


def test_a_second_build_has_nothing_to_do(bundle: Path) -> None:
    from tests.built import build

    before = (bundle / "sse-broker").stat().st_mtime_ns
    assert build("bundle") == bundle
    assert (bundle / "sse-broker").stat().st_mtime_ns == before
    assert os.access(bundle / "sse-broker", os.X_OK)
