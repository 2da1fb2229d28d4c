"""The error that is meant for the user."""


class InputError(ValueError):
    """Something given to greenjax is wrong; the message is one line that names it, its value and what is allowed.

    The commands print that line alone. Any other error is a defect, of greenjax or a library, and keeps its traceback.
    """
