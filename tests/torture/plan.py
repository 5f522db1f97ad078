"""What one round of torture does, and when: a pure function of a seed, a kind of Redis and a length. It does nothing itself,
and knows devices, users and nodes by name and number only.

Each round takes some of the faults, not all: a rare meeting of two is found by many rounds of few faults rather than by
rounds in which everything breaks, and a round without faults of Redis is judged more strictly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("standalone", "sentinel", "cluster")
NODES = 3
DEVICES = 24
USERS = 7
SENDERS = 4
# Seconds at the start of a round without faults.
CALM_SECONDS = 2.0
LONG = "lorem ipsum " * 1500

# Each with the greatest number of seconds that it lasts; how long it lasts is drawn.
NODE_FAULTS = {
    "kill node": 6.0,
    "kill two nodes": 5.0,
    "kill all nodes": 3.0,
    "restart node": 0.0,
    "restart nodes in turn": 0.0,
    "freeze node": 1.5,
    "freeze node for long": 9.0,
}
REDIS_FAULTS = {
    "standalone": {
        "cut connections": 0.0,
        "freeze redis": 1.0,
        "freeze redis for long": 7.0,
        "kill redis": 5.0,
        "restart redis": 0.0,
        "flush redis": 0.0,
    },
    "sentinel": {
        "cut connections": 0.0,
        "freeze redis": 0.6,
        "freeze redis for long": 7.0,
        "fail over": 2.0,
        "kill replica": 3.0,
        "kill sentinel": 3.0,
    },
    "cluster": {
        "cut connections": 0.0,
        "freeze redis": 0.8,
        "freeze redis for long": 7.0,
        "fail over": 2.0,
        "fail over elsewhere": 2.0,
        "kill replica": 3.0,
        "move slot": 0.0,
        "move another slot": 0.0,
    },
}
# With them acknowledged writes may be lost, also that a device was another's before: nobody changes users in such a round.
LOSSES = {"flush redis", "freeze redis", "freeze redis for long", "fail over", "fail over elsewhere"}
DEVICE_WORDS = {
    "drop": 5,
    "drop abruptly": 5,
    "leave": 6,
    "come back": 9,
    "move": 7,
    "vanish": 4,
    "forget": 2,
    "become": 2,
    "kick device": 2,
    "kick user": 1,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that is done. `at` counts from the start of the round; operations of one lane wait for each other.

    `seconds` is how long a fault lasts, `node` the node that is asked or broken, `pick` a number for further choices.
    """

    at: float
    lane: str
    word: str
    node: int = 0
    users: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    text: str = ""
    event: str = ""
    seconds: float = 0.0
    pick: int = 0

    def __str__(self) -> str:
        who = " ".join([*self.users, *self.devices])
        return f"{self.at:7.2f} {self.lane:8} {self.word:22} node {self.node} {self.seconds:4.1f} s {self.pick:5} {who}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All operations of a round, in the order of their times; `cache_frames` is the size of the logs."""

    seed: int
    kind: str
    seconds: float
    cache_frames: int
    faults: tuple[str, ...]
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        head = f"seed {self.seed}, {self.kind}, {self.seconds:.0f} s, logs of {self.cache_frames}"
        return "\n".join([head, *map(str, self.operations)])


def make_plan(seed: int, kind: str, seconds: float) -> Plan:
    """Return what the round with this seed does."""
    draw = random.Random(f"{seed} {kind} {seconds}")
    of_redis = REDIS_FAULTS[kind]
    redis_faults = draw.sample(list(of_redis), draw.choice((0, 1, 2, 3)))
    node_faults = draw.sample(list(NODE_FAULTS), draw.choice((0, 1, 2, 3)) if redis_faults else draw.choice((1, 2, 4)))
    losses = LOSSES & set(redis_faults) if kind != "standalone" else {"flush redis"} & set(redis_faults)
    words = {word: weight for word, weight in DEVICE_WORDS.items() if word != "become" or not losses}
    operations = [
        *_faults(draw, "redis", {word: of_redis[word] for word in redis_faults}, seconds),
        *_faults(draw, "nodes", {word: NODE_FAULTS[word] for word in node_faults}, seconds),
        *_mischief(draw, words, seconds),
    ]
    for number in range(SENDERS):
        operations += _sends(draw, f"sender {number}", seconds)
    operations.sort(key=lambda operation: operation.at)
    cache_frames = draw.choice((2000, 2000, 2000, 40))
    return Plan(seed, kind, seconds, cache_frames, tuple(redis_faults + node_faults), tuple(operations))


def _faults(draw: random.Random, lane: str, words: dict[str, float], seconds: float) -> Iterator[Operation]:
    at = CALM_SECONDS + draw.uniform(0, 4)
    while words and at < seconds - 2:
        word = draw.choice(list(words))
        lasts = draw.uniform(0.2, 1) * words[word]
        yield Operation(at, lane, word, draw.randrange(NODES), seconds=lasts, pick=draw.randrange(10_000))
        at += lasts + draw.uniform(0.5, 9)


def _mischief(draw: random.Random, words: dict[str, int], seconds: float) -> Iterator[Operation]:
    at = draw.uniform(0, 1)
    while at < seconds:
        word = draw.choices(list(words), list(words.values()))[0]
        users = (f"u{draw.randrange(USERS)}",) if word in ("become", "kick user") else ()
        devices = () if word == "kick user" else (f"d{draw.randrange(DEVICES)}",)
        yield Operation(at, f"devices {draw.randrange(2)}", word, draw.randrange(NODES), users, devices)
        at += draw.uniform(0.02, 0.25)


def _sends(draw: random.Random, lane: str, seconds: float) -> Iterator[Operation]:
    at = draw.uniform(0, 0.5)
    while at < seconds:
        choice = draw.random()
        users: list[int] = draw.sample(range(USERS), draw.choice((1, 1, 1, 2))) if choice < 0.45 else []
        devices = draw.sample(range(DEVICES), draw.choice((1, 1, 1, 3))) if 0.35 < choice < 0.8 else []
        text = draw.choice(("", "short", "two\nlines", "ünïcödé \U0001f600", LONG if draw.random() < 0.1 else "x"))
        yield Operation(
            at,
            lane,
            "send",
            draw.randrange(NODES),
            tuple(f"u{number}" for number in users),
            tuple(f"d{number}" for number in devices),
            text,
            draw.choice(("", "", "news")),
        )
        # Mostly in bursts, so that some meet the very moment of a fault.
        at += draw.uniform(0.005, 0.1) if draw.random() < 0.6 else draw.uniform(0.1, 0.6)
