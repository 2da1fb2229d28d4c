"""`python -m greenjax.benchmark [--suite NAME] ...` runs `python -m benchmarks NAME ...`; NAME is step by default."""

import sys
from importlib import import_module, util
from pathlib import Path


def main(argv: list[str], command: str = "greenjax.benchmark") -> None:
    if not (spec := util.find_spec("benchmarks")) or Path(f"{spec.origin}").parent.parent != Path(__file__).parents[1]:
        sys.exit(f"{command}: expected a checkout of greenjax with the folder benchmarks/, which is not installed")
    import_module("benchmarks.__main__").forwarded(argv, command)


if __name__ == "__main__":
    main(sys.argv)
