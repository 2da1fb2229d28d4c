"""Files that are written as a whole or not at all."""

import errno
import os
from pathlib import Path

from greenjax.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, or what one may use of it


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in place of what is there. Raises InputError where that cannot be."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from error
