"""The judge over random runs of an ideal broker: always good, and with one thing broken never."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import (
    Fault,
    Heard,
    History,
    Online,
    Seen,
    Status,
    decide,
)
from tests.ideal_broker import Ideal


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_runs_of_an_ideal_broker_are_good(seed: int) -> None:
    assert decide(Ideal(seed).run(60)) == []


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_faults_and_the_messages_that_are_lost_in_them_raise_no_alarm(seed: int) -> None:
    history, draw = Ideal(seed).run(60), random.Random(seed)
    for _ in range(draw.randrange(4)):
        start = draw.uniform(-5, history.settled_at)
        history.faults.append(Fault(start, start + draw.uniform(0, 15), messages=draw.random() < 0.7))
    unheard = [fault for fault in history.faults if fault.messages]
    history.heard = [
        message
        for message in history.heard or ()
        if not any(fault.start < message.at < fault.end for fault in unheard) or draw.random() < 0.5
    ]
    assert decide(history) == []


def lose(history: History, draw: random.Random) -> bool:
    """Take away a frame before the last of a stream that asked with a last id, or was surely due."""
    sends = {send.data: send for send in history.sends}
    places = [
        (session, place)
        for session in history.sessions
        for place, frame in enumerate(session.frames[:-1])
        if sends[frame.data].status is Status.ACCEPTED
        and (session.asked_id is not None or sends[frame.data].sent_at >= session.connected_at)
    ]
    if places:
        session, place = draw.choice(places)
        del session.frames[place]
    return bool(places)


def change_frames(change: Callable[[list[Seen], int], None]) -> Callable[[History, random.Random], bool]:
    """Return a breaking that changes the frames of a stream at a place that is not the last."""

    def breaking(history: History, draw: random.Random) -> bool:
        sessions = [session for session in history.sessions if len(session.frames) > 1]
        if sessions:
            frames = draw.choice(sessions).frames
            change(frames, draw.randrange(len(frames) - 1))
        return bool(sessions)

    return breaking


def repeat(frames: list[Seen], place: int) -> None:
    frames.insert(place, frames[place])


def swap(frames: list[Seen], place: int) -> None:
    frames[place : place + 2] = reversed(frames[place : place + 2])


def alter(frames: list[Seen], place: int) -> None:
    frames[place] = replace(frames[place], data=frames[place].data + " ")


def rename(frames: list[Seen], place: int) -> None:
    frames[place] = replace(frames[place], event="other")


def renumber(frames: list[Seen], place: int) -> None:
    frames[place] = replace(frames[place], id=frames[place].id + 1)


def misroute(history: History, draw: random.Random) -> bool:
    """Show a frame to somebody whom it is not for."""
    pairs = [
        (session, send)
        for session in history.sessions
        for send in history.sends
        if not send.is_for(session.device, session.uid)
    ]
    if pairs:
        session, send = draw.choice(pairs)
        session.frames.append(Seen(10**6, send.data, send.event, session.ended_at))
    return bool(pairs)


def unsay(history: History, draw: random.Random) -> bool:
    """Lose a presence message."""
    if history.heard:
        del history.heard[draw.randrange(len(history.heard))]
        return True
    return False


def say_twice(history: History, draw: random.Random) -> bool:
    """Say a presence message twice."""
    if history.heard:
        history.heard.insert(0, history.heard[draw.randrange(len(history.heard))])
        return True
    return False


def long_after_a_fault(
    channel: str, change: Callable[[list[Heard], int], None]
) -> Callable[[History, random.Random], bool]:
    """Return a breaking that changes the messages at one of this channel, in a run with a fault at its beginning."""

    def breaking(history: History, draw: random.Random) -> bool:
        history.faults.append(Fault(0, 1, messages=True))
        heard = history.heard or []
        if places := [place for place, message in enumerate(heard) if message.channel == channel and message.at > 5]:
            change(heard, draw.choice(places))
        return bool(places)

    return breaking


def give_a_wrong_reason(heard: list[Heard], place: int) -> None:
    heard[place] = replace(heard[place], reason="instance_clear")


def come_and_go_once_more(heard: list[Heard], place: int) -> None:
    """Announce a device that has just gone, and its user with it, as come and gone again."""
    end = heard[place]
    come = replace(end, channel="device_online", reason="connected", payload="n0")
    user = replace(end, channel="user_online", reason="device_online", payload="n0")
    heard[place + 1 : place + 1] = [come, user, replace(end, channel="device_offline"), end]


def haunt(history: History, draw: random.Random) -> bool:
    """Say that a device is online that is not."""
    gone = {session.device for session in history.sessions} - set(history.online_at_end or {})
    if gone and history.online_at_end is not None:
        history.online_at_end[draw.choice(sorted(gone))] = Online("u0")
    return bool(gone)


BREAKINGS: list[tuple[Callable[[History, random.Random], bool], set[str]]] = [
    (lose, {"lost"}),
    (change_frames(repeat), {"doubled"}),
    (change_frames(swap), {"reordered"}),
    (change_frames(alter), {"altered", "forged"}),
    (change_frames(rename), {"altered"}),
    (misroute, {"foreign"}),
    (unsay, {"presence-missing", "presence-doubled"}),
    (say_twice, {"presence-doubled", "presence-missing"}),
    (long_after_a_fault("device_offline", give_a_wrong_reason), {"presence-wrong"}),
    (
        long_after_a_fault("user_offline", come_and_go_once_more),
        {"presence-doubled", "presence-late", "presence-wrong"},
    ),
    (haunt, {"ghost"}),
]


@pytest.mark.parametrize(("breaking", "kinds"), BREAKINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_ideal_run_with_one_thing_broken_is_never_good(
    breaking: Callable[[History, random.Random], bool], kinds: set[str]
) -> None:
    broken = 0
    for seed in random.SystemRandom().sample(range(10**9), 60):
        history = Ideal(seed).run(60)
        if breaking(history, random.Random(seed)):
            broken += 1
            found = {finding.kind for finding in decide(history)}
            assert found & kinds, f"seed {seed}: found only {found}"
    assert broken > 20, "most runs have what is broken here"


def test_a_frame_with_two_ids_is_found_in_any_run() -> None:
    broken = 0
    for seed in range(40):
        history = Ideal(seed).run(60)
        if change_frames(renumber)(history, random.Random(seed)):
            shown = [frame.data for session in history.sessions for frame in session.frames]
            expected = len(shown) > len(set(shown))
            broken += bool({"doubled", "reordered"} & {finding.kind for finding in decide(history)}) and expected
    assert broken > 10


def test_a_long_history_is_judged_in_seconds() -> None:
    history = Ideal(1).run(10_000)
    start = time.monotonic()
    assert decide(history) == []
    assert time.monotonic() - start < 10
