"""Every kind of bad input at the command line: what, where and what to do are said, with the right exit code; old files stay."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmflow import flow

GOOD = np.zeros((2, 3, 8, 8), "float32")
Refused = Callable[..., dict[str, Any]]
"""``refused(verb, ..., code=1)``: what ``--json`` says of the error."""


@pytest.fixture
def refused(cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs the command line in an empty folder: it has to leave with ``code``, an error object, and no traceback."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 1) -> dict[str, Any]:
        ran = cli(*arguments, "--json")
        assert ran.code == code, ran.err
        assert "Traceback" not in ran.err, ran.err
        error: dict[str, Any] = ran.json["error"]
        assert error["exit_code"] == code and error["what"]
        return error

    return run


@pytest.fixture
def not_compiled(refused: Refused) -> Refused:
    """``not_compiled(model, ...)``: the refusal of `tvmflow compile`, whose old output stays as it was."""
    out = Path("net.so")

    def run(model: Path, *options: object, code: int = 1) -> dict[str, Any]:
        out.write_bytes(b"the old file")
        error = refused("compile", model, "-o", out, "--no-import-check", *options, code=code)
        assert out.read_bytes() == b"the old file"
        return error

    return run


def test_files_that_are_no_model(not_compiled: Refused, network: Path, tmp_path: Path) -> None:
    contents = {"notes.onnx": b"hello", "cut.onnx": network.read_bytes()[:-50], "empty.onnx": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        error = not_compiled(tmp_path / name)
        assert "not an ONNX" in error["what"] or "truncated" in error["what"] or "damaged" in error["what"], name
        assert name in error["where"] and error["remedy"]
    error = not_compiled(tmp_path / "cuts.onnx")
    assert error["what"] == "no such file" and "'cut.onnx'" in error["remedy"]


def test_unsupported_operator_is_named(not_compiled: Refused, tmp_path: Path) -> None:
    tensor = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["y"], "/odd", domain="acme")], "g", [tensor("x")], [tensor("y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)], ir_version=9)
    onnx.save(model, tmp_path / "odd.onnx")
    error = not_compiled(tmp_path / "odd.onnx")
    assert error["kind"] == "UnsupportedOperator" and "'acme'" in error["what"]
    assert "Frobnicate" in error["where"] and "/odd" in error["where"] and error["remedy"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 1, "image"),
        (("--shape", "imag=1x3x8x8"), 1, "'image'"),
        (("--shape", "image=1x3"), 1, "image"),
        (("--shape", "image=1x4x8x8"), 1, "image"),
        (("--shape", "image=1x3x8xwide"), 2, "1x3x8xwide"),
    ],
    ids=["missing", "of another input", "of another rank", "of other channels", "malformed"],
)
def test_shapes(not_compiled: Refused, network: Path, options: tuple[str, ...], code: int, says: str) -> None:
    model = onnx.load(network)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, "dynamic.onnx")
    error = not_compiled(Path("dynamic.onnx"), *options, code=code)
    assert says in str(error) and error["remedy"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"picture": GOOD}, "image"),
        ({"image": GOOD[:, :, :7]}, "7"),
        ({"image": GOOD.astype("complex64")}, "complex64"),
        ({"image": np.where(np.arange(8) == 3, np.float32(np.nan), GOOD)}, "NaN"),
        ({"image": GOOD[:0]}, "no samples"),
    ],
    ids=["names", "shapes", "dtype", "NaN", "none"],
)
def test_calibration_data(not_compiled: Refused, network: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez("bad.npz", **arrays)
    error = not_compiled(network, "-q", "int8", "--calibrate", "bad.npz")
    assert error["kind"] == "DataError" and says in error["what"] and "bad.npz" in error["where"]


def test_calibration_file_that_is_none(not_compiled: Refused, network: Path) -> None:
    Path("bad.npz").write_text("hello")
    error = not_compiled(network, "-q", "int8", "--calibrate", "bad.npz")
    assert error["kind"] == "DataError" and "bad.npz" in error["where"]


def test_no_calibration_data_and_data_without_a_recipe(not_compiled: Refused, network: Path, data: Path) -> None:
    error = not_compiled(network, "-q", "int8", code=2)
    assert "needs calibration data" in error["what"] and "--calibrate" in error["remedy"]
    assert "without a recipe" in not_compiled(network, "--calibrate", data, code=2)["what"]


def test_mistyped_names_offer_the_nearest(not_compiled: Refused, refused: Refused, network: Path, data: Path) -> None:
    error = not_compiled(network, "-t", "zen55")
    assert "unknown target" in error["what"] and "'zen5'" in error["remedy"]
    error = not_compiled(network, "-q", "int88", "--calibrate", data)
    assert "int88" in error["what"] and "'int8'" in error["remedy"]
    assert "'zen5'" in refused("targets", "show", "zn5")["remedy"]


def test_mistyped_keys_offer_the_nearest(
    not_compiled: Refused, cli: Callable[..., Any], network: Path, data: Path, tmp_path: Path
) -> None:
    recipe, target, pixels = tmp_path / "recipe.toml", tmp_path / "mine.toml", tmp_path / "digits.preprocess.toml"
    recipe.write_text('schema = 1\nname = "mine"\ncentre = true\n')
    target.write_text(cli("targets", "show", "zen5").out.replace("vector_bits", "vektor_bits"))
    pixels.write_text("schema = 1\n[preprocess]\nmeans = [1.0]\n")
    (tmp_path / "digits.npz").write_bytes(data.read_bytes())
    for path, wrong, right, options in [
        (recipe, "centre", "center", ("-q", recipe, "--calibrate", data)),
        (target, "vektor_bits", "vector_bits", ("-t", target)),
        (pixels, "means", "mean", ("-q", "int8", "--calibrate", tmp_path / "digits.npz")),
    ]:
        error = not_compiled(network, *options)
        assert error["kind"] == "ConfigError" and wrong in error["what"], error
        assert path.name in error["where"] and f"did you mean '{right}'?" in error["remedy"], error


def test_damaged_logs_and_parameters(not_compiled: Refused, network: Path, tmp_path: Path) -> None:
    log, params = tmp_path / "log.jsonl", tmp_path / "p.json"
    log.write_text('{"not": "a record"}\n')
    error = not_compiled(network, "--tuning-log", log)
    assert "not a tuning record" in error["what"] and error["where"].endswith("log.jsonl:1")
    params.write_text("{}")
    assert "p.json" in not_compiled(network, "--params", params)["where"]


def test_work_folder_that_can_not_be_written(not_compiled: Refused, network: Path, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file")
    error = not_compiled(network, "--work-dir", "w", code=3)
    assert "can't write here" in error["what"] and "--work-dir" in error["remedy"]


@pytest.mark.parametrize(("share", "says"), [(0.3, "too large"), (0.99, "size limit exceeded")])
def test_full_disk_leaves_the_old_artifact(share: float, says: str, network: Path, tmp_path: Path, tvmflow: Any) -> None:
    """A limit on the size of files stands for the disk: it is full when code is written, or when all is linked."""
    out = tmp_path / "net.so"
    command = ("compile", network, "-o", out, "--no-import-check", "--json")
    assert tvmflow(*command, "--work-dir", "another").returncode == 0
    room = int(share * out.stat().st_size)
    out.write_bytes(b"the old file")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    ran = tvmflow(*command, preexec_fn=limit)
    error = json.loads(ran.stdout)["error"]
    assert ran.returncode == 3, ran.stderr
    assert says in error["what"] and "Traceback" not in ran.stderr
    assert out.read_bytes() == b"the old file"
    assert [p for p in (tmp_path / ".tvmflow").rglob("*") if p.is_file()] == []


@pytest.fixture(scope="module")
def artifact(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow.compile(network, work_dir=tmp_path_factory.mktemp("artifact"), check_import=False).artifact.path


@pytest.fixture(scope="module")
def foreign(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact for another architecture."""
    return flow.compile(network, "rpi4", work_dir=tmp_path_factory.mktemp("foreign"), check_import=False).artifact.path


RUNS = ("run", "verify", "bench")


@pytest.mark.parametrize("verb", [*RUNS, "inspect"])
def test_damaged_artifact(refused: Refused, artifact: Path, verb: str) -> None:
    whole = artifact.read_bytes()
    Path("cut.so").write_bytes(whole[: len(whole) // 2])
    Path("flipped.so").write_bytes(whole[:6000] + bytes([whole[6000] ^ 4]) + whole[6001:])
    for name in ("cut.so", "flipped.so"):
        error = refused(verb, name)
        assert error["kind"] == "ArtifactError" and error["where"].endswith(name), error
        assert "damaged" in error["what"] or "truncated" in error["what"]


@pytest.mark.parametrize("verb", RUNS)
def test_artifact_for_another_architecture(refused: Refused, foreign: Path, verb: str) -> None:
    error = refused(verb, foreign)
    assert error["kind"] == "ArtifactError" and "aarch64" in error["what"] and error["remedy"]


@pytest.mark.parametrize("verb", RUNS)
def test_absent_board(refused: Refused, artifact: Path, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    error = refused(verb, artifact, "--board", address, code=3)
    assert error["kind"] == "BoardError" and "can't connect" in error["what"] and error["where"] == address


def test_absent_board_of_the_tuner(refused: Refused, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))  # TVM's own workers build the candidates
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    error = refused("tune", network, "--again", "--trials", "1", "--board", address, code=3)
    assert error["kind"] == "BoardError" and address in str(error)
