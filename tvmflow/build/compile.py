"""From a scheduled Relax module to a Relax VM executable: the literal lists of lowering passes, then code generation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from tvmflow.build import cuda
from tvmflow.build.calls import Call, bindings, borrowed, kernel_calls, workspace
from tvmflow.build.concat import hold_concats, write_in_place
from tvmflow.build.constants import place_constants
from tvmflow.build.context import code_generation
from tvmflow.build.manifest import Workspace
from tvmflow.build.network import join_calls
from tvmflow.schedule.cuda_generic import with_identifiers
from tvmflow.schedule.generic import schedule_generic
from tvmflow.target import Target


@dataclass(frozen=True)
class Built:
    """A Relax VM executable, and what it consists of."""

    executable: Any
    calls: tuple[Call, ...]
    """Kernel calls in execution order."""
    workspace: Workspace
    borrowed: tuple[int, ...]
    """Positions of the inputs that may lie at any address."""
    layered: str = "main"
    """Function of the program that makes each of the calls by itself."""
    constants: bytes = b""
    """What the kernels expect in the section of :mod:`tvmflow.build.constants`."""


def lower(module: tvm.IRModule, target: Target) -> tuple[tvm.IRModule, tuple[Call, ...], Workspace, tuple[int, ...]]:
    """From Relax with scheduled kernels to what the VM's code generator takes; its calls, memory and borrowed inputs."""
    module = module if target.cuda else hold_concats(module)
    named = with_identifiers(module) if target.cuda else module
    # float islands and data movement become loops, neighbours fuse, and each loop nest is scheduled
    loops = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),  # a reshape is a view, not a copy
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
    )(named)
    grouped = relax.transform.FuseOps()(loops)
    layers = {
        str(new.var.name): str(old.var.name) for new, old in zip(bindings(named["main"]), bindings(module["main"]), strict=True)
    }
    calls = tuple(
        replace(call, layers=tuple(layers.get(name, name) for name in call.layers))
        for call in kernel_calls(loops["main"], grouped)
    )
    fused, calls = write_in_place(relax.transform.FuseTIR()(grouped), calls)
    scheduled, _ = schedule_generic(relax.transform.DeadCodeElimination(["main"])(fused), target)
    # tensors become views of planned storage, calls become VM instructions
    planned = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(scheduled)
    finished = tvm.transform.Sequential(
        [
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )(planned)
    return finished, calls, workspace(planned["main"]), borrowed(scheduled)


def compile_module(module: tvm.IRModule, target: Target) -> Built:
    """Generates code for ``module``. Kernel calls must have been scheduled.

    Raises MissingTool when the target needs a CUDA compiler and there is none.
    """
    with code_generation(target) as device:
        lowered, calls, memory, anywhere = lower(module, target)
        layered, constants = "main", b""
        if not target.cuda:  # a GPU has a memory of its own, to which the VM copies its constants
            lowered, constants = place_constants(lowered)
            lowered, layered, memory = join_calls(lowered, memory)
        executable = relax.build(lowered, device, relax_pipeline=tvm.transform.Sequential([]))
    if target.cuda:
        cuda.expect_machine_code(executable.mod)
    return Built(executable, calls, memory, anywhere, layered, constants)
