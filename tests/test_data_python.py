"""Images from Python: any sequence is a source of both trainings, and a wrong one is refused before anything starts."""

import io
import threading

import numpy as np
import pytest
from PIL import Image
from small import ONE_STAGE, small_config
from tiny_data import encode, picture, settings

import greenjax
from greenjax.data.encoded import DecodeError
from greenjax.data.open import open_labelled, open_source
from greenjax.data.sources.python import given
from greenjax.errors import InputError
from greenjax.runtime.files import read_metrics


class OnGpu:
    shape = (2, 2)

    def __array__(self, *_):
        raise TypeError("can't convert a tensor on cuda:0")


class Images(list):
    labels = (0, 1, 1, 0)
    classes = ("a", "b")


FOUR = Images([picture(8), picture(16)[..., 0], Image.fromarray(picture(24)), encode(picture(32))])


def opened(images, split="source", labelled=False, workers=1):
    data = settings("python", split=split)
    data.workers = workers
    with given(source=images):
        return (open_labelled if labelled else open_source)(data, split)


def test_items_are_arrays_pictures_or_files():
    source = opened(FOUR)
    assert [int(source[i].mean()) for i in range(4)] == [8, 16, 24, 32]
    assert [source[i].shape for i in range(4)] == [(6, 9, 3), (6, 9, 1), (6, 9, 3), (6, 9, 3)]
    assert len(opened(FOUR, "source[25%:]")) == 3 and source.name_of(2) == "source[2]"
    labelled = opened(FOUR, labelled=True)
    assert labelled.labels.tolist() == [0, 1, 1, 0] and labelled.classes == ("a", "b")


def test_outside_of_the_call_there_are_no_images():
    opened(FOUR)
    data = settings("python", split="source")
    with pytest.raises(InputError, match=r"without images of split 'source': expected them from greenjax.pretrain"):
        open_source(data, "source")


@pytest.mark.parametrize(
    "images, labelled, message",
    [
        (iter([]), False, "source is a list_iterator without __len__"),
        ([], False, "source, a list, is empty"),
        ([picture(8), threading.Lock()], False, "source, a list, cannot be sent to worker processes: cannot pickle"),
        ([np.zeros((2, 2))], False, r"source\[0\] is float64 \[2, 2, 1\]: expected uint8"),
        ([(picture(8), 3)], False, r"source\[0\] is a tuple: expected an image alone: .*; labels are attributes"),
        ([{"image": picture(8)}], False, r"source\[0\] is a dict: expected an image alone"),
        ([OnGpu()], False, r"source\[0\] cannot become an array: can't convert a tensor on cuda:0"),
        ({"train": [picture(8)]}, False, "source is a dict of 'train': expected a sequence of images"),
        ([picture(8)], True, "source, a list, has no labels"),
        (Images([picture(8)]), True, r"source.labels has shape \(4,\): expected \(1,\)"),
    ],
)
def test_a_wrong_sequence_is_refused(images, labelled, message):
    with pytest.raises(InputError, match=message):
        opened(images, labelled=labelled)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_beyond_the_classes_is_named_with_few_labels_too(label):
    images = Images([picture(8)] * 4)
    images.labels = (0, label, 1, 0)
    data = settings("python", split="source", per_class=1)
    data.workers = 0
    with (
        given(source=images),
        pytest.raises(InputError, match=rf"label {label} of image 1: expected 0 or more, below 2"),
    ):
        open_labelled(data, "source")


def test_a_wrong_item_is_named():
    with pytest.raises(DecodeError, match=r"source\[1\] is uint8 \[4\]"):
        opened([picture(8), np.zeros(4, np.uint8)])[1]


def test_a_sequence_takes_the_place_of_any_data_set(tmp_path, monkeypatch):
    def reached(config, _):
        raise RuntimeError(config.data)

    monkeypatch.setattr(greenjax.tasks, "run", reached)
    columns = dict(data__path="here", data__name="plain", data__image_column="image", data__label_column="kind")
    config = small_config(data__source="huggingface", data__eval_split="test", **columns)
    with pytest.raises(RuntimeError) as raised:
        greenjax.pretrain(config, tmp_path, source=[picture(16)])
    (data,) = raised.value.args
    assert (data.source, data.path, data.name, data.split, data.eval_split) == ("python", "", "", "source", "")
    assert data.image_column == data.label_column == ""


def test_both_trainings_take_a_sequence(tmp_path):
    digits = Images([np.asarray(Image.open(io.BytesIO(encode(picture(40 * i, 16, 16, 1))))) for i in range(4)])
    sizes = dict(steps=1, data__batch_size=4, mask__groups=2, mesh__data=2)
    greenjax.pretrain(small_config(**ONE_STAGE, **sizes), tmp_path / "run", source=digits, held_out=digits)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1, 1]
    tuned = small_config(**ONE_STAGE, **sizes, task="finetune", init=str(tmp_path / "run"))
    greenjax.finetune(tuned, tmp_path / "tuned", source=digits)
    assert greenjax.load(tmp_path / "tuned").classes == ("a", "b")
    with pytest.raises(InputError, match=r"held_out is given without source: expected both, or data\.eval_split"):
        greenjax.finetune(tuned, tmp_path / "other", held_out=digits)
    with pytest.raises(InputError, match="task is 'finetune': expected 'pretrain'"):
        greenjax.pretrain(tuned, tmp_path / "run", source=digits)
