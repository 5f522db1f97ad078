"""`make bench`: run the scenarios, print one table with ratios to the C loop of the same run, and write JSON to bench/out/. With
`--check`, compare with bench/baseline.json. It knows how results are shown, kept and compared, and nothing of how they are taken.

Exit codes: 0; 1 if a scenario failed or, with --check, something is 15 % worse than recorded; 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import BENCH, OUT, BenchError, prepare
from lab import Lab, Row
from scenarios import SCENARIOS

BASELINE = BENCH / "baseline.json"
WORSE = 1.15
URGENT_NICENESS = -10


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = _arguments()
    try:
        if arguments.urgent:
            _hurry()
        prepare()
    except (BenchError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 1
    rows, failures = _run(arguments.only or list(SCENARIOS), Lab(quick=arguments.quick))
    report = {
        "machine": machine(),
        "quick": arguments.quick,
        "failures": failures,
        "rows": [_as_dict(row) for row in rows],
    }
    path = OUT / "results.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{table(rows)}\n\n{_conditions(report['machine'])}\nAll numbers: {path.relative_to(BENCH.parent)}")
    for failure in failures:
        print(f"FAILED {failure}")
    if arguments.record:
        _record(rows, report["machine"])
    worse = _compare(rows) if arguments.check else []
    for line in worse:
        print(f"WORSE {line}")
    return 1 if failures or worse else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the broker against a bare C send loop.")
    parser.add_argument("--quick", action="store_true", help="three pairs instead of five, and less in each")
    parser.add_argument("--check", action="store_true", help="fail when something is 15 %% worse than in baseline.json")
    parser.add_argument("--record", action="store_true", help="put the results into baseline.json")
    parser.add_argument(
        "--urgent", action="store_true", help="at a high priority, on a machine that others use too (needs root)"
    )
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=", ".join(SCENARIOS))
    return parser.parse_args()


def _hurry() -> None:
    """Raise the priority of this process and its children. Raises: PermissionError."""
    os.setpriority(os.PRIO_PROCESS, 0, URGENT_NICENESS)
    # With autogroups, niceness counts only among the processes of one session; the session has its own.
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text(str(URGENT_NICENESS))


def _run(names: list[str], lab: Lab) -> tuple[list[Row], list[str]]:
    rows, failures = [], []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            for row in SCENARIOS[name](lab):
                print(f"  {_line(row)}", file=sys.stderr, flush=True)
                rows.append(row)
        except BenchError as error:
            failures.append(f"{name}: {error}")
            print(f"  FAILED {error}", file=sys.stderr, flush=True)
    return rows, failures


# --- showing ---

HEADINGS = ("scenario", "value", "unit", "of it Redis", "C loop us", "ratio", "limit", "met", "client busy")


def _cells(row: Row) -> tuple[str, ...]:
    if row.max_ratio is not None:
        limit = f"{row.max_ratio:g}x"
    elif row.max_value is not None:
        limit = f"{row.max_value:g} {row.unit}"
    else:
        limit = "" if row.min_value is None else f">= {row.min_value:g}"
    busy = (
        ""
        if row.client_share is None
        else f"{row.client_share:.0%}" + (" BOTTLENECK" if row.client_is_bottleneck else "")
    )
    return (
        row.name,
        f"{row.value:.2f}",
        row.unit,
        f"{row.redis:.2f}" if row.redis else "",
        "" if row.c_us is None else f"{row.c_us:.2f}",
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        limit,
        {True: "yes", False: "NO", None: ""}[row.met],
        busy,
    )


def _line(row: Row) -> str:
    return "  ".join(filter(None, _cells(row)))


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table with aligned columns."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(shown)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, versions, date, commit, load of the machine."""

    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
        except (OSError, subprocess.CalledProcessError, IndexError):
            return "unknown"

    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": f"{len(model)} x {model[0] if model else platform.processor()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {
            name: importlib.metadata.version(name) for name in ("aiohttp", "uvloop", "redis", "hiredis", "PyJWT")
        },
        "redis": output("redis-server", "--version"),
        "compiler": output(os.environ.get("CC", "gcc"), "--version"),
        "commit": output("git", "-C", str(BENCH), "rev-parse", "--short", "HEAD"),
        "load_average": os.getloadavg(),
    }


def _conditions(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['date']}, commit {facts['commit']}, {facts['processor']}, Linux {facts['kernel']}, Python {facts['python']}, {packages}; "
        f"{facts['redis']}; {facts['compiler']}; load average {facts['load_average'][0]:.1f}"
    )


def _as_dict(row: Row) -> dict[str, Any]:
    return dataclasses.asdict(row) | {"met": row.met}


# --- the baseline ---


def _figure(row: Row) -> float:
    return row.value if row.ratio is None else row.ratio


def _record(rows: list[Row], facts: dict[str, Any]) -> None:
    """Put the tracked rows into the baseline, beside those that were not measured now."""
    known: dict[str, Any] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"figures": {}}
    figures = known["figures"] | {row.name: round(_figure(row), 3) for row in rows if row.tracked}
    BASELINE.write_text(json.dumps({"machine": facts, "figures": figures}, indent=1) + "\n")


def _compare(rows: list[Row]) -> list[str]:
    """Return one line for each tracked row that is clearly worse than the baseline, or that it does not know."""
    figures: dict[str, float] = json.loads(BASELINE.read_text())["figures"] if BASELINE.exists() else {}
    worse = []
    for row in rows:
        if not row.tracked:
            continue
        recorded, now = figures.get(row.name), _figure(row)
        if recorded is None:
            worse.append(f"{row.name}: not in {BASELINE.name}; record it with --record")
        elif (recorded / now if row.min_value is not None else now / recorded) > WORSE:
            worse.append(f"{row.name}: {now:.3f}, recorded {recorded:.3f}")
    return worse


if __name__ == "__main__":
    sys.exit(main())
