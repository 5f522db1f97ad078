"""Judges the frames of a recorded run: each where it belongs, once, in order, unaltered, and none missing.

The rules, and the races that they leave open:
- Each stream is judged by the last id that it asked with: frames with greater ids are due, each once. So two streams of one
  device that overlap may both show a frame, if the second asked with an older id.
- Without a last id a frame is due only if it was sent after the client had read `sys_connected`.
- A due frame is missing only once it is too late for it: a later frame was seen on that stream, or the stream stayed open to
  the end (or for `delivery_seconds`). What a dropped stream did not show is due on the next, if that asks with a last id.
- "Later" means a greater id; for a frame that nobody saw, one that was sent after it was answered.
- A send without a clear answer may be seen, at most once. A frame within a gap notice, or accepted during a fault that loses
  data, may be missing.
- A frame for a device alone is not due once the device was under another user since, and when the device comes under another
  user, one that was accepted before must not be shown.
- Two streams of one device that overlap: what was not answered before the newer was asked for may be due on the newer alone,
  if the older ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from math import inf
from operator import itemgetter

from tests.history_records import End, Finding, Gap, History, Seen, Send, Session, Status


def judge_frames(history: History) -> list[Finding]:
    """Return what is wrong with the frames."""
    facts = Facts(history)
    findings = [*_judge_ids(facts)]
    for session in history.sessions:
        findings += _judge_seen(facts, session)
        findings += _judge_missing(facts, session)
        findings += _judge_gaps(facts, session)
    return findings


class Facts:
    """A history, indexed."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.by_data = {send.data: send for send in history.sends}
        assert len(self.by_data) == len(history.sends), "the data of each send must be unique"
        self.ids: dict[str, set[int]] = defaultdict(set)
        self.data_of: dict[int, set[str]] = defaultdict(set)
        self.first_seen: dict[int, float] = {}
        for session in history.sessions:
            for frame in session.frames:
                self.data_of[frame.id].add(frame.data)
                self.first_seen[frame.id] = min(frame.at, self.first_seen.get(frame.id, inf))
                if frame.data in self.by_data:
                    self.ids[frame.data].add(frame.id)
        self.least_id = min(self.data_of, default=0)
        # When each device asked for a stream, when it saw it open (never: inf), and as which user.
        self.comings: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for session in history.sessions:
            self.comings[session.device].append((session.connecting_at, session.connected_at, session.uid))
        for attempt in history.attempts:
            self.comings[attempt.device].append((attempt.at, inf, attempt.uid))
        for comings in self.comings.values():
            comings.sort()
        self._index_sends()
        self._index_order()

    def _index_sends(self) -> None:
        """Accepted sends by whom they are for, in the order of their answers."""
        self.accepted: dict[tuple[str, str], list[Send]] = defaultdict(list)
        answered = sorted(self.history.sends, key=lambda send: send.answered_at)
        for send in answered:
            if send.status is Status.ACCEPTED:
                targets = [("user", uid) for uid in send.users] + [("device", name) for name in send.devices]
                for target in targets or [("", "")]:
                    self.accepted[target].append(send)
        self.longest_seconds = max((s.answered_at - s.sent_at for s in answered if s.answered_at < inf), default=0.0)

    def _index_order(self) -> None:
        """Known ids in the order of answers with the greatest so far, and in the order of sending with the least to come."""
        known = [(send, max(self.ids[send.data])) for send in self.history.sends if self.ids.get(send.data)]
        by_answer = sorted((send.answered_at, id_) for send, id_ in known)
        by_sending = sorted((send.sent_at, id_) for send, id_ in known)
        self._answer_times = [at for at, _ in by_answer]
        self._greatest = list(accumulate((id_ for _, id_ in by_answer), max))
        self._send_times = [at for at, _ in by_sending]
        self._least = list(accumulate((id_ for _, id_ in reversed(by_sending)), min))[::-1]

    def id_of(self, send: Send) -> int | None:
        """Return the id of a send that anybody saw."""
        ids = self.ids.get(send.data)
        return min(ids) if ids else None

    def id_before(self, send: Send) -> int:
        """Return the greatest id that is surely older than the send's: of one answered before it was sent."""
        place = bisect_left(self._answer_times, send.sent_at)
        return self._greatest[place - 1] if place else 0

    def id_after(self, send: Send) -> float:
        """Return the least id that is surely newer than the send's: of one sent after it was answered."""
        place = bisect_left(self._send_times, send.answered_at)
        return self._least[place] if place < len(self._least) else inf

    def surely_after(self, send: Send, id_: int) -> bool:
        """Whether the send's id is greater than `id_` beyond doubt."""
        own = self.id_of(send)
        if own is not None:
            return own > id_
        return self.id_before(send) >= id_ or self.first_seen.get(id_, inf) < send.sent_at

    def users_at(self, device: str, start: float, end: float) -> set[str]:
        """Return under which users a device may have been known in a span of time: online, or when it was last."""
        comings, users = self.comings[device], set[str]()
        for place in range(bisect_right(comings, end, key=itemgetter(0)) - 1, -1, -1):
            _, opened_at, uid = comings[place]
            users.add(uid)
            if opened_at <= start:
                break
        return users

    def succeeded_at(self, session: Session) -> float:
        """Return when the device asked for another stream while this one was open, if this one ended after that, else inf.

        A stream that stays open although its device asked for another (in vain, or it would have ended) is owed everything.
        """
        comings = self.comings[session.device]
        place = bisect_right(comings, session.connecting_at, key=itemgetter(0))
        at = comings[place][0] if place < len(comings) else inf
        return at if at < session.ended_at < inf else inf


def _judge_ids(facts: Facts) -> Iterator[Finding]:
    """One frame has one id, one id names one frame, and ids rise with time."""
    for data, ids in facts.ids.items():
        if len(ids) > 1:
            yield Finding("doubled", f"one send got the ids {sorted(ids)}: {data[:80]!r}", id=min(ids))
    for id_, texts in facts.data_of.items():
        if len(texts) > 1:
            yield Finding("id-shared", f"one id for {sorted(text[:80] for text in texts)}", id=id_)
    for send in facts.history.sends:
        own = facts.id_of(send)
        if own is not None and facts.id_before(send) > own:
            yield Finding(
                "reordered", f"sent after id {facts.id_before(send)} was answered: {send.data[:80]!r}", id=own
            )


def _judge_seen(facts: Facts, session: Session) -> Iterator[Finding]:
    """Everything that a stream showed was for it, in order, once and unaltered."""
    device, ids, texts = session.device, set[int](), set[str]()
    last = -1 if session.asked_id is None else session.asked_id
    for frame in session.frames:
        if frame.id in ids or frame.data in texts:
            yield Finding("doubled", f"twice on one stream: {frame.data[:80]!r}", device, frame.id)
        elif session.asked_id is not None and frame.id <= session.asked_id:
            yield Finding("doubled", f"asked for what follows {session.asked_id}", device, frame.id)
        elif frame.id <= last:
            yield Finding("reordered", f"came after id {last}", device, frame.id)
        ids.add(frame.id)
        texts.add(frame.data)
        last = max(last, frame.id)
        yield from _judge_frame(facts, session, frame)


def _judge_frame(facts: Facts, session: Session, frame: Seen) -> Iterator[Finding]:
    send = facts.by_data.get(frame.data)
    if send is None:
        known = any(data in facts.by_data for data in facts.data_of[frame.id])
        yield Finding("altered" if known else "forged", f"nobody sent {frame.data[:80]!r}", session.device, frame.id)
        return
    if frame.event != send.event:
        yield Finding("altered", f"event {frame.event!r}, not {send.event!r}", session.device, frame.id)
    if send.status is Status.REFUSED:
        yield Finding("refused", f"its sender was told no: {send.data[:80]!r}", session.device, frame.id)
    if not send.is_for(session.device, session.uid):
        yield Finding(
            "foreign", f"for {sorted(send.users | send.devices)}, not {session.uid}", session.device, frame.id
        )
    elif not send.everyone and session.uid not in send.users and send.answered_at < session.connecting_at:
        users = facts.users_at(session.device, send.sent_at, send.answered_at)
        if users and session.uid not in users:
            what = f"kept for the device under {sorted(users)}, shown to {session.uid}"
            yield Finding("foreign", what, session.device, frame.id)


def _judge_missing(facts: Facts, session: Session) -> Iterator[Finding]:
    """Every frame that was due on a stream, and for which it is too late, was seen."""
    seen = {frame.data for frame in session.frames}
    last_seen_id = max((frame.id for frame in session.frames), default=-1)
    shown = [facts.by_data[frame.data].sent_at for frame in session.frames if frame.data in facts.by_data]
    last_sent_at = max(shown, default=-inf)
    succeeded_at = facts.succeeded_at(session)
    for send in _candidates(facts, session):
        if send.data in seen or send.answered_at >= succeeded_at or not _is_due(facts, session, send):
            continue
        own = facts.id_of(send)
        passed = own < last_seen_id if own is not None else send.answered_at <= last_sent_at
        if not passed and not _had_time(facts.history, session, send):
            continue
        if any(_covers(facts, gap, send) for gap in session.gaps):
            continue
        if not facts.history.faulty(send.sent_at, send.answered_at, "data"):
            asked = "without a last id" if session.asked_id is None else f"asked with {session.asked_id}"
            why = "later frames were seen" if passed else "the stream stayed open"
            yield Finding("lost", f"{send.data[:80]!r} ({asked}; {why})", session.device, own)


def _candidates(facts: Facts, session: Session) -> Iterator[Send]:
    """Accepted sends that may be due on a stream: addressed to it, and of its time."""
    since = -inf
    if session.asked_id is None:
        since = session.connected_at
    elif asked := facts.data_of.get(session.asked_id):
        since = min((facts.by_data[data].sent_at for data in asked if data in facts.by_data), default=-inf)
    told = set()
    for target in (("", ""), ("user", session.uid), ("device", session.device)):
        sends = facts.accepted.get(target, [])
        for place in range(bisect_left(sends, since, key=lambda send: send.answered_at), len(sends)):
            send = sends[place]
            if send.answered_at > session.ended_at + facts.longest_seconds:
                break
            if send.data not in told:
                told.add(send.data)
                yield send


def _is_due(facts: Facts, session: Session, send: Send) -> bool:
    if session.asked_id is None:
        return send.sent_at >= session.connected_at
    if not facts.surely_after(send, session.asked_id):
        return False
    if send.everyone or session.uid in send.users or send.sent_at >= session.connected_at:
        return True
    # What was kept for the device is due if it has been this user's ever since.
    return facts.users_at(session.device, send.sent_at, session.connecting_at) == {session.uid} and bool(
        facts.users_at(session.device, send.sent_at, send.sent_at)
    )


def _had_time(history: History, session: Session, send: Send) -> bool:
    """Whether a frame that was not seen must have been, on a stream that showed nothing later."""
    if session.end is End.OPEN:
        return send.answered_at <= history.settled_at
    if history.delivery_seconds is None:
        return False
    return max(send.answered_at, session.connected_at) + history.delivery_seconds < session.ended_at


def _covers(facts: Facts, gap: Gap, send: Send) -> bool:
    own = facts.id_of(send)
    if own is not None:
        return gap.requested < own < gap.oldest
    return facts.id_before(send) + 1 < gap.oldest and gap.requested < facts.id_after(send) - 1


def _judge_gaps(facts: Facts, session: Session) -> Iterator[Finding]:
    """A gap notice has a cause: frames were, or may have been, dropped for their number or their age."""
    history = facts.history
    for gap in session.gaps:
        if history.cache_frames is None or gap.requested < facts.least_id:
            continue
        if history.faulty(-inf, gap.at, "data"):
            continue
        if history.clock_offset is not None:
            age = gap.at + history.clock_offset - gap.requested / 1e6
            if age > history.expire_seconds:
                continue
        elif history.expire_seconds < inf:
            continue
        sends = [send for send in history.sends if send.status is not Status.REFUSED and send.sent_at <= gap.at]
        full = (
            sum(send.everyone for send in sends),
            sum(session.uid in send.users for send in sends),
            sum(session.device in send.devices for send in sends),
        )
        if max(full) < history.cache_frames:
            yield Finding("gap", f"{gap.requested} to {gap.oldest}, and no log was full", session.device, gap.oldest)
