"""Center: move the mean of each channel of a linear tensor out of its producers' biases and into its readers' biases.

A tensor that no non-linear function follows (the narrow end of an inverted residual block) may hold channels far apart, each
nearly constant: one scale for all of them then rounds away what varies. Subtracting a constant from each channel changes nothing
if the layers that read the tensor restore it. Convolutions without padding and dense layers can, in their biases:
``W (x - s) + (b + W s) = W x + b``. Sums take part: ``a + b`` is centred through an operand that nothing else reads.

Before: conv -> +b1 -> t -> conv W -> +b2          After: conv -> +(b1 - s) -> t - s -> conv W -> +(b2 + W s)

:func:`channel_means` decides, from samples; :func:`centered` does. The float model computes what it did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from tvmflow.errors import ConfigError
from tvmflow.model import Model
from tvmflow.quantize.calibrate import Run, with_outputs
from tvmflow.quantize.graph import Graph, constant_of, op_of, view
from tvmflow.quantize.patterns import bias_of

SAMPLES = 64
"""Means are taken over the first samples; they need not be exact."""

Shifts = dict[str, NDArray[np.float64]]
"""What is subtracted from each channel, by the name of the tensor."""


def channel_means(model: Model, samples: Iterable[Mapping[str, np.ndarray]], run: Run) -> Shifts:
    """Mean of every channel, float64 ``[C]``, of each tensor that can be centred; empty when there is none."""
    tensors = centerable(view(model.module))
    if not tensors:
        return {}
    execute = run(with_outputs(model.module, tensors))
    sums = {t: np.zeros(()) for t in tensors}
    count = 0
    for sample in islice(samples, SAMPLES):
        count += 1
        for tensor, value in zip(tensors, execute([sample[i.name] for i in model.inputs]), strict=True):
            sums[tensor] = sums[tensor] + value.reshape(-1, value.shape[-1]).mean(axis=0, dtype=np.float64)
    return {t: total / max(count, 1) for t, total in sums.items()}


def centered(model: Model, means: Mapping[str, np.ndarray | Sequence[float]]) -> Model:
    """The model with the biases that subtract ``means`` where tensors are written and restore them where they are read.

    Raises ConfigError when ``means`` (of a parameter file) are not those of this model's tensors.
    """
    graph = view(model.module)
    possible = centerable(graph)
    for tensor, mean in means.items():
        if tensor not in possible or len(mean) != graph.shape(tensor)[-1]:
            raise ConfigError(
                "this tensor can't be centred with these means", where=tensor, remedy="calibrate again: the model has changed"
            )
    changes: Shifts = {}

    def change(bias: str, by: np.ndarray) -> None:
        changes[bias] = changes.get(bias, np.zeros(())) + by

    for tensor, mean in _in_operands(graph, means).items():
        change(tensor, -mean)
    for tensor, mean in means.items():
        mean = np.asarray(mean, np.float64)
        for reader in graph.readers[tensor]:
            if op_of(graph.exprs[reader]) != "add":
                change(graph.only_reader(reader), _seen_through(graph, reader, mean))
    return model.then("center", _with_biases(model.module, graph, changes))


def centerable(graph: Graph) -> list[str]:
    """Tensors whose channels may be shifted: sums and biased linear layers that only such sums and absorbing layers read."""
    found = {t for t in graph.exprs if t not in graph.outputs and (_is_biased_linear(graph, t) or _is_sum(graph, t))}
    while True:
        kept = {t for t in found if _fits(graph, t, found)}
        if kept == found:
            through = {_free_operand(graph, t) for t in found if _is_sum(graph, t)}
            return [t for t in graph.exprs if t in found and t not in through]
        found = kept


def _fits(graph: Graph, tensor: str, found: set[str]) -> bool:
    if _is_sum(graph, tensor) and not _free_operand(graph, tensor):
        return False
    readers = graph.readers[tensor]
    return bool(readers) and all(r in found if _is_sum(graph, r) else _absorbs(graph, r, tensor) for r in readers)


def _is_biased_linear(graph: Graph, tensor: str) -> bool:
    """A convolution or dense layer with its bias, and nothing after it."""
    if bias_of(graph, tensor) is None:
        return False
    source = next(a.name for a in graph.exprs[tensor].args if isinstance(a, relax.Var))
    return source in graph.exprs and op_of(graph.exprs[source]) in ("conv2d", "matmul") and graph.only_reader(source) == tensor


def _is_sum(graph: Graph, tensor: str) -> bool:
    """A sum of two tensors of one shape."""
    expr = graph.exprs[tensor]
    operands = [a.name for a in expr.args if isinstance(a, relax.Var)] if op_of(expr) == "add" else []
    return len(set(operands)) == 2 and all(graph.shape(o) == graph.shape(tensor) for o in operands)


def _free_operand(graph: Graph, tensor: str) -> str:
    """The operand of a sum through whose bias the sum is shifted; empty when other layers read both."""
    operands = (a.name for a in graph.exprs[tensor].args)
    return next((o for o in operands if o in graph.exprs and graph.only_reader(o) and _is_biased_linear(graph, o)), "")


def _absorbs(graph: Graph, reader: str, tensor: str) -> bool:
    """Whether a layer can restore a shift of its input in its bias: constant weights, a bias, no zeros padded around it."""
    expr = graph.exprs[reader]
    if op_of(expr) not in ("conv2d", "matmul"):
        return False
    weight = constant_of(expr.args[1])
    if weight is None or not isinstance(expr.args[0], relax.Var) or expr.args[0].name != tensor:
        return False
    after = graph.only_reader(reader)
    if not after or bias_of(graph, after) is None:
        return False
    if op_of(expr) == "matmul":
        return weight.ndim == 2
    nhwc = (expr.attrs.data_layout, expr.attrs.kernel_layout) == ("NHWC", "OHWI")
    return nhwc and not any(int(p) for p in expr.attrs.padding)


def _in_operands(graph: Graph, means: Mapping[str, np.ndarray | Sequence[float]]) -> Shifts:
    """Shift of each biased linear layer: its own mean, or what the sum that it is the free operand of needs beside the other."""
    shifts = {t: np.asarray(mean) for t, mean in means.items() if not _is_sum(graph, t)}
    for total in (t for t in graph.exprs if t in means and _is_sum(graph, t)):
        free = _free_operand(graph, total)
        other = next(a.name for a in graph.exprs[total].args if a.name != free)
        shifts[free] = np.asarray(means[total]) - np.asarray(means.get(other, 0.0))
    return shifts


def _seen_through(graph: Graph, reader: str, mean: np.ndarray) -> np.ndarray:
    """What a constant ``mean`` on the input adds to each output channel of a layer."""
    expr = graph.exprs[reader]
    weight = constant_of(expr.args[1])
    assert weight is not None  # _absorbs checks
    weight = weight.astype(np.float64)
    if op_of(expr) == "matmul":
        return mean @ weight
    groups = int(expr.attrs.groups)
    by_group = weight.sum(axis=(1, 2)).reshape(groups, -1, weight.shape[3])
    return np.einsum("goi,gi->go", by_group, mean.reshape(groups, -1)).reshape(-1)


def _with_biases(module: tvm.IRModule, graph: Graph, changes: Mapping[str, np.ndarray]) -> tvm.IRModule:
    main = module["main"]
    builder = relax.BlockBuilder()
    blocks = []
    for block in main.body.blocks:
        bindings = []
        for binding in block.bindings:
            if binding.var.name in changes:
                arguments = [_moved(graph, binding.var.name, a, changes[binding.var.name]) for a in binding.value.args]
                value = builder.normalize(relax.op.add(*arguments))
                binding = relax.VarBinding(binding.var, value)
            bindings.append(binding)
        blocks.append(relax.DataflowBlock(bindings))
    moved = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    moved["main"] = relax.Function(main.params, relax.SeqExpr(blocks, main.body.body), main.ret_ty, main.is_pure, main.attrs)
    return moved


def _moved(graph: Graph, binding: str, argument: relax.Expr, by: np.ndarray) -> relax.Expr:
    """The bias moved, every other argument as it is."""
    constant = constant_of(argument)
    if constant is None:
        return argument
    channels = bias_of(graph, binding)
    assert channels is not None  # centerable checks
    shape = (1,) * (len(graph.shape(binding)) - 1) + (channels.size,)
    return relax.const((channels.astype(np.float64) + by).astype(np.float32).reshape(shape))
