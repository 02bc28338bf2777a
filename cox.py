"""Log experiments to disk and read them back as pandas frames, from one file.

No server, no account: a run is a directory, a table is an append-only file.

    from cox import CollectionReader, Store

    with Store("out") as store:                          # out/<random id>/
        store.add_table("metadata", {"lr": float, "arch": str})
        store.add_table("train", {"epoch": int, "loss": float})
        store["metadata"].append_row({"lr": 0.1, "arch": "resnet18"})
        for epoch in range(3):
            store.log_table_and_tb("train", {"epoch": epoch, "loss": 1 / (epoch + 1)})
            store["train"].flush_row()                   # on disk from here on

    reader = CollectionReader("out")
    print(reader.df("train"))                            # every run, one frame
    print(reader.runs())                                 # how each of them went

What a run leaves on disk:

    out/<exp_id>/store.h5               a copy for pandas, made by close() and at exit
                 save/                  for files of your own
                 tensorboard/           event files
                 .tables/<table>.rows   the table: a header line, fixed-size records
                 .tables/<table>.text   the text of its rows, if it has text columns
                 .tables/lock           held by the one process that writes
                 .tables/state.json     how many rows were synced to disk
                 .tables/history.jsonl  what ran, when, and how it ended
                 .tables/<n>.patch      the uncommitted changes (git) of attempt n
                 .table_objects/        one file per PICKLE or PYTORCH_STATE value

Guarantees:

- A row is in the file when ``flush_row`` returns: a process that is killed, or meets
  a full disk, loses at most the row it was writing.
- After ``checkpoint()`` or ``close()``, a machine that dies loses no earlier row.
- Reading returns what was logged, or raises: checksums cover every byte of a table.
- Any number of processes may read a run while one writes it.
- Listing, reading, collecting and viewing someone else's run executes none of its code
  and touches nothing outside the run. The exception is decoding OBJECT, PICKLE and
  PYTORCH_STATE columns, as ``reader.df`` does unless ``keep_serialized`` names them.

Sections, each building on those above it: errors, on-disk format, utilities, files,
values and schema, row files, HDF5, history, run directory, Table, TensorBoard
events, event writer, Store, CollectionReader, TensorBoard view, commands, import
names of the original package.

Copyright (c) 2026 cox contributors. SPDX-License-Identifier: MIT
"""

from __future__ import annotations

__version__ = "1.1.0"

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
import datetime
import difflib
import errno
import functools
import getpass
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import math
import operator
import os
import pickle
import pickletools
import re
import reprlib
import select
import shlex
import shutil
import signal
import socket
import stat
import string
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import urllib.parse
import uuid
import warnings
import wave
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from decimal import Decimal
from typing import IO, Any, Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import tables

try:
    import fcntl
    import resource
except ImportError:  # Windows: runs are written without a lock
    fcntl: Any = None  # type: ignore[no-redef]
    resource: Any = None  # type: ignore[no-redef]

_log = logging.getLogger("cox")

###############################################################################
# Errors
###############################################################################
# A message says what happened, where, and what to do. Every leaf class also derives
# from the builtin exception that fits, and can be pickled, as a process pool requires.


def _printable(value: object, limit: int = 200) -> str:
    """Return ``str(value)``, cut and without control characters: safe to print."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else " " if c == "\n" else "?" for c in text)


def _shorten(names: Collection[str], limit: int = 20) -> str:
    """Return names joined by commas; a long list is cut, and an empty one is "none"."""
    shown = ", ".join(itertools.islice(names, limit))[:2000] or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


_MESSAGE_MAX: Final = 5_000  # characters


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = _printable(record.getMessage(), _MESSAGE_MAX), ()
    return True


_log.addFilter(_make_printable)


class CoxError(Exception):
    """Base of every error that cox raises; its text is safe to print to a terminal."""

    def __str__(self) -> str:
        # KeyError, a base of NotFoundError, would show the repr of a single argument
        text = self.args[0] if len(self.args) == 1 else super().__str__()
        return _printable(text, _MESSAGE_MAX)


class SchemaError(CoxError, ValueError):
    """A schema, column or value is not acceptable; nothing was changed."""


class NotFoundError(CoxError, KeyError, FileNotFoundError, ValueError):
    """There is no such run, table, directory or object."""


class StoreExistsError(CoxError, ValueError):
    """``new=True`` was given for a run that already exists."""


class WriteRefusedError(CoxError, RuntimeError):
    """This Store may not write: it is read-only, closed or forked, or another does."""


class _NoWriterError(WriteRefusedError, AttributeError):
    """A Store in mode "r" has no event writer; ``hasattr`` then returns False."""


class CorruptError(CoxError, ValueError):
    """A file of a run is damaged (by more than a crash), not cox's, or too new.

    Attributes:
        message: What is wrong with the file.
        path: The file, or "" if it is not known.
        offset: Byte at which the damage starts, or None.
        nrows: Number of good rows of the table before the damage, or None.
    """

    def __init__(
        self,
        message: str,
        path: str = "",
        offset: int | None = None,
        nrows: int | None = None,
    ) -> None:
        super().__init__(message, path, offset, nrows)  # pickling needs all of them
        self.message, self.path, self.offset, self.nrows = self.args

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return _printable(where + self.message, _MESSAGE_MAX)


class StorageError(CoxError, OSError):
    """The disk refused (it is full, say); what was on it before is unchanged."""


###############################################################################
# On-disk format
###############################################################################
# `.rows` starts with the header, one line of ASCII JSON:
#     {"cox": 2, "columns": {"epoch": "int", "note": "str"}, "check": 3786452513}
# Its "check" is the crc32 of the bytes before `, "check"`. What follows are packed
# little-endian records, all of the same size, with these fields:
#     i64  row number, from 1
#     per column: f64 for float, i64 for int, 1 byte for bool, the numpy type of that
#          name for the others; for text (str, OBJECT, PICKLE, PYTORCH_STATE) an i64,
#          the length of the value in bytes
#     i64  where the row's text starts in `.text` (only in tables with text columns)
#     i64  checksum: crc32 of the fields above, continued over the row's text
# `.text` holds the text of all rows, one after another: for a str its UTF-8 (lone
# surrogates are encoded too), for an OBJECT the base64 of its pickle, for PICKLE and
# PYTORCH_STATE the name of a file in .table_objects/. That name is a version 8 UUID
# whose first six and last two bytes are a digest (blake2b) of the file's content;
# version 4 UUIDs come from the original cox and hold no digest.
# File names are percent-encoded table names. Headers hold nothing specific to a run,
# so equal schemas have equal header bytes.
# `.tables/state.json` is one line in the form of a header: the number of synced rows
# per table ("rows"), and digests of the store.h5 files that cox wrote ("stores").

_FORMAT_VERSION: Final = 2
_STORE_NAME: Final = "store.h5"
_SAVE_DIR: Final = "save"
_TABLES_DIR: Final = ".tables"
_OBJECTS_DIR: Final = ".table_objects"
_TENSORBOARD_DIR: Final = "tensorboard"
_LOCK_NAME: Final = "lock"
_STATE_NAME: Final = "state.json"
_ROWS_SUFFIX: Final = ".rows"
_TEXT_SUFFIX: Final = ".text"
_SUFFIXES: Final = (_ROWS_SUFFIX, _TEXT_SUFFIX)
_NEW_SUFFIX: Final = ".new"  # a file or directory that is not complete yet
_TABLE_NAME_MAX: Final = 225  # bytes, percent-encoded: 255 less a dated suffix

OBJECT: Final = "__object__"
"""Column type: Python objects, best small ones, pickled into the table itself."""
PICKLE: Final = "__pickle__"
"""Column type: Python objects, each pickled to a file of its own."""
PYTORCH_STATE: Final = "__pytorch_state__"
"""Column type: what ``torch.save`` accepts, each value in a file of its own."""

_HEADER_MAX: Final = 1 << 20  # bytes of a header line
_STATE_MAX: Final = 1 << 26  # bytes of state.json
_PREFIX_SIZE: Final = 1 << 16  # bytes of `.rows` in the first read: often all of it
_BLOCK_SIZE: Final = 3 << 17  # bytes of records that are read and checked at a time
_CAPACITY_MAX: Final = 1 << 22  # rows to allocate memory for before reading them
_TORN_MAX: Final = 1 << 30  # bytes; a longer torn end is an error, not copied aside
_HOLE_MIN: Final = 1 << 26  # bytes; a longer text is searched for holes when read
_WRITERS_MAX: Final = 64  # tables of a run that are open for writing at a time

_O_BINARY: Final[int] = getattr(os, "O_BINARY", 0)  # Windows would translate newlines
_O_SAFE: Final[int] = (
    _O_BINARY
    | getattr(os, "O_NOFOLLOW", 0)  # a link may lead out of the run
    | getattr(os, "O_NONBLOCK", 0)  # a fifo would block forever
)
_O_READ_APPEND: Final = os.O_RDWR | os.O_APPEND
_NO_REGULAR_FILE_ERRNOS: Final = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
# errors of flock on file systems without locks
_NO_LOCK_ERRNOS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


###############################################################################
# Utilities
###############################################################################


class Parameters:
    """Attribute access to a dictionary, ignoring case; a missing name gives None.

    The dictionary itself is ``params``. New attributes are stored in lower case.

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
        # copy and pickle look up dunders before params is set
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

    def __getstate__(self) -> dict[str, Any]:  # the state that the original pickles
        return self.params

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "params", dict(state))

    def __repr__(self) -> str:
        return json.dumps(self.params, indent=2, default=repr)

    def as_dict(self) -> dict[str, Any]:
        """Return the dictionary itself, with the names as given."""
        return self.params


def _as_row(data: Any) -> Mapping[str, Any]:
    """Return a row, in any of the forms that users may pass, as a mapping."""
    if isinstance(data, (dict, Mapping)):  # dict first, for speed
        return data
    if isinstance(data, Parameters):
        return data.params
    if isinstance(data, argparse.Namespace):
        return vars(data)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    keyed: Any = data  # a Series, or a dict in all but its class, as a ConfigDict
    if hasattr(type(data), "keys") and not isinstance(data, pd.DataFrame):
        return dict(keyed)
    raise SchemaError(
        "a row is a dict (or Parameters, Namespace, dataclass, Series) of column to "
        f"value; got {data!r:.80}"
    )


def override_json(args: Any, json_path: str, check_consistency: bool = False) -> Any:
    """Return a copy of ``args`` with missing and None values taken from a JSON file.

    Args:
        args: An object with the arguments as attributes (``argparse.Namespace``,
            :class:`Parameters`, ...). It is not changed.
        json_path: File with one JSON object, argument name to value.
        check_consistency: Require the same names in both, except for config_path.

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
    """Return ``new``; raise unless ``old`` is None or equal to it.

    Raises:
        AssertionError: They differ.
    """
    if old is not None and old != new:
        raise AssertionError(f"expected {old!r} again, got {new!r}")
    return new


def has_tensorboard(dirname: str) -> bool:
    """Return whether ``dirname`` contains a directory named tensorboard."""
    return os.path.isdir(os.path.join(dirname, _TENSORBOARD_DIR))


def mkdirp(x: str, should_msg: bool = False) -> None:
    """Make directory ``x`` and its parents; on errors, warn only if ``should_msg``."""
    try:
        os.makedirs(x)
    except OSError as err:
        if should_msg:
            _log.warning("could not make directory %s: %s", x, err)


def obj_to_string(obj: Any) -> str:
    """Return the pickle of ``obj`` as base64 text."""
    return base64.b64encode(pickle.dumps(obj)).decode("ascii")


def string_to_obj(s: Any) -> Any:
    """Return the object in a string made by :func:`obj_to_string`; None for "".

    Anything else is returned unchanged, so decoding twice does no harm. Unpickling may
    run code: use this only on strings that you trust.
    """
    if not isinstance(s, str):
        return s
    data = b""
    if s.startswith("gA"):  # base64 of the first byte of a pickle
        with contextlib.suppress(ValueError):  # other text that starts the same way
            data = base64.b64decode(s)
    return pickle.loads(data) if data.endswith(b".") else s or None


###############################################################################
# Files
###############################################################################
# Everything that names, opens, creates, replaces or syncs a file of a run. Invariants:
# - A run may come from a stranger: only regular files are opened, links are not
#   followed, and no call blocks.
# - A file that is not append-only is written under another name, then renamed.
# - A stored descriptor is reset before it is closed: a close that fails has freed the
#   number all the same, and the next file opened may get it.


def _table_stem(name: str) -> str:
    """Return the name of a table's files without their suffix."""
    return urllib.parse.quote(name, safe="", errors="surrogatepass")


def _table_path(run_dir: str, name: str) -> str:
    """Return the path of a table's files without their suffix."""
    return os.path.join(run_dir, _TABLES_DIR, _table_stem(name))


def _dated_path(path: str) -> str:
    """Return an unused path: ``path`` with the date and time appended."""
    stamp = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = itertools.chain([stamp], (f"{stamp}-{n}" for n in itertools.count(2)))
    return next(path for path in candidates if not os.path.lexists(path))


def _open_above_2(path: str, flags: int) -> int:
    """Open a file, but not as a free descriptor 0 to 2: C code may print into those."""
    fd = os.open(path, flags, 0o666)
    if fd <= 2 and fcntl is not None:
        fd, low = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), fd
        os.close(low)
    return fd


def _open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a file of a run, which must be a regular file and not a link.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptError: It is something else, which may lead out of the run, or block.
        StorageError: It cannot be opened: no permission, too many open files.
    """
    try:
        fd = _open_above_2(path, flags | _O_SAFE)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as err:
        if err.errno not in _NO_REGULAR_FILE_ERRNOS:
            raise _storage_error(err, "could not open the file", path) from err
    else:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    raise CorruptError("it is no regular file, so it was not opened", path)


def _read_file(path: str, size_max: int = -1) -> bytes:
    """Read a file of a run, or its first ``size_max`` bytes."""
    with _as_storage_error(path), open(_open_file(path), "rb", buffering=0) as file:
        return file.read(size_max)


def _storage_error(err: OSError, what: str, path: str) -> StorageError:
    return StorageError(err.errno, f"{what}: {os.strerror(err.errno or 0)}", path)


@contextlib.contextmanager
def _as_storage_error(path: str, what: str = "") -> Iterator[None]:
    """Raise an OSError as a StorageError that says what failed, and on which file.

    By default that is reading, and the error about a missing file passes unchanged.
    """
    passed = () if what else (FileNotFoundError, NotADirectoryError)
    try:
        yield
    except OSError as err:
        if isinstance(err, (CoxError, *passed)):
            raise
        raise _storage_error(err, what or "could not read", path) from err


def _refuse_link(directory: str) -> None:
    """Raise if a directory of a run is a link: its files would be outside the run."""
    if os.path.islink(directory):
        raise CorruptError("it is a link, and cox follows none in a run", directory)


def _read_at(fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes, or up to the end; one ``os.read`` returns 2 GB at most."""
    os.lseek(fd, offset, os.SEEK_SET)  # Windows has no pread
    data = os.read(fd, size)
    while 0 < len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def _write_all(fd: int, data: bytes) -> None:
    """Write with one ``os.write``; after a short write go on until all is written."""
    while data:
        count = os.write(fd, data)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[count:]


def _close_all(*fds: int) -> None:
    """Close descriptors, ignoring -1; raise the error of any once all are closed.

    On a network file system, closing may be the first call that reports a full disk.
    """
    with contextlib.ExitStack() as stack:
        for fd in reversed(fds):  # a stack: the last one pushed is closed first
            if fd >= 0:
                stack.callback(os.close, fd)


def _sync(path: str) -> None:
    """Sync a file, or the names in a directory, to disk."""
    try:
        fd = os.open(path, os.O_RDONLY | _O_SAFE)
    except OSError as err:
        # not a file that cox wrote; or a directory on Windows (EACCES)
        if err.errno in (*_NO_REGULAR_FILE_ERRNOS, errno.EACCES):
            return
        raise
    try:
        os.fsync(fd)
    except OSError as err:
        if err.errno != errno.EINVAL:  # some file systems cannot sync directories
            raise
    finally:
        os.close(fd)


def _sync_all(paths: Collection[str]) -> None:
    """Sync files, unless they are gone; many at a time, which is faster."""

    def sync(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _sync(path)

    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(sync, paths))
    except RuntimeError:  # no threads can be started while the interpreter exits
        for path in paths:
            sync(path)


def _write_file(path: str, data: bytes, new_dir: str = "", sync: bool = True) -> None:
    """Create or replace a file atomically.

    A temporary file, in ``new_dir`` or beside ``path``, is written (1), synced (2) and
    renamed to ``path`` (3), and the directory is synced (4). A crash before step 3
    leaves the old file, a crash after it the new one.
    """
    directory, name = os.path.split(path)
    new_path = os.path.join(new_dir or directory, name + _NEW_SUFFIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new_path)  # left by a writer that died, or a planted link
        fd = _open_above_2(new_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_SAFE)
        try:
            _write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new_path, path)
        if sync:
            _sync(directory)
    except OSError as err:
        with contextlib.suppress(OSError):
            os.unlink(new_path)
        raise _storage_error(err, "could not write the file", path) from err


def _remove(path: str) -> None:
    """Remove a file, a directory tree, or a link but not its target."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _is_real_dir(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _require_real_dir(path: str) -> None:
    if not _is_real_dir(path):
        raise WriteRefusedError(
            f"{path} is a link, or no directory, so cox writes nothing there"
        )


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _encode_line(fields: Mapping[str, Any]) -> bytes:
    """Return a line of ASCII JSON whose last field is the crc32 of what precedes it."""
    checked = json.dumps(fields).encode()[:-1]
    return b'%b, "check": %d}\n' % (checked, zlib.crc32(checked))


# raised when a malformed line is parsed, or its fields are used
_BAD_LINE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _decode_line(line: bytes) -> Any:
    """Parse a line of :func:`_encode_line`; in a stranger's run it may be any JSON."""
    checked, _, check = line.rpartition(b', "check": ')
    if check != b"%d}\n" % zlib.crc32(checked):
        raise ValueError("its checksum is wrong")
    return json.loads(checked + b"}")


class _State(NamedTuple):
    """Content of `.tables/state.json`; see On-disk format."""

    rows: dict[str, int]  # number of synced rows, by file name without suffix
    stores: Sequence[str]  # digests of the store.h5 files that cox wrote

    def nrows(self, table_path: str) -> int:
        """Return how many rows of a table were synced."""
        return self.rows.get(os.path.basename(table_path), 0)


def _read_state(tables_dir: str) -> _State:
    """Read a run's state; a missing or damaged file counts as empty."""
    with contextlib.suppress(FileNotFoundError, *_BAD_LINE):
        line = _read_file(os.path.join(tables_dir, _STATE_NAME), _STATE_MAX)
        fields = _decode_line(line)
        rows = {k: n for k, n in fields["rows"].items() if type(n) is int}
        return _State(rows, [*fields["stores"]])
    return _State({}, [])


def _write_state(tables_dir: str, state: _State) -> None:
    _write_file(os.path.join(tables_dir, _STATE_NAME), _encode_line(state._asdict()))


###############################################################################
# Values and schema
###############################################################################
# A value is converted when it is staged, so the call that passes a bad one raises. A
# conversion loses nothing but digits of a float: an int column takes 3.0, but not 3.7.
# A new kind of column takes functions, a line in _KINDS, its type in _PlainUnpickler.


def _number(value: Any) -> Any:
    """Unwrap numpy scalars, and arrays and tensors of one element, of any shape."""
    shape = getattr(value, "shape", None)
    is_single = isinstance(shape, tuple) and math.prod(shape) == 1
    if is_single and isinstance(value, np.ma.MaskedArray) and value.mask.all():
        return None  # item() would return the value that the mask hides
    return value.item() if is_single else value


def _to_float(value: Any, code: str = "<d") -> float:
    if type(value) in (float, int) and code == "<d":  # most values: for speed
        return float(value)
    value = _number(value)
    if value is None:
        raise TypeError("it is not a number (use float('nan') for a missing one)")
    if isinstance(value, np.complexfloating):  # clongdouble: float() drops a part
        raise TypeError("it is not a real number")
    number = float(value)
    if math.isinf(number) and "inf" not in str(value).lower():  # a Decimal, say
        raise OverflowError("it is too large for a float")
    struct.pack(code, number)  # raises if a finite number would become an infinity
    return number


def _to_int(value: Any, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    if type(value) is int and low <= value <= high:
        return value
    value = _number(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise TypeError("int has no missing values (use float and float('nan'))")
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


def _to_pytorch_state(value: Any) -> bytes:
    import torch

    if callable(state_dict := getattr(value, "state_dict", None)):
        value = state_dict()  # a module, an optimizer, ...
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _object_digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _new_uid(data: bytes) -> str:
    """Return a new name for an object's file, with a digest of its content."""
    digest, salt = _object_digest(data), bytearray(os.urandom(8))
    salt[0] = salt[0] & 0x0F | 0x80  # UUID version 8 (RFC 9562): custom content
    salt[2] = salt[2] & 0x3F | 0x80
    return str(uuid.UUID(bytes=digest[:6] + salt + digest[6:]))


def _read_object(uid: str, objects_dir: str) -> bytes:
    """Read the file of a PICKLE or PYTORCH_STATE value; refuse one outside the run."""
    if str(uid) in ("", ".", "..", "nan") or {"/", "\\", ":", "\0"} & set(str(uid)):
        raise CorruptError(
            f"{uid!r:.200} names no file of {objects_dir}, so it was not opened"
        )
    path = os.path.join(objects_dir, uid)
    _refuse_link(objects_dir)
    try:
        data = _read_file(path)
    except FileNotFoundError:
        what = f"{objects_dir} lacks {uid}; copy it along with the run"
        raise NotFoundError(what) from None
    try:
        name = uuid.UUID(uid)
    except ValueError:  # a file that the user named
        return data
    digest = name.bytes[:6] + name.bytes[-2:]
    if name.version == 8 and digest != _object_digest(data):
        raise CorruptError("its content does not match the digest in its name", path)
    return data


def _load_pickle(uid: str, objects_dir: str) -> Any:
    return pickle.loads(_read_object(uid, objects_dir))


def _load_pytorch_state(uid: str, objects_dir: str, **kwargs: Any) -> Any:
    data = _read_object(uid, objects_dir)
    import torch

    # trusted like a PICKLE, as what was saved may hold more than tensors
    return torch.load(io.BytesIO(data), **{"weights_only": False, **kwargs})


class _Kind(NamedTuple):
    """What a kind of column holds; _KINDS has the kinds by their names in headers."""

    type: Any  # as given in a schema
    convert: Callable[[Any], Any]  # value to the number, or bytes of text, to store
    code: str = ""  # format of the number, in struct and numpy; "" for text
    load: Callable[[str, str], Any] | None = None  # (text, objects_dir) to the object
    is_file: bool = False  # the bytes go to a file in objects_dir, the text names it
    show: Callable[[Any], Any] = lambda value: value  # number or text to a plain value


def _numpy_kind(code: str) -> _Kind:
    dtype = np.dtype(code)
    if dtype.kind == "f":  # show a float32 as 0.1, not 0.10000000149
        to_float = functools.partial(_to_float, code=f"<{code}")
        return _Kind(
            dtype.type, to_float, code, show=lambda x: float(str(dtype.type(x)))
        )
    limits = np.iinfo(dtype)
    to_int = functools.partial(_to_int, low=limits.min, high=limits.max)
    return _Kind(dtype.type, to_int, code)


_KINDS: Final[Mapping[str, _Kind]] = {
    "float": _Kind(float, _to_float, "d"),
    "int": _Kind(int, _to_int, "q"),
    "bool": _Kind(bool, _to_bool, "?"),
    "str": _Kind(str, lambda value: str(value).encode("utf-8", "surrogatepass")),
    OBJECT: _Kind(
        OBJECT,
        lambda value: obj_to_string(value).encode("ascii"),
        load=lambda text, _: string_to_obj(text),
        show=lambda text: _load_plain(base64.b64decode(text)),
    ),
    PICKLE: _Kind(PICKLE, pickle.dumps, load=_load_pickle, is_file=True),
    PYTORCH_STATE: _Kind(
        PYTORCH_STATE,
        _to_pytorch_state,
        # the machine that reads may have no GPU
        load=functools.partial(_load_pytorch_state, map_location="cpu"),
        is_file=True,
    ),
    **{np.dtype(code).name: _numpy_kind(code) for code in "efdbhiqBHIQ"},
}
_KIND_NAMES: Final[Mapping[Any, str]] = {  # by the type in a schema
    # adds np.bool_, np.str_, and C types of the same size as another, as np.longlong
    **{t: np.dtype(t).name for t in np.ScalarType if np.dtype(t).name in _KINDS},
    **{kind.type: name for name, kind in _KINDS.items()},
}
# struct would store the real part, what a mask hides, or an infinity if out of range
_NEVER_PACKED: Final = frozenset(
    {np.complex64, np.complex128, np.clongdouble, np.ma.MaskedArray}
    | {type(np.ma.masked), np.longdouble, Decimal}
)


class _Schema:
    """A parsed header line: the columns of a table and the layout of its records."""

    def __init__(self, header: bytes, columns: dict[str, str]) -> None:
        self.kinds = kinds = [_KINDS[name] for name in columns.values()]
        self.header = header  # with its newline
        self.columns = columns  # name to the name of its kind
        self.types = {name: kind.type for name, kind in zip(columns, kinds)}
        # name to position and converter
        self.slots = {n: (i, k.convert) for n, (i, k) in zip(columns, enumerate(kinds))}
        self.ncolumns = len(kinds)
        self.blank: list[Any] = [None] * len(kinds)  # a working row with nothing staged
        self.text_fields = [i for i, kind in enumerate(kinds) if not kind.code]
        self.file_fields = [i for i, kind in enumerate(kinds) if kind.is_file]
        codes = [kind.code or "q" for kind in kinds]
        text_start = ["q"] if self.text_fields else []
        # a record without its checksum
        self.struct = struct.Struct("<q" + "".join(codes + text_start))
        # Fast path: gets the values of a row in C. Only for kinds where struct or str()
        # refuses what `convert` refuses: not for bool, nor for text with a `load`.
        self.get_row: Callable[[Mapping[str, Any]], Sequence[Any]] | None = None
        if "?" not in codes and not any(kind.load for kind in kinds):
            get = operator.itemgetter(*columns)
            self.get_row = get if len(columns) > 1 else lambda row: (get(row),)
        # named by position, as a column may be called "" or "check"
        fields = [(str(i), np.dtype(code).str) for i, code in enumerate(codes)]
        fields += [("start", "<i8")] if text_start else []
        self.dtype = np.dtype([("number", "<i8"), *fields, ("check", "<i8")])
        self.record_size = self.dtype.itemsize

    def offset(self, nrows: int) -> int:
        """Return the size in bytes of a `.rows` with ``nrows`` rows."""
        return len(self.header) + nrows * self.record_size


def _encode_header(schema: Mapping[str, Any]) -> bytes:
    """Return the header line for a schema as given by the user."""
    if not isinstance(schema, Mapping) or not schema:
        raise SchemaError(
            f"a schema is a non-empty dict of column to type; got {schema!r}"
        )
    columns = {}
    for name, column_type in schema.items():
        if not isinstance(name, str):
            raise SchemaError(f"a column name must be a str, got {name!r}")
        try:
            columns[name] = _KIND_NAMES[column_type]
        except (KeyError, TypeError):  # TypeError: it is not hashable
            raise SchemaError(
                f"column {name!r} has type {column_type!r}; use int, float, str, bool, "
                "a numpy integer or float type up to 64 bits, OBJECT, PICKLE or "
                "PYTORCH_STATE"
            ) from None
    return _encode_line({"cox": _FORMAT_VERSION, "columns": columns})


@functools.lru_cache(maxsize=1024)
def _decode_header(header: bytes) -> _Schema:
    """Parse a header line; the caller adds the path to an error about it."""
    version: Any = None
    with contextlib.suppress(*_BAD_LINE):
        fields = _decode_line(header)
        version = fields["cox"]
        if version == _FORMAT_VERSION and fields["columns"]:
            return _Schema(header, fields["columns"])
    if type(version) is int and version > _FORMAT_VERSION:
        raise CorruptError(
            f"its format version {version} is newer than this cox reads "
            f"({_FORMAT_VERSION}); upgrade cox"
        )
    remedy = "restore it from a copy, or move it out of the run"
    if b'"cox": 1,' in header:
        remedy = "read it with the cox that wrote it"
    raise CorruptError(
        f"its first line is not the header of a table; {remedy}: {header[:60]!r}"
    )


def schema_from_dict(d: Any, alternative: str = OBJECT) -> dict[str, Any]:
    """Return a schema that fits the values of an example row.

    Args:
        d: Column name to example value, as for :meth:`Table.update_row`.
        alternative: Type for values that are not a number, str or bool: ``OBJECT``,
            ``PICKLE`` or ``PYTORCH_STATE``.

    Raises:
        SchemaError: ``d`` is not a row, or ``alternative`` is another type.
    """
    if alternative not in (OBJECT, PICKLE, PYTORCH_STATE):
        raise SchemaError(
            f"alternative must be OBJECT, PICKLE or PYTORCH_STATE, got {alternative!r}"
        )
    schema = {}
    for name, value in _as_row(d).items():
        kind_name = _KIND_NAMES.get(type(value))
        if kind_name is None and getattr(value, "shape", None) == ():
            with contextlib.suppress(AttributeError):  # a dtype has a shape but no item
                kind_name = _KIND_NAMES.get(type(value.item()))
        schema[name] = _KINDS[kind_name].type if kind_name else alternative
    return schema


###############################################################################
# Row files
###############################################################################
# Invariants:
# - `.rows` and `.text` only grow, except that the one writer cuts off a torn end.
# - A row's text is written to `.text` before its record is written to `.rows`, so a
#   reader that looks at `.rows` first finds the text of every record.
# - A record proves itself: its number is its position, its text starts where that of
#   the previous record ends, and its checksum covers its other bytes and its text.
#   Because `start` is stored, the last rows can be read without the others.
# - What follows the last good record is no row. It is a torn end if it is shorter
#   than a record (a killed writer, a full disk), or if those rows were never synced
#   (a machine that dies may lose any page of them). Anything else is corruption:
#   damage among the rows marked as synced, or a good record in the wrong position.
# Below, `first` is the number of rows before those at hand, and `start` the offset
# in `.text` at which their text starts.


class _Rows(NamedTuple):
    """Encoded rows of one or several tables with the same header."""

    header: bytes
    sources: Sequence[int] = ()  # numbers that the caller gave to the tables
    counts: Sequence[int] = ()  # rows per source
    records: bytes = b""
    texts: bytes = b""  # of these rows, one after another

    @property
    def nrows(self) -> int:
        return sum(self.counts)


_CRC32: Final = 0xEDB88320  # polynomials, reflected
_CRC32C: Final = 0x82F63B78
_CRC_BATCH: Final = 8192  # records whose checksums are computed together
# for longer or fewer records a loop over zlib.crc32 is faster
_CRC_LOOKUP_SIZE: Final = 112  # bytes
_CRC_LOOKUP_MIN: Final = 256  # records


@functools.lru_cache(maxsize=16)
def _make_crc_lookup(length: int, polynomial: int) -> npt.NDArray[np.uint32]:
    """Return what each byte value, at each position, adds to the CRC of the bytes."""
    last: npt.NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    one = np.uint32(1)
    for _ in range(8):
        last = last >> one ^ (last & one) * np.uint32(polynomial)
    lookup = np.empty((length, 256), np.uint32)
    lookup[-1] = last
    for position in range(length - 2, -1, -1):
        after = lookup[position + 1]
        lookup[position] = last[after & 255] ^ after >> 8
    return lookup


def _crc_records(records: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Return the crc32 of each record, without its checksum field.

    A CRC is linear: it is the XOR of what each byte adds at its position, which numpy
    looks up for thousands of records at a time.
    """
    size = records.dtype.itemsize - 8
    if size > _CRC_LOOKUP_SIZE or len(records) < _CRC_LOOKUP_MIN:
        each = struct.iter_unpack(f"{size}s8x", records.view(np.uint8).data)
        return np.array([zlib.crc32(data) for (data,) in each], np.uint32)
    data = records.view(np.uint8).reshape(-1, size + 8)[:, :size]
    lookup = _make_crc_lookup(size, _CRC32)
    crcs = np.full(len(records), zlib.crc32(bytes(size)), np.uint32)
    for first in range(0, len(records), _CRC_BATCH):
        block, part = (x[first : first + _CRC_BATCH] for x in (data, crcs))
        # zeros add nothing, and small integers have many
        for position in np.flatnonzero(np.bitwise_or.reduce(block, axis=0)):
            part ^= lookup[position].take(block[:, position])
    return crcs


def _crc_texts(
    crcs: npt.NDArray[np.uint32], text: bytes, bounds: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Continue each record's CRC over its text; ``bounds`` is from _text_bounds()."""
    lengths = np.diff(bounds)
    # for few or long texts a loop over zlib.crc32 is faster
    if len(crcs) < 16 or len(text) > 40 * len(crcs):
        view = memoryview(text)
        spans = zip(itertools.pairwise(bounds.tolist()), crcs.tolist())
        done = (zlib.crc32(view[a:b], crc) for (a, b), crc in spans)
        return np.fromiter(done, np.uint32, len(crcs))
    lookup = _make_crc_lookup(1, _CRC32)[0]
    order = np.argsort(-lengths, kind="stable")  # unfinished texts stay in front
    data, offsets, states = np.frombuffer(text, np.uint8), bounds[order], ~crcs[order]
    longer = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)))
    for count in longer.tolist():  # of the texts longer than 0, 1, 2, ... bytes
        part = states[:count]
        part[:] = lookup[(part ^ data[offsets[:count]]) & 255] ^ part >> 8
        offsets += 1
    done_crcs = np.empty_like(crcs)
    done_crcs[order] = ~states
    return done_crcs


def _text_bounds(
    schema: _Schema, records: npt.NDArray[Any], size: int
) -> npt.NDArray[np.int64]:
    """Return the bounds of the records' texts, shape ``(len(records) + 1,)``.

    The text of a record is between its bound and the next. From the first record whose
    text would not fit into ``size`` bytes, the ends are -1.
    """
    bounds = np.zeros(len(records) + 1, np.int64)
    ends = bounds[1:]
    for i in schema.text_fields:
        lengths = records[str(i)].view(np.uint64)  # a negative length becomes huge
        ends += np.minimum(lengths, size + 1).view(np.int64)  # so no sum overflows
    np.minimum(ends, size + 1).cumsum(out=ends)
    if (is_wrong := ends > size).any():
        ends[int(is_wrong.argmax()) :] = -1
    return bounds


@functools.lru_cache(maxsize=1024)
def _crc_of_good(size: int, count: int) -> int:
    """Return the crc32 of ``count`` good records, which does not depend on content."""
    body = bytes(size - 8)
    record = body + zlib.crc32(body).to_bytes(8, "little")
    return zlib.crc32(record * count)


def _checks_hold(records: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which records of a table without text have a correct checksum.

    A record ends with its own crc32, so how it changes a running CRC does not depend on
    its content, and one CRC over all their bytes verifies thousands of records. That is
    as strong as one by one: a record with a wrong checksum makes the CRC differ. Good
    records after it cannot undo that, as they map different CRCs to different CRCs, and
    bad ones do so as rarely as a single bad one passes. The upper half of a checksum
    field, which is zero, is compared separately.
    """
    good: npt.NDArray[np.bool_] = records["check"] >> 32 == 0
    for first in range(0, len(records), _CRC_BATCH):
        part = records[first : first + _CRC_BATCH]
        known = _crc_of_good(records.dtype.itemsize, len(part))
        if zlib.crc32(part.view(np.uint8).data) != known:
            good[first : first + _CRC_BATCH] = part["check"] == _crc_records(part)
    return good


def _indexes(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the index of each row within its table, for tables of these lengths."""
    lengths = np.array(counts, np.int64)
    firsts = (lengths.cumsum() - lengths).repeat(lengths)
    return np.arange(len(firsts)) - firsts


def _count_good(rows: _Rows, first: int = 0, start: int = 0) -> int:
    """Return the number of good records before the first bad one.

    ``first`` and ``start`` hold for each of the tables that the rows are from.
    """
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    indexes = _indexes(rows.counts)
    good = records["number"] - indexes == first + 1
    if schema.text_fields:
        bounds = _text_bounds(schema, records, len(rows.texts))
        records = records[: int((bounds[1:] >= 0).sum())]
        bounds = bounds[: len(records) + 1]
        table_starts = bounds[(np.arange(len(good)) - indexes)[: len(records)]]
        crcs = _crc_texts(_crc_records(records), rows.texts, bounds)
        good = good[: len(records)] & (records["check"] == crcs)
        good &= records["start"] - start == bounds[:-1] - table_starts
    else:
        good &= _checks_hold(records)
    return len(good) if good.all() else int(good.argmin())


def _merge_rows(parts: Iterable[_Rows]) -> list[_Rows]:
    """Join rows with equal headers, in the order given."""
    by_header: dict[bytes, list[_Rows]] = {}
    for part in parts:
        by_header.setdefault(part.header, []).append(part)
    return [
        _Rows(
            header,
            [source for part in group for source in part.sources],
            [count for part in group for count in part.counts],
            b"".join(part.records for part in group),
            b"".join(part.texts for part in group),
        )
        for header, group in by_header.items()
    ]


def _encode_rows(
    header: bytes, columns: Sequence[Any], first: int = 0, start: int = 0
) -> _Rows:
    """Encode whole columns: arrays, or lists of bytes for text."""
    schema = _decode_header(header)
    records = np.zeros(len(columns[0]), schema.dtype)
    records["number"] = np.arange(first + 1, first + len(records) + 1)
    for i, values in enumerate(columns):
        is_text = i in schema.text_fields
        records[str(i)] = [len(value) for value in values] if is_text else values
    text = b""
    if schema.text_fields:
        by_row = zip(*[columns[i] for i in schema.text_fields])
        text = b"".join(itertools.chain.from_iterable(by_row))
        bounds = _text_bounds(schema, records, len(text))
        records["start"] = start + bounds[:-1]
        records["check"] = _crc_texts(_crc_records(records), text, bounds)
    else:
        records["check"] = _crc_records(records)
    return _Rows(header, [0], [len(records)], records.tobytes(), text)


def _slice_rows(rows: _Rows, first: int, end: int) -> _Rows:
    """Return rows ``[first:end]``, which must be of one table."""
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)[:end]
    bounds = _text_bounds(schema, records, len(rows.texts))
    texts = rows.texts[bounds[first] : bounds[-1]]
    records = records[first:]
    return _Rows(rows.header, [0], [len(records)], records.tobytes(), texts)


def _text_dtype() -> Any:
    """Return pandas' dtype for str, which depends on its version and options."""
    return pd.Series([""]).dtype


def _decode_text(rows: _Rows, column: int, dtype: Any) -> Any:
    """Return a text column, which must be UTF-8, as a Series."""
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    starts = _text_bounds(schema, records, len(rows.texts))[:-1]
    for i in schema.text_fields[: schema.text_fields.index(column)]:
        starts = starts + records[str(i)]
    lengths = records[str(column)]
    if getattr(dtype, "storage", "") == "pyarrow":
        with contextlib.suppress(ValueError):  # Arrow refuses lone surrogates
            return pd.Series(_arrow_text(rows.texts, starts, lengths, dtype))
    spans = zip(starts.tolist(), (starts + lengths).tolist())
    if rows.texts.isascii():  # one decode, then slices: twice as fast
        text = rows.texts.decode("ascii")
        return pd.Series([text[a:b] for a, b in spans], dtype=dtype)
    try:
        encoded = (rows.texts[a:b] for a, b in spans)
        values = [value.decode("utf-8", "surrogatepass") for value in encoded]
    except UnicodeDecodeError as err:
        name = [*schema.columns][column]
        what = f"a text in column {name!r:.200} is not UTF-8: {err}"
        raise CorruptError(what) from None
    try:
        return pd.Series(values, dtype=dtype)
    except UnicodeEncodeError:
        return pd.Series(values, dtype=object)


def _arrow_text(
    text: bytes, starts: npt.NDArray[Any], lengths: npt.NDArray[Any], dtype: Any
) -> Any:
    """Return a validated pandas array of Arrow strings, made without Python ones."""
    import pyarrow

    data = np.frombuffer(text, np.uint8)
    offsets = np.concatenate(([0], lengths.cumsum()))
    if offsets[-1] != len(data):  # values of other columns lie in between
        data = data[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
    buffers = pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)
    array = pyarrow.LargeStringArray.from_buffers(len(lengths), *buffers)
    array.validate(full=True)
    return dtype.__from_arrow__(array)


def _frame(
    header: bytes,
    parts: Iterable[_Rows],
    capacity: int,
    columns: Collection[str] | None = None,
    text_dtype: Any = None,
) -> pd.DataFrame:
    """Return rows as a frame with index 0..n-1, by default text in pandas' str dtype.

    Only the wanted columns are kept in memory. ``capacity`` estimates the row count.
    """
    schema = _decode_header(header)
    wanted = schema.columns if columns is None else columns
    names = {i: name for i, name in enumerate(schema.columns) if name in wanted}
    texts: dict[int, list[Any]] = {i: [] for i in names if i in schema.text_fields}
    numbers = {
        i: np.empty(capacity, schema.dtype[str(i)]) for i in names if i not in texts
    }
    if texts and text_dtype is None:
        text_dtype = _text_dtype()
    nrows = 0
    for rows in parts:
        records = np.frombuffer(rows.records, schema.dtype)
        if nrows + len(records) > capacity:
            capacity = 2 * capacity + len(records)
            for values in numbers.values():
                values.resize(capacity, refcheck=False)
        for i, values in numbers.items():
            values[nrows : nrows + len(records)] = records[str(i)]
        for i, decoded in texts.items():
            decoded.append(_decode_text(rows, i, text_dtype))
        nrows += len(records)
    made: list[Any] = []
    for i in names:
        if i in numbers:
            made.append(numbers.pop(i)[:nrows])
        else:
            decoded = texts.pop(i) or [pd.Series([], dtype=text_dtype)]
            made.append(pd.concat(decoded, ignore_index=True))
    index = pd.RangeIndex(nrows)
    frame: pd.DataFrame = pd.DataFrame(dict(enumerate(made)), index, copy=False)
    _name_columns(frame, [*names.values()])
    return frame


def _name_columns(frame: pd.DataFrame, names: list[str]) -> None:
    try:
        frame.columns = pd.Index(names)
    except UnicodeEncodeError:  # lone surrogates, where pandas uses Arrow for names
        frame.columns = pd.Index(names, dtype=object)


class _TableFile:
    """A table's two files, open for reading: never an old one and a new one."""

    schema: _Schema

    def __init__(self, path: str) -> None:
        """Open the files; raise FileNotFoundError if there is no such table."""
        self.path = path  # of the files, without their suffix
        self.count = 0  # complete records at opening, good or bad
        self._rows_fd = self._text_fd = -1
        self._rows_size = self._text_size = 0  # bytes, at opening
        self._prefix = b""  # the first bytes of `.rows`: all of a short table
        try:
            with _as_storage_error(path + _ROWS_SUFFIX):
                while not self._open():  # mode "w" replaced the table meanwhile
                    self.close()
        except BaseException:
            self.close()
            raise

    def _open(self) -> bool:
        """Open both files; return False if `.rows` was replaced meanwhile."""
        rows_path = self.path + _ROWS_SUFFIX
        _refuse_link(os.path.dirname(self.path))
        self._rows_fd = _open_file(rows_path)
        self._prefix = os.read(self._rows_fd, _PREFIX_SIZE)
        if b"\n" not in self._prefix:
            self._prefix = _read_at(self._rows_fd, _HEADER_MAX, 0)
        self._rows_size = os.fstat(self._rows_fd).st_size
        try:
            self.schema = _decode_header(self._prefix[: self._prefix.find(b"\n") + 1])
        except CorruptError as err:
            raise CorruptError(err.message, rows_path) from None
        records_size = self._rows_size - self.schema.offset(0)
        self.count = records_size // self.schema.record_size
        if not self.schema.text_fields:
            return True
        try:
            self._text_fd = _open_file(self.path + _TEXT_SUFFIX)
            self._text_size = os.fstat(self._text_fd).st_size
        except FileNotFoundError:
            if self.count and _is_same_file(self._rows_fd, rows_path):
                what = f"its text {self.path}{_TEXT_SUFFIX} is gone; restore it"
                raise CorruptError(what, rows_path) from None
        return _is_same_file(self._rows_fd, rows_path)

    def close(self) -> None:
        fds = self._rows_fd, self._text_fd
        self._rows_fd = self._text_fd = -1
        _close_all(*fds)

    def __enter__(self) -> _TableFile:
        return self

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        self.close()
        # what failed in the with block may name no path
        if isinstance(err, CorruptError) and not err.path:
            raise CorruptError(err.message, self.path + _TEXT_SUFFIX) from None
        if isinstance(err, OSError):
            with _as_storage_error(self.path + _ROWS_SUFFIX):
                raise err

    def _read(self, first: int, count: int, start: int) -> _Rows:
        """Read records, good or bad, and as much text as they claim to have."""
        record_size, offset = self.schema.record_size, self.schema.offset(first)
        data = self._prefix[offset : offset + count * record_size]
        if len(data) < count * record_size:
            data = _read_at(self._rows_fd, count * record_size, offset)
        count = len(data) // record_size
        data, text = data[: count * record_size], b""
        if self._text_fd >= 0 and count and 0 <= start <= self._text_size:
            records = np.frombuffer(data, self.schema.dtype)
            room = self._text_size - start
            size = int(_text_bounds(self.schema, records, room).max())
            # a sparse file may have any size; cox never writes holes
            if size > _HOLE_MIN and hasattr(os, "SEEK_HOLE"):
                hole = os.lseek(self._text_fd, start, os.SEEK_HOLE)
                size = min(size, hole - start)
            text = _read_at(self._text_fd, size, start)
        return _Rows(self.schema.header, [0], [count], data, text)

    def start_of(self, first: int) -> int:
        """Return where the text of the record after ``first`` rows claims to start."""
        if not self.schema.text_fields or first >= self.count:
            return 0
        offset = self.schema.offset(first)
        record = _read_at(self._rows_fd, self.schema.record_size, offset)
        start = int(np.frombuffer(record, self.schema.dtype)["start"][0])
        return max(0, min(start, self._text_size + 1))  # one byte outside is bad enough

    def read(self, first: int, count: int, start: int) -> _Rows:
        """Read records; return those before the first bad one."""
        rows = self._read(first, count, start)
        good = _count_good(rows, first, start)
        return rows if good == rows.nrows else _slice_rows(rows, 0, good)

    def blocks(self) -> Iterator[_Rows]:
        """Yield all rows; raise if more than a torn end follows."""
        step = max(1, _BLOCK_SIZE // self.schema.record_size)
        first = start = 0
        while first < self.count:
            count = min(step, self.count - first)
            rows = self.read(first, count, start)
            first += rows.nrows
            start += len(rows.texts)
            yield rows
            if rows.nrows < count:
                break
        self._check_end(first, start)

    def find_end(self, known: int = 0) -> tuple[int, int]:
        """Return the number of good rows, and the size of their text in bytes.

        If the file has just the ``known`` good rows, only the last one is checked.
        """
        if 0 < known == self.count and self._rows_size == self.schema.offset(known):
            start = self.start_of(known - 1)
            last = self.read(known - 1, 1, start)
            if last.nrows and start + len(last.texts) == self._text_size:
                return known, self._text_size
        nrows = text_size = 0
        for rows in self.blocks():
            nrows += rows.nrows
            text_size += len(rows.texts)
        return nrows, text_size

    def keep_torn(self, nrows: int, text_size: int) -> None:
        """Copy what follows the good rows and their text to dated files beside them."""
        offset = self.schema.offset(nrows)
        sizes = self._rows_size - offset, self._text_size - text_size
        if max(sizes) > _TORN_MAX:
            raise CorruptError(
                f"its {nrows} rows are followed by {sizes[0]} bytes that are no rows, "
                f"their text by {sizes[1]}. Unless you need these, cut the file to "
                f"{offset} bytes and the text to {text_size}",
                self.path + _ROWS_SUFFIX,
            )
        fds, starts = (self._rows_fd, self._text_fd), (offset, text_size)
        for suffix, fd, size, start in zip(_SUFFIXES, fds, sizes, starts):
            if size > 0:
                path = self.path + suffix
                aside = _dated_path(path)
                _write_file(aside, _read_at(fd, size, start))
                _log.warning("the torn end of %s is now in %s", path, aside)

    def _check_end(self, nrows: int, start: int) -> None:
        """Raise unless what follows the good rows is a torn end; warn of a long one."""
        rows_path, offset = self.path + _ROWS_SUFFIX, self.schema.offset(nrows)
        torn_size = self._rows_size - offset
        if not torn_size:
            return
        # Read the mark first and then the record again: a writer may have written
        # the record, and moved the mark, since we read it.
        mark = _read_state(os.path.dirname(self.path)).nrows(self.path)
        self._prefix = b""  # makes read() go to the disk
        if self._text_fd >= 0:
            self._text_size = os.fstat(self._text_fd).st_size
        if self.read(nrows, 1, start).nrows:
            return
        claimed_start = self.start_of(nrows)  # is it good, but in the wrong position?
        rows = self._read(nrows, 1, claimed_start)
        number = int.from_bytes(rows.records[:8], "little", signed=True)
        is_whole = _count_good(rows, number - 1, claimed_start) > 0
        if is_whole or nrows < mark:
            state = f"out of place, with number {number}" if is_whole else "damaged"
            what = (
                f"record {nrows + 1} at byte {offset} is {state}, or its text is. Copy "
                f"the file aside, then cut it to {offset} bytes to keep the first "
                f"{nrows} rows"
            )
            raise CorruptError(what, rows_path, offset, nrows)
        if torn_size >= self.schema.record_size:
            what = (
                "%s ends in %d bytes that are no rows, as a dying machine leaves them; "
                "the %d rows before them are good"
            )
            _log.warning(what, rows_path, torn_size, nrows)


class _RowWriter:
    """A table's files, open for appending. Callers must hold the run's lock."""

    _rows_fd = _text_fd = -1  # for __del__, if __init__ raises

    def __init__(self, path: str, schema: _Schema, mark: int, is_locked: bool) -> None:
        """Open the files and cut off a torn end, after copying a long one aside.

        ``mark`` rows are known to be good: synced, or counted by a writer we closed.
        ``is_locked`` means that no other process can write.
        """
        self.path = path
        self._is_locked = is_locked
        with _TableFile(path) as table:
            self.schema = on_disk = table.schema
            if [*on_disk.columns.items()] != [*schema.columns.items()]:
                raise SchemaError(
                    f"{path} was replaced by a table with columns {on_disk.columns}; "
                    "open the Store again"
                )
            nrows, text_size = table.find_end(mark)
            if nrows < mark:
                _log.warning("%s has %d rows, where %d were synced", path, nrows, mark)
            # Number of good rows, bytes of their text. One attribute, so that an
            # exception raised by a signal handler leaves both changed, or neither.
            self.end: tuple[int, int] = (nrows, text_size)
            self._is_clean = False  # nothing follows `end`; False amid a write
            if table.count > nrows:  # a record or more, which no killed writer leaves
                table.keep_torn(nrows, text_size)
        self._pack = on_disk.struct.pack
        self._rows_fd = _open_file(path + _ROWS_SUFFIX, _O_READ_APPEND)
        if on_disk.text_fields:
            self._text_fd = _open_file(path + _TEXT_SUFFIX, _O_READ_APPEND | os.O_CREAT)
        self.repair()

    def encode(self, values: Sequence[Any], text: bytes) -> bytes:
        """Return the record of the next row; for texts, ``values`` holds lengths."""
        nrows, text_size = self.end
        start = (text_size,) if self.schema.text_fields else ()
        record = self._pack(nrows + 1, *values, *start)
        check = zlib.crc32(text, zlib.crc32(record))
        return record + check.to_bytes(8, "little")

    def append_dict(self, row: dict[str, Any]) -> bool:
        """Append a complete row by the fast path; return False if that cannot take it.

        The slow path converts values, and explains what is wrong with a row.
        """
        schema = self.schema
        if schema.get_row is None or len(row) != schema.ncolumns:
            return False
        nrows, text_size = self.end
        text = b""
        try:
            values = schema.get_row(row)
            if not _NEVER_PACKED.isdisjoint(map(type, values)):
                return False
            if schema.text_fields:
                values = [*values, text_size]
                for i in schema.text_fields:
                    encoded = str(values[i]).encode()
                    values[i] = len(encoded)
                    text += encoded
            record = self._pack(nrows + 1, *values)
        except Exception:
            return False
        check = zlib.crc32(record)
        if text:
            check = zlib.crc32(text, check)
        self.append(record + check.to_bytes(8, "little"), text)
        return True

    def append(self, records: bytes, text: bytes, count: int = 1) -> None:
        """Append encoded rows; when this returns, they are in the file.

        Raises:
            StorageError: None of the rows is in the file, not even in part.
        """
        if not (self._is_clean and self._is_locked):
            self.repair()
        nrows, text_size = self.end
        try:
            self._is_clean = False
            # _write_all() inlined, as a call per row costs time
            if text and (written := os.write(self._text_fd, text)) < len(text):
                _write_all(self._text_fd, text[written:])
            if (written := os.write(self._rows_fd, records)) < len(records):
                _write_all(self._rows_fd, records[written:])
            self.end = (nrows + count, text_size + len(text))
            self._is_clean = True
        except BaseException as err:
            if not self._is_clean:
                with contextlib.suppress(OSError):  # tried again before the next row
                    self.repair()
            if isinstance(err, OSError) and err.errno:  # not from a signal handler
                what = f"could not write row {nrows + 1}, no part of it is there"
                raise _storage_error(err, what, self.path + _ROWS_SUFFIX) from err
            raise

    def repair(self) -> None:
        """Cut off an unfinished row; if there is none, refuse files of another size."""
        nrows, text_size = self.end
        rows_size = self.schema.offset(nrows)
        what = f"could not cut it to its {nrows} rows"
        with _as_storage_error(self.path + _ROWS_SUFFIX, what):
            for fd, size in (self._rows_fd, rows_size), (self._text_fd, text_size):
                # -1: no text columns, or closed
                size_now = os.fstat(fd).st_size if fd >= 0 else size
                if size_now < size or (size_now > size and self._is_clean):
                    raise WriteRefusedError(
                        f"{self.path} was changed by another process while this Store "
                        f"had it open with {nrows} rows. See what is in it, then open "
                        "the Store again"
                    )
                if size_now > size:
                    os.ftruncate(fd, size)
        self._is_clean = True

    def detach(self) -> tuple[int, int]:
        """Hand over the descriptors, which the caller must close."""
        fds = self._rows_fd, self._text_fd
        self._rows_fd = self._text_fd = -1
        return fds

    def close(self) -> None:
        with _as_storage_error(self.path, "could not close the table"):
            _close_all(*self.detach())

    def __del__(self, is_finalizing: Any = sys.is_finalizing) -> None:
        if not is_finalizing():  # else names that close() needs may be None
            with contextlib.suppress(OSError):
                self.close()


###############################################################################
# HDF5
###############################################################################
# Invariants:
# - store.h5 is a copy of the row files, written from scratch each time. cox checks
#   whether its bytes are still what it wrote, and reads it only if `.tables` is gone.
# - A run of the original cox has no row files. Its store.h5 may come from anyone, and
#   opening a stranger's HDF5 file may crash the process, fill the memory, run pickles
#   or read other files. So a child process opens it, and its answer is checked as if
#   the stranger had written it.

_PLAIN_SIZE_MAX: Final = 1 << 20  # bytes of a pickle, characters in its value
_PLAIN_DEPTH_MAX: Final = 32  # levels of containers
_PLAIN_TYPES: Final[Mapping[str, str]] = {  # as Python 2, Python 3 and dill name them
    **dict.fromkeys(("int", "long", "IntType", "LongType"), "int"),
    **dict.fromkeys(("str", "unicode", "StringType", "UnicodeType"), "str"),
    **{"float": "float", "FloatType": "float", "bool": "bool", "BooleanType": "bool"},
}
# Opcodes that make text or the name of a type, and those for other plain values.
_PLAIN_TEXTS: Final = re.compile(
    "(SHORT_)?(BIN)?(STRING|BYTES|UNICODE)8?|(STACK_)?GLOBAL|REDUCE"
)
_PLAIN_OTHERS: Final = re.compile(
    "PROTO|FRAME|MARK|STOP|NONE|NEWTRUE|NEWFALSE|(BIN)?FLOAT|(BIN)?INT[12]?|LONG[14]?"
    "|(EMPTY_)?(LIST|DICT|TUPLE)[123]?|APPENDS?|SETITEMS?"
)


class _PlainUnpickler(pickle.Unpickler):
    """Replaces types by their names, so that no value it makes can be called."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("dill._dill", "dill.dill") and name == "_load_type":
            return _PLAIN_TYPES.__getitem__  # the pickle calls it: a mere look-up
        if module in ("builtins", "__builtin__") and name in _PLAIN_TYPES:
            return _PLAIN_TYPES[name]
        if module == "numpy" and name in np.sctypeDict:
            return np.dtype(np.sctypeDict[name]).name
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


def _check_opcodes(data: bytes) -> None:
    """Raise unless a pickle makes plain values only, of about its own size.

    A list that holds a list twice, and so on for 40 levels, has 2^40 items: only text
    may be taken from the memo again. C code hashes keys: nested tuples overflow its
    stack, and tuples or long numbers of equal hashes take it ages.
    """
    room, size = _PLAIN_SIZE_MAX - len(data), 0
    memo: dict[Any, int] = {}  # sizes of the values in it
    for opcode, arg, _ in pickletools.genops(data):
        name = opcode.name
        is_put = name == "MEMOIZE" or name.endswith("PUT")
        if is_put:
            memo[len(memo) if arg is None else arg] = size
        elif name.endswith("GET"):
            size = memo[arg]
            room -= size
        elif _PLAIN_TEXTS.fullmatch(name):
            size = len(arg or "")
        elif _PLAIN_OTHERS.fullmatch(name):
            size = _PLAIN_SIZE_MAX + 1
            room -= 500 if "TUPLE" in name else 0
        else:
            raise pickle.UnpicklingError(f"opcode {name} is refused")
        # the memo takes memory for all indices up to the largest
        if isinstance(arg, int) and arg.bit_length() > (20 if is_put else 64):
            raise pickle.UnpicklingError("a number of that size is refused")
        if room < 0:
            raise pickle.UnpicklingError("it is too large")


def _check_value(value: Any, depth: int = 0) -> None:
    if depth == _PLAIN_DEPTH_MAX or callable(value):
        raise pickle.UnpicklingError("it is nested too deeply, or holds a function")
    if isinstance(value, (list, tuple, dict)):
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(part, depth + 1)


def _load_plain(data: bytes) -> Any:
    """Return the value of a pickle of numbers, text, names of types, and containers.

    Runs no code from the pickle; time and memory are in proportion to its length. Any
    other pickle, or one that is too large, raises, possibly any exception.
    """
    _check_opcodes(data)
    value = _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
    _check_value(value)
    return value


# HDF5 files are read and written as bytes in memory: this avoids HDF5's own lock, and
# a full disk raises when we write the bytes, where HDF5 may fail without an error.
_HDF5_FILTERS: Final = tables.Filters(complevel=1, complib="zlib")
_HDF5_OPTIONS: Final[Mapping[str, Any]] = {
    "driver": "H5FD_CORE",
    "driver_core_backing_store": 0,
    "driver_core_increment": 1 << 14,
}
_HDF5_ATTRIBUTE_MAX: Final = 60_000  # bytes; HDF5 allows 64 KB per attribute
_HDF5_TEXT_MAX: Final = 256 << 20  # bytes of a frame's text, padded to its widest
_hdf5_lock = threading.RLock()


@functools.lru_cache(maxsize=1)
def _empty_image() -> bytes:
    return _export_image({})


def _export_image(all_rows: Mapping[str, _Rows]) -> bytes:
    """Return the bytes of a store.h5 that holds these tables, given by name."""
    with _hdf5_lock, warnings.catch_warnings():
        # of names that are no identifiers, wide frames, pickled text: all intended
        warnings.simplefilter("ignore")
        # PyTables needs a file name, but creates no file
        with pd.HDFStore(f"cox-{uuid.uuid4()}", "w", **_HDF5_OPTIONS) as store:
            for name in sorted(all_rows):  # "a" before "a/b", which is a group in it
                try:
                    _put_rows(store, name, all_rows[name])
                except Exception as err:  # one odd table must not keep the others out
                    what = f"is left out of {_STORE_NAME}, and safe in {_TABLES_DIR}"
                    _log.warning("table %r %s: %s", name, what, err)
            return bytes(store.root._v_file.get_file_image())


def _put_rows(store: Any, name: str, rows: _Rows) -> None:
    """Write a table into ``store``, with the attributes that the original writes."""
    name.encode()  # a lone surrogate raises ValueError
    if "\0" in name or not {"", ".", "..", "table", "meta"}.isdisjoint(name.split("/")):
        raise ValueError(f"{name!r} is no key of an HDFStore")
    h5 = store.root._v_file
    if f"/{name}" in h5 and isinstance(h5.get_node(f"/{name}"), tables.Leaf):
        # pandas 2 would remove that part
        raise ValueError(f"{name!r} is a part of another table's frame")
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    width = sum(int(records[str(i)].max(initial=0)) for i in schema.text_fields)
    cox_data = {"schema": schema.types, "name": name}
    has_attribute = len(pickle.dumps(cox_data, 0)) <= _HDF5_ATTRIBUTE_MAX
    # fixed-width text loses trailing NULs, and "\0nan" must stand for NaN alone
    is_table = len(records) * width <= _HDF5_TEXT_MAX and b"\0" not in rows.texts
    try:
        if not (has_attribute and is_table):
            raise ValueError("no table in HDF5 can hold it")
        _put_table(h5, name, rows)
    except (ValueError, tables.HDF5ExtError):  # such as texts of too many widths
        _put_fixed(store, name, rows)
    if has_attribute:
        h5.get_node(f"/{name}")._v_attrs.COX_DATA = cox_data


def _hdf5_columns(rows: _Rows) -> dict[str, Any]:
    """Return the columns in the types that pandas writes to HDF5; text is padded."""
    schema = _decode_header(rows.header)
    records = np.frombuffer(rows.records, schema.dtype)
    columns: dict[str, Any] = {}
    end: Any = _text_bounds(schema, records, len(rows.texts))[:-1]  # of the text before
    for i, (name, kind_name) in enumerate(schema.columns.items()):
        values: Any = records[str(i)]
        if i in schema.text_fields:
            start, end = end, end + values
            texts = [rows.texts[a:b] for a, b in zip(start.tolist(), end.tolist())]
            values = np.array(texts, f"S{values.max(initial=1)}")
        columns[name] = values.astype("f4") if kind_name == "float16" else values
    return columns


def _put_table(h5: Any, name: str, rows: _Rows) -> None:
    """Write the table that ``HDFStore.append`` would write, in a fifth of the time."""
    columns = _hdf5_columns(rows)
    by_dtype: dict[str, list[str]] = {}
    for column, values in columns.items():
        by_dtype.setdefault(values.dtype.str, []).append(column)
    blocks = {f"values_block_{i}": block for i, block in enumerate(by_dtype.items())}
    fields = [(field, dtype, (len(names),)) for field, (dtype, names) in blocks.items()]
    records = np.empty(rows.nrows, [("index", "<i8"), *fields])
    records["index"] = np.arange(rows.nrows)
    for field, (_, names) in blocks.items():
        records[field] = np.transpose([columns[column] for column in names])
    parent, _, key = f"/{name}".rpartition("/")
    group = h5.create_group(parent or "/", key, createparents=True)
    table = h5.create_table(
        group, "table", records, filters=_HDF5_FILTERS, expectedrows=max(rows.nrows, 1)
    )
    table.attrs.index_kind = "integer"
    for field, (dtype, names) in blocks.items():
        table.attrs[f"{field}_kind"] = names
        table.attrs[f"{field}_dtype"] = np.dtype(dtype).name
    for attribute, value in {
        "pandas_type": "frame_table",
        "pandas_version": "0.15.2",  # of the layout, not of the library
        "table_type": "appendable_frame",
        "index_cols": [(0, "index")],
        "values_cols": list(blocks),
        "non_index_axes": [(1, list(columns))],
        "data_columns": [],
        "nan_rep": "\0nan",
        "encoding": "UTF-8",
        "errors": "surrogatepass",
        "levels": 1,
    }.items():
        group._v_attrs[attribute] = value


def _put_fixed(store: Any, name: str, rows: _Rows) -> None:
    """Write a frame in the fixed format, which takes any, and its rows beside it.

    pandas pickles the text of such a frame; cox reads the rows, to unpickle nothing.
    """
    frame = _frame(rows.header, [rows], rows.nrows, text_dtype=object)
    frame = frame.astype(dict.fromkeys(frame.select_dtypes("float16"), "f4"))
    try:
        store.put(name, frame, format="fixed", track_times=False)
    except OverflowError as err:
        store.remove(name)  # the part that was written
        raise ValueError("HDF5 holds no column of over 2 GiB of text") from err
    h5, data = store.root._v_file, rows.header + rows.records
    for node, part in ("cox_rows", data), ("cox_text", rows.texts):
        array = np.frombuffer(part or b"\0", "u1")  # an array must not be empty
        h5.create_carray(f"/{name}", node, obj=array, filters=_HDF5_FILTERS)


# The child imports from this process's sys.path only. As a script, it would search the
# directory of cox.py first, and beside a vendored copy lie modules of any name.
_CHILD_CODE: Final = """
import sys
from importlib import util
sys.path[:] = sys.argv[2:]
spec = util.spec_from_file_location("cox", sys.argv[1])
sys.modules["cox"] = module = util.module_from_spec(spec)
spec.loader.exec_module(module)
module._serve_originals()
"""
_CHILD_MEMORY: Final = 8 << 30  # bytes of data, including those of the libraries
_CHILD_CPU_S: Final = 60  # per run
_CHILD_IDLE_S: Final = 10  # the child ends after this time without a path to read
_CHILD_DONE: Final = 3  # exit status


class _Original(NamedTuple):
    """Content of the store.h5 of a run that has no row files."""

    tables: dict[str, _Rows]  # by name
    is_all: bool  # the file has no other frames, such as the user's own


def _serve_originals() -> None:
    """Run the child: fork a process that answers the paths from stdin.

    Fork another when it died, or met a bad store.h5, which may have done more harm
    than the error shows.
    """
    pickle.loads = lambda data, **_: _load_plain(data)  # PyTables calls this
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C code prints must not mix with the answers
    # load what is loaded at first use: later no further file can be opened
    rows = _encode_rows(_encode_header({"x": str}), [[b"x"]])
    _image_tables(_export_image({"t": rows}))
    status = 0
    while status != _CHILD_DONE:
        pid = os.fork() if hasattr(os, "fork") else 0
        if pid == 0:
            _answer(answers)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, _CHILD_DONE):
            answers.write(b'["it ended what read it: %d", [], false]\n' % status)
            answers.flush()


def _answer(answers: IO[bytes]) -> NoReturn:
    """Answer paths with a line of JSON, then records and texts, until one is bad."""
    # on Windows, select() takes sockets only
    while os.name == "nt" or select.select([0], [], [], _CHILD_IDLE_S)[0]:
        path = os.fsdecode(bytes.fromhex(sys.stdin.buffer.readline().decode()))
        if not path:
            break
        found, error = _Original({}, True), ""
        try:
            found = _read_store(path)
        except Exception as err:
            error = str(err) if isinstance(err, CoxError) else repr(err)
        listing = [
            (name, rows.header.decode(), (len(rows.records), len(rows.texts)))
            for name, rows in found.tables.items()
        ]
        answers.write(json.dumps([error, listing, found.is_all]).encode() + b"\n")
        for rows in found.tables.values():
            answers.writelines((rows.records, rows.texts))
        answers.flush()
        if error:
            os._exit(0)
    os._exit(_CHILD_DONE)


def _set_limit(name: str, limit: int) -> None:
    """Limit a resource of this process, where the system can."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        which = getattr(resource, name)
        resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))


def _read_store(path: str) -> _Original:
    """Read a store.h5, in the child, with limits on its resources."""
    before, image, after = os.stat(path), _read_file(path), os.stat(path)
    if before.st_mtime_ns != after.st_mtime_ns:
        raise CorruptError("it changed while it was read")
    _set_limit("RLIMIT_DATA", _CHILD_MEMORY)  # not _AS: libraries reserve much of that
    _set_limit("RLIMIT_CPU", math.ceil(time.process_time()) + _CHILD_CPU_S)
    _set_limit("RLIMIT_CORE", 0)
    _set_limit("RLIMIT_NOFILE", 0)  # the image may refer to other files
    try:
        return _image_tables(image)
    except tables.HDF5ExtError:  # its message is long and of no use
        raise CorruptError("it is damaged, or no HDF5 file") from None
    finally:
        _set_limit("RLIMIT_NOFILE", 256)


def _image_tables(image: bytes) -> _Original:
    options = {**_HDF5_OPTIONS, "driver_core_image": image or b"empty"}
    h5: Any
    with contextlib.closing(tables.open_file(_STORE_NAME, "r", **options)) as h5:
        groups = [
            group
            for group in h5.walk_groups()
            if "COX_DATA" in group._v_attrs or "cox_rows" in group._v_leaves
        ]
        known = tuple(f"{group._v_pathname}/" for group in groups)
        leaves = h5.walk_nodes("/", "Leaf")
        is_all = all(leaf._v_pathname.startswith(known) for leaf in leaves)
        return _Original(dict(map(_group_rows, groups)), is_all)


def _group_rows(group: Any) -> tuple[str, _Rows]:
    """Return the name and rows of a table that the original, or cox, wrote."""
    if "cox_rows" in group._v_leaves:
        nodes = (group._v_children[name] for name in ("cox_rows", "cox_text"))
        data, text = (node.read().tobytes() for node in nodes)
        header = data[: data.find(b"\n") + 1]
        text = text if _decode_header(header).text_fields else b""
        return group._v_pathname[1:], _Rows(header, [], [], data[len(header) :], text)
    data = group._v_attrs["COX_DATA"]
    if not isinstance(data, dict):
        raise ValueError(f"COX_DATA of {group._v_pathname} is not a dict")
    schema = {name: _KINDS[kind].type for name, kind in data["schema"].items()}
    header = _encode_header(schema)
    node = group._v_children["table"]
    if not isinstance(node, tables.Table):  # reading a VLArray would unpickle it
        raise ValueError(f"{group._v_pathname}/table is not a table")
    records: Any = node.read()
    values: dict[str, Any] = {}
    for field in set(records.dtype.names or ()) - {"index"}:
        names = node._v_attrs[field + "_kind"]
        values.update(zip(names, records[field].reshape(len(records), len(names)).T))
    columns = []
    for name, kind in _decode_header(header).columns.items():
        column = values[name]
        if code := _KINDS[kind].code:
            column = column.astype(np.dtype(code))
            if code not in "efd" and (column != values[name]).any():
                raise ValueError(f"column {name!r} of {group._v_pathname} is no {kind}")
        columns.append(column if code else column.tolist())  # list of bytes, in UTF-8
    return str(data["name"]), _encode_rows(header, columns)


class _Child:
    """A process that reads stores of the original cox; if it ends, a new one starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None  # subprocess.Popen[bytes]

    def read(self, run_dir: str) -> _Original:
        """Return the content of the store.h5 of a run that has no row files.

        A file that has changed is read again, as a writer may be at work. So is one
        whose child ended, unless the child was new: it may have been idle too long.
        """
        path = os.path.join(run_dir, _STORE_NAME)
        reason, seen = "", -1  # seen: the file's mtime when it was found bad
        for _ in range(10):
            try:
                stamp = os.stat(path).st_mtime_ns
            except OSError as err:
                raise NotFoundError(f"{path} is gone: {err.strerror}") from err
            if stamp == seen:
                break
            with self._lock:
                seen = stamp if self._process is None else -1
                try:
                    reason, found = self._ask(path)
                    if not reason:
                        return found
                    seen = stamp
                except BaseException as err:
                    reason = f"{sys.executable}, which read it, ended: {self.close()}"
                    if not isinstance(err, Exception):
                        raise
            if stamp == seen and time.time() - stamp / 1e9 > 60:
                break  # no writer is at work: do not wait for it
            time.sleep(0.05)
        remedy = "Restore it from a copy, or leave the run out"
        raise CorruptError(f"it cannot be read ({reason:.200}). {remedy}", path)

    def _ask(self, path: str) -> tuple[str, _Original]:
        """Return the child's answer, checked: a file may have taken over the child."""
        if self._process is None:
            self._process = subprocess.Popen(
                # -I: ignore the environment and the current directory
                [sys.executable, "-I", "-c", _CHILD_CODE, __file__, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # makes a group that can be killed as one
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        stdin.raw.write(os.fsencode(path).hex().encode() + b"\n")
        reason, listing, is_all = json.loads(stdout.readline(1 << 24))
        all_rows, room = {}, _CHILD_MEMORY
        for name, header, sizes in listing:
            room -= sum(sizes)
            if room < 0 or min(sizes) < 0 or type(name) is not str:
                raise ValueError("more than it may have read")
            records, text = (stdout.read(size) for size in sizes)
            schema = _decode_header(header.encode())
            array = np.frombuffer(records, schema.dtype)
            text_size = _text_bounds(schema, array, len(text))[-1]
            rows = _Rows(schema.header, [0], [len(array)], records, text)
            is_good = _count_good(rows) == len(array)
            if not is_good or [len(records), text_size] != sizes:
                raise ValueError("no rows")
            all_rows[name] = rows
        return str(reason), _Original(all_rows, is_all is True)

    def close(self) -> int | None:
        """Kill the process; return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        with process:  # waits, and closes its pipes
            with contextlib.suppress(OSError, AttributeError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        return int(process.returncode)

    def after_fork(self) -> None:
        """Forget the process, in a forked child: it belongs to the parent."""
        if self._process is not None:
            self._process.returncode = 0  # or Python warns that it still runs
        self.__init__()  # type: ignore[misc]


_child: Final = _Child()
atexit.register(_child.close)


###############################################################################
# History
###############################################################################
# A process that writes a run adds a line to `.tables/history.jsonl` when it begins, and
# another before it gives up the lock. One with the first line only is running as long
# as the lock is held, since the kernel releases the lock of a dead process.
# Nothing in this section may stop a run: what cannot be found out is left out.

_HISTORY_NAME: Final = "history.jsonl"
_HISTORY_MAX: Final = 1 << 20  # bytes to read, from its end
_PATCH_MAX: Final = 1 << 20  # bytes; a longer patch is not kept
_HISTORY_TYPES: Final = {
    **dict.fromkeys(("time", "host", "status", "error"), str),
    **{"argv": list, "git": dict, "job": dict},
}
_GIT_LIMIT_S: Final = 2.0  # for all calls of git together
_SECRET: Final = re.compile(
    "(.*?(?:key|token|secret|password|credentials?))(=.*)?", re.DOTALL | re.IGNORECASE
)
_JOB_IDS: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
_JOB_VARIABLES: Final = (  # no others of the environment, as they may be secret
    *_JOB_IDS, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
    "SLURM_PROCID", "PBS_ARRAY_INDEX", "LSB_JOBINDEX", "RANK", "LOCAL_RANK",
    "WORLD_SIZE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def _mask_secrets(argv: Sequence[str]) -> list[str]:
    """Return arguments, cut, and with values masked where the name is a secret's."""
    shown = []
    for before, arg in zip(["", *argv], argv[:256]):
        name, own = _SECRET.fullmatch(before), _SECRET.fullmatch(arg)
        if own and own[2]:
            arg = f"{own[1]}=***"
        elif name and "=" not in before and not arg.startswith("--"):
            arg = "***"
        shown.append(arg[:1000])
    return shown


@functools.lru_cache(maxsize=1)
def _boot_id() -> str:
    """Return the kernel's id of this boot of the machine, or else the host's name."""
    with contextlib.suppress(OSError):
        return _read_line("/proc/sys/kernel/random/boot_id")
    return socket.gethostname()


def _loaded_versions() -> dict[str, str]:
    versions = {  # by __dict__: getattr of a module may run code, or import others
        name: getattr(module, "__dict__", {}).get("__version__")
        for name, module in list(sys.modules.items())
        if "." not in name and name not in sys.stdlib_module_names
    }
    return {name: text for name, text in versions.items() if isinstance(text, str)}


def _read_line(*path: str) -> str:
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.readline(4096).strip()


def _read_git(folder: str) -> dict[str, Any]:
    """Return root, branch and commit of a folder's work tree, without running git."""
    root = folder
    while not os.path.exists(git_dir := os.path.join(root, ".git")):
        if root == os.path.dirname(root):
            return {}
        root = os.path.dirname(root)
    git = {"root": root}
    with contextlib.suppress(OSError, ValueError, StopIteration):
        if os.path.isfile(git_dir):  # in a linked worktree or a submodule
            git_dir = os.path.join(root, _read_line(git_dir).removeprefix("gitdir: "))
        git["commit"] = _read_line(git_dir, "HEAD")
        if git["commit"].startswith("ref: "):
            ref = git.pop("commit").removeprefix("ref: ")
            git["branch"] = ref.removeprefix("refs/heads/")
            with contextlib.suppress(FileNotFoundError):  # has a linked worktree's refs
                git_dir = os.path.join(git_dir, _read_line(git_dir, "commondir"))
            with contextlib.suppress(FileNotFoundError):
                return {**git, "commit": _read_line(git_dir, ref)}
            with open(os.path.join(git_dir, "packed-refs"), encoding="utf-8") as file:
                lines = map(str.split, file)
                git["commit"] = next(line[0] for line in lines if line[1:] == [ref])
    return git


@functools.lru_cache(maxsize=1)  # git runs once per process
def _describe_git() -> tuple[dict[str, Any], bytes]:
    """Return the state of the program's repository, and its changes as a patch."""
    script = getattr(sys.modules["__main__"], "__file__", None)  # none in a notebook
    folders = [os.path.dirname(os.path.realpath(script))] if script else []
    # a tool that is installed, as pytest, is no program; pyenv's root is a repository
    prefix = os.path.join(os.path.realpath(sys.prefix), "")
    folders = [f for f in folders if not f.startswith(prefix)] + [os.getcwd()]
    git = next(filter(None, map(_read_git, folders)), {})
    deadline = time.monotonic() + _GIT_LIMIT_S

    def ask(*args: str) -> bytes:
        # optional locks could make the user's commits fail; fsmonitor starts a daemon
        options = "--no-optional-locks", "-c", "core.fsmonitor=0"
        return subprocess.run(
            ["git", "-C", git["root"], *options, *args], stdin=subprocess.DEVNULL,
            capture_output=True, check=True, timeout=deadline - time.monotonic(),
        ).stdout  # fmt: skip

    patch = b""
    with contextlib.suppress(KeyError, OSError, subprocess.SubprocessError):
        entries = ask("status", "--porcelain").decode(errors="replace").splitlines()
        # an untracked directory is assumed to hold output
        known = [e[:1000] for e in entries if not re.fullmatch(r'\?\? .*/"?', e)]
        git["changed"] = known[:100]
        if any(not entry.startswith("??") for entry in entries):
            patch = ask(
                "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv",
                "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
            )  # fmt: skip
            git["diff_bytes"] = len(patch)
    return git, patch if len(patch) <= _PATCH_MAX else b""


def _now() -> str:
    now = datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc)
    return now.isoformat(timespec="milliseconds")


def _one_line(err: BaseException) -> str:
    return " ".join(f"{type(err).__name__}: {err}".split())[:1000].removesuffix(":")


class _History:
    """The lines that this process adds to the history of a run."""

    def __init__(self, run_dir: str) -> None:
        self.is_kept = True
        self.has_begun = False
        self._run_dir = run_dir
        # __dict__ of an exception being handled when the run began: unlike its id, no
        # other gets this while we hold it; the exception itself would hold the Store
        self._handled: object = None

    def begin(self) -> None:
        """Record who writes the run, at its first write."""
        if not self.is_kept or self.has_begun:
            return
        self._append(
            host=socket.gethostname,
            boot=_boot_id,
            pid=os.getpid,
            user=getpass.getuser,
            cwd=os.getcwd,
            argv=lambda: _mask_secrets(sys.orig_argv),
            python=lambda: sys.version.split()[0],
            versions=_loaded_versions,
            git=lambda: _describe_git()[0],
            job=lambda: {v: os.environ[v] for v in _JOB_VARIABLES if v in os.environ},
        )
        handled = sys.exc_info()[1]
        self.has_begun, self._handled = True, getattr(handled, "__dict__", None)
        with contextlib.suppress(Exception):
            if patch := _describe_git()[1]:
                number = len(_attempts(_read_history(self._run_dir)))
                name = os.path.join(_TABLES_DIR, f"{number}.patch")
                _write_file(os.path.join(self._run_dir, name), patch, sync=False)

    def end(self, status: str, err: BaseException | None) -> None:
        """Record how it ended, by ``status`` or ``err``, while the lock is held."""
        if not self.has_begun:
            return
        facts: dict[str, Callable[[], Any]] = {}
        code = err.code if isinstance(err, SystemExit) else 1
        is_success = code is None or (isinstance(code, int) and code == 0)
        # a run opened in an except block did not fail because of that exception
        if err is not None and not is_success and err.__dict__ is not self._handled:
            # neither of these: Ctrl-C, a cancelled task, a generator that was closed
            is_failure = isinstance(err, (Exception, SystemExit))
            status = "failed" if is_failure else "interrupted"
            facts["error"] = lambda: _one_line(err)
            facts["trace"] = lambda: "".join(traceback.format_exception(err))[-10_000:]
        shift = 20 if sys.platform == "darwin" else 10  # to MB, from bytes or else KB
        self._append(
            status=lambda: status,
            **facts,
            cpu_s=time.process_time,
            max_rss_mb=lambda: resource.getrusage(0).ru_maxrss >> shift,
        )
        self.has_begun = False  # last: a close() that was cut off is repeated

    def _append(self, **facts: Callable[[], Any]) -> None:
        line: dict[str, Any] = {"time": _now()}
        for name, find in facts.items():
            with contextlib.suppress(Exception):
                line[name] = find()
        data = json.dumps(line).encode() + b"\n"
        path = os.path.join(self._run_dir, _TABLES_DIR, _HISTORY_NAME)
        with contextlib.suppress(OSError, CorruptError):
            fd = _open_file(path, _O_READ_APPEND | os.O_CREAT)
            with open(fd, "rb+", buffering=0) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                is_torn = file.read(1) not in (b"", b"\n")
                file.write(b"\n" + data if is_torn else data)


def _read_history(run_dir: str) -> list[dict[str, Any]]:
    """Return the lines of a run's history, oldest first, without damaged ones.

    Anyone may have written them: values in ``git`` and ``job`` may be of any type.
    """
    path = os.path.join(run_dir, _TABLES_DIR, _HISTORY_NAME)
    history = []
    missing = FileNotFoundError, NotADirectoryError
    with contextlib.suppress(*missing), open(_open_file(path), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _HISTORY_MAX))
        for text in file.read(_HISTORY_MAX).split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and all(
                    isinstance(value, _HISTORY_TYPES.get(name, object))
                    for name, value in line.items()
                ):
                    history.append(line)
    return history


def _attempts(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the first and the last line of each process; the last one has a status."""
    attempts: list[dict[str, Any]] = []
    for line in history:
        if "status" not in line:
            attempts.append(line)
        elif attempts and "status" not in attempts[-1]:
            times = {"time": attempts[-1].get("time"), "ended": line.get("time")}
            attempts[-1] = attempts[-1] | line | times
    return attempts


###############################################################################
# Run directory
###############################################################################
# Invariants:
# - Readers create nothing and take no lock, but share it for a moment to learn a run's
#   status. The first write takes it; the kernel releases it when the process dies.
# - When a run is created, `.tables` is made first and store.h5 last, so store.h5
#   without `.tables` means a run of the original cox.
# - A forked child inherits the parent's open files. It may not write, and it closes
#   its copy of the lock, or the run would stay locked after the parent's death.


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _is_run(run_dir: str) -> bool:
    # twice as fast as os.path.exists(os.path.join(...)), which matters for many runs
    return os.access(f"{run_dir}{os.sep}{_TABLES_DIR}", os.F_OK) or os.access(
        f"{run_dir}{os.sep}{_STORE_NAME}", os.F_OK
    )


def _list_runs(directory: str, warn: bool = False) -> list[str]:
    """Return the experiment ids in a directory, sorted; no file is opened."""
    exp_ids, unreadable = [], []
    with os.scandir(directory) as entries:
        for entry in entries:
            if _is_run(entry.path):
                exp_ids.append(entry.name)
            elif os.path.isdir(entry) and not os.access(entry.path, os.R_OK | os.X_OK):
                unreadable.append(entry.name)
    if unreadable and warn:
        _log.warning("no permission to read in %s: %s", directory, _shorten(unreadable))
    return sorted(exp_ids)


def _list_tables(run_dir: str) -> list[str] | None:
    """Return the names of the tables, sorted; None for a run of the original cox."""
    tables_dir = os.path.join(run_dir, _TABLES_DIR)
    _refuse_link(tables_dir)
    try:
        with _as_storage_error(tables_dir):
            files = os.listdir(tables_dir)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        if not os.path.isdir(run_dir):
            return None
        raise CorruptError("it is no directory", tables_dir) from None
    names = []
    for file in files:
        stem = file.removesuffix(_ROWS_SUFFIX)
        if stem != file:
            name = urllib.parse.unquote(stem, errors="replace")
            with contextlib.suppress(UnicodeDecodeError):
                name = urllib.parse.unquote(stem, errors="surrogatepass")
            if _table_stem(name) != stem:
                where = os.path.join(tables_dir, file)
                raise CorruptError("its name is not one that cox makes; move it", where)
            names.append(name)
    return sorted(names)


def _no_table(run_dir: str, name: str, names: Collection[str]) -> NotFoundError:
    if not _is_run(run_dir):
        return NotFoundError(f"the run {run_dir} is gone: it was moved or deleted")
    return NotFoundError(f"no table {name!r} in {run_dir}. Tables: {_shorten(names)}")


def _read_original(run_dir: str) -> dict[str, _Rows]:
    """Read the tables of a run of the original cox, by name; {} for any other."""
    if _list_tables(run_dir) is not None or not _is_run(run_dir):
        return {}
    return _child.read(run_dir).tables


def _open_table(run_dir: str, name: str) -> _TableFile | None:
    """Open a table's row files; None if the run has none of that name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _TableFile(_table_path(run_dir, name))
    return None


def _read_rows(run_dir: str, name: str) -> _Rows:
    """Read a table of a run as it is now, whoever wrote it."""
    if table := _open_table(run_dir, name):
        with table:
            [rows] = _merge_rows([_Rows(table.schema.header), *table.blocks()])
        return rows._replace(sources=[0], counts=[rows.nrows])
    all_rows = _read_original(run_dir)
    if name not in all_rows:
        names = sorted(all_rows) or _list_tables(run_dir) or ()
        if name in names:  # converted, or made again, since the first look
            return _read_rows(run_dir, name)
        raise _no_table(run_dir, name, names)
    return all_rows[name]


def _read_frame(
    run_dir: str, name: str, columns: Collection[str] | None = None
) -> pd.DataFrame:
    """Read a table into a frame, with little more memory than the frame takes."""
    if table := _open_table(run_dir, name):
        with table:
            capacity = min(table.count, _CAPACITY_MAX)  # a sparse file claims billions
            return _frame(table.schema.header, table.blocks(), capacity, columns)
    rows = _read_rows(run_dir, name)
    return _frame(rows.header, [rows], rows.nrows, columns)


def _read_ends(
    run_dir: str, name: str, first: int = 0, last: int = 0
) -> tuple[int, _Rows]:
    """Return how many rows a table has, and the first ``first`` or the last ``last``.

    A good last record proves the number; only if it is not good are all rows read.
    """

    def span(nrows: int) -> tuple[int, int]:
        return (0, min(first, nrows)) if first else (max(0, nrows - last), nrows)

    if table := _open_table(run_dir, name):
        with table:
            nrows = table.count
            begin, end = span(nrows)
            rows = table.read(begin, end - begin, table.start_of(begin))
            # the last record too, unless it is among `rows`
            before = nrows if begin < end == nrows else max(0, nrows - 1)
            proof = table.read(before, nrows - before, table.start_of(before))
            if rows.nrows == end - begin and proof.nrows == nrows - before:
                return nrows, rows
    rows = _read_rows(run_dir, name)
    return rows.nrows, _slice_rows(rows, *span(rows.nrows))


def _read_header(run_dir: str, name: str) -> bytes:
    """Read the header line of a table that has row files."""
    with _TableFile(_table_path(run_dir, name)) as table:
        return table.schema.header


def _read_headers(run_dir: str) -> dict[str, bytes]:
    """Read the header lines of all tables of a run, by table name."""
    names = _list_tables(run_dir)
    if names is None:
        return {name: rows.header for name, rows in _read_original(run_dir).items()}
    headers = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # mode "w" has just erased it
            headers[name] = _read_header(run_dir, name)
    return headers


def _remove_each(directory: str, suffix: str = "") -> None:
    """Remove a directory's entries with this suffix, unless the directory is a link."""
    if _is_real_dir(directory):
        for name in os.listdir(directory):
            if name.endswith(suffix):
                _remove(os.path.join(directory, name))


def _create_table(tables_dir: str, name: str, rows: _Rows) -> None:
    """Create a table's files: first `.text`, then `.rows`; each appears complete."""
    path = os.path.join(tables_dir, _table_stem(name))
    if _decode_header(rows.header).text_fields:
        # empty, it needs no sync: a table without rows can do without this file
        _write_file(path + _TEXT_SUFFIX, rows.texts, sync=bool(rows.texts))
    _write_file(path + _ROWS_SUFFIX, rows.header + rows.records)


_A_READER: Final = "a process that only reads it"  # as a holder of the lock
_CLOSED: Final = "its Store was closed; open it again"
_runs: Final = weakref.WeakSet["_Run"]()  # all of this process, for fork and exit
_runs_by_path: Final = weakref.WeakValueDictionary[str, "_Run"]()
_runs_lock = threading.RLock()


def _flock(fd: int, shared: bool = False) -> bool | None:
    """Try to lock; return False if another has the lock, None if there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as err:
        if err.errno in _NO_LOCK_ERRNOS:
            return None
        raise
    return True


def _has_writer(run_dir: str) -> bool | None:
    """Return whether a run's lock is held; None if that cannot be told."""
    path = os.path.join(run_dir, _TABLES_DIR, _LOCK_NAME)
    with contextlib.suppress(FileNotFoundError), open(_open_file(path), "rb") as file:
        is_free = _flock(file.fileno(), shared=True)
        return None if is_free is None else not is_free
    return None


class _Guard:
    """A lock that other threads wait for, and that its holder may not enter again.

    The holder comes again from a signal handler (or a method of a value), which cannot
    wait for what it interrupts. To use a guard, enter ``with guard.lock``, call
    :meth:`refuse_again`, and set ``is_busy`` within ``try``. ``with`` takes a lock in
    C; a context manager in Python could be interrupted and leave the lock taken.
    """

    def __init__(self, work: str) -> None:
        self.lock = threading.RLock()
        self.is_busy = False
        self._work = work

    def refuse_again(self) -> None:
        if self.is_busy:
            raise WriteRefusedError(
                "a signal handler, or a method of a value, called this amid "
                f"{self._work}; only set a flag there, and do it in the main program"
            )


class _Run:
    """A run's directory, open in one process: the lock, the writers, the export.

    All Stores of the process on this run share it, through their handles. It refers to
    none of them, so it is freed when they and their Tables are gone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.history = _History(path)
        self.tables_dir = os.path.join(path, _TABLES_DIR)
        self.objects_dir = os.path.join(path, _OBJECTS_DIR)
        self.store_path = os.path.join(path, _STORE_NAME)
        # busy while a row is logged; its lock is held during any other change, too
        self.changing = _Guard(f"the logging of a row of {path}")
        self.exporting = _Guard(f"the export of {path}")
        # truthy if store.h5 may lack something that was written; see checkpoint()
        self.is_stale: object = False
        self.refusal = ""  # why this process may not write, if so
        # of the open Stores that may write; weak, as Ctrl-C may cut off a __del__
        self.users: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self.unsynced: list[str] | None = None  # object files; None: assume all
        self.writers: dict[str, _RowWriter] = {}
        self.event_writers: weakref.WeakSet[Any] = weakref.WeakSet()  # of its Stores
        self._lock_fd = -1
        self._is_locked = True  # False if the file system has no locks
        self._sync_errno = 0  # of a failed sync, which is never forgotten
        self._lacking = ""  # digest of a store.h5 that we wrote without a damaged table
        # rows of each table whose files we closed because too many were open
        self._closed_counts: dict[str, int] = {}
        _runs.add(self)

    def _make_dirs(self, new: bool) -> list[str]:
        """Create the run's directories; return those above it that got a new entry."""
        parents = [os.path.dirname(self.path)]
        while not os.path.exists(parents[-1]):
            parents.append(os.path.dirname(parents[-1]))
        with _as_storage_error(self.path, "could not create the run"):
            os.makedirs(self.path, exist_ok=True)
            try:
                os.mkdir(self.tables_dir)
            except FileExistsError:
                if new:
                    what = "was just created; use another exp_id, or drop new=True"
                    raise StoreExistsError(f"{self.path} {what}") from None
            for name in (_SAVE_DIR, _TENSORBOARD_DIR):
                os.makedirs(os.path.join(self.path, name), exist_ok=True)
        return parents

    def create(self, new: bool) -> None:
        """Create what is missing of a new run, or of one whose creator died midway."""
        parents = self._make_dirs(new)
        with self.changing.lock:
            if self._lock_fd >= 0:
                return  # we are its writer; the next export writes store.h5
            for _ in range(200):
                holder = self._try_lock(self.tables_dir)
                if not holder or os.path.exists(self.store_path):
                    break
                time.sleep(0.01)  # another process is creating the run
            else:
                self._take_lock(self.tables_dir)
            try:
                if not os.path.exists(self.store_path):
                    # the temporary file is in .tables, where `ls` does not show it
                    _write_file(self.store_path, _empty_image(), self.tables_dir)
                    for parent in parents:
                        _sync(parent)
            finally:
                self._release()

    def claim(self, refusal: str = "") -> None:
        """Take the lock before a write, or raise; convert a run of the original cox.

        The caller holds ``changing.lock``, so that only one thread takes it.
        ``refusal`` says why the caller's Store may not write, even if others may.
        """
        self.check_place()
        if refusal := refusal or self.refusal:
            raise WriteRefusedError(f"{self.path} may not be written: {refusal}")
        if self._lock_fd < 0:
            self.is_stale = True  # an earlier writer may have died before its export
            self.unsynced = None
            if os.path.lexists(self.tables_dir):
                self._take_lock(self.tables_dir)
            else:
                self._convert()

    def check_place(self) -> None:
        """Write no more if the run was moved or deleted."""
        lock_path = os.path.join(self.tables_dir, _LOCK_NAME)
        if self._lock_fd < 0 or _is_same_file(self._lock_fd, lock_path):
            return
        self.refusal = (
            "it was moved or deleted while this process was writing it; what is there "
            "now, if anything, is another run. Open a new Store where you want to go on"
        )
        self.history.has_begun = False  # so end() adds nothing to another run
        # do not wait: the holder may be waiting for the event writer that called this
        if self.changing.lock.acquire(blocking=False):
            try:
                if not self.changing.is_busy:
                    self._release()
            finally:
                self.changing.lock.release()

    def _open_to_lock(self, path: str, flags: int = 0) -> int:
        try:
            return _open_file(path, os.O_RDWR | flags)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise WriteRefusedError(
                f"{self.path} may not be written: {err}. To read it, use mode 'r'"
            ) from err

    def _take_lock(self, tables_dir: str) -> None:
        holder = ""
        for _ in range(1000):
            if not (holder := self._try_lock(tables_dir)):
                return
            if holder != _A_READER:
                break
            time.sleep(0.001)  # a reader of the run's status shares it for a moment
        raise WriteRefusedError(
            f"{self.path} is locked by {holder}; wait for it to end, stop it, or use "
            "another run"
        )

    def _try_lock(self, tables_dir: str) -> str:
        """Take the lock and return "", or return who holds it."""
        _require_real_dir(tables_dir)
        fd = self._open_to_lock(os.path.join(tables_dir, _LOCK_NAME), os.O_CREAT)
        try:
            is_locked = _flock(fd)
            if is_locked is False:
                if _flock(fd, shared=True):
                    return _A_READER
                holder = os.read(fd, 1 << 10).decode(errors="replace")
                return holder or "another process"
            _remove_each(tables_dir, _NEW_SUFFIX)  # left by a writer that died
            with contextlib.suppress(OSError):  # a full disk: the lock holds anyway
                os.ftruncate(fd, 0)
                os.write(fd, f"host {socket.gethostname()}, pid {os.getpid()}".encode())
            self._lock_fd, self._is_locked = fd, bool(is_locked)
            return ""
        finally:
            if self._lock_fd != fd:
                os.close(fd)

    def _convert(self) -> None:
        """Convert a run of the original cox to row files, all of it or nothing."""
        with open(self._open_to_lock(self.store_path), "rb") as file:
            if _flock(file.fileno()) is False:  # HDF5 locks what it writes
                raise WriteRefusedError(
                    f"{self.store_path} is open in another program; close it there"
                )
            if os.path.lexists(self.tables_dir):  # converted since we looked
                self._take_lock(self.tables_dir)
                return
            original = _child.read(self.path)
            new_dir = self.tables_dir + _NEW_SUFFIX
            _remove(new_dir)  # left by a conversion that died
            os.mkdir(new_dir)
            self._take_lock(new_dir)
            try:
                for name, rows in original.tables.items():
                    _create_table(new_dir, name, rows)
                # if not known as a copy of the tables, the export puts store.h5 aside
                is_copy = original.is_all and bool(original.tables)
                stores = [_digest(file.read())] if is_copy else []
                _write_state(new_dir, _State({}, stores))
                os.rename(new_dir, self.tables_dir)
                _sync(self.path)
            except BaseException:
                self._release()
                raise

    def erase(self) -> None:
        """Remove tables, objects and events, while no thread logs or exports."""
        with self.changing.lock, self.exporting.lock:
            self.changing.refuse_again()
            self.exporting.refuse_again()
            try:
                self.claim()
            except CorruptError:  # damaged, of the original: go on without its rows
                os.makedirs(self.tables_dir, exist_ok=True)
                self.claim()
            try:
                # refuse what a signal handler logs or exports meanwhile
                self.changing.is_busy = self.exporting.is_busy = True
                self.is_stale = True
                self._close_writers()
                with _as_storage_error(self.path, "could not erase all of the old run"):
                    # marks, then records, then text: if we die midway, it is valid
                    state = _read_state(self.tables_dir)
                    _write_state(self.tables_dir, state._replace(rows={}))
                    for suffix in _SUFFIXES:
                        _remove_each(self.tables_dir, suffix)
                        _sync(self.tables_dir)
                    _remove(self.objects_dir)
                    # otherwise the old curves would continue into the new ones
                    _remove_each(os.path.join(self.path, _TENSORBOARD_DIR))
            finally:
                self.changing.is_busy = self.exporting.is_busy = False
            for event_writer in list(self.event_writers):
                event_writer.close()  # its next event starts a new file

    def create_table(self, name: str, schema: _Schema) -> _Schema:
        """Create a table, or find one with the same columns; return its schema."""
        if len(_table_stem(name)) > _TABLE_NAME_MAX:
            raise SchemaError(
                f"table name {name[:40]!r}... takes over {_TABLE_NAME_MAX} bytes when "
                "percent-encoded; use a shorter one"
            )
        if name not in (_list_tables(self.path) or ()):
            self.claim()  # this may convert a run of the original, so look again
        if name in (_list_tables(self.path) or ()):
            on_disk = _decode_header(_read_header(self.path, name))
            if on_disk.columns == schema.columns:
                return on_disk  # its columns may be in another order
            writer = self.writers.get(name) or self.open_writer(name, on_disk)
            if writer.end[0]:
                raise SchemaError(
                    f"table {name!r} in {self.path} has rows with the columns "
                    f"{on_disk.columns}, not {schema.columns}; use another name, a "
                    'new run, or mode="w" to start this one afresh'
                )
            self._close_writer(name)
        elif os.path.lexists(path := _table_path(self.path, name) + _ROWS_SUFFIX):
            raise SchemaError(
                f"table {name!r} cannot be created: to this file system, {path} is "
                "another table's file; use another name"
            )
        self.is_stale = True
        _create_table(self.tables_dir, name, _Rows(schema.header))
        self.history.begin()
        return schema

    def open_writer(self, name: str, schema: _Schema) -> _RowWriter:
        """Open a table's files for appending; cut off a torn end."""
        self.claim()
        while len(self.writers) >= _WRITERS_MAX:
            self._close_writer(next(iter(self.writers)))
        if name not in (names := _list_tables(self.path) or []):
            raise _no_table(self.path, name, names)
        path = _table_path(self.path, name)
        mark = _read_state(self.tables_dir).nrows(path)
        known = self._closed_counts.get(name, mark)
        writer = _RowWriter(path, schema, known, self._is_locked)
        self.history.begin()
        self.writers[name] = writer
        return writer

    def _close_writer(self, name: str) -> None:
        self._closed_counts[name] = self.writers[name].end[0]
        self.writers.pop(name).close()

    @property
    def is_changed(self) -> bool:
        """Whether store.h5 may lack something, and this process can still export it."""
        return self._lock_fd >= 0 and bool(self.is_stale) and not self.refusal

    def checkpoint(self, export: bool = True, refusal: str = "") -> None:
        """Sync all rows to disk; then write store.h5 anew."""
        try:
            # Never wait for changing.lock while holding exporting.lock: a signal
            # handler that interrupts a row holds the first and may want the second.
            with self.changing.lock:
                self.claim(refusal)
                unsynced, self.unsynced = self.unsynced, []
                # A mark for this export: truthy, so that a close() meanwhile waits for
                # it, and replaced with True by a write meanwhile.
                this_export = object()
                # else a signal handler called us amid a row, which the export will lack
                if not self.changing.is_busy:
                    for writer in self.writers.copy().values():
                        writer.repair()
                    if export:
                        self.is_stale = this_export
            with self.exporting.lock:
                self.exporting.refuse_again()
                try:
                    self.exporting.is_busy = True
                    self._save(unsynced, export)
                finally:
                    self.exporting.is_busy = False
        except BaseException:
            self.unsynced = None
            raise
        with self.changing.lock:
            if self.is_stale is this_export:
                self.is_stale = False

    def _sync(self, names: list[str], object_paths: list[str] | None) -> None:
        """Sync tables, new objects and their directories, whoever wrote them."""
        if object_paths is None:  # unknown: sync everything, whoever made it
            object_paths = [self.tables_dir, os.path.dirname(self.path)]
            if _is_real_dir(self.objects_dir):
                object_paths += [file.path for file in os.scandir(self.objects_dir)]
        stems = [_table_path(self.path, name) for name in names]
        paths = [stem + suffix for stem in stems for suffix in _SUFFIXES]
        if object_paths:
            paths += [*object_paths, self.objects_dir, self.path]
        try:
            if self._sync_errno:  # the system reports a failed sync only once
                raise OSError(self._sync_errno, os.strerror(self._sync_errno))
            _sync_all(paths)
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE):  # opening failed, no sync
                raise _storage_error(err, "could not sync", self.path) from err
            # not the error itself, whose traceback would keep this run alive
            self._sync_errno = err.errno or errno.EIO
            what = (
                "the disk refused to sync, so a machine that dies may lose rows. Copy "
                "the run elsewhere, and open a new Store there"
            )
            raise _storage_error(err, what, self.path) from err

    def _save(self, object_paths: list[str] | None, export: bool) -> None:
        """Sync all tables, record how many rows were synced, and write store.h5."""
        # What this process wrote so far. Other threads may log meanwhile, but none can
        # erase the run; a copy, as they may open and close writers.
        counts = {name: writer.end[0] for name, writer in self.writers.copy().items()}
        counts = self._closed_counts | counts
        names, all_rows = _list_tables(self.path) or [], {}
        for name in names if export else ():
            try:
                all_rows[name] = _read_rows(self.path, name)
                counts[name] = all_rows[name].nrows  # rows that are synced below
            except (CorruptError, NotFoundError) as err:
                _log.warning("left out of %s: %s", _STORE_NAME, err)
        self._sync(names, object_paths)
        image = _export_image(all_rows) if export else b""
        if self._lock_fd < 0 and not self.refusal:  # closed, so exported, meanwhile
            return
        self.claim()  # refuse if it was moved meanwhile
        state = _read_state(self.tables_dir)
        marks = {_table_stem(name): count for name, count in counts.items()}
        stores = state.stores
        if export:
            is_whole, digest = len(all_rows) == len(names), _digest(image)
            # recorded before store.h5 is written, so it is known even if we die between
            stores = [*self._keep_store(stores, is_whole), digest]
            self._lacking = "" if is_whole else digest
        _write_state(self.tables_dir, _State(state.rows | marks, stores))
        if export:
            _write_file(self.store_path, image, self.tables_dir)

    def _keep_store(self, stores: Sequence[str], is_whole: bool) -> list[str]:
        """Return the digest of store.h5, or put it aside if it may hold other data."""
        reason = "it is not as cox wrote it" if is_whole else "a table is damaged"
        try:
            with contextlib.suppress(CorruptError):  # a link, say: not ours
                digest = _digest(_read_file(self.store_path))
                is_ours = digest in (*stores, _digest(_empty_image()))
                if is_ours and (is_whole or digest == self._lacking):
                    return [digest]
        except FileNotFoundError:
            return []
        aside = _dated_path(self.store_path)
        os.rename(self.store_path, aside)
        _log.warning("kept %s as %s: %s", self.store_path, aside, reason)
        return []

    def close(self, status: str = "ended", err: BaseException | None = None) -> None:
        """Export if anything changed, record how it ended, and release the lock.

        If it raises, the run stays open, and close() may be tried again.
        """
        with self.changing.lock, self.exporting.lock:
            self.exporting.refuse_again()
            if self.is_changed:
                self.checkpoint()
            if not self.changing.is_busy:  # else a signal handler called us amid a row
                self.check_place()
                self.history.end(status, err)
                self._release()

    def _close_writers(self) -> None:
        writers, self.writers = self.writers, {}
        self._closed_counts.clear()
        fds = itertools.chain(*[writer.detach() for writer in writers.values()])
        with _as_storage_error(self.path, "could not close the tables"):
            _close_all(*fds)

    def _release(self) -> None:
        with _as_storage_error(self.path, "could not close the lock"):
            fd, self._lock_fd = self._lock_fd, -1
            try:
                self._close_writers()
            finally:  # os.close itself: a signal could interrupt a function of ours
                if fd >= 0:
                    os.close(fd)

    def after_fork(self) -> None:
        """Make this read-only in the child, and close its copy of the parent's lock."""
        self.refusal = (
            "it was opened by the parent process, before fork(); open another run in "
            "the child, or send the rows to the parent"
        )
        self.changing = _Guard(f"the logging of a row of {self.path}")
        self.exporting = _Guard(f"the export of {self.path}")
        self.history.has_begun = False  # the attempt is the parent's to end
        with contextlib.suppress(OSError):
            self._release()

    def close_at_last(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Close where nobody can catch an exception: log it instead."""
        # When the interpreter finalizes, names of this module may be None, and atexit
        # has already closed the run. If the garbage collector calls this amid an
        # export, the close() that exports goes on to close the run.
        if is_finalizing() or self.exporting.is_busy:
            return
        # at a prompt, the last exception belongs to some earlier command
        error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
        try:
            self.close(err=error)
        except Exception as err:
            is_ours = isinstance(err, CoxError)  # its message needs no traceback
            _log.error("%s: %s", self.store_path, err, exc_info=not is_ours)
            with self.changing.lock, contextlib.suppress(OSError):
                if not self.changing.is_busy:
                    self.history.end("ended", error)
                    self._release()

    __del__ = close_at_last


class _Handle:
    """A Store's share of a _Run, also used by its Tables; each Store closes its own."""

    def __init__(self, path: str, mode: str, history: bool) -> None:
        self.mode = mode
        self.refusal = ""  # why this Store may not write, even if others may
        key = os.path.realpath(path)
        with _runs_lock:
            run = _runs_by_path.get(key)
            if run is not None:
                run.check_place()
            if run is None or run.refusal:
                run = _runs_by_path[key] = _Run(path)
            self.run = run
            run.history.is_kept &= history
        if mode == "r":
            self.refusal = "it was opened with mode 'r'; open it with mode 'a'"

    def store_args(self) -> tuple[Any, ...]:
        """Return the arguments that open this run in another process."""
        mode = "r" if self.mode == "r" else "a"  # "w" would erase it again
        return *os.path.split(self.run.path), False, mode, self.run.history.is_kept

    def close(self, status: str, err: BaseException | None) -> None:
        """Write store.h5 if it lacks anything; the last to close releases the lock."""
        if self.mode == "r":  # it writes nothing, not even what others logged
            return
        run = self.run
        if run.is_changed:
            run.checkpoint()
        with _runs_lock:
            run.users.discard(self)  # again, if an exception ended an earlier close()
            is_last = not run.users
        # refuse first, or a thread that logs meanwhile would take the lock again
        before, self.refusal = self.refusal, self.refusal or _CLOSED
        if not is_last:
            return
        try:
            run.close(status, err)
        except BaseException:
            self.refusal = before
            run.users.add(self)
            raise
        if run.changing.is_busy:  # in a signal handler: left to the next close()
            run.users.add(self)

    def drop(self, is_finalizing: Any = sys.is_finalizing) -> None:
        """Close for a Store that is gone; Tables of it that remain may still write."""
        if not is_finalizing() and hasattr(self, "run"):
            self.run.users.discard(self)
            if not (self.refusal or self.run.users):
                self.run.close_at_last()

    # When such Tables are gone, too. Not left to _Run.__del__: another thread may open
    # the run amid that, and go on with a run that calls it no more.
    __del__ = drop


def _close_runs() -> None:
    for run in list(_runs):
        with run.exporting.lock:  # wait for a thread that exports
            pass
        run.close_at_last()
        # Daemon threads, or exit handlers older than cox's, may log on. Do not record
        # that as an attempt: nothing would end it, and the run would be taken for dead.
        run.history.is_kept = False


_forks = 0  # that led from the process that imported cox to this one


def _after_fork_in_child() -> None:
    global _forks, _hdf5_lock, _runs_lock
    _forks += 1
    _hdf5_lock, _runs_lock = threading.RLock(), threading.RLock()
    _child.after_fork()
    for run in list(_runs):
        run.after_fork()


atexit.register(_close_runs)
if hasattr(os, "register_at_fork"):
    # forking while a thread is inside HDF5 would leave HDF5 locked in the child
    os.register_at_fork(
        before=lambda: _hdf5_lock.acquire() and None,
        after_in_parent=lambda: _hdf5_lock.release(),
        after_in_child=_after_fork_in_child,
    )


###############################################################################
# Table
###############################################################################


def _as_set(names: Iterable[str]) -> set[str]:
    """Return several names, or one, as a set: an Index is neither true nor false."""
    return {names} if isinstance(names, str) else {*names}


class Table:
    """A table of a run: typed columns, and rows that can only be appended.

    Get one from ``Store.add_table`` or ``store[name]``. It keeps a working row in
    memory: ``update_row`` stages values in it, ``flush_row`` writes it to the file.
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
        """Create a table in ``store``, or open an existing one if ``has_initialized``.

        ``schema`` is as for :meth:`Store.add_table`; files of PICKLE and PYTORCH_STATE
        values go to ``table_obj_dir``.
        """
        if not isinstance(name, str) or not name:
            raise SchemaError(f"a table's name must be a non-empty str; got {name!r}")
        self.name = name
        self._handle, self._run = store._handle, store._handle.run
        try:
            self._schema = _decode_header(_encode_header(schema))
        except SchemaError as err:
            raise SchemaError(f"table {name!r}: {err}") from None
        if not has_initialized:
            with self._run.changing.lock:
                if self._handle.refusal:
                    self._refuse()
                self._schema = self._run.create_table(name, self._schema)
        self._objects_dir = table_obj_dir
        # converted values, None where not staged; the `blank` object if none is staged
        self._staged = self._schema.blank
        self._replaced: set[str] = set()  # columns staged more than once
        self._has_warned = False

    def __str__(self) -> str:
        lines = str((frame := self.df).head(5)).split("\n")
        lines += [f" ... ({len(frame) - 5} rows hidden)"] if len(frame) > 5 else []
        return "\n".join(map(_printable, lines))

    def __repr__(self) -> str:
        columns = ", ".join(f"{c}: {k}" for c, k in self._schema.columns.items())
        shown = f"<Table {self.name!r} of {self._run.path}, {columns}>"
        return _printable(shown, _MESSAGE_MAX)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_table, (self.name, *self._handle.store_args())

    @property
    def schema(self) -> dict[str, Any]:
        """Column name to type, as in :meth:`Store.add_table`."""
        return dict(self._schema.types)

    @property
    def nrows(self) -> int:
        """Number of rows in the file; the working row is not counted."""
        writer = self._run.writers.get(self.name)
        return writer.end[0] if writer else _read_ends(self._run.path, self.name)[0]

    @property
    def df(self) -> pd.DataFrame:
        """All rows as a frame, index ``0..nrows-1``, read from the file as it is now.

        Serialized columns hold the stored strings, to be decoded by
        :meth:`get_object`, :meth:`get_pickle` and :meth:`get_state_dict`.
        """
        return _read_frame(self._run.path, self.name)

    def frame(self, columns: Collection[str] | None = None) -> pd.DataFrame:
        """Return :attr:`df` with only these columns, or this one; decode no others.

        Raises:
            SchemaError: The table has no such column.
        """
        columns = None if columns is None else _as_set(columns)
        if unknown := (columns or set()) - self._schema.columns.keys():
            raise self._schema_error(min(unknown))
        return _read_frame(self._run.path, self.name, columns)

    def tail(self, n: int = 5) -> pd.DataFrame:
        """Return the last ``n`` rows as a frame that keeps their index in the table.

        The time this takes does not depend on how many rows come before them.
        """
        if operator.index(n) < 0:
            raise ValueError(f"n must be 0 or more rows, got {n}")
        nrows, rows = _read_ends(self._run.path, self.name, last=n)
        frame = _frame(rows.header, [rows], rows.nrows)
        frame.index = pd.RangeIndex(nrows - rows.nrows, nrows)
        return frame

    def update_row(self, data: Any) -> None:
        """Stage values in the working row, in memory until :meth:`flush_row`.

        Objects are serialized now, so later changes to them have no effect.

        Args:
            data: Column name to value, for some or all columns: a dict, Parameters,
                ``argparse.Namespace``, dataclass, or what has ``keys()``, as a Series.

        Raises:
            SchemaError: A name is not a column, or a value does not fit its column.
            WriteRefusedError: This Store may not write. Either way, nothing is staged.
        """
        self._do(self._stage, data)

    def _do(self, action: Callable[..., None], *args: Any) -> None:
        """Call ``action``, and keep other threads and signal handlers out meanwhile."""
        run = self._run
        guard = run.changing
        with guard.lock:
            if guard.is_busy or run.refusal or self._handle.refusal:
                self._refuse()
            try:
                guard.is_busy = run.is_stale = True
                action(*args)
            finally:
                guard.is_busy = False

    def _refuse(self) -> None:
        self._run.changing.refuse_again()
        self._run.claim(self._handle.refusal)

    def _stage(
        self, data: Any, log_events: Callable[[list[Any]], None] | None = None
    ) -> None:
        """Stage values, but only after ``log_events(converted row)`` has succeeded."""
        data = _as_row(data)
        staged = self._merge(data)
        if log_events is not None:
            log_events(staged)
        if self._staged is not self._schema.blank:
            self._note_replaced(data)
        self._staged = staged

    def _note_replaced(self, names: Iterable[str]) -> None:
        """Warn, once, when a column of the working row is replaced a second time.

        The first time may overwrite a default; the second means a missing flush_row().
        """
        slots = self._schema.slots
        replaced = {name for name in names if self._staged[slots[name][0]] is not None}
        if not self._has_warned and not replaced.isdisjoint(self._replaced):
            self._has_warned = True
            what = "%s: a value for table %r was replaced twice; flush_row() ends a row"
            _log.warning(what, self._run.path, self.name)
        self._replaced |= replaced

    def flush_row(self) -> None:
        """Write the working row to the table's file and start an empty one.

        When this returns, the row survives the death of the process. It takes at
        most two write system calls, plus a new file for each PICKLE or PYTORCH_STATE
        value.

        Raises:
            SchemaError: A column has no value.
            WriteRefusedError: This Store may not write.
            StorageError: The disk refused.

            After each of these, the row is still staged, and no part of it is written.
        """
        self._do(lambda: self._write(self._staged))

    def append_row(self, data: Any) -> None:
        """Do ``update_row(data)`` and ``flush_row()`` in one call; on error, neither.

        Raises:
            SchemaError, WriteRefusedError, StorageError: As :meth:`update_row` and
                :meth:`flush_row`. The working row is as it was before.
        """
        run = self._run  # _do() inlined, as two calls per row cost time
        guard = run.changing
        with guard.lock:
            if guard.is_busy or run.refusal or self._handle.refusal:
                self._refuse()
            try:
                guard.is_busy = run.is_stale = True
                writer = run.writers.get(self.name)
                if (
                    writer is None
                    or writer.schema is not self._schema
                    or self._staged is not self._schema.blank
                    or type(data) is not dict
                    or not writer.append_dict(data)
                ):
                    self._write(self._merge(_as_row(data)))
            finally:
                guard.is_busy = False

    def append_rows(self, data: Any) -> None:
        """Append many rows in one call: all of them or, on an error, none.

        A process that is killed meanwhile leaves the first few, complete. The working
        row stays as it is.

        Args:
            data: A frame, or a mapping from the name of each column to a sequence of
                values; all of the same length.

        Raises:
            SchemaError, WriteRefusedError, StorageError: As :meth:`append_row`.
                No row was written.
        """
        self._do(self._append_all, data)

    def _append_all(self, data: Any) -> None:
        if not isinstance(data, (Mapping, pd.DataFrame)):
            raise SchemaError(
                f"the rows for table {self.name!r} must be a frame, or a dict of "
                f"column to values; got {data!r:.80}"
            )
        columns = {name: data[name] for name in data}
        for name in columns:
            if name not in self._schema.columns:
                raise self._schema_error(name)
        if missing := self._schema.columns.keys() - columns.keys():
            what = f"the rows for table {self.name!r} have no column "
            raise SchemaError(what + ", ".join(map(repr, sorted(missing))))
        lengths: dict[Any, int] = {}
        with contextlib.suppress(TypeError):  # values that have no len()
            lengths = {name: len(values) for name, values in columns.items()}
        # duplicate names give a DataFrame, which like a Mapping iterates over its names
        refused = str, set, Mapping, pd.DataFrame
        is_refused = any(isinstance(values, refused) for values in columns.values())
        if is_refused or len({*lengths.values()}) != 1:
            got = _shorten([f"{name}: {n}" for name, n in lengths.items()])
            raise SchemaError(
                f"the columns for table {self.name!r} must be sequences of one length, "
                f"under different names; got lengths {got}"
            )
        converted = [
            self._convert_column(name, kind, columns[name])
            for name, kind in zip(self._schema.columns, self._schema.kinds)
        ]
        writer = self._get_writer()
        end, paths = writer.end, list[str]()
        try:
            for i in self._schema.file_fields:
                converted[i] = [self._create_object(v, paths) for v in converted[i]]
            rows = _encode_rows(self._schema.header, converted, *end)
            writer.append(rows.records, rows.texts, rows.nrows)
        finally:
            self._settle_objects(paths, is_written=writer.end != end)

    def _convert_column(self, name: str, kind: _Kind, values: Any) -> Any:
        """Convert values as append_row() does, but whole arrays at once if possible."""
        array = np.empty(())
        # what numpy refuses (ragged lists, some tensors) is converted one by one below
        with contextlib.suppress(ValueError, TypeError, RuntimeError, Warning):
            if kind.code and not isinstance(values, np.ma.MaskedArray):
                array = np.asarray(values)
        if array.ndim == 1:
            # kinds of numpy arrays that fit if their least and greatest values do
            allowed = {"?": "b", "e": "", "f": ""}.get(kind.code, "biu")
            if kind.code == "d" and array.dtype.kind in "fbiu" and array.itemsize <= 8:
                # in a list, NaN may have been a masked element
                if not (isinstance(values, (list, tuple)) and np.isnan(array).any()):
                    return array  # any value fits
            if array.dtype.kind in allowed and len(array):
                with contextlib.suppress(OverflowError, TypeError):  # raised below
                    kind.convert(array.min())
                    kind.convert(array.max())
                    return array
        converted, value = [], None
        try:
            # iterating over Arrow's text is slow
            for value in values.tolist() if isinstance(values, pd.Series) else values:
                converted.append(kind.convert(value))
        except Exception as err:
            raise self._schema_error(name, value, err) from err
        return converted

    def _merge(self, data: Mapping[str, Any]) -> list[Any]:
        """Return a copy of the working row that includes the converted ``data``."""
        values = self._staged.copy()
        name = value = None
        try:
            slots = self._schema.slots
            for name, value in data.items():
                i, convert = slots[name]
                values[i] = convert(value)
        except Exception as err:
            raise self._schema_error(name, value, err) from err
        return values

    def _schema_error(self, name: Any, value: Any = None, err: Any = "") -> SchemaError:
        columns = self._schema.columns
        if name in columns:
            shown = f"a value of type {type(value).__name__}"
            if isinstance(value, (int, float, str, type(None))):
                with contextlib.suppress(ValueError):  # an int too long for repr
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
        """Write a row to the file; if that succeeds, start an empty working row."""
        if None in values:
            missing = [n for n, v in zip(self._schema.columns, values) if v is None]
            raise SchemaError(
                f"the row for table {self.name!r} has no value for column "
                f"{', '.join(map(repr, missing))}; give one with update_row first"
            )
        schema, staged, writer = self._schema, self._staged, self._get_writer()
        end, text = writer.end, b""
        paths: list[str] = []
        try:
            self._staged = schema.blank
            self._replaced.clear()
            if schema.text_fields:
                values = values.copy()
                for i in schema.file_fields:
                    values[i] = self._create_object(values[i], paths)
                for i in schema.text_fields:
                    text += values[i]
                    values[i] = len(values[i])
            writer.append(writer.encode(values, text), text)
        finally:
            if writer.end == end:  # the row is not in the file
                self._staged = staged
            self._settle_objects(paths, is_written=writer.end != end)

    def _get_writer(self) -> _RowWriter:
        writer = self._run.writers.get(self.name)
        if writer is None or writer.schema.header != self._schema.header:
            writer = self._run.open_writer(self.name, self._schema)
        return writer

    def _create_object(self, data: bytes, paths: list[str]) -> bytes:
        """Write a value to a file of its own; return the file's name."""
        self._run.claim()  # refuse if another run has taken this one's place
        if not os.path.lexists(self._objects_dir):
            with _as_storage_error(self._objects_dir, "could not create the directory"):
                os.mkdir(self._objects_dir)
        _require_real_dir(self._objects_dir)
        uid = _new_uid(data)
        paths.append(os.path.join(self._objects_dir, uid))
        _write_file(paths[-1], data, self._run.tables_dir, sync=False)
        return uid.encode()

    def _settle_objects(self, paths: list[str], is_written: bool) -> None:
        """Remove new files if no row names them; otherwise list them for a sync."""
        if not is_written:
            for path in paths:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        elif self._run.unsynced is not None:
            self._run.unsynced += paths

    def get_pickle(self, uid: str) -> Any:
        """Return the object that a string of a PICKLE column stands for.

        Unpickling may run code: use this only on runs that you trust.
        """
        return _load_pickle(uid, self._objects_dir)

    def get_state_dict(self, uid: str, **kwargs: Any) -> Any:
        """Return the object that a string of a PYTORCH_STATE column stands for.

        ``kwargs`` go to ``torch.load``: ``map_location`` to choose the device, say.
        As ``weights_only`` is False by default, use this only on runs that you trust.
        """
        return _load_pytorch_state(uid, self._objects_dir, **kwargs)

    get_pytorch_state = get_state_dict


def _reopen_table(name: str, *args: Any) -> Table:
    return Store(*args)[name]


###############################################################################
# TensorBoard events
###############################################################################
# Pure: values in, bytes out. An event file is a sequence of TFRecords, each an Event
# message in protobuf's wire format. Field numbers are those of event.proto,
# summary.proto, tensor.proto (tensorboard/compat/proto) and the plugins'
# plugin_data.proto. Below, "values" are encoded Summary.value fields, so that those
# of one Event can be joined by +.


def _expect(value: Any, attribute: str, what: str) -> Any:
    if not hasattr(value, attribute):
        raise TypeError(f"expected {what}, got {value!r:.80}")
    return value


def _as_array(value: Any) -> npt.NDArray[Any]:
    """Convert numbers of numpy, torch (any device), jax, lists; import none of them."""
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "detach"):
        value = [_as_array(item) for item in value]
    elif detach := getattr(value, "detach", None):
        value = detach().cpu()
        if "bfloat16" in str(value.dtype):  # numpy has no such type
            value = value.float()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    array = np.asarray(value)
    if array.dtype.kind == "V":  # bfloat16 and other types of jax
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got {value!r:.80}")
    return array


def _as_float(value: Any) -> float:
    """Return one number as a float; an int out of range becomes an infinity."""
    if not isinstance(value, (int, float)):
        array = _as_array(value)
        if array.size != 1:
            raise ValueError(f"expected one number, got shape {array.shape}")
        value = array.item()
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# As in _crc_records, for blocks of bytes, or only for the bytes of a record that vary.
_CRC_BLOCK: Final = 256  # bytes
_CRC_LOOKUP: Final = _make_crc_lookup(_CRC_BLOCK, _CRC32C)
_CRC_OFFSETS: Final = np.arange(0, _CRC_BLOCK * 256, 256)
_CRC_FIRST: Final = _CRC_LOOKUP[:4].tolist()


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C of at least 4 bytes."""
    blocks = np.zeros((-(-len(data) // _CRC_BLOCK), _CRC_BLOCK), np.uint8)
    used = blocks.reshape(-1)[-len(data) :]  # zeros in front add nothing
    used[:] = np.frombuffer(data, np.uint8)
    used[:4] ^= 255  # a CRC starts from all ones: the same as inverting 4 bytes
    t0, t1, t2, t3 = _CRC_FIRST
    crc = 0
    for start in range(0, len(blocks), 256):  # 64 KiB at a time, to save memory
        index = blocks[start : start + 256] + _CRC_OFFSETS
        for part in np.bitwise_xor.reduce(_CRC_LOOKUP.take(index), axis=1).tolist():
            part ^= t0[crc & 255] ^ t1[crc >> 8 & 255]
            crc = part ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
    return crc ^ 0xFFFFFFFF


def _mask_crc(crc: int) -> bytes:
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _encode_tfrecord(data: bytes) -> bytes:
    """Frame data as a TFRecord: length, its masked CRC, data, its masked CRC."""
    length = struct.pack("<Q", len(data))
    return length + _mask_crc(_crc32c(length)) + data + _mask_crc(_crc32c(data))


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
    """Encode as float32; a number out of range becomes an infinity."""
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


def _encode_file_version(wall_time: float, version: int = 2) -> bytes:
    """Return the first record of every file."""
    name = f"brain.Event:{version}"
    return _encode_tfrecord(_pb_double(1, wall_time) + _pb_bytes(3, name))


def _encode_value(
    tag: str, data: bytes, plugin: str = "", content: bytes = b""
) -> bytes:
    """Encode a value of an Event; ``plugin`` names TensorBoard's part that shows it."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be a str, got {tag!r}")
    if plugin:
        data += _pb_bytes(9, _pb_bytes(1, _pb_bytes(1, plugin) + _pb_bytes(2, content)))
    return _pb_bytes(1, _pb_bytes(1, tag) + data)


def _encode_tensor(values: npt.NDArray[Any] | bytes, shape: Sequence[int]) -> bytes:
    """Encode Value.tensor: float32 numbers, or one string."""
    dims = b"".join(_pb_bytes(2, _pb_int(1, size)) for size in shape)
    if isinstance(values, bytes):
        data = _pb_int(1, 7) + _pb_bytes(8, values)  # DT_STRING
    else:
        data = _pb_int(1, 1) + _pb_bytes(5, values.astype("<f4").tobytes())  # DT_FLOAT
    return _pb_bytes(8, data + _pb_bytes(2, dims))


def _encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels of shape (height, width, channels), 1, 3 or 4 channels, as PNG."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each with filter 0
    lines[:, 1:] = pixels.reshape(height, -1)
    color_type = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    body = zlib.compress(lines.tobytes())
    for name, data in (b"IHDR", header), (b"IDAT", body), (b"IEND", b""):
        png += struct.pack(">I", len(data)) + name + data
        png += struct.pack(">I", zlib.crc32(name + data))
    return png


def _encode_image(tag: str, shape: tuple[int, ...], encoded: bytes) -> bytes:
    sizes = b"".join(_pb_int(i, size) for i, size in enumerate(shape, start=1))
    return _encode_value(tag, _pb_bytes(4, sizes + _pb_bytes(4, encoded)))


def _encode_hparams(
    hparams: Mapping[str, object], group_name: str, start_time: float
) -> bytes:
    """Encode a value that adds the run to the HPARAMS tab, its scalars as metrics.

    None and NaN are left out: the tab shows them as missing.
    """
    info = b""
    for name, value in hparams.items():
        value = _number(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, bool):
            encoded = _pb_int(4, value)
        elif isinstance(value, (int, float)):
            encoded = _pb_double(2, _as_float(value))
        else:
            encoded = _pb_bytes(3, str(value).encode(errors="replace"))
        key = _pb_bytes(1, str(name).encode(errors="replace"))
        info += _pb_bytes(1, key + _pb_bytes(2, encoded))
    info += _pb_bytes(4, group_name) + _pb_double(5, start_time)
    return _encode_session("start", 3, info)


def _encode_session(what: str, field: int, info: bytes) -> bytes:
    tensor = _encode_tensor(np.empty(0), (0,))
    tag = f"_hparams_/session_{what}_info"
    return _encode_value(tag, tensor, "hparams", _pb_bytes(field, info))


def _encode_layout(layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Encode ``{category: {title: [kind, tags]}}`` for the CUSTOM SCALARS tab."""
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


# In a record of scalars only the numbers vary, so most of its CRC is constant. It ends
# with the last value, the wall time and the step, padded to five bytes. What these
# bytes add to the CRC is looked up in one expression: a loop takes twice as long.
_SCALAR_END: Final = struct.Struct("<fBdBB")  # value, key, wall time, key, step % 128
_V0, _V1, _V2, _V3, _, _W0, _W1, _W2, _W3, _W4, _W5, _W6, _W7, _, _S0, *_S_HIGH = (
    _CRC_LOOKUP[-19:].tolist()
)
_LOOP_MAX: Final = 120  # bytes; up to here a loop is faster than numpy


@functools.lru_cache(maxsize=64)
def _encode_high_step(high: int) -> tuple[bytes, int]:
    """Return the four upper bytes of a step, and what they add to the CRC."""
    if not 0 <= high < 2**28:
        raise OverflowError
    encoded = bytes([*(high >> shift & 127 | 128 for shift in (0, 7, 14)), high >> 21])
    added = (lookup[byte] for lookup, byte in zip(_S_HIGH, encoded))
    return encoded, functools.reduce(operator.xor, added)


class _ScalarRecord:
    """Encoder of records that have one scalar for each tag, all of the same step."""

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        values = [_encode_value(tag, _pb_float(2, 0.0)) for tag in tags]
        joined = b"".join(values)
        summary = _pb_bytes(5, joined)
        data = summary + b"\x09" + bytes(8) + b"\x10" + bytes(5)
        pieces = [value[:-4] for value in values]  # without the number, at its end
        length = _encode_tfrecord(data)[:12]
        pieces[0] = length + summary.removesuffix(joined) + pieces[0]
        self._pieces = [x for piece in pieces for x in (piece, b"")][:-1]
        self._crc = _crc32c(data)
        # of the numbers except the last, which _SCALAR_END holds
        ends = len(summary) - len(joined) + np.cumsum([*map(len, values)])
        places = (ends[:-1, None] + np.arange(-4, 0)).ravel()
        self._pack = struct.Struct(f"<{len(tags) - 1}f").pack
        self._split = struct.Struct("4s" * (len(tags) - 1)).unpack
        lookup = _make_crc_lookup(len(data), _CRC32C)[places]
        self._offsets = np.arange(0, lookup.size, 256)
        self._lookup = lookup.ravel()
        self._lookups = lookup.tolist() if len(places) <= _LOOP_MAX else None

    def encode(self, values: Sequence[float], wall_time: float, step: int) -> bytes:
        """Encode the record; values are in the order of the tags."""
        try:
            high_step, crc = _encode_high_step(step >> 7)
            end = _SCALAR_END.pack(values[-1], 0x09, wall_time, 0x10, step & 127 | 128)
            numbers = self._pack(*values[:-1]) if len(values) > 1 else b""
        except OverflowError:  # no float32, or a step that five bytes cannot hold
            summary = b"".join(
                _encode_value(tag, _pb_float(2, _as_float(value)))
                for tag, value in zip(self._tags, values)
            )
            return _encode_tfrecord(_encode_event(wall_time, step, summary))
        v0, v1, v2, v3, _, w0, w1, w2, w3, w4, w5, w6, w7, _, s0 = end
        crc ^= _V0[v0] ^ _V1[v1] ^ _V2[v2] ^ _V3[v3] ^ _W0[w0] ^ _W1[w1] ^ _W2[w2]
        crc ^= _W3[w3] ^ _W4[w4] ^ _W5[w5] ^ _W6[w6] ^ _W7[w7] ^ _S0[s0] ^ self._crc
        if not numbers:
            return self._pieces[0] + end + high_step + _mask_crc(crc)
        if self._lookups is not None:
            for lookup, byte in zip(self._lookups, numbers):
                crc ^= lookup[byte]
        else:
            added = self._lookup[np.frombuffer(numbers, np.uint8) + self._offsets]
            crc ^= int(np.bitwise_xor.reduce(added))
        pieces = self._pieces.copy()
        pieces[1::2] = self._split(numbers)
        return b"".join(pieces) + end + high_step + _mask_crc(crc)


###############################################################################
# Event writer
###############################################################################
# Each event is one os.write of whole records, to a file that only this writer appends
# to. TensorBoard never reads past a torn record, so nothing may ever follow one.

_NO_FILE: Final = -1  # size while there is no file, or while its end is unknown
_RECORDS_MAX: Final = 4096  # encoders kept per writer
# An event without values at the highest possible step: any event after it goes back.
_GO_BACK: Final = _encode_tfrecord(_pb_bytes(5, b"") + _pb_int(2, 2**63 - 1))
_HISTOGRAM_LIMITS: Final = 1e-12 * 1.1 ** np.arange(774)  # to 1e20, as in TensorFlow


def _as_pixels(
    images: Any, dataformats: str, allowed: Sequence[str], across: int = 8
) -> npt.NDArray[np.uint8]:
    """Return uint8 pixels, shape (time, height, width, channels), with N as a grid.

    Floats and bools are scaled from 0..1, ints are taken as they are; both are clipped.
    """
    array, order = _as_array(images), dataformats.upper()
    if sorted(order) not in map(sorted, allowed) or len(order) != array.ndim:
        raise ValueError(
            f"shape {array.shape} with dataformats {dataformats!r}; expected the axes "
            f"{' or '.join(allowed)}, in any order"
        )
    order += "".join(axis for axis in "NTHWC" if axis not in order)  # length 1
    array = array.reshape(*array.shape, *[1] * (5 - array.ndim))
    array = array.transpose([order.index(axis) for axis in "NTHWC"])
    n, times, height, width, channels = array.shape
    if not array.size or channels not in (1, 3, 4):
        raise ValueError(f"no image of 1, 3 or 4 channels in shape {array.shape}")
    if array.dtype.kind in "bf":
        array = np.rint(np.nan_to_num(array * np.float32(255)))
    across = min(n, across)
    down = -(-n // across)
    grid = np.zeros((down * across, *array.shape[1:]), np.uint8)
    grid[:n] = array.clip(0, 255)
    tiles = grid.reshape(down, across, *array.shape[1:]).transpose(2, 0, 3, 1, 4, 5)
    shape = times, down * height, across * width, channels
    pixels: npt.NDArray[np.uint8] = tiles.reshape(shape)
    return pixels


def _encode_tsv(lines: Iterable[Iterable[Any]]) -> bytes:
    """Encode lines for TensorBoard's projector, which skips any that are blank."""
    joined = ("\t".join(map(str, line)) for line in lines)
    return "".join(f"{line if line.strip() else '-'}\n" for line in joined).encode()


_BESIDE: Final = (
    "that takes more than numpy. Use tensorboardX's or torch's beside this one, as "
    "SummaryWriter(writer.get_logdir()); TensorBoard shows what both write"
)


class EventWriter:
    """Writer of TensorBoard events, with the methods of tensorboardX's SummaryWriter.

    An event is in its file when the call returns: there is no thread and no queue. Tags
    are kept as given; a step of None means 0. Arrays may come from numpy, torch or jax,
    or be lists. Refused input writes nothing. Nothing is created on disk before the
    first event, and no file is continued: a new writer, or an event after ``close()``,
    starts a new one. Threads may share a writer; a forked child may not use it.

    ``logdir`` (or ``log_dir``) defaults to ``runs/<date>_<host><comment>``.
    ``purge_step`` hides the events of a resumed run's earlier files from this step on.
    ``write_to_disk=False`` only checks arguments. Accepted, but without effect, are
    ``max_queue``, ``flush_secs``, ``comet_config`` and further arguments here,
    ``new_style`` and ``double_precision`` of add_scalar, ``num_thresholds`` and
    ``weights`` of add_pr_curve_raw.
    """

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
        self._root = os.path.abspath(self.logdir)  # os.chdir() changes nothing
        self._purge_step = purge_step
        self._suffix = filename_suffix
        self._write_to_disk = write_to_disk
        # step and time of events that are given none; see use_metadata
        self._defaults: tuple[Any, float | None] = (0, None)
        self._sub_writers: dict[str, EventWriter] = {}  # by name; see add_scalars
        self._records: dict[tuple[str, ...], _ScalarRecord] = {}  # by prefix and names
        self._run: _Run | None = None  # set if a Store owns the writer
        self._go_back = b""  # before a tag's first event; set by _open, see _continue
        self._is_holding, self._held = False, b""  # records; see _all_or_none
        self._pid, self._forks = os.getpid(), _forks  # _forks is faster to compare
        self._guard = _Guard(f"an event of {self.logdir}")
        self._path = ""
        self._fd = -1
        self._size = _NO_FILE  # bytes of whole records

    def _continue(self, run: _Run) -> None:
        """Write for a run, and replace those of its events that are logged again.

        A run that was killed and restarted from a checkpoint logs some steps again. A
        tag's first event from this writer must hide the tag's earlier events from that
        step on. TensorBoard's fast loader does so by itself. Its slow loader does so,
        in files of version 1, when the step goes back, as after ``_GO_BACK``. A
        SessionLog.START, meant for this, hides all tags: a result logged at step 0 of
        a finished run would remove the curves.
        """
        self._run = run
        run.event_writers.add(self)

    def _resolve(self, global_step: Any, walltime: float | None) -> tuple[float, int]:
        """Return the wall time and step of an event."""
        default_step, default_time = self._defaults
        step = int(default_step if global_step is None else global_step)
        if not -(2**63) <= step < 2**63:
            raise ValueError(f"global_step {step} does not fit into 64 bits")
        walltime = default_time if walltime is None else walltime
        return (time.time() if walltime is None else float(walltime)), step

    def _add(self, values: bytes, global_step: Any, walltime: float | None) -> None:
        self._append_event(_encode_event(*self._resolve(global_step, walltime), values))

    def _append_event(self, event: bytes) -> None:
        self._append(self._go_back + _encode_tfrecord(event))

    def _encode_scalars(
        self, prefix: str, names: Iterable[str], values: Sequence[float],
        wall_time: float, step: int,
    ) -> bytes:  # fmt: skip
        key = prefix, *names
        if known := self._records.get(key):
            return known.encode(values, wall_time, step)
        new = _ScalarRecord(*(prefix + name if prefix else name for name in names))
        encoded = new.encode(values, wall_time, step)
        if len(self._records) >= _RECORDS_MAX:
            self._records.clear()
        self._records[key] = new
        return self._go_back + encoded

    def _append(self, records: bytes) -> None:
        """Write all of the records, or raise and leave none of them."""
        if self._forks != _forks or not self._write_to_disk:
            # before taking the lock, which a thread that was not forked may hold
            self._check_process()
            self._held += records if self._is_holding else b""
            return
        guard = self._guard
        with guard.lock:
            if guard.is_busy:
                guard.refuse_again()
            size, self._size = self._size, _NO_FILE  # unknown until the write is done
            try:
                guard.is_busy = True
                if size <= 0:
                    if size == _NO_FILE:
                        self._open()
                    size, records = 0, self._encode_start() + self._go_back + records
                if os.write(self._fd, records) != len(records):
                    raise OSError(errno.ENOSPC, "short write")
                self._size = size + len(records)
                self._purge_step = None  # a later file would hide what this one holds
            except BaseException as err:
                self._records.clear()  # else a tag's first event would lack _go_back
                if isinstance(err, CoxError) or not isinstance(err, OSError):
                    raise  # of _open, or an interrupt
                with contextlib.suppress(OSError):  # else the next event opens a file
                    os.ftruncate(self._fd, size)
                    self._size = size
                what = "an event could not be written; the file has all others"
                raise _storage_error(err, what, self._path) from err
            finally:
                guard.is_busy = False

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[EventWriter]:
        """Yield a writer whose events are written together, at the end of ``with``."""
        holder = EventWriter(self.logdir, write_to_disk=False)
        holder._is_holding, holder._defaults = True, self._defaults
        yield holder
        for name, held in ("", holder), *holder._sub_writers.items():
            writer = self._get_sub_writer(name) if name else self
            if held._held:
                writer._append(writer._go_back + held._held)

    def _encode_start(self) -> bytes:
        """Return the records that come before a file's first event."""
        now = time.time()
        start = _encode_file_version(now, 1 if self._go_back else 2)
        if self._purge_step is not None:
            session = _pb_bytes(7, _pb_int(1, 1))  # SessionLog.START
            purge = _pb_double(1, now) + _pb_int(2, self._purge_step) + session
            start += _encode_tfrecord(purge) * 2  # TensorBoard ignores a run's first
        return start

    def _open(self) -> None:
        """Start a new file, under a name that sorts after the earlier ones."""
        self._close_file()
        self._check_run()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _O_BINARY
        stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        with _as_storage_error(self.logdir, "could not make an event file"):
            os.makedirs(self._root, exist_ok=True)
            is_first = self._run is not None and not self._path
            if is_first and any("tfevents" in name for name in os.listdir(self._root)):
                self._go_back = _GO_BACK
            for n in itertools.count():
                self._path = f"{self._root}/{stem}.{self._pid}.{n:04d}{self._suffix}"
                with contextlib.suppress(FileExistsError):
                    self._fd = _open_above_2(self._path, flags)
                    break

    def _check_run(self) -> None:
        """Raise unless events may be written to the run that owns this writer."""
        if self._run is not None:
            self._run.check_place()
            if self._run.refusal:
                self._run.claim()  # raises, as another run may have this path now
            if not _is_run(self._run.path):
                raise NotFoundError(f"there is no run at {self._run.path}")
            if self._run._lock_fd < 0 and _has_writer(self._run.path):
                raise WriteRefusedError(
                    f"{self._run.path} is being written by another process, and events "
                    "of two hide each other's; log them there, or open another run"
                )
            root = os.path.join(os.path.realpath(self._run.path), "")
            if not os.path.realpath(self._root).startswith(root):
                raise WriteRefusedError(
                    f"{self.logdir} leads out of its run; replace the link with a "
                    "directory"
                )

    def _check_process(self) -> None:
        if self._forks != _forks:
            raise WriteRefusedError(
                f"the writer of {self.logdir} belongs to process {self._pid}; make "
                "another EventWriter in the forked child, or log from the parent"
            )

    def flush(self) -> None:
        """Do nothing: every event has been written already."""

    def close(self) -> None:
        """Close the file; adding another event starts a new one.

        Raises:
            StorageError: The disk was full, which a network file system may report
                only now. The files are closed all the same.
        """
        if self._forks != _forks:
            return
        with contextlib.ExitStack() as closing:  # closes the others if one fails
            for writer in [*self._sub_writers.values()]:
                closing.callback(writer.close)
            with self._guard.lock:
                if not self._guard.is_busy:  # else a signal handler called it
                    self._size = _NO_FILE
                    self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1  # reset first: another file may get the number
        with _as_storage_error(self._path, "events may be lost"):
            _close_all(fd)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # else what close() needs may be gone
            with contextlib.suppress(AttributeError, StorageError):  # __init__ failed
                self.close()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        args = self._root, "", self._purge_step, 10, 120, self._suffix
        return type(self), (*args, self._write_to_disk)

    def __repr__(self) -> str:
        return f"EventWriter({self.logdir!r})"

    def get_logdir(self) -> str:
        """Return the directory of the event files."""
        return self.logdir

    def _get_file_writer(self) -> EventWriter:
        """Return this writer: it takes protobuf messages itself."""
        return self

    file_writer = property(_get_file_writer)

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
        end = _pb_double(1, wall_time) + _pb_int(2, step)  # override earlier fields
        self._append_event(event.SerializeToString() + end)

    @contextlib.contextmanager
    def use_metadata(
        self, *, global_step: int | None = None, walltime: float | None = None
    ) -> Iterator[EventWriter]:
        """Set the step and time, inside ``with``, of events that are given none."""
        before, self._defaults = self._defaults, (global_step or 0, walltime)
        try:
            yield self
        finally:
            self._defaults = before

    # The arguments are tensorboardX's, in its order, with what torch adds at the end.
    # fmt: off

    def add_scalar(
        self, tag: str, scalar_value: Any, global_step: Any = None,
        walltime: float | None = None, display_name: str = "",
        summary_description: str = "", new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Log one number, as float32: the only form that all of TensorBoard shows."""
        value = scalar_value if type(scalar_value) is float else _as_float(scalar_value)
        wall_time, step = self._resolve(global_step, walltime)
        if display_name or summary_description:
            metadata = _pb_bytes(2, display_name) + _pb_bytes(3, summary_description)
            data = _pb_float(2, value) + _pb_bytes(9, metadata)
            self._add(_encode_value(tag, data), step, wall_time)
        else:
            self._append(self._encode_scalars("", (tag,), (value,), wall_time, step))

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any],
        global_step: Any = None, walltime: float | None = None,
    ) -> None:
        """Overlay numbers in one chart, each in a sub-run ``main_tag/<tag>``."""
        wall_time, step = self._resolve(global_step, walltime)
        items = _expect(tag_scalar_dict, "items", "a dict").items()
        for tag, value in [(tag, _as_float(value)) for tag, value in items]:
            writer = self._get_sub_writer(f"{main_tag}/{tag}")
            args = "", (main_tag,), (value,), wall_time, step
            writer._append(writer._encode_scalars(*args))

    def _get_sub_writer(self, name: str) -> EventWriter:
        self._check_process()
        if name not in self._sub_writers:
            path = re.sub(  # `..` would lead out of logdir
                r"(?<![^/])\.\.?(?![^/])|[\0\\]",
                lambda match: f"%{match[0].encode().hex('%')}",
                str(name),
            )
            writer = EventWriter(  # os.path.join would leave logdir for "/name"
                f"{self._root}/{path}", filename_suffix=self._suffix,
                write_to_disk=self._write_to_disk,
            )
            writer._is_holding = self._is_holding
            if self._run is not None:
                writer._continue(self._run)
            self._sub_writers.setdefault(name, writer)  # the first of two threads wins
        return self._sub_writers[name]

    def _add_scalar_row(
        self, table: str, row: Mapping[str, Any], values: Sequence[Any], step: int
    ) -> None:
        """Log a table's row as one event; its tags are ``table/<column>``.

        ``values`` are those of ``row`` as the table converted them: texts are bytes.
        """
        if not row:
            return
        wall_time, step = self._resolve(step, None)
        try:
            record = self._encode_scalars(f"{table}/", row, values, wall_time, step)
        except (struct.error, TypeError):  # not only numbers
            floats = []
            for name, value in row.items():
                try:
                    floats.append(_as_float(value))
                except (TypeError, ValueError) as err:
                    raise SchemaError(
                        f"column {name!r} of table {table!r} cannot be a scalar: "
                        f"{err}; put it into the row with update_row"
                    ) from err
            record = self._encode_scalars(f"{table}/", row, floats, wall_time, step)
        self._append(record)

    def add_histogram(
        self, tag: str, values: Any, global_step: Any = None,
        bins: Any = "tensorflow", walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        """Log a distribution; NaN and infinities are left out, with a warning.

        ``bins`` is as for ``numpy.histogram``; "tensorflow" makes each 10 % wider than
        the one before. Neighbours are joined until there are at most ``max_bins``.
        """
        array = _as_array(values).astype(np.float64).ravel()
        finite = array[np.isfinite(array)]
        if dropped := len(array) - len(finite):
            _log.warning("histogram %r: left out %d NaN or infinite", tag, dropped)
        if not len(finite):
            raise ValueError(f"histogram {tag!r} has no finite value")
        low, high = finite.min(), finite.max()
        if isinstance(bins, str) and bins == "tensorflow":
            # From lowest to highest: TensorBoard draws empty outer bins backward.
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
        """Log a histogram computed elsewhere; limits are the bins' right edges."""
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
        tp, fp = (  # weight of examples of either label at or above each threshold
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
        """Log a curve computed elsewhere; each array has a value per threshold."""
        curve = np.stack([_as_array(x) for x in (  # raises if shapes differ
            true_positive_counts, false_positive_counts, true_negative_counts,
            false_negative_counts, precision, recall)])
        if curve.ndim != 2:
            raise ValueError(f"expected a value per threshold, got {curve.shape[1:]}")
        tensor, content = _encode_tensor(curve, curve.shape), _pb_int(2, curve.shape[1])
        encoded = _encode_value(tag, tensor, "pr_curves", content)
        self._add(encoded, global_step, walltime)

    def add_image(
        self, tag: str, img_tensor: Any, global_step: Any = None,
        walltime: float | None = None, dataformats: str = "CHW",
    ) -> None:
        """Log an image of 1, 3 or 4 channels; ints are 0..255, floats 0..1.

        ``dataformats`` names the axes: CHW, HWC, HW; with N, a grid of 8 per row.
        """
        image = _as_pixels(img_tensor, dataformats, ("HW", "CHW", "NCHW"))[0]
        encoded = _encode_image(tag, image.shape, _encode_png(image))
        self._add(encoded, global_step, walltime)

    def add_images(
        self, tag: str, img_tensor: Any, global_step: Any = None,
        walltime: float | None = None, dataformats: str = "NCHW",
    ) -> None:
        """Log a grid of images; for a list of images, dataformats may omit N."""
        if isinstance(img_tensor, (list, tuple)) and "N" not in dataformats.upper():
            dataformats = "N" + dataformats
        self.add_image(tag, img_tensor, global_step, walltime, dataformats)

    def add_figure(
        self, tag: str, figure: Any, global_step: Any = None, close: bool = True,
        walltime: float | None = None,
    ) -> None:
        """Log a matplotlib figure, or several as a grid; ``close`` them in pyplot."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figures = figure if isinstance(figure, (list, tuple)) else [figure]
        images = []
        for item in figures:
            shown = _expect(item, "canvas", "matplotlib figures").canvas
            canvas: Any = FigureCanvasAgg(item)  # replaces the figure's own for now
            try:
                canvas.draw()
                images.append(np.asarray(canvas.buffer_rgba())[..., :3])
            finally:
                item.set_canvas(shown)
        self.add_images(tag, images, global_step, walltime, "HWC")
        pyplot: Any = sys.modules.get("matplotlib.pyplot")  # None: it has no figures
        for item in figures if close and pyplot else ():
            pyplot.close(item)

    def add_video(
        self, tag: str, vid_tensor: Any, global_step: Any = None, fps: float = 4,
        walltime: float | None = None, dataformats: str = "NTCHW",
    ) -> None:
        """Log a video as an animated GIF, N as a grid; pixels are as in add_image."""
        try:
            from PIL import Image
        except ImportError as err:
            raise ImportError("add_video needs Pillow: pip install pillow") from err
        pixels = _as_pixels(vid_tensor, dataformats, ("NTCHW",))
        is_gray = pixels.shape[-1] == 1  # Pillow takes these without the last axis
        first, *others = map(Image.fromarray, pixels[..., 0] if is_gray else pixels)
        gif, ms = io.BytesIO(), 1000 / fps
        first.save(gif, "GIF", save_all=True, append_images=others, duration=ms, loop=0)
        encoded = _encode_image(tag, pixels.shape[1:], gif.getvalue())
        self._add(encoded, global_step, walltime)

    def add_audio(
        self, tag: str, snd_tensor: Any, global_step: Any = None,
        sample_rate: int = 44100, walltime: float | None = None,
    ) -> None:
        """Log sound as 16-bit WAV: int16 is kept, other types are clipped to -1..1.

        Shape (samples,), (samples, channels), or, as in torch, (channels, samples).
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
        """Log Markdown; adds ``/text_summary`` to the tag, as tensorboardX does."""
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
        TensorBoard shows a run's first ones, and finds their domains by itself.
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
        """Lay out the CUSTOM SCALARS tab, once: ``{category: {title: chart}}``.

        A chart is ``["Multiline", tags]`` or ``["Margin", [value, lower, upper]]``.
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
        """Lay out one chart of a scalar in a margin: tags (value, lower, upper)."""
        self.add_custom_scalars({category: {title: ["Margin", tags]}})

    def add_embedding(
        self, mat: Any, metadata: Sequence[Any] | None = None, label_img: Any = None,
        global_step: Any = None, tag: str = "default",
        metadata_header: Sequence[str] | None = None,
    ) -> None:
        """Show the rows of ``mat`` in the PROJECTOR tab, by files in logdir.

        ``metadata`` has a label per row (or, with ``metadata_header``, a list of
        labels), ``label_img`` a square image per row, NCHW.
        """
        self._check_process()
        self._check_run()
        points, (_, step) = _as_array(mat), self._resolve(global_step, None)
        if points.ndim != 2:
            raise ValueError(f"expected one point per row, got shape {points.shape}")
        for labels in metadata, label_img:
            if labels is not None and len(labels) != len(points):
                raise ValueError(f"{len(labels)} labels for {len(points)} points")
        folder = urllib.parse.quote(tag, safe="").replace(".", "%2E")
        folder = f"{step:05d}/{folder}"
        name = json.dumps(f"{tag}:{step:05d}", ensure_ascii=False)  # protobuf's quotes
        config = f'tensor_name: {name}\ntensor_path: "{folder}/tensors.tsv"\n'
        files = {"tensors.tsv": _encode_tsv(points.tolist())}
        if metadata is not None:
            lines = metadata if metadata_header else [[label] for label in metadata]
            # one column has no header: TensorBoard would take it for a label
            header = [metadata_header] if len(metadata_header or ()) > 1 else []
            files["metadata.tsv"] = _encode_tsv(
                [re.sub("[\t\r\n]", " ", str(label)) for label in line]
                for line in [*header, *lines]
            )
            config += f'metadata_path: "{folder}/metadata.tsv"\n'
        if label_img is not None:
            across = math.ceil(math.sqrt(len(points)))
            sprite = _as_pixels(label_img, "NCHW", ("NCHW",), across)[0]
            height, width, _ = sprite.shape
            shape = _as_array(label_img).shape
            if shape[2] != shape[3] or width > 8192:  # TensorBoard's limit
                raise ValueError(f"images not square, or too large: shape {shape}")
            sprite = np.pad(sprite, ((0, width - height), (0, 0), (0, 0)))
            files["sprite.png"] = _encode_png(sprite)
            config += f'sprite {{ image_path: "{folder}/sprite.png"\n'
            config += f"single_image_dim: [{shape[3]}, {shape[2]}] }}\n"
        if not self._write_to_disk:
            return
        with _as_storage_error(f"{self._root}/{folder}", "could not write"):
            os.makedirs(f"{self._root}/{folder}", exist_ok=True)
            for file_name, data in files.items():
                _write_file(f"{self._root}/{folder}/{file_name}", data, sync=False)
            # Last, as it names the other files.
            with open(f"{self._root}/projector_config.pbtxt", "ab") as file:
                file.write(f"embeddings {{\n{config}}}\n".encode())

    # fmt: on
    def _refuse(self, what: str, why: str, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(f"{what} is not built in: {why}")

    add_graph = functools.partialmethod(_refuse, "add_graph", _BESIDE)
    add_onnx_graph = functools.partialmethod(_refuse, "add_onnx_graph", _BESIDE)
    add_openvino_graph = functools.partialmethod(_refuse, "add_openvino_graph", _BESIDE)
    add_mesh = functools.partialmethod(_refuse, "add_mesh", _BESIDE)
    add_tensor = functools.partialmethod(_refuse, "add_tensor", _BESIDE)
    add_image_with_boxes = functools.partialmethod(
        _refuse, "add_image_with_boxes", "draw them into the image, then use add_image"
    )
    export_scalars_to_json = functools.partialmethod(
        _refuse,
        "export_scalars_to_json",
        "no scalar is kept in memory. Use Store.log_table_and_tb and export the table, "
        "store[name].df.to_json(path)",
    )


###############################################################################
# Store
###############################################################################


class _Lookup(Mapping[str, Any]):
    """A view: names and values are looked up whenever they are asked for."""

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


def _check_mode(mode: str) -> None:
    if mode not in ("a", "r", "w"):
        raise ValueError(f"mode must be 'a', 'r' or 'w', got {mode!r}")


class Store:
    """One run: a directory with tables, an event writer and room for files.

    A Store is a context manager, and threads may share it. It can be pickled: the
    other process opens the same run by its path. ``store[name]`` is a table.

    Attributes:
        path: Absolute path of the run's directory.
        exp_id: Name of that directory.
        save_dir: Directory in it for files of your own.
        tb_dir: Directory in it for event files.
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
        history: bool = True,
    ) -> None:
        """Create a run, or open an existing one.

        Opening an existing run changes none of its files, except in mode ``w``. The
        first process to write is its only writer, until it closes the run or ends.

        Args:
            storage_folder: Directory of runs, created if missing; ``~`` is home.
            exp_id: Name of the run's directory in it. None or "" means a random UUID.
            new: Raise if the run exists already.
            mode: ``a`` to read and append; ``r`` to only read, and create nothing;
                ``w`` to start afresh: tables, objects and event files are erased,
                files in ``save_dir`` are kept.
            history: Record what ran and how it ended; see :attr:`history`.

        Raises:
            StoreExistsError: ``new`` is set and the run exists.
            NotFoundError: The mode is ``r`` and the run does not exist.
            WriteRefusedError: The mode is ``w`` and another process writes the run.
        """
        _check_mode(mode)
        exp_id = str(uuid.uuid4()) if exp_id in (None, "") else exp_id
        is_name = isinstance(exp_id, str) and exp_id not in (".", "..")
        if not is_name or {"/", os.sep, "\0"} & set(exp_id):
            raise ValueError(
                f"exp_id must be a str, the name of one directory, got {exp_id!r}; put "
                "what comes before its last / into storage_folder"
            )
        self.exp_id = exp_id
        folder = os.path.abspath(os.path.expanduser(storage_folder))
        self.path = os.path.join(folder, exp_id)
        self.save_dir = os.path.join(self.path, _SAVE_DIR)
        self.tb_dir = os.path.join(self.path, _TENSORBOARD_DIR)
        self._tables: dict[str, Table] = {}
        self._writer: Any = None if mode == "r" else EventWriter(self.tb_dir)
        self._handle = _Handle(self.path, mode, history)
        try:
            self._open(new, mode)
        except BaseException:
            self._handle.drop()  # its traceback may keep this Store alive
            raise

    def _open(self, new: bool, mode: str) -> None:
        if mode != "r":  # only now, as drop() undoes it if an exception cuts this off
            self._handle.run.users.add(self._handle)
        exists = _is_run(self.path)
        if exists and new:
            raise StoreExistsError(
                f"{self.path} exists; use another exp_id, or drop new=True to open it"
            )
        if mode == "r":
            if not exists:
                raise NotFoundError(f"there is no run at {self.path}")
        elif not os.path.exists(self._handle.run.store_path):
            if mode == "a" and _list_tables(self.path):
                what = (
                    "%s has no %s, but its tables are still there, and are continued. "
                    'To start afresh, open it with mode="w"'
                )
                _log.warning(what, self.path, _STORE_NAME)
            self._handle.run.create(new)
        if mode == "w":
            self._handle.run.erase()
        if self._writer is not None:
            self._writer._continue(self._handle.run)

    def __repr__(self) -> str:
        names = ", ".join(self.tables) or "none"
        shown = f"<Store {self.path}, mode {self._handle.mode!r}, tables: {names}>"
        return _printable(shown, _MESSAGE_MAX)

    def __str__(self) -> str:
        tables = self.tables.items()
        return "".join(f"-- Table: {_printable(n)} --\n{t}\n\n" for n, t in tables)

    def __bool__(self) -> bool:
        return True  # even without tables, as programs ask `if store:`

    def __len__(self) -> int:
        return len(self.tables)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, self._handle.store_args()

    def __del__(self) -> None:
        # A notebook cell that runs again must find the run unlocked, even if a Table of
        # its former Store is still around; that takes the lock again when it writes.
        if hasattr(self, "_handle"):
            self._handle.drop()

    @classmethod
    def read_from_running(
        cls, storage_folder: str | os.PathLike[str], exp_id: str | None = None
    ) -> Store:
        """Open a run in mode ``r``, by folder and exp_id, or by its path alone."""
        if exp_id is None:
            storage_folder, exp_id = os.path.split(os.path.abspath(storage_folder))
        return cls(storage_folder, exp_id, mode="r")

    def snapshot_copy(self) -> str:
        """Update store.h5 by a :meth:`checkpoint`, and return its path."""
        self.checkpoint()
        return self._handle.run.store_path

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._close(exc_info[1])

    @property
    def tables(self) -> Mapping[str, Table]:
        """The run's tables by name, sorted: a view that is always up to date."""
        return _Lookup(lambda: sorted(_read_headers(self.path)), self.get_table)

    @property
    def keys(self) -> Collection[str]:
        """The names of the run's tables."""
        return self.tables.keys()

    @property
    def history(self) -> list[dict[str, Any]]:
        """What wrote this run, and how it ended: a list of dicts, oldest first.

        Each process that created a table or wrote rows adds one (``time``, ``host``,
        ``argv``, ``git``, ``job``, ...) and, unless it dies, another with a ``status``:
        ``done``, ``failed``, ``interrupted``, or ``ended`` if the Store was not closed.
        """
        return _read_history(self.path)

    def add_table(self, table_name: str, schema: Mapping[str, Any]) -> Table:
        """Create a table, or open the existing one if it has the same schema.

        A table that has no rows yet may be created again with another schema.

        Args:
            table_name: Any name of up to 225 bytes when percent-encoded.
            schema: Column name to type: ``int`` (64 bits), ``float``, ``str``,
                ``bool``, a numpy integer or float type, or ``OBJECT``, ``PICKLE``,
                ``PYTORCH_STATE``.

        Raises:
            SchemaError: A type is none of these, the name is too long, or the table
                has rows and another schema. Nothing was created.
            WriteRefusedError: Another process writes the run, or this Store may not.
        """
        table = Table(table_name, schema, self._handle.run.objects_dir, self)
        known = self._tables.setdefault(table_name, table)
        if known._schema.header != table._schema.header:  # it was made again
            self._tables[table_name] = known = table
        return known

    def add_table_like_example(
        self, table_name: str, example: Any, alternative: str = OBJECT
    ) -> Table:
        """Create a table whose columns fit an example row, as :meth:`add_table` does.

        Args:
            table_name: As for :meth:`add_table`.
            example: A row as for :meth:`Table.update_row`; its values give the types.
            alternative: Type for values that are not a number, str or bool:
                ``OBJECT``, ``PICKLE`` or ``PYTORCH_STATE``.
        """
        schema = schema_from_dict(example, alternative)
        with contextlib.suppress(NotFoundError):
            # keep columns of objects: they take any value, and the original made such
            there = self.get_table(table_name).schema.items()
            schema |= {n: t for n, t in there if t == alternative and n in schema}
        return self.add_table(table_name, schema)

    def get_table(self, table_id: str) -> Table:
        """Return a table, even one that another process has just added.

        Raises:
            NotFoundError: The run has no such table.
        """
        if table_id not in self._tables:
            if file := _open_table(self.path, table_id):
                with file:
                    header = file.schema.header
            else:  # there is no such table, or it is a run of the original
                header = _read_rows(self.path, table_id).header
            types_ = _decode_header(header).types
            table = Table(table_id, types_, self._handle.run.objects_dir, self, True)
            self._tables.setdefault(table_id, table)  # two threads get the same
        return self._tables[table_id]

    __getitem__ = get_table

    @property
    def writer(self) -> EventWriter:
        """The run's :class:`EventWriter`; assign another writer to use that instead."""
        if self._writer is None and self._handle.mode == "r":
            what = f"{self.path} may not be written: {self._handle.refusal}"
            raise _NoWriterError(what)
        return self._writer  # type: ignore[no-any-return]

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
        """Stage values in a table's working row, and write them as events.

        The tags are ``<table>/<column>``. To write the row, call the table's
        ``flush_row``. If a value is refused, nothing is staged, and no event written.

        Args:
            table_name: Table to stage the values in.
            update_dict: Column name to value, as for :meth:`Table.update_row`.
            summary_type: Name of the event writer's method, without ``add_``.
            step: Step of the events; None means the index of the row in the table.

        Raises:
            SchemaError: A value or a column does not fit the table, or the events.
            NotFoundError: The run has no such table.
            ValueError: The event writer has no such method.
            WriteRefusedError, StorageError: As :meth:`Table.append_row`.
        """
        row, writer, method = _as_row(update_dict), self.writer, f"add_{summary_type}"
        add, built_in = getattr(writer, method, None), vars(EventWriter).get(method)
        if add is None:
            raise ValueError(f"summary_type {summary_type!r}: there is no {method}()")

        table = self.get_table(table_name)
        slots = table._schema.slots

        def log_events(staged: list[Any]) -> None:
            at_step = table.nrows if step is None else step
            is_ours = built_in and getattr(add, "__func__", None) is built_in
            if is_ours and method == "add_scalar":
                values = [staged[slots[name][0]] for name in row]
                writer._add_scalar_row(table_name, row, values, at_step)
                return
            # another writer cannot undo events, so first try all values on one of ours,
            # unless only the other has this method
            ours = writer if is_ours else EventWriter(self.tb_dir, write_to_disk=False)
            with ours._all_or_none() as holder:
                targets = [holder] if isinstance(built_in, types.FunctionType) else []
                for target in targets if is_ours else [*targets, writer]:
                    for name, value in row.items():
                        getattr(target, method)(f"{table_name}/{name}", value, at_step)

        table._do(table._stage, row, log_events)

    def checkpoint(self, export: bool = True) -> None:
        """Sync all rows to disk, and write store.h5 anew.

        Rows survive the death of the process without this. It is for the death of the
        machine, and for readers of store.h5. It takes about a second per million rows;
        other threads can log meanwhile.

        Args:
            export: False only syncs, and leaves store.h5 as it is.

        Raises:
            StorageError: The disk refused; store.h5 is as it was before.
        """
        self._handle.run.checkpoint(export, self._handle.refusal)

    def close(self) -> None:
        """Write store.h5 if there is anything new, and release the run.

        Tables can still be read, but not written. A Store that is not closed does the
        same when it is no longer reachable, or when the interpreter exits.

        Raises:
            StorageError: The disk refused. No row is lost; close() may be repeated.
        """
        # set in `except`, and in `finally` while an exception propagates
        self._close(sys.exc_info()[1])

    def _close(self, err: BaseException | None) -> None:
        for table in [*self._tables.values()]:  # threads may open others
            if table._staged is not table._schema.blank and not self._handle.refusal:
                what = "%s: a row of table %r was staged and never flushed"
                _log.warning(what, self.path, table.name)
        self._handle.close("done", err)
        if isinstance(self._writer, EventWriter):  # else it is the caller's own
            self._writer.close()


###############################################################################
# CollectionReader
###############################################################################
# Runs are read in batches, by functions that take paths, return plain data and use no
# other state. So they can run in a thread, in another process, or on another host.

_EXACT_MAX: Final = 2**53  # a float holds all ints up to this exactly
_BATCH_SIZE: Final = 250  # runs
_BATCH_MIN: Final = 12  # runs; a smaller batch costs more than an executor gains
_SUMMARY: Final = (  # first columns of CollectionReader.runs()
    "status", "started", "seconds", "attempts", "host", "job", "commit", "error",
)  # fmt: skip


def _read_each(
    read: Callable[..., Any], runs: Mapping[int, Any], *args: Any
) -> tuple[dict[int, Any], dict[int, Exception]]:
    """Call ``read`` for each run; return results and errors by the runs' numbers."""
    results, errors = {}, {}
    for source, run_dir in runs.items():
        try:
            results[source] = read(run_dir, *args)
        except Exception as err:
            errors[source] = err
    return results, errors


def _read_quickly(path: str, size: int) -> bytes:
    """Read a file's first bytes; take no time to see what kind of file it is."""
    fd = os.open(path, os.O_RDONLY | _O_SAFE)  # so reading does not block
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _read_unproven(tables_dir: str, stem: str, source: int) -> _Rows | None:
    """Read a short table in the fewest calls; return None if it needs more care.

    The rows are unchecked: mode "w" may have replaced the table between the two reads.
    """
    path = tables_dir + os.sep + stem
    try:
        _refuse_link(tables_dir)
        data = _read_quickly(path + _ROWS_SUFFIX, _PREFIX_SIZE)
        schema = _decode_header(data[: data.find(b"\n") + 1])
        records, text = data[len(schema.header) :], b""
        count, torn_size = divmod(len(records), schema.record_size)
        if torn_size or len(data) == _PREFIX_SIZE:
            return None
        if schema.text_fields and count:
            last = len(records) - schema.record_size
            _, *values, start = schema.struct.unpack_from(records, last)
            size = start + sum(values[i] for i in schema.text_fields)
            if not 0 <= size <= _BLOCK_SIZE:
                return None
            text = _read_quickly(path + _TEXT_SUFFIX, size)
    except (OSError, CorruptError):
        return None
    return _Rows(schema.header, [source], [count], records, text)


def _read_rows_batch(
    runs: Mapping[int, str], name: str
) -> tuple[list[_Rows], dict[int, Exception]]:
    """Read a table of several runs, joined as bytes.

    Most tables are short and intact: these are read the fast way and checked together.
    The others are read again, one by one, the careful way.
    """
    stem = _table_stem(name)
    unproven = (
        _read_unproven(run_dir + os.sep + _TABLES_DIR, stem, source)
        for source, run_dir in runs.items()
    )
    by_source = {rows.sources[0]: rows for rows in unproven if rows}
    joined = _merge_rows(by_source.values())
    joined = [rows for rows in joined if _count_good(rows) == rows.nrows]
    proven = {source for rows in joined for source in rows.sources}
    others = {source: runs[source] for source in runs if source not in proven}
    if not others:
        return joined, {}
    read, errors = _read_each(_read_rows, others, name)
    careful = {source: rows._replace(sources=[source]) for source, rows in read.items()}
    by_source = {source: by_source[source] for source in proven} | careful
    return _merge_rows(by_source[source] for source in sorted(by_source)), errors


def _utf8(text: str) -> str:
    """Replace lone surrogates, which neither Arrow nor a terminal accepts."""
    return text.encode(errors="replace").decode()


def _plain_rows(rows: _Rows) -> list[dict[str, Any]]:
    """Return rows as plain values, without running code of whoever wrote them.

    Leaves out values in files of their own, objects of other than builtin types, and
    damaged values.
    """
    schema = _decode_header(rows.header)
    plain, end = [], 0
    for record in np.frombuffer(rows.records, schema.dtype).tolist():
        row: dict[str, Any] = {}
        for name, kind, value in zip(schema.columns, schema.kinds, record[1:]):
            with contextlib.suppress(Exception):  # a pickle may raise anything
                if not kind.code:
                    start, end = end, end + value
                    value = rows.texts[start:end].decode(errors="replace")
                if not kind.is_file:
                    row[_utf8(name)] = kind.show(value)
        plain.append(row)
    return plain


def _read_row(run_dir: str, table: str, **which: int) -> dict[str, Any] | None:
    """Read the first or the last row of a table; return None if there is none."""
    with contextlib.suppress(NotFoundError):
        for row in _plain_rows(_read_ends(run_dir, table, **which)[1]):
            return row
    return None


def _short_time(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return "" if math.isnan(seconds) else f"{seconds:.0f}s"


def _run_status(run_dir: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the status of a run, and its attempts."""
    history = _read_history(run_dir)
    while attempts := _attempts(history):
        if "status" in attempts[-1]:
            return attempts[-1]["status"], attempts
        if has_writer := _has_writer(run_dir):
            return "running", attempts
        history, last = _read_history(run_dir), history
        if history != last:  # it ended, or was continued, since the first look
            continue
        if has_writer is False and attempts[-1].get("boot") == _boot_id():
            return "dead", attempts
        tables_dir = os.path.join(run_dir, _TABLES_DIR)
        with os.scandir(tables_dir) as entries:
            files = [e.path for e in entries if e.name.endswith(_ROWS_SUFFIX)]
            # mode "w" may have removed them all
            newest = max(os.stat(path).st_mtime for path in files or [tables_dir])
        return f"silent {_short_time(time.time() - newest)}", attempts
    return "", []


def _summarize(run_dir: str) -> dict[str, Any]:
    """Summarize a run's last attempt; "seconds" is the time at which it ended."""
    status, attempts = _run_status(run_dir)
    last = attempts[-1] if attempts else {}
    git, job = last.get("git", {}), last.get("job", {})
    times = last.get("time"), _now() if status == "running" else last.get("ended")
    job_id = next((str(job[name]) for name in _JOB_IDS if name in job), "")
    commit = str(git.get("commit", ""))[:8] + ("+" if git.get("changed") else "")
    host, error = last.get("host", ""), last.get("error", "")
    values = status, *times, len(attempts), host, job_id, commit, error
    return dict(zip(_SUMMARY, values))


def _summarize_batch(
    runs: Mapping[int, str], params: str, last: Sequence[str]
) -> tuple[dict[int, dict[str, Any]], dict[int, Exception]]:
    """Return a row for each run, as far as it can be read, and its first error."""

    def read_params(run_dir: str) -> dict[str, Any]:
        row = _read_row(run_dir, params, first=1) or {}
        taken = "exp_id", *_SUMMARY
        return {f"{params}/{n}" if n in taken else n: v for n, v in row.items()}

    def read_last(table: str, run_dir: str) -> dict[str, Any]:
        row = _read_row(run_dir, table, last=1) or {}
        return {f"{table}/{name}": value for name, value in row.items()}

    reads: list[Callable[[str], dict[str, Any]]] = [_summarize, read_params]
    reads += [functools.partial(read_last, table) for table in last]
    summaries: dict[int, dict[str, Any]] = {}
    errors: dict[int, Exception] = {}
    for source, run_dir in runs.items():
        row: dict[str, Any] = {"status": ""}
        for read in reads:
            try:
                row |= read(run_dir)
            except Exception as err:  # the other tables may be in order
                errors.setdefault(source, err)
        summaries[source] = {
            _utf8(n): _utf8(v) if isinstance(v, str) else v for n, v in row.items()
        }
    return summaries, errors


class _Call(functools.partial[Any]):
    """A call that is made by unpickling it.

    So a worker that cannot import cox fails inside its task, and reports that. If the
    task itself were a function of cox, receiving it might kill or hang the worker.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.func, self.args


class CollectionReader:
    """Reads all runs in a directory; each of their tables becomes one frame.

    No file stays open and little memory is used per run, so tens of thousands are fine.

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
        """List the runs in ``directory``; their files are opened when needed.

        Args:
            directory: Directory of runs; anything else in it is ignored.
            log_warnings: Warn if tables of the same name have different schemas, and of
                directories without permission to read.
            mode: Mode for :meth:`get_store`; ``w`` is like ``a`` and erases nothing.
            exp_filter: Called with each exp_id; the run is included if it returns true.
            skip_errs: Leave out runs that cannot be read, with a warning, here and in
                every :meth:`df`.
            executor: Reads the runs, in threads or processes, or by dask or MPI.

        Raises:
            NotFoundError: There is no such directory, or it is itself a run.
        """
        _check_mode(mode)
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self._mode = "r" if mode == "r" else "a"
        self._executor = executor
        self._stores: dict[str, Store] = {}
        if not os.path.isdir(self.directory):
            raise NotFoundError(f"there is no directory {self.directory}")
        if _is_run(self.directory):
            raise NotFoundError(f"{self.directory} is a run; give its parent directory")
        listed = _list_runs(self.directory, warn=log_warnings)
        odd = {e for e in listed if e != _utf8(e)}
        if odd:
            _log.warning("left out, as its name is not UTF-8: %s", _shorten(odd))
        self.exp_ids = [
            e for e in listed if e not in odd and (exp_filter is None or exp_filter(e))
        ]
        self._skip_errs = skip_errs
        self._log_warnings = log_warnings

    @functools.cached_property
    def _headers(self) -> dict[str, dict[bytes, list[str]]]:
        """Ids of the runs by table and header, read at the first access."""
        known: dict[str, dict[bytes, list[str]]] = {}
        read = functools.partial(_read_each, _read_headers)
        for all_headers, errors in self._read_batches(read, self.exp_ids):
            for source, headers in all_headers.items():
                for table, header in headers.items():
                    by_header = known.setdefault(table, {})
                    by_header.setdefault(header, []).append(self.exp_ids[source])
            self._handle_errors(self.exp_ids, errors, self._skip_errs)
        for table, by_header in known.items():
            if self._log_warnings and len(by_header) > 1:
                kinds = "; ".join(
                    f"{_decode_header(header).columns} in {_shorten(exp_ids, 3)}"
                    for header, exp_ids in by_header.items()
                )
                _log.warning("table %r has different schemas: %s", table, kinds[:1000])
        return known

    def __repr__(self) -> str:
        names = ", ".join(self.tables) or "none"
        shown = f"{self.directory}, {len(self.exp_ids)} runs, tables: {names}"
        return _printable(f"<CollectionReader {shown}>", _MESSAGE_MAX)

    def __str__(self) -> str:
        schemas = self.schemas.items()
        return "\n".join(
            f"-- Table: {_printable(n)} --\n{s.keys()}" for n, s in schemas
        )

    def __enter__(self) -> CollectionReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def tables(self) -> list[str]:
        """Names of the runs' tables, sorted, as read at the first access."""
        return sorted(self._headers)

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """The schema of each table; if runs differ, that of the first."""
        headers = {name: next(iter(self._headers[name])) for name in self.tables}
        return {name: dict(_decode_header(h).types) for name, h in headers.items()}

    @property
    def stores(self) -> Mapping[str, Store]:
        """The runs as Stores by id, each opened at its first access."""
        return _Lookup(lambda: self.exp_ids, self.get_store)

    def close(self) -> None:
        """Close the stores that :meth:`get_store` has opened."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def get_store(self, exp_id: str) -> Store:
        """Return the run as a Store, in the mode of this reader.

        Raises:
            NotFoundError: There is no such run.
        """
        store = self._stores.get(exp_id)
        if store is None or store._handle.refusal == _CLOSED:
            if not _is_run(os.path.join(self.directory, exp_id)):
                raise NotFoundError(f"there is no run {exp_id!r} in {self.directory}")
            store = Store(self.directory, exp_id, mode=self._mode)
            self._stores[exp_id] = store
        return store

    def df(
        self,
        key: str,
        append_exp_id: bool = True,
        keep_serialized: Collection[str] = (),
        union_schemas: bool = False,
        exp_filter: Callable[[str], bool] | None = None,
        skip_errors: bool = False,
        ignore_index: bool = False,
        columns: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Read one table of every run, as it is now, into one frame.

        Args:
            key: Name of the table. A warning lists runs that have only other tables.
            append_exp_id: Add a last column ``exp_id``. One that was logged is
                replaced, with a warning.
            keep_serialized: OBJECT, PICKLE and PYTORCH_STATE columns to leave as the
                stored strings. All others are unpickled, which may run code of
                whoever wrote the runs.
            union_schemas: Include the columns of all runs, NaN where a run lacks one,
                instead of raising.
            exp_filter: Called with each exp_id; the run is included if it returns true.
            skip_errors: Leave out runs that cannot be read, with a warning.
            ignore_index: Make the index 0 to n-1.
            columns: Names of the columns to include, or one name; None for all.

        Returns:
            Frame with the rows of all runs, in order of exp_id. The index starts from
            0 in each run, so its values repeat.

        Raises:
            NotFoundError: No run has this table.
            SchemaError: Columns differ between runs, or ``columns`` or
                ``keep_serialized`` names a column that no run has.
            CorruptError: A run cannot be read.
            CoxError: An object in a run cannot be decoded.
        """
        exp_ids = [e for e in self.exp_ids if exp_filter is None or exp_filter(e)]
        keep_serialized = _as_set(keep_serialized)
        columns = None if columns is None else _as_set(columns)
        skip_errors = skip_errors or self._skip_errs
        groups = self._read_groups(key, exp_ids, skip_errors)
        names = {
            exp_ids[rows.sources[0]]: {*_decode_header(rows.header).columns}
            for rows in groups
        }
        known = set().union(*names.values())
        # with a misspelt name in keep_serialized, the column would be unpickled
        if unknown := {*keep_serialized, *(columns or ())} - known:
            raise SchemaError(
                f"table {key!r} has no column {_shorten(sorted(map(repr, unknown)))}. "
                f"Columns: {_shorten(sorted(known))}"
            )
        if not union_schemas:
            self._check_columns(key, names, known if columns is None else columns)
        args = exp_ids, keep_serialized, columns
        frames: list[pd.DataFrame] = []
        errors: dict[int, Exception] = {}
        while groups:
            rows = groups.pop(0)
            try:
                frames.append(self._decode_frame(rows, *args))
            except CoxError as err:  # of one run, which halving finds
                if len(rows.sources) > 1:
                    groups[:0] = _halve_rows(rows)
                    continue
                errors[rows.sources[0]] = err
                none = _Rows(rows.header, [0], [0])  # there must be a frame
                frames.append(self._decode_frame(none, *args))
        self._handle_errors(exp_ids, errors, skip_errors)
        joined = _join(frames) if len(frames) > 1 else frames[0]
        if append_exp_id:
            _append_exp_id(joined, exp_ids, key)
        if ignore_index:
            joined.index = pd.RangeIndex(len(joined))
        else:
            joined.index = pd.Index(_indexes(np.bincount(joined.index).tolist()))
        return joined

    def runs(
        self, params: str = "metadata", last: Collection[str] = ()
    ) -> pd.DataFrame:
        """Return the status, parameters and last rows of every run.

        Args:
            params: Table whose first row has a run's parameters.
            last: Tables whose last row to include, as columns ``table/column``. No
                other row is read.

        Returns:
            Frame with a row per run, index exp_id. Columns ``status``, ``started`` and
            ``seconds`` (of the last attempt), ``attempts``, ``host``, ``job``,
            ``commit`` (``+``: with uncommitted changes), ``error``; then parameters and
            last rows, except objects that cannot be decoded without running code.

            The status is ``done``, ``failed`` or ``interrupted`` (by an exception),
            ``ended`` (it did not say how), ``running``, ``dead`` (killed), ``silent
            3h`` (killed, or running where the lock is not visible from here), or ""
            without a history. What cannot be read is left empty, with a warning.
        """
        last = [last] if isinstance(last, str) else list(last)
        rows: list[dict[str, Any]] = []
        batches = self._read_batches(_summarize_batch, self.exp_ids, params, last)
        for summaries, errors in batches:
            rows += summaries.values()
            for source, err in errors.items():
                _log.warning("run %s: %s", self.exp_ids[source], err)
        columns = dict.fromkeys(itertools.chain(_SUMMARY, *rows))
        ids = pd.Index(self.exp_ids, name="exp_id", dtype=_text_dtype())
        frame: pd.DataFrame = pd.DataFrame(rows, ids, [*columns])
        name: Any
        for name in "started", "seconds":
            times = pd.to_datetime(frame[name], "coerce", utc=True, format="ISO8601")
            # anyone may have written them: drop those that 64 bits of ns cannot hold
            frame[name] = times.where(times.dt.year.between(1970, 2200))
        # "seconds" still holds the end time, see _summarize
        frame["seconds"] = (frame["seconds"] - frame["started"]).dt.total_seconds()
        for name in frame.select_dtypes("float"):  # or ints that some runs lack
            values = [row.get(name, math.nan) for row in rows]
            if any(isinstance(v, int) and abs(v) > _EXACT_MAX for v in values):
                frame[name] = pd.Series(values, frame.index, dtype=object)
        return frame

    def _read_groups(self, key: str, exp_ids: list[str], skip: bool) -> list[_Rows]:
        """Read a table of every run, joined by header; warn which runs lack it."""
        parts: list[_Rows] = []
        lacking: list[str] = []
        for rows, errors in self._read_batches(_read_rows_batch, exp_ids, key):
            parts += rows
            for i, err in errors.items():
                if not isinstance(err, NotFoundError):
                    self._handle_errors(exp_ids, {i: err}, skip)
                elif _list_tables(os.path.join(self.directory, exp_ids[i])) != []:
                    lacking.append(exp_ids[i])  # a run with no table has only begun
        if not parts:
            raise NotFoundError(
                f"no run of {len(exp_ids)} in {self.directory} has a table {key!r}. "
                f"Tables: {_shorten(self.tables)}"
            )
        if lacking:
            count = f"{len(lacking)} of {len(exp_ids)} runs in {self.directory}"
            _log.warning("%s have no table %r: %s", count, key, _shorten(lacking))
        return _merge_rows(parts)

    def _decode_frame(
        self,
        rows: _Rows,
        exp_ids: list[str],
        keep_serialized: Collection[str],
        columns: Collection[str] | None,
    ) -> pd.DataFrame:
        """Return rows as a frame with objects unpickled; the index has the sources."""
        try:
            frame = _frame(rows.header, [rows], rows.nrows, columns)
        except CorruptError as err:
            path = os.path.join(self.directory, exp_ids[rows.sources[0]])
            raise CorruptError(err.message, path) from None
        frame.index = pd.Index(np.repeat(rows.sources, rows.counts))
        schema = _decode_header(rows.header)
        for name, load in zip(schema.columns, (kind.load for kind in schema.kinds)):
            if load is None or name in keep_serialized or name not in frame:
                continue
            dirs = {
                source: os.path.join(self.directory, exp_ids[source], _OBJECTS_DIR)
                for source in rows.sources
            }
            sources = frame.index.tolist()
            decoded = np.empty(len(frame), dtype=object)
            for i, (source, text) in enumerate(zip(sources, frame[name])):
                try:
                    decoded[i] = load(text, dirs[source])
                except Exception as err:
                    raise _decoding_error(exp_ids[source], name, err) from err
            frame[name] = pd.Series(decoded, frame.index, dtype=object)
        return frame

    def _read_batches(
        self, read: Callable[..., Any], exp_ids: list[str], *args: Any
    ) -> Iterator[Any]:
        """Yield what ``read`` returns for batches of runs, in order."""
        parent = os.path.join(self.directory, "")
        runs = [(source, parent + exp_id) for source, exp_id in enumerate(exp_ids)]
        count = -(-len(runs) // _BATCH_SIZE) or 1
        if self._executor:  # a few batches per worker, as some workers may be slower
            workers = getattr(self._executor, "_max_workers", 16)
            turns = max(1, min(4, len(runs) // (_BATCH_MIN * workers)))
            count = max(count, min(len(runs), turns * workers))
        ends = [len(runs) * i // count for i in range(count + 1)]
        batches = [dict(runs[a:b]) for a, b in itertools.pairwise(ends)]
        if self._executor:
            calls = [pickle.dumps(_Call(read, batch, *args)) for batch in batches]
            # dask runs equal tasks only once; loads() ignores what follows a pickle
            calls = [call + os.urandom(8) for call in calls]
            results = self._executor.map(pickle.loads, calls)
        else:
            results = (read(batch, *args) for batch in batches)
        # stderr may be None, or an object without isatty()
        is_terminal = getattr(sys.stderr, "isatty", bool)()
        if is_terminal and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            shown: dict[str, Any] = {"unit": " runs", "unit_scale": len(runs) // count}
            results = tqdm(results, total=count, delay=1, leave=False, **shown)
        try:
            yield from results
        except (ImportError, AttributeError, RuntimeError) as err:
            if self._executor is None or isinstance(err, CoxError):
                raise
            raise CoxError(
                f"the workers of {type(self._executor).__name__} cannot run cox: "
                f"{_printable(err)}. They must be able to import it; with dask, call "
                "client.upload_file('cox.py') first"
            ) from err

    def _handle_errors(
        self, exp_ids: list[str], errors: dict[int, Exception], skip: bool
    ) -> None:
        """Raise the first error, or log them all."""
        for source, err in errors.items():
            if not skip:
                raise err
            _log.warning("skipped run %s: %s", exp_ids[source], err)

    def _check_columns(
        self, key: str, names: Mapping[str, set[str]], wanted: set[str]
    ) -> None:
        """Raise if wanted columns differ between runs; ``names`` has them by exp_id."""
        first, *others = names
        for other in others:
            if differing := (names[first] ^ names[other]) & wanted:
                raise SchemaError(
                    f"table {key!r} differs between {first} and {other} in "
                    f"{self.directory}, in columns "
                    f"{_shorten(sorted(map(repr, differing)))}; take all columns with "
                    "union_schemas=True, or leave runs out with exp_filter"
                )


def _halve_rows(rows: _Rows) -> list[_Rows]:
    """Split rows of several sources in two."""
    middle = len(rows.sources) // 2
    parts, end = [], 0
    for part in slice(middle), slice(middle, None):
        first, end = end, end + sum(rows.counts[part])
        half = _slice_rows(rows, first, end)
        parts.append(
            half._replace(sources=rows.sources[part], counts=rows.counts[part])
        )
    return parts


def _append_exp_id(frame: pd.DataFrame, exp_ids: list[str], table: str) -> None:
    """Add the runs' ids as the last column; the index has the numbers of the runs."""
    if "exp_id" in frame:
        _log.warning("column 'exp_id' of table %r is replaced by the runs' ids", table)
    ids = pd.Series(exp_ids, dtype=_text_dtype())
    with warnings.catch_warnings():
        # of more than 100 columns, each of which is a separate array here
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        frame["exp_id"] = ids.array.take(frame.index.to_numpy())


def _join(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join frames of different columns, in the order of their indexes."""
    _keep_large_ints(frames)
    names: Any = [*dict.fromkeys(itertools.chain(*frames))]
    numbers = {name: number for number, name in enumerate(names)}
    for frame in frames:  # concat() refuses names with lone surrogates
        frame.columns = pd.Index([numbers[name] for name in frame])
    joined: pd.DataFrame = pd.concat(frames).sort_index(kind="stable")
    _name_columns(joined, [names[number] for number in joined])
    return joined


def _keep_large_ints(frames: Collection[pd.DataFrame]) -> None:
    """Convert large ints to objects where joining frames would make them floats."""
    for name in dict.fromkeys(itertools.chain(*frames)):
        having = [frame for frame in frames if name in frame]
        if len(having) == len(frames) and len({f[name].dtype for f in frames}) == 1:
            continue
        for frame in having:
            values = frame[name]
            if values.dtype.kind in "iu" and len(values):
                if max(-int(values.min()), int(values.max())) > _EXACT_MAX:
                    frame[name] = values.astype(object)


def _decoding_error(exp_id: str, name: str, err: Exception) -> CoxError:
    return CoxError(
        f"column {name!r:.200} of run {exp_id} cannot be decoded; install and import "
        f"what its objects need, or pass keep_serialized=[{name!r:.200}] to get the "
        f"stored strings. The cause: {_one_line(err)}"
    )


###############################################################################
# TensorBoard view
###############################################################################
# TensorBoard is given a view: a temporary directory with a directory per run, which
# has links to the run's event files, and copies of its PROJECTOR files and two files
# of ours for the HPARAMS tab. Nothing in the user's directory is written or executed,
# and links in it are not followed: they may lead to files not meant to be served.
# TensorBoard knows a run by its name, so a name once shown stays: a run that starts
# later is named by what differs then. Starting `cox tb` again names all runs alike.

_REFRESH_INTERVAL_S: Final = 1.0
_READ_AT_ONCE: Final = 500  # runs; the newest are shown before any others are read
_MTIME_RESOLUTION_NS: Final = 2 * 10**9  # FAT's, the coarsest there is
_RUN_NAME_MAX: Final = 255  # bytes, the limit of file names
_UNSAFE_IN_NAME: Final = re.compile("[/\x00-\x1f\x7f\ud800-\udfff]")
# Sorts before the run's files, as TensorBoard's Python loader never goes back to one.
_HPARAMS_FILE: Final = "events.out.tfevents.0000000000.hparams"
_END_FILE: Final = "events.out.tfevents.0000000000.hparams.end"
_OUTCOMES: Final = {"done": 1, "failed": 2, "interrupted": 2, "dead": 2}  # for HPARAMS
_PROJECTOR_CONFIG: Final = "projector_config.pbtxt"
_PROJECTOR_SUFFIXES: Final = (_PROJECTOR_CONFIG, ".tsv", ".png", ".bytes")  # copied
_COPIES_MAX: Final = 256 << 20  # bytes, of all runs
_FILTERED: Final = "--filter-param"
_HAS_LINKS: Final = "with links among its event files, which are not followed"


def _say(line: str, command: str = "tb") -> None:
    text = _printable(f"{command}: {line}", 2000)
    if sys.stderr:  # print() takes None for stdout
        print("cox", text, file=sys.stderr, flush=True)


def _stamp(path: str) -> tuple[int, ...]:
    """Return mtime and size of a file or directory; () for others: a fifo may block."""
    with contextlib.suppress(OSError):
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            return info.st_mtime_ns, info.st_size
    return ()


class _NameFormatter(string.Formatter):
    """Takes a whole field as a parameter's name, with no access to its attributes."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        value = kwargs[field_name]
        is_list = isinstance(value, (list, tuple))
        return ".".join(map(str, value)) if is_list else value, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if re.search(r"\d{4}", format_spec):  # a parameter may give the width
            raise ValueError("a width or precision of over 999")
        return str(super().format_field(value, format_spec))


def _run_name(formatted: str, exp_id: str) -> str:
    """Join both to a file name; cut ``formatted`` if they are too long."""
    formatted, exp_id = (_UNSAFE_IN_NAME.sub("_", part) for part in (formatted, exp_id))
    room = max(0, _RUN_NAME_MAX - len(exp_id.encode()) - 1)
    formatted = formatted.encode()[:room].decode(errors="ignore")
    return f"{formatted}-{exp_id}" if formatted else exp_id


@dataclasses.dataclass(slots=True)
class _ViewedRun:
    exp_id: str
    path: str
    params: dict[str, Any] | None = None  # None until the metadata table has a row
    params_stamp: tuple[int, ...] = (-1,)  # of that table's file
    left_out: str = ""  # the reason; "" if it may be shown
    name: str = ""  # in the view; "" while it is not shown
    has_links: bool = False
    status: str = ""
    history_stamp: tuple[int, ...] = ()  # of its history when it had this status
    outcome: int = 0  # as reported to HPARAMS
    back_at: float = 0.0  # monotonic time until which it stays out of the view
    # by path: stamps of its event directories from when their files were linked
    linked: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def _elsewhere(directory: str) -> str:
    """Say where runs may be, if there are none in a directory."""
    parent = os.path.dirname(directory)
    for above in parent, os.path.dirname(parent):
        if _is_run(above):
            return f"it is part of a run: try {above}"
    with os.scandir(directory) as entries:
        some = itertools.islice(entries, 1000)
        paths = [e.path for e in some if e.is_dir() and os.access(e, os.R_OK)]
    below = [path for path in paths if _list_runs(path)]
    return f"there are in {_shorten(below, 3)}: try one of these" if below else ""


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
        self.differing: list[str] = []  # parameters that the shown runs do not share
        self.runs: dict[str, _ViewedRun] = {}  # by exp_id, the newest first
        self.room = _COPIES_MAX
        self.reload_s = 5.0  # how often TensorBoard looks at the view
        self.stopped = threading.Event()
        self.is_begun = threading.Event()  # the newest runs are shown

    def check_options(self) -> None:
        """Raise if the options fit none of the runs."""
        known = [run for run in self.runs.values() if run.params is not None]
        reasons = [run.left_out for run in known]
        misfits = [reason for reason in reasons if reason != _FILTERED]
        if misfits and all(reasons):
            names = dict.fromkeys(itertools.chain(*(run.params or () for run in known)))
            has = f"table {self.table!r} has: {_shorten(names)}"
            raise CoxError(f"{misfits[0]}; {has}")

    def reasons(self) -> collections.Counter[str]:
        """Count the runs that are not shown, or only in part, by the reason."""
        runs = self.runs.values()
        hidden = (run for run in runs if not run.name and not run.has_links)
        reasons = collections.Counter(run.left_out or "no events yet" for run in hidden)
        reasons.update(_HAS_LINKS for run in runs if run.has_links)
        return reasons

    def summary(self) -> str:
        """Say in one line how many runs are shown, and why the others are not."""
        if not self.runs:
            where = _elsewhere(self.directory) or "they will show once they start"
            return f"no runs in {self.directory} yet; {where}"
        shown = sum(bool(run.name) for run in self.runs.values())
        line = f"showing {shown} of {len(self.runs)} runs in {self.directory}"
        why = ", ".join(f"{n} ({reason})" for reason, n in self.reasons().items())
        return f"{line}; left out: {why}" if why else line

    def watch(self) -> None:
        """Refresh until stopped; print each new problem once."""
        said: set[str] = set()
        while not self.stopped.is_set():
            news, line = set[str](), ""
            try:
                if not self.refresh():
                    news, line = {"", *self.reasons()}, self.summary()
            except Exception as err:  # no run may keep the others from being shown
                news, line = {str(err)}, f"cannot look for runs: {err}"
            if news - said and not self.stopped.is_set():
                _say(line)
            said |= news
            self.is_begun.set()
            self.stopped.wait(_REFRESH_INTERVAL_S)

    def refresh(self) -> bool:
        """Update the view: 3 or 4 ``stat`` per unchanged run; True if more remain."""
        is_more = self.read()
        for run in self.runs.values():
            if self.stopped.is_set():
                return False
            if not run.left_out and time.monotonic() >= run.back_at:
                try:
                    self._link(run)
                except Exception as err:  # no room for the view, say
                    self._hide(run)
                    run.left_out = str(getattr(err, "strerror", None) or err)[:200]
            if run.name and run.params and not is_more:
                with contextlib.suppress(Exception):  # a damaged history
                    self._tell_end(run)
        return is_more

    def read(self) -> bool:
        """Find runs and their parameters, newest first; return True if more remain."""
        listed = [e for e in _list_runs(self.directory) if self.only in ("", e)]
        for exp_id in self.runs.keys() - set(listed):
            self._hide(self.runs.pop(exp_id))
        changed = []
        for exp_id in listed:
            path = os.path.join(self.directory, exp_id)
            run = self.runs.get(exp_id, _ViewedRun(exp_id, path))
            stamp = _stamp(_table_path(path, self.table) + _ROWS_SUFFIX)
            if not stamp and run.params is None:
                stamp = _stamp(os.path.join(path, _STORE_NAME))
            if stamp != run.params_stamp and (stamp or run.params is None):
                changed.append((stamp, exp_id, run))
        changed.sort(reverse=True)
        count = max(_READ_AT_ONCE, len(self.runs))  # twice as many per pass
        for stamp, exp_id, run in changed[:count]:
            self.runs[exp_id], run.params_stamp = run, stamp
            self._find_params(run)
        if changed:
            runs = reversed(self.runs.values())
            shown = [run.params for run in runs if run.params and not run.left_out]
            columns = dict.fromkeys(itertools.chain(*shown))
            texts = {c: {str(params.get(c)) for params in shown} for c in columns}
            self.differing = [column for column, seen in texts.items() if len(seen) > 1]
        return len(changed) > count

    def _hide(self, run: _ViewedRun) -> None:
        if run.name:
            shutil.rmtree(os.path.join(self.view_dir, run.name), ignore_errors=True)
            run.name, run.linked, run.outcome, run.history_stamp = "", {}, 0, ()

    def _find_params(self, run: _ViewedRun) -> None:
        """Read the run's parameters, after their file has changed."""
        known = run.params
        try:
            if run.params_stamp:
                run.params = _read_row(run.path, self.table, first=1)
        except Exception as err:  # a damaged run may raise anything
            _say(f"cannot read the metadata of run {run.exp_id!r}: {err}")
        run.left_out = self._why_left_out(run.params)
        if str(run.params) != str(known):
            self._hide(run)  # it was shown without its parameters, or has begun afresh
            if known is not None:
                run.back_at = time.monotonic() + 3 * self.reload_s

    def _why_left_out(self, params: dict[str, Any] | None) -> str:
        known = params or {}
        try:
            if not all(regex.match(str(known[name])) for name, regex in self.filters):
                return _FILTERED
            self._format(known, "")
        except KeyError as err:
            if params is None:
                return f"no row in table {self.table!r}"
            return f"no parameter {err}"
        except (ValueError, TypeError, OverflowError) as err:
            return f"--format-str {self.format_str!r}: {err}"
        return ""

    def _format(self, params: dict[str, Any], exp_id: str) -> str:
        if self.format_str is not None:
            return _NameFormatter().vformat(self.format_str, (), params)
        texts = {c: str(params[c]) for c in self.differing if c in params}
        return ",".join(  # [64,32]
            f"{column}={text.replace(', ', ',') if text[:1] in '[(' else text}"
            for column, text in texts.items()
            if text != exp_id
        )

    def _link(self, run: _ViewedRun) -> None:
        """Show the run once it has event files; link those that are new."""
        if run.linked and all(_stamp(p) == then for p, then in run.linked.items()):
            return
        top = os.path.join(run.path, _TENSORBOARD_DIR)
        run.has_links, run.linked = os.path.islink(top), {}
        configs = []
        for folder, folders, files in () if run.has_links else os.walk(top):
            # In the order of their names: TensorBoard drops points of a file that
            # appears after one that sorts behind it.
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if name == _PROJECTOR_CONFIG:
                    configs.append(path)
                elif _stamp(path):
                    self._place(run, path)
            names = folders + files
            run.has_links |= any(os.path.islink(os.path.join(folder, n)) for n in names)
            # A file created right after the scan may leave the mtime unchanged.
            stamp = _stamp(folder)
            is_settled = stamp and time.time_ns() - stamp[0] > _MTIME_RESOLUTION_NS
            run.linked[folder] = stamp if is_settled else ()
        for path in configs:  # last, as they name the others
            self._place(run, path)

    def _place(self, run: _ViewedRun, path: str) -> None:
        """Link a file, or copy it for the PROJECTOR tab, which follows no links."""
        if not run.name:
            self._add(run)
        name = os.path.relpath(path, os.path.join(run.path, _TENSORBOARD_DIR))
        target = os.path.join(self.view_dir, run.name, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not path.endswith(_PROJECTOR_SUFFIXES):
            with contextlib.suppress(FileExistsError):
                os.symlink(path, target)
            return
        with contextlib.suppress(OSError, CorruptError):
            size = os.lstat(path).st_size
            if size <= self.room and _stamp(target)[1:] != (size,):
                self.room -= size
                with open(target, "wb") as file:
                    file.write(_read_file(path))

    def _tell_end(self, run: _ViewedRun) -> None:
        """Tell HPARAMS how a run ended, which it takes only once.

        A run that goes on later leaves the view until TensorBoard has forgotten it.
        """
        stamp = _stamp(os.path.join(run.path, _TABLES_DIR, _HISTORY_NAME))
        if not stamp or (stamp == run.history_stamp and run.status != "running"):
            return
        run.history_stamp, run.status = stamp, _run_status(run.path)[0]
        outcome = _OUTCOMES.get(run.status, 0)
        if run.outcome not in (0, outcome):
            self._hide(run)
            run.back_at = time.monotonic() + 3 * self.reload_s
        elif outcome != run.outcome:
            run.outcome, ended = outcome, stamp[0] / 1e9
            end = _pb_int(1, outcome) + _pb_double(2, ended)
            self._write_event(run, _END_FILE, ended, _encode_session("end", 4, end))

    def _add(self, run: _ViewedRun) -> None:
        name = _run_name(self._format(run.params or {}, run.exp_id), run.exp_id)
        while os.path.lexists(os.path.join(self.view_dir, name)):
            name = f"_{name}"  # "a-b" may be run "b" with parameters "a", or run "a-b"
        os.mkdir(os.path.join(self.view_dir, name))
        run.name = name
        if run.params:
            start = run.params_stamp[0] / 1e9
            values = _encode_hparams(run.params, name, start)
            self._write_event(run, _HPARAMS_FILE, start, values)

    def _write_event(
        self, run: _ViewedRun, name: str, wall_time: float, values: bytes
    ) -> None:
        event = _encode_event(wall_time, 0, values)
        with open(os.path.join(self.view_dir, run.name, name), "wb") as file:
            file.write(_encode_file_version(wall_time) + _encode_tfrecord(event))


class _ArgumentParser(argparse.ArgumentParser):
    """Raises instead of printing the usage, so that an error is one line."""

    def error(self, message: str) -> NoReturn:
        raise CoxError(f"{message} (see --help)")


def _command_parser(command: str, *runs: str) -> _ArgumentParser:
    """Return a parser with the arguments that commands have in common."""
    parser = _ArgumentParser(f"cox {command}", description=_COMMANDS[command][1])
    for run in runs:
        parser.add_argument(run, help="start of an exp_id, or a run's directory")
    if runs:
        parser.add_argument("-d", "--dir", default=".", help="directory of the runs")
    table = "table of the parameters"
    parser.add_argument("--metadata-table", default="metadata", help=table)
    return parser


def _parse_tb_args(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse and check the options; also return those that are not ours."""
    parser = _command_parser("tb")
    parser.epilog = "All other options go to TensorBoard: --host, --bind_all, ..."
    parser.allow_abbrev = False
    add = parser.add_argument
    text = "directory of the runs, or a single run"
    add("--logdir", type=os.path.expanduser, required=True, help=text)
    add("--port", type=int, default=6006, help="default 6006; 0 takes a free one")
    add("--format-str", help="run names, as 'lr-{lr:.1e}'; default: what differs")
    text, pair = "REGEX matches the value's start; repeatable", ("NAME", "REGEX")
    add("--filter-param", nargs=2, action="append", default=[], metavar=pair, help=text)
    options, rest = parser.parse_known_args(argv)
    try:
        options.filter_param = [(n, re.compile(r)) for n, r in options.filter_param]
        list(_NameFormatter().parse(options.format_str or ""))
    except re.error as err:
        parser.error(f"--filter-param {err.pattern!r}: {err}")
    except ValueError as err:
        parser.error(f"--format-str {options.format_str!r}: {err}")
    if not 0 <= options.port < 2**16:
        parser.error(f"--port {options.port} is not between 0 and 65535")
    if not os.path.isdir(options.logdir):
        raise CoxError(f"no such directory: {options.logdir}")
    return options, rest


def _configure_tensorboard(ours: Sequence[str], rest: Sequence[str]) -> Any:
    """Set up TensorBoard, with its fast loader if that is installed.

    Of an option given twice the last one counts, so the user's ``rest`` wins.
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
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            board.configure(["", f"--load_fast={load_fast}", *ours, *rest])
    except base_plugin.FlagsError as err:
        raise CoxError(str(err)) from err
    except SystemExit as err:
        if not err.code:  # --helpfull
            raise
        message = stderr.getvalue().strip().rpartition("error: ")[2]
        raise CoxError(f"TensorBoard refuses {' '.join(rest)}: {message}") from err
    flags = board.flags
    host = "" if flags.bind_all else flags.host or "localhost"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:  # TensorBoard would print the error twice, without a remedy
        socket.create_server((host, flags.port), family=family).close()
    except OSError as err:
        what = f"cannot listen on {host or '*'}:{flags.port}: {err}"
        raise CoxError(f"{what}; try --port 0 or another --host") from err
    return board


def _tb(argv: list[str]) -> int:
    options, rest = _parse_tb_args(argv)
    # Named before it is created, so that a signal at any moment finds what to remove.
    # In memory if possible: on a disk, 5,000 runs took 4 s to link, and 4 s to remove.
    is_in_memory = "TMPDIR" not in os.environ and os.access("/dev/shm", os.W_OK)
    parent = "/dev/shm" if is_in_memory else tempfile.gettempdir()
    view_dir = os.path.join(parent, f"cox-tb-{uuid.uuid4().hex}")
    ours = f"--logdir={view_dir}", f"--port={options.port}", "--reload_multifile=true"
    title = f"--window_title=cox: {options.logdir}"
    board = _configure_tensorboard([*ours, title], rest)
    # it would let a second SIGTERM kill us before the view is removed
    board._install_signal_handler = lambda *_: None
    # it writes a file of an easily guessed name into a directory open to all users
    board._register_info = lambda *_: None
    view = _View(view_dir, options)
    view.reload_s = board.flags.reload_interval
    watcher = threading.Thread(target=view.watch, daemon=True)
    signals = [getattr(signal, s) for s in ("SIGTERM", "SIGHUP") if hasattr(signal, s)]

    def ignore_signals() -> None:
        for signum in (signal.SIGINT, *signals):
            signal.signal(signum, signal.SIG_IGN)

    def stop(number: int, frame: object) -> None:
        ignore_signals()
        sys.exit(128 + number)

    for signum in signals:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as under nohup
            signal.signal(signum, stop)
    try:
        os.mkdir(view_dir, 0o700)
        while (options.format_str or options.filter_param) and view.read():
            pass  # reads all runs: perhaps none has such a parameter
        view.check_options()
        watcher.start()
        view.is_begun.wait()  # or TensorBoard would find no run until it looks again
        return 1 if board.main() else 0
    finally:
        ignore_signals()  # another one must not stop the removal
        view.stopped.set()
        if watcher.is_alive():
            watcher.join(5)  # not forever: it may hang with the disk
        shutil.rmtree(view_dir, ignore_errors=True)


###############################################################################
# Commands
###############################################################################
# Each command parses its arguments, asks the reader, and prints. Names and values may
# come from strangers, so characters that are not printable are shown as `?`.

_TAIL_INTERVAL_S: Final = 0.5


def _find_run(run: str, directory: str) -> str:
    """Return the path of a run, given its path or the start of its id."""
    directory = os.path.expanduser(directory)  # no shell does, in --dir=~/runs
    for path in os.path.join(directory, run), run:
        if _is_run(path):
            return os.path.abspath(path)
    exp_ids = [exp_id for exp_id in _list_runs(directory) if exp_id.startswith(run)]
    if len(exp_ids) != 1:
        found = _shorten(exp_ids)
        raise CoxError(f"no single run in {directory} begins with {run!r}: {found}")
    return os.path.join(os.path.abspath(directory), exp_ids[0])


def _print_table(
    command: str,
    columns: Mapping[str, Iterable[Any]],
    known: Sequence[str] = (),
    width: int = 0,
) -> list[str]:
    """Print the columns that the terminal has room for; say which are left out.

    Returns their names, which are omitted if they are those ``known``. Numbers are
    aligned right; ``width`` is the minimum.
    """
    room, lines, shown, left_out = shutil.get_terminal_size().columns, [], [], []
    limit = max(12, room // 4)
    for name, values in columns.items():
        values = ["" if v is None or v != v else v for v in values]
        is_text = any(isinstance(v, str) and v for v in values)
        texts = (  # ints are floats in a column that another run lacks
            f"{v:.{15 if v.is_integer() else 4}g}" if isinstance(v, float) else v
            for v in values
        )
        # other commands ask for the name of a run, so it gets more room
        most = 2 * limit if name == "run" else limit
        cells = [_printable(text, most) for text in (name, *texts)]
        size = max(width, *map(len, cells))
        if size > room:
            left_out.append(name)
            continue
        room -= size + 2
        shown.append(name)
        lines.append([c.ljust(size) if is_text else c.rjust(size) for c in cells])
    for line in itertools.islice(zip(*lines), shown == known, None):
        print("  ".join(line).rstrip())
    if left_out and shown != known:
        _say(f"no room for {_shorten(left_out)}", command)
    return shown


def _print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if value == {}:
            continue
        if isinstance(value, dict):
            print(indent + _printable(name))
            _print_facts(value, indent + "  ")
            continue
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        for line in text.splitlines() or [""]:
            print(f"{indent}{_printable(name):10}  {_printable(line, 1000)}")
            name = ""


def _read_runs(directory: str, params: str) -> tuple[str, pd.DataFrame]:
    """Return the directory of the runs, and what `cox ls` shows, newest first."""
    only = ""
    if _is_run(directory):
        directory, only = os.path.split(os.path.abspath(directory))
    reader = CollectionReader(
        directory, False, exp_filter=lambda e: only in ("", e), skip_errs=True
    )
    last = [table for table in reader.tables if table != params]
    frame = reader.runs(params, last).sort_values("started", ascending=False)
    names = [str(name) for name in frame]
    short = {c: c[len(t) + 1 :] for t in last for c in names if c.startswith(f"{t}/")}
    # train/loss shows as loss where that is unambiguous
    uses = collections.Counter(["exp_id", *frame, *short.values()])
    short = {column: name for column, name in short.items() if uses[name] == 1}
    return directory, frame.rename(columns=short)


def _print_runs(frame: pd.DataFrame, is_chosen: bool) -> None:
    """Print the chosen columns or, by default, those that tell the runs apart."""
    uuid_end = re.compile("(?<=^[0-9a-f]{8})-[-0-9a-f]{27}$")
    columns: dict[str, Iterable[Any]] = {}
    columns["run"] = [uuid_end.sub("", exp_id) for exp_id in frame.index]
    name: Any
    for name, values in frame.items():
        seen = set(map(str, values))
        is_shown = len(seen) > 1 or (len(frame) == 1 and seen != {""})
        is_shown &= name not in ("attempts", "host", "job", "commit")
        if name == "started":
            ages = pd.to_datetime(time.time(), unit="s", utc=True) - values
            columns[name] = map(_short_time, ages.dt.total_seconds())
        elif name == "seconds":
            columns["took"] = map(_short_time, values)
        elif is_chosen or is_shown or name == "status":
            columns[f"({name})" if name in ("run", "took") else str(name)] = values
    _print_table("ls", columns)


def _ls(argv: list[str]) -> int:
    parser = _command_parser("ls")
    add = parser.add_argument
    add("directory", nargs="?", default=".", help="directory of runs, or a run")
    queries = """pandas query: 'lr < 0.2', 'started > "2026-11-24 00:00Z"'"""
    add("-w", "--where", default="", metavar="QUERY", help=queries)
    add("-s", "--sort", default="", metavar="COLUMN", help="-s -loss is descending")
    add("-c", "--columns", default="", metavar="A,B", help="columns to show")
    add("-n", "--limit", type=int, help="most runs to show; default: 50 on a terminal")
    add("-q", "--quiet", action="store_true", help="paths only, quoted for xargs")
    add("--csv", action="store_true", help="all columns, with full values")
    add("--json", action="store_true", help="the same, an object per line")
    for name in {"-s", "--sort"} & {*argv[:-1]}:  # argparse takes -loss for an option
        i = argv.index(name)
        argv[i : i + 2] = [f"-s{argv[i + 1]}"]
    options = parser.parse_args(argv)
    directory, frame = _read_runs(options.directory, options.metadata_table)
    if frame.empty and (where := _elsewhere(os.path.abspath(directory))):
        _say(f"no runs in {directory}; {where}", "ls")
    try:
        if options.where:
            frame = frame.query(options.where, engine="python")
        if by := options.sort.removeprefix("-"):
            frame = frame.sort_values(by, ascending=by == options.sort, kind="stable")
        chosen = [name for name in options.columns.split(",") if name != "exp_id"]
        shown = frame[chosen] if options.columns else frame
    except Exception as err:  # an expression may raise anything
        names = [f"{n} (took)" if n == "seconds" else str(n) for n in frame]
        columns = ", ".join(("exp_id (run)", *names))
        raise CoxError(f"{err!r}; columns: {columns}") from err
    is_long = options.limit is None and sys.stdout.isatty()
    shown = shown.iloc[: 50 if is_long else options.limit]
    if options.quiet or options.csv or options.json:
        _export_runs(shown, directory, options)
    else:
        _print_runs(shown, bool(options.columns))
        words = (status.split(" ")[0] or "unknown" for status in frame["status"])
        counts = collections.Counter(words).most_common()
        text = ", ".join(f"{count} {word}" for word, count in counts)
        runs = "1 run" if len(frame) == 1 else f"{len(frame)} runs"
        print(_printable(f"{runs}: {text}" if text else runs))
    if len(shown) < len(frame):
        _say(f"{len(shown)} of {len(frame)} runs are shown; see -n", "ls")
    return 0


def _json_line(fields: Mapping[Any, Any]) -> str:
    plain = {}
    for name, value in fields.items():
        try:
            json.dumps(value, default=str, allow_nan=False)
        except (TypeError, ValueError):  # such as a tuple as a key, or NaN in a list
            value = str(value)
        plain[name] = value
    return json.dumps(plain, default=str)


def _export_runs(
    frame: pd.DataFrame, directory: str, options: argparse.Namespace
) -> None:
    """Print runs as paths, as CSV, or as JSON lines without NaN and infinities."""
    if options.csv:

        def safe(value: Any) -> Any:
            return _printable(value, len(value)) if isinstance(value, str) else value

        print(frame.map(safe).rename(index=safe, columns=safe).to_csv(), end="")
        return
    for row in frame.reset_index().to_dict("records"):
        path = os.path.join(directory, row["exp_id"])
        if options.quiet and not path.isprintable():  # `?` may name another run
            _say(f"left out, as its name cannot be printed: {path}", "ls")
            continue
        finite = {
            k: v for k, v in row.items() if v == v and v not in (math.inf, -math.inf)
        }
        print(shlex.quote(path) if options.quiet else _json_line(finite))


def _last_rows(run_dir: str, but: str = "") -> dict[str, dict[str, Any]]:
    """Return the last row of each table, with the number of rows as "rows"."""
    last_rows = {}
    for name in sorted(_read_headers(run_dir).keys() - {but}):
        count, rows = _read_ends(run_dir, name, last=1)
        [row] = _plain_rows(rows) or [{}]
        last_rows[name] = row if "rows" in row else row | {"rows": count}
    return last_rows


def _show(argv: list[str]) -> int:
    options = _command_parser("show", "run").parse_args(argv)
    run_dir = _find_run(options.run, options.dir)
    status, attempts = _run_status(run_dir)
    facts: dict[str, Any] = {"run": run_dir, "status": status}
    facts |= {f"attempt {number}": line for number, line in enumerate(attempts, 1)}
    _print_facts(facts)  # before a table that is damaged
    parameters = _read_row(run_dir, options.metadata_table, first=1) or {}
    _print_facts({"parameters": parameters, "last rows": _last_rows(run_dir)})
    return 0


def _diff(argv: list[str]) -> int:
    options = _command_parser("diff", "run", "other").parse_args(argv)
    both: list[dict[str, str]] = []
    for run in options.run, options.other:
        run_dir = _find_run(run, options.dir)
        last = (_run_status(run_dir)[1] or [{}])[-1]
        facts = {f"git {name}": v for name, v in last.get("git", {}).items()}
        facts |= {"argv": last.get("argv")}
        facts |= _read_row(run_dir, options.metadata_table, first=1) or {}
        for table, row in _last_rows(run_dir, options.metadata_table).items():
            facts |= {f"{table}/{column}": value for column, value in row.items()}
        both.append({name: str(value) for name, value in facts.items()})
    first, second = both
    names = [n for n in first | second if first.get(n) != second.get(n)]
    for name in names:
        values = first.get(name, ""), second.get(name, "")
        _print_facts({name: dict(zip((options.run, options.other), values))})
    return 1 if names else 0


def _tail(argv: list[str]) -> int:
    parser = _command_parser("tail", "run")
    add = parser.add_argument
    add("-t", "--table", help="default: the one with the most rows")
    add("-n", "--rows", type=int, default=10, help="number of rows; default: 10")
    add("-f", "--follow", action="store_true", help="keep printing rows as they come")
    options = parser.parse_args(argv)
    run_dir = _find_run(options.run, options.dir)
    names = [options.table] if options.table else [*_read_headers(run_dir)]
    counts = {name: _read_ends(run_dir, name)[0] for name in names}
    if not counts:
        raise CoxError(f"{run_dir} has no table yet")
    table = max(counts, key=counts.__getitem__)
    seen, shown = max(0, counts[table] - abs(options.rows)), list[str]()
    while True:
        try:
            new = _read_ends(run_dir, table)[0] - seen
            last = new + 1000 if new > 0 else 0  # or more by now
            count, rows = _read_ends(run_dir, table, last=last)
        except NotFoundError:
            if not _is_run(run_dir):
                raise
            count, rows = 0, _Rows(b"")  # mode "w" erased it; it may be made again
        seen = seen if seen <= count else 0
        if count > seen >= count - rows.nrows:
            plain, seen = _plain_rows(rows)[seen - count :], count
            columns = dict.fromkeys(itertools.chain(*plain))
            values = {name: [row.get(name) for row in plain] for name in columns}
            shown = _print_table("tail", values, shown, width=10)
            sys.stdout.flush()
        if count > seen:
            continue  # with what was added, or begun afresh, between the two reads
        if not options.follow:
            return 0
        time.sleep(_TAIL_INTERVAL_S)


_COMMANDS: Final[Mapping[str, tuple[Callable[[list[str]], int], str]]] = {
    "ls": (_ls, "List runs: how they went, what differs, their last values."),
    "show": (_show, "Show a run: its history, parameters and last rows."),
    "diff": (_diff, "Show what differs between two runs; exit 1 if anything does."),
    "tail": (_tail, "Show the last rows of a table, or follow it with -f."),
    "tb": (_tb, "Show all runs of a directory in one TensorBoard, live."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``cox`` with ``argv``, by default sys.argv[1:]; return its exit status."""
    args = sys.argv[1:] if argv is None else list(argv)
    command = args[0] if args else "no command"
    if args == ["--version"]:
        print("cox", __version__)
        return 0
    if command in ("-h", "--help"):
        print("usage: cox COMMAND [options] (see cox COMMAND --help)\n")
        for name, (_, text) in _COMMANDS.items():
            print(f"  {name:6}{text}")
        return 0
    try:
        if command not in _COMMANDS:
            raise CoxError(f"not one of {', '.join(_COMMANDS)} (see cox --help)")
        status = _COMMANDS[command][0](args[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as by `cox ls | head`; the exit must not meet it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CoxError, OSError, UnicodeError) as err:
        _say(str(err), command)
        return 2
    except KeyboardInterrupt:
        return 130


def tensorboard_main(argv: Sequence[str] | None = None) -> int:
    """Run ``cox tb`` until it is stopped; return its exit status."""
    return main(["tb", *(sys.argv[1:] if argv is None else argv)])


###############################################################################
# Import names of the original package
###############################################################################
# `cox.store` and the others are this module under another name, for imports and
# for `python -m cox.tensorboard_view`; they work in a vendored copy too. Programs
# import the names in _ALIASES although they were never documented.

_ALIASES: Final[Mapping[str, Any]] = {
    "STORE_BASENAME": _STORE_NAME,
    "SAVE_DIR": _SAVE_DIR,
    "TENSORBOARD_DIR": _TENSORBOARD_DIR,
    "TABLE_OBJECT_DIR": _OBJECTS_DIR,
    "COX_DATA_KEY": "COX_DATA",
    "_clean_dict": lambda d, schema: {  # replaces 0-d tensors by their numbers
        n: v if isinstance(schema[n], str) else _number(v) for n, v in d.items()
    },
    "main": tensorboard_main,
}


def _register_submodules() -> None:
    for name in ("store", "readers", "utils", "tensorboard_view"):
        full_name = f"{__name__}.{name}"
        module = types.ModuleType(full_name, __doc__)
        module.__path__ = []  # else runpy warns that the module is imported already
        module.__spec__ = importlib.util.spec_from_file_location(full_name, __file__)
        vars(module).update({public: globals()[public] for public in __all__})
        vars(module).update(_ALIASES)
        sys.modules[full_name] = globals()[name] = module


_register_submodules()

if __name__ == "__main__":
    is_alias = __spec__ is not None and __spec__.name.endswith("tensorboard_view")
    sys.exit(tensorboard_main() if is_alias else main())
