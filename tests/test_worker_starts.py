"""Workers that can not start: the first ends the program with one line, a later one is tried again."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
from pathlib import Path

from tests.broker_process import ROOT, BrokerProcess
from tests.redis_servers import RedisServer
from tests.waiting import free_port
from tests.worker_group import NO_SHARED_PORT, RunBroker, all_serve, patiently, pids, tables

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
# A link to the interpreter lies in no virtual environment, so it has to be told where the libraries are.
HERE = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}

pytestmark = NO_SHARED_PORT


async def test_a_worker_that_can_not_start_again_is_tried_until_it_can(
    redis_server: RedisServer, run_broker: RunBroker
) -> None:
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    first = pids(broker)
    await redis_server.kill()
    os.kill(min(first), signal.SIGKILL)
    await patiently(lambda: "Redis is out of reach" in _ends(broker), what="a worker that could not start")
    assert broker.running
    assert max(first) in pids(broker)
    await redis_server.start()
    await all_serve(broker, 2)


async def test_a_worker_for_which_the_parent_lacks_something_is_tried_until_it_can_start(
    redis_server: RedisServer, run_broker: RunBroker
) -> None:
    """The parent may open no more file for a while: neither a line nor a process can be made. The other worker serves."""
    broker = await run_broker(tables(2), redis=redis_server)
    await all_serve(broker, 2)
    first = pids(broker)
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (3, FILES))
    os.kill(min(first), signal.SIGKILL)
    refusal = r"worker \d could not be started: Too many open files; the next is started in (\S+) s"
    await patiently(lambda: len(re.findall(refusal, broker.stderr_text())) >= 2, what="two starts that fail")
    pauses = [float(text) for text in re.findall(refusal, broker.stderr_text())]
    assert pauses[:2] == sorted(set(pauses[:2])), "the pause grows"
    assert broker.running
    assert pids(broker) == {max(first)}
    resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
    await all_serve(broker, 2)
    await patiently(lambda: len(pids(broker)) == 2, what="two workers")


async def test_a_worker_whose_program_was_replaced_is_tried_until_it_is_there(
    redis_server: RedisServer, run_broker: RunBroker, tmp_path: Path
) -> None:
    """An upgrade takes the executable away for a moment."""
    executable = tmp_path / "python"
    executable.symlink_to(sys.executable)
    broker = await run_broker(tables(2), redis=redis_server, program=program(executable), env=HERE)
    await all_serve(broker, 2)
    first = pids(broker)
    executable.unlink()
    os.kill(min(first), signal.SIGKILL)
    refusal = " could not be started: No such file or directory; the next is started in "
    await patiently(lambda: refusal in broker.stderr_text(), what="a start that fails")
    executable.symlink_to(sys.executable)
    await patiently(lambda: len(pids(broker)) == 2, what="two workers")
    await all_serve(broker, 2)


async def test_a_first_worker_that_can_not_be_run_is_one_line_and_code_1(redis_server: RedisServer) -> None:
    broker = BrokerProcess(tables(2), redis=redis_server, program=program(Path("/nowhere/python")))
    await one_line(broker, 1, "worker 1 could not be started: No such file or directory")


def program(executable: Path) -> tuple[str, ...]:
    """Return the broker as a program that takes this for its own executable."""
    code = f"import sys; sys.executable = {str(executable)!r}; from sse_broker.cli import main; sys.exit(main())"
    return (sys.executable, "-X", "dev", "-c", code)


def _ends(broker: BrokerProcess) -> str:
    return "\n".join(line for line in broker.stderr_text().splitlines() if re.search(r"worker \d ended: ", line))


async def test_a_start_that_fails_is_one_line_and_code_1(redis_server: RedisServer) -> None:
    """Redis away, and the port taken, also by somebody who shares it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        nowhere = BrokerProcess(tables(2), redis_addrs=[f"127.0.0.1:{free_port()}"])
        taken = BrokerProcess(tables(2), redis=redis_server, port=port)
        for broker, word in ((nowhere, "Redis is out of reach: "), (taken, f"can not listen on 127.0.0.1:{port}: ")):
            await one_line(broker, 1, word)


async def one_line(broker: BrokerProcess, code: int, beginning: str) -> None:
    """Launch a broker that must fail, and check its exit code and the one line that says why."""
    try:
        broker.launch()
        assert await broker.wait(seconds=60) == code
        (line,) = [line for line in broker.stderr_text().splitlines() if " WARNING worker " not in line]
        assert line.startswith(f"sse-broker: {beginning}")
    finally:
        await broker.discard()


async def test_a_worker_that_finds_its_configuration_bad_is_code_2(redis_server: RedisServer) -> None:
    cert = str(ROOT / "README.md")
    broker = BrokerProcess(tables(2, tls_cert=cert, tls_key=cert), redis=redis_server)
    await one_line(broker, 2, "server.tls_cert ")
