"""What a run leaves to look at, also when it is cut short and resumed."""

import json
import re

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter  # noqa: F401

from greenjax.config import KEYS, load_config
from greenjax.training import metrics
from greenjax.training.metrics import MetricsWriter, duration, record_config


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
