"""The wheel: built, installed elsewhere, and working without the checkout. And what importing tvmflow costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import tvmflow

ROOT = Path(__file__).parents[2]


def test_public_names_are_looked_up_lazily() -> None:
    code = "import sys, tvmflow; sys.exit(', '.join({'tvm', 'numpy', 'onnx', 'msgspec', 'typer'} & sys.modules.keys()) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(tvmflow.__all__) <= set(dir(tvmflow))
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = tvmflow.nosuch


def test_a_function_keeps_its_name_from_a_folder_of_that_name() -> None:
    import tvmflow.bench.stats
    import tvmflow.quantize.recipe
    import tvmflow.tune.log

    for name in ("bench", "quantize", "tune"):
        assert callable(getattr(tvmflow, name)), name
        assert sys.modules[f"tvmflow.{name}"].__path__


@pytest.mark.parametrize("name", tvmflow.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(tvmflow, name) is not None


@pytest.mark.slow
def test_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, suffix in (("targets", "*.toml"), ("tuning_logs", "**/*.jsonl")):
        shipped = {f"tvmflow/_data/{p.relative_to(ROOT)}" for p in (ROOT / folder).glob(suffix)}
        assert shipped <= names, folder
    assert {f"{p.relative_to(ROOT)}" for p in (ROOT / "tvmflow").rglob("*.toml")} <= names

    # The third-party packages come from this environment: downloading them again would test the index, not the wheel.
    home = tmp_path / "elsewhere"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    (site / "installed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))

    for name in ("mobilenetv2_mnist32.onnx", "mnist_calibration.npz", "mnist_calibration.preprocess.toml"):
        shutil.copy(ROOT / "tests" / "data" / name, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        done = subprocess.run([python, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = run("-c", "import tvmflow; print(tvmflow.__file__)")
    assert Path(found.strip()).is_relative_to(site), "the checkout, not the wheel, was imported"
    listed = json.loads(run("-m", "tvmflow", "targets", "list", "--json"))
    assert {t["name"] for t in listed["targets"]} == {p.stem for p in (ROOT / "targets").glob("*.toml")}
    data = "mnist_calibration.npz[0:8]"
    run("-m", "tvmflow", "compile", "mobilenetv2_mnist32.onnx", "-q", "int8", "--calibrate", data, "-o", "model.so")
    assert json.loads(run("-m", "tvmflow", "verify", "model.so", "--json"))["bit_exact"]
