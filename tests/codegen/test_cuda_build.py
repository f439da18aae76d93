"""CUDA artifacts: real machine code, without a GPU; what is missing is an error, never a silent fallback."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.codegen.cuda_emulator import Emulated
from tvmflow.build import cuda
from tvmflow.build.compile import lower
from tvmflow.errors import EnvironmentProblem, MissingTool
from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.interpret import interpret
from tvmflow.model import Model
from tvmflow.schedule.apply import schedule
from tvmflow.target import get_target

DATA = Path(__file__).parent.parent / "data"
FATBIN = b"\x50\xed\x55\xba"
SM = {"jetson-orin-nano": "sm_87", "rtx-3090": "sm_86", "a100": "sm_80", "h100": "sm_90", "h200": "sm_90"}


def network() -> tvm.IRModule:
    """Quantize, convolution, depthwise with residual, pool, a float operator between, all with names that C does not allow."""
    rng = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    x = relax.Var("input:0", relax.TensorType((1, 3, 9, 9), "float32"))

    def numbers(*values: int) -> Any:
        return relax.const(np.array(values, np.int32))

    def weights(*shape: int) -> list[Any]:
        scale = (rng.uniform(0.5, 2, shape[0]) / 3000).astype(np.float32)
        return [
            relax.const(rng.integers(-127, 128, shape).astype(np.int8)),
            relax.const(rng.integers(-500, 500, shape[0]).astype(np.int32)),
            relax.const(scale),
        ]

    with builder.function("main", [x]):
        with builder.dataflow():
            quantize = ks.Quantize((1, 9, 9, 3), nchw=True, y="int8")
            q = builder.emit(kernel_call(quantize, [x, relax.const(np.array([0.02], np.float32)), numbers(3)]), "/in")
            conv = ks.Conv2d(1, 9, 9, 3, 20, 3, 3, pad=(1, 1, 1, 1), x="int8", y="int8")
            a = builder.emit(kernel_call(conv, [q, *weights(20, 3, 3, 3), numbers(3, -5, -128, 127)]), "/features/0/Conv")
            depthwise = ks.Conv2d(1, 9, 9, 20, 20, 3, 3, pad=(1, 1, 1, 1), groups=20, x="int8", y="int8", residual=True)
            quant = numbers(-5, 7, -128, 127, 7, -5, 1, -128, 127, 300, 200, 9)
            b = builder.emit(kernel_call(depthwise, [a, *weights(20, 3, 3, 1), quant, a]), "/features/1/Conv")
            flipped = builder.emit(relax.op.flip(b, 1), "/features/2/Flip")
            pool = ks.Pool2d("max", 1, 9, 9, 20, 3, 3, (2, 2), x="int8", y="int8")
            out = builder.emit_output(kernel_call(pool, [flipped]), "y")
        builder.emit_func_output(out)
    return builder.get()


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator compiles C++: g++ is not installed")
def test_a_whole_program_equals_the_interpreter() -> None:
    """Relax VM, memory plan, host code, launches: all of it the real thing, but for the device."""
    target = get_target("h100")
    module = network()
    sample = np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32)
    (expected,), _ = interpret(module, [sample])
    scheduled, kernels = schedule(Model(module, (), (), "network"), target)
    assert [k.template for k in kernels] == ["cuda_quantize", "cuda_conv2d", "cuda_depthwise", "cuda_pool2d"]
    device = target.device()
    tvm.register_global_func("__tvm_set_device", lambda *_: None, override=True)
    with device, tvm.transform.PassContext(opt_level=3, config={**cuda.PASS_CONFIG, "tirx.disable_assert": True}):
        lowered, calls, *_ = lower(scheduled.module, target)
        executable = relax.build(lowered, device, relax_pipeline=tvm.transform.Sequential([]))
    assert len(calls) == len(kernels) + 1
    (code,) = cuda.cuda_modules(executable.mod)
    emulated = Emulated(code.inspect_source())
    for host in executable.mod.imports:
        host.clear_imports()
    machine = relax.VirtualMachine(executable, tvm.cpu())
    for emulated.backwards in (False, True):
        np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(sample)).numpy(), expected)


def test_source_instead_of_machine_code_is_an_error() -> None:
    class Source:
        kind, imports = "cuda", ()

        def is_runnable(self) -> bool:
            return False

    with pytest.raises(EnvironmentProblem, match="source instead of machine code"):
        cuda.expect_machine_code(Source())


def test_no_compiler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cuda, "_pip_toolkit", lambda: None)
    with pytest.raises(MissingTool, match="CUDA compiler") as caught:
        cuda.find_compiler()
    assert "pip install" in caught.value.remedy


@pytest.mark.cuda
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", SM)
def test_artifact_holds_machine_code(name: str, tmp_path: Path) -> None:
    import tvmflow

    result = tvmflow.compile(
        str(DATA / "mobilenetv2_mnist32.onnx"),
        name,
        quantize="int8",
        calibration=f"{DATA / 'mnist_calibration.npz'}[0:16]",
        work_dir=tmp_path,
        check_import=False,
    )
    content = result.artifact.path.read_bytes()
    assert FATBIN in content
    assert b"__global__" not in content
    manifest = result.artifact.manifest
    assert (manifest.device, manifest.device_arch) == ("cuda", SM[name])
    assert manifest.kernels["specialised"] == manifest.kernels["total"]
    assert manifest.self_test.bit_exact
