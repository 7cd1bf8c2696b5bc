"""Which student asks which teachers; pure: no clock, no I/O.

With n teachers and m students of one model:
n >= m: a teacher serves one student, none is idle while a student has fewer than it asks for, and students have equally
        many, within one, up to what each asks for;
n < m:  a student has one teacher, and teachers serve equally many students, within one.
Of all such assignments, one that keeps the most of what is held.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Teacher:
    """endpoint: `ip:port`. digest: of the model it serves, ModelSpec.digest()."""

    endpoint: str
    digest: str = ""


@dataclass(frozen=True)
class Student:
    """name: unique. require_num: the most teachers it has a use for, at least 1. digest: of the model it has learnt from so
    far; empty: any. held: endpoints it asks at present."""

    name: str
    require_num: int = 1
    digest: str = ""
    held: tuple[str, ...] = ()


def assign(teachers: Sequence[Teacher], students: Sequence[Student]) -> dict[str, list[str]]:
    """The endpoints of each student by its name, sorted; the order of the arguments does not matter.

    A student never gets teachers of two models, nor of another model than it has learnt from; one that has learnt from none
    gets the model that most teachers serve.
    """
    models = {teacher.endpoint: teacher.digest for teacher in teachers}
    groups: dict[str, list[Student]] = {}
    for student in students:
        groups.setdefault(_model(student, models), []).append(student)
    shares: dict[str, list[str]] = {student.name: [] for student in students}
    for digest, group in groups.items():
        endpoints = sorted(endpoint for endpoint, model in models.items() if model == digest)
        if endpoints:
            shares.update(_share(endpoints, sorted(group, key=lambda student: student.name)))
    return shares


def _model(student: Student, models: Mapping[str, str]) -> str:
    if student.digest:
        return student.digest
    held = [models[endpoint] for endpoint in student.held if endpoint in models]
    counts = Counter(held or models.values())
    return min(counts, key=lambda digest: (-counts[digest], digest), default="")


def _share(endpoints: Sequence[str], students: Sequence[Student]) -> dict[str, list[str]]:
    """Endpoints of one model among its students; both sorted, at least one of each."""
    links = [(e, s.name) for s in students for e in sorted(set(s.held)) if e in set(endpoints)]
    if len(endpoints) >= len(students):
        room = _Room.up_to({s.name: max(1, s.require_num) for s in students}, len(endpoints))
        pairs = _place(endpoints, links, room)
    else:
        room = _Room.up_to(dict.fromkeys(endpoints, len(students)), len(students))
        pairs = [(e, s) for s, e in _place([s.name for s in students], [(s, e) for e, s in links], room)]
    shares: dict[str, list[str]] = {student.name: [] for student in students}
    for endpoint, name in sorted(pairs):
        shares[name].append(endpoint)
    return shares


@dataclass
class _Room:
    """How many items a bin may take: `base` of each, and one more in `extra` of those in `wider`."""

    base: dict[str, int]
    wider: set[str]
    extra: int

    @classmethod
    def up_to(cls, most: Mapping[str, int], items: int) -> "_Room":
        """As even as can be for so many items, no bin above its `most`."""
        level = 0
        while sum(min(m, level + 1) for m in most.values()) <= items and level < max(most.values()):
            level += 1
        base = {name: min(m, level) for name, m in most.items()}
        wider = {name for name, m in most.items() if m > level}
        return cls(base, wider, min(items - sum(base.values()), len(wider)))


def _place(items: Sequence[str], links: Sequence[tuple[str, str]], room: _Room) -> list[tuple[str, str]]:
    """(item, bin) pairs, an item once, that fill the room as far as items go, with as many of `links` as can be.

    Links are kept by a greatest flow; the items left over go to the bins with the most room. Any kept links can be completed so,
    therefore no other way keeps more.
    """
    placed = _kept(items, links, room)
    count = Counter(placed.values())
    extra = room.extra - sum(count[box] > room.base[box] for box in room.base)
    for item in (item for item in items if item not in placed):
        free = [box for box in room.base if count[box] < room.base[box]]
        if not free and extra > 0:
            free = [box for box in sorted(room.wider) if count[box] == room.base[box]]
            extra -= 1
        if not free:
            break
        placed[item] = max(free, key=lambda box: room.base[box] - count[box])
        count[placed[item]] += 1
    return list(placed.items())


_Node = tuple[str, str]
_EXTRA, _SINK = ("extra", ""), ("sink", "")


def _kept(items: Sequence[str], links: Sequence[tuple[str, str]], room: _Room) -> dict[str, str]:
    """The most links that fit the room, an item once.

    Item to bin to sink; a bin has `base` units to the sink and, if wider, one more by way of a node that passes on `extra`.
    """
    left: dict[_Node, dict[_Node, int]] = {_EXTRA: {_SINK: room.extra}, _SINK: {}}
    for box, base in room.base.items():
        left[("bin", box)] = {_SINK: base, _EXTRA: int(box in room.wider)}
    for item, box in links:
        left.setdefault(("item", item), {})[("bin", box)] = 1
    for item in items:
        _send(left, ("item", item))
    return {item: box for item, box in links if left[("item", item)][("bin", box)] == 0}


def _send(left: dict[_Node, dict[_Node, int]], start: _Node) -> None:
    """One unit more from `start` to the sink along a shortest path of what is left of the capacities, if there is one.

    One attempt is enough: where there is no path now, other items' paths will not open one.
    """
    came: dict[_Node, _Node] = {start: start}
    queue = deque([start])
    while queue and _SINK not in came:
        node = queue.popleft()
        for following, units in left.get(node, {}).items():
            if units > 0 and following not in came:
                came[following] = node
                queue.append(following)
    node = _SINK
    while node in came and node != start:
        before = came[node]
        left[before][node] -= 1
        left[node][before] = left[node].get(before, 0) + 1
        node = before
