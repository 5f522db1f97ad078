"""A few hundred made-up inputs for everything that a stranger's bytes reach; `make fuzz` feeds them by the hundred thousand."""

from __future__ import annotations

import pytest

from tests.fuzz import case, run
from tests.fuzz_targets import SEEDS, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_made_up_bytes_break_no_promise(target: str) -> None:
    result = run(target, seed=1, cases=60 if target in ("config_file", "environment") else 400)
    assert not result["findings"], result["findings"]


def test_a_case_follows_from_its_seed_and_number_alone() -> None:
    for target in TARGETS:
        assert case(target, 7, 4711) == case(target, 7, 4711)
    assert len({case("token", 7, number) for number in range(100)}) > 50


@pytest.mark.parametrize("target", TARGETS)
def test_each_seed_itself_is_fine(target: str) -> None:
    for seed in SEEDS[target]:
        TARGETS[target](seed)


def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> None:
        assert b"\xff" not in data

    monkeypatch.setitem(TARGETS, "token", broken)
    assert run("token", seed=1, cases=2000)["findings"]
