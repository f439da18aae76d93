"""The whole import through its child process: files, bad files, crashes and hangs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmflow.errors import DataError, ModelError, UnsupportedOperator, UsageError, WorkerCrashed
from tvmflow.importer import import_model, worker
from tvmflow.trace import silent
from tvmflow.worker import in_child

N = helper.make_node
F = np.float32


@pytest.fixture
def small(model):
    weight = np.arange(12, dtype=F).reshape(4, 3)
    return model(
        [N("MatMul", ["x", "w"], ["h"], "fc"), N("Relu", ["h"], ["y"], "relu")], {"x": (F, [2, 4])}, ["y"], {"w": weight}
    )


def test_a_file_becomes_a_checked_model(small, tmp_path, operators):
    path = tmp_path / "net.onnx"
    onnx.save(small, path)
    found = import_model(path, samples=[{"x": np.ones((2, 4), F)}])
    assert operators(found.model.module) == [("fc", "relax.matmul"), ("relu", "relax.nn.relu")]
    assert found.model.name == "net" and found.model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.model.inputs[0].shape == (2, 4) and found.model.history == ("import",)
    assert found.check is not None and found.check.max_abs_error < 1e-5 and found.check.against.startswith("onnxruntime ")


def test_external_data(small, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(small, path, save_as_external_data=True, location="net.data", size_threshold=0)
    first = import_model(path, check=False)
    assert first.check is None and len(first.model.module["main"].body.blocks[0].bindings) == 2
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[3] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    assert import_model(path, check=False).model.sha256 != first.model.sha256
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelError, match="external data can't be read"):
        import_model(path, check=False)


def test_bad_files(tmp_path, small):
    with pytest.raises(ModelError, match="no such file"):
        import_model(tmp_path / "absent.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("this is not a model")
    with pytest.raises(ModelError, match="not an ONNX"):
        import_model(text)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(small.SerializeToString()[:-40])
    with pytest.raises(ModelError, match="not an ONNX file, or is truncated|damaged"):
        import_model(cut)


def test_errors_cross_the_process(model, small):
    with pytest.raises(UnsupportedOperator, match="domain 'acme'") as e:
        import_model(model([N("Relu", ["x"], ["y"], "r", domain="acme")], {"x": (F, [2])}, {"y": (F, [2])}, domains={"acme": 1}))
    assert "'r'" in e.value.where and e.value.remedy
    with pytest.raises(DataError, match="lacks input 'x'"):
        import_model(small, samples=[{"image": np.ones((2, 4), F)}])
    with pytest.raises(DataError, match=r"float64 \[2, 4\], not float32"):
        import_model(small, samples=[{"x": np.ones((2, 4))}])


def test_wrong_sources():
    with pytest.raises(UsageError, match="can't import a int"):
        import_model(7)
    with pytest.raises(ModelError, match="no file and no Python module 'no_such_package.models'"):
        import_model("no_such_package.models:make")
    with pytest.raises(ModelError, match="has no 'mobilenet'"):
        import_model("os.path:mobilenet")


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Replaces the child's Python by a shell script; ``$3`` is the job's directory."""

    def replace(script: str) -> Path:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        os.chmod(program, 0o755)
        monkeypatch.setattr("sys.executable", str(program))
        (tmp_path / "job").mkdir()
        return tmp_path / "job"

    return replace


JOB = worker.Job("onnx", "net.onnx", {}, True)


def test_a_crash_names_the_node(stand_in):
    job = stand_in("""echo "node 'conv1' (Conv)" > "$3/status"; echo 'LLVM ERROR: no'; kill -SEGV $$""")
    with pytest.raises(WorkerCrashed, match="died .SIGSEGV.: LLVM ERROR: no") as e:
        worker.isolated(JOB, job, (), silent)
    assert e.value.where == "node 'conv1' (Conv)"


def test_a_hang_is_ended(stand_in):
    job = stand_in("""echo "node 'conv2' (Conv)" > "$3/status"; exec sleep 60""")
    with pytest.raises(WorkerCrashed, match="still running after 1 s") as e:
        in_child(worker.work, JOB, job, silent, what="the import", silence=1.0)
    assert e.value.where == "node 'conv2' (Conv)"


def test_transfer_keeps_values_and_names(model, imported, tmp_path, operators):
    from tvmflow.importer import transfer
    from tvmflow.importer.check import run_module

    weights = {"w": np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(F), "b": np.arange(8, dtype=F)}
    built = model([N("Conv", ["x", "w", "b"], ["y"], "/a.b/Conv")], {"x": (F, [1, 3, 5, 5])}, ["y"], weights)
    loaded = imported(built)
    transfer.save(loaded.module, tmp_path)
    again = transfer.load(tmp_path)
    x = np.random.default_rng(1).standard_normal((1, 3, 5, 5)).astype(F)
    assert operators(again) == operators(loaded.module)
    assert np.array_equal(run_module(again)([x])[0], run_module(loaded.module)([x])[0])
