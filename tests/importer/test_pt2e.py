"""Programs that PyTorch's PT2E flow quantized: realized to integer kernels that compute what torch computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

SHAPE = (1, 3, 16, 16)


class Behind(nn.Module):
    """The x86 quantizer's form: the pair stands behind relu, max_pool and flatten, none behind the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # registers the operators

        self.register_buffer("weight", torch.randint(-127, 128, (8, 3, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8) * 0.01 + 0.001)
        self.register_buffer("matrix", torch.randint(-127, 128, (5, 512), dtype=torch.int8))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed

        def pair(value, scale, zero):
            codes = ops.quantize_per_tensor(value, scale, zero, 0, 255, torch.uint8)
            return ops.dequantize_per_tensor(codes, scale, zero, 0, 255, torch.uint8)

        zeros = torch.zeros(8, dtype=torch.int64)
        weight = ops.dequantize_per_channel(self.weight, self.scales, zeros, 0, -128, 127, torch.int8)
        x = torch.relu(nn.functional.conv2d(pair(x, 0.03, 128), weight, padding=1))
        x = pair(torch.max_pool2d(x, 2).flatten(1), 0.04, 0)
        return nn.functional.linear(x, ops.dequantize_per_tensor(self.matrix, 0.01, 0, -128, 127, torch.int8))


class Residual(nn.Module):
    """A stem, an inverted residual block of MobileNetV2, global pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()

        def layer(i: int, o: int, size: int, groups: int = 1, stride: int = 1) -> list[Any]:
            return [nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]

        self.stem = nn.Sequential(*layer(3, 8, 3, stride=2), nn.ReLU6())
        self.block = nn.Sequential(*layer(8, 32, 1), nn.ReLU6(), *layer(32, 32, 3, 32), nn.ReLU6(), *layer(32, 8, 1))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def realized(program: Any) -> tuple[Any, Any]:
    """The realized module of a quantized program, and its coverage."""
    from tvmflow.importer import import_model
    from tvmflow.optimize import optimize
    from tvmflow.quantize.realize import realize
    from tvmflow.quantize.realize.qdq import plan_from_qdq

    carried = plan_from_qdq(optimize(import_model(program, isolated=False).model))
    assert carried is not None
    model, coverage = realize(*carried, "int8")
    return model.module, coverage


def signal_to_noise(module: Any, run: Any) -> float:
    """dB, of the module against torch on 16 random inputs."""
    from tvmflow.kernels.interpret import interpret

    random = np.random.default_rng(4)
    inputs = [random.standard_normal(SHAPE).astype(np.float32) for _ in range(16)]
    with torch.no_grad():
        want = np.stack([run(torch.from_numpy(x)).numpy() for x in inputs])
    got = np.stack([interpret(module, [x])[0][0] for x in inputs])
    return float(10 * np.log10((want**2).sum() / max(((want - got) ** 2).sum(), 1e-30)))


def test_pair_behind_a_max_pool():
    torch.manual_seed(0)
    net = Behind()
    module, coverage = realized(torch.export.export(net, (torch.randn(SHAPE),)))
    assert coverage.float == 0, coverage.float_list
    assert signal_to_noise(module, net) > 50


@pytest.mark.peers
@pytest.mark.parametrize("quantizer", ["xnnpack", "x86"])
def test_converted_program(quantizer):
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.testing.pt2e import _xnnpack_quantizer as xnnpack

    torch.manual_seed(0)
    example = (torch.randn(SHAPE),)
    net = Residual()
    for _ in range(10):
        net(torch.randn(8, *SHAPE[1:]))
    if quantizer == "x86":
        rules = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    else:
        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        rules = xnnpack.XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(net.eval(), example).module(), rules)
    for _ in range(8):
        prepared(torch.randn(SHAPE))
    converted = convert_pt2e(prepared)
    module, coverage = realized(torch.export.export(converted, example))
    # The x86 quantizer leaves the convolution in front of a residual add unquantized behind, for inductor to add in float32.
    assert [f.op for f in coverage.float_list] == ([] if quantizer == "xnnpack" else ["add"])
    assert coverage.integer >= 6
    assert signal_to_noise(module, converted) > 35
