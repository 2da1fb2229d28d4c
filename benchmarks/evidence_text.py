"""The tables of `benchmarks evidence`: means over seeds, and paired differences between arms."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import spearmanr
from scipy.stats import t as student

from benchmarks.evidence_reading import ALL, FEW
from benchmarks.evidence_signals import SIGNALS
from benchmarks.study import FINETUNE, KNN, PROBE
from benchmarks.tables import Column, markdown, mean_and_spread

Row = dict[str, Any]

EQUAL_UPDATES, EQUAL_TIME, HELD_OUT = "equal updates", "equal wall time", "held-out loss"
ACCURACIES = tuple(f"{way}, {labels}" for labels in (ALL, FEW) for way in (PROBE, KNN, FINETUNE))
FROZEN = tuple(key for key in ACCURACIES if not key.startswith(FINETUNE))
CONFIDENCE = 0.95


def text(rows: Sequence[Row], costs: Mapping[str, Mapping[str, float]]) -> str:
    """The report of a table, in Markdown."""
    lines = markdown(COSTS, [{"arm": name} | dict(cost) for name, cost in costs.items()]) if costs else []
    for end in (EQUAL_UPDATES, EQUAL_TIME):
        groups = by_arm(rows, end)
        if len(groups) < 2:
            continue
        lines += ["", f"Top-1 at {end}: mean ± standard deviation over seeds", ""]
        lines += markdown(COLUMNS, (means(arm, of) for arm, of in groups.items()))
        first = next(iter(groups))
        pairs = [(arm, of[0]["against"] or first) for arm, of in groups.items()]
        lines += ["", f"Differences, seed by seed: mean and {CONFIDENCE:.0%} interval", ""]
        lines += markdown(DIFFERENCES, (differences(*pair, groups) for pair in pairs if pair[0] != pair[1] in groups))
    for heading, keys, found in (
        ("within a training", FROZEN, within(rows)),
        ("between trainings, at equal updates", ACCURACIES, between(rows)),
    ):
        if found:
            lines += ["", f"Spearman's rank correlation {heading}", "", *markdown(columns("signal", "n", *keys), found)]
    return "\n".join(lines)


COSTS: list[Column] = [
    ("an update of", "arm", 1, ""),
    ("ms", "seconds", 1e-3, ".1f"),
    ("GFLOP of products", "flops", 1e9, ".2f"),
    ("MB", "bytes", 1e6, ".1f"),
]


def columns(*keys: str) -> list[Column]:
    """Columns of texts, under their keys."""
    return [(key, key, 1, "") for key in keys]


COLUMNS, DIFFERENCES = columns("arm", "updates", "s", "n", *ACCURACIES), columns("arm", "n", *ACCURACIES)


def by_arm(rows: Sequence[Row], end: str) -> dict[str, list[Row]]:
    """Rows at an end, by arm."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if end in row["ends"] and any(key in row for key in ACCURACIES):
            found.setdefault(row["arm"], []).append(row)
    return found


def means(arm: str, rows: Sequence[Row]) -> Row:
    found = {"arm": arm, "updates": str(rows[0]["updates"]), "n": str(len(rows))}
    if "seconds" in rows[0]:
        found["s"] = f"{rows[0]['seconds']:.0f}"
    for key in ACCURACIES:
        values = [row[key] for row in rows if key in row]
        told = mean_and_spread(values)
        found |= {key: told.removesuffix(f" (n={len(rows)})")} if told else {}
    return found


def differences(arm: str, against: str, groups: Mapping[str, Sequence[Row]]) -> Row:
    """An arm less another one, over the seeds that both have."""
    of = {row["seed"]: row for row in groups[against]}
    pairs = [(row, of[row["seed"]]) for row in groups[arm] if row["seed"] in of]
    found: Row = {"arm": f"{arm} less {against}", "n": str(len(pairs))}
    for key in ACCURACIES:
        values = [row[key] - other[key] for row, other in pairs if key in row and key in other]
        if len(values) > 1:
            mean, half = interval(values)
            found[key] = f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"
        elif values:
            found[key] = f"{values[0]:+.3f}"
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its interval by Student's t."""
    half = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


def within(rows: Sequence[Row]) -> list[Row]:
    """How signals, and the held-out loss, go with accuracies over the readings of a training: median of trainings."""
    trainings: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        trainings.setdefault((row["arm"], row["seed"]), []).append(row)
    found = []
    for signal in (*SIGNALS, HELD_OUT):
        ranks = [correlations(signal, of) for of in trainings.values() if len(of) > 3]
        by_key = {key: [of[key] for of in ranks if key in of] for key in FROZEN}
        told = {
            key: f"{statistics.median(of):+.2f} ({min(of):+.2f} to {max(of):+.2f})" for key, of in by_key.items() if of
        }
        if told:
            found.append({"signal": signal, "n": str(max(map(len, by_key.values()))), **told})
    return found


def between(rows: Sequence[Row]) -> list[Row]:
    """How signals go with accuracies over trainings; losses of different methods cannot be compared."""
    ends = [row for row in rows if EQUAL_UPDATES in row["ends"] and row["updates"] and SIGNALS[0] in row]
    found = []
    for signal in SIGNALS:
        told = {key: f"{value:+.2f}" for key, value in correlations(signal, ends).items()}
        if told:
            found.append({"signal": signal, "n": str(len(ends)), **told})
    return found


def correlations(signal: str, rows: Sequence[Row]) -> dict[str, float]:
    """Of a signal with each accuracy, where there are enough rows; constants have no order."""
    pairs = {key: [(row[signal], row[key]) for row in rows if signal in row and key in row] for key in ACCURACIES}
    return {
        key: float(spearmanr(of).statistic)
        for key, of in pairs.items()
        if len(of) > 3 and all(len(set(values)) > 1 for values in zip(*of))
    }
