"""The error that is meant for the user."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something given to greenjax is wrong; the message is one line that names it, its value and what is allowed.

    The commands print that line alone. Any other error is a defect, of greenjax or a library, and keeps its traceback.
    """


def listed(names: Iterable[str]) -> str:
    """The names as errors show them, the first ten of many."""
    names = list(names)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
