"""Lists settings: the default, the meaning and the allowed values of every key, or of those with WORD in them.

greenjax settings mask
"""

import argparse

from greenjax.config.listing import described, found
from greenjax.errors import InputError
from greenjax.runtime.console import say


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(argv[0], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="in a key's name or meaning; several: all of them")
    words = parser.parse_args(argv[1:]).words
    try:
        say(*described(found(words)))
    except InputError as error:
        raise SystemExit(f"{argv[0]}: {error}") from None
