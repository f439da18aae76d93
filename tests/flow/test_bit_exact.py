"""Whole quantized graphs: every integer tensor of every instruction set that this machine runs equals the numpy oracle's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmflow.flow.compile import runs_here
from tvmflow.flow.lower import lower
from tvmflow.kernels.call import kernel_of
from tvmflow.target import get_target
from tvmflow.trace import Trace, silent

DATA = Path(__file__).parents[1] / "data"
TARGETS = ("native", "x86-avx512-vnni", "x86-64-v4", "avx-vnni", "x86-64-v3", "x86-64")


@pytest.fixture(scope="session")
def reference_of(every_kernel: dict[str, Any], bit_exact: Any) -> Any:
    """The oracle's tensors by storage type."""

    @lru_cache
    def of(storage: str) -> Any:
        options = dict(every_kernel)
        target = get_target("x86-64" if storage == "uint8" else "rpi4")
        lowered = lower(options.pop("model"), target, Trace(None, silent), **options)
        return bit_exact.reference(lowered, samples=1)

    return of


def assert_exact(row: Any) -> None:
    assert row.integers.tensors > 0 and row.integers.elements > 0
    assert row.integers.bits == 0, f"first tensor that differs: {row.integers.worst}"
    assert row.outputs.bits == 0, f"first output that differs: {row.outputs.worst}"


def test_network_has_every_kind_of_kernel(reference_of: Any) -> None:
    main = reference_of("uint8").lowered.model.module["main"]
    specs = [kernel_of(b.value) for block in main.body.blocks for b in block.bindings]
    kinds = {type(s).__name__ + getattr(s, "fn", "") for s in specs if s is not None}
    assert kinds >= {"Conv2d", "Pool2dmax", "Pool2davg", "Lookup", "Quantize", "Binarymul"}, kinds
    convolutions = [s for s in specs if type(s).__name__ == "Conv2d"]
    assert any(s.residual for s in convolutions) and any(s.is_depthwise for s in convolutions)
    assert any(1 < s.groups < s.ic for s in convolutions) and any(s.oh == s.ow == s.kh == 1 for s in convolutions)
    assert reference_of("uint8").lowered.coverage.float == 0


@pytest.mark.parametrize("name", TARGETS)
def test_every_integer_tensor(name: str, reference_of: Any, bit_exact: Any, tmp_path: Path) -> None:
    target = get_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine can't run {name}")
    place = bit_exact.Place(target, "")
    assert_exact(bit_exact.measure(place, reference_of(target.int8.storage), "none", tmp_path))


def test_storage_types_differ_by_128(reference_of: Any, bit_exact: Any) -> None:
    found = bit_exact.between_storages({s: reference_of(s) for s in ("uint8", "int8")})
    assert found.tensors > 10 and found.bits == 0, found.worst


def test_signed_storage_runs_here(reference_of: Any, bit_exact: Any, tmp_path: Path) -> None:
    """A graph for ARM on this machine: the next instruction that takes signed operands serves, with the same bits."""
    assert_exact(bit_exact.measure(bit_exact.Place(get_target("native"), ""), reference_of("int8"), "none", tmp_path))


def test_comparison_sees_one_bit(bit_exact: Any) -> None:
    want = np.arange(12, dtype=np.int8).reshape(3, 4)
    got = want.copy()
    got[1, 2] ^= 4
    found = bit_exact.compare(["t"], [got], [want])
    assert (found.elements, found.differing, found.bits, found.worst) == (12, 1, 1, "t")
    assert bit_exact.compare(["t"], [want.astype(np.int16)], [want]).differing == 12


@pytest.mark.slow
def test_mobilenet(bit_exact: Any, tmp_path: Path) -> None:
    """A trained network on this machine and on the least x86 processor."""
    lowered = lower(
        DATA / "mobilenetv2_mnist32.onnx", get_target("x86-64"), Trace(None, silent),
        quantize="int8", calibration=f"{DATA / 'mnist_calibration.npz'}[0:32]", check_import=False, work_dir=tmp_path,
    )  # fmt: skip
    assert lowered.coverage.float == 0
    reference = bit_exact.reference(lowered, samples=1)
    for name in ("native", "x86-64"):
        if runs_here(get_target(name)) and get_target(name).int8.storage == "uint8":
            assert_exact(bit_exact.measure(bit_exact.Place(get_target(name), ""), reference, "none", tmp_path))
