"""ResNet-18/50/101/152 (He et al. 2015, stride in the 3x3 convolution) and MobileNetV2 (Sandler et al. 2018) at 1x3x224x224.

No package ships them with trained weights: these are the true architectures with seeded He weights and calibrated batch norms,
for latency and for whole-graph coverage. Accuracy means nothing here.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from builder import Graph

SAMPLES = 2
"""Pictures that the batch norms' statistics are taken from."""


class Network(Graph):
    """A graph with the layers of image classifiers: seeded weights, convolutions with batch norm."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        super().__init__(name, {"input": pictures(self.random)}, {"input": (1, 3, 224, 224)})

    def conv(self, x: str, name: str, channels: int, kernel: int, stride: int = 1, groups: int = 1, gain: float = 1.0) -> str:
        """Convolution without bias, then batch norm whose output has a standard deviation of about ``gain``."""
        fan_in = self.values[x].shape[1] // groups
        deviation = math.sqrt(2 / (fan_in * kernel * kernel))
        values = self.random.normal(0, deviation, (channels, fan_in, kernel, kernel)).astype(np.float32)
        weight = self.weight(f"{name}.weight", values)
        pad = kernel // 2
        y = self.add(
            "Conv",
            [x, weight],
            f"/{name}/Conv",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad, pad, pad, pad],
            group=groups,
        )
        found = self.values[y]
        parameters = {
            "scale": gain * self.random.uniform(0.8, 1.2, channels),
            "bias": self.random.normal(0, 0.1, channels),
            "mean": found.mean(axis=(0, 2, 3)),
            "variance": found.var(axis=(0, 2, 3)) + 1e-3,
        }
        names = [self.weight(f"{name}.bn.{key}", value.astype(np.float32)) for key, value in parameters.items()]
        return self.add("BatchNormalization", [y, *names], f"/{name}/BatchNormalization", epsilon=1e-5)

    def relu(self, x: str, name: str) -> str:
        return self.add("Relu", [x], f"/{name}/Relu")

    def relu6(self, x: str, name: str) -> str:
        bounds = [self.weight(n, np.float32(v)) for n, v in (("relu6.low", 0.0), ("relu6.high", 6.0))]
        return self.add("Clip", [x, *bounds], f"/{name}/Clip")

    def classifier(self, x: str, classes: int = 1000) -> onnx.ModelProto:
        """Global average pool and dense layer; ends the network."""
        x = self.add("GlobalAveragePool", [x], "/pool/GlobalAveragePool")
        x = self.add("Flatten", [x], "/flatten/Flatten", axis=1)
        features = self.values[x].shape[1]
        weight = self.weight(
            "classifier.weight", self.random.normal(0, math.sqrt(1 / features), (classes, features)).astype(np.float32)
        )
        bias = self.weight("classifier.bias", np.zeros(classes, np.float32))
        return self.model(self.add("Gemm", [x, weight, bias], "/classifier/Gemm", transB=1), "logits")


def pictures(random: np.random.Generator) -> np.ndarray:
    """float32 [SAMPLES, 3, 224, 224]: noise with the 1/f spectrum of natural pictures, each channel of mean 0 and variance 1."""
    frequency = np.hypot(np.fft.fftfreq(224)[:, None], np.fft.rfftfreq(224)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.normal(size=(SAMPLES, 3, 224, 224))) / frequency
    x = np.fft.irfft2(spectrum, s=(224, 224))
    return ((x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)).astype(np.float32)


def resnet(depth: int) -> onnx.ModelProto:
    """ResNet of 18 (basic blocks), 50, 101 or 152 (bottlenecks) layers."""
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    net = Network(f"resnet{depth}")
    x = net.relu(net.conv("input", "stem", 64, 7, stride=2), "stem")
    x = net.add("MaxPool", [x], "/stem/MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, count in enumerate(blocks):
        width, stride = 64 << stage, 1 if stage == 0 else 2
        for i in range(count):
            x = _residual(net, x, f"layer{stage + 1}.{i}", width, stride if i == 0 else 1, bottleneck=depth > 18)
    return net.classifier(x)


def _residual(net: Network, x: str, name: str, width: int, stride: int, *, bottleneck: bool) -> str:
    out = 4 * width if bottleneck else width
    if bottleneck:
        y = net.relu(net.conv(x, f"{name}.conv1", width, 1), f"{name}.relu1")
        y = net.relu(net.conv(y, f"{name}.conv2", width, 3, stride), f"{name}.relu2")
        y = net.conv(y, f"{name}.conv3", out, 1, gain=0.5)
    else:
        y = net.relu(net.conv(x, f"{name}.conv1", width, 3, stride), f"{name}.relu1")
        y = net.conv(y, f"{name}.conv2", out, 3, gain=0.5)
    if stride != 1 or net.values[x].shape[1] != out:
        x = net.conv(x, f"{name}.downsample", out, 1, stride)
    return net.relu(net.add("Add", [y, x], f"/{name}/Add"), name)


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2, width 1.0."""
    net = Network("mobilenetv2")
    x = net.relu6(net.conv("input", "features.0", 32, 3, stride=2), "features.0")
    number = 1
    for expansion, channels, count, first_stride in _MOBILENET_V2:
        for i in range(count):
            x = _inverted_residual(net, x, f"features.{number}", expansion, channels, first_stride if i == 0 else 1)
            number += 1
    x = net.relu6(net.conv(x, f"features.{number}", 1280, 1), f"features.{number}")
    return net.classifier(x)


_MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, output channels, repeats, stride of the first."""


def _inverted_residual(net: Network, x: str, name: str, expansion: int, channels: int, stride: int) -> str:
    entering = net.values[x].shape[1]
    hidden, y = expansion * entering, x
    if expansion != 1:
        y = net.relu6(net.conv(y, f"{name}.expand", hidden, 1), f"{name}.expand")
    y = net.relu6(net.conv(y, f"{name}.depthwise", hidden, 3, stride, groups=hidden), f"{name}.depthwise")
    y = net.conv(y, f"{name}.project", channels, 1)
    return net.add("Add", [x, y], f"/{name}/Add") if stride == 1 and entering == channels else y
