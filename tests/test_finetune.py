"""Fine-tuning, linear probes and evaluation: rates by layer, one function on any mesh, whole runs, clear errors."""

import csv
import json
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import ONE_STAGE, small_config
from tiny_data import encode, picture

import greenjax
from greenjax.data.loader import labelled_batches
from greenjax.data.open import open_labelled
from greenjax.errors import InputError
from greenjax.evaluation.monitor import Monitor
from greenjax.evaluation.results import read_results
from greenjax.interop.heads import initial_head
from greenjax.interop.loading import initial_model
from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.placement import Placement, batch_sharding
from greenjax.tasks import evaluate_classifier, evaluate_knn, finetune, pretrain
from greenjax.tasks.classify import classification
from greenjax.tasks.evaluate import eval_sets
from greenjax.tasks.pretrain import monitor_data
from greenjax.tasks.report import Judge, in_file_names
from greenjax.training.loop import UNFINISHED
from greenjax.training.optim import layer_multipliers, learning_rate, make_optimizer, run_length
from greenjax.training.sharding import make_mesh
from greenjax.training.state import init_state, model_graph
from greenjax.training.step import make_update

BASE = dict(
    task="finetune",
    model__depths=(1, 1),
    model__num_classes=10,
    steps=4,
    optim__base_lr=1e-2,
    data__eval_split="test[:40]",
    mesh__data=1,
    log__eval_every=2,
    log__checkpoint_every=2,
)
KNN = dict(task="knn", model__num_classes=None)
LINEAR = BASE | dict(task="linear", optim__name="lars", optim__weight_decay=0.0, optim__label_smoothing=0.0)


# The rates


def abstract_params(config):
    return jax.eval_shape(lambda: init_state(config, make_mesh(config)).params)


def multipliers_of(name, depths):
    changes = {"optim.layer_decay": 0.5, "model.depths": depths, "model.num_classes": 1000}
    config = greenjax.load_config(f"configs/{name}.py", changes)
    params = jax.eval_shape(lambda: greenjax_params(config))
    tree = layer_multipliers(config, params)
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): value for path, value in flat}


def greenjax_params(config):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(greenjax.build(config), nnx.Param))


def test_every_parameter_of_swin_b_has_the_multiplier_of_its_layer():
    """The rule by hand: layer of a block is its number over all stages, counted from 1; 25 layers to the head."""
    depths = (2, 2, 18, 2)
    found = multipliers_of("finetune_swin_b", depths)
    assert len(found) == 2 + 2 + sum(depths) * 13 + 3 * 3 + 2 + 2
    for name, value in found.items():
        parts = name.split("/")
        if parts[:2] == ["encoder", "patch_embed"]:
            layer = 0
        elif parts[0] == "head" or parts[:2] == ["encoder", "norm"]:
            layer = 25
        elif parts[3] == "blocks":
            layer = 1 + sum(depths[: int(parts[2])]) + int(parts[4])
        else:
            assert parts[3] == "downsample"
            layer = sum(depths[: int(parts[2]) + 1])
        assert value == 0.5 ** (25 - layer), name


def test_twins_has_its_embeddings_and_encodings_beside_their_blocks():
    found = multipliers_of("finetune_twins_l", (2, 2, 18, 2))
    assert found["encoder/patch_embed/proj/kernel"] == 0.5**25
    assert found["encoder/stages/0/peg/kernel"] == found["encoder/stages/0/blocks/0/norm1/scale"] == 0.5**24
    assert found["encoder/stages/1/patch_embed/kernel"] == found["encoder/stages/0/blocks/1/norm1/scale"] == 0.5**23
    assert found["head/kernel"] == found["encoder/norm/scale"] == 1


def test_pvt_v2_has_its_norms_beside_their_last_blocks():
    found = multipliers_of("finetune_pvt_v2_b2", (3, 4, 6, 3))
    assert found["encoder/patch_embed/norm/scale"] == 0.5**17
    assert found["encoder/stages/0/norm/scale"] == found["encoder/stages/0/blocks/2/mlp/conv/kernel"] == 0.5**14
    assert found["encoder/stages/1/patch_embed/proj/kernel"] == found["encoder/stages/0/norm/scale"]
    assert found["head/kernel"] == found["encoder/norm/scale"] == 1


def test_three_blocks_of_convnext_are_a_layer_as_its_official_code_groups_them():
    """Twelve layers: one for each of the stages of three blocks, nine for the third stage."""
    found = multipliers_of("finetune_convnextv2_base", (3, 3, 27, 3))
    for name, value in found.items():
        parts = name.split("/")
        if parts[1] == "stages":
            stage = int(parts[2])
            layer = (1, 2, 3, 12)[stage] + (int(parts[4]) // 3 if stage == 2 and parts[3] == "blocks" else 0)
        else:
            layer = 0 if parts[1] == "patch_embed" else 13
        assert value == 0.5 ** (13 - layer), name


def test_the_optimizer_applies_the_multipliers():
    """Adam's first update is the sign of the gradient, whatever its size; nothing decays here."""
    config = small_config(**BASE, optim__layer_decay=0.5, optim__weight_decay=0.0, optim__clip=0.0)
    params = init_state(config, make_mesh(config)).params
    tx = make_optimizer(config)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, -3.0), params)
    updates, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(
        lambda update, multiplier: np.testing.assert_allclose(update, -multiplier, rtol=1e-6),
        updates,
        layer_multipliers(config, params),
    )


def test_lars_follows_its_formula_and_leaves_the_encoder_alone():
    config = small_config(**LINEAR | dict(optim__weight_decay=0.1), optim__clip=0.0)
    params = init_state(config, make_mesh(config)).params
    tx = make_optimizer(config)
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 0.3), params)
    updates, state = tx.update(grads, tx.init(params), params)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    decayed = 0.3 + 0.1 * kernel
    step = decayed * 0.001 * np.linalg.norm(kernel) / np.linalg.norm(decayed)
    np.testing.assert_allclose(updates["head"]["kernel"], step, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["bias"], 0.3, rtol=1e-6)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(updates["encoder"]))
    updates, _ = tx.update(grads, state, params)  # momentum
    np.testing.assert_allclose(updates["head"]["kernel"], 1.9 * step, rtol=1e-5)


# The step


def train(config, steps):
    mesh = make_mesh(config)
    update = make_update(classification(config), mesh, learning_rate(config, *run_length(config, images=1500)))
    state, losses = init_state(config, mesh), []
    batches = labelled_batches(config, open_labelled(config.data, config.data.split))
    for _ in range(steps):
        state, metrics = update(state, jax.device_put(next(batches), batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return np.array(losses), state, update._cache_size()


@pytest.mark.parametrize("base", [BASE, LINEAR], ids=["finetune", "linear"])
def test_any_mesh_trains_alike(base):
    options = base | dict(data__mixup=0.8, data__cutmix=1.0)
    expected, reference, _ = train(small_config(**options), 3)
    losses, state, compiled = train(small_config(**options | dict(mesh__data=4, mesh__fsdp=2)), 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert compiled == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, reference.params)


def test_accumulation_trains_alike():
    options = BASE | dict(data__mixup=0.8, data__cutmix=1.0)
    expected, _, _ = train(small_config(**options), 3)
    losses, _, _ = train(small_config(**options | dict(optim__accumulation=4, mesh__data=2)), 3)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize(("family", "depths"), [("swin", (1, 1)), ("pvt_v2", (1, 1)), ("vit", (1,))])
def test_a_probe_leaves_the_encoder_and_moves_the_statistics(family, depths):
    config = small_config(family, **LINEAR | dict(model__depths=depths))
    before = init_state(config, make_mesh(config)).params
    _, state, _ = train(config, 2)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], before["encoder"])
    assert not np.allclose(state.params["head"]["kernel"], before["head"]["kernel"])
    assert not np.allclose(state.params["batch_norm"]["mean"], 0)


# Whole runs


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    monitor = dict(monitor="knn", data__eval_split="test[:20]", knn__k=(3,), log__monitor_every=1)
    config = small_config(model__depths=(1, 1), steps=2, mesh__data=2, data__monitor_split="train[:50]", **monitor)
    pretrain(config, workdir)
    return workdir


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_pretraining_is_monitored(pretrained, tmp_path):
    found = {line["step"]: line["knn_top1"] for line in lines_of(pretrained) if "knn_top1" in line}
    assert list(found) == [0, 1, 2]
    alone = small_config(**BASE | KNN | dict(init=str(pretrained), data__split="train[:50]", knn__k=(3,)))
    alone = greenjax.resolve({**greenjax.flatten(alone), "data.eval_split": "test[:20]"})
    assert evaluate_knn(alone, tmp_path)[3]["top1"] == found[2]
    assert (pretrained / "loss.png").stat().st_size > 10_000


def test_the_monitor_may_look_at_a_labelled_set_of_its_own(insects, caplog):
    """Matched by names, like every set; with few classes top-5 says nothing."""
    root, _, _ = insects
    pool = dict(data__monitor_source="folder", data__monitor_path=str(root), data__monitor_eval_split="test")
    config = small_config(
        **ONE_STAGE, data__split="all", monitor="knn", knn__k=(1,), data__monitor_split="train", **pool
    )
    monitor = Monitor(config, monitor_data(config), model_graph(config), Placement(make_mesh(config)))
    params = init_state(config, make_mesh(config)).params
    assert monitor.train.classes == ("ant", "bee", "cat", "dog")
    assert (len(monitor.train), len(monitor.held_out)) == (16, 12)
    assert set(monitor.measure(params)) == {"knn_top1"}
    assert not caplog.records
    same = greenjax.resolve(greenjax.flatten(config) | {"data.monitor_eval_split": "train"})
    Monitor(same, monitor_data(same), model_graph(config), Placement(make_mesh(config)))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        "16 of the 16 images of data.monitor_eval_split 'train' are in data.monitor_split 'train' too"
    )
    pool = dict(data__source="folder", data__path=str(root), data__monitor_source="digits")
    assert monitor_data(small_config(**pool)).path == ""  # digits have none
    with pytest.raises(ValueError, match=r"monitor is 'knn': expected none or views where data\.eval_split"):
        small_config(monitor="knn", data__monitor_split="train")


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory):
    """No confusion matrix is held when the next is made: of many classes one takes gigabytes."""
    workdir = tmp_path_factory.mktemp("finetuned")
    config = small_config(**BASE, init=str(pretrained), ema=0.5)
    evaluate, matrices = Judge.evaluate, []

    def watched(*args, **options):
        assert not any(matrix() is not None for matrix in matrices)
        found = evaluate(*args, **options)
        matrices.append(weakref.ref(found.confusion))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judge, "evaluate", watched)
        return workdir, finetune(config, workdir), config


def test_a_run_leaves_results_pictures_and_accuracies(finetuned):
    workdir, state, _ = finetuned
    assert int(state.step) == 4
    assert [line["step"] for line in lines_of(workdir) if "eval_top1" in line] == [0, 2, 4]
    results = json.loads((workdir / "results.json").read_text())["test[:40]"]
    assert results["images"] == 40
    assert results["step"] == 4
    assert results["task"] == "finetune"
    assert results["top1"] == lines_of(workdir)[-1]["eval_top1"]
    for name in ("accuracy.png", "confusion_test__40.png", "mistakes_test__40.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_starts_from_the_pretrained_encoder(pretrained, finetuned):
    weights, _ = Checkpointer(pretrained).weights()
    start, _ = initial_model(finetuned[2])
    np.testing.assert_array_equal(start.encoder.norm.scale[...], weights["encoder/norm/scale"])


def test_an_interrupted_run_ends_with_the_same_bits(finetuned, tmp_path):
    _, whole, config = finetuned
    checkpoints = Checkpointer(finetuned[0])
    assert checkpoints.steps() == [2, 4]
    shutil.copytree(finetuned[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    resumed = finetune(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_evaluation_of_several_sets_and_predictions(finetuned, tmp_path, caplog):
    workdir, _, _ = finetuned
    sets = dict(data__eval_split="test[:40]", data__eval_sets="test[40:], train[:30]")
    config = small_config(**BASE | dict(task="eval", init=str(workdir), log__predictions=True) | sets)
    found = evaluate_classifier(config, tmp_path)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"30 of the 30 images of train[:30] are training images of init {str(workdir)!r}: ")
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["test[:40]", "test[40:]", "train[:30]"]
    assert results["test[:40]"]["top1"] == json.loads((workdir / "results.json").read_text())["test[:40]"]["top1"]
    model, images = greenjax.load(workdir), open_labelled(config.data, "train[:30]")
    from greenjax.data.augment import CentreView

    view = CentreView.from_config(config)
    pixels = np.stack([view(images[i][0], i) for i in range(30)])
    predicted = np.asarray(model(pixels)).argmax(axis=1)
    np.testing.assert_array_equal(found["train[:30]"].predictions.predicted, predicted)
    rows = (tmp_path / "predictions_train__30.csv").read_text().splitlines()
    assert [int(row.split(",")[2]) for row in rows[1:]] == predicted.tolist()


def test_every_set_has_files_of_its_own():
    """Two names of sets may differ in characters that names of files do not keep, or before a long end."""
    config = greenjax.flatten(
        small_config(**BASE | dict(task="eval", init="x", data__source="folder", data__path="/a"))
    )
    for one, other in (("a/b@test", "a_b@test"), (f"/x/{'ä' * 200}@test", f"/y/{'ä' * 200}@test")):
        with pytest.raises(ValueError, match=r"^data\.eval_sets has .* and .*, which would both write predictions_"):
            eval_sets(greenjax.resolve(config | {"data.eval_sets": f"{one},{other}"}))
        assert len(eval_sets(greenjax.resolve(config | {"data.eval_sets": one}))) == 2
        assert len(f"predictions_{in_file_names(one)}.csv".encode()) <= 255


def test_an_evaluation_set_may_have_classes_without_images(tmp_path):
    """Whether their folder is empty or missing, in data.eval_split as in a folder of its own."""
    for folder in ("a/train/ant", "a/train/bee", "a/test/ant", "a/test/bee", "b/test/ant", "b/test/bee"):
        (tmp_path / folder).mkdir(parents=True)
        if not folder.endswith("test/bee"):
            (tmp_path / folder / "1.png").write_bytes(encode(picture(1)))
    sets = dict(data__source="folder", data__path=str(tmp_path / "a"), data__eval_sets=f"{tmp_path / 'b'}@test")
    for each in eval_sets(small_config(**BASE | sets | dict(task="eval", init="x", data__eval_split="test"))):
        assert open_labelled(each.data, each.split).classes == ("ant", "bee")


@pytest.mark.parametrize("mesh", [1, 8])
def test_every_image_is_evaluated_once_on_any_number_of_devices(finetuned, tmp_path, mesh):
    """103 images in batches of 8."""
    workdir, _, _ = finetuned
    split = dict(data__eval_split="test[:103]", data__batch_size=8, mesh__data=mesh)
    config = small_config(**BASE | dict(task="eval", init=str(workdir)) | split)
    found = evaluate_classifier(config, tmp_path)["test[:103]"]
    model, source = greenjax.load(workdir), open_labelled(config.data, "test[:103]")
    from greenjax.data.augment import CentreView

    view = CentreView.from_config(config)
    logits = np.concatenate([model(view(source[i][0], i)[None]) for i in range(103)])
    labels = source.labels
    assert found.metrics["images"] == 103
    assert found.metrics["top1"] == (logits.argmax(axis=1) == labels).mean()
    shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found.metrics["loss"], -shares[np.arange(103), labels].mean(), rtol=1e-5)


def test_neighbours_and_a_linear_probe_of_a_frozen_encoder(pretrained, tmp_path, capsys):
    init = dict(init=str(pretrained))
    knn = small_config(**BASE | KNN | dict(knn__k=(3, 5)) | init)
    found = evaluate_knn(knn, tmp_path)
    assert set(found) == {3, 5}
    assert found[3]["top1"] > 0.2  # 0.1 is chance
    assert "k-NN, k 5: top-1" in capsys.readouterr().out
    state = finetune(small_config(**LINEAR | init), tmp_path / "linear")
    weights, _ = Checkpointer(pretrained).weights()
    np.testing.assert_array_equal(state.params["encoder"]["norm"]["scale"], weights["encoder/norm/scale"])
    trained = evaluate_classifier(small_config(**BASE | dict(task="eval", init=str(tmp_path / "linear"))), tmp_path)
    results = json.loads((tmp_path / "linear" / "results.json").read_text())["test[:40]"]
    assert trained["test[:40]"].metrics["top1"] == results["top1"]
    np.testing.assert_allclose(trained["test[:40]"].metrics["loss"], results["loss"], rtol=1e-5)


def test_transformers_predicts_the_same_digits(finetuned, tmp_path):
    """All 297 of the test split, by the exported classifier."""
    import torch
    import transformers

    from greenjax.data.augment import CentreView

    model = greenjax.load(finetuned[0])
    greenjax.save_torch(model, tmp_path, "hf")
    reference = transformers.SwinForImageClassification.from_pretrained(tmp_path).eval()
    source, view = open_labelled(model.config.data, "test"), CentreView.from_config(model.config)
    images = np.stack([view(source[i][0], i) for i in range(len(source))])
    pixels = (images / 255 - model.mean) / model.std
    with torch.no_grad():
        logits = reference(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)).logits.numpy()
    np.testing.assert_allclose(model(images), logits, atol=1e-4)
    right = np.asarray(model(images)).argmax(axis=1) == source.labels
    assert len(source) == 297
    assert right.sum() == (logits.argmax(axis=1) == source.labels).sum()


# Classes


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """A classifier of four class folders, and its folders: stripes down, stripes across, dark, light."""
    root = tmp_path_factory.mktemp("insects")
    rows, columns = np.indices((16, 16)) % 2
    patterns = {"ant": rows, "bee": columns, "cat": 0 * rows, "dog": 0 * rows + 1}
    for split, count in (("train", 4), ("test", 3)):
        for name, pattern in patterns.items():
            (root / split / name).mkdir(parents=True)
            for v in range(count):
                image = (200 * pattern + 10 * v).astype(np.uint8)[:, :, None]
                (root / split / name / f"{v}.png").write_bytes(encode(image))
    workdir = root / "run"
    config = small_config(**INSECTS, data__path=str(root), data__eval_split="test", optim__base_lr=0.1, steps=40)
    finetune(config, workdir)
    return root, workdir, config


INSECTS = dict(ONE_STAGE, task="finetune", mesh__data=1, data__source="folder", data__batch_size=16)
INSECTS |= dict(log__eval_every=0, optim__label_smoothing=0.0, data__crop_scale=(1.0, 1.0), data__crop_ratio=(1.0, 1.0))


def judge(insects, tmp_path, **changes):
    root, workdir, _ = insects
    settings = dict(data__path=str(root), data__split="nowhere", data__eval_split="test") | changes
    config = small_config(**INSECTS | dict(task="eval", init=str(workdir), log__predictions=True) | settings)
    return evaluate_classifier(config, tmp_path / "eval")


def said(tmp_path, name="test"):
    """What the predictions say of each file: class and predicted class."""
    with (tmp_path / "eval" / f"predictions_{name}.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {"/".join(row["file"].split("/")[-2:]): (row["label_name"], row["predicted_name"]) for row in rows}


def test_a_test_set_without_a_class_is_judged_by_names(insects, tmp_path, capsys):
    """Numbered by its own folders it would be 0."""
    root, workdir, _ = insects
    assert json.loads((workdir / "classes.json").read_text()) == ["ant", "bee", "cat", "dog"]
    assert judge(insects, tmp_path)["test"].metrics["top1"] == 1
    whole = said(tmp_path)
    assert all(name.startswith(f"{true}/") and true == predicted for name, (true, predicted) in whole.items())

    shutil.copytree(root / "test", tmp_path / "fewer" / "test")
    shutil.rmtree(tmp_path / "fewer" / "test" / "ant")
    fewer = tmp_path / "fewer"
    capsys.readouterr()
    sets = dict(data__path=str(fewer), data__eval_sets=f"{root}@test")
    found = judge(insects, tmp_path, **sets)
    assert found["test"].metrics["top1"] == found[f"{root}@test"].metrics["top1"] == 1
    assert "test: no images of 1 of 4 classes, 'ant'\n" in capsys.readouterr().out
    assert said(tmp_path) == {name: words for name, words in whole.items() if words[0] != "ant"}

    (fewer / "test" / "dog").rename(fewer / "test" / "emu")
    assert judge(insects, tmp_path, **sets)["test"].metrics["top1"] == 1
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert (results["test"]["images"], results["test"]["left_out"]) == (6, 3)
    assert "left_out" not in results[f"{root}@test"]
    assert "3 images of unknown classes left out, 'emu'" in capsys.readouterr().out


def test_neighbours_are_found_by_names(insects, tmp_path):
    """The first class folder of the bank is missing among the queries, and one of theirs is missing in the bank."""
    root, workdir, _ = insects
    shutil.copytree(root, tmp_path / "data", ignore=shutil.ignore_patterns("run"))
    shutil.rmtree(tmp_path / "data" / "test" / "ant")
    (tmp_path / "data" / "test" / "dog").rename(tmp_path / "data" / "test" / "emu")
    knn = dict(task="knn", init=str(workdir), data__path=str(tmp_path / "data"), data__eval_split="test", knn__k=(1,))
    assert evaluate_knn(small_config(**INSECTS | knn), tmp_path / "knn")[1]["top1"] == 1
    results = json.loads((tmp_path / "knn" / "results.json").read_text())["test k=1"]
    assert (results["images"], results["left_out"]) == (6, 3)


def test_a_finished_run_tells_what_is_asked_for_later(insects, tmp_path, capsys):
    root, workdir, _ = insects
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    later = dict(data__path=str(root), data__eval_split="test", log__predictions=True)
    config = small_config(**INSECTS | later | dict(optim__base_lr=0.1, steps=40))
    for noted in ("", "40"):  # the step in whose last evaluation the run was killed
        (tmp_path / "run" / UNFINISHED).write_text(noted)
        finetune(config, tmp_path / "run")
        assert capsys.readouterr().out.count("test: top-1 ") == 1
    assert read_results(tmp_path / "run") == read_results(workdir)
    assert len((tmp_path / "run" / "predictions_test.csv").read_text().splitlines()) == 1 + 12


def test_exports_name_their_classes_and_are_judged_by_them(insects, tmp_path):
    root, workdir, config = insects
    model = greenjax.load(workdir)
    assert model.classes == ("ant", "bee", "cat", "dog")
    greenjax.save_torch(model, tmp_path / "hf", "hf")
    labels = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert labels["id2label"] == {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}
    assert labels["label2id"]["dog"] == 3
    assert config.model.num_classes is None  # the head of the file says how many
    again = greenjax.load_torch(tmp_path / "hf", config, "hf")
    assert again.classes == model.classes
    np.testing.assert_array_equal(again.head.bias[...], model.head.bias[...])
    file = tmp_path / "weights.safetensors"
    greenjax.save_torch(model, file, "swin")
    shutil.rmtree(root / "run.test", ignore_errors=True)
    shutil.copytree(root / "test", tmp_path / "fewer" / "test")
    shutil.rmtree(tmp_path / "fewer" / "test" / "ant")
    assert judge(insects, tmp_path, init=str(file), data__path=str(tmp_path / "fewer"))["test"].metrics["top1"] == 1


def test_a_head_whose_classes_nobody_named_is_judged_by_numbers(insects, tmp_path, capsys):
    """Where the set has as many; else nobody knows which they are."""
    root, workdir, _ = insects
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "classes.json").unlink()
    nameless = dict(init=str(tmp_path / "run"), model__num_classes=4)
    assert judge(insects, tmp_path, **nameless)["test"].metrics["top1"] == 1
    assert "does not name its classes: they are taken to be those of test, 'ant', 'bee'" in capsys.readouterr().out
    shutil.copytree(root / "test", tmp_path / "fewer" / "test")
    shutil.rmtree(tmp_path / "fewer" / "test" / "ant")
    with pytest.raises(
        ValueError, match=r"does not name its 4 classes, and test has 3, .*: expected as many, or their"
    ):
        judge(insects, tmp_path, **nameless, data__path=str(tmp_path / "fewer"))
    (tmp_path / "run" / "classes.json").write_text('["ant", ')
    with pytest.raises(ValueError, match=r"classes\.json' is cut short or damaged: expected a JSON list"):
        judge(insects, tmp_path, **nameless)


def test_classes_of_other_names_are_judged_once_classes_json_has_them(insects, tmp_path):
    """ImageNet's classes have other names in transformers than as folders."""
    folder = tmp_path / "hf"
    greenjax.save_torch(greenjax.load(insects[1]), folder, "hf")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # without greenjax's metadata
    described = json.loads((folder / "config.json").read_text())
    remedy = rf"write the names of test as a JSON list in the order of the outputs into '{folder}/classes\.json'$"
    for names in (("ant, Formica", "bee, Apis", "cat, Felis", "dog, Canis"), ("crane", "crane", "cat", "dog")):
        described["id2label"] = dict(zip("0123", names))
        (folder / "config.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=remedy):
            judge(insects, tmp_path, init=str(folder))
    (folder / "classes.json").write_text('["ant", "bee", "cat"]')
    for init in (folder, folder / "model.safetensors"):
        with pytest.raises(
            ValueError, match=r"classes\.json' has 3 names: expected 4, one for each output of the head"
        ):
            judge(insects, tmp_path, init=str(init))
    (folder / "classes.json").write_text('["ant", "bee", "cat", "dog"]')
    for init in (folder, folder / "model.safetensors"):
        assert judge(insects, tmp_path, init=str(init))["test"].metrics["top1"] == 1


def test_a_head_and_its_names_are_those_of_the_weights(insects, tmp_path):
    """Not those of the data, nor of a config.json that outlived the head or belongs to another file."""
    root, workdir, config = insects
    folder, settings = tmp_path / "hf", greenjax.flatten(config)

    def of(path):
        return initial_head(greenjax.resolve(settings | {"init": str(path)}))

    greenjax.save_torch(greenjax.load(workdir), folder, "hf")
    tensors = load_file(folder / "model.safetensors")
    assert of(workdir) == of(folder) == (4, ("ant", "bee", "cat", "dog"))
    save_file(tensors, folder / "other.safetensors")
    assert of(folder / "other.safetensors") == (4, ())
    shutil.copytree(root / "test", tmp_path / "fewer" / "test")
    shutil.rmtree(tmp_path / "fewer" / "test" / "ant")
    with pytest.raises(ValueError, match=r"does not name its 4 classes, and test has 3, .*in '.*/hf/classes\.json'$"):
        judge(insects, tmp_path, init=str(folder / "other.safetensors"), data__path=str(tmp_path / "fewer"))
    headless = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    save_file(headless, folder / "model.safetensors")
    assert of(folder) == (None, ())
    larger = {name: np.concatenate((value, value)) for name, value in tensors.items() if "classifier" in name}
    save_file(headless | larger, folder / "model.safetensors")
    assert of(folder) == (8, ())


def test_a_class_folder_added_later_is_refused(insects, tmp_path):
    """On resuming, and where a head of other classes is to be trained on; a new head is for any."""
    root, workdir, config = insects
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "train" / "ant" / "0.png").rename(tmp_path / "data" / "moved.png")
    (tmp_path / "data" / "train" / "bat").mkdir()
    (tmp_path / "data" / "moved.png").rename(tmp_path / "data" / "train" / "bat" / "0.png")  # as many images as before
    changed = greenjax.resolve(greenjax.flatten(config) | {"data.path": str(tmp_path / "data"), "steps": 1})
    with pytest.raises(ValueError, match=r"was begun with other classes: new are 'bat': expected the same, or another"):
        finetune(changed, tmp_path / "data" / "run")
    started = greenjax.resolve(greenjax.flatten(changed) | {"init": str(workdir)})
    with pytest.raises(
        ValueError, match=r"has a head for the classes 'ant', .*'dog', the data have .*--config.new_head"
    ):
        finetune(started, tmp_path / "new")
    finetune(greenjax.resolve(greenjax.flatten(started) | {"new_head": True}), tmp_path / "new")
    assert greenjax.load(tmp_path / "new").classes == ("ant", "bat", "bee", "cat", "dog")


# What is wrong


def test_one_class_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "0.png").write_bytes(encode(np.zeros((16, 16, 1), np.uint8)))
    graphdef = model_graph(small_config())
    monkeypatch.delattr(jax, "jit")
    there = dict(ONE_STAGE, data__source="folder", data__path=str(tmp_path), data__eval_split="test", mesh__data=1)
    line = "split 'train'{} has one class, 'cat': expected at least 2, to tell apart"
    for count in (0, 1, 10):
        config = small_config(**there, task="finetune", model__num_classes=count)
        with pytest.raises(InputError, match=f"^{line.format('')}$"):
            finetune(config, tmp_path / "run")
    with pytest.raises(InputError, match=f"^{line.format('')}$"):
        evaluate_knn(small_config(**there, task="knn"), tmp_path / "run")
    config = small_config(**there, monitor="knn", knn__k=(1,))
    with pytest.raises(InputError, match=f"^{line.format(' of the monitor')}$"):
        Monitor(config, monitor_data(config), graphdef, Placement(make_mesh(config)))


def test_a_linear_monitor_of_few_images_is_refused_at_the_start():
    config = small_config(**ONE_STAGE, monitor="linear", data__eval_split="test", log__monitor_images=9)
    line = r"^monitor is 'linear', with 9 images of 'train' \(log.monitor_images is 9\): expected at least 10$"
    with pytest.raises(InputError, match=line):
        Monitor(config, monitor_data(config), model_graph(config), Placement(make_mesh(config)))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (dict(model__num_classes=5), r"model.num_classes is 5: expected at least the 10 classes of the data"),
        (dict(data__eval_split="test[:0]"), r"split 'test\[:0\]' is empty"),
        (dict(data__eval_split="validation"), r"data.source 'digits' has no split 'validation'"),
        (dict(init="nowhere"), r"workdir 'nowhere': expected the folder of a run"),
        (dict(data__batch_size=6, mesh__data=4), r"data.batch_size is 6: expected a multiple"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(overrides, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        finetune(small_config(**BASE | overrides), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_heads_and_encoders_of_another_size_are_refused(finetuned, pretrained, tmp_path):
    workdir, _, _ = finetuned
    with pytest.raises(ValueError, match=r"head/kernel is \[16, 10\] in the weights, \[16, 12\] in the model"):
        finetune(small_config(**BASE | dict(model__num_classes=12, init=str(workdir))), tmp_path)
    finetune(small_config(**BASE | dict(model__num_classes=12, init=str(workdir), new_head=True, steps=1)), tmp_path)
    with pytest.raises(ValueError, match=r"encoder/norm/bias is \[16\] in the weights, \[32\] in the model"):
        finetune(small_config(**BASE | dict(model__embed_dim=16, init=str(pretrained))), tmp_path / "other")
    with pytest.raises(ValueError, match=r"which has no head: expected a classifier"):
        evaluate_classifier(small_config(**BASE | dict(task="eval", init=str(pretrained))), tmp_path)
    for task, wrong in (
        ("eval", dict(init="none")),
        ("eval", dict(data__eval_split="")),
        ("knn", dict(data__eval_split="")),
    ):
        config = small_config(**BASE | dict(task=task, init=str(workdir)) | wrong)
        with pytest.raises(
            ValueError, match=rf"{next(iter(wrong)).replace('__', '.')} is .*: expected .* for task '{task}'"
        ):
            (evaluate_knn if task == "knn" else evaluate_classifier)(config, tmp_path)
    with pytest.raises(ValueError, match=r"knn.k is \(30,\): expected at most the 20 images of 'train\[:20\]'"):
        evaluate_knn(small_config(**BASE | dict(task="knn", data__split="train[:20]", knn__k=(30,))), tmp_path)
