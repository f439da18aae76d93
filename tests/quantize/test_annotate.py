"""annotate: what joins a group, what must not, where float islands end, and which sites share parameters."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.errors import InternalError
from tvmflow.model import Model
from tvmflow.quantize.annotate import annotate
from tvmflow.quantize.graph import view
from tvmflow.quantize.recipe import Rule, WeightChange

IMAGE = [(1, 6, 6, 4)]


def conv(emit, name, x, oc=4, layout="NHWC", kernel_layout="OHWI", weight=None):
    weight = relax.const(np.ones((oc, 1, 1, 4), np.float32)) if weight is None else weight
    return emit(name, relax.op.nn.conv2d(x, weight, data_layout=layout, kernel_layout=kernel_layout))


def add_constant(emit, name, x, *shape):
    return emit(name, relax.op.add(x, relax.const(np.ones(shape, np.float32))))


def groups(plan):
    return {g.layer: g for g in plan.groups}


@pytest.fixture
def plan_of(model, recipe):
    return lambda body, shapes, rules=(): annotate(model(body, shapes), msgspec.structs.replace(recipe, rules=rules))


def test_convolution_takes_its_bias_and_clamp(plan_of):
    plan = plan_of(lambda e, x: e("relu", relax.op.nn.relu(add_constant(e, "bias", conv(e, "conv", x), 1, 1, 1, 4))), IMAGE)
    (group,) = plan.groups
    assert (group.layer, group.op, group.bindings) == ("conv", "conv2d", ("conv", "bias", "y"))
    assert (group.inputs, group.output, group.weight) == (("x0",), "y", "conv:weight")
    assert [(s.id, s.role, s.channel_axis) for s in plan.sites] == [
        ("x0", "input", None),
        ("conv:weight", "weight", 0),
        ("y", "activation", None),
    ]


def test_a_result_with_two_readers_is_not_swallowed(plan_of):
    def two_readers(e, x):
        c = conv(e, "conv", x)
        return [e("relu", relax.op.nn.relu(c)), e("pool", relax.op.nn.max_pool2d(c, layout="NHWC"))]

    assert groups(plan_of(two_readers, IMAGE))["conv"].bindings == ("conv",)


def test_a_returned_result_is_not_swallowed(plan_of):
    def returned(e, x):
        c = conv(e, "conv", x)
        return [c, e("relu", relax.op.nn.relu(c))]

    found = groups(plan_of(returned, IMAGE))
    assert found["conv"].bindings == ("conv",) and found["relu"].op == "lookup"


def test_names_of_parts_lead_to_the_layer(plan_of):
    def body(e, x):
        return e("relu", relax.op.nn.relu(add_constant(e, "features/conv", conv(e, "features/conv/1", x), 1, 1, 1, 4)))

    plan = plan_of(body, IMAGE)
    assert plan.groups[0].layer == "features/conv" and plan.groups[0].weight == "features/conv:weight"


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (lambda e, x: e("f", relax.op.nn.softmax(x)), "exponentials"),
        (lambda e, x: e("f", relax.op.cumsum(x, 1)), "no integer kernel for cumsum"),
        (lambda e, x: e("f", relax.op.divide(x, x + x)), ""),
        (lambda e, x: e("f", relax.op.image.resize2d(x, (12, 12), layout="NHWC", method="linear")), "linear interpolation"),
        (lambda e, x: e("f", relax.op.mean(x, [1, 3])), "not neighbours"),
        (
            lambda e, x: conv(e, "f", x, layout="NCHW", kernel_layout="OIHW", weight=relax.const(np.ones((4, 6, 1, 1), "f4"))),
            "layout",
        ),
    ],
)
def test_reasons_for_float(plan_of, op, reason):
    def body(e, x):
        return e("after", relax.op.reshape(op(e, conv(e, "conv", x)), (-1,)))

    plan = plan_of(body, IMAGE)
    left = [g for g in plan.groups if not g.integer and "moves" not in g.reason]
    assert (reason in left[0].reason) if reason else not left


def test_sums_that_can_overflow_stay_float(plan_of):
    wide = 2**31 // (255 * 128) + 1
    weight = relax.const(np.zeros((wide, 2), np.float32))
    (group,) = plan_of(lambda e, x: e("dense", relax.op.matmul(x, weight)), [(1, wide)]).groups
    assert not group.integer and "overflow int32" in group.reason


def test_recipe_skips_and_per_tensor_weights(plan_of):
    def two(e, x):
        return conv(e, "second", conv(e, "first", x))

    plan = plan_of(two, IMAGE, (Rule(layer="first", skip=True), Rule(layer="y", weight=WeightChange(per_channel=False))))
    found = groups(plan)
    assert found["first"].reason == "skipped by the recipe"
    assert {s.id: s.channel_axis for s in plan.sites} == {"first": None, "y:weight": None}


def test_layers_between_float_layers_stay_float(plan_of):
    def island(e, x):
        a = e("softmax", relax.op.nn.softmax(x))
        b = e("tanh", relax.op.tanh(e("turned", relax.op.permute_dims(a, [0, 2, 1, 3]))))
        return e("softmax2", relax.op.nn.softmax(b))

    plan = plan_of(island, IMAGE)
    assert not any(g.integer for g in plan.groups) and plan.sites == ()
    assert groups(plan)["tanh"].reason == "its operands are computed in float32"


def test_movement_towards_an_integer_layer_moves_integers(plan_of):
    def body(e, x):
        moved = e("turned", relax.op.permute_dims(e("softmax", relax.op.nn.softmax(x)), [0, 2, 1, 3]))
        return conv(e, "conv", moved)

    plan = plan_of(body, IMAGE)
    assert groups(plan)["turned"].integer
    assert [s.like for s in plan.sites if s.id == "turned"] == ["softmax"]


def test_concat_operands_share_its_parameters_unless_others_read_them(plan_of):
    def body(e, x):
        a, b = conv(e, "a", x), conv(e, "b", x)
        pooled = e("pool", relax.op.nn.max_pool2d(a, (3, 3), (1, 1), (1, 1, 1, 1), layout="NHWC"))
        joined = e("joined", relax.op.concat([pooled, b], axis=3))
        weight = relax.const(np.ones((4, 1, 1, 8), np.float32))
        return [conv(e, "c", joined, weight=weight), e("other", relax.op.sigmoid(b))]

    like = {s.id: s.like for s in plan_of(body, IMAGE).sites}
    assert (like["a"], like["pool"], like["b"]) == ("joined", "a", "")


def test_every_binding_is_in_one_group(plan_of, model):
    def body(e, x):
        s = e("sigmoid", relax.op.sigmoid(x))
        t = e("silu", relax.op.multiply(x, s))
        u = e("sum", relax.op.add(e("abs", relax.op.abs(s)), e("exp", relax.op.exp(x))))
        return [e("product", relax.op.multiply(t, u)), s]

    bindings = [b for g in plan_of(body, IMAGE).groups for b in g.bindings]
    assert sorted(bindings) == sorted(view(model(body, IMAGE).module).exprs)


def test_equal_names_are_refused(recipe):
    x = relax.Var("x", relax.TensorType((2, 3), "float32"))
    first = relax.DataflowVar("same", x.ty)
    second = relax.Var("same", x.ty)
    infer = relax.BlockBuilder()
    block = relax.DataflowBlock(
        [relax.VarBinding(first, infer.normalize(relax.op.exp(x))), relax.VarBinding(second, infer.normalize(relax.op.exp(x)))]
    )
    module = tvm.IRModule({"main": relax.Function([x], relax.SeqExpr([block], second), x.ty)})
    with pytest.raises(InternalError, match="same name"):
        annotate(Model(module, (), (), "twice"), recipe)
