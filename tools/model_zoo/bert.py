"""A sentence embedding network (BERT encoder, masked mean, unit length) as an ONNX graph, from a safetensors file."""

from __future__ import annotations

import json

import numpy as np
import onnx
from builder import Graph

SEQUENCE = 128


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Tensors by name. The format: length of the header, header in JSON, raw little-endian data."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    dtypes = {"F32": np.float32, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def sentence_encoder(weights: dict[str, np.ndarray], config: dict[str, int], name: str) -> onnx.ModelProto:
    """``input_ids``, ``attention_mask`` int64 [1, 128] -> ``embedding`` float32 [1, hidden]."""
    ids = np.zeros((1, SEQUENCE), np.int64)
    mask = np.ones((1, SEQUENCE), np.int64)
    size = (1, SEQUENCE)
    net = Bert(name, {"input_ids": ids, "attention_mask": mask}, {"input_ids": size, "attention_mask": size}, weights, config)
    x = net.embeddings()
    for layer in range(config["num_hidden_layers"]):
        x = net.layer(x, f"encoder.layer.{layer}")
    return net.model(net.pooled(x), "embedding")


class Bert(Graph):
    """The layers of a BERT encoder. Hidden states are [1, SEQUENCE, hidden]."""

    def __init__(
        self,
        name: str,
        inputs: dict[str, np.ndarray],
        sizes: dict[str, tuple[int, ...]],
        weights: dict[str, np.ndarray],
        config: dict[str, int],
    ) -> None:
        super().__init__(name, inputs, sizes)
        self.given, self.hidden, self.heads = weights, config["hidden_size"], config["num_attention_heads"]
        self.epsilon = config["layer_norm_eps"]
        # Added to the scores: 0 where there is a token, a large negative number where there is padding.
        as_float = self.add("Cast", ["attention_mask"], "/mask/Cast", to=onnx.TensorProto.FLOAT)
        self.mask = self.reshape(as_float, "/mask/Reshape", (1, SEQUENCE, 1))
        absent = self.add(
            "Sub", [self.constant("one", 1.0), self.reshape(as_float, "/mask/Row", (1, 1, 1, SEQUENCE))], "/mask/Sub"
        )
        self.penalty = self.add("Mul", [absent, self.constant("penalty", -1e4)], "/mask/Mul")

    def constant(self, name: str, value: float) -> str:
        return self.weight(name, np.float32(value))

    def reshape(self, x: str, name: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", [x, self.weight(f"shape_{'x'.join(map(str, shape))}", np.array(shape, np.int64))], name)

    def norm(self, x: str, name: str) -> str:
        scale, bias = (self.weight(f"{name}.{part}", self.given[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.add("LayerNormalization", [x, scale, bias], f"/{name}/LayerNormalization", axis=-1, epsilon=self.epsilon)

    def dense(self, x: str, name: str) -> str:
        weight = self.weight(f"{name}.weight", np.ascontiguousarray(self.given[f"{name}.weight"].T))
        y = self.add("MatMul", [x, weight], f"/{name}/MatMul")
        return self.add("Add", [y, self.weight(f"{name}.bias", self.given[f"{name}.bias"])], f"/{name}/Add")

    def embeddings(self) -> str:
        table = self.weight("embeddings.word", self.given["embeddings.word_embeddings.weight"])
        words = self.add("Gather", [table, "input_ids"], "/embeddings/Gather", axis=0)
        # One segment, and a fixed length: the position and segment rows are the same for every input.
        rest = (
            self.given["embeddings.position_embeddings.weight"][:SEQUENCE]
            + self.given["embeddings.token_type_embeddings.weight"][0]
        )
        x = self.add("Add", [words, self.weight("embeddings.position", rest[None])], "/embeddings/Add")
        return self.norm(x, "embeddings.LayerNorm")

    def layer(self, x: str, name: str) -> str:
        y = self.dense(self.attention(x, f"{name}.attention.self"), f"{name}.attention.output.dense")
        x = self.norm(self.add("Add", [y, x], f"/{name}/attention/Add"), f"{name}.attention.output.LayerNorm")
        y = self.gelu(self.dense(x, f"{name}.intermediate.dense"), f"/{name}/gelu")
        y = self.dense(y, f"{name}.output.dense")
        return self.norm(self.add("Add", [y, x], f"/{name}/output/Add"), f"{name}.output.LayerNorm")

    def attention(self, x: str, name: str) -> str:
        size = self.hidden // self.heads
        split = (1, SEQUENCE, self.heads, size)
        parts = {}
        for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
            y = self.reshape(self.dense(x, f"{name}.{part}"), f"/{name}/{part}/Reshape", split)
            parts[part] = self.add("Transpose", [y], f"/{name}/{part}/Transpose", perm=list(order))
        scores = self.add("MatMul", [parts["query"], parts["key"]], f"/{name}/scores/MatMul")
        scores = self.add("Div", [scores, self.constant("score_scale", size**0.5)], f"/{name}/scores/Div")
        scores = self.add("Add", [scores, self.penalty], f"/{name}/scores/Add")
        shares = self.add("Softmax", [scores], f"/{name}/Softmax", axis=-1)
        y = self.add("MatMul", [shares, parts["value"]], f"/{name}/context/MatMul")
        y = self.add("Transpose", [y], f"/{name}/context/Transpose", perm=[0, 2, 1, 3])
        return self.reshape(y, f"/{name}/context/Reshape", (1, SEQUENCE, self.hidden))

    def gelu(self, x: str, name: str) -> str:
        """x/2 (1 + erf(x / sqrt 2))"""
        y = self.add("Erf", [self.add("Div", [x, self.constant("sqrt2", 2**0.5)], f"{name}/Div")], f"{name}/Erf")
        y = self.add("Mul", [x, self.add("Add", [y, self.constant("one", 1.0)], f"{name}/Add")], f"{name}/Mul")
        return self.add("Mul", [y, self.constant("half", 0.5)], f"{name}/Mul_1")

    def pooled(self, x: str) -> str:
        """Mean over the tokens that are no padding, scaled to unit length."""
        axis = self.weight("token_axis", np.array([1], np.int64))
        total = self.add("ReduceSum", [self.add("Mul", [x, self.mask], "/pool/Mul"), axis], "/pool/ReduceSum", keepdims=0)
        count = self.add("ReduceSum", [self.mask, axis], "/pool/Count", keepdims=0)
        mean = self.add("Div", [total, self.add("Max", [count, self.constant("tiny", 1e-9)], "/pool/Max")], "/pool/Div")
        length = self.add("ReduceL2", [mean], "/pool/ReduceL2", axes=[-1], keepdims=1)
        return self.add("Div", [mean, self.add("Max", [length, self.constant("tiny", 1e-9)], "/pool/Max_1")], "/pool/Normalized")
