"""`python -m greenjax.benchmark [--suite NAME] ...` runs `python -m benchmarks NAME ...`; NAME is step by default."""

import sys
from importlib import import_module, util


def main(argv: list[str], command: str = "greenjax.benchmark", suite: str | None = None) -> None:
    if not util.find_spec("benchmarks"):
        sys.exit(f"{command}: expected a checkout of greenjax with the folder benchmarks/, which is not installed")
    import_module("benchmarks.__main__").forwarded(argv, command, suite)


if __name__ == "__main__":
    main(sys.argv)
