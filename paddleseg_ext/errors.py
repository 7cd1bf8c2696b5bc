"""What a user can get wrong, as exceptions. Commands print the message alone and exit with code 2.

A message is one sentence that names the file and the key or layer, what was given and what would be right.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(UserError):
    """A YAML file, a flag or a distill_config.py says something that cannot be done."""


class DataError(UserError):
    """An image, a label or a list of them is missing or does not fit."""


class WeightsError(UserError):
    """Weights are missing, unreadable or do not fit the model."""


class CacheError(UserError):
    """Stored outputs of a teacher are missing, incomplete, or those of another teacher or other data."""


class CheckpointError(UserError):
    """A folder cannot be written to, or cannot be resumed from."""


class TrainingError(UserError):
    """Training cannot go on: a loss is not finite."""


class NoTeacherError(TrainingError):
    """No teacher of a service has answered for too long."""


class StoppedWaiting(NoTeacherError):
    """Asked to stop while no teacher of a service answered."""


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; closest: 'a', 'b'`, the names most like `name`, or all of a short list, or nothing."""
    known = sorted(set(known))
    lower = {k.lower(): k for k in known}
    found = [lower[m] for m in difflib.get_close_matches(str(name).lower(), lower, n=count, cutoff=0.5)]
    if found:
        return "; closest: " + ", ".join(f"'{f}'" for f in found)
    if 0 < len(known) <= 8:
        return "; known: " + ", ".join(f"'{k}'" for k in known)
    return ""
