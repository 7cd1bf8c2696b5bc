"""Who asks whom in a service, and what follows from a new look at the store; pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from paddleseg_ext.service.addresses import is_endpoint, is_name
from paddleseg_ext.service.balance import Student, Teacher, assign
from paddleseg_ext.service.messages import MalformedText, load
from paddleseg_ext.service.registry import View


@dataclass(frozen=True)
class Shares:
    """What balance servers agree on, in the store.

    born: when it was first written, by the store's clock in milliseconds. settling: the store had forgotten everything, and
    its teachers and students are still coming back. of: endpoints by student.
    """

    born: int
    settling: bool
    of: Mapping[str, tuple[str, ...]]

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"born": self.born, "settling": self.settling, "of": self.of}, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> "Shares | None":
        """None where the text is none of ours."""
        try:
            found = load(text)
            of = {name: tuple(share) for name, share in found["of"].items() if is_name(name)}
            shares = cls(int(found["born"]), found["settling"] is True, of)
        except (MalformedText, KeyError, TypeError, ValueError, AttributeError):
            return None
        return shares if all(is_endpoint(e) for share in of.values() for e in share) else None


def following(view: View, lease: float) -> Shares:
    """Who is to ask whom now.

    A store that was restarted, or that nobody wrote to for the time of a lease, has forgotten; students that already hold
    teachers then show that it had known more. For the time of a lease they keep what they hold, until everybody is back:
    to balance among the first to come back would move what need not move.

    Args:
        view: the service at this moment.
        lease: seconds.
    """
    old = Shares.parse(view.shares) or Shares(view.now, False, {})
    strangers = any(report.held and report.student not in old.of for report in view.students)
    settling = view.now < old.born + 1000 * lease and (old.settling or strangers)
    students = [
        Student(r.student, r.require_num, r.digest, tuple(old.of.get(r.student, r.held))) for r in view.students
    ]
    given = assign([Teacher(t.endpoint, t.digest) for t in view.teachers], students)
    kept = {r.student: r.held for r in view.students if settling and r.held}
    return Shares(old.born, settling, {name: kept.get(name) or tuple(share) for name, share in given.items()})
