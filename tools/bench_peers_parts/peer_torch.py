"""PyTorch as its users deploy it on CPUs: AOTInductor with frozen weights; int8 by torchao's PT2E with the x86 quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_peers_parts.worker import Run, samples


def version() -> str:
    return torch.__version__


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    import torch._inductor.config as config
    from bench_peers_parts.onnx_to_torch import Network
    from torch._inductor.fx_passes import fuse_attention

    torch.set_num_threads(1)
    network = Network(model).eval()
    data = [tuple(torch.from_numpy(s[name]) for name in network.inputs) for s in samples(calibration)]
    config.freezing = True
    fuse_attention._sfdp_init = lambda device=None: None  # torch 2.13 takes MiniLM's mask for another and ends in an error
    with torch.no_grad():
        # Strict: only then do the nodes say which functions they come from, without which the quantizer finds none of them.
        exported = torch.export.export(network, data[0], strict=True)
        if precision == "int8":
            exported = torch.export.export(quantized(exported, data), data[0], strict=True)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"))
    (folder / "inputs.txt").write_text("\n".join(network.inputs))


def quantized(exported: Any, data: list[tuple[torch.Tensor, ...]]) -> Any:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(exported.module(), quantizer)
    for sample in data:
        observed(*sample)
    return move_exported_model_to_eval(convert_pt2e(observed))


def serve(folder: Path, precision: str, threads: int) -> Run:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    network = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    names = (folder / "inputs.txt").read_text().split("\n")

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        output: torch.Tensor = network(*(torch.from_numpy(inputs[name]) for name in names))
        return output.numpy()

    return run
