"""Compares ways to pre-train: accuracy and cost, over seeds.

    python -m benchmarks evidence --config configs/mnist5k.py --finetune configs/finetune_mnist5k.py \
        --mae configs/mae_mnist5k.py --workdir runs/evidence --table methods

A table has rows, the arms: `methods` compares green, SimMIM, MAE and training from scratch; the others compare choices
of green (benchmarks/evidence_arms.py lists all). An arm is pre-trained once a seed. The learning rate is constant
after the warm-up, so that every point of a training is a possible end: arms are read at equal updates, the `steps` of
--config, and at equal wall time, that of the slowest arm of `methods` for these updates. Read: linear probe and k-NN on
frozen features, fine-tuning, and signals that need no labels (benchmarks/evidence_signals.py). Each is done with all
labels and with `data.per_class` of --finetune. A seed draws the order of the images, their crops, and who has labels,
the same for all arms, and first weights and masks, the same where arms have the same. Differences are paired by seed.

All arms use the images of --config, whatever --finetune and --mae say. A workdir has one set of configs, and the suite
computes only what the workdir lacks. Several processes may share it where each has its own seeds (--only). Rates are
chosen where no test image is seen: tables `rates` and `finetuning` in a workdir of their own, with
`--config.data.split=train[:3200] --config.data.eval_split=train[3200:] --config.seed=100`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks.evidence_arms import SCRATCH, TABLES, Arm
from benchmarks.evidence_costs import Costs, costs_of
from benchmarks.evidence_figure import draw
from benchmarks.evidence_reading import ALL, FEW, Reader
from benchmarks.evidence_text import EQUAL_TIME, EQUAL_UPDATES, HELD_OUT, Row, text
from benchmarks.study import changed, remember
from greenjax.config import load_config
from greenjax.config.flags import folder, positive
from greenjax.errors import InputError, listed
from greenjax.evaluation.pictures.canvas import save_png
from greenjax.evaluation.results import read_results, write_results
from greenjax.runtime.cache import keep_compiled
from greenjax.runtime.console import say
from greenjax.runtime.files import read_metrics, replace_text
from greenjax.runtime.lock import held
from greenjax.tasks import pretrain

FLAGS = {
    "--workdir": dict(type=folder, default=Path("runs/evidence"), help="where runs, tables and figures go"),
    "--table": dict(choices=list(TABLES), default="methods", help="which arms"),
    "--finetune": dict(required=True, help="a config file, the recipe with labels"),
    "--mae": dict(help="a config file that pre-trains a ViT as MAE does; without it that arm is left out"),
    "--seeds": dict(type=positive, default=5, help="how many, from config.seed on"),
    "--only": dict(type=int, nargs="+", metavar="SEED", help="of these seeds, those that this process computes"),
    "--arms": dict(nargs="+", metavar="ARM", help="of the table's arms, those that this process computes"),
}
READINGS = 4  # until equal updates; then one every as many updates


def run(
    config: ConfigDict,
    workdir: Path,
    table: str,
    finetune: str,
    mae: str | None,
    seeds: int,
    only: list[int] | None = None,
    arms: list[str] | None = None,
) -> dict[str, Any]:
    """Trains and reads what the table lacks; then prints the table, draws its figure and returns its rows."""
    keep_compiled()
    evidence = Evidence(config, load_config(finetune), load_config(mae) if mae else None, workdir, table)
    own = range(config.seed, config.seed + seeds)
    names = [arm.name for arm in evidence.arms]
    for flag, given, known in (("--only", only, own), ("--arms", arms, names)):
        if unknown := [each for each in given or () if each not in known]:
            raise InputError(f"{flag} has {unknown[0]!r}: expected some of {listed(map(str, known))}")
    for seed in only or own:
        for arm in evidence.arms:
            if not arms or arm.name in arms:
                evidence.complete(arm, seed)
    rows = [row for arm in evidence.arms for seed in own for row in evidence.rows(arm, seed)]
    found = text(rows, evidence.costs)
    replace_text(workdir / f"{table}.txt", found + "\n")
    say(f"\n{found}")
    save_png(draw(rows), workdir / f"{table}.png")
    return {"costs": evidence.costs, "rows": rows}


class Evidence:
    """Trains the arms of a table, reads them, and collects their rows."""

    def __init__(self, config: ConfigDict, recipe: ConfigDict, mae: ConfigDict | None, workdir: Path, table: str):
        """Raises InputError for configurations that cannot be compared, before anything expensive starts."""
        tasks = [("--config", config, "pretrain"), ("--finetune", recipe, "finetune")]
        for name, given, task in tasks + ([("--mae", mae, "pretrain")] if mae else []):
            if given.task != task:
                raise InputError(f"{name} has task {given.task!r}: expected {task!r}")
        warmup = config.optim.warmup_steps or 0
        if config.steps is None or config.steps % READINGS or config.steps <= warmup:
            raise InputError(f"steps is {config.steps}: expected a multiple of {READINGS} above the warm-up's {warmup}")
        if not recipe.steps or not recipe.data.per_class:
            raise InputError("--finetune: expected a recipe with steps, and data.per_class, the number of few labels")
        if mae:
            mae = changed(mae, {f"data.{key}": value for key, value in config.data.items()})
        if table == "continuing" and config.init == "none":
            raise InputError("init of --config is 'none': expected the run that --table continuing starts from")
        self.config, self.recipe, self.workdir, self.readers = config, recipe, workdir, dict[str, Reader]()
        self.arms = TABLES[table](config, mae)
        configs = {"--config": config, "--finetune": recipe} | ({"--mae": mae} if mae else {})
        remember(workdir, configs, "seed")  # folders have the seeds
        self.costs: Costs = {}
        if any(arm.longer for arm in self.arms):
            self.costs = costs_of(workdir, TABLES["methods"](config, mae), self.reader(config))

    def reader(self, config: ConfigDict) -> Reader:
        """The reader of a configuration's encoder."""
        encoder = str(config.model)
        if encoder not in self.readers:
            self.readers[encoder] = Reader(self.recipe, self.config, config.model)
        return self.readers[encoder]

    def complete(self, arm: Arm, seed: int) -> None:
        """Trains an arm and reads it, as far as this is not done."""
        folder, known = self.folder(arm, seed), read_results(self.folder(arm, seed))
        missing = {entry: measure for entry, measure in self.readings(arm, seed) if entry not in known}
        if missing and arm.config:
            self.pretrain(arm, seed)
        with held(folder, "--workdir"):
            for entry, measure in missing.items():
                found = measure()
                write_results(folder, entry, found)
                numbers = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
                say(f"{arm.name}, seed {seed}, updates {entry}: {numbers}")

    def readings(self, arm: Arm, seed: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
        """The entries of an arm's results.json, and what measures each."""
        folder, reader = self.folder(arm, seed), self.reader(arm.config or arm.encoder or self.config)
        extra = self.extra(arm)
        for updates in self.points(arm):
            run, step = (folder, updates) if arm.config else (arm.start or None, None)
            weights = partial(reader.weights, run, step, seed)
            if not arm.tuned_on:
                yield f"{updates}", lambda weights=weights: reader.frozen(weights(), seed)
            if updates not in self.ends(arm):
                continue
            for labels in (ALL, FEW):
                tuned = partial(reader.finetuned, labels=labels, seed=seed, rate=arm.rate, extra=extra)
                yield tuning(updates, extra, labels, arm), lambda w=weights, t=tuned: t(w())

    def pretrain(self, arm: Arm, seed: int) -> None:
        """Pre-trains an arm at a constant rate."""
        every = self.config.steps // READINGS
        last = self.points(arm._replace(tuned_on=False))[-1]
        own = {"seed": seed, "steps": last, "optim.schedule": "steps", "optim.steps_factor": 1.0}
        own |= {"log.checkpoint_every": every, "log.keep_every": every, "log.eval_every": every, "log.picture_every": 0}
        assert arm.config is not None
        with arm.inside():
            pretrain(changed(arm.config, own), self.folder(arm, seed))

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where a pre-training is; one to equal updates alone is another than one to equal wall time."""
        length = f"_{self.config.steps}" if arm.config and not arm.longer else ""
        return self.workdir / f"{arm.of or arm.name}{length}".replace(", ", "_").replace(" ", "_") / f"seed_{seed}"

    def points(self, arm: Arm) -> list[int]:
        """Updates of pre-training at which an arm is read: at equal updates; `longer`: also before, and on to equal
        wall time. An arm without pre-training is read at 0."""
        equal, step = self.config.steps, self.config.steps // READINGS
        if not arm.longer or arm.tuned_on:
            return [equal if arm.config else 0]
        last = int(equal * (self.slowest / self.costs[cost_of(arm)]["seconds"]))
        return sorted({*range(step, equal, step), *range(equal, last, equal), last})

    def extra(self, arm: Arm) -> int:
        """How many updates more than the recipe's an arm is fine-tuned for: `tuned_on` fills equal wall time."""
        if not arm.tuned_on:
            return 0
        spent = self.points(arm)[-1] * self.costs[cost_of(arm)]["seconds"]
        return int((self.config.steps * self.slowest - spent) / self.costs[SCRATCH]["seconds"])

    @property
    def slowest(self) -> float:
        """The seconds of an update of the slowest pre-training: equal wall time is as many of these as `steps`."""
        return max(cost["seconds"] for name, cost in self.costs.items() if name != SCRATCH)

    def ends(self, arm: Arm) -> dict[int, tuple[str, ...]]:
        """The points that count in tables, and as what."""
        last, equal = self.points(arm)[-1], self.config.steps if arm.config else 0
        ends: dict[int, tuple[str, ...]] = {} if arm.tuned_on else {equal: (EQUAL_UPDATES,)}
        if arm.longer or arm.tuned_on:
            ends[last] = (*ends.get(last, ()), EQUAL_TIME)
        return ends

    def rows(self, arm: Arm, seed: int) -> Iterator[Row]:
        """One row for each reading of an arm.

        Its updates and seconds count the pre-training; for an arm `tuned_on`, the `extra` fine-tuning, too.
        """
        folder = self.folder(arm, seed)
        known = read_results(folder)
        losses = {line["step"]: line["held_out_loss"] for line in read_metrics(folder) if "held_out_loss" in line}
        cost, extra = self.costs.get(cost_of(arm)), self.extra(arm)
        for updates in self.points(arm):
            row: Row = {"arm": arm.name, "against": arm.against, "seed": seed, "updates": updates + extra}
            row["ends"] = self.ends(arm).get(updates, ())
            if cost:
                row["seconds"] = updates * cost["seconds"] + extra * self.costs[SCRATCH]["seconds"]
            entries = [tuning(updates, extra, labels, arm) for labels in (ALL, FEW)]
            if not arm.tuned_on:
                row |= {HELD_OUT: losses[updates]} if updates in losses else {}
                entries = [f"{updates}", *entries]
            for entry in entries:
                row |= known.get(entry, {})
            yield row


def cost_of(arm: Arm) -> str:
    """The arm whose costs it has."""
    return (arm.like or arm.name) if arm.config else SCRATCH


def tuning(updates: int, extra: int, labels: str, arm: Arm) -> str:
    """The entry of a fine-tuning of `extra` updates more than the recipe's, behind `updates` of pre-training."""
    told = " + ".join(str(count) for count in (updates, extra) if count) or "0"
    return f"{told}, fine-tuned, {labels}, rate x {arm.rate:g}"
