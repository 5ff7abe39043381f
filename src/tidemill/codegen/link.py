"""Relocatable ELF object -> one position-independent image with entry offsets.

All our code refers to itself PC-relative, so once its sections are laid out side by side the
relocations can be settled for good: the image runs wherever it is mapped, and loading needs
neither a linker nor LLVM. Anything that would need a run-time fix (an absolute address, an outside
symbol) is refused here, at build time.
Source: ELF-64 object file format; System V ABI supplements for AMD64 and AArch64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tidemill.base.errors import UnsupportedError

_SHT_PROGBITS, _SHT_SYMTAB, _SHT_RELA = 1, 2, 4
_SHF_ALLOC = 2
_STB_GLOBAL = 1

_R_X86_64_PC32, _R_X86_64_PLT32 = 2, 4
_R_AARCH64_PREL32 = 261
_R_AARCH64_ADR_PREL_PG_HI21 = 275
_R_AARCH64_ADD_ABS_LO12_NC = 277
_R_AARCH64_JUMP26, _R_AARCH64_CALL26 = 282, 283
_AARCH64_LDST_SHIFT = {278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


@dataclass(frozen=True)
class CodeImage:
    """Flat code and constants; `entry_offsets` gives the exported functions' offsets in bytes."""

    data: bytes
    entry_offsets: dict[str, int]


@dataclass(frozen=True)
class _Section:
    name: int
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    info: int
    section: int
    value: int


def link_object(object_code: bytes) -> CodeImage:
    """Lay out an object's sections and settle its relocations.

    Raises: UnsupportedError where a relocation or symbol cannot be settled ahead of time.
    """
    sections = _read_sections(object_code)
    addresses, image = _lay_out(object_code, sections)
    symtab = next(s for s in sections if s.type == _SHT_SYMTAB)
    symbols = _read_symbols(object_code, symtab, sections[symtab.link])
    for section in sections:
        if section.type == _SHT_RELA and section.info in addresses:
            _relocate(object_code, section, symbols, addresses, image)
    entries = {
        s.name: addresses[s.section] + s.value
        for s in symbols
        if s.info >> 4 == _STB_GLOBAL and s.section in addresses
    }
    return CodeImage(bytes(image), entries)


def _read_sections(elf: bytes) -> list[_Section]:
    assert elf[:4] == b"\x7fELF" and elf[4] == 2, "not a 64-bit ELF object"
    offset = struct.unpack_from("<Q", elf, 40)[0]
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = []
    for i in range(count):
        name, kind, flags, _, start, length, link, info, align, _ = struct.unpack_from(
            "<IIQQQQIIQQ", elf, offset + i * size
        )
        sections.append(_Section(name, kind, flags, start, length, link, info, align))
    return sections


def _lay_out(elf: bytes, sections: list[_Section]) -> tuple[dict[int, int], bytearray]:
    """Place every allocated section that matters; unwinding tables are left out."""
    addresses: dict[int, int] = {}
    image = bytearray()
    for index, section in enumerate(sections):
        if section.type != _SHT_PROGBITS or not section.flags & _SHF_ALLOC or not section.size:
            continue
        image += bytes(-len(image) % max(section.align, 64))
        addresses[index] = len(image)
        image += elf[section.offset : section.offset + section.size]
    return addresses, image


def _read_symbols(elf: bytes, symtab: _Section, strings: _Section) -> list[_Symbol]:
    symbols = []
    for at in range(symtab.offset, symtab.offset + symtab.size, 24):
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
        start = strings.offset + name
        text = elf[start : elf.index(b"\0", start)].decode()
        symbols.append(_Symbol(text, info, section, value))
    return symbols


def _relocate(
    elf: bytes,
    table: _Section,
    symbols: list[_Symbol],
    addresses: dict[int, int],
    image: bytearray,
) -> None:
    machine = struct.unpack_from("<H", elf, 18)[0]
    settle = _settle_x86_64 if machine == 62 else _settle_aarch64
    for at in range(table.offset, table.offset + table.size, 24):
        offset, info, addend = struct.unpack_from("<QQq", elf, at)
        symbol = symbols[info >> 32]
        if symbol.section not in addresses:
            raise UnsupportedError(
                "the generated code refers to a symbol outside of itself",
                where=f"symbol {symbol.name or '?'}",
                expected="self-contained code",
                got="an outside reference",
                hint="this is a fault of the code generator; please report the model and target",
            )
        place = addresses[table.info] + offset
        target = addresses[symbol.section] + symbol.value + addend
        settle(image, info & 0xFFFFFFFF, place, target)


def _settle_x86_64(image: bytearray, kind: int, place: int, target: int) -> None:
    if kind not in (_R_X86_64_PC32, _R_X86_64_PLT32):
        raise _unknown_relocation("x86-64", kind)
    struct.pack_into("<i", image, place, target - place)


def _settle_aarch64(image: bytearray, kind: int, place: int, target: int) -> None:
    """The image is mapped at a page boundary, so page offsets within it are final."""
    word = struct.unpack_from("<I", image, place)[0]
    if kind == _R_AARCH64_PREL32:
        word = (target - place) & 0xFFFFFFFF
    elif kind in (_R_AARCH64_CALL26, _R_AARCH64_JUMP26):
        word |= ((target - place) >> 2) & 0x03FFFFFF
    elif kind == _R_AARCH64_ADR_PREL_PG_HI21:
        pages = (target >> 12) - (place >> 12)
        word |= ((pages & 3) << 29) | (((pages >> 2) & 0x7FFFF) << 5)
    elif kind == _R_AARCH64_ADD_ABS_LO12_NC:
        word |= (target & 0xFFF) << 10
    elif kind in _AARCH64_LDST_SHIFT:
        word |= ((target & 0xFFF) >> _AARCH64_LDST_SHIFT[kind]) << 10
    else:
        raise _unknown_relocation("aarch64", kind)
    struct.pack_into("<I", image, place, word)


def _unknown_relocation(arch: str, kind: int) -> UnsupportedError:
    return UnsupportedError(
        "the generated code needs a relocation that cannot be settled at build time",
        where=f"{arch} relocation type {kind}",
        expected="PC-relative references only",
        got=f"type {kind}",
        hint="this is a fault of the code generator; please report the model and target",
    )
