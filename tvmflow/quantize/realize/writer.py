"""A new main, binding by binding, under names of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tvm import IRModule, relax

from tvmflow.quantize.graph import read_by, rebuild


class Writer:
    """Not ``BlockBuilder.emit``, which replaces the dots in the names of users' layers."""

    def __init__(self) -> None:
        self._infer = relax.BlockBuilder()
        self._bindings: list[relax.VarBinding] = []
        self._taken: Counter[str] = Counter()

    def emit(self, name: str, expr: relax.Expr) -> relax.Var:
        """Binds ``expr`` to a variable called ``name``, with a number behind it if that name is taken."""
        expr = self._infer.normalize(expr)
        self._taken[name] += 1
        unique = name if self._taken[name] == 1 else f"{name}/{self._taken[name]}"
        var = relax.DataflowVar(unique, expr.ty)
        self._bindings.append(relax.VarBinding(var, expr))
        return var

    def finish(self, module: IRModule, arguments: Sequence[relax.Var], result: relax.Expr) -> IRModule:
        """``module`` with the emitted bindings as its main."""
        main = module["main"]
        returned = set(read_by(result))
        outputs = {b.var: relax.Var(b.var.name, b.var.ty) for b in self._bindings if b.var.name in returned}
        bindings = [self._with_outputs(b, outputs) for b in self._bindings]
        body = relax.SeqExpr([relax.DataflowBlock(bindings)] if bindings else [], rebuild(result, lambda v: outputs.get(v, v)))
        built = IRModule(dict(module.functions_items()), attrs=module.attrs)
        built["main"] = relax.Function(arguments, body, main.ret_ty, main.is_pure, main.attrs)
        return relax.transform.DeadCodeElimination()(built)

    def _with_outputs(self, binding: relax.VarBinding, outputs: dict[relax.Var, relax.Var]) -> relax.VarBinding:
        """The binding with variables that main returns in place of the dataflow variables that can't leave their block."""
        value = binding.value
        if any(v in outputs for v in relax.analysis.free_vars(value)):
            value = self._infer.normalize(rebuild(value, lambda v: outputs.get(v, v)))
        return relax.VarBinding(outputs.get(binding.var, binding.var), value)
