"""ncnn: converted by pnnx; float in fp32 throughout, int8 by its own scheme. It takes one sample at a time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
import onnx
from bench_peers_parts import ncnn_int8
from bench_peers_parts.worker import Run, samples


def version() -> str:
    return ncnn.__version__


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    data = samples(calibration)
    if any(len(value) != 1 for value in data[0].values()):
        raise NotImplementedError("ncnn takes one sample at a time")
    names = [value.name for value in onnx.load(model, load_external_data=False).graph.input]
    (folder / "inputs.txt").write_text("\n".join(names))
    copy = Path(shutil.copyfile(model, folder / "model.onnx"))
    kinds = {"float32": "f32", "int64": "i64"}
    shapes = ",".join(f"[{','.join(map(str, data[0][n].shape))}]{kinds[data[0][n].dtype.name]}" for n in names)
    tool = Path(sys.executable).with_name("pnnx")
    subprocess.run([tool, copy, f"inputshape={shapes}", "fp16=0"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    param, weights = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    if precision == "fp32":
        param.replace(folder / "model.param")
        weights.replace(folder / "model.bin")
    else:
        _, layers = ncnn_int8.read(param)
        wanted = ncnn_int8.inputs_of(layers)
        net, largest = network(param, weights, 1), dict.fromkeys(wanted, 0.0)
        for sample in data:
            extractor = fed(net, sample, names)
            extractor.set_light_mode(False)
            for blob in wanted:
                largest[blob] = max(largest[blob], float(np.abs(extracted(extractor, blob)).max()))
        ncnn_int8.quantize(param, weights, largest, folder)
    for path in [copy, *folder.glob("model.*nnx*"), *folder.glob("model_*.py"), *folder.glob("model.ncnn.*")]:
        path.unlink(missing_ok=True)


def network(param: Path, weights: Path, threads: int) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    # Float layers in float32: no storage and no arithmetic in 16 bits.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise RuntimeError("ncnn can't load the model")
    return net


def fed(net: Any, inputs: dict[str, np.ndarray], names: list[str]) -> Any:
    extractor = net.create_extractor()
    for number, name in enumerate(names):
        value = inputs[name][0]
        extractor.input(f"in{number}", ncnn.Mat(value.astype(np.int32) if value.dtype == np.int64 else value))
    return extractor


def extracted(extractor: Any, blob: str) -> np.ndarray:
    status, value = extractor.extract(blob)
    if status:
        raise RuntimeError(f"ncnn can't compute {blob}")
    return np.array(value)


def serve(folder: Path, precision: str, threads: int) -> Run:
    net = network(folder / "model.param", folder / "model.bin", threads)
    names = (folder / "inputs.txt").read_text().split("\n")
    return lambda inputs: extracted(fed(net, inputs, names), "out0")
