"""One linear walk over the bindings of ``main``: the engine of every pass.

A rule looks at one call at a time, in order, and at what its arguments are made of. It returns what replaces the call, or None
to keep it. Arguments are new already, so one walk sees through its own rewrites. What nobody uses any more is dropped at the
end, and a binding that a rule leaves alone keeps its variable, with the name of the user's layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from tvmflow.optimize.expr import op_name

Rule = Callable[["Walk", Any], Any]
"""``rule(walk, call)``: the replacement, or None. A call is bound under the name of the call that it replaces."""


class Writer:
    """The new ``main`` while it is written."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.main = module["main"]
        self.name = ""
        """Name of the binding that is visited."""
        self._infer = relax.BlockBuilder(module)
        self._bindings: list[Any] = []
        self._values: dict[Any, Any] = {}

    def old_bindings(self) -> list[Any]:
        """The bindings to rewrite, in order."""
        return [binding for block in self.main.body.blocks for binding in block.bindings]

    def emit(self, expr: Any, name: str | None = None) -> Any:
        """Binds ``expr`` to a variable called ``name`` (default: like the visited binding)."""
        expr = self._infer.normalize(expr)
        var = relax.DataflowVar(self.name if name is None else name, expr.ty)
        self.bind(var, expr)
        return var

    def bind(self, var: Any, value: Any) -> None:
        """Keeps ``var`` for ``value``, which has a type."""
        self._bindings.append(relax.VarBinding(var, value))
        self._values[var] = value

    def value(self, expr: Any) -> Any:
        """What a variable is bound to; every other expression is its own value."""
        return self._values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def call(self, expr: Any, *names: str) -> Any:
        """The call that ``expr`` is bound to if its operator is one of ``names``, else None."""
        value = self.value(expr)
        return value if op_name(value) in names else None

    def name_of(self, expr: Any) -> str:
        """Name of a variable; for a constant, that of the visited binding."""
        return str(expr.name) if isinstance(expr, relax.Var) else self.name

    def finish(self, result: Any) -> tvm.IRModule:
        """The module with the bindings that ``result`` needs."""
        outputs = set(variables(result))
        live, kept = set(outputs), []
        for binding in reversed(self._bindings):
            if binding.var in live:
                live.update(variables(binding.value))
                kept.append(binding)
        renamed: dict[Any, Any] = {}
        bindings = []
        for binding in reversed(kept):
            var, value = binding.var, substitute(binding.value, renamed)
            if (var in outputs) == isinstance(var, relax.DataflowVar):
                kind = relax.Var if var in outputs else relax.DataflowVar
                renamed[var] = kind(var.name, var.ty)
            if var in renamed or not value.same_as(binding.value):
                binding = relax.VarBinding(renamed.get(var, var), self._infer.normalize(value))
            bindings.append(binding)
        result = substitute(result, renamed)
        body = relax.SeqExpr([relax.DataflowBlock(bindings)] if bindings else [], result)
        function = relax.Function(self.main.params, body, self.main.ret_ty, self.main.is_pure, self.main.attrs)
        module = tvm.IRModule(dict(self.module.functions_items()), attrs=self.module.attrs)
        module["main"] = self._infer.normalize(function)
        return module


class Walk(Writer):
    """A writer that follows the old bindings."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.var: Any = None
        """Old variable of the binding that is visited."""
        self._new: dict[Any, Any] = {}
        self._uses: Counter[Any] = Counter()

    def emit(self, expr: Any, name: str | None = None) -> Any:
        var = super().emit(expr, name)
        self._uses[var] = 1
        return var

    def only_use(self, expr: Any) -> bool:
        """Whether a single binding uses ``expr``, so that rewriting its producer repeats no work."""
        return self._uses[expr] <= 1

    def now(self, var: Any) -> Any:
        """What stands for an old variable."""
        return self._new[var]

    def run(self, rule: Rule) -> tvm.IRModule:
        """The module with ``main`` rewritten."""
        result, old = self.main.body.body, self.old_bindings()
        uses = Counter(variables(result))
        for binding in old:
            uses.update(variables(binding.value))
        for binding in old:
            self._visit(binding, rule)
            target = self._new[binding.var]
            if isinstance(target, relax.Var):
                self._uses[target] += uses[binding.var]
        return self.finish(substitute(result, self._new))

    def _visit(self, binding: Any, rule: Rule) -> None:
        var, old = binding.var, binding.value
        self.var, self.name = var, str(var.name)
        value = substitute(old, self._new)
        if isinstance(value, relax.TupleGetItem):
            source = self.value(value.tuple_value)
            if isinstance(source, relax.Tuple):
                self._new[var] = source.fields[value.index]
                return
        replacement = self._replacement(value, old, rule) if isinstance(value, relax.Call) else value
        if isinstance(replacement, relax.Call | relax.Tuple | relax.TupleGetItem) and replacement.same_as(old):
            self._new[var] = var
            self.bind(var, old)
        elif isinstance(replacement, relax.Call | relax.TupleGetItem) or (
            replacement is value and isinstance(value, relax.Tuple)
        ):
            self._new[var] = self.emit(replacement)
            self._uses[self._new[var]] = 0
        else:
            self._new[var] = replacement

    def _replacement(self, value: Any, old: Any, rule: Rule) -> Any:
        start = len(self._bindings)
        value = value if value.same_as(old) else self._infer.normalize(value)
        replacement = rule(self, value)
        for binding in self._bindings[start:]:
            if binding.var.same_as(replacement):
                self._uses[binding.var] = 0
        return value if replacement is None else replacement


def rewrite(module: tvm.IRModule, rule: Rule) -> tvm.IRModule:
    """``module`` with ``rule`` applied to each call of ``main`` in order."""
    return Walk(module).run(rule)


def substitute(expr: Any, new: dict[Any, Any]) -> Any:
    """``expr`` with variables replaced; the same object where nothing changes."""
    if isinstance(expr, relax.Var):
        return new.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        fields = [substitute(f, new) for f in expr.fields]
        return expr if all(a.same_as(b) for a, b in zip(fields, expr.fields, strict=True)) else relax.Tuple(fields)
    if isinstance(expr, relax.TupleGetItem):
        source = substitute(expr.tuple_value, new)
        return expr if source.same_as(expr.tuple_value) else relax.TupleGetItem(source, expr.index)
    if isinstance(expr, relax.Call):
        args = [substitute(a, new) for a in expr.args]
        if all(a.same_as(b) for a, b in zip(args, expr.args, strict=True)):
            return expr
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    return expr


def variables(expr: Any) -> list[Any]:
    """Variables that ``expr`` reads, one entry a reading."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [v for f in expr.fields for v in variables(f)]
    if isinstance(expr, relax.TupleGetItem):
        return variables(expr.tuple_value)
    if isinstance(expr, relax.Call):
        return [v for a in expr.args for v in variables(a)]
    return []
