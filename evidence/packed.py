"""What an Arrow IPC file would take unpacked, as its footer and its messages say before anything is unpacked.

Flatbuffers of Arrow's format (format/File.fbs, Message.fbs): a table begins with the distance to its list of fields.
"""

import struct
from collections.abc import Iterator

import pyarrow as pa

TAIL = struct.Struct("<i6s")  # the footer's length, and the file's last bytes
BLOCK = struct.Struct("<qi4xq")  # where a message is, its length without the body, the body's length
BUFFER = struct.Struct("<qq")  # where it is in the body, its length; packed, it begins with its length unpacked
DICTIONARIES, RECORDS = 2, 3  # fields of a footer
MOST = 1 << 12  # batches of a file, and buffers of a batch
CONTINUES = -1  # how a message begins, before its length; older files had the length alone


def unpacked_bytes(data: pa.Buffer) -> int:
    """Of the buffers that are compressed; 0 where none is. An Arrow reader unpacks no buffer to more than it says.

    Raises:
        struct.error, OverflowError: it is no Arrow IPC file.
    """
    view = memoryview(data)
    length, _ = TAIL.unpack_from(view, len(view) - TAIL.size)
    footer = _root(view, len(view) - TAIL.size - length)
    blocks = [block for field in (DICTIONARIES, RECORDS) for block in _structs(view, footer, field, BLOCK)]
    return sum(_of_message(view, start, start + metadata) for start, metadata, _ in blocks)


def _of_message(view: memoryview, start: int, body: int) -> int:
    message = _root(view, start + (8 if _int(view, "<i", start) == CONTINUES else 4))
    kind, batch = _field(view, message, 1), _table(view, message, 2)
    if kind and _int(view, "<B", kind) == 2:  # of a dictionary, which has its batch within
        batch = _table(view, batch, 1)
    if not _field(view, batch, 3):  # not compressed
        return 0
    places = [body + offset for offset, length in _structs(view, batch, 2, BUFFER) if length]
    return sum(max(_int(view, "<q", place), 0) for place in places)  # -1: this one is as it is


def _int(view: memoryview, kind: str, at: int) -> int:
    if at < 0:
        raise struct.error(f"a place before the file, {at}")
    return int(struct.unpack_from(kind, view, at)[0])


def _root(view: memoryview, at: int) -> int:
    return at + _int(view, "<I", at)


def _field(view: memoryview, table: int, number: int) -> int:
    """Where a table's field is; 0 where it has none."""
    fields, place = table - _int(view, "<i", table), 4 + 2 * number
    distance = _int(view, "<H", fields + place) if place < _int(view, "<H", fields) else 0
    return table + distance if distance else 0


def _table(view: memoryview, table: int, number: int) -> int:
    at = _field(view, table, number)
    return at + _int(view, "<I", at)


def _structs(view: memoryview, table: int, number: int, kind: struct.Struct) -> Iterator[tuple[int, ...]]:
    if not _field(view, table, number):
        return
    vector = _table(view, table, number)
    count = _int(view, "<I", vector)
    if count > MOST:
        raise struct.error(f"{count} batches or buffers of one, more than {MOST}")
    for place in range(count):
        yield kind.unpack_from(view, vector + 4 + place * kind.size)
