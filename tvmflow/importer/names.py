"""Layer names: every binding of the imported module carries the name that the user's file gives to the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping

from tvm import IRModule, relax
from tvm.ir import Expr, GenericConst


def unique(name: str, taken: Container[str]) -> str:
    """``name``, or the first of ``name#2``, ``name#3``, ... that is not taken."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}#{count}"
    return found


def substitute(expr: Expr, leaf: Callable[[Expr], Expr]) -> Expr:
    """``expr`` (one binding's value) with ``leaf`` applied to its variables and constants; types are kept."""
    if isinstance(expr, relax.Call):
        args = [substitute(arg, leaf) for arg in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args, ret_ty=expr.ty)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, leaf) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, leaf), expr.index)
    return leaf(expr)


def rename(module: IRModule, names: Mapping[str, str], params: Mapping[str, str]) -> IRModule:
    """``main`` with the variables in ``names`` renamed to layer names, and parameters to input names.

    Variables in between belong to the layer that they lead to: ``<layer>/1``, ``<layer>/2``; where the file has a layer of that
    name, ``<layer>/1#2``. Bindings of a variable to a variable disappear.
    """
    func = module["main"]
    known: dict[Expr, Expr] = {p: relax.Var(params.get(p.name, p.name), p.ty) for p in func.params}

    def leaf(expr: Expr) -> Expr:
        return known.get(expr, expr) if isinstance(expr, relax.Var) else expr

    bindings = [binding for block in func.body.blocks for binding in block.bindings]
    plain = [b for b in bindings if not isinstance(b.value, relax.Var | GenericConst)]
    outputs = escaping(func.body.body, {b.var: b.value for b in bindings if isinstance(b.value, relax.Var)})
    taken = {str(p.name) for p in known.values()}
    final = layer_names([b.var.name for b in plain], names, taken)
    result = unique("outputs", {*taken, *final.values()})
    made = []
    for binding in bindings:
        if isinstance(binding.value, relax.Var | GenericConst):
            known[binding.var] = leaf(binding.value)
            continue
        name = result if isinstance(binding.value, relax.Tuple) and binding.var in outputs else final[binding.var.name]
        kind = relax.Var if binding.var in outputs else relax.DataflowVar
        known[binding.var] = kind(name, binding.var.ty)
        made.append(relax.VarBinding(known[binding.var], substitute(binding.value, leaf)))
    return with_main(module, [known[p] for p in func.params], made, substitute(func.body.body, leaf))


def with_main(module: IRModule, params: list[Expr], bindings: list[relax.VarBinding], body: Expr) -> IRModule:
    """``module`` with another ``main``, of one dataflow block."""
    if isinstance(body, relax.Tuple):  # a block's result is bound to a variable
        result = relax.Var("outputs", body.ty)
        bindings, body = [*bindings, relax.VarBinding(result, body)], result
    seq = relax.SeqExpr([relax.DataflowBlock(bindings)] if bindings else [], body)
    func = relax.Function(params, seq, body.ty, True).with_attr("global_symbol", "main")
    others = {var: f for var, f in module.functions.items() if var.name_hint != "main"}
    return relax.transform.DeadCodeElimination(["main"])(IRModule({**others, module.get_global_var("main"): func}))


def escaping(body: Expr, aliases: Mapping[Expr, Expr]) -> set[Expr]:
    """Variables that ``body`` reads, through aliases."""
    found: set[Expr] = set()
    waiting = list(body.fields) if isinstance(body, relax.Tuple) else [body]
    while waiting:
        expr = waiting.pop()
        if expr in aliases:
            waiting.append(aliases[expr])
        elif isinstance(expr, relax.Var):
            found.add(expr)
    return found


def layer_names(order: list[str], names: Mapping[str, str], inputs: set[str]) -> dict[str, str]:
    """Final name of every variable of ``order``: its layer's, or ``<layer>/k`` for those that lead to it.

    No two of ``names`` and ``inputs`` are equal; what is made up here makes way for them.
    """
    layer = f"{next((names[var] for var in reversed(order) if var in names), 'main')}/after"
    owner = {var: (layer := names.get(var, layer)) for var in reversed(order)}
    final, taken, inner = dict(names), {*inputs, *names.values()}, Counter[str]()
    for var in order:
        if var not in names:
            inner[owner[var]] += 1
            final[var] = unique(f"{owner[var]}/{inner[owner[var]]}", taken)
            taken.add(final[var])
    return final
