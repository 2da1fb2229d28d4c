"""A classifier's numbers against scikit-learn and plain loops; every image counted once, whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import metrics as sklearn_metrics
from small import ONE_STAGE, small_config

import greenjax
from greenjax.data.loader import LabelledBatch
from greenjax.data.open import open_labelled, open_source
from greenjax.errors import InputError
from greenjax.evaluation.classify import ClassificationTotals, accuracy, evaluate
from greenjax.evaluation.monitor import Monitor
from greenjax.evaluation.outputs import extract_features
from greenjax.evaluation.views import ViewsMonitor
from greenjax.runtime.placement import Placement
from greenjax.tasks.report import Judge
from greenjax.training.sharding import make_mesh

CLASSES = 7


def labelled(images, labels, valid):
    return LabelledBatch(images, labels, np.zeros(len(labels), np.int32), valid)


def example(n=103, classes=CLASSES, seed=0):
    """Logits that are right more often than not, with confidences from low to near 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)) * rng.uniform(0.1, 4, (n, 1))
    logits[np.arange(n), labels] += rng.uniform(0, 3, n)
    return logits.astype(np.float32), labels


def totals(logits, labels, batch=8):
    """In batches, the last with padding that would spoil every number."""
    counted = ClassificationTotals(logits.shape[1])
    for first in range(0, len(labels), batch):
        part, label = logits[first : first + batch], labels[first : first + batch]
        padding = batch - len(label)
        part = np.concatenate((part, np.full((padding, part.shape[1]), np.nan, np.float32)))
        label = np.concatenate((label, np.full(padding, -1, np.int32)))
        counted.add(part, label, np.arange(batch) < batch - padding)
    return counted


@pytest.mark.parametrize("classes", [2, 3, 5, 7, 30])
@pytest.mark.parametrize("batch", [1, 8, 200])
def test_equals_scikit_learn(classes, batch):
    logits, labels = example(classes=classes)
    counted = totals(logits, labels, batch)
    found = counted.metrics()
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    every = np.arange(classes)
    assert found["images"] == 103
    assert found["top1"] == sklearn_metrics.accuracy_score(labels, logits.argmax(axis=1))
    top5 = 1.0 if classes <= 5 else sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=every)
    assert found["top5"] == top5
    np.testing.assert_allclose(found["loss"], sklearn_metrics.log_loss(labels, shares, labels=every), rtol=1e-9)
    matrix = sklearn_metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=every)
    np.testing.assert_array_equal(counted.confusion, matrix)


def test_calibration_error_by_its_definition():
    logits, labels = example(n=500)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.sum() / 500 * abs(right[inside].mean() - confidence[inside].mean())
    np.testing.assert_allclose(totals(logits, labels).metrics()["ece"], expected, rtol=1e-9)


def test_calibration_error_of_a_sure_and_always_right_classifier_is_0():
    labels = np.arange(CLASSES, dtype=np.int32)
    logits = 100 * np.eye(CLASSES, dtype=np.float32)
    assert totals(logits, labels).metrics()["ece"] < 1e-12
    assert totals(logits, (labels + 1) % CLASSES).metrics()["ece"] == pytest.approx(1.0)


def test_of_equal_logits_the_lowest_class_comes_first():
    logits = np.zeros((7, 7), np.float32)
    labels = np.arange(7, dtype=np.int32)
    counted = totals(logits, labels)
    assert counted.metrics()["top1"] == 1 / 7
    assert counted.metrics()["top5"] == 5 / 7
    assert counted.confusion[:, 0].sum() == 7
    assert accuracy(logits, labels) == {"images": 7, "top1": 1 / 7, "top5": 5 / 7}


def test_accuracy_of_scores_equals_that_of_logits():
    logits, labels = example()
    found = totals(logits, labels).metrics()
    assert accuracy(logits, labels) == {key: found[key] for key in ("images", "top1", "top5")}


def batches(images, labels, size):
    for first in range(0, len(labels), size):
        part, label = images[first : first + size], labels[first : first + size]
        padding = size - len(label)
        part = np.concatenate((part, np.zeros((padding, *part.shape[1:]), part.dtype)))
        yield labelled(part, np.pad(label, (0, padding)), np.arange(size) < len(label))


def linear(params, images):
    return images.reshape(len(images), -1).astype(jnp.float32) / 255 @ params


def test_evaluations_compute_parts_as_large_as_those_of_an_update():
    """A classifier and the monitors, all with the numbers of whole batches."""
    weights = np.random.default_rng(0).normal(size=(16 * 16, 10)).astype(np.float32)
    given = ONE_STAGE | dict(data__split="train[:40]", data__eval_split="test[:23]", mesh__data=2, knn__k=(3,))
    found, sizes = [], []

    def forward():
        return lambda params, images: sizes.append(len(images)) or linear(weights, images)  # when it is traced

    for accumulation in (1, 2):
        config = small_config(**given, monitor="knn", optim__accumulation=accumulation)
        mesh, graphdef = make_mesh(config), nnx.graphdef(nnx.Module())
        images, place = open_labelled(config.data, "test[:23]"), Placement(mesh)
        judge = Judge(config, graphdef, mesh)
        unlabelled = open_source(config.data, "train[:40]")
        monitors = Monitor(config, config.data, graphdef, place), ViewsMonitor(config, unlabelled, graphdef, place)
        judge.forward, monitors[0].pooled, monitors[1].pooled = forward(), forward(), forward()
        evaluation = judge.evaluate({}, images, predictions=True)
        measured = [monitor.measure({}) for monitor in monitors]
        found.append([evaluation.metrics, *measured, evaluation.predictions])
        assert sizes == [16 // accumulation] * 3
        sizes.clear()
    jax.tree.map(lambda whole, parts: np.testing.assert_allclose(parts, whole, rtol=1e-6), *found)


def on_eight_devices():
    """Parameters everywhere, images by axis 0."""
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    return lambda spec: lambda tree: jax.device_put(tree, NamedSharding(mesh, spec))


def test_eight_devices_with_padding_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (103, 4, 4, 1), np.uint8)
    weights = rng.normal(size=(16, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 103).astype(np.int32)
    put = on_eight_devices()
    with jax.transfer_guard("disallow"):
        found = evaluate(linear, put(P())(weights), batches(images, labels, 8), put(P("data")), predictions=True)
    logits = images.reshape(103, -1) / 255 @ weights.astype(np.float64)
    loss, top1, top5, confusion = 0.0, 0, 0, np.zeros((CLASSES, CLASSES), int)
    for row, label in zip(logits, labels):
        loss += np.log(np.exp(row).sum()) - row[label]
        top1 += row.argmax() == label
        top5 += label in np.argsort(-row)[:5]
        confusion[label, row.argmax()] += 1
    assert (found.metrics["images"], found.metrics["top1"], found.metrics["top5"]) == (103, top1 / 103, top5 / 103)
    np.testing.assert_allclose(found.metrics["loss"], loss / 103, atol=1e-6)
    np.testing.assert_array_equal(found.confusion, confusion)
    np.testing.assert_array_equal(found.predictions.image, np.arange(103))
    np.testing.assert_array_equal(found.predictions.label, labels)
    np.testing.assert_array_equal(found.predictions.predicted, logits.argmax(axis=1))
    confidence = np.exp(logits.max(axis=1)) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(found.predictions.confidence, confidence, atol=1e-6)


def test_an_image_that_is_not_valid_leaves_its_number_free():
    """One that cannot be read, in the middle: the others keep their index, so that it finds them in the source."""
    logits, labels = example(n=16)
    valid, counted = np.arange(8) != 2, ClassificationTotals(CLASSES)
    labels[15] = 99
    first = counted.add(logits[:8], labels[:8], valid)
    np.testing.assert_array_equal(first.image, [0, 1, 3, 4, 5, 6, 7])
    with pytest.raises(InputError, match=r"^label 99 of image 15"):
        counted.add(logits[8:], labels[8:], valid)
    assert counted.metrics()["images"] == 7


def test_features_come_in_order_and_without_padding():
    images = np.random.default_rng(0).integers(0, 256, (19, 4, 4, 1), np.uint8)
    labels = np.arange(19, dtype=np.int32)
    put = on_eight_devices()
    pooled = lambda scale, images: images.astype(jnp.bfloat16).mean(axis=(1, 2)) * scale  # noqa: E731
    features, found = extract_features(pooled, put(P())(jnp.bfloat16(2)), batches(images, labels, 8), put(P("data")))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(features, 2.0 * images.mean(axis=(1, 2)), rtol=1e-2)


def test_a_real_classifier_is_compiled_once_for_several_evaluations():
    model = greenjax.build(small_config(task="finetune", model__num_classes=CLASSES), seed=0)
    graphdef, params = nnx.split(model)
    traces = []

    def forward(params, images):
        traces.append(images.shape)
        return nnx.merge(graphdef, params).forward(images)

    images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 1), np.uint8)
    labels = np.arange(11, dtype=np.int32) % CLASSES
    found = [evaluate(forward, params, batches(images, labels, 4), jax.device_put) for _ in range(2)]
    assert traces == [(4, 32, 32, 1)]
    assert found[0].metrics == found[1].metrics
    assert found[0].predictions is None
    expected = totals(np.asarray(model(images)), labels).metrics()
    assert found[0].metrics["top1"] == expected["top1"]
    np.testing.assert_allclose(found[0].metrics["loss"], expected["loss"], atol=1e-6)


def test_a_label_that_the_head_does_not_have_is_refused():
    logits, labels = example()
    labels[[50, 77]] = 7
    with pytest.raises(InputError, match=r"^label 7 of image 50: expected 0 or more, below 7 "):
        totals(logits, labels)
    labels[50] = -1
    with pytest.raises(InputError, match=r"^label -1 of image 50: expected 0 or more, below 7 "):
        accuracy(logits, labels)


def test_logits_that_are_not_finite_are_no_prediction():
    logits, labels = example()
    logits[33, 2] = np.nan
    with pytest.raises(InputError, match=r"^logits of image 33 are not finite"):
        totals(logits, labels)


def test_nothing_to_evaluate_is_refused():
    nothing = np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int32)
    padding = [labelled(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32), np.zeros(2, bool))]
    for given in (batches(*nothing, 8), padding):
        with pytest.raises(InputError, match=r"^no image was evaluated: expected at least 1$"):
            evaluate(linear, np.zeros((16, 3), np.float32), given, jax.device_put)
    with pytest.raises(InputError, match=r"^features are of 0 images"):
        extract_features(linear, np.zeros((16, 3), np.float32), padding, jax.device_put)
    with pytest.raises(InputError, match=r"^no image was evaluated"):
        accuracy(np.zeros((0, 3)), np.zeros(0, int))
