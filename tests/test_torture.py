"""Torture in short: a known round and a new one over each kind of Redis. `make torture MINUTES=60` does it for an hour.

What was found once, and could be made to happen for certain, has tests of its own elsewhere.
"""

from __future__ import annotations

import random

import pytest

from tests.history import Fault, Seen, Send, Session, decide
from tests.history_records import History
from tests.torture.plan import DEVICE_WORDS, KINDS, LOSSES, NODE_FAULTS, REDIS_FAULTS, make_plan
from tests.torture.round import play
from tests.torture.run import explain

SECONDS = 15.0


async def torture(kind: str, seed: int) -> None:
    """Play a round and fail with all that tells what was found, and how to play it again."""
    report = await play(make_plan(seed, kind, SECONDS))
    print(report.line())
    again = f"make torture KIND={kind} SEED={seed} SECONDS={SECONDS:.0f}"
    assert not report.void, f"{again}\n{report.void}"
    assert not report.findings, f"{again}\n{explain(report)}"
    assert report.frame_count > 500


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "seed"), [("standalone", 3), ("sentinel", 5), ("cluster", 1)])
async def test_a_known_round_of_torture_finds_nothing(kind: str, seed: int) -> None:
    await torture(kind, seed)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_new_round_of_torture_finds_nothing(kind: str) -> None:
    await torture(kind, random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_follows_from_its_seed_alone(kind: str) -> None:
    assert make_plan(7, kind, 20) == make_plan(7, kind, 20)
    assert make_plan(7, kind, 20).operations != make_plan(8, kind, 20).operations


@pytest.mark.parametrize("kind", KINDS)
def test_plans_use_every_fault_and_every_word_and_change_no_users_where_data_may_be_lost(kind: str) -> None:
    words = set()
    for seed in range(60):
        plan = make_plan(seed, kind, 45)
        assert [one.at for one in plan.operations] == sorted(one.at for one in plan.operations)
        here = {one.word for one in plan.operations}
        lossy = LOSSES & here if kind != "standalone" else {"flush redis"} & here
        assert not (lossy and "become" in here)
        words |= here
    assert words == {"send", *DEVICE_WORDS, *NODE_FAULTS, *REDIS_FAULTS[kind]}


def late(at: float, *faults: Fault) -> list[str]:
    """Judge a frame, accepted in second 10 on an open stream, that is seen at `at`; 5 s are allowed."""
    send = Send("1", sent_at=9.9, answered_at=10.0, addressed=1)
    session = Session("d", "u", 0.0, 0.1, frames=[Seen(1, "1", at=at)])
    history = History([send], [session], faults=list(faults), late_seconds=5, settled_at=100.0)
    return [finding.kind for finding in decide(history)]


def test_a_frame_that_comes_late_on_an_open_stream_is_found() -> None:
    assert late(14.9) == []
    assert late(15.1) == ["late"]


def test_the_time_of_faults_counts_once_and_for_nothing_else() -> None:
    assert late(25.0, Fault(11, 20), Fault(12, 19.9)) == ["late"]
    assert late(23.9, Fault(11, 20), Fault(12, 19.9)) == []
    assert late(15.1, Fault(0, 9.9), Fault(16, 30)) == ["late"]


def test_what_a_stream_missed_while_its_device_was_away_is_not_late() -> None:
    send = Send("1", sent_at=9.9, answered_at=10.0, addressed=0)
    session = Session("d", "u", 50.0, 50.1, asked_id=5, frames=[Seen(6, "1", at=50.2)])
    assert decide(History([send], [session], late_seconds=5, settled_at=100.0)) == []
