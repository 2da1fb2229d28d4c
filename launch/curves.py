"""Trains the small pre-trainings of configs/ and keeps their losses in a folder of docs, for `greenjax compare`.

    python launch/curves.py [--runs runs/curves] [NAME ...]

Without names: all below. A run that is finished in --runs is not trained again.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
NAMES = ("digits", "digits_twins", "digits_swinv2", "digits_convnext", "digits_convnextv2", "digits_hiera")
NAMES += ("digits_pvtv2", "mae_digits", "mnist5k", "mae_mnist5k", "scenes")
KEPT = ("step", "loss", "held_out_loss", "best_constant_loss")  # what does not depend on the machine


def main(argv: Sequence[str]) -> None:
    """Trains what is not finished, and writes a folder a run."""
    parser = ArgumentParser("curves.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files of configs/, without .py")
    parser.add_argument("--runs", type=Path, default=HOUSE / "runs/curves", help="where the runs go")
    arguments = parser.parse_args(argv[1:])
    for name in arguments.names or NAMES:
        if not (HOUSE / f"configs/{name}.py").is_file():
            parser.error(f"there is no configs/{name}.py")
    for name in arguments.names or NAMES:
        run, folder = arguments.runs.absolute() / name, HOUSE / "docs/curves" / name
        of_run = ["--config", f"configs/{name}.py", "--workdir", str(run)]
        subprocess.run([sys.executable, "-m", "greenjax.main", *of_run], cwd=HOUSE, check=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes((run / "config.json").read_bytes())
        (folder / "metrics.jsonl").write_text("".join(map(shortened, (run / "metrics.jsonl").read_text().splitlines())))


def shortened(line: str) -> str:
    """A line of a run's metrics with the losses alone, to four digits; nothing where it has none."""
    found = {key: value for key, value in json.loads(line).items() if key in KEPT}
    kept = {key: value if key == "step" else float(f"{value:.4g}") for key, value in found.items()}
    return json.dumps(kept) + "\n" if len(kept) > 1 else ""


if __name__ == "__main__":
    main(sys.argv)
