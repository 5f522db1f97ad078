"""The replay logs of the embedded backend: the newest frames, for a while, and whether any may be missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_broker.frame import Frame
from sse_broker.retention import MICROSECONDS, Logs
from tests.recording import frames

HOUR = 3600
NOW = 1_700_000_000 * MICROSECONDS


def filled(max_frames: int, count: int) -> Logs:
    """Return logs with frames NOW + 1 to NOW + count under "k"."""
    logs = Logs(max_frames, HOUR)
    for number in range(1, count + 1):
        logs.append("k", Frame(NOW + number, "", "x"))
    return logs


def ids(found: list[Frame]) -> list[int]:
    return [frame.id - NOW for frame in found]


def test_the_newest_frames_are_kept_and_no_more() -> None:
    assert ids(filled(3, 5).read(["k"], NOW, 100)) == [3, 4, 5]


@pytest.mark.parametrize(("count", "after", "gap"), [(3, 0, False), (4, 0, True), (4, 1, False), (5, 1, True)])
def test_a_gap_is_told_exactly_when_a_frame_after_the_id_was_dropped(count: int, after: int, gap: bool) -> None:
    assert bool(filled(3, count).gap_id(["k"], NOW + after, NOW)) is gap


def test_a_gap_in_one_of_several_logs_is_a_gap() -> None:
    logs = filled(3, 4)
    logs.append("other", Frame(NOW + 9, "", "x"))
    assert logs.gap_id(["other", "k"], NOW, NOW)
    assert not logs.gap_id(["other", "unknown"], NOW, NOW)


def test_an_id_older_than_the_retention_time_is_a_gap() -> None:
    logs = Logs(3, HOUR)
    assert not logs.gap_id(["k"], NOW - HOUR * MICROSECONDS, NOW)
    assert logs.gap_id(["k"], NOW - HOUR * MICROSECONDS - 1, NOW)


def test_only_greater_ids_are_read_and_at_most_the_limit() -> None:
    logs = filled(10, 10)
    assert ids(logs.read(["k"], NOW + 4, 3)) == [5, 6, 7]
    assert logs.read(["k"], NOW + 10, 3) == []
    assert logs.read(["unknown"], 0, 3) == []


def test_several_logs_are_read_as_one_in_order_and_a_frame_of_two_logs_once() -> None:
    logs = Logs(10, HOUR)
    one, two, three, four = frames(NOW + 1, NOW + 2, NOW + 3, NOW + 4)
    for key, some in {"a": (one, three), "b": (two, three, four), "c": (three,)}.items():
        for frame in some:
            logs.append(key, frame)
    assert ids(logs.read(["a", "b", "c"], NOW, 10)) == [1, 2, 3, 4]
    assert ids(logs.read(["c", "b", "a"], NOW, 2)) == [1, 2]


def test_a_log_expires_when_its_newest_frame_is_too_old() -> None:
    logs = Logs(10, HOUR)
    logs.append("old", Frame(NOW, "", "x"))
    logs.append("kept", Frame(NOW + 1, "", "x"))
    logs.expire(NOW + HOUR * MICROSECONDS)
    assert len(logs) == 2
    logs.expire(NOW + HOUR * MICROSECONDS + 1)
    assert len(logs) == 1
    assert ids(logs.read(["old", "kept"], 0, 10)) == [1]


def test_a_log_that_was_written_to_again_is_not_expired_with_its_first_frame() -> None:
    logs = Logs(10, HOUR)
    logs.append("a", Frame(NOW, "", "x"))
    logs.append("b", Frame(NOW + 1, "", "x"))
    logs.append("a", Frame(NOW + HOUR * MICROSECONDS, "", "x"))
    logs.expire(NOW + HOUR * MICROSECONDS + 2)
    assert len(logs) == 1
    assert logs.read(["a"], NOW, 10)
    assert not logs.read(["b"], 0, 10)


def test_a_log_can_move_to_a_free_key() -> None:
    logs = filled(3, 4)
    logs.rename("k", "new")
    assert logs.read(["k"], NOW, 10) == []
    assert ids(logs.read(["new"], NOW, 10)) == [2, 3, 4]
    assert logs.gap_id(["new"], NOW, NOW)
    logs.append("k", Frame(NOW + 5, "", "x"))
    logs.rename("k", "new")
    logs.rename("never there", "other")
    assert (ids(logs.read(["k"], NOW, 10)), ids(logs.read(["new"], NOW, 10))) == ([5], [2, 3, 4])
    assert len(logs) == 2


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(1, 8), st.integers(0, 60))
def test_what_is_read_and_what_is_told_as_a_gap_is_all_that_was_kept(keys: str, size: int, after: int) -> None:
    """Against a model that keeps everything: either nothing after the id is missing, or a gap is told."""
    logs = Logs(size, HOUR)
    everything: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for number, key in enumerate(keys, 1):
        logs.append(key, Frame(NOW + number, "", "x"))
        everything[key].append(number)
    for asked in (["a"], ["a", "b"], ["c", "b", "a"]):
        wanted = sorted(number for key in asked for number in everything[key] if number > after)
        kept = sorted(number for key in asked for number in everything[key][-size:] if number > after)
        assert ids(logs.read(asked, NOW + after, 1000)) == kept
        lost = [number for number in wanted if number not in kept]
        assert logs.gap_id(asked, NOW + after, NOW) == (NOW + max(lost) if lost else 0)
