"""PyTorch programs: names, numbers, quantized programs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tvmflow.errors import ModelError, UnsupportedOperator, UsageError

torch = pytest.importorskip("torch")


class InvertedResidual(torch.nn.Module):
    """Expand, depthwise, project, add: MobileNetV2's block."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, image):
        image = image + self.project(self.depthwise(self.expand(image)))
        return self.head(torch.nn.functional.adaptive_avg_pool2d(image, 1).flatten(1))


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = InvertedResidual()
    for _ in range(3):
        net(torch.randn(2, 4, 6, 6))
    return net


@pytest.fixture
def program():
    """Imports an exported program in this process, checked against torch."""
    from tvmflow.importer.check import verify
    from tvmflow.importer.torch import export, from_program

    def run(module, *args):
        loaded = from_program(export(module, args), lambda what: None)
        worst, against = verify(loaded, ())
        return loaded, worst, against

    return run


def test_module_with_example_inputs(network, program, operators):
    network.train()
    loaded, worst, against = program(network, torch.randn(1, 4, 6, 6))
    assert worst < 1e-4 and against == f"torch {torch.__version__}"
    assert network.training and [i.name for i in loaded.inputs] == ["image"]
    found = operators(loaded.module)
    assert [op for _, op in found].count("relax.nn.conv2d") == 3
    assert {"convolution", "convolution_1", "convolution_2", "addmm"} <= {name for name, _ in found}


def test_saved_program_and_callable(network, tmp_path, monkeypatch):
    from tvmflow.importer import import_model

    path = tmp_path / "block.pt2"
    torch.export.save(torch.export.export(network.eval(), (torch.randn(1, 4, 6, 6),)), path)
    found = import_model(path)
    assert found.model.name == "block" and found.check is not None and found.check.max_abs_error < 1e-4
    (tmp_path / "zoo_of_this_test.py").write_text("import torch\ndef tiny():\n    return torch.nn.ReLU(), torch.ones(2, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    tiny = import_model("zoo_of_this_test:tiny")
    assert tiny.model.name == "tiny" and tiny.model.inputs[0].shape == (2, 3)
    with pytest.raises(UsageError, match="--shape is for ONNX"):
        import_model(path, shapes={"image": (1, 4, 6, 6)})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="no exported program"):
        import_model(path)


class Quantized(torch.nn.Module):
    """What convert_pt2e writes: int8 weights per channel, uint8 activations per tensor."""

    def __init__(self) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # registers the operators

        self.register_buffer("weight", torch.randint(-127, 128, (8, 4, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(8) * 0.01 + 0.001)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        x = ops.quantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8)
        x = ops.dequantize_per_tensor(x, 0.02, 128, 0, 255, torch.uint8)
        w = ops.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        y = torch.relu(torch.nn.functional.conv2d(x, w))
        y = ops.quantize_per_tensor(y, 0.05, 0, 0, 127, torch.uint8)
        return ops.dequantize_per_tensor(y, 0.05, 0, 0, 127, torch.uint8)


def test_pt2e_program(program, operators):
    loaded, worst, _ = program(Quantized(), torch.randn(1, 4, 6, 6))
    found = [op.removeprefix("relax.") for _, op in operators(loaded.module)]
    assert found.count("quantize") == 2 and found.count("dequantize") == 3 and "astype" not in found
    assert found.count("clip") == 1  # the range 0..127 is narrower than uint8
    assert worst <= 0.051


def test_refusals(program):
    class Sorted(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(UnsupportedOperator, match="no lowering for this operator") as e:
        program(Sorted(), torch.randn(3, 3))
    assert "svd" in e.value.where and e.value.remedy

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ModelError, match="torch.export can't export it"):
        program(Branching(), torch.randn(3))
    with pytest.raises(UsageError, match="expected an nn.Module"):
        program("net", torch.randn(3))


def test_dynamic_program_is_refused(network):
    from tvmflow.importer.torch import from_program

    dynamic = torch.export.export(
        network.eval(), (torch.randn(2, 4, 6, 6),), dynamic_shapes={"image": {0: torch.export.Dim("batch")}}
    )
    with pytest.raises(ModelError, match="'image' has the dynamic shape"):
        from_program(dynamic, lambda what: None)


def test_hash_follows_the_weights(network):
    from tvmflow.importer.torch import content_hash, export

    x = torch.randn(1, 4, 6, 6)
    first = content_hash(export(network, x))
    assert content_hash(export(network, x)) == first
    with torch.no_grad():
        network.head.bias[0] += 1
    assert content_hash(export(network, x)) != first
    assert np.unique([len(first)]).tolist() == [64]
