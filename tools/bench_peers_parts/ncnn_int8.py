"""Post-training quantization of an ncnn network, as its tools ``ncnn2table`` and ``ncnn2int8`` do it, which its package lacks.

Weights per output channel, activations per tensor, symmetric, by the largest magnitude. A convolution whose output goes into
convolutions only writes int8. The files: Tencent/ncnn, docs/developer-guide/param-and-model-file-structure.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")
QUANTIZED = (*CONVOLUTIONS, "InnerProduct")
WEIGHTLESS = ("BinaryOp", "Clip", "Flatten", "Input", "Pooling", "ReLU", "Reshape", "Softmax", "Split")
INT8_TAG = 0x000D4B38
INT8_SCALE_TERM = "8"
WRITES_INT8 = 100


@dataclass(frozen=True)
class Layer:
    """One line of the ``.param`` file."""

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...]

    def value(self, key: str, default: int = 0) -> int:
        return int(dict(self.parameters).get(key, default))

    @property
    def sizes(self) -> tuple[int, int]:
        """Of weights and bias."""
        if self.kind == "InnerProduct":
            return self.value("2"), self.value("0") * self.value("1")
        return self.value("6"), self.value("0") * self.value("5")

    @property
    def line(self) -> str:
        counts = f"{len(self.bottoms)} {len(self.tops)}"
        parameters = [f"{key}={value}" for key, value in self.parameters]
        return " ".join([self.kind, self.name, counts, *self.bottoms, *self.tops, *parameters])


def read(param: Path) -> tuple[list[str], list[Layer]]:
    """The two lines of the header, and the layers."""
    lines = param.read_text().splitlines()
    layers = []
    for line in lines[2:]:
        kind, name, bottoms, tops, *rest = line.split()
        split = int(bottoms), int(bottoms) + int(tops)
        pairs = tuple((key, value) for key, _, value in (item.partition("=") for item in rest[split[1] :]))
        layers.append(Layer(kind, name, tuple(rest[: split[0]]), tuple(rest[split[0] : split[1]]), pairs))
    return lines[:2], layers


def inputs_of(layers: list[Layer]) -> list[str]:
    """Blobs whose range is needed. Raises NotImplementedError for a network that this can't quantize."""
    if other := sorted({layer.kind for layer in layers} - {*QUANTIZED, *WEIGHTLESS}):
        raise NotImplementedError(
            f"only convolutions and inner products are quantized for ncnn; the network has {', '.join(other)}"
        )
    return list(dict.fromkeys(layer.bottoms[0] for layer in layers if layer.kind in QUANTIZED))


def quantize(param: Path, weights: Path, largest: Mapping[str, float], folder: Path) -> None:
    """Writes ``model.param`` and ``model.bin``. ``largest``: magnitude of each blob of ``inputs_of``."""
    header, layers = read(param)
    scales = {blob: 127 / max(value, 1e-6) for blob, value in largest.items()}
    data, position, lines, parts = weights.read_bytes(), 0, [], []
    for layer in layers:
        if layer.kind not in QUANTIZED:
            lines.append(layer.line)
            continue
        size, biases = layer.sizes
        (tag,) = np.frombuffer(data, np.uint32, 1, position)
        if tag:
            raise NotImplementedError(f"weights of {layer.name} that are not float32")
        values = np.frombuffer(data, np.float32, size, position + 4)
        bias = np.frombuffer(data, np.float32, biases, position + 4 + 4 * size)
        position += 4 + 4 * (size + biases)
        rows = values.reshape(layer.value("0"), -1)
        factors = 127 / np.maximum(np.abs(rows).max(1), 1e-12)
        integers = np.clip(np.rint(rows * factors[:, None]), -127, 127).astype(np.int8).tobytes()
        after = output_scale(layer, layers, scales)
        parts += [np.uint32(INT8_TAG).tobytes(), integers + b"\0" * (-len(integers) % 4), bias.tobytes()]
        parts += [np.array([*factors, scales[layer.bottoms[0]], *[after] * bool(after)], np.float32).tobytes()]
        term = str(1 + WRITES_INT8 * bool(after))
        lines.append(replace(layer, parameters=(*layer.parameters, (INT8_SCALE_TERM, term))).line)
    (folder / "model.param").write_text("\n".join([*header, *lines]) + "\n")
    (folder / "model.bin").write_bytes(b"".join(parts))


def output_scale(layer: Layer, layers: list[Layer], scales: dict[str, float]) -> float:
    """The scale of a convolution's output when it is needed as int8 only; else 0."""
    users = [user for user in layers if set(layer.tops) & set(user.bottoms)]
    if len(users) == 1 and users[0].kind == "Split":
        users = [user for user in layers if set(users[0].tops) & set(user.bottoms)]
    if layer.kind not in CONVOLUTIONS or not users or any(user.kind not in CONVOLUTIONS for user in users):
        return 0.0
    # A split's blobs are one tensor: their ranges are the same.
    return scales[users[0].bottoms[0]]
