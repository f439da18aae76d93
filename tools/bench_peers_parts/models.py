"""The models, at any batch size, with data to calibrate and to measure with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from bench_peers_parts.environments import ROOT, Unavailable, environment, last_line
from onnx import numpy_helper

SAMPLES = 16
"""For calibration: dense integer arithmetic takes the same time whatever the values are."""
TRANSFORMERS = ("minilm_l6_v2",)
MODELS = ("resnet50", "mobilenetv2", "efficientnet_lite0", *TRANSFORMERS)


def get(name: str, batch: int, folder: Path, data: str | None) -> tuple[Path, Path]:
    """Model file and calibration file (npz, first axis = samples, each as the model takes it) in ``folder``.

    ``data``: calibration data as ``tvmflow.data`` takes it; seeded synthetic data when None. Raises Unavailable.
    """
    command = [sys.executable, str(ROOT / "tools" / "model_zoo"), "get", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise Unavailable(f"no model: {last_line(done.stderr)}")
    model = onnx.load(done.stdout.strip())
    inputs = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    single = from_data(data, model) if data else synthetic(model, np.random.default_rng(0))
    count = max(1, len(next(iter(single.values()))) // batch)
    columns = {
        name: np.resize(single[name], (count, batch, *single[name].shape[1:])).astype(dtype) for name, dtype in inputs.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    path, calibration = folder / f"{name}-batch{batch}.onnx", folder / f"{name}-batch{batch}.npz"
    onnx.save(with_batch(model, batch), path)
    np.savez(calibration, **columns)
    return path, calibration


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model for ``batch`` samples at a time: its inputs, and the shapes that it reshapes to, begin with a 1."""
    if batch == 1:
        return model
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for tensor in model.graph.initializer:
        if tensor.name in shapes:
            shape = numpy_helper.to_array(tensor).copy()
            if shape[0] == 1:
                shape[0] = batch
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def synthetic(model: onnx.ModelProto, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures with the spectrum of natural ones, or sentences of random words with padding."""
    names = [value.name for value in model.graph.input]
    if len(names) == 1:
        from networks import pictures  # type: ignore[import-not-found]  # tools/model_zoo

        found = [pictures(random) for _ in range(SAMPLES // 2)]
        return {names[0]: np.concatenate(found)}
    ids, mask = names
    length = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    present = np.arange(length) < random.integers(length // 8, length + 1, (SAMPLES, 1))
    words = random.integers(1000, 30000, (SAMPLES, length))
    return {ids: np.where(present, words, 0), mask: present.astype(np.int64)}


def from_data(data: str, model: onnx.ModelProto) -> Mapping[str, np.ndarray]:
    from tvmflow.data import load_data
    from tvmflow.model import TensorInfo

    infos = tuple(
        TensorInfo(
            value.name,
            tuple(d.dim_value for d in value.type.tensor_type.shape.dim),
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
        )
        for value in model.graph.input
    )
    found = [sample for sample, _ in zip(load_data(data, infos), range(SAMPLES), strict=False)]
    return {info.name: np.concatenate([sample[info.name] for sample in found]) for info in infos}
