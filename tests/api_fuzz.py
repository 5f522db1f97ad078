"""Schemathesis over /openapi.json, with all its phases and checks, against a running broker with a key:
`python -m tests.api_fuzz --seconds 600 --seed 7`. It knows the API by its description alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.broker_process import BrokerProcess
from tests.redis_servers import RedisServer

KEY = "k7Rw2pXn9vBq4TzLk7Rw2pXn9vBq4TzL"
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended: whether nothing was found, how many requests were made, and all that the tool said."""

    clean: bool
    cases: int
    text: str


async def fuzz(base_url: str, *, seconds: int, seed: int) -> Report:
    """Run the tool for so long."""
    program = Path(sys.executable).with_name("schemathesis")
    with tempfile.TemporaryDirectory(prefix="schemathesis-") as folder:
        process = await asyncio.create_subprocess_exec(
            program, f"--config-file={CONFIGURATION}", "--no-color", "run", f"{base_url}/openapi.json",
            f"--max-time={seconds}", f"--seed={seed}",
            cwd=folder,
            env=os.environ | {"COLUMNS": "120", "API_KEY": KEY},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    text = output.decode(errors="replace")
    found = re.search(r"(\d+) generated", text)
    return Report(process.returncode == 0, int(found[1]) if found else 0, text)


async def by_hand(seconds: int, seed: int) -> Report:
    """Run against a broker on Redis."""
    async with RedisServer() as redis, BrokerProcess({"api": {"keys": [KEY]}}, redis=redis) as broker:
        return await fuzz(broker.base_url, seconds=seconds, seed=seed)


def main() -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    report = asyncio.run(by_hand(arguments.seconds, arguments.seed))
    print(report.text)
    print(f"{report.cases} cases, {'nothing found' if report.clean else 'see above'}")
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
