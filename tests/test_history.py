"""The judge of recorded runs: it must catch each kind of broken history, and pass the good ones, races included."""

from __future__ import annotations

import copy
from math import inf
from typing import Any

from tests.history import (
    Attempt,
    End,
    Fault,
    Finding,
    Gap,
    Seen,
    Status,
    decide,
)
from tests.story import Story, three

# Frames that are missing


def test_a_stream_that_shows_everything_is_good() -> None:
    assert three().stream(0, "a", "b", "c").kinds() == []


def test_a_missing_frame_before_a_later_one_is_lost() -> None:
    story = three().stream(0, "a", "c", until=9)
    story.stream(0, "a", "b", "c", device="e")
    (finding,) = decide(story.history)
    assert (finding.kind, finding.device, finding.id) == ("lost", "d", 2)


def test_a_frame_that_nobody_saw_is_lost_if_one_sent_after_its_answer_was_seen() -> None:
    assert three().stream(0, "a", "c", until=9).kinds() == ["lost"]
    assert three().stream(0, until=9).kinds() == []


def test_a_missing_last_frame_is_lost_on_a_stream_that_stays_open() -> None:
    assert three().stream(0, "a", "b").kinds() == ["lost"]
    assert three().stream(0, "a", "b", until=9).kinds() == []


def test_what_was_not_settled_at_the_end_is_not_judged() -> None:
    story = three().stream(0, "a", "b")
    story.history.settled_at = 3.05
    assert story.kinds() == []


def test_a_frame_may_take_so_long_and_not_longer() -> None:
    story = three().stream(0, "a", "b", until=9)
    story.history.delivery_seconds = 10
    assert story.kinds() == []
    story.history.delivery_seconds = 5
    assert story.kinds() == ["lost"]


def test_a_frame_that_a_dropped_stream_missed_is_due_on_the_next() -> None:
    first = three().stream(0, "a", until=1.5)
    assert copy.deepcopy(first).stream(5, "b", "c", asked=1).kinds() == []
    assert copy.deepcopy(first).stream(5, "c", asked=1).kinds() == ["lost"]
    assert copy.deepcopy(first).stream(5, asked=1).kinds() == ["lost", "lost"]
    assert copy.deepcopy(first).stream(5, asked=1, until=5.3).kinds() == []


def test_without_a_last_id_only_what_is_sent_after_the_opening_is_due() -> None:
    assert three().stream(1.95, "c").kinds() == []  # b was sent while it opened
    assert three().stream(1.95, "b", "c").kinds() == []
    assert three().stream(2.5, "c").kinds() == []
    assert three().stream(2.5).kinds() == ["lost"]


def test_with_an_old_last_id_everything_retained_is_due() -> None:
    assert three().stream(5, "a", "b", "c", asked=0).kinds() == []
    assert three().stream(5, "b", "c", asked=0).kinds() == ["lost"]


def test_a_gap_notice_covers_what_lies_within_it() -> None:
    story = three().send("d", 4).stream(0, "a", "b", "c", "d", device="e")
    assert copy.deepcopy(story).stream(5, "c", "d", asked=0, gaps=(Gap(0, 3),)).kinds() == []
    assert copy.deepcopy(story).stream(5, "b", "d", asked=0, gaps=(Gap(0, 2),)).kinds() == ["lost"]
    unseen = three().stream(5, "c", asked=1, gaps=(Gap(1, 3),))
    assert unseen.kinds() == []


def test_a_fault_that_loses_data_excuses_what_was_sent_in_it() -> None:
    story = three().stream(0, "a", "c")
    story.history.faults = [Fault(1.9, 2.5, data=True)]
    assert story.kinds() == []
    story.history.faults = [Fault(1.9, 2.5)]
    assert story.kinds() == ["lost"]
    story.history.faults = [Fault(2.9, 3.5, data=True)]
    assert story.kinds() == ["lost"]


def test_sends_that_were_refused_or_unanswered_are_not_due() -> None:
    for status, answered in ((Status.REFUSED, 0.1), (Status.UNKNOWN, inf)):
        story = Story().send("a", 1).send("b", 2, status=status, answered=answered).send("c", 3)
        assert story.stream(0, "a", "c").kinds() == []


def test_only_what_is_addressed_to_a_stream_is_due_on_it() -> None:
    story = Story().send("a", 1, to="u").send("b", 2, to="other").send("c", 3, to="d").send("e", 4, to="dd")
    assert copy.deepcopy(story).stream(0, "a", "c").kinds() == []
    assert copy.deepcopy(story).stream(0, "a").kinds() == ["lost"]
    assert copy.deepcopy(story).stream(0, "c").kinds() == ["lost"]


def test_a_replaced_stream_need_not_show_what_went_to_its_successor() -> None:
    story = three().stream(0, "a", "c", until=3.2, end=End.EXTRUDE)
    assert story.stream(1.95, "b", "c", asked=1).kinds() == []
    early = three().stream(0, "b", "c", until=3.2, end=End.EXTRUDE).stream(1.95, "a", "b", "c", asked=0)
    assert early.kinds() == ["lost"]  # a was answered before there was a successor


def test_a_stream_that_stays_open_after_a_vain_attempt_is_owed_everything() -> None:
    story = three().stream(0, "a")
    story.history.attempts = [Attempt("d", "u", 1.5)]
    assert story.kinds() == ["lost", "lost"]
    story.history.sessions[0].ended_at, story.history.sessions[0].end = 9, End.EXTRUDE
    assert story.kinds() == []


# Frames that must not be there


def test_a_frame_twice_on_one_stream_is_doubled() -> None:
    assert three().stream(0, "a", "b", "b", "c").kinds() == ["doubled"]
    assert three().stream(0, "a", "b", "c", "a").kinds() == ["doubled"]


def test_a_frame_again_on_the_resumed_stream_is_doubled() -> None:
    story = three().stream(0, "a", "b", until=2.5)
    assert copy.deepcopy(story).stream(2.6, "b", "c", asked=2).kinds() == ["doubled"]


def test_overlapping_streams_may_both_show_what_the_second_asked_for() -> None:
    assert three().stream(0, "a", "b", until=2.5, end=End.EXTRUDE).stream(1.9, "b", "c", asked=1).kinds() == []


def test_a_send_with_two_ids_is_doubled() -> None:
    story = three().stream(0, "a", "b", "c").stream(0, "a", "b", "c", device="e")
    story.history.sessions[1].frames[2] = Seen(9, "c", at=3.05)
    assert story.kinds() == ["doubled"]


def test_one_id_for_two_frames_is_found() -> None:
    story = three().stream(0, "a", "b", until=9).stream(0, "a", "b", "c", device="e")
    story.history.sessions[0].frames[1] = Seen(2, "c", at=3.05)
    assert "id-shared" in story.kinds()


def test_falling_ids_are_reordered() -> None:
    story = Story().send("a", 1, answered=5).send("b", 2, answered=5).stream(0, "b", "a", until=9)
    assert story.kinds() == ["reordered"]


def test_ids_that_fall_although_one_send_followed_the_other_are_reordered() -> None:
    story = three().stream(0, "a", "b", until=2.5).stream(2.5, "c", device="e", until=9)
    story.history.sessions[0].frames = [Seen(1, "a", at=1.05), Seen(9, "b", at=2.05)]
    assert story.kinds() == ["reordered"]


def test_changed_data_is_altered_and_unknown_data_is_forged() -> None:
    story = three().stream(0, "a", "b", "c").stream(0, "a", "b", "c", device="e")
    story.history.sessions[0].frames[1] = Seen(2, "b\n", at=2.05)
    assert sorted(story.kinds()) == ["altered", "id-shared", "lost"]
    story.history.sessions[0].frames[1:2] = [Seen(2, "b", at=2.05), Seen(2, "evil", at=2.05)]
    assert "altered" in story.kinds()
    other = three().stream(0, "a", "b", "c")
    other.history.sessions[0].frames.append(Seen(77, "evil", at=4))
    assert other.kinds() == ["forged"]


def test_a_changed_event_name_is_altered() -> None:
    story = Story().send("a", 1, event="news").stream(0, "a")
    assert story.kinds() == []
    story.history.sessions[0].frames[0] = Seen(1, "a", "message", 1.05)
    assert story.kinds() == ["altered"]


def test_a_refused_send_must_not_be_seen_and_an_unknown_one_may_once() -> None:
    assert Story().send("a", 1, status=Status.REFUSED).stream(0, "a").kinds() == ["refused"]
    assert Story().send("a", 1, status=Status.UNKNOWN, answered=inf).stream(0, "a").kinds() == []
    assert Story().send("a", 1, status=Status.UNKNOWN, answered=inf).stream(0, "a", "a").kinds() == ["doubled"]


def test_a_frame_for_somebody_else_is_foreign() -> None:
    assert Story().send("a", 1, to="other").stream(0, "a").kinds() == ["foreign"]
    assert Story().send("a", 1, to="dd").stream(0, "a").kinds() == ["foreign"]


def test_what_was_kept_for_a_device_is_not_for_its_next_user() -> None:
    story = Story().send("x", 0.5).stream(0, "x", until=0.9).send("a", 1, to="d").send("b", 2)
    assert copy.deepcopy(story).stream(3, "b", uid="v", asked=1).kinds() == []
    assert copy.deepcopy(story).stream(3, "a", "b", uid="v", asked=1).kinds() == ["foreign"]
    assert copy.deepcopy(story).stream(3, "a", "b", uid="u", asked=1).kinds() == []
    assert copy.deepcopy(story).stream(3, "b", uid="u", asked=1).kinds() == ["lost"]


def test_what_was_kept_for_a_device_need_not_survive_another_user() -> None:
    story = Story().send("x", 0.5).stream(0, "x", until=0.9).send("a", 1, to="d").send("b", 4)
    story.stream(2, uid="v", until=3)
    assert copy.deepcopy(story).stream(3.5, "b", uid="u", asked=1).kinds() == []
    assert copy.deepcopy(story).stream(3.5, "a", "b", uid="u", asked=1).kinds() == []


def test_what_is_sent_while_the_user_changes_may_be_seen_or_not() -> None:
    story = Story().stream(0, until=0.9).send("a", 1, to="d", answered=3)
    assert copy.deepcopy(story).stream(2, "a", uid="v").kinds() == []
    assert copy.deepcopy(story).stream(2, uid="v").kinds() == []


# Gaps and counts


def test_a_gap_notice_without_cause_is_found() -> None:
    def story(**settings: Any) -> Story:
        return Story(**settings).send("a", 1).send("b", 2, to="u").send("c", 3).stream(0, "a", "b", "c", until=4)

    notice = (Gap(2, 3, at=5.0),)
    assert story(cache_frames=3).stream(5, "c", asked=2, gaps=notice).kinds() == ["gap"]
    assert story(cache_frames=2).stream(5, "c", asked=2, gaps=notice).kinds() == []  # the log of everyone was full
    assert story().stream(5, "c", asked=2, gaps=notice).kinds() == []
    flushed = story(cache_frames=3, faults=[Fault(4, 4, data=True)])
    assert flushed.stream(5, "c", asked=2, gaps=notice).kinds() == []


def test_a_gap_notice_for_age_is_judged_by_the_clock() -> None:
    def story(offset: float) -> Story:
        story = Story(cache_frames=9, expire_seconds=60, clock_offset=offset).send("a", 1).stream(0, "a", until=4)
        return story.stream(5, asked=1, gaps=(Gap(1, 2, at=5.0),))

    assert story(0).kinds() == ["gap"]  # id 1: a microsecond after the start of the clock
    assert story(100).kinds() == []


def test_counts_of_sends_are_judged_by_who_was_online() -> None:
    def story(count: int, at: float = 5) -> list[str]:
        story = Story().stream(0, until=50).stream(0, device="e").stream(0, device="f", uid="v")
        story.history.settled_at = 0
        return story.send("a", at, addressed=count, to="u").kinds()

    assert story(2) == []
    assert story(1) == story(3) == ["miscounted"]
    assert story(1, at=49.5) == story(2, at=50.5) == []  # around the end of one, either is right
    assert story(2, at=52) == ["miscounted"]


def test_a_finding_says_what_and_where() -> None:
    assert decide(three().stream(0, "a", "c").history) == [
        Finding("lost", "'b' (without a last id; later frames were seen)", "d", None)
    ]
