"""A small model compiled by stock TVM: two kernels, two outputs, one of them exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tvmflow.build.artifact import Artifact, SelfTests, package
from tvmflow.build.manifest import Layer, Manifest, Provenance, SelfTest, Vector, Workspace
from tvmflow.model import TensorInfo
from tvmflow.target import Target, get_target

if TYPE_CHECKING:
    from tvmflow.build.compile import Built

ROWS, COLUMNS = 3, 40
WEIGHT = np.random.RandomState(0).randint(-9, 9, (COLUMNS, 7)).astype("float32")


def module() -> Any:
    """``sum = relu(x @ WEIGHT), wide = x + y``, on small integers in float32, where every order of summation is exact."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((ROWS, COLUMNS), "float32"))
    y = relax.Var("y", relax.TensorType((ROWS, COLUMNS), "float32"))
    with builder.function("main", [x, y]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(WEIGHT)))
            outputs = builder.emit_output(relax.Tuple([relax.op.nn.relu(product), relax.op.add(x, y)]))
        builder.emit_func_output(outputs)
    return builder.get()


def by_stock_tvm(module: Any, target: Target) -> Built:
    """A model with its constants in the VM."""
    from tvm import relax

    from tvmflow.build.compile import Built

    return Built(relax.build(module, target.host()), (), Workspace(), ())


def expected(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    return [np.maximum(x @ WEIGHT, 0), x + y]


def vector(seed: int) -> Vector:
    rng = np.random.RandomState(seed)
    inputs = [rng.randint(-9, 9, (ROWS, COLUMNS)).astype("float32") for _ in "xy"]
    return inputs, expected(*inputs)


@dataclass(frozen=True)
class Compiled:
    """The model for one target, before it is packaged."""

    target: Target
    built: Built

    vector = staticmethod(vector)

    def manifest(self, **changes: Any) -> Manifest:
        fields: dict[str, Any] = {
            "target": self.target.name,
            "arch": self.target.arch,
            "isa_required": self.target.features,
            "inputs": tuple(TensorInfo(name, (ROWS, COLUMNS), "float32") for name in "xy"),
            "outputs": (TensorInfo("sum", (ROWS, 7), "float32"), TensorInfo("wide", (ROWS, COLUMNS), "float32")),
            "precision": "fp32",
            "name": "tiny",
            "weight_bytes": WEIGHT.nbytes,
            "layers": (Layer("matmul", "matmul"), Layer("relu", "relu"), Layer("add", "add")),
            "provenance": Provenance(model_sha256="00" * 32, versions={"tvm": "0.27.0.post1"}),
            "self_test": SelfTest(bit_exact=True),
        }
        return Manifest(**{**fields, **changes})

    def package(self, out: Path, vectors: list[Vector] | SelfTests | None = None, **changes: Any) -> Artifact:
        return package(
            self.built, self.manifest(**changes), [vector(1), vector(2)] if vectors is None else vectors, self.target, out
        )


@pytest.fixture(scope="session")
def compiled() -> Callable[[str], Compiled]:
    """``compiled(target name)``."""
    done: dict[str, Compiled] = {}

    def build(name: str) -> Compiled:
        if name not in done:
            target = get_target(name)
            done[name] = Compiled(target, by_stock_tvm(module(), target))
        return done[name]

    return build


@pytest.fixture(scope="session")
def artifact(compiled: Callable[[str], Compiled], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The model for this machine."""
    return compiled("native").package(tmp_path_factory.mktemp("artifact") / "tiny.so")
