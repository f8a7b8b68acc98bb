"""Data sets of TFDS: prepared, found, decoded once; and what is said where they are not there."""

import json
import subprocess
import sys
import time

import numpy as np
import prepared_sets
import pytest

from jaxdist import data, tasks
from jaxdist.data import preparing


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder of prepared sets with a small MNIST in it."""
    folder = tmp_path_factory.mktemp("sets")
    prepared_sets.write_mnist(folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of prepared sets with our own digits in it, prepared with the network switched off."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDIST_OFFLINE", "1")
        data.prepare("digits", data_dir=folder)
    return folder


def test_our_own_digits_are_prepared_offline_and_hold_the_same_arrays(digits):
    direct = data.digits.load()
    train = data.tfds.load("tfds:digits", "train", data_dir=digits)
    test = data.tfds.load("tfds:digits", "test", data_dir=digits)
    for got, wanted in (
        (train["image"], direct.train_images),
        (train["label"], direct.train_labels),
        (test["image"], direct.test_images),
        (test["label"], direct.test_labels),
    ):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_preparing_again_does_nothing(digits):
    said = []
    before = (digits / "digits" / "1.0.0" / "dataset_info.json").stat().st_mtime_ns
    path = data.prepare("tfds:digits", data_dir=digits, say=said.append)
    assert said == [f"already prepared: {path}"]
    assert (path / "dataset_info.json").stat().st_mtime_ns == before


def test_slices_take_what_they_say(digits):
    whole = data.tfds.load("tfds:digits", "train", data_dir=digits)["label"]
    slices = {"train[:80%]": whole[:1150], "train[80%:]": whole[1150:], "train[5:9]": whole[5:9]}
    for split, wanted in slices.items():
        got = data.tfds.load("tfds:digits", split, data_dir=digits)["label"]
        np.testing.assert_array_equal(got, wanted)
    both = data.tfds.load("tfds:digits:1.0.0", "train+test", data_dir=digits)["label"]
    assert len(both) == 1797


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("tfds:digits", "trian", "Unknown split 'trian'.*there are: train.*1437.*test.*360"),
        ("tfds:digits", "train[:0]", "holds no examples; there are"),
        ("tfds:digits", "train[:9999]", "9999.*1437"),
        ("tfds:digits", "train[", "Error parsing"),
        ("tfds:digits:2.0.0", "train", "not prepared.*jaxdist data prepare digits:2.0.0"),
        (
            "tfds:nothing",
            "train",
            r"not prepared.*'\.\[prepare\]' and jaxdist data prepare nothing",
        ),
        ("digits", "train", "write tfds:mnist"),
        ("tfds:../digits", "train", "names no data set"),
        ("tfds:digits/../..", "train", "names no"),
    ],
)
def test_what_is_not_there_is_named_with_its_cure(digits, name, split, said):
    with pytest.raises(ValueError, match=said) as error:
        data.tfds.load(name, split, data_dir=digits)
    assert "\n" not in str(error.value)


def test_images_are_decoded_once(mnist, monkeypatch):
    images, labels = prepared_sets.drawn(prepared_sets.TRAIN, seed=0)
    first = data.tfds.load("tfds:mnist", "train", data_dir=mnist)
    assert sorted(first) == ["image", "label"], "text is left out"
    np.testing.assert_array_equal(first["image"], images)
    np.testing.assert_array_equal(first["label"], labels)
    assert first["label"].dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        first["image"][0] = 0
    monkeypatch.setattr(data.tfds, "_decode", None)  # what is kept does not need it
    again = data.tfds.load("tfds:mnist", "train", features=("label",), data_dir=mnist)
    assert list(again) == ["label"]
    np.testing.assert_array_equal(again["label"], labels)
    with pytest.raises(ValueError, match="no feature 'name'.*image, label"):
        data.tfds.load("tfds:mnist", "train", features=("name",), data_dir=mnist)


@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_arrays_that_were_spoiled_are_decoded_again(mnist, spoil):
    wanted = data.tfds.load("tfds:mnist", "test", data_dir=mnist)
    file = mnist / "mnist" / "3.0.1" / data.tfds.ARRAYS / "test.npz"
    content = bytearray(file.read_bytes())
    if spoil == "cut":
        content = content[:1000]
    else:
        content[5000] ^= 1
    file.write_bytes(content)
    again = data.tfds.load("tfds:mnist", "test", data_dir=mnist)
    np.testing.assert_array_equal(again["image"], wanted["image"])
    assert file.read_bytes() != content, "and kept again"


def test_a_set_in_a_format_for_tensorflow_is_refused(tmp_path):
    path = tmp_path / "mnist" / "3.0.1"
    path.mkdir(parents=True)
    (path / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="prepared as tfrecord, which only TensorFlow reads"):
        data.tfds.load("tfds:mnist", "train", data_dir=tmp_path)


def test_the_newest_version_and_the_configs_are_found(tmp_path):
    for folder in ("a/1.9.0", "a/1.10.0", "b/small/1.0.0", "b/large/1.0.0", "c/incomplete"):
        path = tmp_path / folder
        path.mkdir(parents=True)
        if "incomplete" not in folder:
            (path / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert data.tfds.find("tfds:a", data_dir=tmp_path).name == "1.10.0"
    assert data.tfds.find("tfds:a:1.9.0", data_dir=tmp_path).name == "1.9.0"
    assert data.tfds.find("tfds:b/small", data_dir=tmp_path).parent.name == "small"
    with pytest.raises(ValueError, match="configs large, small: write tfds:b/large"):
        data.tfds.find("tfds:b", data_dir=tmp_path)
    assert data.tfds.prepared(tmp_path) == [
        "tfds:a:1.10.0", "tfds:a:1.9.0", "tfds:b/large:1.0.0", "tfds:b/small:1.0.0",
    ]  # fmt: skip


def test_an_unknown_name_has_near_ones(tmp_path):
    with pytest.raises(ValueError, match="no data set 'mnits'; did you mean mnist"):
        data.prepare("mnits", data_dir=tmp_path)


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs TensorFlow.*\.\[prepare\]"):
        data.prepare("mnist", data_dir=tmp_path)


def test_without_a_network_the_files_are_named_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("JAXDIST_OFFLINE", "1")
    began = time.monotonic()
    with pytest.raises(ValueError, match="storage.googleapis.com does not answer") as error:
        data.prepare("mnist", data_dir=tmp_path)
    assert time.monotonic() - began < 5
    assert str(tmp_path / "downloads" / "manual") in str(error.value)
    assert str(error.value).count("ubyte.gz (from https://") == 4
    # A file that is there is not asked for again.
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="does not answer") as error:
        data.prepare("mnist", data_dir=tmp_path)
    assert "train-images" not in str(error.value)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    for name in ("JAXDIST_OFFLINE", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def wait(*arguments, **keywords):
        time.sleep(1)
        raise OSError

    monkeypatch.setattr(preparing.socket, "create_connection", wait)
    began = time.monotonic()
    assert not preparing.reachable("nowhere.invalid", seconds=0.05)
    assert time.monotonic() - began < 0.5


def test_the_task_learns_from_a_prepared_mnist(mnist):
    task = tasks.mnist(4, batch_size=8, train="train[:50%]", test="train[50%:]", data_dir=mnist)
    assert task.stream.batch(0)["image"].shape == (4, 8, 28, 28, 1)
    assert sum(map(len, task.stream.shards)) == 256
    assert len(task.test["label"]) == 256


def test_importing_jaxdist_imports_no_tfds():
    code = "import sys, jaxdist; jaxdist.data.tfds; print('tensorflow_datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
