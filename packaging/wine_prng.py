"""A stand-in for one library that Wine 8 lacks and every Windows has: bcryptprimitives.dll, where programs in Rust get their
random bytes. It holds no code: its one function, ProcessPrng, is passed on to the same one under its former name in
advapi32 (RtlGenRandom). For Wine's folder only; nothing of it goes into what is built.
"""

import struct

LIBRARY = "bcryptprimitives.dll"
FUNCTION = b"ProcessPrng\0"
FORWARDED_TO = b"ADVAPI32.SystemFunction036\0"

# The layout is that of Microsoft's "PE Format": headers in the first 512 bytes of the file, then one section.
FILE_ALIGNMENT = 0x200
SECTION_ADDRESS = 0x1000
EXPORT_DIRECTORY_BYTES = 40


def dll() -> bytes:
    """Return the library as a file."""
    exports = _exports()
    section = exports.ljust(FILE_ALIGNMENT, b"\0")
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    # x86-64, one section, an optional header of 240 bytes; executable, large addresses, a library.
    coff = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x2022)
    optional = struct.pack("<HBBIIIII", 0x20B, 14, 0, 0, FILE_ALIGNMENT, 0, 0, SECTION_ADDRESS)
    optional += struct.pack("<QII", 0x180000000, 0x1000, FILE_ALIGNMENT)
    optional += struct.pack("<HHHHHHI", 6, 0, 0, 0, 6, 0, 0)
    optional += struct.pack("<IIIHH", 2 * SECTION_ADDRESS, FILE_ALIGNMENT, 0, 3, 0x100)
    optional += struct.pack("<QQQQII", 0x100000, 0x1000, 0x100000, 0x1000, 0, 16)
    optional += struct.pack("<II", SECTION_ADDRESS, len(exports)).ljust(16 * 8, b"\0")
    # Initialized data that can be read.
    header = struct.pack("<8sIIIIIIHHI", b".rdata", len(exports), SECTION_ADDRESS, FILE_ALIGNMENT, FILE_ALIGNMENT, 0, 0, 0, 0, 0x40000040)  # fmt: skip
    return (dos + b"PE\0\0" + coff + optional + header).ljust(FILE_ALIGNMENT, b"\0") + section


def _exports() -> bytes:
    """Return the export directory, its three tables of one entry, and the names."""
    functions = SECTION_ADDRESS + EXPORT_DIRECTORY_BYTES
    names, ordinals = functions + 4, functions + 8
    own_name = functions + 10
    function = own_name + len(LIBRARY) + 1
    # An address within the directory itself is no code but the name of another library's function.
    forwarder = function + len(FUNCTION)
    directory = struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, own_name, 1, 1, 1, functions, names, ordinals)
    tables = struct.pack("<IIH", forwarder, function, 0)
    return directory + tables + LIBRARY.encode() + b"\0" + FUNCTION + FORWARDED_TO
