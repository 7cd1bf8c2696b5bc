"""The kinds of teacher. Each is a callable: a Batch in, TeacherOutputs out."""

from paddleseg_ext.teachers.cached import CachedTeacher
from paddleseg_ext.teachers.ema import EmaTeacher
from paddleseg_ext.teachers.engine import EngineTeacher
from paddleseg_ext.teachers.model import ModelTeacher
from paddleseg_ext.teachers.peer import PeerTeacher
from paddleseg_ext.teachers.remote import RemoteTeacher
from paddleseg_ext.teachers.several import SeveralTeachers

__all__ = [
    "CachedTeacher",
    "EmaTeacher",
    "EngineTeacher",
    "ModelTeacher",
    "PeerTeacher",
    "RemoteTeacher",
    "SeveralTeachers",
]
