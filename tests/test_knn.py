"""Weighted k-NN against scikit-learn and against a plain loop where neighbours tie."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from greenjax.errors import InputError
from greenjax.evaluation.knn import knn_scores

CLASSES = 4


def example(bank=90, queries=37, seed=0):
    """Features in which classes overlap, so that neighbours disagree."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, 6))
    labels = rng.integers(0, CLASSES, bank)
    features = centres[labels] + rng.normal(size=(bank, 6))
    return features.astype(np.float32), labels, rng.normal(size=(queries, 6)).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_scikit_learn(temperature):
    bank, labels, queries = example()
    scores = knn_scores(bank, labels, queries, CLASSES, k=(20, 1, 5), temperature=temperature)
    assert list(scores) == [20, 1, 5]
    for k, found in scores.items():
        weights = lambda distance: np.exp((1 - distance) / temperature)  # noqa: E731
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(bank, labels)
        np.testing.assert_array_equal(found.argmax(axis=1), reference.predict(queries))
        np.testing.assert_allclose(found, reference.predict_proba(queries), atol=1e-5)


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1, 90), (16, 7), (37, 45), (64, 1)])
def test_chunk_sizes_do_not_matter(query_chunk, bank_chunk):
    bank, labels, queries = example()
    whole = knn_scores(bank, labels, queries, CLASSES, k=(3, 20))
    parts = knn_scores(bank, labels, queries, CLASSES, k=(3, 20), query_chunk=query_chunk, bank_chunk=bank_chunk)
    for k in whole:
        np.testing.assert_array_equal(parts[k].argmax(axis=1), whole[k].argmax(axis=1))
        np.testing.assert_allclose(parts[k], whole[k], atol=1e-5)


@pytest.mark.parametrize("bank_chunk", [3, 40])
def test_of_equally_near_neighbours_the_first_in_the_bank_counts(bank_chunk):
    """Four directions of length 1 only: similarities are exactly 0 or 1, and almost all tie."""
    rng = np.random.default_rng(0)
    bank = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 40)]
    labels, queries = rng.integers(0, 3, 40), np.eye(4, dtype=np.float32)
    found = knn_scores(bank, labels, queries, 3, k=(7,), temperature=0.5, bank_chunk=bank_chunk)[7]
    for query, scores in zip(queries, found):
        similarity = bank @ query
        nearest = sorted(range(40), key=lambda i: (-similarity[i], i))[:7]
        expected = np.bincount(labels[nearest], np.exp(similarity[nearest] / 0.5), minlength=3)
        np.testing.assert_allclose(scores, expected / expected.sum(), rtol=1e-6)


def test_a_low_temperature_does_not_overflow():
    bank, labels, queries = example()
    scores = knn_scores(bank, labels, queries, CLASSES, k=(20,), temperature=0.005)[20]
    nearest = knn_scores(bank, labels, queries, CLASSES, k=(1,))[1]
    assert np.isfinite(scores).all()
    assert (scores.argmax(axis=1) == nearest.argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=(91,)), r"^k is \(91,\): expected numbers from 1 to 90, the images of the bank$"),
        (dict(k=()), r"^k is \(\): expected numbers from 1 to 90"),
        (dict(temperature=0.0), r"^temperature is 0.0: expected a number above 0$"),
        (dict(classes=3), r"^label 3 of image \d+: expected 0 or more, below 3 \(the number of classes\)$"),
        (dict(queries=np.full((2, 6), np.nan, np.float32)), r"^features of image 0 are not finite"),
    ],
)
def test_wrong_input_is_refused(change, message):
    bank, labels, queries = example()
    given = dict(bank=bank, labels=labels, queries=queries, classes=CLASSES) | change
    with pytest.raises(InputError, match=message):
        knn_scores(**given)
