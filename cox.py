"""Log experiments to disk and read them back as pandas frames, from one file.

No server, no account: a run is a directory, a table is an append-only file.

    from cox import CollectionReader, Store

    store = Store("out")                                 # out/<random id>/
    store.add_table("metadata", {"lr": float, "arch": str})
    store.add_table("train", {"epoch": int, "loss": float})
    store["metadata"].append_row({"lr": 0.1, "arch": "resnet18"})
    for epoch in range(3):
        store.log_table_and_tb("train", {"epoch": epoch, "loss": 1 / (epoch + 1)})
        store["train"].flush_row()                       # on disk from here on
    store.close()

    print(CollectionReader("out").df("train"))           # every run, one frame

What a run leaves on disk:

    out/<exp_id>/store.h5               a copy for pandas, made by close() and at exit
                 save/                  yours
                 tensorboard/           event files
                 .tables/<table>.rows   the table: a header line, fixed-size records
                 .tables/<table>.text   the text of its rows, where it has text columns
                 .tables/lock           held by the one process that writes
                 .table_objects/        one file per PICKLE or PYTORCH_STATE value

A row is in the file when ``flush_row`` returns: a process that is killed loses
at most the row it was writing. A machine that dies loses what it had not yet
written back; ``checkpoint()`` and ``close()`` wait for the disk. Any number of
processes may read a run while one writes it.

Sections, each building on those above it: errors, on-disk format, utilities,
values and schema, row files, HDF5, run directory, Table, TensorBoard events,
event writer, Store, CollectionReader, command line.

SPDX-License-Identifier: MIT
"""

from __future__ import annotations

__version__ = "1.0.0"

__all__ = [
    # logging and reading
    "Store", "Table", "CollectionReader", "EventWriter",
    # column types and schemas
    "OBJECT", "PICKLE", "PYTORCH_STATE", "schema_from_dict",
    # utilities
    "Parameters", "consistent", "has_tensorboard", "mkdirp", "obj_to_string",
    "override_json", "string_to_obj",
    # errors
    "CoxError", "CorruptError", "NotFoundError", "SchemaError", "StorageError",
    "StoreExistsError", "WriteRefusedError",
]  # fmt: skip

import argparse
import atexit
import base64
import collections
import contextlib
import copy
import dataclasses
import difflib
import errno
import functools
import importlib.util
import io
import itertools
import json
import logging
import math
import operator
import os
import pickle
import re
import reprlib
import shutil
import signal
import socket
import stat
import string
import struct
import sys
import tempfile
import threading
import time
import types
import urllib.parse
import uuid
import warnings
import wave
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import tables

try:
    import fcntl
except ImportError:  # Windows: runs are written without a lock
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("cox")

###############################################################################
# Errors
###############################################################################
# A message says what happened, where, and what to do. Every leaf is also the
# builtin that a caller would expect, and survives a process pool.


def _printable(value: object, limit: int = 200) -> str:
    """Return ``str(value)``, bounded, for a terminal: names come from strangers."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else "?" for c in text)


class CoxError(Exception):
    """Base of every error that cox raises on purpose."""


class SchemaError(CoxError, ValueError):
    """A schema, a column or a value does not fit; nothing was changed."""


class NotFoundError(CoxError, KeyError, FileNotFoundError):
    """There is no such run or table."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


class StoreExistsError(CoxError, ValueError):
    """``new=True`` met a run that exists."""


class WriteRefusedError(CoxError, RuntimeError):
    """This Store may not write: read-only, closed, forked, or not the one writer."""


class _NoWriterError(WriteRefusedError, AttributeError):
    """A Store in mode r has no event writer, and ``hasattr`` says so."""


class CorruptError(CoxError, ValueError):
    """A file of a run is damaged in a way that no crash of a writer explains."""


class StorageError(CoxError, OSError):
    """The disk refused a write (it is full, say); what was there before still is."""


###############################################################################
# On-disk format
###############################################################################
# `.rows` starts with one line of ASCII JSON, the header:
#     {"cox": 1, "columns": {"epoch": "int", "note": "str"}}
# Packed little-endian records of one size follow, each of these fields:
#     i64  row number, from 1
#     per column: f64 for float, i64 for int, 1 byte for bool, the numpy type named
#          for the others; for text (str, OBJECT, PICKLE, PYTORCH_STATE) an i64, the
#          length of the value's bytes
#     i64  where the row's text starts in `.text` (only in tables with text)
#     i64  check: row number + crc32 of the row's text (0 where there is none)
# `.text` holds the text of the rows, one after another: UTF-8 (lone surrogates as
# they are) of a str, base64 of an OBJECT's pickle, the name of a file in
# .table_objects/ for PICKLE and PYTORCH_STATE.
# Table names are percent-encoded to file names. A header holds nothing of its run,
# so equal schemas have equal header bytes.

_FORMAT_VERSION: Final = 1
_STORE_NAME: Final = "store.h5"
_SAVE_DIR: Final = "save"
_TABLES_DIR: Final = ".tables"
_OBJECTS_DIR: Final = ".table_objects"
_TENSORBOARD_DIR: Final = "tensorboard"
_LOCK_NAME: Final = "lock"
_ROWS: Final = ".rows"
_TEXT: Final = ".text"
_NEW: Final = ".new"  # a file or directory that is not whole yet
_TABLE_NAME_MAX: Final = 225  # bytes, percent-encoded: 255 less a suffix with a date

OBJECT: Final = "__object__"
"""Column of Python objects, pickled into the table itself: for small ones."""
PICKLE: Final = "__pickle__"
"""Column of Python objects, each pickled to a file of its own."""
PYTORCH_STATE: Final = "__pytorch_state__"
"""Column of what ``torch.save`` takes, each in a file of its own."""

_O_BINARY: Final[int] = getattr(os, "O_BINARY", 0)  # Windows would translate newlines
_O_READ: Final = (
    os.O_RDONLY
    | _O_BINARY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # or a fifo would block for ever
)
_O_APPEND: Final = os.O_RDWR | os.O_APPEND | _O_BINARY
_O_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _O_BINARY

# pandas reads and writes an HDF5 file as bytes in memory: no lock of HDF5 is
# taken, and a disk that is full shows when we write the bytes, not in silence.
_HDF5_OPTIONS: Final[Mapping[str, Any]] = {
    "complevel": 1,
    "complib": "zlib",
    "driver": "H5FD_CORE",
    "driver_core_backing_store": 0,
    "driver_core_increment": 1 << 14,
}
_HDF5_ATTRIBUTE_MAX: Final = 60_000  # bytes; HDF5 holds 64 KB per attribute
_HDF5_TEXT_MAX: Final = 256 << 20  # bytes of a frame's text, padded to its widest


###############################################################################
# Utilities
###############################################################################


class Parameters:
    """Attribute access to a dictionary, ignoring case; a missing name is None.

    The dictionary itself is ``params``, where a new attribute goes in lower case.

    Example:
        >>> Parameters({"a": 1, "b": 3}).A
        1
    """

    params: dict[str, Any]

    def __init__(self, params: dict[str, Any]) -> None:
        if len({name.lower() for name in params}) < len(params):
            raise ValueError(f"names must differ in more than case: {[*params]}")
        object.__setattr__(self, "params", params)

    def _key(self, name: str) -> str:
        name = name.lower()
        return next((key for key in self.params if key.lower() == name), name)

    def __getattr__(self, name: str) -> Any:
        # copy and pickle look for dunders, and before params is there
        if name == "params" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return self.params.get(self._key(name))

    def __setattr__(self, name: str, value: Any) -> None:
        self.params[self._key(name)] = value

    def __delattr__(self, name: str) -> None:
        del self.params[self._key(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __getstate__(self) -> dict[str, Any]:  # as in pickles of the original
        return self.params

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "params", dict(state))

    def __repr__(self) -> str:
        return json.dumps(self.params, indent=2, default=repr)

    def as_dict(self) -> dict[str, Any]:
        """Return the dictionary itself, names as they were given."""
        return self.params


def _as_row(data: Any) -> Mapping[str, Any]:
    """Return a row as a mapping, whatever users hold it in."""
    if isinstance(data, (dict, Mapping)):
        return data
    if isinstance(data, Parameters):
        return data.params
    if isinstance(data, argparse.Namespace):
        return vars(data)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    raise SchemaError(
        "a row is a dict (or Parameters, Namespace, dataclass), column to value; "
        f"got {data!r:.80}"
    )


def override_json(args: Any, json_path: str, check_consistency: bool = False) -> Any:
    """Return a copy of ``args`` whose None values are filled from a JSON file.

    Args:
        args: An object with the arguments as attributes (``argparse.Namespace``,
            :class:`Parameters`, ...). It is not changed.
        json_path: File with one JSON object, argument name to value.
        check_consistency: Insist on the same names in both, but for config_path.

    Raises:
        ValueError: The file holds no JSON object, or the names differ.
    """
    with open(json_path, encoding="utf-8") as file:
        overrides = json.load(file)
    if not isinstance(overrides, dict):
        raise ValueError(f"{json_path} must hold one JSON object, name to value")
    names = args.as_dict() if isinstance(args, Parameters) else vars(args)
    if check_consistency and (set(names) ^ set(overrides)) - {"config_path"}:
        raise ValueError(
            f"{json_path} and the arguments differ: only in the file "
            f"{sorted(set(overrides) - set(names))}, only in the arguments "
            f"{sorted(set(names) - set(overrides))}"
        )
    merged = copy.copy(args)
    for name, value in overrides.items():
        if getattr(merged, name, None) is None:
            setattr(merged, name, value)
    return merged


def consistent(old: Any, new: Any) -> Any:
    """Return ``new`` after making sure that ``old`` is None or equal to it.

    Raises:
        AssertionError: They differ.
    """
    if old is not None and old != new:
        raise AssertionError(f"expected {old!r} again, got {new!r}")
    return new


def has_tensorboard(dirname: str) -> bool:
    """Return whether ``dirname`` has a directory named tensorboard in it."""
    return os.path.isdir(os.path.join(dirname, _TENSORBOARD_DIR))


def mkdirp(x: str, should_msg: bool = False) -> None:
    """Make directory ``x`` and its parents; if that fails, carry on.

    With ``should_msg`` the reason is logged as a warning.
    """
    try:
        os.makedirs(x)
    except OSError as err:
        if should_msg:
            _log.warning("could not make directory %s: %s", x, err)


def obj_to_string(obj: Any) -> str:
    """Return the pickle of ``obj`` as base64 text."""
    return base64.b64encode(pickle.dumps(obj)).decode("ascii")


def string_to_obj(s: Any) -> Any:
    """Return the object in a string of :func:`obj_to_string`; for "" None.

    Anything else comes back as it is, so decoding twice does no harm. This unpickles,
    so it may run code: use it on strings you trust.
    """
    if not isinstance(s, str):
        return s
    data = b""
    if s.startswith("gA"):  # base64 of the first byte of a pickle
        with contextlib.suppress(ValueError):  # text that only begins like one
            data = base64.b64decode(s)
    return pickle.loads(data) if data.endswith(b".") else s or None


###############################################################################
# Values and schema
###############################################################################
# A value is converted when it is staged, so the call that brought a bad one gets
# the error. Nothing is lost but digits of a float: 3.0 may go into an int column,
# 3.7 may not. To add a kind of column, add its functions and a line to _KINDS.


def _scalar(value: Any) -> Any:
    """Unwrap numpy scalars, 0-d arrays and 0-d tensors."""
    return value.item() if getattr(value, "shape", None) == () else value


def _number(value: Any) -> Any:
    """Also unwrap arrays and tensors of any shape that hold one element."""
    shape = getattr(value, "shape", None)
    is_single = isinstance(shape, tuple) and math.prod(shape) == 1
    return value.item() if is_single else value


def _to_float(value: Any, code: str = "<d") -> float:
    if type(value) is float and code == "<d":  # on the way of every row
        return value
    value = _number(value)
    if value is None:
        raise TypeError("it is not a number (float('nan') is, for a missing one)")
    number = float(value)
    if math.isinf(number) and "inf" not in str(value).lower():
        raise OverflowError("it is too large for a float")  # a Decimal, or text
    struct.pack(code, number)  # raises if only an infinity would be left of it
    return number


def _to_int(value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    if type(value) is int and low <= value <= high:
        return value
    value = _number(value)
    number = int(value)
    is_whole = hasattr(value, "__index__") or isinstance(value, (str, bytes))
    if not is_whole and number != value:
        raise TypeError("it is not a whole number")
    if not low <= number <= high:
        raise OverflowError(f"it is not in {low}..{high}")
    return number


def _to_bool(value: Any) -> bool:
    value = _number(value)
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise TypeError("it is not True, False, 1 or 0")
    return bool(value)


def _to_text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def _to_object(value: Any) -> bytes:
    return obj_to_string(value).encode("ascii")


def _to_pytorch_state(value: Any) -> bytes:
    import torch

    if callable(state_dict := getattr(value, "state_dict", None)):
        value = state_dict()  # of a module, an optimizer, ...
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _object_path(uid: str, objects_dir: str) -> str:
    """Return the path of a PICKLE or PYTORCH_STATE value's file.

    Raises:
        CorruptError: It would be outside the directory.
    """
    if not uid or uid in (".", "..") or {"/", "\\", ":", "\0"} & set(uid):
        raise CorruptError(f"{uid!r} names no file of {objects_dir}; it is not opened")
    return os.path.join(objects_dir, uid)


def _load_pickle(uid: str, objects_dir: str) -> Any:
    with open(_object_path(uid, objects_dir), "rb") as file:
        return pickle.load(file)


def _load_pytorch_state(uid: str, objects_dir: str, **kwargs: Any) -> Any:
    path = _object_path(uid, objects_dir)
    import torch

    # as trusting as a PICKLE: what was saved may hold more than tensors
    return torch.load(path, **{"weights_only": False, **kwargs})


class _Kind(NamedTuple):
    """What a column may hold, under the name that headers have for it."""

    type: Any  # in a schema
    convert: Callable[[Any], Any]  # value to what is stored: a number, or bytes of text
    code: str = ""  # struct format of the number; "" for text
    load: Callable[[str, str], Any] | None = None  # text and objects_dir to the object
    is_file: bool = False  # the bytes go to a file in objects_dir, its name is the text


def _numpy_kind(code: str) -> _Kind:
    dtype = np.dtype(code)
    if dtype.kind == "f":
        return _Kind(dtype.type, functools.partial(_to_float, code=f"<{code}"), code)
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    return _Kind(dtype.type, functools.partial(_to_int, low=low, high=high), code)


_KINDS: Final[Mapping[str, _Kind]] = {
    "float": _Kind(float, _to_float, "d"),
    "int": _Kind(int, _to_int, "q"),
    "bool": _Kind(bool, _to_bool, "?"),
    "str": _Kind(str, _to_text),
    OBJECT: _Kind(OBJECT, _to_object, load=lambda text, _: string_to_obj(text)),
    PICKLE: _Kind(PICKLE, pickle.dumps, load=_load_pickle, is_file=True),
    PYTORCH_STATE: _Kind(
        PYTORCH_STATE,
        _to_pytorch_state,
        # on a machine that may have no GPU
        load=functools.partial(_load_pytorch_state, map_location="cpu"),
        is_file=True,
    ),
    **{np.dtype(code).name: _numpy_kind(code) for code in "efdbhiqBHIQ"},
}
_KIND_OF_TYPE: Final[Mapping[Any, str]] = {
    **{t: np.dtype(t).name for t in set(np.sctypeDict.values())},  # np.bool_ is bool
    **{kind.type: name for name, kind in _KINDS.items()},
}


class _Schema:
    """What a header line says: the columns of a table and the layout of a record."""

    def __init__(self, header: bytes, columns: dict[str, str]) -> None:
        self.kinds = kinds = [_KINDS[name] for name in columns.values()]
        self.header = header  # with its newline
        self.columns = columns  # name: name of its kind
        self.types = {name: kind.type for name, kind in zip(columns, kinds)}
        self.slots = {n: (i, k.convert) for n, (i, k) in zip(columns, enumerate(kinds))}
        self.blank: list[Any] = [None] * len(kinds)  # a working row with nothing staged
        self.text_fields = [i for i, kind in enumerate(kinds) if not kind.code]
        self.file_fields = [i for i, kind in enumerate(kinds) if kind.is_file]
        codes = [kind.code or "q" for kind in kinds]
        text_start = ["q"] if self.text_fields else []
        self.record = struct.Struct("<q" + "".join(codes + text_start) + "q")
        # columns by position: names of numpy fields are no place for "" or "a/b"
        fields = [(str(i), np.dtype(code).str) for i, code in enumerate(codes)]
        fields += [("start", "<i8")] if text_start else []
        self.dtype = np.dtype([("number", "<i8"), *fields, ("check", "<i8")])


def _kind_of(column: Any, column_type: Any) -> str:
    """Return the name of a column's kind in a header."""
    if not isinstance(column, str):
        raise SchemaError(f"a column name must be a str, got {column!r}")
    with contextlib.suppress(TypeError):  # a type that has no hash is none of ours
        kind = _KIND_OF_TYPE.get(column_type, "")
        if kind in _KINDS:
            return kind
    raise SchemaError(
        f"column {column!r} has type {column_type!r}; use int, float, str, bool, a "
        "numpy integer or float type up to 64 bits, OBJECT, PICKLE or PYTORCH_STATE"
    )


def _encode_header(schema: Mapping[str, Any]) -> bytes:
    """Return the header line for a schema as users write it."""
    if not isinstance(schema, Mapping) or not schema:
        raise SchemaError(
            f"a schema is a dict, column to type, not empty; got {schema!r}"
        )
    columns = {name: _kind_of(name, schema[name]) for name in schema}
    return json.dumps({"cox": _FORMAT_VERSION, "columns": columns}).encode() + b"\n"


@functools.lru_cache(maxsize=1024)
def _decode_header(header: bytes) -> _Schema:
    """Parse a header line.

    Raises:
        CorruptError: It is none, or of a later format. The caller adds the path.
    """
    fields: Any = None
    with contextlib.suppress(ValueError):
        fields = json.loads(header)
    version = fields.get("cox") if isinstance(fields, dict) else None
    if type(version) is int and fields.get("columns") and header.endswith(b"\n"):
        if version > _FORMAT_VERSION:
            raise CorruptError(
                f"its format version {version} is newer than this cox reads "
                f"({_FORMAT_VERSION}); upgrade cox"
            )
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            return _Schema(header, fields["columns"])
    raise CorruptError(f"its first line is not the header of a table: {header[:200]!r}")


def schema_from_dict(d: Any, alternative: str = OBJECT) -> dict[str, Any]:
    """Return the schema that the values of an example row call for.

    Args:
        d: Column name to example value, as for :meth:`Table.update_row`.
        alternative: Kind for values that are no number, str or bool: ``OBJECT``,
            ``PICKLE`` or ``PYTORCH_STATE``.
    """
    if alternative not in (OBJECT, PICKLE, PYTORCH_STATE):
        raise SchemaError(
            f"alternative must be OBJECT, PICKLE or PYTORCH_STATE, got {alternative!r}"
        )
    schema = {}
    for name, value in _as_row(d).items():
        # 0-d tensors count as their number; numpy scalars keep their own type
        value_type = type(value if isinstance(value, np.generic) else _scalar(value))
        kind = _KINDS.get(_KIND_OF_TYPE.get(value_type, ""))
        schema[name] = kind.type if kind else alternative
    return schema


###############################################################################
# Row files
###############################################################################
# What holds here:
# - `.rows` and `.text` only grow, but for a torn end that the one writer cuts.
# - A row's text is in `.text` before its record is in `.rows`, so a reader that
#   reads `.rows` first finds the text of every record.
# - A record proves itself by its number and its check. What a crash can leave
#   behind the last good one (part of a record, zeros, a record whose text is
#   missing) is a torn end and no row; anything else there is corruption.


class _Rows(NamedTuple):
    """Rows of one or several tables with the same header."""

    header: bytes
    sources: list[int]  # whose the rows are, in the numbering of the caller
    counts: list[int]  # rows per source
    records: bytes
    texts: bytes


class _Scan(NamedTuple):
    """How much of a table's two files is good."""

    nrows: int
    text_size: int  # bytes
    torn_size: int  # bytes of `.rows` behind the last good record


def _scan(schema: _Schema, body: bytes, text: bytes) -> _Scan:
    """Find the good rows in the bytes behind a header.

    Raises:
        CorruptError: Something there is neither a good row nor a torn end. The
            message starts with the record's place; the caller adds the path.
    """
    size = schema.dtype.itemsize
    whole = len(body) // size
    records = np.frombuffer(body, schema.dtype, whole)
    number = np.arange(1, whole + 1)
    in_place = records["number"] == number
    good, expected = in_place, number
    start = text_end = np.zeros(whole, np.int64)
    if schema.text_fields:
        start, lengths = records["start"], [records[str(i)] for i in schema.text_fields]
        # a negative length must not pass for one that fits
        text_end = np.where(np.min(lengths, axis=0) < 0, -1, start + sum(lengths))
        good = in_place & (start >= 0) & (start <= text_end) & (text_end <= len(text))
        view = memoryview(text)
        expected = number.copy()
        spans = zip(start[good].tolist(), text_end[good].tolist())
        crcs = (zlib.crc32(view[a:b]) for a, b in spans)
        expected[good] += np.fromiter(crcs, np.int64)
    good = good & (records["check"] == expected)

    nrows = whole if good.all() else int(good.argmin())
    text_size = int(text_end[nrows - 1]) if nrows else 0
    torn_size = len(body) - nrows * size
    if not torn_size:
        return _Scan(nrows, text_size, 0)

    torn = nrows  # records from nrows up to here lack (part of) their text
    if schema.text_fields:
        kept = len(text.rstrip(b"\0"))
        follows = start == np.concatenate(([0], text_end[:-1]))
        lacks_text = (in_place & follows & (text_end > kept))[nrows:]
        torn += len(lacks_text) if lacks_text.all() else int(lacks_text.argmin())
    tail = body[torn * size :].rstrip(b"\0")
    # behind them: a record that stops, or turns to zeros, at some byte
    in_part = len(tail) < size and struct.pack("<q", torn + 1).startswith(tail[:8])
    if in_part and torn < whole:  # nor is it whole, with zeros in its check
        check = struct.pack("<q", expected[torn])
        in_part = not good[torn] and check.startswith(tail[size - 8 :])
    if not in_part:
        found = records["number"][torn] if torn < whole else "in part"
        raise CorruptError(
            f"record {torn + 1} at byte {len(schema.header) + torn * size}, or its "
            f"text, is damaged (its number reads {found}; good ones behind it: "
            f"{int(good[torn:].sum())}). Copy the file aside, then cut it to "
            f"{len(schema.header) + nrows * size} bytes to keep the first {nrows} rows"
        )
    return _Scan(nrows, text_size, torn_size)


def _merge_rows(parts: Iterable[_Rows]) -> list[_Rows]:
    """Join rows with equal headers, each header's in the order given."""
    by_header: dict[bytes, list[_Rows]] = {}
    for part in parts:
        by_header.setdefault(part.header, []).append(part)
    merged = []
    for header, same in by_header.items():
        if len(same) == 1:
            merged += same
            continue
        records: bytes | bytearray = b"".join(part.records for part in same)
        schema = _decode_header(header)
        if schema.text_fields:
            records = bytearray(records)
            text_sizes = [len(part.texts) for part in same]
            bases = np.cumsum([0, *text_sizes[:-1]])
            nrows = [sum(part.counts) for part in same]
            np.frombuffer(records, schema.dtype)["start"] += np.repeat(bases, nrows)
        merged.append(
            _Rows(
                header,
                list(itertools.chain.from_iterable(part.sources for part in same)),
                list(itertools.chain.from_iterable(part.counts for part in same)),
                bytes(records),
                b"".join(part.texts for part in same),
            )
        )
    return merged


def _decode_texts(rows: _Rows) -> dict[int, list[str]]:
    """Return the values of the text columns, by the columns' position."""
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    ascii_text = rows.texts.decode("ascii") if rows.texts.isascii() else None
    texts: dict[int, list[str]] = {}
    end: Any = records["start"] if schema.text_fields else None
    for i in schema.text_fields:
        start, end = end, end + records[str(i)]
        spans = zip(start.tolist(), end.tolist())
        if ascii_text is not None:  # one decode, then slices: twice as fast
            texts[i] = [ascii_text[a:b] for a, b in spans]
        else:
            encoded = (rows.texts[a:b] for a, b in spans)
            texts[i] = [text.decode("utf-8", "surrogatepass") for text in encoded]
    return texts


def _text_dtype() -> Any:
    """Return what pandas takes for str: by its version, and its options now."""
    return pd.Series([""]).dtype


def _frame(rows: _Rows, text_dtype: Any = None) -> pd.DataFrame:
    """Return rows as a frame, index 0..n-1, text in pandas' own dtype for str."""
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    columns: dict[str, Any] = {}
    texts = _decode_texts(rows)
    text_dtype = text_dtype or _text_dtype()
    for i, name in enumerate(schema.columns):
        if i not in texts:
            columns[name] = records[str(i)]
            continue
        try:
            columns[name] = pd.Series(texts[i], dtype=text_dtype)
        except UnicodeEncodeError:  # pyarrow holds no lone surrogates
            columns[name] = pd.Series(texts[i], dtype=object)
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def _encode_rows(header: bytes, columns: list[Any]) -> _Rows:
    """Return rows made of whole columns: arrays, or lists of bytes for text kinds."""
    schema = _decode_header(header)
    records = np.zeros(len(columns[0]), schema.dtype)
    number = records["check"] = records["number"] = np.arange(1, len(records) + 1)
    for i, values in enumerate(columns):
        is_text = i in schema.text_fields
        records[str(i)] = [len(value) for value in values] if is_text else values
    if not schema.text_fields:
        return _Rows(header, [0], [len(records)], records.tobytes(), b"")
    by_row = [b"".join(row) for row in zip(*[columns[i] for i in schema.text_fields])]
    records["start"] = np.cumsum([0, *map(len, by_row)])[:-1]
    records["check"] = number + np.array([zlib.crc32(text) for text in by_row], "<i8")
    return _Rows(header, [0], [len(records)], records.tobytes(), b"".join(by_row))


def _table_path(run_dir: str, name: str) -> str:
    """Return the path of a table's files without their suffix."""
    quoted = urllib.parse.quote(name, safe="", errors="surrogatepass")
    return os.path.join(run_dir, _TABLES_DIR, quoted)


def _open_file(path: str) -> int:
    """Open a file of a run to read it; only a regular file, and no link, is one.

    Raises:
        FileNotFoundError: There is none.
        CorruptError: It is something else, which may lead out of the run, or block.
    """
    try:
        fd = os.open(path, _O_READ)
    except OSError as err:
        if err.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    else:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise CorruptError(f"{_printable(path)} is no regular file; it is not opened")


def _read_file(path: str) -> bytes:
    with open(_open_file(path), "rb", buffering=0) as file:
        return file.read()


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _read_table(path: str) -> tuple[_Schema, bytes, bytes, _Scan]:
    """Read a table's files as they are now, both of one generation.

    Args:
        path: The files without their suffix, as of :func:`_table_path`.

    Returns:
        Schema, all bytes behind the header, all text, and how much of it is good.

    Raises:
        FileNotFoundError: There is no such table.
        CorruptError: A file is damaged.
    """
    while True:
        text: bytes | None = b""
        with open(path + _ROWS, "rb", buffering=0) as file:
            data = file.read()
            header = data[: data.find(b"\n") + 1]
            try:
                schema = _decode_header(header)
                if schema.text_fields:
                    try:
                        text = _read_file(path + _TEXT)
                    except FileNotFoundError:
                        text = None
                    if not _is_same_file(file.fileno(), path + _ROWS):
                        continue  # mode 'w' began the table afresh meanwhile
                if text is None:
                    raise CorruptError(f"its text {path}{_TEXT} is gone. Bring it back")
                body = data[len(header) :]
                scan = _scan(schema, body, text)
            except CorruptError as err:
                raise CorruptError(f"{path + _ROWS}: {err}") from None
        if scan.torn_size > schema.dtype.itemsize:
            _log.warning(
                "%s ends in %d bytes that are no rows, as when a machine crashed; the "
                "%d rows before them are good",
                *(path + _ROWS, scan.torn_size, scan.nrows),
            )
        return schema, body, text, scan


def _write_all(fd: int, data: bytes) -> None:
    """Write with one ``os.write``, or go on after a short one until it fails."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _sync_dir(path: str) -> None:
    with contextlib.suppress(OSError):  # Windows opens no directory
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _storage_error(err: OSError, what: str, path: str) -> StorageError:
    return StorageError(err.errno, f"{what}: {os.strerror(err.errno or 0)}", path)


def _write_file(path: str, data: bytes, new_dir: str = "", sync: bool = True) -> None:
    """Make or replace a file in one step.

    It is written under another name, in ``new_dir`` or beside (1), synced (2), moved
    to its place (3), and the move synced (4). A crash leaves the old file before 3,
    the new one after.
    """
    directory, name = os.path.split(path)
    new_path = os.path.join(new_dir or directory, name + _NEW)
    try:
        fd = os.open(new_path, _O_CREATE, 0o666)
        try:
            _write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new_path, path)
    except OSError as err:
        with contextlib.suppress(OSError):
            os.unlink(new_path)
        raise _storage_error(err, "could not write the file", path) from err
    if sync:
        _sync_dir(directory)


def _dated_path(path: str) -> str:
    """Return a path beside ``path``, not taken, that says when and of what."""
    stamp = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = itertools.chain([stamp], (f"{stamp}-{n}" for n in itertools.count(2)))
    return next(path for path in candidates if not os.path.lexists(path))


class _RowWriter:
    """The open files of a table. Its owner holds the run's lock at every call."""

    _rows_fd = _text_fd = -1

    def __init__(self, path: str, schema: _Schema) -> None:
        found, body, text, scan = _read_table(path)
        if [*found.columns.items()] != [*schema.columns.items()]:
            raise SchemaError(
                f"{path + _ROWS} was made anew, with columns {found.columns}; open the "
                "Store again"
            )
        self.path = path
        self._schema = found
        self.header = found.header
        # Rows, and bytes of text, that are whole. One attribute, so that an
        # exception out of a signal handler finds both or neither changed.
        self.end: tuple[int, int] = (scan.nrows, scan.text_size)
        self._is_clean = False  # nothing is behind `end`; False while a row is written
        self._pack = found.record.pack
        if scan.torn_size > found.dtype.itemsize:
            rows_size = scan.nrows * found.dtype.itemsize
            self._keep_aside(_ROWS, body[rows_size:])
            self._keep_aside(_TEXT, text[scan.text_size :])
        self._rows_fd = os.open(path + _ROWS, _O_APPEND)
        if found.text_fields:
            self._text_fd = os.open(path + _TEXT, _O_APPEND)
        self._repair()

    def _keep_aside(self, suffix: str, torn: bytes) -> None:
        if torn:
            aside = _dated_path(self.path + suffix)
            _write_file(aside, torn)
            _log.warning("the torn end of %s is now in %s", self.path + suffix, aside)

    def append(self, values: list[Any], text: bytes) -> None:
        """Append one row; when this returns, the row is in the file.

        Args:
            values: Per column its number, or the length of its text in bytes.
            text: The row's text, in the order of the columns.

        Raises:
            StorageError: The row is not in the file, nor any part of it.
        """
        if not self._is_clean:
            self._repair()
        row_count, text_size = self.end
        number = row_count + 1
        try:
            self._is_clean = False
            if self._schema.text_fields:
                if text and (written := os.write(self._text_fd, text)) < len(text):
                    _write_all(self._text_fd, text[written:])
                check = number + zlib.crc32(text)
                record = self._pack(number, *values, text_size, check)
            else:
                record = self._pack(number, *values, number)
            if (written := os.write(self._rows_fd, record)) < len(record):
                _write_all(self._rows_fd, record[written:])
            self.end = (number, text_size + len(text))
            self._is_clean = True
        except BaseException as err:
            if not self._is_clean:
                with contextlib.suppress(OSError):  # else before the next row
                    self._repair()
            if isinstance(err, OSError):
                what = f"could not write row {number}, no part of it is there"
                raise _storage_error(err, what, self.path + _ROWS) from err
            raise

    def _repair(self) -> None:
        """Cut both files to `end`, behind which a row was not finished."""
        nrows, text_size = self.end
        rows_size = len(self._schema.header) + nrows * self._schema.dtype.itemsize
        for fd, size in ((self._rows_fd, rows_size), (self._text_fd, text_size)):
            if fd >= 0 and os.fstat(fd).st_size != size:
                if os.fstat(fd).st_size < size:
                    raise CorruptError(
                        f"{self.path + _ROWS} or its text got shorter while a Store "
                        f"had it open with {nrows} rows. Open the Store again"
                    )
                os.ftruncate(fd, size)
        self._is_clean = True

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        for fd in (self._text_fd, self._rows_fd):
            if fd >= 0:
                os.fsync(fd)

    def close(self) -> None:
        rows_fd, text_fd = self._rows_fd, self._text_fd
        self._rows_fd = self._text_fd = -1
        for fd in (rows_fd, text_fd):
            if fd >= 0:
                os.close(fd)

    def __del__(self, is_late: Any = sys.is_finalizing) -> None:
        if not is_late():  # else names that close() needs may be None
            self.close()


###############################################################################
# HDF5
###############################################################################
# store.h5 is a copy of the row files, and where there are no row files, the
# original cox's own. Either may come from someone else: PyTables unpickles each
# attribute of a node that it opens, so it gets an unpickler that makes only
# plain values and names only types.


class _PlainUnpickler(pickle.Unpickler):
    """Makes numbers, strings and containers of them; refuses every global."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


class _TypeUnpickler(_PlainUnpickler):
    """Also makes the types that a schema of the original cox names."""

    _builtins: Final = {  # as Python 2, Python 3 and dill name them
        **{"int": int, "long": int, "IntType": int, "LongType": int},
        **{"float": float, "FloatType": float, "bool": bool, "BooleanType": bool},
        **{"str": str, "unicode": str, "StringType": str, "UnicodeType": str},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in self._builtins:
            return self._builtins[name]
        if module in ("dill._dill", "dill.dill") and name == "_load_type":
            return self._builtins.__getitem__
        if module == "numpy":
            numpy_type = getattr(np, name, None)
            if isinstance(numpy_type, type) and issubclass(numpy_type, np.generic):
                return numpy_type
        return super().find_class(module, name)


class _GuardedPickle:
    """Stands in for the module ``pickle`` in PyTables, for one thread."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._thread = threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return self._module.loads(data, **kwargs)
        try:
            return _TypeUnpickler(io.BytesIO(data), **kwargs).load()
        except Exception:  # what PyTables makes of most attributes it cannot unpickle
            return data


_hdf5_lock = threading.RLock()


@contextlib.contextmanager
def _open_hdf5(image: bytes = b"") -> Iterator[Any]:
    """Open the bytes of an HDF5 file, or of a new one, without running its pickles."""
    options: dict[str, Any] = {"driver_core_image": image} if image else {}
    attributeset: Any = sys.modules["tables.attributeset"]
    with _hdf5_lock:
        pickle_module = attributeset.pickle
        attributeset.pickle = _GuardedPickle(pickle_module)
        try:
            # PyTables wants a name, and makes no such file
            with pd.HDFStore(
                f"cox-{uuid.uuid4()}", "a" if image else "w", **_HDF5_OPTIONS, **options
            ) as store:
                yield store
        finally:
            attributeset.pickle = pickle_module


def _hdf5_image(store: Any) -> bytes:
    return bytes(store.root._v_file.get_file_image())


@functools.lru_cache(maxsize=1)
def _empty_image() -> bytes:
    with _open_hdf5() as store:
        return _hdf5_image(store)


def _put_frame(store: Any, name: str, rows: _Rows) -> None:
    """Write a table into ``store``, with the attributes that the original has.

    Raises:
        ValueError: pandas can hold no frame under this name.
    """
    name.encode()  # a lone surrogate is a ValueError
    if "\0" in name or not {"", ".", "..", "table", "meta"}.isdisjoint(name.split("/")):
        raise ValueError(f"{name!r} is no key of an HDFStore")
    h5 = store.root._v_file
    for path in itertools.accumulate(name.split("/"), "{}/{}".format):
        if f"/{path}" in h5 and isinstance(h5.get_node(f"/{path}"), tables.Leaf):
            raise ValueError(f"{name!r} is a part of another table's frame")
    schema = _decode_header(rows.header)
    frame = _frame(rows, object)
    half_floats = [c for c, kind in schema.columns.items() if kind == "float16"]
    frame = frame.astype(dict.fromkeys(half_floats, "float32"))  # pandas writes none
    records = np.frombuffer(rows.records, schema.dtype)
    width = sum(int(records[str(i)].max(initial=0)) for i in schema.text_fields)
    # fixed-width text loses NULs at its end, and "\0nan" must stand for NaN alone
    is_table = len(frame) * width <= _HDF5_TEXT_MAX and b"\0" not in rows.texts
    if is_table:
        shown = frame
        if frame.empty:  # pandas writes no such frame: write a row, then cut it
            filler = [[0 if kind.code else "" for kind in schema.kinds]]
            shown = pd.DataFrame(filler, columns=frame.columns).astype(frame.dtypes)
        try:
            store.append(
                name, shown, format="table", index=False,
                nan_rep="\0nan", encoding="UTF-8", errors="surrogatepass",
            )  # fmt: skip
            store.get_storer(name).table.truncate(len(frame))
        except (ValueError, TypeError, tables.HDF5ExtError):
            is_table = False
    if not is_table:
        store.put(name, frame, format="fixed", track_times=False)
    attributes = store.get_node(name)._v_attrs
    attributes.COX_NROWS = len(frame)
    cox_data = {"schema": schema.types, "name": name}
    if len(pickle.dumps(cox_data, 0)) <= _HDF5_ATTRIBUTE_MAX:
        attributes.COX_DATA = cox_data


def _clear_frames(store: Any, names: Collection[str]) -> bool:
    """Remove the frames of cox's tables, ``names`` now, and keep the user's own.

    Returns False, with the job half done, if something else added rows or a table.
    """
    h5 = store.root._v_file
    groups = [
        group
        for group in h5.walk_groups()
        if group._v_pathname[1:] in names
        or {"COX_NROWS", "COX_DATA"} & set(group._v_attrs._v_attrnamesuser)
    ]
    for group in reversed(groups):  # children of a group before itself
        attributes = group._v_attrs
        if "COX_NROWS" not in attributes:
            if group._v_pathname[1:] not in names:
                return False
        elif "table" in group._v_children:
            if attributes["COX_NROWS"] != group._v_children["table"].nrows:
                return False
        for leaf in list(group._v_leaves.values()):
            leaf._f_remove()
        if group._v_groups:
            for attribute in list(attributes._v_attrnamesuser):
                del attributes[attribute]
        elif group is not h5.root:
            group._f_remove()
    return True


def _put_frames(store: Any, all_rows: Mapping[str, _Rows]) -> bytes:
    with warnings.catch_warnings():
        # names that are no Python identifiers, wide frames, text as pickles: all meant
        warnings.simplefilter("ignore", tables.NaturalNameWarning)
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        warnings.simplefilter("ignore", tables.PerformanceWarning)
        for name in sorted(all_rows):  # "a" before "a/b", which is a group in it
            try:
                _put_frame(store, name, all_rows[name])
            except Exception as err:  # one odd table must not keep the others out
                _log.warning("table %r is left out of %s: %s", name, _STORE_NAME, err)
    return _hdf5_image(store)


def _export_image(all_rows: Mapping[str, _Rows], old: bytes) -> tuple[bytes, str]:
    """Return the bytes of a store.h5 with these tables and the user's own frames.

    Args:
        all_rows: Table name to its rows.
        old: Bytes of the store.h5 that is there.

    Returns:
        The bytes, and if ``old`` must be kept aside, why.
    """
    reason = ""
    if old and old != _empty_image():
        try:
            with _open_hdf5(old) as store:
                if not _clear_frames(store, all_rows):
                    reason = "something else added rows or a table of cox to it"
                elif next(store.root._v_file.walk_nodes("/", "Leaf"), None) is not None:
                    return _put_frames(store, all_rows), ""
        except (tables.HDF5ExtError, OSError, ValueError, AttributeError):
            reason = "it is damaged, or no HDF5 file"
    with _open_hdf5() as store:
        return _put_frames(store, all_rows), reason


def _original_tables(run_dir: str) -> dict[str, _Rows]:
    """Read the tables of a run that the original cox wrote.

    Raises:
        CorruptError: store.h5 is no HDF5 file, or its tables are not cox's.
    """
    path = os.path.join(run_dir, _STORE_NAME)
    reason = "it changes all the time"
    for _ in range(10):
        before, image, after = os.stat(path), _read_file(path), os.stat(path)
        try:
            if before.st_mtime_ns == after.st_mtime_ns:
                with _open_hdf5(image or b"empty") as store:
                    groups = store.root._f_walk_groups()
                    ours = [group for group in groups if "COX_DATA" in group._v_attrs]
                    return dict(map(_original_table, ours))
        except tables.HDF5ExtError:
            reason = "it is damaged, or no HDF5 file; bring it back or leave it out"
        except (OSError, ValueError, LookupError) as err:
            reason = str(err)
        if time.time() - after.st_mtime > 60:
            break
        time.sleep(0.05)  # its writer may be at work: read it again
    raise CorruptError(f"{path} cannot be read: {reason}")


def _original_table(group: Any) -> tuple[str, _Rows]:
    data = group._v_attrs["COX_DATA"]
    if not isinstance(data, dict):
        raise ValueError(f"COX_DATA of {group._v_pathname} is not what cox writes")
    header = _encode_header(data["schema"])
    node = group._v_children["table"]
    if not isinstance(node, tables.Table):  # reading a VLArray would unpickle it
        raise ValueError(f"{group._v_pathname}/table is no table")
    records: Any = node.read()
    values: dict[str, Any] = {}
    for field in set(records.dtype.names or ()) - {"index"}:
        names = node._v_attrs[field + "_kind"]
        block = records[field].reshape(len(records), len(names))
        values.update((name, block[:, i]) for i, name in enumerate(names))
    columns = []
    for name, kind in _decode_header(header).columns.items():
        column = values[name]
        if code := _KINDS[kind].code:
            column = column.astype(np.dtype(code))
            if code not in "efd" and (column != values[name]).any():
                raise ValueError(f"column {name!r} of {group._v_pathname} is no {kind}")
        columns.append(column if code else column.tolist())  # of bytes, UTF-8
    return str(data["name"]), _encode_rows(header, columns)


###############################################################################
# Run directory
###############################################################################
# What holds here:
# - Readers take no lock and make nothing. The first write of a Store takes the
#   lock, which the kernel gives back when the process dies.
# - `.tables` comes first and store.h5 last when a run is made, so store.h5
#   without `.tables` is a run of the original cox.
# - A child after fork has the parent's files open, so it may not write, and it
#   closes its copy of the lock, or the run would stay locked when the parent dies.


def _is_run(run_dir: str) -> bool:
    return any(
        os.path.exists(os.path.join(run_dir, name))
        for name in (_TABLES_DIR, _STORE_NAME)
    )


def _list_runs(directory: str) -> list[str]:
    """Return the experiment ids in a directory, sorted; no file is opened."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if _is_run(entry.path))


def _list_tables(run_dir: str) -> list[str] | None:
    """Return the names of the tables, sorted; None for a run of the original cox."""
    try:
        names = os.listdir(os.path.join(run_dir, _TABLES_DIR))
    except FileNotFoundError:
        return None
    return sorted(
        urllib.parse.unquote(name[: -len(_ROWS)], errors="surrogatepass")
        for name in names
        if name.endswith(_ROWS)
    )


def _read_rows(run_dir: str, name: str) -> _Rows:
    """Read a table of a run as it is now, whoever wrote it.

    Raises:
        NotFoundError: The run has no such table.
        CorruptError: A file of the table is damaged.
    """
    names: list[str] | None = None
    for _ in range(2):  # between two looks a table may be made, or a run converted
        with contextlib.suppress(FileNotFoundError):
            schema, body, text, scan = _read_table(_table_path(run_dir, name))
            body = body[: scan.nrows * schema.dtype.itemsize]
            return _Rows(schema.header, [0], [scan.nrows], body, text)
        names = _list_tables(run_dir)
        if names is None and _is_run(run_dir):
            original = _original_tables(run_dir)
            if name in original:
                return original[name]
            names = sorted(original)
        if name not in (names or ()):
            break
    raise NotFoundError(
        f"no table {name!r} in {run_dir}. Tables: {', '.join(names or ['none'])}"
    )


def _read_header(run_dir: str, name: str) -> bytes:
    """Read the header line of one table that row files hold."""
    path = _table_path(run_dir, name) + _ROWS
    with open(path, "rb") as file:
        header = file.readline()
    try:
        return _decode_header(header).header
    except CorruptError as err:
        raise CorruptError(f"{path}: {err}") from None


def _read_headers(run_dir: str) -> dict[str, bytes]:
    """Read the header lines of all tables of a run, by table name."""
    names = _list_tables(run_dir)
    if names is None:
        return {name: rows.header for name, rows in _original_tables(run_dir).items()}
    headers = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # mode 'w' has just erased it
            headers[name] = _read_header(run_dir, name)
    return headers


def _create_table(tables_dir: str, name: str, rows: _Rows) -> None:
    """Make a table's files: its text first, then `.rows`, whole, in one step."""
    path = os.path.join(tables_dir, os.path.basename(_table_path("", name)))
    if _decode_header(rows.header).text_fields:
        _write_file(path + _TEXT, rows.texts)
    _write_file(path + _ROWS, rows.header + rows.records)


class _Run:
    """A run's directory, open in one process: the lock, the writers, the export.

    Store and Table share it and it knows neither, so it goes when both are gone.
    """

    def __init__(self, path: str, mode: str) -> None:
        self.path = path
        self.mode = mode
        self.tables_dir = os.path.join(path, _TABLES_DIR)
        self.objects_dir = os.path.join(path, _OBJECTS_DIR)
        self.store_path = os.path.join(path, _STORE_NAME)
        self.lock = threading.RLock()  # held during every change
        self.is_busy = False  # a row is being staged or written
        self.refusal = ""  # why this process may not write
        self.unsynced: list[str] = []  # paths of new files in .table_objects/
        self._lock_fd = -1
        self.writers: dict[str, _RowWriter] = {}
        self._export_lock = threading.RLock()
        self._is_exporting = False
        self._is_changed = False  # tables were made or erased since the last export
        self._exported: dict[str, tuple[int, int]] = {}  # where the writers were then
        if mode == "r":
            self.refusal = "it was opened with mode 'r'; open it with mode 'a'"
        else:
            _runs.add(self)

    def create(self, new: bool) -> None:
        """Make what a new run lacks, or one whose process died while making it."""
        os.makedirs(self.path, exist_ok=True)
        try:
            os.mkdir(self.tables_dir)
        except FileExistsError:
            if new:
                raise StoreExistsError(f"{self.path} was made meanwhile") from None
        for attempts_left in reversed(range(200)):
            if os.path.exists(self.store_path):
                return
            try:
                self._take_lock(self.tables_dir)
                break
            except WriteRefusedError:  # another process is making it
                if not attempts_left:
                    raise
                time.sleep(0.01)
        try:
            for name in (_SAVE_DIR, _TENSORBOARD_DIR):
                os.makedirs(os.path.join(self.path, name), exist_ok=True)
            if not os.path.exists(self.store_path):
                self._write_store(self.store_path, _empty_image(), sync=False)
        finally:
            self._release()

    def _write_store(self, path: str, image: bytes, sync: bool = True) -> None:
        # by way of .tables, as `ls` shows only what is whole
        _write_file(path, image, self.tables_dir, sync)

    def claim(self) -> None:
        """Take the lock before a write; convert a run of the original cox.

        Raises:
            WriteRefusedError: This process may not write. Nothing was changed.
        """
        if self.refusal:
            raise WriteRefusedError(f"{self.path} may not be written: {self.refusal}")
        if self._lock_fd < 0:
            if os.path.isdir(self.tables_dir):
                self._take_lock(self.tables_dir)
            else:
                self._convert()
            self._is_changed = True  # for all we know: a killed writer exports nothing

    def _open_to_lock(self, path: str, flags: int = 0) -> int:
        try:
            return os.open(path, os.O_RDWR | _O_BINARY | flags, 0o666)
        except OSError as err:
            raise WriteRefusedError(
                f"{self.path} may not be written: {err}. To read, use mode 'r'"
            ) from err

    def _take_lock(self, tables_dir: str) -> None:
        fd = self._open_to_lock(os.path.join(tables_dir, _LOCK_NAME), os.O_CREAT)
        try:
            if not _flock(fd):
                holder = os.read(fd, 1 << 10).decode(errors="replace").strip()
                if any(run._lock_fd >= 0 and run.path == self.path for run in _runs):
                    holder += " (another Store of this process: call its close(); in a "
                    holder += "notebook, Out[] may still hold it: %reset out)"
                raise WriteRefusedError(
                    f"{self.path} is being written by {holder or 'another process'}; "
                    "wait for that, stop it, or open another run"
                )
            for name in os.listdir(tables_dir):  # of a writer that died
                if name.endswith(_NEW):
                    os.unlink(os.path.join(tables_dir, name))
            with contextlib.suppress(OSError):  # full disk: the lock holds all the same
                os.ftruncate(fd, 0)
                os.write(fd, f"host {socket.gethostname()}, pid {os.getpid()}".encode())
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def _convert(self) -> None:
        """Make the row files of a run that the original cox wrote, in one step."""
        fd = self._open_to_lock(self.store_path)
        try:
            if not _flock(fd):  # HDF5's own way to say that it writes
                raise WriteRefusedError(
                    f"{self.store_path} is open in another program; close it there"
                )
            if os.path.isdir(self.tables_dir):  # since we looked
                self._take_lock(self.tables_dir)
                return
            try:
                original = _original_tables(self.path)
            except CorruptError:
                if self.mode != "w":
                    raise
                original = {}  # the export keeps the damaged file aside
            new_dir = self.tables_dir + _NEW
            shutil.rmtree(new_dir, ignore_errors=True)  # of one that died here
            os.mkdir(new_dir)
            self._take_lock(new_dir)
            try:
                for name, rows in original.items():
                    _create_table(new_dir, name, rows)
                os.rename(new_dir, self.tables_dir)
            except BaseException:
                self._release()
                raise
            _sync_dir(self.path)
            self._export()  # so that rows the original adds from now on are noticed
        finally:
            os.close(fd)

    def erase(self) -> None:
        """Begin the run afresh. Records go before what they point to."""
        self.claim()
        for suffix in (_ROWS, _TEXT):
            for name in os.listdir(self.tables_dir):
                if name.endswith(suffix):
                    os.unlink(os.path.join(self.tables_dir, name))
        shutil.rmtree(self.objects_dir, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # or old curves go on in the new
            for entry in os.scandir(os.path.join(self.path, _TENSORBOARD_DIR)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
        self._is_changed = True

    def create_table(self, name: str, schema: _Schema) -> _Schema:
        """Make a table, or return the schema of the one there if it is the same.

        Raises:
            SchemaError: It is another one, or the name is too long.
        """
        self.claim()
        if len(os.path.basename(_table_path("", name))) > _TABLE_NAME_MAX:
            raise SchemaError(
                f"table name {name[:40]!r}... takes over {_TABLE_NAME_MAX} bytes when "
                "percent-encoded; use a shorter one"
            )
        if name not in (_list_tables(self.path) or ()):
            _create_table(self.tables_dir, name, _Rows(schema.header, [], [], b"", b""))
            self._is_changed = True
        found = _decode_header(_read_header(self.path, name))
        if found.columns == schema.columns:
            return found  # whose columns may be in another order
        writer = self.writers.get(name) or self.open_writer(name, found)
        if writer.end[0]:
            raise SchemaError(
                f"table {name!r} in {self.path} has rows, and columns {found.columns}, "
                f"not {schema.columns}; use another name, or a new run"
            )
        self.writers.pop(name).close()
        _create_table(self.tables_dir, name, _Rows(schema.header, [], [], b"", b""))
        self._is_changed = True
        return schema

    def open_writer(self, name: str, schema: _Schema) -> _RowWriter:
        """Open the files of a table; repair their end."""
        self.claim()
        self.writers[name] = _RowWriter(_table_path(self.path, name), schema)
        return self.writers[name]

    def nrows(self, name: str) -> int:
        if name in self.writers:
            return self.writers[name].end[0]
        return _read_rows(self.path, name).counts[0]

    @property
    def is_changed(self) -> bool:
        ends = {writer.path: writer.end for writer in self.writers.values()}
        return self._is_changed or (bool(ends) and ends != self._exported)

    def checkpoint(self) -> None:
        """Wait until all rows are on the disk, then write store.h5 anew."""
        # `lock` is never waited for under `_export_lock`: a signal handler that comes
        # amid a row holds the one and may want the other
        with self.lock:
            self.claim()
            writers = list(self.writers.values())
            ends = {writer.path: writer.end for writer in writers}
            unsynced, self.unsynced = self.unsynced, []
            self._is_changed = False
        try:
            with self._export_lock:
                self._refuse_amid_export()
                try:
                    self._is_exporting = True
                    self._sync(writers, unsynced)
                    if self._lock_fd >= 0:  # else closed meanwhile, and so exported
                        self._export()
                finally:
                    self._is_exporting = False
        except BaseException:
            self._is_changed = True
            self.unsynced += unsynced
            raise
        self._exported = ends

    def _sync(self, writers: list[_RowWriter], object_paths: list[str]) -> None:
        try:
            for path in object_paths:
                with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
                    os.fsync(file.fileno())
            for writer in writers:
                writer.sync()
        except OSError as err:
            raise _storage_error(err, "could not sync the rows", self.path) from err
        for directory in (self.objects_dir, self.tables_dir):
            _sync_dir(directory)

    def _export(self) -> None:
        names = _list_tables(self.path) or []
        all_rows = {name: _read_rows(self.path, name) for name in names}
        old = b""
        with contextlib.suppress(FileNotFoundError):
            old = _read_file(self.store_path)
        image, reason = _export_image(all_rows, old)
        if reason:
            aside = _dated_path(self.store_path)
            self._write_store(aside, old)
            _log.warning("kept %s as %s: %s", self.store_path, aside, reason)
        self._write_store(self.store_path, image)

    def close(self, refusal: str = "its Store was closed; open it again") -> None:
        """Export if anything changed, and give up the lock.

        Raises:
            StorageError: store.h5 could not be written. The run stays open: the
                rows are safe in their own files, and close() may be tried again.
        """
        if self.is_changed:
            self.checkpoint()
        with self.lock, self._export_lock:
            self._refuse_amid_export()
            if self.is_changed:  # rows that other threads logged meanwhile
                self.checkpoint()
            if not self.is_busy:  # else a signal handler came amid a row: close later
                self.refusal = self.refusal or refusal
                self._release()

    def _refuse_amid_export(self) -> None:
        if self._is_exporting:  # by this thread, which holds the lock again
            raise WriteRefusedError(
                f"a signal handler came amid an export of {self.path}; set a flag "
                "there and close in the main program"
            )

    def _release(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def after_fork(self) -> None:
        """Make this the child's copy: readable, with no hold on the parent's lock."""
        self.refusal = self.refusal or (
            "it was opened before fork() by the parent process; open a run of its own "
            "in the child, or send the rows to the parent"
        )
        self._is_changed = self.is_busy = False
        self.lock, self._export_lock = threading.RLock(), threading.RLock()
        self._release()

    def close_at_last(
        self, refusal: str = "the interpreter exits", is_late: Any = sys.is_finalizing
    ) -> None:
        """Close, where nobody is left to take an exception."""
        if is_late():  # atexit has been here, and names of this module may be None
            return
        try:
            self.close(refusal)
        except Exception as err:
            is_ours = isinstance(err, CoxError)  # then the message says it all
            _log.error("%s: %s", self.store_path, err, exc_info=not is_ours)
            with self.lock:
                if not self.is_busy:
                    self._is_changed = False
                    self._release()

    __del__ = close_at_last


_runs: Final[weakref.WeakSet[_Run]] = weakref.WeakSet()  # for fork and exit


def _flock(fd: int) -> bool:
    """Take the exclusive lock; return False where another open file has it."""
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    return True  # also on a file system that has no locks


def _close_runs() -> None:
    for run in list(_runs):
        run.close_at_last()


def _after_fork_in_child() -> None:
    global _hdf5_lock
    _hdf5_lock = threading.RLock()
    for run in list(_runs):
        run.after_fork()


atexit.register(_close_runs)
if hasattr(os, "register_at_fork"):
    # no thread may be inside HDF5 at the fork: the child could never go there again
    os.register_at_fork(
        before=lambda: _hdf5_lock.acquire() and None,
        after_in_parent=lambda: _hdf5_lock.release(),
        after_in_child=_after_fork_in_child,
    )


###############################################################################
# Table
###############################################################################


class Table:
    """A table of a run: rows of typed columns, to which only appending is possible.

    ``Store.add_table`` and ``store[name]`` make these. The working row is kept
    here: ``update_row`` stages values, ``flush_row`` writes them.
    """

    get_object = staticmethod(string_to_obj)

    def __init__(
        self,
        name: str,
        schema: Mapping[str, Any],
        table_obj_dir: str,
        store: Store,
        has_initialized: bool = False,
    ) -> None:
        """Open a table, or make it.

        Args:
            name: Name of the table.
            schema: Column name to type; see :meth:`Store.add_table`.
            table_obj_dir: Directory for the files of PICKLE and PYTORCH_STATE values.
            store: The run that the table belongs to.
            has_initialized: The table exists already.
        """
        if not isinstance(name, str) or not name:
            raise SchemaError(f"a table's name must be a str, not empty; got {name!r}")
        self.name = name
        self._run = store._run
        try:
            self._schema = _decode_header(_encode_header(schema))
        except SchemaError as err:
            raise SchemaError(f"table {name!r}: {err}") from None
        if not has_initialized:
            with self._run.lock:
                self._schema = self._run.create_table(name, self._schema)
        self._objects_dir = table_obj_dir
        self._staged = self._schema.blank.copy()  # converted values; None: none yet
        self._replaced: set[str] = set()  # columns of it that were staged again
        self._has_warned = False

    def __str__(self) -> str:
        lines = str((frame := self.df).head(5)).split("\n")
        lines += [f" ... ({len(frame) - 5} rows hidden)"] if len(frame) > 5 else []
        return "\n".join(map(_printable, lines))

    def __repr__(self) -> str:
        columns = ", ".join(f"{c}: {kind}" for c, kind in self._schema.columns.items())
        return f"<Table {self.name!r} of {self._run.path}, {columns}>"

    def __reduce__(self) -> tuple[Any, ...]:
        folder, exp_id = os.path.split(self._run.path)
        mode = "r" if self._run.mode == "r" else "a"
        return operator.getitem, (Store(folder, exp_id, mode=mode), self.name)

    @property
    def schema(self) -> dict[str, Any]:
        """Column name to type, as in :meth:`Store.add_table`."""
        return dict(self._schema.types)

    @property
    def nrows(self) -> int:
        """How many rows are in the table's file."""
        return self._run.nrows(self.name)

    @property
    def df(self) -> pd.DataFrame:
        """All rows as a frame, index ``0..nrows-1``, read from the file as it is now.

        Serialized columns hold the stored strings: see :meth:`get_object`,
        :meth:`get_pickle` and :meth:`get_state_dict`.
        """
        return _frame(_read_rows(self._run.path, self.name))

    def update_row(self, data: Any) -> None:
        """Stage values of the working row, in memory until :meth:`flush_row`.

        Objects are serialized now, so later changes to them have no effect.

        Args:
            data: Column name to value, for any of the columns: a dict,
                :class:`Parameters`, ``argparse.Namespace`` or dataclass.

        Raises:
            SchemaError: A name is no column, or a value is not of its column's
                type. Nothing was staged.
        """
        self._stage(data, None)

    def _stage(self, data: Any, log_events: Callable[[int], None] | None) -> None:
        """Stage values once ``log_events``, called with the row's index, went well."""
        run = self._run
        with run.lock:
            if run.is_busy or run.refusal:
                self._refuse()
            try:
                run.is_busy = True
                data = _as_row(data)
                staged = self._merge(data)
                if log_events is not None:
                    log_events(self.nrows)
                self._note_replaced(data)
                self._staged = staged
            finally:
                run.is_busy = False

    def _note_replaced(self, names: Iterable[str]) -> None:
        """Warn, once, where a value of the working row is replaced twice."""
        if self._staged == self._schema.blank:
            self._replaced.clear()
            return
        slots = self._schema.slots
        replaced = {name for name in names if self._staged[slots[name][0]] is not None}
        if not self._has_warned and not replaced.isdisjoint(self._replaced):
            self._has_warned = True
            _log.warning(
                "%s: a value for table %r was replaced twice; flush_row() ends a row",
                *(_printable(self._run.path), self.name),
            )
        self._replaced |= replaced

    def flush_row(self) -> None:
        """Write the working row to the table's file and start an empty one.

        When this returns, the row survives the death of the process. It makes at
        most two system calls that write, plus a file for each PICKLE or
        PYTORCH_STATE value.

        Raises:
            SchemaError: A column has no value.
            WriteRefusedError: This process may not write.
            StorageError: The disk refused.

            After any of them the row is still staged, and no part of it written.
        """
        self.append_row({})

    def append_row(self, data: Any) -> None:
        """Stage ``data`` and flush the row in one call; on error, neither is done.

        Raises:
            SchemaError, WriteRefusedError, StorageError: As ``update_row`` and
                ``flush_row``. The working row is as it was before.
        """
        run = self._run
        with run.lock:
            if run.is_busy or run.refusal:
                self._refuse()
            try:
                run.is_busy = True
                self._write(self._merge(data))
            finally:
                run.is_busy = False

    def _refuse(self) -> None:
        run = self._run
        if run.is_busy:
            raise WriteRefusedError(
                f"a row of {run.path} was being written when a signal handler logged "
                f"to table {self.name!r}; set a flag there and log in the main program"
            )
        run.claim()

    def _merge(self, data: Any) -> list[Any]:
        """Return the working row with ``data`` in it, converted."""
        values = self._staged.copy()
        name = value = None
        try:
            slots = self._schema.slots
            for name, value in data.items():
                i, convert = slots[name]
                values[i] = convert(value)
        except Exception as err:
            if not isinstance(data, Mapping):
                return self._merge(_as_row(data))
            raise self._refusal(name, value, err) from err
        return values

    def _refusal(self, name: Any, value: Any, err: Exception) -> SchemaError:
        columns = self._schema.columns
        if name in columns:
            is_short = isinstance(value, (int, float, str)) and not (
                isinstance(value, int) and value.bit_length() > 200
            )
            shown = f"a value of type {type(value).__name__}"
            if is_short or value is None:
                shown = reprlib.repr(value)
            return SchemaError(
                f"column {name!r} of table {self.name!r} is {columns[name]} and cannot "
                f"take {shown}: {err}"
            )
        close = difflib.get_close_matches(str(name), columns, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return SchemaError(
            f"table {self.name!r} has no column {name!r}{hint} "
            f"Columns: {', '.join(columns)}"
        )

    def _write(self, values: list[Any]) -> None:
        """Write a working row to the file; begin the next if that went well."""
        if None in values:
            missing = [n for n, v in zip(self._schema.columns, values) if v is None]
            raise SchemaError(
                f"the row for table {self.name!r} has no value for column "
                f"{', '.join(map(repr, missing))}; give one with update_row first"
            )
        run, schema, staged = self._run, self._schema, self._staged
        writer = run.writers.get(self.name)
        if writer is None or writer.header != schema.header:
            writer = run.open_writer(self.name, schema)
        end, text = writer.end, b""
        object_paths: list[str] = []
        try:
            self._staged = schema.blank.copy()
            if schema.text_fields:
                values = values.copy()
                if schema.file_fields:
                    self._create_objects(values, object_paths)
                for i in schema.text_fields:
                    text += values[i]
                    values[i] = len(values[i])
            writer.append(values, text)
        except BaseException:
            if writer.end is end:  # the row is not in the file
                self._staged = staged
                for path in object_paths:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            raise
        if object_paths:
            run.unsynced += object_paths

    def _create_objects(self, values: list[Any], paths: list[str]) -> None:
        """Write values that go to files; put the files' names in their place."""
        for i in self._schema.file_fields:
            uid = str(uuid.uuid4())
            paths.append(os.path.join(self._objects_dir, uid))
            with contextlib.suppress(OSError):  # what else it is, the next line says
                os.mkdir(self._objects_dir)  # no parents: the run may be gone
            _write_file(paths[-1], values[i], self._run.tables_dir, sync=False)
            values[i] = uid.encode()

    def get_pickle(self, uid: str) -> Any:
        """Return the object that a PICKLE column's string stands for.

        This unpickles, so it may run code of whoever wrote the run.
        """
        return _load_pickle(uid, self._objects_dir)

    def get_state_dict(self, uid: str, **kwargs: Any) -> Any:
        """Return what ``torch.load`` makes of a PYTORCH_STATE column's string.

        Args:
            uid: The string in the column.
            kwargs: Passed to ``torch.load`` (``map_location``, ...). As with PICKLE,
                ``weights_only`` is False unless given.
        """
        return _load_pytorch_state(uid, self._objects_dir, **kwargs)

    get_pytorch_state = get_state_dict


###############################################################################
# TensorBoard events
###############################################################################
# Pure: values in, bytes out. An event file is a row of TFRecords, each one an Event
# message in protobuf's wire format. Field numbers are those of event.proto,
# summary.proto, tensor.proto (tensorboard/compat/proto) and of the plugins'
# plugin_data.proto. "values" below is Summary.value, field number included, so
# that values of one Event are joined by +.


def _expect(value: Any, attribute: str, what: str) -> Any:
    if not hasattr(value, attribute):
        raise TypeError(f"expected {what}, got {value!r:.80}")
    return value


def _as_array(value: Any) -> npt.NDArray[Any]:
    """Take numbers from numpy, torch (any device), jax, lists; imports none of them."""
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "detach"):
        value = [_as_array(item) for item in value]
    elif detach := getattr(value, "detach", None):
        value = detach().cpu()
        if "bfloat16" in str(value.dtype):  # numpy has none
            value = value.float()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got {value!r:.80}")
    return array


def _as_float(value: Any) -> float:
    """One number as a float; an int beyond its range becomes an infinity."""
    if not isinstance(value, (int, float)):
        array = _as_array(value)
        if array.size != 1:
            raise ValueError(f"expected one number, got shape {array.shape}")
        value = array.item()
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_CRC_BLOCK: Final = 256  # bytes


def _make_crc_table(length: int) -> npt.NDArray[np.uint32]:
    """What a byte adds to the CRC-32C of ``length`` bytes, by position and value."""
    last: npt.NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    one, polynomial = np.uint32(1), np.uint32(0x82F63B78)  # reflected
    for _ in range(8):
        last = last >> one ^ (last & one) * polynomial
    table = np.empty((length, 256), np.uint32)
    table[-1] = last
    for position in range(length - 2, -1, -1):
        after = table[position + 1]
        table[position] = last[after & 255] ^ after >> 8
    return table


# A CRC is linear: that of a whole is the XOR of what each byte adds at its place.
# So blocks are summed by numpy, and of a record only the bytes that change.
_CRC_TABLE: Final = _make_crc_table(_CRC_BLOCK)
_CRC_ROWS: Final = np.arange(0, _CRC_BLOCK * 256, 256)


def _crc32c(data: bytes) -> int:
    """CRC-32C of at least 4 bytes."""
    blocks = np.zeros((-(-len(data) // _CRC_BLOCK), _CRC_BLOCK), np.uint8)
    used = blocks.reshape(-1)[-len(data) :]  # zeros in front add nothing
    used[:] = np.frombuffer(data, np.uint8)
    used[:4] ^= 255  # a CRC starts from ones, which enter with the first 4 bytes
    t0, t1, t2, t3 = _CRC_TABLE[:4].tolist()
    crc = 0
    for start in range(0, len(blocks), 256):  # 64 KiB at a time, to save memory
        index = blocks[start : start + 256] + _CRC_ROWS
        for part in np.bitwise_xor.reduce(_CRC_TABLE.take(index), axis=1).tolist():
            part ^= t0[crc & 255] ^ t1[crc >> 8 & 255]
            crc = part ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
    return crc ^ 0xFFFFFFFF


def _mask_crc(crc: int) -> bytes:
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _encode_length(length: int) -> bytes:
    packed = struct.pack("<Q", length)
    return packed + _mask_crc(_crc32c(packed))


def _encode_record(data: bytes) -> bytes:
    """Frame as TFRecord: length, its masked CRC, data, their masked CRC."""
    return _encode_length(len(data)) + data + _mask_crc(_crc32c(data))


def _pb_varint(n: int) -> bytes:
    n &= 2**64 - 1  # a negative number as its two's complement
    encoded = bytearray()
    while n > 127:
        encoded.append(n & 127 | 128)
        n >>= 7
    encoded.append(n)
    return bytes(encoded)


def _pb_int(field: int, n: int) -> bytes:
    return _pb_varint(field << 3) + _pb_varint(n)


def _pb_double(field: int, x: float) -> bytes:
    return _pb_varint(field << 3 | 1) + struct.pack("<d", x)


def _pb_float(field: int, x: float) -> bytes:
    """Encode as float32; what that cannot hold becomes an infinity."""
    try:
        packed = struct.pack("<f", x)
    except OverflowError:
        packed = struct.pack("<f", math.copysign(math.inf, x))
    return _pb_varint(field << 3 | 5) + packed


def _pb_bytes(field: int, payload: bytes | str) -> bytes:
    """Encode a string, bytes, a message, or packed numbers."""
    if isinstance(payload, str):
        payload = payload.encode()
    return _pb_varint(field << 3 | 2) + _pb_varint(len(payload)) + payload


def _encode_event(wall_time: float, step: int, values: bytes) -> bytes:
    return _pb_bytes(5, values) + _pb_double(1, wall_time) + _pb_int(2, step)


def _encode_file_version(wall_time: float) -> bytes:
    """The first record of every file."""
    return _encode_record(_pb_double(1, wall_time) + _pb_bytes(3, "brain.Event:2"))


def _encode_value(
    tag: str, data: bytes, plugin: str = "", content: bytes = b""
) -> bytes:
    """One of an Event's values; ``plugin`` is who shows it."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag is a str, got {tag!r}")
    if plugin:
        data += _pb_bytes(9, _pb_bytes(1, _pb_bytes(1, plugin) + _pb_bytes(2, content)))
    return _pb_bytes(1, _pb_bytes(1, tag) + data)


def _encode_tensor(values: npt.NDArray[Any] | bytes, shape: Sequence[int]) -> bytes:
    """Value.tensor: float32 numbers, or one string."""
    dims = b"".join(_pb_bytes(2, _pb_int(1, size)) for size in shape)
    if isinstance(values, bytes):
        data = _pb_int(1, 7) + _pb_bytes(8, values)  # DT_STRING
    else:
        data = _pb_int(1, 1) + _pb_bytes(5, values.astype("<f4").tobytes())  # DT_FLOAT
    return _pb_bytes(8, data + _pb_bytes(2, dims))


def _encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """PNG of shape (height, width, channels), with 1, 3 or 4 channels."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # filter 0 starts a row
    rows[:, 1:] = pixels.reshape(height, -1)
    color_type = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    body = zlib.compress(rows.tobytes())
    for kind, data in (b"IHDR", header), (b"IDAT", body), (b"IEND", b""):
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    return png


def _encode_image(tag: str, shape: tuple[int, ...], encoded: bytes) -> bytes:
    sizes = b"".join(_pb_int(i, size) for i, size in enumerate(shape, start=1))
    return _encode_value(tag, _pb_bytes(4, sizes + _pb_bytes(4, encoded)))


def _join_list(value: object) -> object:
    return ".".join(map(str, value)) if isinstance(value, (list, tuple)) else value


def _encode_hparams(
    hparams: Mapping[str, object], group_name: str, start_time: float
) -> bytes:
    """Value that makes the run a row of the HPARAMS tab, metrics being its scalars.

    None and NaN are left out: the tab shows them as missing.
    """
    info = b""
    for name, value in hparams.items():
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool):
            encoded = _pb_int(4, value)
        elif isinstance(value, (int, float)):
            encoded = _pb_double(2, _as_float(value))
        else:
            encoded = _pb_bytes(3, str(_join_list(value)).encode(errors="replace"))
        key = _pb_bytes(1, str(name).encode(errors="replace"))
        info += _pb_bytes(1, key + _pb_bytes(2, encoded))
    info += _pb_bytes(4, group_name) + _pb_double(5, start_time)
    tensor = _encode_tensor(np.empty(0), (0,))
    tag = "_hparams_/session_start_info"
    return _encode_value(tag, tensor, "hparams", _pb_bytes(3, info))


def _encode_layout(layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Value for the CUSTOM SCALARS tab: ``{category: {title: [kind, tags]}}``."""
    encoded = b""
    for category, charts in _expect(layout, "items", "a dict of dicts").items():
        message = _pb_bytes(1, category)
        for title, (kind, tags) in _expect(charts, "items", "a dict").items():
            _expect(tags, "__len__", "a list of tags")
            if kind == "Multiline":
                chart = _pb_bytes(2, b"".join(_pb_bytes(1, tag) for tag in tags))
            elif kind == "Margin" and len(tags) == 3:  # value, lower, upper
                series = b"".join(_pb_bytes(i, tag) for i, tag in enumerate(tags, 1))
                chart = _pb_bytes(3, _pb_bytes(1, series))
            else:
                raise ValueError(
                    f"chart {title!r} is {[kind, tags]!r}; give ['Multiline', tags] or "
                    "['Margin', [value, lower, upper]]"
                )
            message += _pb_bytes(2, _pb_bytes(1, title) + chart)
        encoded += _pb_bytes(2, message)
    tensor = _encode_tensor(encoded, ())
    return _encode_value("custom_scalars__config__", tensor, "custom_scalars")


# A scalar's record is constant for its tag but for the last 19 bytes, so the CRC of
# the rest is kept. The step is padded to five bytes; others take the long way.
_SCALAR_TAIL: Final = struct.Struct("<fBdB5B")  # value, key, wall time, key, step
_SCALAR_TABLES: Final = _CRC_TABLE[-_SCALAR_TAIL.size :].tolist()


@functools.lru_cache(maxsize=4096)
def _encode_scalar_head(tag: str) -> tuple[bytes, int]:
    """Record up to the value, and its CRC were the rest zero bytes."""
    head = _pb_bytes(5, _encode_value(tag, _pb_float(2, 0.0)))[:-4]
    data = head + bytes(_SCALAR_TAIL.size)
    return _encode_length(len(data)) + head, _crc32c(data)


def _encode_scalar(tag: str, value: float, wall_time: float, step: int) -> bytes:
    """Encode the whole record of one scalar."""
    if not 0 <= step < 2**35:
        values = _encode_value(tag, _pb_float(2, value))
        return _encode_record(_encode_event(wall_time, step, values))
    head, crc = _encode_scalar_head(tag)
    groups = [step >> shift & 127 | 128 for shift in (0, 7, 14, 21)]
    try:
        tail = _SCALAR_TAIL.pack(value, 0x09, wall_time, 0x10, *groups, step >> 28)
    except OverflowError:
        return _encode_scalar(tag, math.copysign(math.inf, value), wall_time, step)
    for table, byte in zip(_SCALAR_TABLES, tail):
        crc ^= table[byte]
    return head + tail + _mask_crc(crc)


class _RowTemplate:
    """Record with a scalar per column, of which only the numbers change."""

    def __init__(self, main_tag: str, *columns: str) -> None:
        tags = [f"{main_tag}/{column}" for column in columns]
        values = [_encode_value(tag, _pb_float(2, 0.0)) for tag in tags]
        summary = _pb_bytes(5, b"".join(values))
        data = summary + b"\x09" + bytes(8) + b"\x10" + bytes(10)  # wall time, step
        # one byte each: does it change? Of a value, the last four do
        is_changing = bytes(len(summary) - sum(map(len, values)))
        is_changing += b"".join(bytes(len(v) - 4) + b"\1" * 4 for v in values)
        is_changing += b"\0" + b"\1" * 8 + b"\0" + b"\1" * 10
        changing = np.flatnonzero(np.frombuffer(is_changing, np.uint8))
        self._head = _encode_length(len(data))
        self._data = np.frombuffer(data, np.uint8)
        self._crc = _crc32c(data)
        self._changing = changing
        self._table = _make_crc_table(len(data))[changing]
        self._rows = np.arange(0, self._table.size, 256)
        self._pack = struct.Struct(f"<{len(tags)}fd10B").pack

    def encode(self, values: Sequence[float], wall_time: float, step: int) -> bytes:
        """Encode the record; values are in the order of the columns."""
        groups = [step >> shift & 127 | 128 for shift in range(0, 63, 7)]
        end = wall_time, *groups, step >> 63 & 1
        try:
            packed = self._pack(*values, *end)
        except OverflowError:
            with np.errstate(over="ignore"):
                packed = self._pack(*np.array(values, np.float32), *end)
        changing = np.frombuffer(packed, np.uint8)
        data = self._data.copy()
        data[self._changing] = changing
        added = self._table.take(changing + self._rows)
        crc = self._crc ^ int(np.bitwise_xor.reduce(added))
        encoded: bytes = data.tobytes()
        return self._head + encoded + _mask_crc(crc)


_row_template: Final = functools.lru_cache(maxsize=64)(_RowTemplate)


###############################################################################
# Event writer
###############################################################################
# One os.write per event, of whole records, to a file that only this writer appends to:
# TensorBoard never reads past a torn record, so nothing may ever come after one.

_HISTOGRAM_LIMITS: Final = 1e-12 * 1.1 ** np.arange(774)  # to 1e20, as TensorFlow


def _as_frames(
    images: Any, dataformats: str, allowed: Sequence[str], columns: int = 8
) -> npt.NDArray[np.uint8]:
    """Frames as uint8 of shape (time, height, width, channels), N made into a grid.

    Floats and bools are scaled from 0..1, ints are pixels; both are clipped.
    """
    array, order = _as_array(images), dataformats.upper()
    if sorted(order) not in map(sorted, allowed) or len(order) != array.ndim:
        raise ValueError(
            f"shape {array.shape} with dataformats {dataformats!r}; expected the axes "
            f"{' or '.join(allowed)}, in any order"
        )
    order += "".join(axis for axis in "NTHWC" if axis not in order)  # of length 1
    array = array.reshape(*array.shape, *[1] * (5 - array.ndim))
    array = array.transpose([order.index(axis) for axis in "NTHWC"])
    n, frames, height, width, channels = array.shape
    if not array.size or channels not in (1, 3, 4):
        raise ValueError(f"no image of 1, 3 or 4 channels in shape {array.shape}")
    if array.dtype.kind in "bf":
        array = np.rint(np.nan_to_num(array * np.float32(255)))
    columns = min(n, columns)
    rows = -(-n // columns)
    grid = np.zeros((rows * columns, *array.shape[1:]), np.uint8)
    grid[:n] = array.clip(0, 255)
    tiles = grid.reshape(rows, columns, *array.shape[1:]).transpose(2, 0, 3, 1, 4, 5)
    shape = frames, rows * height, columns * width, channels
    pixels: npt.NDArray[np.uint8] = tiles.reshape(shape)
    return pixels


def _encode_tsv(rows: Iterable[Iterable[Any]]) -> bytes:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


_BESIDE: Final = (
    "that takes more than numpy. Use tensorboardX's or torch's beside this one, "
    "SummaryWriter(writer.get_logdir()); TensorBoard shows what both write"
)


def _not_written(method: str, instead: str = _BESIDE) -> Callable[..., NoReturn]:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{method} is not built in: {instead}")

    refuse.__doc__ = f"Not built in: {instead}."
    return refuse


class EventWriter:
    """Write TensorBoard events: tensorboardX's ``SummaryWriter``, durable and fast.

    An event is in its file when the call returns: there is no thread and no queue. Tags
    are kept as given; a step of None is 0. Arrays may be numpy's, torch's, jax's or
    lists. Refused input writes nothing. Nothing is made on disk before the first event,
    and no file is continued: a new writer, or an event after ``close()``, starts a new
    one. Threads may share a writer; a forked child may not.

    ``logdir`` (or ``log_dir``) defaults to ``runs/<date>_<host><comment>``.
    ``purge_step`` hides what a resumed run's earlier files have from this step on.
    ``write_to_disk=False`` only checks arguments. ``max_queue``, ``flush_secs``,
    ``comet_config`` and further arguments have no meaning here and change nothing.
    """

    _pid = 0  # of no process: close() does nothing where __init__ has failed

    def __init__(
        self, logdir: str | os.PathLike[str] | None = None, comment: str = "",
        purge_step: int | None = None, max_queue: int = 10, flush_secs: float = 120,
        filename_suffix: str = "", write_to_disk: bool = True,
        log_dir: str | os.PathLike[str] | None = None, comet_config: Any = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        date = time.strftime("%b%d_%H-%M-%S")
        default = f"runs/{date}_{socket.gethostname()}{comment}"
        self.logdir: str = os.fspath(logdir or log_dir or default)
        self._purge_step = purge_step
        self._suffix = filename_suffix
        self._write_to_disk = write_to_disk
        self._default_step: Any = 0  # this and the next: see use_metadata
        self._default_time: float | None = None
        self._sub_writers: dict[str, EventWriter] = {}  # by logdir, of add_scalars
        self._lock = threading.RLock()
        self._is_writing = False
        self._path = ""
        self._fd = -1
        self._size = -1  # bytes of whole records; -1: no file, or its end is unknown
        self._pid = os.getpid()

    def _resolve(self, global_step: Any, walltime: float | None) -> tuple[float, int]:
        """Wall time and step of an event."""
        step = int(self._default_step if global_step is None else global_step)
        if not -(2**63) <= step < 2**63:
            raise ValueError(f"global_step {step} does not fit into 64 bits")
        if walltime is None:
            walltime = self._default_time
        return (time.time() if walltime is None else float(walltime)), step

    def _add(self, values: bytes, global_step: Any, walltime: float | None) -> None:
        wall_time, step = self._resolve(global_step, walltime)
        self._append(_encode_record(_encode_event(wall_time, step, values)))

    def _append(self, record: bytes) -> None:
        if not self._write_to_disk:
            return
        if os.getpid() != self._pid:  # before the lock: who holds it was not forked
            self._check_process()
        with self._lock:
            if self._is_writing:  # by this very thread
                raise WriteRefusedError(
                    f"an event was logged amid the writing of another to {self._path}; "
                    "in a signal handler, set a flag and log later"
                )
            try:
                self._is_writing = True
                if self._size < 0:
                    self._open()
                if self._size == 0:
                    record = self._encode_start() + record
                self._write(record)
            finally:
                self._is_writing = False

    def _write(self, record: bytes) -> None:
        """Write all of the record, or raise and leave none of it."""
        size, self._size = self._size, -1  # if interrupted, who knows where
        try:
            if os.write(self._fd, record) != len(record):
                raise OSError(errno.ENOSPC, "short write")
            self._size = size + len(record)
        except OSError as err:
            os.ftruncate(self._fd, size)
            self._size = size
            what = "an event could not be written; the file has all others"
            raise _storage_error(err, what, self._path) from err

    def _encode_start(self) -> bytes:
        """Records that come before a file's first event."""
        now = time.time()
        start = _encode_file_version(now)
        if self._purge_step is not None:
            session = _pb_bytes(7, _pb_int(1, 1))  # SessionLog.START
            purge = _pb_int(2, self._purge_step) + session
            start += _encode_record(_pb_double(1, now) + purge)
        return start

    def _open(self) -> None:
        """Start a new file, under a name that sorts after the earlier ones."""
        self._close_file()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _O_BINARY
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        try:
            os.makedirs(self.logdir, exist_ok=True)
            for n in itertools.count():
                self._path = f"{self.logdir}/{stem}.{self._pid}.{n:04d}{self._suffix}"
                with contextlib.suppress(FileExistsError):
                    self._fd = os.open(self._path, flags, 0o666)
                    break
        except OSError as err:
            raise _storage_error(err, "cannot make an event file", self.logdir) from err
        self._size = 0

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise WriteRefusedError(
                f"the writer of {self.logdir} is process {self._pid}'s; make another "
                "EventWriter in the forked child, or log from the parent"
            )

    def flush(self) -> None:
        """Do nothing: every event is written already."""

    def close(self) -> None:
        """Close the file; adding another event starts a new one."""
        if os.getpid() != self._pid:
            return
        for writer in list(self._sub_writers.values()):
            writer.close()
        with self._lock:
            if not self._is_writing:  # else called by a signal handler
                self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._size = -1

    def __del__(self, is_late: Any = sys.is_finalizing) -> None:
        if not is_late():  # else names that close() needs may be None
            self.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        args = self.logdir, "", self._purge_step, 10, 120, self._suffix
        return type(self), (*args, self._write_to_disk)

    def __repr__(self) -> str:
        return f"EventWriter({self.logdir!r})"

    def get_logdir(self) -> str:
        """Return the directory of the event files."""
        return self.logdir

    @property
    def file_writer(self) -> EventWriter:
        """This writer, by the name of what takes protobuf messages elsewhere."""
        return self

    def _get_file_writer(self) -> EventWriter:
        return self

    def add_summary(
        self, summary: Any, global_step: Any = None, walltime: float | None = None
    ) -> None:
        """Log a protobuf ``Summary``."""
        _expect(summary, "SerializeToString", "a protobuf Summary")
        self._add(summary.SerializeToString(), global_step, walltime)

    def add_event(
        self, event: Any, step: Any = None, walltime: float | None = None
    ) -> None:
        """Log a protobuf ``Event``, at its own step unless one is given."""
        _expect(event, "SerializeToString", "a protobuf Event")
        wall_time, step = self._resolve(event.step if step is None else step, walltime)
        end = _pb_double(1, wall_time) + _pb_int(2, step)  # the last of a field counts
        self._append(_encode_record(event.SerializeToString() + end))

    @contextlib.contextmanager
    def use_metadata(
        self, *, global_step: int | None = None, walltime: float | None = None
    ) -> Iterator[EventWriter]:
        """Set the step and time of events that are given none, inside ``with``."""
        before = self._default_step, self._default_time
        self._default_step = 0 if global_step is None else global_step
        self._default_time = walltime
        try:
            yield self
        finally:
            self._default_step, self._default_time = before

    # The arguments are tensorboardX's, in its order, with what torch adds at the end.
    # fmt: off

    def add_scalar(
        self, tag: str, scalar_value: Any, global_step: Any = None,
        walltime: float | None = None, display_name: str = "",
        summary_description: str = "", new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Log one number, always as float32: the one form all of TensorBoard shows."""
        value = scalar_value if type(scalar_value) is float else _as_float(scalar_value)
        wall_time, step = self._resolve(global_step, walltime)
        if display_name or summary_description:
            metadata = _pb_bytes(2, display_name) + _pb_bytes(3, summary_description)
            data = _pb_float(2, value) + _pb_bytes(9, metadata)
            self._add(_encode_value(tag, data), step, wall_time)
        else:
            self._append(_encode_scalar(tag, value, wall_time, step))

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any],
        global_step: Any = None, walltime: float | None = None,
    ) -> None:
        """Overlay numbers in one chart, each in a sub-run ``main_tag/<tag>``."""
        wall_time, step = self._resolve(global_step, walltime)
        records = {
            tag: _encode_scalar(main_tag, _as_float(value), wall_time, step)
            for tag, value in _expect(tag_scalar_dict, "items", "a dict").items()
        }
        for tag, record in records.items():
            self._get_sub_writer(f"{main_tag}/{tag}")._append(record)

    def _get_sub_writer(self, name: str) -> EventWriter:
        self._check_process()
        if name not in self._sub_writers:
            writer = EventWriter(  # os.path.join would leave logdir for "/name"
                f"{self.logdir}/{name}", filename_suffix=self._suffix,
                write_to_disk=self._write_to_disk,
            )
            self._sub_writers.setdefault(name, writer)  # of two threads, one wins
        return self._sub_writers[name]

    def _add_scalar_row(
        self, main_tag: str, values: Mapping[str, Any], global_step: int
    ) -> None:
        """Log a table's row as one event; its tags are ``main_tag/<column>``."""
        wall_time, step = self._resolve(global_step, None)
        floats = []
        for name, value in values.items():
            try:
                floats.append(value if type(value) is float else _as_float(value))
            except (TypeError, ValueError) as err:
                raise SchemaError(
                    f"column {name!r} of table {main_tag!r} cannot be a scalar: {err}; "
                    "put it into the row with update_row"
                ) from err
        record = _row_template(main_tag, *values).encode(floats, wall_time, step)
        self._append(record)

    def add_histogram(
        self, tag: str, values: Any, global_step: Any = None,
        bins: Any = "tensorflow", walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Log a distribution, without its NaN and infinities (warns).

        ``bins`` is as for ``numpy.histogram``, or TensorFlow's, each 10 % wider than
        the one before; neighbours are joined until there are at most ``max_bins``.
        """
        array = _as_array(values).astype(np.float64).ravel()
        finite = array[np.isfinite(array)]
        if len(finite) < len(array):
            dropped = len(array) - len(finite)
            _log.warning("histogram %r: left out %d NaN or infinite", tag, dropped)
        if not len(finite):
            raise ValueError(f"histogram {tag!r} has no finite value")
        low, high = finite.min(), finite.max()
        if isinstance(bins, str) and bins == "tensorflow":
            # From lowest to highest: TensorBoard shows empty outer bins backward.
            bins = np.r_[-_HISTOGRAM_LIMITS[::-1], 0, _HISTOGRAM_LIMITS]
            bins = np.r_[low, bins[(low < bins) & (bins < high)], high]
        counts, edges = np.histogram(finite, bins)
        if max_bins is not None and len(counts) > max_bins:
            starts = np.arange(0, len(counts), -(-len(counts) // max_bins))
            counts = np.add.reduceat(counts, starts)
            edges = np.r_[edges[starts], edges[-1]]
        self.add_histogram_raw(
            tag, low, high, len(finite), finite.sum(), float(finite @ finite),
            edges[1:], counts, global_step, walltime,
        )

    def add_histogram_raw(
        self, tag: str, min: float, max: float, num: float, sum: float,
        sum_squares: float, bucket_limits: Any, bucket_counts: Any,
        global_step: Any = None, walltime: float | None = None,
    ) -> None:
        """Log a distribution counted elsewhere; limits are the bins' right edges."""
        limits, counts = _as_array(bucket_limits), _as_array(bucket_counts)
        if limits.ndim != 1 or limits.shape != counts.shape:
            raise ValueError(f"limits of {limits.shape}, counts of {counts.shape}")
        fields = enumerate((min, max, num, sum, sum_squares), start=1)
        histogram = b"".join(_pb_double(i, _as_float(x)) for i, x in fields)
        for field, array in (6, limits), (7, counts):
            histogram += _pb_bytes(field, array.astype("<f8").tobytes())
        self._add(_encode_value(tag, _pb_bytes(5, histogram)), global_step, walltime)

    def add_pr_curve(
        self, tag: str, labels: Any, predictions: Any, global_step: Any = None,
        num_thresholds: int = 127, weights: Any = None, walltime: float | None = None,
    ) -> None:
        """Log precision and recall of predictions in 0..1 at up to 127 thresholds."""
        truth, scores, weight = (
            _as_array(x).astype(np.float64).ravel()
            for x in (labels, predictions, 1 if weights is None else weights)
        )
        n = min(num_thresholds, 127)
        if len(truth) != len(scores) or len(weight) not in (1, len(truth)):
            raise ValueError("labels, predictions and weights differ in length")
        if n < 2 or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("expected 2 or more thresholds and predictions in 0..1")
        bins = (scores * (n - 1)).astype(np.int64)
        tp, fp = (  # weight of the examples of either label, at or above a threshold
            np.bincount(bins, x * weight, minlength=n)[::-1].cumsum()[::-1]
            for x in (truth, 1 - truth)
        )
        tn, fn = fp[0] - fp, tp[0] - tp
        precision, recall = tp / np.maximum(1e-7, tp + fp), tp / np.maximum(1e-7, tp[0])
        curve = tp, fp, tn, fn, precision, recall
        self.add_pr_curve_raw(tag, *curve, global_step, walltime=walltime)

    def add_pr_curve_raw(
        self, tag: str, true_positive_counts: Any, false_positive_counts: Any,
        true_negative_counts: Any, false_negative_counts: Any, precision: Any,
        recall: Any, global_step: Any = None, num_thresholds: int = 127,
        weights: Any = None, walltime: float | None = None,
    ) -> None:
        """Log a curve counted elsewhere; each array has a value per threshold."""
        rows = [_as_array(x) for x in (
            true_positive_counts, false_positive_counts, true_negative_counts,
            false_negative_counts, precision, recall)]
        if rows[0].ndim != 1 or any(row.shape != rows[0].shape for row in rows):
            raise ValueError(f"expected equal lengths, got {[r.shape for r in rows]}")
        tensor = _encode_tensor(np.stack(rows), (6, len(rows[0])))
        content = _pb_int(2, len(rows[0]))
        encoded = _encode_value(tag, tensor, "pr_curves", content)
        self._add(encoded, global_step, walltime)

    def add_image(
        self, tag: str, img_tensor: Any, global_step: Any = None,
        walltime: float | None = None, dataformats: str = "CHW",
    ) -> None:
        """Log an image of 1, 3 or 4 channels; ints are 0..255, floats 0..1.

        ``dataformats`` orders its axes: CHW, HWC, HW; with N a grid, 8 in a row.
        """
        image = _as_frames(img_tensor, dataformats, ("HW", "CHW", "NCHW"))[0]
        encoded = _encode_image(tag, image.shape, _encode_png(image))
        self._add(encoded, global_step, walltime)

    def add_images(
        self, tag: str, img_tensor: Any, global_step: Any = None,
        walltime: float | None = None, dataformats: str = "NCHW",
    ) -> None:
        """Log a grid of images; for a list of them dataformats may be without N."""
        if isinstance(img_tensor, (list, tuple)) and "N" not in dataformats.upper():
            dataformats = "N" + dataformats
        self.add_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_figure(
        self, tag: str, figure: Any, global_step: Any = None, close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Log a matplotlib figure, or a grid of them; ``close`` them in pyplot."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figures = figure if isinstance(figure, (list, tuple)) else [figure]
        images = []
        for item in figures:
            shown = _expect(item, "canvas", "matplotlib figures").canvas
            canvas: Any = FigureCanvasAgg(item)  # takes the place of the one shown
            canvas.draw()
            images.append(np.asarray(canvas.buffer_rgba())[..., :3])
            item.set_canvas(shown)
        self.add_images(tag, images, global_step, walltime, "HWC")
        pyplot: Any = sys.modules.get("matplotlib.pyplot")  # else none is open in it
        for item in figures if close and pyplot else ():
            pyplot.close(item)

    def add_video(
        self, tag: str, vid_tensor: Any, global_step: Any = None, fps: float = 4,
        walltime: float | None = None, dataformats: str = "NTCHW",
    ) -> None:
        """Log an animated GIF, N videos as a grid; pixels as in add_image."""
        try:
            from PIL import Image
        except ImportError as err:
            raise ImportError("add_video needs Pillow: pip install pillow") from err
        frames = _as_frames(vid_tensor, dataformats, ("NTCHW",))
        pixels = frames[..., 0] if frames.shape[-1] == 1 else frames  # gray has no axis
        first, *others = map(Image.fromarray, pixels)
        gif, ms = io.BytesIO(), 1000 / fps
        first.save(gif, "GIF", save_all=True, append_images=others, duration=ms, loop=0)
        encoded = _encode_image(tag, frames.shape[1:], gif.getvalue())
        self._add(encoded, global_step, walltime)

    def add_audio(
        self, tag: str, snd_tensor: Any, global_step: Any = None,
        sample_rate: int = 44100, walltime: float | None = None,
    ) -> None:
        """Log sound as 16-bit WAV: int16 is kept, all else clipped to -1..1.

        Shape (frames,), (frames, channels), or torch's (1, frames).
        """
        sound = _as_array(snd_tensor)
        if sound.ndim == 1:
            sound = sound[:, None]
        elif sound.ndim == 2 and sound.shape[0] <= 2 < sound.shape[1]:
            sound = sound.T
        if sound.ndim != 2 or sound.shape[1] not in (1, 2):
            raise ValueError(f"expected 1 or 2 channels, got shape {sound.shape}")
        if sound.dtype != np.int16:
            sound = np.nan_to_num(sound.astype(np.float64)).clip(-1, 1) * 32767
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((sound.shape[1], 2, sample_rate, len(sound), "NONE", ""))
            file.writeframes(sound.astype("<i2").tobytes())
        tensor = _encode_tensor(buffer.getvalue(), (1,))
        encoded = _encode_value(tag, tensor, "audio", _pb_int(2, 11))  # 11: WAV
        self._add(encoded, global_step, walltime)

    def add_text(
        self, tag: str, text_string: str, global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Log Markdown; ``/text_summary`` is put to the tag, as tensorboardX does."""
        if not isinstance(text_string, str):
            raise TypeError(f"expected a str, got {text_string!r:.80}")
        tensor = _encode_tensor(text_string.encode(), (1,))
        encoded = _encode_value(f"{tag}/text_summary", tensor, "text")
        self._add(encoded, global_step, walltime)

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, Any],
        name: str | None = None, global_step: Any = None,
        hparam_domain_discrete: Any = None, run_name: str | None = None,
    ) -> None:
        """Log hyperparameters and results for the HPARAMS tab.

        They belong to this run, or to a sub-run called ``name`` (torch: ``run_name``).
        TensorBoard takes a run's first ones and finds their domain by itself.
        """
        wall_time, step = self._resolve(global_step, None)
        values = _encode_hparams(_expect(hparam_dict, "items", "dicts"), "", wall_time)
        for tag, value in _expect(metric_dict, "items", "dicts").items():
            values += _encode_value(tag, _pb_float(2, _as_float(value)))
        name = name or run_name
        (self._get_sub_writer(name) if name else self)._add(values, step, wall_time)

    def add_custom_scalars(
        self, layout: Mapping[str, Mapping[str, Sequence[Any]]]
    ) -> None:
        """Lay out CUSTOM SCALARS, once: ``{category: {title: ["Multiline", tags]}}``.

        Also ``["Margin", [value, lower, upper]]``, a line within a band.
        """
        self._add(_encode_layout(layout), None, None)

    def add_custom_scalars_multilinechart(
        self, tags: Sequence[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Lay out one chart of several scalars."""
        self.add_custom_scalars({category: {title: ["Multiline", tags]}})

    def add_custom_scalars_marginchart(
        self, tags: Sequence[str], category: str = "default", title: str = "untitled"
    ) -> None:
        """Lay out one chart of a scalar between two others."""
        self.add_custom_scalars({category: {title: ["Margin", tags]}})

    def add_embedding(
        self, mat: Any, metadata: Sequence[Any] | None = None, label_img: Any = None,
        global_step: Any = None, tag: str = "default",
        metadata_header: Sequence[str] | None = None,
    ) -> None:
        """Show the rows of ``mat`` in the PROJECTOR tab: files in logdir, no event.

        ``metadata`` has a label per row (with ``metadata_header`` a list of labels),
        ``label_img`` a square image, NCHW.
        """
        self._check_process()
        points, (_, step) = _as_array(mat), self._resolve(global_step, None)
        if points.ndim != 2:
            raise ValueError(f"expected one point per row, got shape {points.shape}")
        for labels in metadata, label_img:
            if labels is not None and len(labels) != len(points):
                raise ValueError(f"{len(labels)} labels for {len(points)} points")
        folder = tag.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")
        folder = f"{step:05d}/{folder}"
        name, quoted = (  # a protobuf text is quoted like JSON
            json.dumps(text, ensure_ascii=False)[1:-1] for text in (tag, folder)
        )
        config = f'tensor_name: "{name}:{step:05d}"\n'
        config += f'tensor_path: "{quoted}/tensors.tsv"\n'
        files = {"tensors.tsv": _encode_tsv(points.tolist())}
        if metadata is not None:
            rows = metadata if metadata_header else [[label] for label in metadata]
            header = [metadata_header] if metadata_header else []
            files["metadata.tsv"] = _encode_tsv([*header, *rows])
            config += f'metadata_path: "{quoted}/metadata.tsv"\n'
        if label_img is not None:
            columns = math.ceil(math.sqrt(len(points)))
            sprite = _as_frames(label_img, "NCHW", ("NCHW",), columns)[0]
            height, width, _ = sprite.shape
            shape = _as_array(label_img).shape
            if shape[2] != shape[3] or width > 8192:  # TensorBoard's limit
                raise ValueError(f"images not square, or too large: shape {shape}")
            sprite = np.pad(sprite, ((0, width - height), (0, 0), (0, 0)))
            files["sprite.png"] = _encode_png(sprite)
            config += f'sprite {{ image_path: "{quoted}/sprite.png"\n'
            config += f"single_image_dim: [{shape[3]}, {shape[2]}] }}\n"
        if self._write_to_disk:
            os.makedirs(f"{self.logdir}/{folder}", exist_ok=True)
            for file_name, data in files.items():
                with open(f"{self.logdir}/{folder}/{file_name}", "wb") as file:
                    file.write(data)
            # Last, as it names the others.
            with open(f"{self.logdir}/projector_config.pbtxt", "ab") as file:
                file.write(f"embeddings {{\n{config}}}\n".encode())

    # fmt: on
    add_graph = _not_written("add_graph")
    add_onnx_graph = _not_written("add_onnx_graph")
    add_openvino_graph = _not_written("add_openvino_graph")
    add_mesh = _not_written("add_mesh")
    add_tensor = _not_written("add_tensor")
    add_image_with_boxes = _not_written(
        "add_image_with_boxes", "draw them into the image, then use add_image"
    )
    export_scalars_to_json = _not_written(
        "export_scalars_to_json",
        "no scalar is kept in memory. Use Store.log_table_and_tb and export the table, "
        "store[name].df.to_json(path)",
    )


###############################################################################
# Store
###############################################################################


class _Lookup(Mapping[str, Any]):
    """What there is by name, found and made when it is asked for."""

    def __init__(self, names: Callable[[], list[str]], get: Any) -> None:
        self._names, self._get = names, get

    def __getitem__(self, name: str) -> Any:
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<{', '.join(map(_printable, self)) or 'none'}>"


class Store:
    """One run: a directory with tables, an event writer and room for files.

    A Store may be used as a context manager, by several threads, and be pickled:
    the other process opens the run again by its path.

    Attributes:
        path: The run's directory, absolute.
        exp_id: Its last component.
        save_dir: A directory in it for files of your own.
        tb_dir: The directory of its event files.
    """

    OBJECT = OBJECT
    PICKLE = PICKLE
    PYTORCH_STATE = PYTORCH_STATE

    def __init__(
        self,
        storage_folder: str | os.PathLike[str],
        exp_id: str | None = None,
        new: bool = False,
        mode: str = "a",
    ) -> None:
        """Make a run, or open the one that is there.

        Opening for reading touches no file of an existing run, in mode ``a`` too:
        the one writer is whoever first writes.

        Args:
            storage_folder: Directory of runs, made if it is not there; ``~`` is home.
            exp_id: The run's directory in it. None or "" takes a random uuid.
            new: Insist that there is no such run yet.
            mode: ``a`` to read and append; ``r`` to read, which makes nothing;
                ``w`` to begin the run afresh: its tables, their objects and its event
                files are erased, ``save`` is not.

        Raises:
            StoreExistsError: ``new`` is set and the run exists.
            NotFoundError: The mode is ``r`` and it does not.
            WriteRefusedError: The mode is ``w`` and another process writes the run.
        """
        if mode not in ("a", "r", "w"):
            raise ValueError(f"mode must be 'a', 'r' or 'w', got {mode!r}")
        exp_id = str(uuid.uuid4()) if exp_id in (None, "") else exp_id
        is_name = isinstance(exp_id, str) and exp_id not in (".", "..")
        if not is_name or {"/", os.sep, "\0"} & set(exp_id):
            raise ValueError(
                f"exp_id must be the name of one directory, got {exp_id!r}; put what "
                "comes before its last / into storage_folder"
            )
        self.exp_id = exp_id
        folder = os.path.abspath(os.path.expanduser(storage_folder))
        self.path = os.path.join(folder, exp_id)
        self.save_dir = os.path.join(self.path, _SAVE_DIR)
        self.tb_dir = os.path.join(self.path, _TENSORBOARD_DIR)
        self._run = _Run(self.path, mode)
        self._tables: dict[str, Table] = {}
        self._writer: Any = None if mode == "r" else EventWriter(self.tb_dir)
        exists = _is_run(self.path)
        if exists and new:
            raise StoreExistsError(
                f"{self.path} exists; take another exp_id, or drop new=True to open it"
            )
        if mode == "r":
            if not exists:
                raise NotFoundError(f"there is no run of cox at {self.path}")
        elif not os.path.exists(self._run.store_path):
            if mode == "a" and _list_tables(self.path):
                _log.warning(
                    "%s has no %s, but its tables are there, and go on. To begin the "
                    'run afresh, open it with mode="w"',
                    *(_printable(self.path), _STORE_NAME),
                )
            self._run.create(new)
        if mode == "w":
            self._run.erase()

    def __repr__(self) -> str:
        names = ", ".join(self.tables) or "none"
        return f"<Store {self.path}, mode {self._run.mode!r}, tables: {names}>"

    def __str__(self) -> str:
        tables = self.tables.items()
        return "".join(f"-- Table: {_printable(n)} --\n{t}\n\n" for n, t in tables)

    def __bool__(self) -> bool:
        return True  # also without tables: programs ask `if store:`

    def __len__(self) -> int:
        return len(self.tables)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __reduce__(self) -> tuple[Any, ...]:
        mode = "r" if self._run.mode == "r" else "a"  # "w" would erase it again
        return Store, (os.path.dirname(self.path), self.exp_id, False, mode)

    def __del__(self) -> None:
        # a notebook's cell that is run again finds the run free, though a table of
        # the first Store may still be there; that one takes the lock when it writes
        if hasattr(self, "_run"):
            self._run.close_at_last(refusal="")

    @classmethod
    def read_from_running(
        cls, storage_folder: str | os.PathLike[str], exp_id: str | None = None
    ) -> Store:
        """Open a run in mode ``r``, by folder and id or by its own path."""
        if exp_id is None:
            storage_folder, exp_id = os.path.split(os.path.abspath(storage_folder))
        return cls(storage_folder, exp_id, mode="r")

    def snapshot_copy(self) -> str:
        """Do a :meth:`checkpoint`, and return the path of store.h5."""
        self.checkpoint()
        return self._run.store_path

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def tables(self) -> Mapping[str, Table]:
        """The run's tables by name, sorted; a view, so always as they are now."""
        return _Lookup(lambda: sorted(_read_headers(self.path)), self.get_table)

    @property
    def keys(self) -> Collection[str]:
        """The names of the run's tables."""
        return self.tables.keys()

    def add_table(self, table_name: str, schema: Mapping[str, Any]) -> Table:
        """Make a table; if it is there with the same schema, open it to go on.

        A table that has no rows yet may be made again with another schema.

        Args:
            table_name: Any name.
            schema: Column name to type: ``int`` (64 bits), ``float``, ``str``,
                ``bool``, a numpy integer or float type, or ``OBJECT``, ``PICKLE``,
                ``PYTORCH_STATE``.

        Raises:
            SchemaError: A type is none of these, or the table has rows, and
                another schema. Nothing was made.
        """
        table = Table(table_name, schema, self._run.objects_dir, self)
        known = self._tables.setdefault(table_name, table)
        if known.schema != table.schema:  # it had no rows, and was made again
            self._tables[table_name] = known = table
        return known

    def add_table_like_example(
        self, table_name: str, example: Any, alternative: str = OBJECT
    ) -> Table:
        """Make a table whose columns fit an example row.

        Args:
            table_name: Any name.
            example: A row as for :meth:`Table.update_row`, for the types of its values.
            alternative: How to store columns of values that are no number, str or
                bool: ``OBJECT``, ``PICKLE`` or ``PYTORCH_STATE``.
        """
        schema = schema_from_dict(example, alternative)
        with contextlib.suppress(NotFoundError):
            # columns of objects take any value; the original put numpy scalars there
            there = self.get_table(table_name).schema.items()
            schema |= {n: t for n, t in there if t == alternative and n in schema}
        return self.add_table(table_name, schema)

    def get_table(self, table_id: str) -> Table:
        """Return a table, also one that another process has added meanwhile.

        Raises:
            NotFoundError: The run has no such table.
        """
        if table_id not in self._tables:
            try:
                header = _read_header(self.path, table_id)
            except FileNotFoundError:  # no such table, or a run of the original
                header = _read_rows(self.path, table_id).header
            types_ = _decode_header(header).types
            table = Table(table_id, types_, self._run.objects_dir, self, True)
            self._tables.setdefault(table_id, table)  # of two threads, one wins
        return self._tables[table_id]

    __getitem__ = get_table

    @property
    def writer(self) -> EventWriter:
        """The run's event writer, like tensorboardX's; another may be assigned."""
        if self._writer is None and self._run.mode == "r":
            raise _NoWriterError(f"{self.path} may not be written: {self._run.refusal}")
        writer: EventWriter = self._writer
        return writer

    @writer.setter
    def writer(self, writer: Any) -> None:
        self._writer = writer

    tensorboard = writer

    def log_table_and_tb(
        self,
        table_name: str,
        update_dict: Any,
        summary_type: str = "scalar",
        step: int | None = None,
    ) -> None:
        """Stage values in a table's working row and write them as events.

        The tags are ``<table>/<column>``. If a value is refused, nothing is staged or
        written.

        Args:
            table_name: Table to stage the values in.
            update_dict: Column name to value, as for :meth:`Table.update_row`.
            summary_type: The event writer's method without its ``add_``.
            step: The events' step; None is the index of the row in the table.
        """
        row, writer, method = _as_row(update_dict), self.writer, f"add_{summary_type}"
        if not hasattr(writer, method):
            raise ValueError(f"summary_type {summary_type!r}: there is no {method}()")

        def log_events(index: int) -> None:
            at_step = index if step is None else step
            if method == "add_scalar" and isinstance(writer, EventWriter):
                writer._add_scalar_row(table_name, row, at_step)
                return
            check = EventWriter(self.tb_dir, write_to_disk=False)
            for target in (check, writer):  # all are refused or none
                for name, value in row.items():
                    getattr(target, method)(f"{table_name}/{name}", value, at_step)

        self.get_table(table_name)._stage(row, log_events)

    def checkpoint(self) -> None:
        """Wait until all rows are on the disk, and write store.h5 anew.

        Rows survive the death of the process without this. It is for the death of
        the machine, and for readers of store.h5; it takes well under a second per
        million rows, and other threads log on meanwhile.

        Raises:
            StorageError: The disk refused; store.h5 is as it was.
        """
        self._run.checkpoint()

    def close(self) -> None:
        """Write store.h5 if there is anything new, and give up the run.

        Tables can still be read. A Store that is not closed does the same when it
        is no longer reachable, or when the interpreter exits.

        Raises:
            StorageError: The disk refused. No row is lost; close() may be repeated.
        """
        if isinstance(self._writer, EventWriter):  # else it is the caller's own
            self._writer.close()
        for table in self._tables.values():
            if table._staged != table._schema.blank:
                _log.warning(
                    "%s: a row of table %r was staged and never flushed",
                    self.path,
                    table.name,
                )
        self._run.close()


###############################################################################
# CollectionReader
###############################################################################
# Runs are read in batches by functions of paths, which return bytes and take no
# state along: so they run as well in a thread, in a process, or on another host.

_BATCH_SIZE: Final = 250  # runs


def _read_each(
    read: Callable[..., Any], first: int, run_dirs: list[str], *args: Any
) -> tuple[dict[int, Any], dict[int, Exception]]:
    """Return what ``read`` says of runs, and errors, by number from ``first``."""
    results, errors = {}, {}
    for source, run_dir in enumerate(run_dirs, first):
        try:
            results[source] = read(run_dir, *args)
        except Exception as err:
            errors[source] = err
    return results, errors


def _read_rows_batch(
    first: int, run_dirs: list[str], name: str
) -> tuple[list[_Rows], dict[int, Exception]]:
    """Read a table of several runs, to be joined as bytes."""
    found, errors = _read_each(_read_rows, first, run_dirs, name)
    return _merge_rows(rows._replace(sources=[i]) for i, rows in found.items()), errors


_read_headers_batch: Final = functools.partial(_read_each, _read_headers)


def _shorten(names: Collection[str], limit: int = 20) -> str:
    """Return names joined by commas, a long list cut."""
    shown = ", ".join(itertools.islice(names, limit))
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


class CollectionReader:
    """All runs in a directory, each table of them as one frame.

    No file stays open, and little is kept per run, so tens of thousands are fine.

    Attributes:
        exp_ids: Ids of the runs, sorted.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        log_warnings: bool = True,
        mode: str = "r",
        exp_filter: Callable[[str], bool] | None = None,
        skip_errs: bool = False,
        executor: Executor | None = None,
    ) -> None:
        """List the runs in ``directory`` and the tables in each.

        Args:
            directory: Directory of runs; anything else in it is passed over.
            log_warnings: Warn where tables of one name have different schemas.
            mode: Mode for :meth:`get_store`: ``a`` or ``w`` to write, erasing nothing.
            exp_filter: Called with each exp_id; takes the run if it returns true.
            skip_errs: Leave out runs that cannot be read, with a warning.
            executor: Threads, processes, dask or MPI to spread the reading over.

        Raises:
            NotFoundError: There is no such directory.
            CorruptError: A run cannot be read.
        """
        if mode not in ("a", "r", "w"):
            raise ValueError(f"mode must be 'a', 'r' or 'w', got {mode!r}")
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self._mode = "r" if mode == "r" else "a"
        self._executor = executor
        self._stores: dict[str, Store] = {}
        if not os.path.isdir(self.directory):
            raise NotFoundError(f"there is no directory {self.directory}")
        if _is_run(self.directory):
            raise NotFoundError(f"{self.directory} is a run; give its parent directory")
        listed = _list_runs(self.directory)
        exp_ids = [e for e in listed if exp_filter is None or exp_filter(e)]
        self._headers: dict[str, dict[bytes, list[str]]] = {}  # ids by table, header
        bad: set[int] = set()
        for found, errors in self._read_batches(_read_headers_batch, exp_ids):
            for source, headers in found.items():
                for table, header in headers.items():
                    by_header = self._headers.setdefault(table, {})
                    by_header.setdefault(header, []).append(exp_ids[source])
            self._handle_errors(exp_ids, errors, skip_errs)
            bad |= errors.keys()
        self.exp_ids = [e for i, e in enumerate(exp_ids) if i not in bad]
        if log_warnings:
            self._warn_of_schemas()
            with os.scandir(self.directory) as entries:
                dirs = [e for e in entries if e.is_dir()]
                shut = [e.name for e in dirs if not os.access(e.path, os.R_OK)]
            if shut:
                where = self.directory
                _log.warning("no permission to read in %s: %s", where, _shorten(shut))

    def __repr__(self) -> str:
        return (
            f"<CollectionReader {self.directory}, {len(self.exp_ids)} runs, "
            f"tables: {', '.join(self.tables) or 'none'}>"
        )

    def __str__(self) -> str:
        schemas = self.schemas.items()
        return "\n".join(f"-- Table: {n} --\n{s.keys()}" for n, s in schemas)

    def __enter__(self) -> CollectionReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def tables(self) -> list[str]:
        """Names of the tables that the runs had when they were listed, sorted."""
        return sorted(self._headers)

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The schema of each table; where runs differ, that of the first."""
        headers = {name: next(iter(self._headers[name])) for name in self.tables}
        return {name: dict(_decode_header(h).types) for name, h in headers.items()}

    @property
    def stores(self) -> Mapping[str, Store]:
        """The runs by id, each opened when it is asked for."""
        return _Lookup(lambda: self.exp_ids, self.get_store)

    def close(self) -> None:
        """Close the stores that :meth:`get_store` has opened."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def get_store(self, exp_id: str) -> Store:
        """Return the run as a Store, in the mode of this reader."""
        if exp_id not in self._stores:
            self._stores[exp_id] = Store(self.directory, exp_id, mode=self._mode)
        return self._stores[exp_id]

    def df(
        self,
        key: str,
        append_exp_id: bool = True,
        keep_serialized: Collection[str] = (),
        union_schemas: bool = False,
        exp_filter: Callable[[str], bool] | None = None,
        skip_errors: bool = False,
        ignore_index: bool = False,
    ) -> pd.DataFrame:
        """Read one table of every run, as it is now, into one frame.

        Args:
            key: Name of the table. A warning names runs that have others only.
            append_exp_id: Add a last column ``exp_id``.
            keep_serialized: OBJECT, PICKLE and PYTORCH_STATE columns to leave as the
                stored strings. All others are unpickled, which may run code of
                whoever wrote the runs.
            union_schemas: Take all columns of all runs, NaN where a run lacks one,
                instead of raising.
            exp_filter: Called with each exp_id; takes the run if it returns true.
            skip_errors: Leave out runs that cannot be read, with a warning.
            ignore_index: Make the index 0 to n-1.

        Returns:
            Frame with the rows of all runs, in order of exp_id. The index counts
            within each run, so it repeats.

        Raises:
            NotFoundError: No run has this table.
            SchemaError: Columns differ between runs.
            CorruptError: A run cannot be read.
            CoxError: An object in a run cannot be decoded.
        """
        exp_ids = [e for e in self.exp_ids if exp_filter is None or exp_filter(e)]
        if isinstance(keep_serialized, str):
            keep_serialized = [keep_serialized]
        groups = self._read_groups(key, exp_ids, skip_errors)
        if not union_schemas:
            self._check_columns(key, groups, exp_ids)
        frames, positions = [], []
        for rows in groups:
            frame, errors = self._decode_frame(rows, exp_ids, keep_serialized)
            self._handle_errors(exp_ids, errors, skip_errors)
            sources = np.repeat(rows.sources, rows.counts)
            if append_exp_id:
                ids = np.array(exp_ids, dtype=object)[sources]
                frame["exp_id"] = pd.Series(ids, frame.index, dtype=_text_dtype())
            is_kept = ~np.isin(sources, list(errors))
            frames.append(frame[is_kept] if errors else frame)
            positions.append(sources[is_kept])
        joined: pd.DataFrame = frames[0]
        if len(frames) > 1:
            order = np.argsort(np.concatenate(positions), kind="stable")
            joined = pd.concat(frames).iloc[order]
            if append_exp_id:  # last, also behind columns that only later runs have
                joined["exp_id"] = joined.pop("exp_id")
        if ignore_index:
            joined.index = pd.RangeIndex(len(joined))
        return joined

    def _read_groups(self, key: str, exp_ids: list[str], skip: bool) -> list[_Rows]:
        """Read a table of every run, joined by header; say which runs lack it."""
        parts: list[_Rows] = []
        lacking: list[str] = []
        for rows, errors in self._read_batches(_read_rows_batch, exp_ids, key):
            parts += rows
            missing = [i for i, e in errors.items() if isinstance(e, NotFoundError)]
            lacking += [exp_ids[i] for i in missing if errors.pop(i)]
            self._handle_errors(exp_ids, errors, skip)
        if not parts:
            raise NotFoundError(
                f"no run of {len(exp_ids)} in {self.directory} has a table {key!r}. "
                f"Tables: {_shorten(self.tables) or 'none'}"
            )
        # a run without any table has only begun
        if lacking := [
            e for e in lacking if _list_tables(os.path.join(self.directory, e)) != []
        ]:
            _log.warning(
                "%d of %d runs in %s have no table %r: %s",
                *(len(lacking), len(exp_ids), self.directory, key, _shorten(lacking)),
            )
        return _merge_rows(parts)

    def _decode_frame(
        self, rows: _Rows, exp_ids: list[str], keep_serialized: Collection[str]
    ) -> tuple[pd.DataFrame, dict[int, Exception]]:
        """Return the frame of rows with equal headers, objects unpickled."""
        frame = _frame(rows)
        frame.index = pd.Index(np.concatenate([np.arange(n) for n in rows.counts]))
        errors: dict[int, Exception] = {}
        for name, kind in _decode_header(rows.header).columns.items():
            load = _KINDS[kind].load
            if load is None or name in keep_serialized:
                continue
            dirs = [os.path.join(self.directory, e, _OBJECTS_DIR) for e in exp_ids]
            sources = np.repeat(rows.sources, rows.counts).tolist()
            decoded = np.empty(len(frame), dtype=object)
            for i, (source, text) in enumerate(zip(sources, frame[name])):
                try:
                    if source not in errors:
                        decoded[i] = load(text, dirs[source])
                except Exception as err:
                    errors[source] = _decoding_error(exp_ids[source], name, kind, err)
            frame[name] = pd.Series(decoded, frame.index, dtype=object)
        return frame, errors

    def _read_batches(
        self, read: Callable[..., Any], exp_ids: list[str], *args: Any
    ) -> Iterator[Any]:
        """Yield what ``read`` returns for batches of runs, in order."""
        run_dirs = [os.path.join(self.directory, exp_id) for exp_id in exp_ids]
        starts = range(0, len(run_dirs), _BATCH_SIZE)
        batches = [run_dirs[i : i + _BATCH_SIZE] for i in starts]
        apply = self._executor.map if self._executor else map
        results = apply(read, starts, batches, *([arg] * len(batches) for arg in args))
        if sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            options: dict[str, Any] = {"unit": " runs", "unit_scale": _BATCH_SIZE}
            total = len(batches)
            results = tqdm(results, total=total, delay=1, leave=False, **options)
        return iter(results)

    def _handle_errors(
        self, exp_ids: list[str], errors: dict[int, Exception], skip: bool
    ) -> None:
        """Raise the first error, or log them all."""
        for source, err in errors.items():
            if not skip:
                raise err
            _log.warning("skipped run %s: %s", exp_ids[source], err)

    def _warn_of_schemas(self) -> None:
        for table, by_header in self._headers.items():
            if len(by_header) > 1:
                kinds = "; ".join(
                    f"{_decode_header(header).columns} in {_shorten(runs, 3)}"
                    for header, runs in by_header.items()
                )
                _log.warning("table %r has different schemas: %s", table, kinds)

    def _check_columns(self, key: str, groups: list[_Rows], exp_ids: list[str]) -> None:
        """Raise if the runs' columns differ, in more than their order."""
        first, *others = groups
        columns = set(_decode_header(first.header).columns)
        for other in others:
            if differing := columns ^ set(_decode_header(other.header).columns):
                raise SchemaError(
                    f"table {key!r} differs between {exp_ids[first.sources[0]]} and "
                    f"{exp_ids[other.sources[0]]} in {self.directory}, in columns "
                    f"{', '.join(sorted(map(repr, differing)))}; take all columns with "
                    "union_schemas=True, or leave runs out with exp_filter"
                )


def _decoding_error(exp_id: str, name: str, kind: str, err: Exception) -> CoxError:
    needs_torch = kind == PYTORCH_STATE and isinstance(err, ImportError)
    return CoxError(
        f"column {name!r} of run {_printable(exp_id)} cannot be decoded; "
        f"{'install torch' if needs_torch else 'import what its objects need'}, or "
        f"pass keep_serialized=[{name!r}] to get the stored strings. The cause: "
        + _printable(" ".join(f"{type(err).__name__}: {err}".split()))
    )


###############################################################################
# Command line
###############################################################################
# TensorBoard is given a view: a temporary directory with a directory per run, of
# links to the run's event files and one file of our own for the HPARAMS tab. Nothing
# in the user's directory is written, and nothing in it is executed.
# TensorBoard knows a run by its name, so a name once shown stays: a run that starts
# later is named by what differs then, and a restart names all of them alike.

_REFRESH_INTERVAL_S: Final = 1.0
_MTIME_RESOLUTION_NS: Final = 2 * 10**9  # FAT's, the coarsest there is
_RUN_NAME_MAX: Final = 255  # bytes, as of any file name
_UNSAFE_IN_NAME: Final = re.compile("[/\x00-\x1f\x7f\ud800-\udfff]")
# Sorts before the run's files: TensorBoard's Python loader does not go back to it.
_HPARAMS_FILE: Final = "events.out.tfevents.0000000000.hparams"
_NO_EVENTS: Final = "no events yet"


def _say(line: str) -> None:
    print("cox tb:", line.replace("\n", " "), file=sys.stderr, flush=True)


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with a regular file; () for any other (a fifo would block)."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status.st_mtime_ns, status.st_size
    return ()


def _read_params(run_dir: str, table: str) -> dict[str, Any] | None:
    """Read the first row of a run's metadata; None while there is none.

    Left out are values in files of their own, and those of other than builtin types.
    """
    try:
        rows = _read_rows(run_dir, table)
    except NotFoundError:
        return None
    if not rows.counts[0]:
        return None
    params = {}
    frame = _frame(rows, object).head(1)
    for column, kind in _decode_header(rows.header).columns.items():
        value: Any = frame[column].iloc[0]
        if isinstance(value, np.floating):
            value = float(str(value))  # a float32 shows as 0.1, not 0.10000000149011612
        if kind == OBJECT:
            with contextlib.suppress(Exception):  # which a pickle may raise at will
                buffer = io.BytesIO(base64.b64decode(value))
                params[column] = _PlainUnpickler(buffer).load()
        elif not _KINDS[kind].is_file:
            params[column] = value
    return params


class _NameFormatter(string.Formatter):
    """Takes a field for the whole name of a parameter: it looks up nothing in it."""

    def get_field(
        self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[object, str]:
        return _join_list(kwargs[field_name]), field_name

    def fields(self, format_str: str) -> Iterator[str]:
        """Names of the parameters asked for, in format specs too."""
        for _, field, spec, _ in self.parse(format_str):
            if field is not None:
                yield field
                yield from self.fields(spec or "")


def _run_name(formatted: str, exp_id: str) -> str:
    """Join both to a file name; what does not fit is cut off ``formatted``."""
    formatted, exp_id = (_UNSAFE_IN_NAME.sub("_", part) for part in (formatted, exp_id))
    room = max(0, _RUN_NAME_MAX - len(exp_id.encode()) - 1)
    formatted = formatted.encode()[:room].decode(errors="ignore")
    return f"{formatted}-{exp_id}" if formatted else exp_id


@dataclasses.dataclass(slots=True)
class _ViewedRun:
    params: dict[str, Any] | None = None  # None until the metadata's row is there
    params_stamp: tuple[int, ...] = (-1,)  # of the file of that row
    left_out: str = ""  # why; "" if it may be shown
    name: str = ""  # in the view; "" while it is not there
    linked_ns: int = -1  # mtime of its tensorboard directory when that was linked


class _View:
    """The directory that TensorBoard reads, kept up to date with the runs."""

    def __init__(self, view_dir: str, options: argparse.Namespace) -> None:
        self.view_dir = view_dir
        self.directory: str = os.path.abspath(options.logdir)  # of the runs
        self.only = ""  # exp_id of the one run to show
        if _is_run(self.directory):
            self.directory, self.only = os.path.split(self.directory)
        self.table: str = options.metadata_table
        self.format_str: str | None = options.format_str
        self.filters: list[tuple[str, re.Pattern[str]]] = options.filter_param
        self.asked = [name for name, _ in self.filters]  # parameters a run must have
        self.asked += _NameFormatter().fields(self.format_str or "")
        self.differing: list[str] = []  # parameters that the shown runs do not share
        self.runs: dict[str, _ViewedRun] = {}  # by exp_id

    def check_options(self) -> None:
        """Refuse options that fit none of the runs there are."""
        known = [run for run in self.runs.values() if run.params is not None]
        columns = dict.fromkeys(itertools.chain(*(run.params or () for run in known)))
        for name in self.asked:
            if known and name not in columns:
                has = f"table {self.table!r} has: {', '.join(columns)}"
                raise CoxError(f"unknown parameter {name!r}; {has}")
        misfits = [run.left_out for run in known if run.left_out.startswith("--format")]
        if misfits and all(run.left_out for run in known):
            raise CoxError(misfits[0])

    def reasons(self) -> collections.Counter[str]:
        """Count the runs that are not shown, by the reason."""
        hidden = (run for run in self.runs.values() if not run.name)
        return collections.Counter(run.left_out or _NO_EVENTS for run in hidden)

    def summary(self) -> str:
        """One line: how many runs are shown, and why the others are not."""
        if not self.runs:
            return f"no runs in {self.directory} yet; they will show once they start"
        reasons = self.reasons()
        shown = len(self.runs) - sum(reasons.values())
        line = f"showing {shown} of {len(self.runs)} runs in {self.directory}"
        why = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
        return f"{line}; left out: {why}" if why else line

    def watch(self, stopped: threading.Event) -> None:
        """Refresh until stopped; each new trouble is printed once."""
        said = {_NO_EVENTS, *self.reasons()}
        while not stopped.wait(_REFRESH_INTERVAL_S):
            try:
                self.refresh()
                news, line = set(self.reasons()), self.summary()
            except OSError as err:
                news, line = {str(err)}, str(err)
            if news - said:
                _say(line)
            said |= news

    def refresh(self) -> None:
        """Bring the view up to date; an unchanged run costs two or three ``stat``."""
        listed = [e for e in _list_runs(self.directory) if self.only in ("", e)]
        for exp_id in self.runs.keys() - set(listed):
            self._hide(self.runs.pop(exp_id))
        has_new_params = False
        for exp_id in listed:
            run = self.runs.setdefault(exp_id, _ViewedRun())
            if run.params is None:
                has_new_params |= self._find_params(exp_id, run)
        if has_new_params:
            runs = self.runs.values()
            shown = [run.params for run in runs if run.params and not run.left_out]
            columns = dict.fromkeys(itertools.chain(*shown))
            texts = {c: {str(params.get(c)) for params in shown} for c in columns}
            self.differing = [column for column, seen in texts.items() if len(seen) > 1]
        for exp_id, run in self.runs.items():
            if not run.left_out:
                try:
                    self._link(exp_id, run)
                except OSError as err:  # no room for the view
                    self._hide(run)
                    run.left_out = str(err.strerror)

    def _hide(self, run: _ViewedRun) -> None:
        if run.name:
            shutil.rmtree(os.path.join(self.view_dir, run.name), ignore_errors=True)
            run.name, run.linked_ns = "", -1

    def _find_params(self, exp_id: str, run: _ViewedRun) -> bool:
        """Look for the run's metadata if its file changed; True if it is there now."""
        run_dir = os.path.join(self.directory, exp_id)
        stamp = _stamp(_table_path(run_dir, self.table) + _ROWS)
        stamp = stamp or _stamp(os.path.join(run_dir, _STORE_NAME))
        if stamp == run.params_stamp:
            return False
        run.params_stamp = stamp
        try:
            run.params = _read_params(run_dir, self.table) if stamp else None
        except Exception as err:  # a broken HDF5 file raises anything
            _say(f"cannot read the metadata of run {exp_id!r}: {err}")
        run.left_out = self._objection(run.params)
        if run.params is None:
            return False
        self._hide(run)  # it was there without parameters in its name and HPARAMS
        return True

    def _objection(self, params: dict[str, Any] | None) -> str:
        if params is None:
            return f"no row in table {self.table!r}" if self.asked else ""
        for name in self.asked:
            if name not in params:
                return f"no parameter {name!r}"
        if not all(regex.match(str(params[name])) for name, regex in self.filters):
            return "--filter-param"
        try:
            self._format(params)
        except (ValueError, TypeError, OverflowError) as err:
            return f"--format-str {self.format_str!r}: {err}"
        return ""

    def _format(self, params: dict[str, Any]) -> str:
        if self.format_str is not None:
            return _NameFormatter().vformat(self.format_str, (), params)
        columns = [column for column in self.differing if column in params]
        return ",".join(f"{column}={_join_list(params[column])}" for column in columns)

    def _link(self, exp_id: str, run: _ViewedRun) -> None:
        """Show the run once it has event files; link what is new there.

        A directory is linked as one: what add_scalars adds to it shows by itself.
        """
        source = os.path.join(self.directory, exp_id, _TENSORBOARD_DIR)
        try:
            mtime_ns = os.stat(source).st_mtime_ns
            if mtime_ns == run.linked_ns:
                return
            with os.scandir(source) as entries:
                names = sorted(e.name for e in entries if e.is_file() or e.is_dir())
        except OSError:
            return
        if names and not run.name:
            self._add(exp_id, run)
        # In the order of their names: of a file that comes behind a later one,
        # TensorBoard drops points.
        for name in names:
            link = os.path.join(self.view_dir, run.name, name)
            with contextlib.suppress(FileExistsError):
                os.symlink(os.path.join(source, name), link)
        # A file made right after the scan may have left the directory the same time.
        is_settled = time.time_ns() - mtime_ns > _MTIME_RESOLUTION_NS
        run.linked_ns = mtime_ns if is_settled else -1

    def _add(self, exp_id: str, run: _ViewedRun) -> None:
        name = _run_name(self._format(run.params or {}), exp_id)
        while os.path.lexists(os.path.join(self.view_dir, name)):
            name = f"_{name}"  # "a-b" is run "b" shown as "a", and run "a-b"
        os.mkdir(os.path.join(self.view_dir, name))
        run.name = name
        if run.params:
            start = run.params_stamp[0] / 1e9
            event = _encode_event(start, 0, _encode_hparams(run.params, name, start))
            with open(os.path.join(self.view_dir, name, _HPARAMS_FILE), "wb") as file:
                file.write(_encode_file_version(start) + _encode_record(event))


class _ArgumentParser(argparse.ArgumentParser):
    """Raises instead of printing its usage: an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise CoxError(f"{message} (see --help)")


def _parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parse and check our options; those not ours are returned beside them."""
    parser = _ArgumentParser(
        prog="cox tb",
        description="Show all runs of a directory in one TensorBoard, live.",
        epilog="All other options go to TensorBoard: --host, --bind_all, ...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--logdir", required=True, help="directory of the runs, or a single run")
    add("--port", type=int, default=6006, help="default 6006; 0 takes a free one")
    add("--format-str", help="run names, as 'lr-{lr:.1e}'; default: what differs")
    add(
        "--filter-param",
        metavar=("NAME", "REGEX"),
        nargs=2,
        action="append",
        default=[],
        help="show runs where the regex matches the value's start; repeatable",
    )
    add("--metadata-table", default="metadata", help="table of the parameters")
    options, rest = parser.parse_known_args(argv)
    try:
        options.filter_param = [(n, re.compile(r)) for n, r in options.filter_param]
    except re.error as err:
        parser.error(f"--filter-param {err.pattern!r}: {err}")
    try:
        list(_NameFormatter().fields(options.format_str or ""))
    except ValueError as err:
        parser.error(f"--format-str {options.format_str!r}: {err}")
    if not 0 <= options.port < 2**16:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    if not os.path.isdir(options.logdir):
        raise CoxError(f"no such directory: {options.logdir}")
    return options, rest


def _configure_tensorboard(ours: Sequence[str], rest: Sequence[str]) -> Any:
    """Set up TensorBoard, on the fast loader where there is one.

    Of an option given twice it takes the last, so the user's ``rest`` wins.
    """
    try:
        from tensorboard import program
        from tensorboard.data import server_ingester
        from tensorboard.plugins import base_plugin
    except ImportError as err:
        raise CoxError(f"no TensorBoard ({err}): pip install tensorboard") from err
    try:
        server_ingester.get_server_binary()
        load_fast = "true"  # "auto" would print five lines of advice
    except server_ingester.NoDataServerError:
        load_fast = "false"
    board = program.TensorBoard()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            board.configure(["", f"--load_fast={load_fast}", *ours, *rest])
    except base_plugin.FlagsError as err:
        raise CoxError(str(err)) from err
    except SystemExit as err:
        if not err.code:  # --helpfull
            raise
        message = said.getvalue().strip().rpartition("error: ")[2]
        raise CoxError(f"TensorBoard refuses {' '.join(rest)}: {message}") from err
    flags = board.flags
    host = "" if flags.bind_all else flags.host or "localhost"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:  # TensorBoard would say it twice, and no remedy
        socket.create_server((host, flags.port), family=family).close()
    except OSError as err:
        where = f"{host or '*'}:{flags.port}"
        option = "--port 0" if err.errno == errno.EADDRINUSE else "another --host"
        raise CoxError(f"cannot listen on {where}: {err}; try {option}") from err
    return board


def _serve(options: argparse.Namespace, rest: Sequence[str]) -> int:
    # Known before it is made, so that a signal at any moment finds what to remove.
    view_dir = os.path.join(tempfile.gettempdir(), f"cox-tb-{uuid.uuid4().hex}")
    ours = f"--logdir={view_dir}", f"--port={options.port}", "--reload_multifile=true"
    title = f"--window_title=cox: {options.logdir}"
    board = _configure_tensorboard([*ours, title], rest)
    # it would let a second SIGTERM kill us before the view is removed
    board._install_signal_handler = lambda *_: None
    view = _View(view_dir, options)
    stopped = threading.Event()
    watcher = threading.Thread(target=view.watch, args=(stopped,), daemon=True)
    signals = [getattr(signal, s) for s in ("SIGTERM", "SIGHUP") if hasattr(signal, s)]

    def ignore_signals() -> None:
        for signum in (signal.SIGINT, *signals):
            signal.signal(signum, signal.SIG_IGN)

    def stop(number: int, frame: object) -> None:
        ignore_signals()
        sys.exit(128 + number)

    for signum in signals:
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            signal.signal(signum, stop)
    try:
        os.mkdir(view_dir, 0o700)
        view.refresh()
        view.check_options()
        _say(view.summary())
        watcher.start()
        return 1 if board.main() else 0
    finally:
        ignore_signals()  # another must not stop the removal
        stopped.set()
        if watcher.is_alive():
            watcher.join(5)  # it may hang on a disk that does
        shutil.rmtree(view_dir, ignore_errors=True)


def tensorboard_main(argv: Sequence[str] | None = None) -> int:
    """Run ``cox tb`` until it is stopped; return the status of the process."""
    try:
        return _serve(*_parse_args(argv))
    except (CoxError, OSError) as err:
        _say(str(err))
        return 2
    except KeyboardInterrupt:  # before TensorBoard serves, which takes it for the end
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``cox``, whose one command is ``tb``."""
    args = sys.argv[1:] if argv is None else list(argv)
    if args[:1] == ["tb"]:
        return tensorboard_main(args[1:])
    if args == ["--version"]:
        print("cox", __version__)
        return 0
    is_help = args in (["-h"], ["--help"])
    stream = sys.stdout if is_help else sys.stderr
    print("usage: cox tb --logdir DIR [options] (see cox tb --help)", file=stream)
    return 0 if is_help else 2


###############################################################################
# Import names of the original package
###############################################################################
# `cox.store` and the others are this module under another name, for imports and
# for `python -m cox.tensorboard_view`; they work in a vendored copy too.


# Names that programs import although they were never documented.
_ALIASES: Final[Mapping[str, Any]] = {
    "STORE_BASENAME": _STORE_NAME,
    "SAVE_DIR": _SAVE_DIR,
    "TENSORBOARD_DIR": _TENSORBOARD_DIR,
    "TABLE_OBJECT_DIR": _OBJECTS_DIR,
    "COX_DATA_KEY": "COX_DATA",
    "_clean_dict": lambda d, schema: {  # numbers out of 0-d tensors
        n: v if isinstance(schema[n], str) else _scalar(v) for n, v in d.items()
    },
    "main": tensorboard_main,
}


def _register_submodules() -> None:
    for name in ("store", "readers", "utils", "tensorboard_view"):
        full_name = f"{__name__}.{name}"
        module = types.ModuleType(full_name, __doc__)
        module.__path__ = []  # runpy warns of a plain module that is imported already
        module.__spec__ = importlib.util.spec_from_file_location(full_name, __file__)
        vars(module).update({public: globals()[public] for public in __all__})
        vars(module).update(_ALIASES)
        sys.modules[full_name] = globals()[name] = module


_register_submodules()

if __name__ == "__main__":
    is_alias = __spec__ is not None and __spec__.name.endswith("tensorboard_view")
    sys.exit(tensorboard_main() if is_alias else main())
