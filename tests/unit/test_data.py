"""Data: what comes in is what the model wants, or a sentence says where it isn't and what to do."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmflow.data import load_data
from tvmflow.errors import ConfigError, DataError
from tvmflow.model import TensorInfo

IMAGE = (TensorInfo("image", (1, 3, 4, 5), "float32"),)
TWO = (TensorInfo("ids", (1, 7), "int64"), TensorInfo("mask", (1, 7), "float32"))
X = np.random.default_rng(0).standard_normal((10, 3, 4, 5)).astype(np.float32)


def npz(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def test_rows_become_batches_of_one_with_labels(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path, image=X, label=np.arange(10)), IMAGE)
    assert len(data) == 10
    samples = list(data)
    assert np.array_equal(np.concatenate([s["image"] for s in samples]), X)
    assert samples[0]["image"].shape == (1, 3, 4, 5)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(10))
    assert [s["image"][0, 0, 0, 0] for s in data] == [s["image"][0, 0, 0, 0] for s in samples]  # iterates again


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("[2:5]", [2, 3, 4]),
        ("[:2]", [0, 1]),
        ("[7:]", [7, 8, 9]),
        ("[::4]", [0, 4, 8]),
        ("[1:9:3]", [1, 4, 7]),
        ("[8:99]", [8, 9]),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_rows_are_selected_as_python_writes_them(rows: str, expected: list[int], compressed: bool, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, image=X, label=np.arange(10))
    data = load_data(f"{path}{rows}", IMAGE)
    assert data.labels is not None
    assert data.labels.tolist() == expected
    assert np.array_equal(np.concatenate([s["image"] for s in data]), X[expected])
    assert data.sha256 != load_data(path, IMAGE).sha256


@pytest.mark.parametrize("order", ["C", "F"])
def test_either_memory_order_and_rows_that_are_whole_inputs(order: Any, tmp_path: Path) -> None:
    path = npz(tmp_path, image=np.asarray(X[:, None], order=order))
    assert np.array_equal(np.concatenate([s["image"] for s in load_data(path, IMAGE)]), X)


def test_a_batch_of_the_models_size_is_filled_from_rows(tmp_path: Path) -> None:
    four = (TensorInfo("image", (4, 3, 4, 5), "float32"),)
    path = npz(tmp_path, image=X)
    data = load_data(f"{path}[0:8]", four)
    assert len(data) == 2
    assert np.array_equal(np.concatenate([s["image"] for s in data]), X[:8])
    with pytest.raises(DataError, match=r"10 rows can't be split.*\n.*\[0:8\]"):
        load_data(path, four)


def test_several_inputs_and_conversions_that_lose_nothing(tmp_path: Path) -> None:
    path = npz(tmp_path, ids=np.arange(14, dtype=np.int16).reshape(2, 7), mask=np.ones((2, 7)), other=np.zeros(3))
    data = load_data(path, TWO)
    second = list(data)[1]
    assert (second["ids"].dtype, second["mask"].dtype) == (np.int64, np.float32)
    assert second["ids"].tolist() == [[7, 8, 9, 10, 11, 12, 13]]
    assert "other" in data.notes[0]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": X}, r"no array named 'image'(.|\n)*rename the array 'x'"),
        ({"x": X, "y": X}, r"no array named 'image'(.|\n)*the file has x, y"),
        ({"image": X[:, :, :, :4]}, r"shape \[3, 4, 4\], the model wants \[3, 4, 5\]"),
        ({"image": X[0, 0, 0, 0]}, "no samples|shape"),
        ({"image": X.astype(np.int32)}, "'image' is int32, the model wants float32"),
        ({"image": (X * 9).astype(np.uint8)}, "is uint8(.|\n)*preprocess.toml"),
        ({"image": X[:0]}, "no samples"),
        ({"image": X, "label": np.arange(9)}, "image has 10, label has 9"),
        ({"image": X, "label": np.array([None] * 10)}, "Python objects"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_when_opened(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load_data(npz(tmp_path, **arrays), IMAGE)
    assert "data.npz" in caught.value.where


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_row(bad: float, tmp_path: Path) -> None:
    values = X.copy()
    values[6, 1, 2, 3] = bad
    with pytest.raises(DataError, match="row 6, input 'image'"):
        list(load_data(npz(tmp_path, image=values), IMAGE))


def test_integers_that_do_not_fit_name_their_row(tmp_path: Path) -> None:
    small = (TensorInfo("ids", (1, 2), "int32"),)
    with pytest.raises(DataError, match="row 1.*don't fit int32"):
        list(load_data(npz(tmp_path, ids=np.array([[1, 2], [3, 2**40]])), small))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"hello"])
def test_files_that_are_no_npz_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an .npz file"):
        load_data(path, IMAGE)


def test_a_damaged_array_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, image=np.repeat(X, 50, axis=0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        list(load_data(path, IMAGE))
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "absent.npz", IMAGE)
    with pytest.raises(DataError, match="step of 0"):
        load_data(f"{path}[::0]", IMAGE)


def test_rows_stream_in_constant_memory(tmp_path: Path) -> None:
    wide = (TensorInfo("image", (1, 3, 64, 64), "float32"),)
    path = tmp_path / "data.npz"
    np.savez(path, image=np.ones((400, 3, 64, 64), np.float32))  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in load_data(path, wide)) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


# raw pixels with a declaration beside the file

PIXELS = np.random.default_rng(1).integers(0, 256, (6, 28, 28), np.uint8)
DIGITS = (TensorInfo("input", (1, 3, 32, 32), "float32"),)
DECLARATION = """schema = 1
[preprocess]
pad = [2, 2, 2, 2]
divisor = 255.0
mean = [0.1307]
std = [0.3081]
"""


def test_pixels_are_prepared_as_declared(tmp_path: Path) -> None:
    path = npz(tmp_path, input=PIXELS)
    (tmp_path / "data.preprocess.toml").write_text(DECLARATION)
    data = load_data(path, DIGITS)
    padded = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    expected = np.repeat(((padded / 255 - np.float32(0.1307)) / np.float32(0.3081))[:, None], 3, axis=1)
    assert np.array_equal(np.concatenate([s["input"] for s in data]), expected)
    assert data.preprocess is not None
    with_another_mean = DECLARATION.replace("0.1307", "0.5")
    (tmp_path / "data.preprocess.toml").write_text(with_another_mean)
    assert load_data(path, DIGITS).sha256 != data.sha256


def test_an_artifacts_declaration_serves_raw_pixels_and_must_not_be_contradicted(tmp_path: Path) -> None:
    path = npz(tmp_path, input=PIXELS)
    sidecar = tmp_path / "data.preprocess.toml"
    sidecar.write_text(DECLARATION)
    own = load_data(path, DIGITS)
    first = next(iter(own))["input"]
    sidecar.unlink()
    given = load_data(path, DIGITS, own.preprocess)
    assert np.array_equal(next(iter(given))["input"], first)
    assert given.sha256 == own.sha256
    sidecar.write_text(DECLARATION.replace("0.1307", "0.5"))
    with pytest.raises(ConfigError, match="differs in mean"):
        load_data(path, DIGITS, own.preprocess)
    sidecar.unlink()
    prepared = npz(tmp_path, input=np.concatenate([s["input"] for s in given]))
    assert np.array_equal(next(iter(load_data(prepared, DIGITS, own.preprocess)))["input"], first)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("pad = [2", "pad = [1", r"gives \[3, 31, 32\]"),
        ("mean = [0.1307]", "mean = [0.1, 0.2]", "2 values for 3 channels"),
        ("divisor", "divisr", "did you mean 'divisor'"),
        ("divisor = 255.0", "crop = [40, 40]", "can't crop 40x40"),
        ("divisor = 255.0", 'input = "imput"', "did you mean 'input'"),
        ("divisor = 255.0", "resize = [8, 8]\nshort_side = 8", "both short_side and resize"),
        ("schema = 1", "schema = 2", "newer"),
        ("pad = [2", 'color = "grey"\npad = [2', "did you mean 'gray'"),
    ],
)
def test_wrong_declarations_are_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    path = npz(tmp_path, input=PIXELS)
    (tmp_path / "data.preprocess.toml").write_text(DECLARATION.replace(old, new))
    with pytest.raises((ConfigError, DataError), match=says):
        list(load_data(path, DIGITS))


def test_prepared_values_under_a_declaration_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, input=np.zeros((2, 3, 32, 32), np.float32))
    (tmp_path / "data.preprocess.toml").write_text(DECLARATION)
    with pytest.raises(DataError, match="pictures must be uint8"):
        list(load_data(path, DIGITS))


# folders of images

PICTURE = (TensorInfo("image", (1, 8, 6, 3), "float32"),)
FOLDER = """schema = 1
label_pattern = '_(\\d+)\\.png$'
[preprocess]
short_side = 8
crop = [8, 6]
color = "bgr"
mean = [1.0, 2.0, 3.0]
layout = "NHWC"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "pictures"
    path.mkdir()
    for name, color, size in [
        ("b_7.png", (10, 20, 30), (20, 16)),
        ("a_3.png", (200, 0, 100), (16, 40)),
        ("c.png", (1, 2, 3), (9, 9)),
    ]:
        image.new("RGB", size, color).save(path / name)
    (path / "preprocess.toml").write_text(FOLDER)
    return path


def test_pictures_come_in_order_of_their_names(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    data = load_data(folder, PICTURE)
    samples = [s["image"] for s in data]
    assert [s.shape for s in samples] == [(1, 8, 6, 3)] * 3
    assert samples[0][0, 4, 3].tolist() == [99, -2, 197]
    assert data.labels is not None
    assert data.labels.tolist() == [3, 7, -1]
    assert "notes.txt" in data.notes[0]
    assert len(load_data(f"{folder}[1:]", PICTURE)) == 2


def test_a_table_of_labels_is_preferred_and_checked(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\na_3.png,5\nc.png,6\n")
    data = load_data(folder, PICTURE)
    assert data.labels is not None
    assert data.labels.tolist() == [5, -1, 6]
    for text, says in [
        ("file,label\nd.png,5\n", "not in the folder"),
        ("a,b\n", "are wanted"),
        ("file,label\nc.png,x\n", "line 2"),
    ]:
        (folder / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=says):
            load_data(folder, PICTURE)


def test_folders_that_can_not_be_used(folder: Path) -> None:
    (folder / "b_7.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="b_7.png: can't decode"):
        list(load_data(folder, PICTURE))
    (folder / "preprocess.toml").write_text(FOLDER.replace("short_side", 'input = "image"\nshort_side'))
    with pytest.raises(DataError, match="single input"):
        load_data(folder, (*PICTURE, *TWO))
    (folder / "preprocess.toml").write_text(FOLDER.replace("(\\d+)", "\\d+"))
    with pytest.raises(ConfigError, match="label_pattern"):
        load_data(folder, PICTURE)
    (folder / "preprocess.toml").unlink()
    with pytest.raises(DataError, match="needs a preprocess.toml"):
        load_data(folder, PICTURE)


def test_gray_pictures_and_colour_are_made_what_the_model_wants(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    gray = (TensorInfo("image", (1, 1, 8, 8), "uint8"),)
    image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    image.new("L", (8, 8), 9).save(tmp_path / "gray.png")
    (tmp_path / "preprocess.toml").write_text('schema = 1\n[preprocess]\ncolor = "gray"\n')
    assert [int(s["image"][0, 0, 0, 0]) for s in load_data(tmp_path, gray)] == [9, 76]
    rgb = (TensorInfo("image", (1, 3, 8, 8), "float32"),)
    (tmp_path / "preprocess.toml").write_text('schema = 1\n[preprocess]\ncolor = "rgb"\n')
    assert [s["image"][0, :, 0, 0].tolist() for s in load_data(tmp_path, rgb)] == [[9, 9, 9], [255, 0, 0]]


# callables


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_samples.py").write_text(
        """
import itertools
import numpy as np

def good():
    for i in range(5):
        yield {"ids": np.full((1, 7), i), "mask": np.ones(7, np.float32)[None], "label": i % 2}

def endless():
    for i in itertools.count():
        yield {"ids": np.full(7, i), "mask": np.ones(7, np.float32)}

def partial():
    yield {"ids": np.zeros(7, np.int64)}

def growing():
    for i in (7, 8):
        yield {"ids": np.zeros(i, np.int64), "mask": np.zeros(7, np.float32)}

def failing():
    yield {"ids": np.zeros(7, np.int64), "mask": np.zeros(7, np.float32)}
    raise KeyError("a key")

def lists():
    yield [1]

number = 3
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_samples", raising=False)
    return "my_samples"


def test_samples_of_a_callable(module: str) -> None:
    data = load_data(f"{module}:good", TWO)
    assert len(data) == 5
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert [int(s["ids"][0, 0]) for s in data] == [0, 1, 2, 3, 4]
    assert len(load_data(f"{module}:endless[0:30:3]", TWO)) == 10
    assert load_data(f"{module}:good", TWO).sha256 == data.sha256


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_samples:partial", "no key 'mask'"),
        ("my_samples:growing", "changes its shape"),
        ("my_samples:failing", "the callable failed: KeyError"),
        ("my_samples:lists", "yields list"),
        ("my_samples:number", "not callable"),
        ("my_samples:god", "did you mean 'good'"),
        ("my_sample:good", "can't import 'my_sample'"),
    ],
)
def test_callables_that_can_not_be_used(spec: str, says: str, module: str) -> None:
    with pytest.raises(DataError, match=says):
        load_data(spec, TWO)
