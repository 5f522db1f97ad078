"""Feed the targets of `fuzz_targets` with made-up bytes: `python -m tests.fuzz --cases 100000 --seed 7 [target...]`.

Each case follows from seed and number alone, so a finding can be repeated: `--seed 7 --first 4711 --cases 1`. With atheris
installed, `--atheris` lets coverage guide one target. The result is one line of JSON for each target.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.fuzz_targets import SEEDS, TARGETS

# What breaks parsers: ends of lines, quotes, brackets, escapes, halves of characters, numbers at their ends.
PIECES = [
    b"\r", b"\n", b"\r\n", b"\0", b"\x1a", b"\x7f", b"\xff", b"\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"'", b'"', b"\\", b"\\u0000", b"\\ud800", b"%00", b"%0d%0a", b"%", b"%ff", b";", b",",
    b":", b"=", b"&", b"+", b" ", b"\t", b".", b"..", b"-", b"--", b"[", b"]", b"{", b"}", b"(", b")", b"null", b"true",
    b"NaN", b"Infinity", b"1e999", b"-0", b"9007199254740993", b"18446744073709551616", b"0x7f", b"1_0", b"\xd9\xa3",
    b"token=", b"data", b"uid", b"exp", b"sys_", b"id: 1", b"event: x", b"retry: 0", b"charset=utf-7", b"charset=idna",
    b"boundary=", b"sha256:", b"*", b"#", b"?", b"/", b"//", b"<script>", b"\xc3\xa9", b"\xf0\x9f\x98\x80",
]  # fmt: skip


def case(target: str, seed: int, number: int) -> bytes:
    """Return one case."""
    maker = random.Random(f"{target}/{seed}/{number}")
    seeds = SEEDS[target]
    data = bytearray(maker.choice(seeds))
    if len(data) > 2000:
        start = maker.randrange(len(data))
        data = data[start : start + maker.randrange(1, 2000)]
    for _ in range(min(64, int(maker.expovariate(0.35)))):
        _CHANGES[maker.randrange(len(_CHANGES))](maker, data)
    if maker.random() < 0.02:
        data = bytearray(maker.randbytes(maker.randrange(200)))
    return bytes(data)


def _place(maker: random.Random, data: bytearray) -> int:
    return maker.randrange(len(data) + 1)


def _insert_piece(maker: random.Random, data: bytearray) -> None:
    place = _place(maker, data)
    data[place:place] = maker.choice(PIECES)


def _overwrite_piece(maker: random.Random, data: bytearray) -> None:
    place, piece = _place(maker, data), maker.choice(PIECES)
    data[place : place + len(piece)] = piece


def _delete(maker: random.Random, data: bytearray) -> None:
    place = _place(maker, data)
    del data[place : place + maker.randrange(1, 9)]


def _flip(maker: random.Random, data: bytearray) -> None:
    if data:
        data[maker.randrange(len(data))] ^= 1 << maker.randrange(8)


def _repeat(maker: random.Random, data: bytearray) -> None:
    place = _place(maker, data)
    part = data[place : place + maker.randrange(1, 20)]
    data[place:place] = part * maker.choice((1, 2, 8, 100))


def _cut(maker: random.Random, data: bytearray) -> None:
    del data[_place(maker, data) :]


def _swap(maker: random.Random, data: bytearray) -> None:
    first, second = sorted((_place(maker, data), _place(maker, data)))
    data[:] = data[:first] + data[second:] + data[first:second]


_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _insert_piece,
    _insert_piece,
    _overwrite_piece,
    _delete,
    _flip,
    _flip,
    _repeat,
    _cut,
    _swap,
)


def run(target: str, seed: int, cases: int, first: int = 0) -> dict[str, Any]:
    """Feed one target and return what came of it: cases, seconds, and the first findings."""
    function = TARGETS[target]
    findings: list[dict[str, Any]] = []
    slowest, started = 0.0, time.perf_counter()
    for number in range(first, first + cases):
        data = case(target, seed, number)
        begun = time.perf_counter()
        try:
            function(data)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            if len(findings) < 20 and all(known["where"] != where for known in findings):
                findings.append(
                    {"number": number, "error": repr(error)[:300], "where": where, "data": repr(data)[:300]}
                )
        slowest = max(slowest, time.perf_counter() - begun)
    seconds = time.perf_counter() - started
    return {
        "target": target,
        "seed": seed,
        "first": first,
        "cases": cases,
        "seconds": round(seconds, 1),
        "slowest_ms": round(1000 * slowest, 1),
        "findings": findings,
    }


def run_atheris(target: str, cases: int) -> None:
    """Let coverage guide one target for so many cases; libFuzzer ends the process and prints what it found."""
    import atheris

    with atheris.instrument_imports(include=["sse_broker", "jwt"]):
        for name in [name for name in sys.modules if name.startswith(("sse_broker", "jwt", "tests.fuzz_targets"))]:
            del sys.modules[name]
        from tests.fuzz_targets import TARGETS as instrumented
    function = instrumented[target]
    atheris.Setup([sys.argv[0], f"-runs={cases}", "-max_len=4096"], function)
    atheris.Fuzz()


def main() -> int:
    """Run as the arguments say; exit code 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=[], metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=10_000, help="cases for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--atheris", action="store_true", help="let coverage guide it; takes one target")
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    if arguments.atheris:
        run_atheris(targets[0], arguments.cases)
        return 0
    found = False
    for target in targets:
        result = run(target, arguments.seed, arguments.cases, arguments.first)
        print(json.dumps(result), flush=True)
        found = found or bool(result["findings"])
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
