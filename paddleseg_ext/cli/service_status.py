"""Shows services, their teachers and students, who asks whom, and how fast.

python -m paddleseg_ext.cli.service_status --db_endpoints 127.0.0.1:6379
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from paddleseg_ext.cli import args as flags
from paddleseg_ext.cli import services
from paddleseg_ext.cli.screen import user_errors
from paddleseg_ext.service.registry import Registry, View
from paddleseg_ext.service.shares import Shares


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = flags.parser("Show services, teachers, students, who asks whom, and rates.")
    flags.add_store(parser, lease=False)
    parser.add_argument("--json", action="store_true", help="as JSON, one object by service name")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parser().parse_args(argv)
    with user_errors(), closing(Registry(services.store(args))) as registry:
        found = {name: _service(registry.visit(name)) for name in registry.services()}
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, service in found.items():
        print("\n".join(_lines(name, service)))
    if not found:
        print("no service has a teacher or a student")


def _service(view: View) -> dict[str, Any]:
    """Everything known of a service. Rates are samples per second as students measure them."""
    shares = Shares.parse(view.shares)
    given = shares.of if shares else {}
    students = [
        {
            "name": report.student,
            "require_num": report.require_num,
            "digest": report.digest,
            "teachers": list(given.get(report.student, ())),
            "asks": list(report.held),
            "rates": dict(report.rates),
        }
        for report in view.students
    ]
    teachers = [
        {
            "endpoint": lease.endpoint,
            "model": lease.model,
            "digest": lease.digest,
            "age": round(max(0.0, view.now / 1000 - lease.started), 1),
            "students": [r.student for r in view.students if lease.endpoint in given.get(r.student, ())],
            "rate": sum(report.rates.get(lease.endpoint, 0.0) for report in view.students),
            "rates": dict(lease.rates),
        }
        for lease in view.teachers
    ]
    return {"teachers": teachers, "students": students, "settling": bool(shares and shares.settling)}


def _lines(name: str, service: dict[str, Any]) -> list[str]:
    teachers, students = service["teachers"], service["students"]
    heading = f"{name}: teachers {len(teachers)}, students {len(students)}"
    rows: list[tuple[str, ...]] = [("teacher", "model", "outputs", "age", "samples/s", "students")]
    for teacher in teachers:
        age = time.strftime("%H:%M:%S", time.gmtime(teacher["age"] % 86400))
        days = f"{int(teacher['age'] // 86400)}d " if teacher["age"] >= 86400 else ""
        row = (teacher["endpoint"], teacher["model"], teacher["digest"], days + age)
        rows.append((*row, f"{teacher['rate']:.1f}", ", ".join(teacher["students"]) or "-"))
    lines = [heading + ("; settling after a restart of Redis" if service["settling"] else ""), *_table(rows), ""]
    if not students:
        return lines
    rows = [("student", "wants", "outputs", "samples/s", "teachers")]
    for student in students:
        rate = f"{sum(student['rates'].values()):.1f}"
        row = (student["name"], str(student["require_num"]), student["digest"] or "-", rate)
        rows.append((*row, ", ".join(student["teachers"]) or "-"))
    return [*lines, *_table(rows), ""]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    main()
