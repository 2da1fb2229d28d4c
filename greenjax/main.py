"""The front door: python -m greenjax.main --config configs/digits.py [--workdir DIR] [--config.key=value ...]"""

import os
import sys
from pathlib import Path

from absl import app, logging
from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from greenjax import flags
from greenjax.config import resolve
from greenjax.errors import InputError

CONFIG = flags.define_config()
WORKDIR = absl_flags.DEFINE_string(
    "workdir", None, "Where results go, and where an interrupted run goes on. Default: runs/NAME of the config file."
)


def main(argv: list[str]) -> None:
    del argv
    config = resolve(CONFIG.value)
    prepare_process(config)
    workdir = Path(
        WORKDIR.value or Path("runs") / Path(config_flags.get_config_filename(absl_flags.FLAGS["config"])).stem
    )
    from greenjax.training import DivergedError, run  # imports JAX, which reads its environment then

    try:
        run(config, workdir)
    except (InputError, DivergedError) as error:
        sys.exit(f"greenjax: {error}")
    except KeyboardInterrupt:
        print(f"greenjax: interrupted; the same command goes on from the last checkpoint in {workdir}", file=sys.stderr)
        sys.exit(130)


def prepare_process(config: ConfigDict) -> None:
    """What has to be set before JAX starts."""
    logging.set_verbosity(logging.WARNING)  # Orbax and Grain tell every file they touch
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


if __name__ == "__main__":
    app.run(main, flags_parser=flags.parse)
