"""`check`: look over a configuration and its Redis before a broker meets them, and give advice. Changes nothing."""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from sse_broker import config
from sse_broker.file_limits import file_limit
from sse_broker.redis_advice import redis_findings

OK, ADVICE, WRONG = "ok", "advice", "wrong"
FEW_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `level` is ok, advice or wrong."""

    level: str
    text: str


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(given: argparse.Namespace) -> int:
    """Print what was found; 1 if something is wrong. Raises: ConfigError for a configuration that can not be used."""
    settings = config.load(given.config)
    findings = [Finding(OK, "the configuration can be used"), *_server_findings(settings)]
    if settings.redis.embedded:
        findings.append(Finding(ADVICE, "the embedded backend: frames and presence end with the process"))
    else:
        started = time.monotonic()
        findings += [Finding(level, text) for level, text in asyncio.run(redis_findings(settings.redis))]
        findings.append(Finding(OK, f"looked at Redis in {time.monotonic() - started:.2f} s"))
    if given.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.level:7} {finding.text}")
    return int(any(finding.level == WRONG for finding in findings))


def _server_findings(settings: config.Config) -> Iterator[Finding]:
    limit = file_limit()
    level = ADVICE if limit < FEW_FILES else OK
    yield Finding(level, f"{limit} files may be open, so at most about as many streams for each process")
    if not settings.api.parsed_keys:
        where = "from this machine" if settings.server.is_loopback else "from everywhere"
        yield Finding(ADVICE, f"neither api.keys nor api.named_keys is set: anybody {where} may send and kick")
    if not settings.server.is_loopback and not settings.server.tls_cert:
        yield Finding(ADVICE, "no TLS here: tokens travel in the clear unless a proxy in front serves HTTPS")
