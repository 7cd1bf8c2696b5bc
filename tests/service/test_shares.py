"""What follows from a look at the store, and what a store that forgot everything changes: nothing."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleseg_ext.service.messages import Lease, Report
from paddleseg_ext.service.registry import View
from paddleseg_ext.service.shares import Shares, following

ENDS = ("h:1", "h:2", "h:3", "h:4")


def lease(endpoint, digest="d"):
    return Lease("seg", endpoint, "toy", digest, "", 1.0)


def view(teachers, reports, shares="", now=100_000):
    return View(tuple(map(lease, teachers)), tuple(reports), shares, now)


def reports(**held):
    return [Report("seg", name, 4, "d", tuple(ends)) for name, ends in held.items()]


def test_new_students_share_at_once():
    shares = following(view(ENDS, reports(a=(), b=())), 10)
    assert not shares.settling and sorted(map(len, shares.of.values())) == [2, 2]


def test_what_was_agreed_counts_and_not_what_a_student_still_says():
    agreed = Shares(0, False, {"a": ENDS[:2], "b": ENDS[2:]})
    late = reports(a=ENDS, b=())
    assert following(view(ENDS, late, agreed.text()), 10).of == agreed.of


def test_after_a_restart_students_keep_what_they_hold_until_everybody_is_back():
    before = {"a": ENDS[:2], "b": ENDS[2:]}
    first = following(view([], reports(a=before["a"])), 10)
    assert first.settling and first.of == {"a": ENDS[:2]}
    some = following(view(ENDS[3:], reports(**before), first.text(), 103_000), 10)
    assert some.of == before
    newcomer = following(view(ENDS[1:], reports(c=(), **before), some.text(), 106_000), 10)
    assert {name: newcomer.of[name] for name in before} == before and len(newcomer.of["c"]) == 1
    all_back = following(view(ENDS, reports(**before), some.text(), 110_000), 10)
    assert not all_back.settling and all_back.of == before


def test_a_teacher_that_does_not_come_back_is_given_up_when_all_has_settled():
    held = {"a": ENDS[:2], "b": ENDS[2:]}
    first = following(view(ENDS[:3], reports(**held)), 10)
    assert first.of == held
    later = following(view(ENDS[:3], reports(**held), first.text(), 110_001), 10)
    assert later.of == {"a": ENDS[:2], "b": ENDS[2:3]}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_in_whatever_order_they_come_back_after_a_restart_nobody_moves(seed):
    rng = random.Random(seed)
    ends = [f"h:{i}" for i in range(1, rng.randint(2, 9))]
    wishes = {f"s{i}": rng.randint(1, 5) for i in range(rng.randint(1, 6))}

    def seen(teachers, held, shares, now):
        told = [Report("seg", name, wishes[name], "d", tuple(held[name])) for name in held]
        return following(view(teachers, told, shares, now), 10)

    before = seen(ends, dict.fromkeys(wishes, ()), "", 0).of
    back = [("teacher", end) for end in ends] + [("student", name) for name in wishes]
    rng.shuffle(back)
    teachers, held, shares, now = [], {}, "", 50_000
    for kind, name in back:
        if kind == "teacher":
            teachers.append(name)
        else:
            held[name] = before[name]
        now += rng.randint(0, 10_000 // len(back))
        after = seen(teachers, held, shares, now)
        assert after.of == {name: before[name] for name in held}
        shares = after.text() if held else ""
    for later in (1_000, 20_000):
        after = seen(teachers, held, shares, now + later)
        assert after.of == before
        shares = after.text()


def test_a_student_that_slept_for_long_does_not_stop_the_balancing():
    agreed = Shares(0, False, {"a": ENDS})
    shares = following(view(ENDS, reports(a=ENDS, sleeper=ENDS[:2]), agreed.text()), 10)
    assert not shares.settling and sorted(map(len, shares.of.values())) == [2, 2]


def test_it_is_the_same_whoever_looks():
    seen = view(ENDS, reports(a=(), b=(), c=()))
    other = replace(seen, teachers=seen.teachers[::-1], students=seen.students[::-1])
    assert following(seen, 10).text() == following(other, 10).text()
    again = following(seen, 10)
    assert following(replace(seen, shares=again.text(), now=500_000), 10) == again


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"of": 3}', '{"born": "x", "settling": 0, "of": {}}', '{"of": {"a": [1]}}']
)
def test_shares_that_cannot_be_read_count_as_none(text):
    assert Shares.parse(text) is None
    assert following(view(ENDS, reports(a=()), text), 10).of == {"a": ENDS}
