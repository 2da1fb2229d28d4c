"""The sweep of the paper's figure 5: every point once, and one picture of what they are worth."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import ONE_STAGE, config_file, small_config

from benchmarks import __main__
from benchmarks import study as study_module
from benchmarks import sweep as sweep_module
from benchmarks.sweep import sweep, sweep_axes
from greenjax.data.workers import WorkerDied
from greenjax.errors import InputError
from greenjax.evaluation.results import read_results, write_results

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = dict(**ONE_STAGE, steps=2, optim__warmup_steps=1, data__split="train[:60]", data__eval_split="test[:20]")


def test_every_point_is_computed_once_and_drawn(tmp_path, monkeypatch):
    config = small_config(**RUN, mesh__data=1)
    axes = sweep_axes(config, ratios=[0.75], depths=[1], lengths=["1", "2"])
    assert axes["steps"] == {2: {"steps": 2, "optim.warmup_steps": 1}, 4: {"steps": 4, "optim.warmup_steps": 2}}
    sweep(config, axes, tmp_path)
    results = read_results(tmp_path)
    assert set(results) == {"ratio 0.75, depth 1, 2 steps", "ratio 0.75, depth 1, 4 steps"}
    middle = results["ratio 0.75, depth 1, 2 steps"]
    assert (middle["mask ratio"], middle["decoder depth"], middle["steps"]) == (0.75, 1, 2)
    assert all(0 <= found["linear"] <= 1 and 0 <= found["knn"] <= 1 for found in results.values())
    with Image.open(tmp_path / "figure5.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10

    def again(*_):
        raise AssertionError("a point was computed twice")

    monkeypatch.setattr(sweep_module, "pretrain", again)
    sweep(config, axes, tmp_path)
    assert read_results(tmp_path) == results
    with pytest.raises(InputError, match=r"seed of --config is 1: .*configs.json has 0; take another --workdir"):
        sweep(small_config(**RUN, mesh__data=1, seed=1), axes, tmp_path)


def test_a_point_is_fine_tuned_like_the_others_or_refused(tmp_path):
    """Else a curve has some of the points, without a word."""
    recipe = str(config_file(tmp_path / "recipe.py", **RUN | dict(task="finetune")))
    write_results(tmp_path, "ratio 0.5", {"linear": 0.5})
    with pytest.raises(InputError, match=r"--finetune is .*recipe.py': the point 'ratio 0.5' has no fine-tuned"):
        sweep(small_config(**RUN), {}, tmp_path, recipe)
    write_results(tmp_path, "ratio 0.5", {"linear": 0.5, "finetune": 0.9})
    with pytest.raises(InputError, match=r"--finetune is None: the point 'ratio 0.5' has a fine-tuned"):
        sweep(small_config(**RUN), {}, tmp_path)
    sweep(small_config(**RUN), {}, tmp_path, recipe)
    config_file(tmp_path / "recipe.py", **RUN | dict(task="finetune", optim__base_lr=0.5))
    with pytest.raises(InputError, match=r"optim.base_lr of --finetune is 0.5: .*configs.json has"):
        sweep(small_config(**RUN), {}, tmp_path, recipe)


def test_what_cannot_be_swept_is_refused(tmp_path):
    config = small_config(**RUN)
    with pytest.raises(ValueError, match=r"mask.ratio is 1.0: expected above 0 and below 1"):
        sweep(config, sweep_axes(config, [0.5, 1.0], [1], ["1"]), tmp_path)
    with pytest.raises(ValueError, match=r"--lengths is 'long': expected numbers with commas between"):
        sweep_axes(config, [0.5], [1], ["long"])
    with pytest.raises(ValueError, match=r"data.eval_split is ''"):
        sweep(small_config(**RUN | dict(data__eval_split="")), {}, tmp_path)
    with pytest.raises(ValueError, match=r"knn.k is \(20,\): expected at most the 9 images of 'train\[:9\]'"):
        sweep(small_config(**RUN | dict(data__split="train[:9]")), {}, tmp_path)
    recipe = tmp_path / "recipe.py"
    for changes, expected in (
        ("task='pretrain'", "whose task is 'pretrain': expected finetune or linear"),
        ("task='finetune'", r"without data.eval_split: expected the split"),
    ):
        recipe.write_text(f"from small import small_config\n\ndef get_config():\n    return small_config({changes})\n")
        with pytest.raises(ValueError, match=expected):
            sweep(config, {}, tmp_path, str(recipe))
    recipe.unlink()
    assert not list(tmp_path.iterdir())


def test_images_of_both_splits_are_told_at_the_start(tmp_path, caplog):
    sweep(small_config(**RUN | dict(data__eval_split="train[50:70]")), {}, tmp_path)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("10 of the 20 images of data.eval_split 'train[50:70]' are in data.split 'train[:60]' too")


@pytest.mark.parametrize(
    ("module", "function", "file", "told"),
    [
        (sweep_module, "pretrain", "digits.py", "benchmarks sweep: worker 1 was killed; the same command goes on"),
        (study_module, "study", "finetune_digits.py", "benchmarks study: worker 1 was killed"),
    ],
    ids=["sweep", "study"],
)
def test_a_killed_worker_is_one_line(module, function, file, told, tmp_path, monkeypatch):
    def killed(*_):
        raise WorkerDied("worker 1 was killed")

    monkeypatch.setattr(module, function, killed)
    suite = module.__name__.rpartition(".")[2]
    with pytest.raises(SystemExit) as ended:
        __main__.main(["benchmarks", suite, f"--config={CONFIGS / file}", f"--workdir={tmp_path}"])
    assert ended.value.code == told
