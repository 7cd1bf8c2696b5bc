"""Who asks whom: even, nobody idle, the fewest moves. Random histories, and every case of a few teachers and students by brute force."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleseg_ext.service.balance import Student, Teacher, assign


def faults(teachers, students, shares):
    """What is wrong with the shares of one model's teachers and students; written from the rules, not from the code."""
    n, m = len(teachers), len(students)
    loads = {t: sum(t in share for share in shares.values()) for t in teachers}
    most = {s.name: s.require_num for s in students}
    count = {name: len(share) for name, share in shares.items()}
    idle = [t for t, load in loads.items() if load == 0]
    wanting = [name for name in most if count[name] < most[name]]
    found = [f"{name} has {share}" for name, share in shares.items() if not set(share) <= set(teachers)]
    found += [f"{name} has one twice" for name, share in shares.items() if len(set(share)) < len(share)]
    found += [f"{name} has more than it asked for" for name in most if count[name] > most[name]]
    found += [f"{name} has none" for name in most if n and not count[name]]
    if loads and max(loads.values()) - min(loads.values()) > 1:
        found.append(f"loads {loads}")
    if idle and wanting and m:
        found.append(f"{idle} idle while {wanting} could use them")
    if n >= m and any(load > 1 for load in loads.values()):
        found.append(f"shared without need: {loads}")
    if n < m and any(c > 1 for c in count.values()):
        found.append(f"more than one teacher while others share: {count}")
    found += [f"{a} has two fewer than {b}" for a in wanting for b in most if count[b] >= count[a] + 2]
    return found


def moves(students, shares):
    """Teachers newly given."""
    return sum(len(set(shares[s.name]) - set(s.held)) for s in students)


def fewest_moves(teachers, students):
    """By trying everything."""
    choices = []
    for s in students:
        counts = range(min(1, len(teachers)), min(s.require_num, len(teachers)) + 1)
        choices.append([c for k in counts for c in itertools.combinations(teachers, k)])
    best = None
    for picks in itertools.product(*choices):
        shares = {s.name: list(pick) for s, pick in zip(students, picks, strict=True)}
        cost = moves(students, shares)
        if (best is None or cost < best) and not faults(teachers, students, shares):
            best = cost
    return best


def test_five_students_and_eight_teachers_leave_none_idle():
    teachers = [Teacher(f"10.0.0.{i}:9292") for i in range(8)]
    shares = assign(teachers, [Student(f"s{i}", 4) for i in range(5)])
    assert sorted(len(share) for share in shares.values()) == [1, 1, 2, 2, 2]
    assert sorted(itertools.chain(*shares.values())) == sorted(t.endpoint for t in teachers)


def test_teachers_are_shared_evenly_when_students_are_more():
    shares = assign([Teacher("a"), Teacher("b"), Teacher("c")], [Student(f"s{i}", 9) for i in range(8)])
    assert all(len(share) == 1 for share in shares.values())
    assert sorted(sum(share == [t] for share in shares.values()) for t in "abc") == [2, 3, 3]


def test_nobody_there_is_no_error():
    assert assign([], []) == {}
    assert assign([Teacher("a")], []) == {}
    assert assign([], [Student("s", 2, held=("a",))]) == {"s": []}


def test_a_student_takes_no_more_than_it_asks_for():
    shares = assign([Teacher(t) for t in "abcdef"], [Student("one", 1), Student("nine", 9)])
    assert len(shares["one"]) == 1 and len(shares["nine"]) == 5


def test_models_are_never_mixed():
    teachers = [Teacher("a", "x"), Teacher("b", "x"), Teacher("c", "y")]
    students = [
        Student("old", 4, "y", ("a", "c")),
        Student("new", 4),
        Student("holds", 4, "", ("c",)),
        Student("z", 4, "z"),
    ]
    shares = assign(teachers, students)
    assert shares == {"old": ["c"], "holds": ["c"], "new": ["a", "b"], "z": []}


def test_a_teacher_that_came_back_with_another_model_is_taken_away():
    shares = assign([Teacher("a", "y"), Teacher("b", "x")], [Student("s", 2, "x", ("a", "b"))])
    assert shares == {"s": ["b"]}


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_no_valid_assignment_needs_fewer_moves(data):
    teachers = "abcd"[: data.draw(st.integers(0, 4))]
    size = data.draw(st.integers(0, 4 if len(teachers) < 4 else 3))
    subsets = st.sets(st.sampled_from("abcdx")).map(lambda held: tuple(sorted(held)))
    students = [Student(f"s{i}", data.draw(st.integers(1, 4)), held=data.draw(subsets)) for i in range(size)]
    shares = assign([Teacher(t) for t in teachers], students)
    assert faults(teachers, students, shares) == []
    assert moves(students, shares) == fewest_moves(teachers, students)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_rules_hold_through_random_histories(seed):
    """Joins, leaves, changed wishes and two models, each step from what the step before gave."""
    rng = random.Random(seed)
    teachers, wishes, held = {}, {}, {}
    for step in range(30):
        event = rng.choice(["teacher", "teacher", "student", "gone", "left", "wish"])
        if event == "teacher":
            teachers[f"t{rng.randrange(14):02}"] = rng.choice("xxxy")
        elif event == "student":
            wishes[f"s{step:02}"] = (rng.randint(1, 6), rng.choice("xxy"))
        elif event == "gone" and teachers:
            del teachers[rng.choice(sorted(teachers))]
        elif event == "left" and wishes:
            name = rng.choice(sorted(wishes))
            del wishes[name]
            held.pop(name, None)
        elif event == "wish" and wishes:
            name = rng.choice(sorted(wishes))
            wishes[name] = (rng.randint(1, 6), wishes[name][1])
        students = [Student(name, num, digest, tuple(held.get(name, ()))) for name, (num, digest) in wishes.items()]
        pool = [Teacher(*item) for item in teachers.items()]
        shares = assign(pool, students)
        for digest in "xy":
            mine = [s for s in students if s.digest == digest]
            ends = [t.endpoint for t in pool if t.digest == digest]
            assert faults(ends, mine, {s.name: shares[s.name] for s in mine}) == []
        rng.shuffle(students)
        rng.shuffle(pool)
        assert assign(pool, students) == shares, "the order of the arguments does not matter"
        settled = [Student(s.name, s.require_num, s.digest, tuple(shares[s.name])) for s in students]
        assert assign(pool, settled) == shares, "nothing moves while nothing changes"
        held = shares


@pytest.mark.parametrize("gone", range(8))
def test_a_death_moves_one_teacher_at_most(gone):
    teachers = [Teacher(f"t{i}") for i in range(8)]
    before = assign(teachers, [Student(f"s{i}", 4) for i in range(3)])
    students = [Student(name, 4, held=tuple(share)) for name, share in before.items()]
    after = assign(teachers[:gone] + teachers[gone + 1 :], students)
    assert moves(students, after) <= 1


def test_hundreds_take_a_moment():
    teachers = [Teacher(f"t{i}") for i in range(400)]
    students = [Student(f"s{i}", 8, held=tuple(f"t{j % 400}" for j in range(2 * i, 2 * i + 8))) for i in range(200)]
    shares = assign(teachers, students)
    assert faults([t.endpoint for t in teachers], students, shares) == []
    assert moves(students, shares) == 0
