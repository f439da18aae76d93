"""LiteRT (TensorFlow Lite) with XNNPACK: converted by litert-torch, int8 by the AI Edge Quantizer, float at both ends."""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from bench_peers_parts.worker import Run, samples


def version() -> str:
    return installed("ai-edge-litert")


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    import litert_torch
    import torch
    from bench_peers_parts.onnx_to_torch import Network

    network, data = Network(model).eval(), samples(calibration)
    arguments = tuple(torch.from_numpy(data[0][name]) for name in network.inputs)
    with torch.no_grad():
        litert_torch.convert(network, arguments).export(str(folder / "float.tflite"))
    (folder / "inputs.txt").write_text("\n".join(network.inputs))
    if precision == "fp32":
        (folder / "float.tflite").replace(folder / "model.tflite")
    else:
        quantize(folder / "float.tflite", folder / "model.tflite", precision, network.inputs, data)
        (folder / "float.tflite").unlink()


def quantize(source: Path, out: Path, precision: str, inputs: list[str], data: list[dict[str, np.ndarray]]) -> None:
    from ai_edge_quantizer import qtyping, quantizer, recipe

    if precision == "int8-dynamic":
        quantizer.Quantizer(str(source), recipe.dynamic_wi8_afp32()).quantize().export_model(str(out))
        return
    tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", end, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)
    interpreter = Interpreter(str(source))
    ((signature, _),) = interpreter.get_signature_list().items()
    interpreter.allocate_tensors()
    places = [(name, *place) for name, place in zip(inputs, signature_inputs(interpreter), strict=True)]
    feeds = [{place: sample[name].astype(dtype, copy=False) for name, place, dtype in places} for sample in data]
    tool.quantize(tool.calibrate({signature: feeds})).export_model(str(out))


def signature_inputs(interpreter: Interpreter) -> list[tuple[str, Any]]:
    """Name and dtype of each input, in the order of the network's: the converter makes 32-bit integers of 64-bit ones."""
    details = interpreter.get_signature_runner().get_input_details()
    return [(name, details[name]["dtype"]) for name in sorted(details, key=lambda name: int(name.rpartition("_")[2]))]


def serve(folder: Path, precision: str, threads: int) -> Run:
    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    inputs = (folder / "inputs.txt").read_text().split("\n")
    signature = interpreter.get_signature_runner()
    places = [(name, *place) for name, place in zip(inputs, signature_inputs(interpreter), strict=True)]

    def run(given: dict[str, np.ndarray]) -> np.ndarray:
        outputs = signature(**{place: given[name].astype(dtype, copy=False) for name, place, dtype in places})
        (result,) = outputs.values()
        return result

    return run
