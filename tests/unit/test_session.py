"""A loaded model: calls, wrong inputs in words, refusal before dlopen, threads, timing, self-test, no compiler needed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tvmflow.runtime.session as session_module
from tvmflow.build.artifact import Artifact, package
from tvmflow.build.manifest import Manifest, SelfTest, read_self_test
from tvmflow.errors import ArtifactError, DataError, EnvironmentProblem
from tvmflow.runtime import cpu, library
from tvmflow.runtime.session import Session, check_machine, load
from tvmflow.runtime.verify import max_abs_error, verify

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Iterator[Session]:
    with load(artifact.path, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def vector(artifact: Artifact) -> tuple[list[np.ndarray], list[np.ndarray]]:
    inputs, outputs = read_self_test(artifact.path)[0]
    return list(inputs), list(outputs)


def test_call(session: Session, vector: Any) -> None:
    for _ in range(2):
        for got, want in zip(session(*vector[0]), vector[1], strict=True):
            np.testing.assert_array_equal(got, want, strict=True)


def test_outputs_are_the_callers_own(session: Session, vector: Any) -> None:
    first = session(*vector[0])
    kept = [array.copy() for array in first]
    session(*(array + 1 for array in vector[0]))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_outputs_that_the_runtime_has_to_fetch(artifact: Artifact, vector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a GPU."""
    with load(artifact.path, threads=1) as loaded:
        monkeypatch.setattr(loaded, "_on_cpu", False)
        for got, want in zip(loaded(*vector[0]), vector[1], strict=True):
            np.testing.assert_array_equal(got, want, strict=True)


def test_run_by_name_in_any_order(session: Session, vector: Any) -> None:
    (x, y), (total, wide) = vector
    outputs = session.run({"y": y, "x": x})
    assert list(outputs) == ["sum", "wide"]
    np.testing.assert_array_equal(outputs["sum"], total)
    np.testing.assert_array_equal(outputs["wide"], wide)


def test_strided_and_dlpack_inputs(session: Session, vector: Any) -> None:
    class OnlyDlpack:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    (x, y), outputs = vector
    strided = np.asfortranarray(x)
    assert not strided.flags.c_contiguous
    for got, want in zip(session(strided, OnlyDlpack(y)), outputs, strict=True):
        np.testing.assert_array_equal(got, want)


def test_wrong_inputs(session: Session, vector: Any) -> None:
    x, y = vector[0]
    with pytest.raises(DataError, match="1 inputs given, the model takes 2: x, y"):
        session(x)
    with pytest.raises(DataError, match="'x' has shape 3x39, the model takes 3x40"):
        session(x[:, 1:], y)
    with pytest.raises(DataError, match="'y' is float64, the model takes float32") as caught:
        session(x, y.astype("float64"))
    assert "astype" in caught.value.remedy
    with pytest.raises(DataError, match="no input 'z'"):
        session.run({"x": x, "z": y})
    with pytest.raises(DataError, match="missing inputs: y"):
        session.run({"x": x})


def test_tensor_elsewhere(session: Session, vector: Any) -> None:
    class OnGpu:
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("it lies on a GPU")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(DataError, match="'x' can't be read"):
        session(OnGpu(), vector[0][1])
    with pytest.raises(DataError, match="'x' can't be read"):
        session([[1.0], [1.0, 2.0]], vector[0][1])


def test_closed(artifact: Artifact, vector: Any) -> None:
    loaded = load(artifact.path, threads=1)
    loaded.close()
    with pytest.raises(DataError, match="closed"):
        loaded(*vector[0])


def test_benchmark(session: Session, vector: Any) -> None:
    inputs = dict(zip("xy", vector[0], strict=True))
    times = session.benchmark(inputs, repeat=7, number=3)
    assert len(times) == 7 and min(times) > 0


def test_profile_follows_the_layers_of_the_manifest(session: Session, vector: Any) -> None:
    inputs = dict(zip("xy", vector[0], strict=True))
    profile = session.profile(inputs, runs=3)
    assert [name for name, _ in profile.kernels] == [layer.name for layer in session.manifest.layers]
    assert profile.whole > 0 and all(ms >= 0 for _, ms in profile.kernels)
    np.testing.assert_array_equal(session(*vector[0])[0], vector[1][0])
    assert session.profile(inputs, runs=1).whole > 0


def test_verify(artifact: Artifact, session: Session) -> None:
    for source in (artifact.path, str(artifact.path), session):
        result = verify(source)
        assert result.to_json() == {"passed": True, "vectors": 2, "max_abs_error": 0.0, "bit_exact": True}


def wrong_vector(compiled: Any) -> Any:
    inputs, (total, wide) = compiled.vector(1)
    return inputs, [total, wide + np.float32(0.25)]


def test_verify_notices_other_numbers(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    native = compiled("native")
    result = verify(native.package(tmp_path / "wrong.so", [native.vector(2), wrong_vector(native)]).path)
    assert result.to_json() == {"passed": False, "vectors": 2, "max_abs_error": 0.25, "bit_exact": False}


@pytest.mark.parametrize(("tolerance", "passed"), [(0.3, True), (0.2, False)])
def test_verify_with_a_tolerance(compiled: Callable[[str], Any], tmp_path: Path, tolerance: float, passed: bool) -> None:
    native = compiled("native")
    promise = SelfTest(bit_exact=False, tolerance=tolerance)
    result = verify(native.package(tmp_path / "float.so", [wrong_vector(native)], self_test=promise).path)
    assert (result.passed, result.bit_exact) == (passed, False)


def test_verify_without_vectors_does_not_pass(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    assert not verify(compiled("native").package(tmp_path / "none.so", []).path).passed


def test_error_of_what_is_no_number() -> None:
    nan, inf = np.float32([1, np.nan]), np.float32([1, np.inf])
    assert max_abs_error(nan, nan) == max_abs_error(inf, inf) == 0
    assert max_abs_error(nan, inf) == max_abs_error(nan, np.float32([1, 2])) == max_abs_error(inf, nan) == np.inf
    assert max_abs_error(np.uint8([1]), np.uint8([255])) == 254
    assert max_abs_error(np.zeros(2), np.zeros(3)) == np.inf


@pytest.fixture
def no_dlopen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever refuses must do so before a session is made, that is before the library is mapped."""
    monkeypatch.setattr(session_module, "Session", lambda *_: pytest.fail("the file was loaded"))


@pytest.mark.usefixtures("no_dlopen")
def test_other_cpu_is_refused(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    native = compiled("native")
    path = native.package(tmp_path / "amx.so", isa_required=(*native.target.features, "amx_int8_fake")).path
    with pytest.raises(ArtifactError, match="this machine lacks: amx_int8_fake") as caught:
        load(path)
    assert "-t native" in caught.value.remedy and caught.value.exit_code == 1


@pytest.mark.usefixtures("no_dlopen")
def test_damage_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    content = bytearray(artifact.path.read_bytes())
    content[5000] ^= 1
    path = tmp_path / "flipped.so"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        load(path)


@pytest.mark.usefixtures("no_dlopen")
def test_other_device_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="for the device 'cpu', not 'cuda'"):
        load(artifact.path, device="cuda")


def test_other_architecture_and_older_libc_are_refused(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(**changes: Any) -> Manifest:
        return msgspec.structs.replace(artifact.manifest, **changes)

    other = "aarch64" if cpu.arch() != "aarch64" else "x86_64"
    with pytest.raises(ArtifactError, match=f"compiled for {other}, this machine is {cpu.arch()}"):
        check_machine(altered(arch=other), "f")
    monkeypatch.setattr(cpu, "glibc_version", lambda: (2, 17))
    with pytest.raises(ArtifactError, match=r"needs glibc 2\.27, this system has 2\.17"):
        check_machine(altered(), "f")
    monkeypatch.setattr(cpu, "glibc_version", lambda: ())
    check_machine(altered(), "f")


def test_absent_gpu_is_an_environment_problem(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a GPU")
    path = compiled("native").package(tmp_path / "gpu.so", device="cuda").path
    with pytest.raises(EnvironmentProblem, match="no cuda device"):
        load(path, threads=1)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads(artifact: Artifact, threads: int) -> None:
    with pytest.raises(DataError, match="threads must be 1 or more"):
        load(artifact.path, threads=threads)


def in_fresh_process(program: str, *arguments: object, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TVM_")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_runtime_without_the_compiler(artifact: Artifact) -> None:
    said = in_fresh_process(
        """
        import sys
        import numpy as np
        from tvmflow.runtime.session import load
        from tvmflow.runtime.verify import verify
        with load(sys.argv[1], threads=1) as session:
            assert verify(session).passed
            inputs = {name: np.ones((3, 40), "float32") for name in "xy"}
            assert len(session.profile(inputs, 2).kernels) == 3
            assert len(session.benchmark(inputs, 2)) == 2
        maps = open("/proc/self/maps").read()
        print("libtvm_runtime" in maps, "libtvm_compiler" in maps)
        print(sorted({"tvm", "torch", "onnx", "onnxruntime", "typer", "rich", "xgboost"} & set(sys.modules)))
        """,
        artifact.path,
    )
    assert said.split("\n")[:2] == ["True False", "[]"]


def test_beside_tvm_and_torch(artifact: Artifact) -> None:
    """A session takes no notice of who else uses TVM or torch in the process, and leaves both usable."""
    said = in_fresh_process(
        """
        import importlib.util, sys
        import numpy as np
        from tvmflow.runtime.session import load
        inputs = {name: np.ones((3, 40), "float32") for name in "xy"}
        first = load(sys.argv[1], threads=1)
        wanted = first.run(inputs)["sum"]
        if importlib.util.find_spec("torch"):
            import torch
            assert (first(torch.ones(3, 40), torch.ones(3, 40))[0] == wanted).all()
        import tvm
        from tvm import relax
        builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((4,), "float32"))
        with builder.function("main", [x]):
            builder.emit_func_output(builder.emit(relax.op.add(x, x)))
        machine = relax.VirtualMachine(relax.build(builder.get(), tvm.target.Target("llvm")), tvm.cpu())
        assert (machine["main"](tvm.runtime.tensor(np.ones(4, "float32"))).numpy() == 2).all()
        second = load(sys.argv[1], threads=1)
        for session in (first, second):
            assert (session.run(inputs)["sum"] == wanted).all()
        print("fine")
        """,
        artifact.path,
    )
    assert said == "fine\n"


def test_close_gives_the_file_back(artifact: Artifact) -> None:
    said = in_fresh_process(
        """
        import sys
        import numpy as np
        from tvmflow.runtime.session import load
        with load(sys.argv[1], threads=1) as session:
            outputs = session(*(np.ones((3, 40), "float32") for _ in "xy"))
            print(sys.argv[1] in open("/proc/self/maps").read(), end=" ")
        print(sys.argv[1] in open("/proc/self/maps").read(), outputs[0].shape)
        """,
        artifact.path.resolve(),
    )
    assert said.startswith("True False")


def test_no_tvm_is_an_environment_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentProblem, match="can't be loaded: the package apache-tvm is not installed"):
        library.load_runtime()


def test_runtime_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARIES", ("tvm_runtime_absent",))
    with pytest.raises(EnvironmentProblem, match="can't be loaded.*libtvm_runtime_absent"):
        library.load_runtime()


@pytest.mark.skipif(cpu.physical_cores() < 2, reason="needs two cores")
def test_each_session_and_each_caller_gets_its_threads(artifact: Artifact) -> None:
    """The environment's TVM_NUM_THREADS=1 does not cap what is asked for, and nothing pins the process to a core."""
    said = in_fresh_process(
        """
        import sys, threading, tvm
        from tvmflow.runtime.session import load
        two = load(sys.argv[1], threads=2)
        one = load(sys.argv[1], threads=1)
        import numpy as np
        inputs = {n: np.ones((3, 40), "float32") for n in "xy"}
        for session in (two, one, two):
            session.run(inputs)
            print(tvm.runtime.num_threads(), end=" ")
        thread = threading.Thread(target=lambda: (one.run(inputs), print(tvm.runtime.num_threads(), end=" ")))
        thread.start(); thread.join()
        import os
        print(len(os.sched_getaffinity(0)))
        """,
        artifact.path,
        TVM_NUM_THREADS="1",
    )
    assert said.split() == ["2", "1", "2", "1", str(len(cpu.allowed_cpus()))]


@pytest.mark.parametrize("borrowed", [(), ("x",)])
@pytest.mark.parametrize("locked", [False, True])
def test_inputs_at_any_address(borrowed: tuple[str, ...], locked: bool, tmp_path: Path) -> None:
    """A quantization reads the caller's array where it is; one that NumPy does not lend is copied."""
    from tvm import relax

    from tvmflow.build.compile import compile_module
    from tvmflow.kernels.call import kernel_call
    from tvmflow.kernels.spec import Quantize
    from tvmflow.model import Model, TensorInfo
    from tvmflow.schedule.apply import schedule
    from tvmflow.target import get_target

    target, infos = get_target("native"), (TensorInfo("x", (16, 64), "float32"), TensorInfo("q", (16, 64), "uint8"))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((16, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            parameters = [relax.const(np.full(1, value)) for value in (np.float32(0.5), np.int32(128))]
            codes = builder.emit_output(builder.normalize(kernel_call(Quantize((16, 64)), [x, *parameters])))
        builder.emit_func_output(codes)
    model, _ = schedule(Model(builder.get(), infos[:1], infos[1:], "quantize"), target)
    facts = Manifest(
        target.name, target.arch, target.features, infos[:1], infos[1:], "int8", borrowed=borrowed, self_test=SelfTest()
    )
    path = package(compile_module(model.module, target), facts, [], target, tmp_path / "q.so").path
    values = np.arange(16 * 64, dtype=np.float32).reshape(16, 64) % 61
    with load(path, threads=1) as session:
        for offset in range(0, 64, 4):
            memory = np.zeros(values.nbytes + 128, np.uint8)
            start = -memory.ctypes.data % 64 + offset
            array = memory[start : start + values.nbytes].view(np.float32).reshape(16, 64)
            array[:] = values
            array.flags.writeable = not locked
            np.testing.assert_array_equal(session(array), 128 + 2 * values)
