"""Judges the presence of a recorded run: its messages, the counts in the answers of `/send`, and who is online at the end.

The rules, and the races that they leave open:
- For each device, and for each user, messages alternate, beginning with online. What the messages say of devices decides what
  they must say of users: online with the first device, offline with the last; an extrusion that leaves the user a device is
  no change.
- Each stream that a client saw open was announced. An attempt that was not seen to open may have been, for a moment.
- A client learns of an end later than the broker, or earlier: so counts are judged only by who was surely, and who was
  possibly online. Faults that confuse presence excuse counts and further announcements, never a false state at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf

from tests.history_records import Attempt, End, Finding, Heard, History, Online, Send, Session, Status, device_id_of

REASONS = {
    End.DROPPED: {"disconnect", "extrude_offline", "kick_offline", "instance_close"},
    End.VANISHED: {"heartbeat_fail", "disconnect", "extrude_offline", "kick_offline", "instance_close"},
    End.KICK: {"kick_offline"},
    End.EXTRUDE: {"extrude_offline"},
    End.INSTANCE_CLOSE: {"instance_close", "extrude_offline"},
    End.LOST: {"instance_clear", "extrude_offline", "heartbeat_fail", "disconnect", "instance_close"},
}
OFFLINE_REASONS = {"instance_clear"}.union(*REASONS.values())


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
    if not any(fault.messages for fault in history.faults):
        for device in of_device.keys() | {session.device for session in history.sessions}:
            findings += _judge_device(history, device, of_device.get(device, []))
        findings += _judge_users(heard, of_user)
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


def _judge_device(history: History, device: str, messages: Sequence[Heard]) -> Iterator[Finding]:
    """Each stream was announced, and its end, with reason and payload, in time; and not more than that."""
    sessions = sorted((s for s in history.sessions if s.device == device), key=lambda session: session.connected_at)
    attempts = sum(attempt.device == device for attempt in history.attempts)
    confused = any(fault.presence for fault in history.faults)
    comings = [message for message in messages if message.is_online]
    goings = [message for message in messages if not message.is_online]
    if len(comings) < len(sessions):
        yield Finding("presence-missing", f"{len(sessions)} streams, {len(comings)} times device_online", device)
    elif len(comings) > len(sessions) + attempts and not confused:
        yield Finding("presence-doubled", f"{len(sessions)} streams, {len(comings)} times device_online", device)
    still_open = sum(session.end is End.OPEN or _ended_just_now(history, session) for session in sessions)
    if len(goings) < len(comings) - min(still_open, 1):
        yield Finding("presence-missing", f"{len(comings)} times online, {len(goings)} times offline", device)
    if messages and not messages[-1].is_online and any(session.end is End.OPEN for session in sessions):
        yield Finding("presence-wrong", "the last message says offline, and the stream is open", device)
    if len(comings) == len(sessions) and not attempts and not confused:
        for place, session in enumerate(sessions):
            yield from _judge_session(history, session, comings[place], goings[place] if place < len(goings) else None)


def _ended_just_now(history: History, session: Session) -> bool:
    """Whether its end may be announced after the recording."""
    return session.ended_at + history.presence_seconds > history.settled_at


def _judge_session(history: History, session: Session, came: Heard, went: Heard | None) -> Iterator[Finding]:
    device, patience = session.device, history.presence_seconds
    if came.uid != session.uid or (session.node and came.payload != session.node):
        what = f"online as {came.uid} at {came.payload!r}, not {session.uid} at {session.node!r}"
        yield Finding("presence-wrong", what, device)
    if came.at > session.connected_at + patience:
        yield Finding("presence-late", f"online after {came.at - session.connected_at:.1f} s", device)
    if went is None or session.end is End.OPEN:
        return
    if went.reason not in REASONS[session.end]:
        yield Finding("presence-wrong", f"offline by {went.reason!r} after {session.end}", device)
    if went.uid != session.uid:
        yield Finding("presence-wrong", f"offline as {went.uid}, not {session.uid}", device)
    if went.reason in ("instance_close", "instance_clear") and session.node and went.payload != session.node:
        yield Finding("presence-wrong", f"payload {went.payload!r} at {went.reason}, not {session.node!r}", device)
    if went.reason in ("disconnect", "heartbeat_fail") and went.payload:
        yield Finding("presence-wrong", f"payload {went.payload!r} at {went.reason}", device)
    if went.at > session.ended_at + patience:
        yield Finding("presence-late", f"offline after {went.at - session.ended_at:.1f} s", device)


def _judge_users(heard: Sequence[Heard], of_user: dict[str, list[Heard]]) -> Iterator[Finding]:
    """Users came and went as their devices did."""
    expected = _user_changes(heard)
    for uid in expected.keys() | of_user.keys():
        should, did = expected.get(uid, []), [message.is_online for message in of_user.get(uid, [])]
        if len(did) < len(should):
            yield Finding("presence-missing", f"user {uid}: {len(did)} messages, {len(should)} changes by its devices")
        elif len(did) > len(should):
            yield Finding("presence-doubled", f"user {uid}: {len(did)} messages, {len(should)} changes by its devices")


def _user_changes(heard: Sequence[Heard]) -> dict[str, list[bool]]:
    """Return for each user the comings (True) and goings that the messages about its devices imply."""
    messages = [message for message in heard if message.is_device]
    following: list[Heard | None] = []
    latest: dict[str, Heard] = {}
    for message in reversed(messages):
        following.append(latest.get(message.device))
        latest[message.device] = message
    following.reverse()
    online: dict[str, set[str]] = defaultdict(set)
    changes: dict[str, list[bool]] = defaultdict(list)
    for message, after in zip(messages, following, strict=True):
        devices = online[message.uid]
        if message.is_online:
            if not devices:
                changes[message.uid].append(True)
            devices.add(message.device)
            continue
        replaced = message.reason == "extrude_offline" and after and after.is_online and after.uid == message.uid
        if message.device in devices and not replaced:
            devices.discard(message.device)
            if not devices:
                changes[message.uid].append(False)
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
