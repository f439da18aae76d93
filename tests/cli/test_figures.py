"""The figures tool: what it judges by, how it resumes, and what it says of what it can't measure."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "tools" / "figures_parts"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``part("judge")``: a module of the tool."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def figures(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


def test_model_without_its_data_is_left_out_with_the_reason(tmp_path: Path) -> None:
    done = figures("--models", "resnet50", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (tmp_path / "figures.jsonl").read_text().splitlines())
    assert "--pictures" in record["skipped"]
    assert "not measured" in done.stdout
    assert done.stdout == (tmp_path / "figures.txt").read_text()


def test_unknown_model(tmp_path: Path) -> None:
    done = figures("--models", "resnet51", "-o", tmp_path)
    assert done.returncode == 2
    assert "there are mobilenetv2_mnist" in done.stderr


def test_finished_measurement_is_kept_and_a_failed_one_is_not(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = part("runner")
    answers = [{"error": "busy"}, {"bytes": 1, "seconds": 1.0}]
    monkeypatch.setattr(module, "child", lambda job, kept: answers.pop(0))
    runner = module.Runner(tmp_path, "code", 0.0)
    assert runner.run("net", "compile", precision="int8")["error"] == "busy"
    first = runner.run("net", "compile", precision="int8")
    assert first == {"model": "net", "step": "compile", "precision": "int8", "bytes": 1, "seconds": 1.0}
    assert runner.run("net", "compile", precision="int8") == first, "there is no third answer"
    with pytest.raises(IndexError):
        module.Runner(tmp_path, "other code", 0.0).run("net", "compile", precision="int8")


def test_crash_becomes_a_record(part: Any, tmp_path: Path) -> None:
    found = part("runner").child({"step": "no such step"}, tmp_path / "kept.json")
    assert "exit code 1" in found["error"] and "KeyError" in found["error"]
    assert found["peak_memory_bytes"] > 1e6


def test_texts(part: Any) -> None:
    judge = part("judge")
    scores = np.eye(4)[[0, 1, 1, 0, 1, 3, 2, 2]][None]
    assert judge.ctc(scores) == (1, 1, 3, 2)
    assert judge.spell((1, 1, 3, 2), ["a", "b"]) == "aa b"
    ours, reference = [(1,), (1, 2)], [(1,), (2,)]
    found = judge.verdict("text", ours, reference, ["a", "b"], ["a", "b"])
    assert found == {"texts_as_reference": 0.5, "texts_right": 0.5, "reference_texts_right": 1.0}


def test_masks(part: Any) -> None:
    judge = part("judge")
    first, second = judge.mask(np.array([0.1, 0.5, 0.9])), judge.mask(np.array([0.4, 0.2, 0.9]))
    assert judge.verdict("mask", [first], [second], [], []) == {"mask_overlap": 1 / 3}


def test_calibration_and_held_out_pictures_are_disjoint(part: Any, tmp_path: Path) -> None:
    pictures = part("pictures")
    names = ["0_imagenet_00_7_0.jpg", *(f"{i:03d}_thing_0.jpg" for i in range(1, 80))]
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"picture")
    text = pictures.declaration("rgb", (0.0,), (1.0,), "NCHW")
    calibration, heldout = pictures.split(tmp_path, tmp_path / "pictures.zip", text, True)
    first, second = ({p.name for p in folder.glob("*.jpg")} for folder in (calibration, heldout))
    assert len(first) == pictures.CALIBRATION and not first & second and first | second == set(names)
    assert names[0] in second, "labelled pictures are for evaluation"
    with pytest.raises(sys.modules["missing"].Missing, match="no file"):
        pictures.split(tmp_path, tmp_path / "none.zip", text, True)


def test_rendered_text_is_the_same_each_time(part: Any, tmp_path: Path) -> None:
    text = part("text_pictures")
    made = [text.orientations(tmp_path / name) for name in ("a", "b")]
    first, second = (np.load(m.heldout) for m in made)
    assert first["x"].shape == (text.HELDOUT, 3, 48, 192) and first["x"].dtype == np.float32
    assert -1 <= first["x"].min() < 0 < first["x"].max() <= 1
    assert np.array_equal(first["x"], second["x"]) and set(first["label"]) == {0, 1}


def test_floors(part: Any) -> None:
    tables = part("tables")
    compiled = {"model": tables.MNIST, "step": "compile", "precision": "int8", "bytes": 2.5e6, "weight_bytes": 2.4e6}
    accuracy = {"model": tables.MNIST, "step": "evaluate", "contender": "tvmflow int8", "top1": 0.985, "top5": 1.0}
    accuracy["reference"] = {"top1": 0.987, "top5": 1.0}
    dense = {"model": "net", "step": "compile", "precision": "int8", "operators": {"integer": 3, "float": 1}}
    lines = tables.checks([compiled, accuracy, dense], {"net"}).splitlines()
    verdict = {(line.split()[0], line.split()[1]): line.rsplit("  ", 1)[1] for line in lines[3:]}
    assert verdict[tables.MNIST, ".so"] == "met"
    assert verdict[tables.MNIST, "weights"] == "MISSED"
    assert verdict[tables.MNIST, "top-1"] == "met"
    assert verdict[tables.MNIST, "1"] == "not measured"
    assert verdict["net", "integer"] == "MISSED"


@pytest.mark.slow
def test_shipped_model(tmp_path: Path) -> None:
    done = figures("--models", "mobilenetv2_mnist", "--runs", 20, "-o", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == ["prepare", *["compile"] * 2, "peer", *["evaluate"] * 3, *["bench"] * 4]
    assert all(r["peak_memory_bytes"] > 1e7 for r in records)
    again = figures("--models", "mobilenetv2_mnist", "--runs", 20, "-o", tmp_path)
    assert [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()] == records, again.stderr
