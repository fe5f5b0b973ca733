from __future__ import annotations

import heapq
import random

import pytest

from embedx.distribute.unit_queue import TRIES, UnitQueue
from embedx.errors import MemberError
from embedx.store.format.layout import Unit


def units(count: int, split: str = "train") -> list[Unit]:
    return [Unit(split, number) for number in range(count)]


def queue_of(*found: Unit, rows: int = 10, members: str = "ab") -> UnitQueue:
    queue = UnitQueue(dict.fromkeys(found, rows))
    for member in members:
        queue.join(member, 0.0)
    return queue


def test_units_are_handed_out_in_order_and_each_once() -> None:
    queue = queue_of(*units(4), *units(1, "val"))
    assert [queue.take(member, "train", 1.0) for member in "abab"] == units(4)
    assert queue.take("a", "train", 1.0) is None
    assert queue.take("a", None, 1.0) == Unit("val", 0)


def test_the_units_of_a_member_that_is_gone_come_next_and_in_order() -> None:
    queue = queue_of(*units(5))
    assert [queue.take("a", "train", 1.0) for _ in range(2)] == units(2)
    queue.lose("a")
    assert [queue.take("b", None, 2.0) for _ in range(5)] == units(5)


def test_a_member_goes_on_in_order_and_takes_what_lies_behind_it_once_it_is_idle() -> None:
    """As the rows of a loader rise."""
    queue = queue_of(*units(3))
    assert queue.take("a", "train", 1.0) == Unit("train", 0)
    assert queue.take("b", "train", 1.0) == Unit("train", 1)
    queue.lose("a")
    assert queue.take("b", "train", 2.0) is None
    assert queue.take("b", None, 2.0) == Unit("train", 0)


def test_a_unit_at_which_members_die_again_and_again_ends_the_run() -> None:
    queue = queue_of(*units(1), members="")
    for attempt in range(TRIES):
        queue.join(str(attempt), 0.0)
        assert queue.take(str(attempt), None, 1.0) == Unit("train", 0)
        if attempt == TRIES - 1:
            with pytest.raises(MemberError, match="3 members have died while they computed unit 0 of split 'train'"):
                queue.lose(str(attempt))
        else:
            queue.lose(str(attempt))


def test_a_slow_member_s_last_unit_is_computed_by_an_idle_one_too_if_that_is_ready_sooner() -> None:
    queue = queue_of(*units(2))
    assert queue.take("a", None, 0.0) == Unit("train", 0)
    assert queue.take("b", None, 0.0) == Unit("train", 1)
    queue.advance("a", 10, 10.0)
    queue.commit("a", Unit("train", 0), 10.0)
    queue.advance("b", 8, 10.0)
    assert queue.take("a", None, 10.0) is None  # b needs 2.5 s, and a would need 10
    queue = queue_of(*units(2))
    queue.take("a", None, 0.0), queue.take("b", None, 0.0)
    queue.advance("a", 10, 10.0)
    queue.commit("a", Unit("train", 0), 10.0)
    queue.advance("b", 1, 10.0)
    assert queue.take("a", None, 10.0) == Unit("train", 1)
    queue.commit("a", Unit("train", 1), 20.0)
    assert queue.is_done and queue.holds("b") == []


def test_a_member_that_falls_silent_is_not_waited_for() -> None:
    queue = queue_of(*units(2))
    for member in "ab":
        unit = queue.take(member, None, 0.0)
        assert unit is not None
        queue.advance(member, 9, 9.0)
    queue.commit("a", units(2)[0], 10.0)
    assert queue.take("a", None, 11.0) is None
    assert queue.take("a", None, 25.0) == Unit("train", 1)  # silent for 16 s, and a needs 11


def test_a_unit_is_given_away_once_more_only_if_all_who_have_it_are_late() -> None:
    queue = queue_of(*units(1), members="abc")
    assert queue.take("a", None, 0.0) == Unit("train", 0)
    assert queue.take("b", None, 299.0) is None
    assert queue.take("b", None, 1000.0) == Unit("train", 0)
    assert queue.take("c", None, 1001.0) is None
    assert queue.take("c", None, 5000.0) == Unit("train", 0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_members_do_every_unit_is_committed(seed: int) -> None:
    """Members of speeds that differ by a factor of four die, stop for ever, and come anew."""
    chance = random.Random(seed)
    rows = {Unit(split, number): chance.randint(1, 20) for split in ("a", "b") for number in range(30)}
    queue, committed = UnitQueue(rows), dict.fromkeys(rows, 0)
    speeds: dict[str, float] = {}
    events: list[tuple[float, int, str, Unit | None]] = []

    def join(now: float) -> None:
        name = f"member {len(speeds)}"
        speeds[name] = chance.uniform(5, 20)
        queue.join(name, now)
        heapq.heappush(events, (now, len(speeds), name, None))

    for _ in range(5):
        join(0.0)
    order = 1000
    while not queue.is_done:
        now, _, name, unit = heapq.heappop(events)
        fate = chance.random()
        if unit is not None and fate < 0.02:
            queue.lose(name)
            join(now)
            continue
        if unit is not None and fate < 0.04:
            join(now)
            continue  # it is never heard of again
        if unit is not None:
            queue.advance(name, rows[unit], now)
            committed[unit] += unit in queue.open
            queue.commit(name, unit, now)
        taken = queue.take(name, None, now)
        order += 1
        wait = 1.0 if taken is None else rows[taken] / speeds[name]
        heapq.heappush(events, (now + wait, order, name, taken))
    assert set(committed.values()) == {1}
