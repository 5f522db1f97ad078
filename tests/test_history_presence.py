"""The judge of presence: it must find each wrong message, and excuse what a fault or a race explains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.history import (
    Attempt,
    End,
    Fault,
    Online,
)
from tests.story import Story, heard, presence


def test_a_device_that_comes_and_goes_is_announced_so() -> None:
    assert presence("+d@0 +u@0 -d@5:disconnect -u@5:disconnect") == []
    assert presence("+d@0 +u@0", end=End.OPEN) == []


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", ["presence-missing"]),
        ("+d@0 +u@0", ["presence-missing"]),
        ("+d@0 -d@5:disconnect -u@5:disconnect", ["presence-missing", "presence-missing"]),
        ("+d@0 +u@0 -d@5:disconnect", ["presence-missing"]),
        ("+d@0 +d@0 +u@0 -d@5:disconnect -u@5:disconnect", ["presence-doubled", "presence-doubled"]),
        ("+d@0 +u@0 -d@5:disconnect -d@5:disconnect -u@5:disconnect", ["presence-doubled"]),
        ("+d@0 +u@0 -d@5:disconnect -u@5:disconnect -u@5:disconnect", ["presence-doubled", "presence-doubled"]),
        ("+d@0 +u@0 -d@5:kick_offline -u@5:kick_offline +d@6 +u@6 -d@7:disconnect -u@7:disconnect", ["presence-doubled"]),
        ("+d@0 +u@0 -d@5:instance_clear -u@5:instance_clear", ["presence-wrong"]),
        ("+d@0 +u@0 -d@9:disconnect -u@9:disconnect", ["presence-late"]),
        ("+d@3 +u@3 -d@5:disconnect -u@5:disconnect", ["presence-late"]),
        ("+d@0 +u@0 -d@5:nonsense -u@5:disconnect", ["presence-wrong", "presence-wrong"]),
    ],
)  # fmt: skip
def test_wrong_presence_messages_are_found(text: str, kinds: list[str]) -> None:
    assert presence(text) == kinds


def test_the_last_message_must_fit_an_open_stream() -> None:
    assert "presence-wrong" in presence("+d@0 +u@0 -d@5:disconnect -u@5:disconnect", end=End.OPEN)


def test_each_end_has_its_reasons() -> None:
    for end, reason in ((End.KICK, "kick_offline"), (End.EXTRUDE, "extrude_offline"), (End.LOST, "instance_clear"),
                        (End.INSTANCE_CLOSE, "instance_close"), (End.VANISHED, "heartbeat_fail")):  # fmt: skip
        assert presence(f"+d@0 +u@0 -d@5:{reason} -u@5:{reason}", end=end) == []
        other = {End.LOST: "kick_offline", End.VANISHED: "instance_clear"}.get(end, "disconnect")
        assert presence(f"+d@0 +u@0 -d@5:{other} -u@5:{other}", end=end) == ["presence-wrong"]


def test_an_end_at_the_end_of_the_recording_may_still_be_announced() -> None:
    assert presence("+d@0 +u@0", settled_at=5.5) == []
    assert presence("+d@0 +u@0", settled_at=7) == ["presence-missing"]


def test_extrusion_of_the_only_device_says_nothing_of_the_user() -> None:
    def story(text: str) -> list[str]:
        story = Story(heard=heard(text)).stream(0, until=3.2, end=End.EXTRUDE).stream(3)
        return story.kinds()

    assert story("+d@0 +u@0 -d@3:extrude_offline +d@3") == []
    assert story("+d@0 +u@0 -d@3:extrude_offline -u@3:extrude_offline +d@3 +u@3") == ["presence-doubled"]


def test_a_user_with_two_devices_comes_with_the_first_and_goes_with_the_last() -> None:
    def story(text: str) -> list[str]:
        return Story(heard=heard(text)).stream(0, until=3).stream(1, until=5, device="e").kinds()

    assert story("+d@0 +u@0 +e@1 -d@3:disconnect -e@5:disconnect -u@5:disconnect") == []
    assert story("+d@0 +u@0 +e@1 -d@3:disconnect -u@3:disconnect -e@5:disconnect") == []  # the order is free
    assert story("+d@0 +e@1 -d@3:disconnect -e@5:disconnect") == ["presence-missing"]
    assert story("+d@0 +u@0 +e@1 -d@3:disconnect -u@3:disconnect +u@3 -e@5:disconnect -u@5:disconnect") == [
        "presence-doubled"
    ]


def test_an_attempt_that_was_not_seen_to_open_may_be_announced_or_not() -> None:
    for text in ("+d@0 +u@0 -d@5:disconnect -u@5:disconnect", "+d@0 +u@0 -d@5:disconnect -u@5:disconnect"
                 " +d@7 +u@7 -d@7:disconnect -u@7:disconnect"):  # fmt: skip
        assert presence(text, attempts=[Attempt("d", "u", 7)]) == []


def test_faults_excuse_what_they_can_cause() -> None:
    again = "+d@0 +u@0 -d@2:instance_clear -u@2:instance_clear +d@3 +u@3 -d@5:disconnect -u@5:disconnect"
    assert presence(again) == ["presence-doubled"]
    assert presence(again, faults=[Fault(1, 3)]) == []
    unheard = "+d@0 +u@0 +d@3 +u@3 -d@5:disconnect -u@5:disconnect"
    assert "presence-doubled" in presence(unheard, faults=[Fault(1, 3)])
    assert presence(unheard, faults=[Fault(1, 2, messages=True)]) == []


def test_an_instance_that_stands_still_may_be_cleared_long_before_its_clients_hear_of_it() -> None:
    """In a fault that lasts as long, by its clearing, and when the connection breaks at last: not otherwise."""
    cleared = "+d@0 +u@0 -d@2:instance_clear -u@2:instance_clear"
    assert presence(cleared, end=End.LOST, until=9, faults=[Fault(1, 10)]) == []
    assert presence(cleared, end=End.LOST, until=9) == ["presence-wrong"]
    assert presence(cleared, end=End.LOST, until=9, faults=[Fault(1, 3)]) == ["presence-wrong"]
    assert presence(cleared, end=End.OPEN, faults=[Fault(1, 10)]) != []
    assert presence(cleared, end=End.KICK, until=9, faults=[Fault(1, 10)]) == ["presence-wrong"]
    other = cleared.replace("instance_clear", "disconnect")
    assert presence(other, end=End.LOST, until=9, faults=[Fault(1, 10)]) == ["presence-wrong"]


@pytest.mark.parametrize("fault", [Fault(0, 1), Fault(0, 1, messages=True), Fault(300, 301, messages=True)])
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("+d@150 +u@150 -d@172:disconnect -u@172:disconnect", []),
        ("+d@150 +u@150 -d@172:kick_offline -u@172:kick_offline", []),
        ("+d@150 +u@150 -d@172:instance_clear -u@172:instance_clear", ["presence-wrong"]),
        ("+d@150 +u@150 -d@217:disconnect -u@217:disconnect", ["presence-late"]),
        ("+d@195 +u@195 -d@172:disconnect -u@172:disconnect", ["presence-late"]),
        ("+d@150 +u@150 -d@160:disconnect -u@160:disconnect", ["presence-wrong"]),
        ("+d@150 +u@150", ["presence-missing"]),
        ("", ["presence-missing"]),
        ("+d@150 +u@150 -d@172:disconnect -u@172:disconnect +d@180 +u@180 -d@181:disconnect -u@181:disconnect",
         ["presence-doubled"]),
        ("+d@150 +u@150 -d@160:instance_clear -u@160:instance_clear +d@161 +u@161 -d@172:disconnect -u@172:disconnect",
         ["presence-doubled"]),
        ("+d@150 +u@150 -d@172:disconnect", ["presence-missing"]),
        ("+d@150 +u@150 -d@172:disconnect -u@172:disconnect +u@173 -u@174:disconnect", ["presence-doubled"]),
    ],
)  # fmt: skip
def test_a_fault_excuses_nothing_long_before_or_after_it(text: str, kinds: list[str], fault: Fault) -> None:
    def story(text: str) -> Story:
        return Story(heard=heard(text), faults=[fault], settled_at=400).stream(150, until=172)

    assert story(text).kinds() == kinds


def test_a_wrong_node_or_payload_long_after_a_fault_is_found() -> None:
    def story(place: int, payload: str) -> list[str]:
        messages = heard("+d@150 +u@150 -d@172:disconnect -u@172:disconnect")
        messages[place] = replace(messages[place], payload=payload)
        return Story(heard=messages, faults=[Fault(0, 1)]).stream(150, until=172).kinds()

    assert story(0, "n") == story(2, "") == []
    assert story(0, "another") == story(2, "n") == ["presence-wrong"]


def test_one_message_too_many_does_not_excuse_the_others() -> None:
    """Here the second stream ends with a reason that does not fit."""
    more = "+d@20 +u@20 -d@21:disconnect -u@21:disconnect "
    wrong = "+d@40 +u@40 -d@45:instance_clear -u@45:instance_clear"
    story = Story(heard=heard(f"+d@0 +u@0 -d@5:disconnect -u@5:disconnect {more}{wrong}"))
    assert sorted(story.stream(0, until=5).stream(40, until=45).kinds()) == ["presence-doubled", "presence-wrong"]


def test_two_streams_that_were_asked_for_at_once_may_be_registered_in_either_order() -> None:
    def story(first: str, second: str) -> list[str]:
        text = "+d@0 +u@0 -d@0.05:extrude_offline +d@0.05 -d@5:disconnect -u@5:disconnect"
        messages = heard(text)
        for place, node in ((0, first), (3, second)):
            messages[place] = replace(messages[place], payload=node)
        story = Story(heard=messages)
        ends = {"a": 0.2, "b": 5} if second == "b" else {"a": 5, "b": 0.2}
        for node, until in ends.items():
            story.stream(0, node=node, until=until, end=End.DROPPED if until == 5 else End.EXTRUDE)
        return story.kinds()

    assert story("a", "b") == story("b", "a") == []
    assert "presence-wrong" in story("a", "a")


def test_a_user_whose_devices_stayed_is_judged_behind_messages_that_were_lost() -> None:
    def story(text: str) -> list[str]:
        story = Story(heard=heard(text), faults=[Fault(10, 20, messages=True)], settled_at=90)
        return story.stream(0, until=40).stream(0, device="e").kinds()

    assert story("+d@0 +u@0 +e@0 -d@40:disconnect") == []
    assert story("+d@0 +u@0 +e@0 -d@40:disconnect -u@40:disconnect") == ["presence-doubled"]


def test_a_message_under_a_wrong_name_is_found() -> None:
    assert presence("+d@0 +u@0 -d@5:disconnect -u@5:disconnect", uid="v").count("presence-wrong") == 2
    message = replace(heard("+d@0")[0], device_id="0" * 32)
    assert "presence-wrong" in Story(heard=[message, heard("+u@0")[0]]).stream(0).kinds()


def test_the_end_is_compared_with_info() -> None:
    def story(**online: Online) -> list[str]:
        return Story(online_at_end=online).stream(0, until=3).stream(4).stream(0, device="gone", until=3).kinds()

    assert story(d=Online("u", "n")) == story(d=Online("u")) == []
    assert story() == ["absent"]
    assert story(d=Online("u", "n"), gone=Online("u", "n")) == ["ghost"]
    assert story(d=Online("v", "n")) == story(d=Online("u", "m")) == ["presence-wrong"]
    twins = Story(online_at_end={"d": Online("u", "n")}).stream(0).stream(1)
    assert twins.kinds() == ["twin"]
