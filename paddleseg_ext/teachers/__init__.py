"""The kinds of teacher. Each is a callable: a Batch in, detached TeacherOutputs out."""

from paddleseg_ext.teachers.model import ModelTeacher

__all__ = ["ModelTeacher"]
