"""What pre-training is worth: one compiled step for all runs, the same updates for each, every row in the table."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small import small_config

from benchmarks.study import Bench, changed, draw_of_each_class, measure, study
from greenjax.data.loader import labelled_batches
from greenjax.data.open import open_labelled
from greenjax.runtime.placement import batch_sharding
from greenjax.tasks import pretrain
from greenjax.tasks.classify import classification
from greenjax.training.optim import learning_rate
from greenjax.training.state import init_state
from greenjax.training.step import make_update

BASE = dict(model__depths=(1, 1), mesh__data=1, optim__base_lr=1e-2)
LABELS = BASE | dict(task="finetune", model__num_classes=10, model__drop_path=0.2, data__mixup=0.8, data__per_class=2)
LABELS |= dict(steps=2, data__split="train[:200]", data__eval_split="test[:40]", knn__k=(3,))
LABELS |= dict(optim__eps=1e-3)  # or Adam makes whole steps of what rounding leaves of gradients of 0
ENCODERS = ["random encoder", "pre-trained encoder", "from scratch", "fine-tuned"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    pretrain(small_config(**BASE, steps=1), workdir)
    return small_config(**LABELS, init=str(workdir))


@pytest.fixture(scope="module")
def bench(config):
    return Bench(config)


@pytest.fixture(scope="module")
def rows(bench):
    return list(measure(bench, range(2), scratch_lr=2e-2))


def test_every_encoder_has_a_row_for_every_seed_and_all_share_one_compiled_step(bench, rows):
    found = [(row["labels"], row["encoder"], row["seed"]) for row in rows]
    assert found == [
        (labels, encoder, seed) for labels in ("all", "2 a class") for encoder in ENCODERS for seed in (0, 1)
    ]
    for row in rows:
        numbers = {"fine-tuning"} if row["encoder"] in ENCODERS[2:] else {"linear probe", "k-NN"}
        assert row.keys() == {"labels", "encoder", "seed"} | numbers
        assert all(0 <= row[name] <= 1 for name in numbers)
    assert bench.update._cache_size() == 1


def test_the_same_study_finds_the_same(config, rows, tmp_path, capsys):
    """Also across the command, which writes what it finds."""
    found = study(config, tmp_path, seeds=2, scratch_lr=2e-2)
    assert found == rows
    assert list(json.loads((tmp_path / "results.json").read_text()).values()) == rows
    table = (tmp_path / "table.txt").read_text()
    assert table in capsys.readouterr().out
    lines = [line.strip().split("  ")[0] for line in table.splitlines()[1:]]
    assert lines == ["all"] * 4 + ["2 a class"] * 4
    assert all(table.count(encoder) == 2 for encoder in ENCODERS)


def test_a_run_of_a_study_is_the_run_that_its_seed_and_rate_as_constants_give(bench):
    """Seed and rate are traced in a study; drop path and mixup draw from the seed."""
    seed, base_lr = 7, 3e-2
    few = bench.labelled(2, seed)
    state = bench.train(bench.fresh(seed), few, seed, base_lr)

    alone = changed(bench.config, {"seed": seed, "optim.base_lr": base_lr})
    update = make_update(classification(alone), bench.mesh, learning_rate(alone, bench.total, 0))
    expected, batches = init_state(alone, bench.mesh), labelled_batches(alone, few)
    for _ in range(bench.total):
        expected, _ = update(expected, jax.device_put(next(batches), batch_sharding(bench.mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, expected.params)


def test_from_scratch_and_fine_tuning_get_the_same_updates(bench, monkeypatch):
    """As many, of the same images in the same order; only the weights and the rate differ."""
    seen, update = [], bench.update

    def watched(state, batch, seed, scale):
        seen.append((np.asarray(batch.images), int(seed)))
        return update(state, batch, seed, scale)

    monkeypatch.setattr(bench, "update", watched)
    few = bench.labelled(2, 0)
    scratch, tuned = bench.train(bench.fresh(0), few, 0, 2e-2), bench.train(bench.pretrained(0), few, 0)
    assert int(scratch.step) == int(tuned.step) == bench.total == 2
    assert len(seen) == 4
    for (images, seed), (same, as_well) in zip(seen[:2], seen[2:]):
        np.testing.assert_array_equal(images, same)
        assert seed == as_well


def test_seeds_and_starts_differ_where_they_should(bench):
    fresh, other, pretrained = bench.fresh(0), bench.fresh(1), bench.pretrained(0)

    def kernel(params):
        return np.asarray(params["encoder"]["patch_embed"]["proj"]["kernel"])

    assert not np.allclose(kernel(fresh), kernel(other))
    np.testing.assert_array_equal(kernel(pretrained), kernel(bench.pretrained(1)))
    assert not np.allclose(pretrained["head"]["kernel"], bench.pretrained(1)["head"]["kernel"])


@pytest.mark.parametrize("count", [1, 10])
def test_a_draw_has_as_many_of_each_class_and_depends_on_the_seed(count, config):
    whole = open_labelled(changed(config, {"data.per_class": 0}).data, "train")
    few = [draw_of_each_class(whole, count, seed, "train") for seed in (0, 0, 1)]
    for source in few:
        assert np.bincount(source.labels).tolist() == [count] * 10
    images = [np.stack([source[i][0] for i in range(len(source))]) for source in few]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"init": "none"}, "init is not given: expected one, for a study"),
        ({"data.eval_split": ""}, "data.eval_split is not given: expected one"),
        ({"task": "knn"}, "task is 'knn': expected 'finetune'"),
        ({"data.per_class": 30}, "data.per_class is 30: expected at most what each class has"),
    ],
    ids=str,
)
def test_what_cannot_be_studied_is_refused_before_anything_starts(overrides, expected, config, tmp_path):
    with pytest.raises(ValueError, match=expected):
        study(changed(config, overrides), tmp_path / "study", seeds=1)
    assert not (tmp_path / "study").exists()


def test_images_of_both_splits_are_told(config, caplog):
    Bench(changed(config, {"data.eval_split": "train[190:210]"}))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("10 of the 20 images of data.eval_split 'train[190:210]' are in data.split")


def test_the_pretraining_is_not_written_over(config):
    with pytest.raises(ValueError, match=r"has checkpoints of steps \[1\]: expected a new folder"):
        study(config, Path(config.init), seeds=1)
