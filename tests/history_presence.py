"""Judges the presence of a recorded run: its messages, the counts in the answers of `/send`, and who is online at the end.

The rules, and the races that they leave open:
- For each device, and for each user, messages alternate, beginning with online. What the messages say of devices decides what
  they must say of users: online with the first device, offline with the last; an extrusion that leaves the user a device is
  no change.
- Each stream that a client saw open was announced, and its end, with reason and payload and in time (see `history_matching`).
  An attempt that was not seen to open may have been, for a moment.
- A client learns of an end later than the broker, or earlier: so counts are judged only by who was surely, and who was
  possibly online. Faults that confuse presence excuse counts and announcements around them, never a false state at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf

from tests.history_matching import REASONS, judge_device
from tests.history_records import Attempt, End, Finding, Heard, History, Online, Send, Session, Status, device_id_of

AT_ONCE_SECONDS = 0.1
OFFLINE_REASONS = set[str]().union(*REASONS.values())


def judge_messages(history: History, heard: Sequence[Heard]) -> list[Finding]:
    """Return what is wrong with the presence messages."""
    findings = [*_judge_fields(heard)]
    of_device: dict[str, list[Heard]] = defaultdict(list)
    of_user: dict[str, list[Heard]] = defaultdict(list)
    for message in heard:
        (of_device[message.device] if message.is_device else of_user[message.uid]).append(message)
    for device, messages in of_device.items():
        findings += _judge_alternation(history, messages, f"device {device}")
    for uid, messages in of_user.items():
        findings += _judge_alternation(history, messages, f"user {uid}")
    for device in sorted(of_device.keys() | {session.device for session in history.sessions}):
        findings += judge_device(history, device, of_device.get(device, []))
    findings += _judge_users(history, heard)
    return findings


def _judge_fields(heard: Sequence[Heard]) -> Iterator[Finding]:
    """Reasons fit their channels, and device ids their names."""
    for message in heard:
        fitting = {"device_online": {"connected"}, "user_online": {"device_online"}}.get(
            message.channel, OFFLINE_REASONS
        )
        if message.reason not in fitting:
            yield Finding("presence-wrong", f"{message.reason!r} on {message.channel}", message.device)
        if message.device_id and message.device_id != device_id_of(message.device):
            yield Finding("presence-wrong", f"device id {message.device_id!r}", message.device)


def _judge_alternation(history: History, messages: Sequence[Heard], whose: str) -> Iterator[Finding]:
    online, since = False, -inf
    for message in messages:
        if message.is_online is online and not history.faulty(since, message.at, "messages"):
            kind = "presence-doubled" if online or since > -inf else "presence-missing"
            word = "online" if online else "offline"
            yield Finding(kind, f"{whose}: {message.channel} ({message.reason}) while {word} already", message.device)
        online, since = message.is_online, message.at


def _judge_users(history: History, heard: Sequence[Heard]) -> Iterator[Finding]:
    """Users came and went as their devices did, in each span of time in which no message can have been lost."""
    spans = sorted((fault.start, fault.end + history.presence_seconds) for fault in history.faults if fault.messages)
    calm = -inf
    for start, end in [*spans, (inf, inf)]:
        if start > calm:
            yield from _judge_users_between(history, heard, calm, start)
        calm = max(calm, end)


def _judge_users_between(history: History, heard: Sequence[Heard], start: float, end: float) -> Iterator[Finding]:
    # From the first message about a device to the last, with what was said of users behind it, which is at once.
    within = [
        place for place, message in enumerate(heard) if message.is_device and start < message.at < end - AT_ONCE_SECONDS
    ]
    if not within:
        return
    behind = range(within[-1] + 1, len(heard))
    beyond = next((place for place in behind if heard[place].is_device or heard[place].at >= end), len(heard))
    messages = range(within[0], beyond)
    online, unsure = _online_before(history, [heard[place] for place in within], start, end)
    expected = _user_changes(heard, messages, online)
    of_user: dict[str, int] = defaultdict(int)
    for place in messages:
        if not heard[place].is_device:
            of_user[heard[place].uid] += 1
    for uid in (expected.keys() | of_user.keys()) - unsure:
        did, should = of_user[uid], expected.get(uid, 0)
        if did != should:
            kind = "presence-missing" if did < should else "presence-doubled"
            yield Finding(kind, f"user {uid}: {did} messages, {should} changes by its devices")


def _online_before(
    history: History, messages: Sequence[Heard], start: float, end: float
) -> tuple[dict[str, set[str]], set[str]]:
    """Return who was online when a span of time began: the devices of each user, and users of whom that is not sure."""
    online: dict[str, set[str]] = defaultdict(set)
    unsure: set[str] = set()
    if start == -inf:
        return online, unsure
    told: set[str] = set()
    for message in messages:
        if message.device not in told and not message.is_online:
            online[message.uid].add(message.device)
        told.add(message.device)
    for session in history.sessions:
        if session.device in told or session.ended_at < start - history.presence_seconds or session.connecting_at > end:
            continue
        if session.connected_at <= start and session.ended_at >= end:
            online[session.uid].add(session.device)
        else:
            unsure.add(session.uid)
    for attempt in history.attempts:
        if attempt.device not in told and start - history.presence_seconds <= attempt.at <= end:
            unsure.add(attempt.uid)
    return online, unsure


def _user_changes(heard: Sequence[Heard], places: range, online: dict[str, set[str]]) -> dict[str, int]:
    """Return for each user how many comings and goings the messages about its devices at these places imply."""
    following: dict[int, Heard] = {}
    latest: dict[str, Heard] = {}
    for place in reversed(range(places.start, len(heard))):
        if heard[place].is_device:
            if after := latest.get(heard[place].device):
                following[place] = after
            latest[heard[place].device] = heard[place]
    changes: dict[str, int] = defaultdict(int)
    for place in places:
        message, after = heard[place], following.get(place)
        if not message.is_device:
            continue
        devices = online[message.uid]
        if message.is_online:
            changes[message.uid] += not devices
            devices.add(message.device)
            continue
        replaced = message.reason == "extrude_offline" and after and after.is_online and after.uid == message.uid
        if message.device in devices and not replaced:
            devices.discard(message.device)
            changes[message.uid] += not devices
    return changes


def judge_end(history: History, online: dict[str, Online]) -> list[Finding]:
    """Return what `/info` says falsely once all is quiet, and devices that have two streams."""
    findings = []
    still_open: dict[str, list[Session]] = defaultdict(list)
    for session in history.sessions:
        if session.end is End.OPEN:
            still_open[session.device].append(session)
    for device in online.keys() - still_open.keys():
        findings.append(Finding("ghost", f"online as {online[device].uid} at {online[device].node!r}", device))
    for device, sessions in still_open.items():
        if len(sessions) > 1:
            findings.append(Finding("twin", f"{len(sessions)} open streams at once", device))
        session = max(sessions, key=lambda session: session.connected_at)
        said = online.get(device)
        if said is None:
            findings.append(Finding("absent", f"open as {session.uid} at {session.node!r}, not online", device))
        elif said.uid != session.uid or (session.node and said.node and said.node != session.node):
            what = f"online as {said.uid} at {said.node!r}, not {session.uid} at {session.node!r}"
            findings.append(Finding("presence-wrong", what, device))
    return findings


def judge_counts(history: History) -> Iterator[Finding]:
    """Each answer of `/send` counts at least the devices that were surely, at most those that were possibly online."""
    slack = history.presence_seconds
    comings: list[tuple[float, float, Session | Attempt]] = [(s.connecting_at, s.ended_at, s) for s in history.sessions]
    comings += [(attempt.at, attempt.at, attempt) for attempt in history.attempts]
    comings.sort(key=lambda coming: coming[0])
    sends = [s for s in history.sends if s.status is Status.ACCEPTED and s.addressed is not None]
    longest = max((send.answered_at - send.sent_at for send in sends), default=0.0)
    active: list[tuple[float, float, Session | Attempt]] = []
    place = 0
    for send in sorted(sends, key=lambda send: send.answered_at):
        while place < len(comings) and comings[place][0] <= send.answered_at:
            active.append(comings[place])
            place += 1
        active = [coming for coming in active if coming[1] + slack >= send.answered_at - longest]
        if not history.faulty(send.sent_at - slack, send.answered_at, "presence"):
            yield from _judge_count(send, [who for _, end, who in active if end + slack >= send.sent_at], slack)


def _judge_count(send: Send, around: Sequence[Session | Attempt], slack: float) -> Iterator[Finding]:
    possible = {who.device for who in around if send.is_for(who.device, who.uid)}
    sure = set()
    for who in around:
        if isinstance(who, Session) and send.is_for(who.device, who.uid):
            rivals = any(other.device == who.device and other.uid != who.uid for other in around)
            if who.connected_at <= send.sent_at and who.ended_at - slack > send.answered_at and not rivals:
                sure.add(who.device)
    if not len(sure) <= (send.addressed or 0) <= len(possible):
        what = f"{send.addressed} devices counted, {len(sure)} to {len(possible)} were online: {send.data[:80]!r}"
        yield Finding("miscounted", what)
