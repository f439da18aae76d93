"""Constants lie in the file, once each; what kernels can't be given as a place stays with the VM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tvmflow.build.artifact import link_program
from tvmflow.build.compile import Built, compile_module
from tvmflow.build.constants import ALIGNMENT, LARGE, PAGE, SECTION, _Section
from tvmflow.build.elf import MACHINES, constant_object
from tvmflow.flow.lower import library_runner
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.spec import Lookup
from tvmflow.model import Model
from tvmflow.schedule.apply import schedule
from tvmflow.target import get_target

SHAPE = (1, 3, 5, 7)
RNG = np.random.default_rng(0)
TABLES = [RNG.integers(0, 256, 256).astype(np.uint8) for _ in range(2)]
X = RNG.integers(0, 256, SHAPE).astype(np.uint8)
NATIVE = get_target("native")


def built(graph: Any, *inputs: tuple[int, ...]) -> Built:
    """``graph(table, *inputs)``; ``table(x, t)`` looks x up in a table, an array or a tensor."""
    from tvm import relax

    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(shape, "uint8")) for i, shape in enumerate(inputs)]

    def table(x: Any, values: Any) -> Any:
        operand = relax.const(values) if isinstance(values, np.ndarray) else values
        return builder.emit(kernel_call(Lookup(SHAPE), [x, operand]))

    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(graph(table, *params))
        builder.emit_func_output(result)
    return compile_module(schedule(Model(builder.get(), (), (), "test"), NATIVE)[0].module, NATIVE)


def run(program: Built, folder: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    link_program(program, NATIVE, folder / "program.so")
    return library_runner(folder / "program.so")(inputs)


def test_each_constant_is_stored_once_and_aligned(tmp_path: Path) -> None:
    first, second = TABLES
    program = built(lambda table, x: table(table(table(x, first), second), first), SHAPE)
    places = [program.constants.index(table.tobytes()) for table in TABLES]
    assert [place % ALIGNMENT for place in places] == [0, 0]
    assert len(program.constants) == 512
    (got,) = run(program, tmp_path, X)
    np.testing.assert_array_equal(got, first[second[first[X]]])


def test_large_constants_lie_where_an_allocator_puts_them() -> None:
    section, sizes = _Section(), (5, LARGE, 64, LARGE + 1, LARGE)
    offsets = [int(section.offset(np.full(size, i, np.uint8))) for i, size in enumerate(sizes)]
    assert [offset % PAGE for offset, size in zip(offsets, sizes, strict=True) if size >= LARGE] == [ALIGNMENT] * 3
    for i, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        assert offset % ALIGNMENT == 0 and section.content[offset : offset + size] == bytes([i]) * size


def test_the_file_holds_them_once(tmp_path: Path) -> None:
    """Not in the VM's program too."""
    run(built(lambda table, x: table(x, TABLES[0]), SHAPE), tmp_path, X)
    assert (tmp_path / "program.so").read_bytes().count(TABLES[0].tobytes()) == 1


def test_parameter_that_is_not_always_constant(tmp_path: Path) -> None:
    program = built(lambda table, x, other: table(table(x, TABLES[0]), other), SHAPE, (256,))
    assert program.constants == b""
    (got,) = run(program, tmp_path, X, TABLES[1])
    np.testing.assert_array_equal(got, TABLES[1][TABLES[0][X]])


def test_constant_that_is_returned(tmp_path: Path) -> None:
    from tvm import relax

    program = built(lambda table, x: relax.Tuple([table(x, TABLES[0]), relax.const(TABLES[0])]), SHAPE)
    got, returned = run(program, tmp_path, X)
    np.testing.assert_array_equal(got, TABLES[0][X])
    np.testing.assert_array_equal(returned, TABLES[0])


@pytest.mark.parametrize("arch", sorted(MACHINES))
def test_object_is_read_back(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "constants.o"
    path.write_bytes(constant_object(SECTION, "begin", b"abc" * 5, ALIGNMENT, arch))
    with path.open("rb") as file:
        elf = ELFFile(file)
        section = elf.get_section_by_name(SECTION)
        assert (section.data(), section["sh_addralign"], section["sh_flags"]) == (b"abc" * 5, ALIGNMENT, 2)
        assert section["sh_offset"] % ALIGNMENT == 0
        (symbol,) = elf.get_section_by_name(".symtab").get_symbol_by_name("begin")
        assert elf.get_section(symbol["st_shndx"]).name == SECTION and symbol["st_size"] == 15
        assert symbol["st_info"] == {"bind": "STB_GLOBAL", "type": "STT_OBJECT"}
        assert symbol["st_other"]["visibility"] == "STV_HIDDEN"
