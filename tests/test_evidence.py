"""`benchmarks evidence`: its parts against definitions, and a whole tiny table."""

import json
import math
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ttest_1samp
from small import ONE_STAGE, config_file, small_config

from benchmarks import evidence
from benchmarks.evidence_arms import TABLES
from benchmarks.evidence_patches import loss_of_green, swapped_latents
from benchmarks.evidence_signals import FOUND, effective_rank, signals, spread
from benchmarks.evidence_text import ACCURACIES, EQUAL_UPDATES, between, differences, interval, within
from greenjax.backbones.geometry import stage_channels
from greenjax.config import load_config
from greenjax.errors import InputError
from greenjax.models import build
from greenjax.planning import exact_plan

PROBE = "linear probe, all labels"
SECONDS = {"green": 1.0, "SimMIM": 2.0, "from scratch": 1.0}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_effective_rank_of_features_is_that_of_their_singular_values():
    assert effective_rank(np.eye(7)) == pytest.approx(7)  # seven equal values
    assert effective_rank(np.outer(np.arange(1.0, 6), [1.0, 2.0])) == pytest.approx(1)
    # Values 3 and 1: shares 3/4 and 1/4.
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )


def test_signals_of_two_views_at_their_extremes(rng):
    features = rng.normal(size=(50, 16))
    same = signals(features, features)
    assert same[FOUND] == 1 and same["alignment"] == pytest.approx(0) and same["spread"] == pytest.approx(1)
    apart = signals(rng.normal(size=(2000, 16)), rng.normal(size=(2000, 16)))  # a view tells nothing of the other one
    assert apart[FOUND] < 0.01 and abs(apart["spread"]) < 0.1
    assert apart["alignment"] == pytest.approx(2, abs=0.1)  # cosine 0


def test_spread_by_its_definition(rng):
    first = rng.normal(size=(30, 5))
    second = first + 0.4 * rng.normal(size=(30, 5))
    middle = (first + second) / 2
    within = (np.square(first - middle) + np.square(second - middle)).sum(axis=1).mean() / 2
    everything = np.concatenate([first, second])
    whole = np.square(everything - everything.mean(axis=0)).sum(axis=1).mean()
    expected = 1 - 2 * within / whole  # two views: their variance is twice the mean square from their middle
    assert spread(first, second) == pytest.approx(expected)


def test_the_interval_is_that_of_the_paired_t_test():
    values = [0.01, 0.03, -0.01, 0.02, 0.04]
    mean, half = interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean - half, mean + half], [expected.low, expected.high])


def test_correlations_are_those_of_ranks_and_of_one_training_each():
    def row(seed, updates, rank, accuracy, ends=()):
        return {"arm": "green", "seed": seed, "updates": updates, "rank": rank, PROBE: accuracy, "ends": ends}

    rising = [row(0, updates, updates**2, updates**3) for updates in (1, 2, 3, 4)]
    falling = [row(1, updates, 10 - updates, updates**3, (EQUAL_UPDATES,)) for updates in (1, 2, 3, 4)]
    (line,) = within(rising + falling)
    assert (line["signal"], line["n"], line[PROBE]) == ("rank", "2", "+0.00 (-1.00 to +1.00)")
    (line,) = between(rising + falling)  # of the second training all four rows count here
    assert (line["n"], line[PROBE]) == ("4", "-1.00")
    constant = [row(2, updates, 5, updates, (EQUAL_UPDATES,)) for updates in (1, 2, 3, 4)]
    assert not within(constant) and not between(constant)


def test_an_arm_is_compared_with_its_own_reference_over_the_seeds_of_both():
    rows = {"a": [{"seed": seed, PROBE: 0.5} for seed in (0, 1, 2)]}
    rows["b"] = [{"seed": seed, PROBE: value} for seed, value in ((1, 0.6), (2, 0.8), (3, 0.1))]
    found = differences("b", "a", rows)
    expected = ttest_1samp([0.1, 0.3], 0).confidence_interval(0.95)
    assert (found["arm"], found["n"]) == ("b less a", "2")
    assert found[PROBE] == f"+0.200 ({expected.low:+.3f} to {expected.high:+.3f})"


def test_swapped_latents_stand_at_each_others_places(rng):
    """The decoder answers as to the same latents in another order; of one visible unit nothing changes."""
    decoder = build(small_config(image_size=16), seed=1).decoder
    latent = jnp.asarray(rng.normal(size=(2, 4, decoder.embed.in_features)), jnp.float32)
    visible, masked = jnp.array([1, 4, 6, 11]), jnp.array([0, 2, 3, 5])
    orders = np.array(list(permutations(range(4))))
    answers = jnp.stack([decoder(latent[:, order], visible, masked)[1] for order in orders])
    with swapped_latents():
        found, alone = decoder(latent, visible, masked)[1], decoder(latent[:, :1], visible[:1], masked)[1]
        others = [decoder(latent + change, visible, masked)[1] for change in (1e-6, 2e-6, 3e-6, 4e-6)]
    distances = np.abs(answers - found[None]).max(axis=(1, 2, 3))
    assert np.sort(distances)[0] < 1e-5 < 1e-3 < np.sort(distances)[1]
    assert max(np.abs(found - other).max() for other in others) > 1e-3  # other latents come in another order
    np.testing.assert_allclose(alone, decoder(latent[:, :1], visible[:1], masked)[1], atol=1e-6)


def test_simmim_with_the_loss_of_green(rng):
    """By its definition: patches with mean 0 and variance 1, squared error over the masked ones."""
    model = build(small_config(method="simmim", image_size=16), seed=1)
    images = rng.normal(size=(2, 16, 16, 1)).astype(np.float32)
    visible = np.zeros(model.grid.units, bool)
    visible.flat[[1, 4, 6, 11]] = True
    plan = jax.tree.map(lambda leaf: leaf[0], exact_plan(model.grid, (), visible[None]))
    plain = model.forward(images, plan)
    with loss_of_green():
        out = model.forward(images, plan)
    np.testing.assert_array_equal(out.prediction, plain.prediction)  # the network is the same
    side = 16 // model.grid.units[0]
    patches = images.reshape(2, 16 // side, side, 16 // side, side).swapaxes(2, 3).reshape(2, -1, side * side)
    wanted = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    expected = np.square(out.prediction - wanted)[:, ~visible.ravel()].mean(axis=(1, 2))
    np.testing.assert_allclose(out.losses, expected, rtol=1e-5)
    assert np.abs(plain.losses - expected).min() > 0.1


def test_arms_of_a_table_have_names_of_their_own_and_are_compared_with_one_of_them(tmp_path):
    config = small_config(steps=4, init="runs/labelled")
    for table, arms in TABLES.items():
        names = [arm.name for arm in arms(config, None)]
        assert len(set(names)) == len(names) > 1, table
        assert {arm.against or names[0] for arm in arms(config, None)} <= {*names}, table
    swin, *others = (arm.config or arm.encoder or config for arm in TABLES["families"](config, None))
    for other in others:
        assert stage_channels(other) == stage_channels(swin) and other.model.depths == swin.model.depths
    with pytest.raises(InputError, match=r"model\.name of --config is 'twins_s': --table families expects a Swin"):
        TABLES["families"](small_config("twins"), None)
    recipe = small_config(task="finetune", data__per_class=2)
    with pytest.raises(InputError, match="init of --config is 'none': expected the run that --table continuing"):
        evidence.Evidence(small_config(steps=4), recipe, None, tmp_path, "continuing")


def test_a_table_goes_on_where_it_was_stopped_and_finds_the_same(tmp_path, monkeypatch, capsys):
    """A second process reads what the first one wrote, and computes what lacks."""
    tiny = ONE_STAGE | dict(mesh__data=1, optim__eps=1e-3, data__split="train[:160]")
    tiny |= dict(data__eval_split="test[:40]")
    config = small_config(**tiny, steps=4, mask__groups=2)
    labels = dict(task="finetune", steps=2, data__per_class=2, knn__k=(3,))
    recipe = config_file(tmp_path / "recipe.py", **tiny, **labels)
    costs = {name: {"seconds": seconds, "flops": 1, "bytes": 1} for name, seconds in SECONDS.items()}
    monkeypatch.setattr(evidence, "costs_of", lambda *_: costs)  # no clock in tests
    all_methods = TABLES["methods"]
    few = {"green", "from scratch"}  # others have no code of their own here, and compile as long
    monkeypatch.setitem(TABLES, "methods", lambda *of: [arm for arm in all_methods(*of) if arm.name in few])
    how = dict(table="methods", finetune=str(recipe), mae=None, seeds=1)
    found = evidence.run(config, tmp_path / "runs", **how)
    assert {(row["arm"], row["updates"]) for row in found["rows"]} == {
        *(("green", updates) for updates in (1, 2, 3, 4, 8)),  # twice as fast as SimMIM
        ("from scratch", 0),
    }
    for row in found["rows"]:
        assert all(0 <= row[key] <= 1 for key in ACCURACIES if key in row)
        assert ("fine-tuning, all labels" in row) == bool(row["ends"])
    whole = evidence.Evidence(config, load_config(str(recipe)), None, tmp_path / "runs", "methods")
    by_name = {arm.name: arm for arm in all_methods(config, None)}  # an update of green takes 1 s, and one with labels
    for name, start, extra in (("from scratch, longer", 0, 8), ("green, fine-tuned longer", 4, 4)):
        assert (whole.points(by_name[name]), whole.extra(by_name[name])) == ([start], extra)
        assert whole.ends(by_name[name]) == {start: ("equal wall time",)}
        (row,) = whole.rows(by_name[name], 0)
        assert (
            "k-NN, all labels" not in row and "fine-tuning, all labels" not in row
        )  # another arm's of the same folder
        assert (row["updates"], row["seconds"]) == (8, 8)
    text = (tmp_path / "runs" / "methods.txt").read_text()
    assert "Top-1 at equal updates" in text and "| from scratch less green |" in text
    assert (tmp_path / "runs" / "methods.png").stat().st_size > 10_000
    results = tmp_path / "runs" / "green" / "seed_0" / "results.json"
    kept = json.loads(results.read_text())
    lost = kept.pop("8, fine-tuned, few labels, rate x 1")
    results.write_text(json.dumps(kept))
    assert evidence.run(config, tmp_path / "runs", **how)["rows"] == found["rows"]
    assert json.loads(results.read_text())["8, fine-tuned, few labels, rate x 1"] == lost
    recipe = config_file(tmp_path / "other.py", **tiny | labels, optim__base_lr=0.5)
    with pytest.raises(InputError, match=r"optim.base_lr of --finetune is 0.5: .*configs.json has"):
        evidence.run(config, tmp_path / "runs", **how | dict(finetune=str(recipe)))
