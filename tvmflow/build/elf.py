"""Relocatable ELF objects that hold data and no code: what carries the manifest and the constants into the `.so`.

Linkers copy sections they do not know into the output as they are. Layout after the System V ABI, chapter 4.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tvmflow.errors import ConfigError, nearest

ET_REL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHF_ALLOC = 1, 1, 2, 3, 2
GLOBAL_OBJECT, HIDDEN = 1 << 4 | 1, 2
"""``st_info`` and ``st_other`` of a symbol that other objects of the same library see, and nobody else."""


@dataclass(frozen=True)
class Machine:
    """The fields of an ELF header that differ between architectures."""

    e_machine: int
    is_64: bool = True
    flags: int = 0


MACHINES = {
    "x86_64": Machine(62),
    "aarch64": Machine(183),
    "armv7": Machine(40, is_64=False, flags=0x05000400),  # EABI version 5, hard float
}


def machine_of(arch: str) -> Machine:
    """ELF header fields of ``x86_64``, ``aarch64`` or ``armv7``. Raises ConfigError for any other."""
    if arch not in MACHINES:
        raise ConfigError(f"no ELF machine is known for {arch!r}", remedy=nearest(arch, MACHINES))
    return MACHINES[arch]


def data_object(sections: Mapping[str, bytes], arch: str) -> bytes:
    """An object file with read-only ``sections`` in the given order, which take no memory at run time."""
    return _object([_Section(name, SHT_PROGBITS, data) for name, data in sections.items()], machine_of(arch))


def constant_object(section: str, symbol: str, data: bytes, alignment: int, arch: str) -> bytes:
    """An object file with one read-only ``section``, mapped at run time, that begins with ``symbol``."""
    machine = machine_of(arch)
    names = f"\0{symbol}\0".encode()
    if machine.is_64:  # name, info, other, section, value, size; in 32 bits the last two stand after the name
        entry = struct.pack("<IBBHQQ", 1, GLOBAL_OBJECT, HIDDEN, 1, 0, len(data))
    else:
        entry = struct.pack("<IIIBBH", 1, 0, len(data), GLOBAL_OBJECT, HIDDEN, 1)
    symbols = bytes(len(entry)) + entry  # the first symbol is null by definition
    return _object(
        [
            _Section(section, SHT_PROGBITS, data, SHF_ALLOC, alignment),
            # `link` is the section of the names, `info` the number of the first global symbol
            _Section(".symtab", SHT_SYMTAB, symbols, alignment=8, link=3, info=1, entry_size=len(entry)),
            _Section(".strtab", SHT_STRTAB, names),
        ],
        machine,
    )


class _Section(NamedTuple):
    """Data and the fields of its header."""

    name: str
    kind: int
    data: bytes
    flags: int = 0
    alignment: int = 1
    link: int = 0
    info: int = 0
    entry_size: int = 0


def _object(sections: Sequence[_Section], machine: Machine) -> bytes:
    header_size, entry_size = (64, 64) if machine.is_64 else (52, 40)
    address = "Q" if machine.is_64 else "I"
    names = b"\0" + b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
    entry = struct.Struct(f"<II{address}{address}{address}{address}II{address}{address}")
    body, table, name = bytearray(header_size), [bytes(entry.size)], 1  # the first section is null by definition
    for section in (*sections, _Section(".shstrtab", SHT_STRTAB, names)):
        body += bytes(-len(body) % section.alignment)
        table.append(
            entry.pack(
                *(name, section.kind, section.flags, 0, len(body), len(section.data)),
                *(section.link, section.info, section.alignment, section.entry_size),
            )
        )
        body += section.data
        name += len(section.name) + 1
    body += bytes(-len(body) % 8)

    ident = b"\x7fELF" + bytes([2 if machine.is_64 else 1, 1, 1]) + bytes(9)
    body[:header_size] = ident + struct.pack(
        f"<HHI{address}{address}{address}IHHHHHH",
        *(ET_REL, machine.e_machine, 1, 0, 0, len(body), machine.flags),
        *(header_size, 0, 0, entry_size, len(table), len(table) - 1),
    )
    return bytes(body) + b"".join(table)
