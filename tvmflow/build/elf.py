"""A relocatable ELF object that holds named data sections and no code.

It is what carries the manifest into the `.so`: linkers copy sections they do not know into the output as they are, and a section
without the ALLOC flag costs no memory at run time. Layout after the System V ABI, chapter 4: header, data, names, headers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tvmflow.errors import ConfigError, nearest

ET_REL, SHT_PROGBITS, SHT_STRTAB = 1, 1, 3


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
    """Bytes of an object file whose sections are ``sections``, read-only, not loaded at run time, in the given order."""
    machine = machine_of(arch)
    header_size, entry_size = (64, 64) if machine.is_64 else (52, 40)
    names = b"\0"
    body = b""
    entries = [(0, 0, 0, 0)]  # name offset, type, file offset, size; the first section is null by definition
    for name, data in sections.items():
        entries.append((len(names), SHT_PROGBITS, header_size + len(body), len(data)))
        names += name.encode() + b"\0"
        body += data
    entries.append((len(names), SHT_STRTAB, header_size + len(body), len(names) + len(b".shstrtab\0")))
    names += b".shstrtab\0"
    body += names
    body += bytes(-len(body) % 8)

    ident = b"\x7fELF" + bytes([2 if machine.is_64 else 1, 1, 1]) + bytes(9)
    address = "Q" if machine.is_64 else "I"
    header = struct.pack(
        f"<HHI{address}{address}{address}IHHHHHH",
        *(ET_REL, machine.e_machine, 1, 0, 0, header_size + len(body), machine.flags),
        *(header_size, 0, 0, entry_size, len(entries), len(entries) - 1),
    )
    table = b"".join(
        struct.pack(f"<II{address}{address}{address}{address}II{address}{address}", name, kind, 0, 0, offset, size, 0, 0, 1, 0)
        for name, kind, offset, size in entries
    )
    return ident + header + body + table
