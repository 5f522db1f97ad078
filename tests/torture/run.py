"""`make torture`: rounds of random operations with new seeds until the time is over; exit code 1 if anything was found.

A round's seed and kind give its plan again: `make torture SEED=... KIND=...` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import pickle
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.torture.plan import KINDS, make_plan
from tests.torture.round import Report, play

ROUND_SECONDS = 45.0
# A round that takes longer than its plan by this much hangs.
SPARE_SECONDS = 400.0


def keep(report: Report, folder: Path) -> Path:
    """Write down all that is needed to look into a finding, and return where."""
    place = folder / f"{report.plan.kind}-{report.plan.seed}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.txt").write_text(f"{report.plan}\n")
    (place / "findings.txt").write_text("\n".join([report.void, *map(str, report.findings)]))
    (place / "history.pickle").write_bytes(pickle.dumps(report.history))
    for address, text in report.logs.items():
        (place / f"node-{address.replace(':', '-')}.log").write_text(text)
    return place


def explain(report: Report, most: int = 20) -> str:
    """Return the findings, and the faults of the plan that led to them."""
    lines = [f"  {finding}"[:2000] for finding in report.findings[:most]]
    faults = [operation for operation in report.plan.operations if operation.lane in ("nodes", "redis")]
    return "\n".join([*lines, *(f"    {operation}" for operation in faults)])


async def one_round(seed: int, kind: str, seconds: float) -> Report:
    """Play one round, with a deadline."""
    plan = make_plan(seed, kind, seconds)
    try:
        async with asyncio.timeout(seconds + SPARE_SECONDS):
            return await play(plan)
    except TimeoutError:
        return Report(plan, void="the round hangs")


async def rounds(kinds: list[str], seed: int, minutes: float, seconds: float, folder: Path) -> int:
    """Play rounds until the time is over; return the exit code."""
    end, total, found = time.monotonic() + minutes * 60, Counter[str](), 0
    for number, kind in zip(itertools.count(), itertools.cycle(kinds)):
        report = await one_round(seed + number, kind, seconds)
        print(report.line(), flush=True)
        total.update(rounds=1, operations=len(report.plan.operations), sends=len(report.history.sends))
        total.update(streams=len(report.history.sessions), frames=report.frame_count, findings=len(report.findings))
        total.update(void=bool(report.void), seconds=round(report.seconds))
        if report.findings or report.void:
            found += 1
            print(explain(report), f"  see {keep(report, folder)}", sep="\n", flush=True)
        if time.monotonic() >= end:
            break
    print("in all:", ", ".join(f"{count} {what}" for what, count in total.items()), flush=True)
    return int(found > 0)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="how long; 0 is one round of each kind")
    parser.add_argument("--kind", choices=KINDS, help="one kind of Redis; else all in turn")
    parser.add_argument("--seed", type=int, help="the first seed; each round takes the next number")
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="the length of a round's plan")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "torture")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**8) if given.seed is None else given.seed
    kinds = [given.kind] if given.kind else list(KINDS)
    print(f"first seed {seed}, {', '.join(kinds)}, {given.minutes or 'a few'} minutes", flush=True)
    minutes = given.minutes
    return asyncio.run(rounds(kinds, seed, minutes, given.seconds, given.folder))


if __name__ == "__main__":
    sys.exit(main())
