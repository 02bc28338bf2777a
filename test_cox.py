"""Tests of cox: what it promises, shown on files, in real processes.

Sections follow those of cox.py. `read_rows` and `assert_consistent` read the format
by its documentation, not through cox; every test that writes ends with them.
"""

from __future__ import annotations

import argparse
import ast
import base64
import collections
import contextlib
import copy
import csv
import dataclasses
import errno
import fcntl
import gc
import hashlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import pathlib
import pickle
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tracemalloc
import types
import unittest
import urllib.parse
import urllib.request
import uuid
import warnings
import wave
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import tables
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto import event_pb2, summary_pb2

import cox
from cox import OBJECT, PICKLE, PYTORCH_STATE, CollectionReader, CoxError, Store

HERE = pathlib.Path(__file__).resolve().parent
TEXT_KINDS = {"str", OBJECT, PICKLE, PYTORCH_STATE}

settings.register_profile(
    "cox",
    database=None,
    deadline=None,
    derandomize=True,  # the same examples in every run: no failure out of nowhere
    max_examples=int(os.environ.get("COX_EXAMPLES", "5")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("cox")


def examples(times):
    """Try so many times as many examples as else: each of them is quick."""
    return settings(max_examples=times * settings.default.max_examples)


###############################################################################
# The oracle
###############################################################################


def record_dtype(columns):
    """The dtype of a table's records, as the format's documentation gives it."""
    plain = {"float": "<f8", "int": "<i8", "bool": "|b1"}
    fields = [("row", "<i8")]
    for i, kind in enumerate(columns.values()):
        if kind in TEXT_KINDS:
            fields.append((f"c{i}", "<i8"))
        else:
            fields.append(
                (f"c{i}", plain.get(kind) or np.dtype(kind).newbyteorder("<"))
            )
    if TEXT_KINDS & set(columns.values()):
        fields.append(("start", "<i8"))
    return np.dtype([*fields, ("check", "<i8")])


def check_line(fields):
    """A line of JSON that ends in the check of what precedes it."""
    checked = json.dumps(fields).encode()[:-1]
    return checked + b', "check": ' + str(zlib.crc32(checked)).encode() + b"}\n"


def read_rows(path):
    """Read a whole, undamaged .rows file (and its .text) into lists and arrays."""
    line, newline, body = path.read_bytes().partition(b"\n")
    assert newline
    header = json.loads(line)
    assert header.keys() == {"cox", "columns", "check"}
    assert header["cox"] == 2
    columns = header["columns"]
    checked, _, check = line.rpartition(b', "check": ')
    assert check == b"%d}" % zlib.crc32(checked)
    dtype = record_dtype(columns)
    records = np.frombuffer(body, dtype)  # raises on a torn end
    assert records["row"].tolist() == list(range(1, len(records) + 1))
    values = {name: records[f"c{i}"] for i, name in enumerate(columns)}
    text_columns = [name for name, kind in columns.items() if kind in TEXT_KINDS]
    text = path.with_suffix(".text").read_bytes() if text_columns else b""
    texts = {name: [] for name in text_columns}
    end = 0
    for i, record in enumerate(records):
        lengths = [int(values[name][i]) for name in text_columns]
        start, end = end, end + sum(lengths)
        assert all(length >= 0 for length in lengths)
        assert not text_columns or record["start"] == start
        assert end <= len(text)
        row_text = text[start:end]
        assert record["check"] == zlib.crc32(record.tobytes()[:-8] + row_text)
        for name, length in zip(text_columns, lengths, strict=True):
            texts[name].append(row_text[:length].decode("utf-8", "surrogatepass"))
            row_text = row_text[length:]
    return values | texts


def encode_rows(columns, rows):
    """The inverse of `read_rows`: bytes of .rows and of .text, made without cox."""
    dtype, texts, body = record_dtype(columns), b"", b""
    for number, row in enumerate(rows, 1):
        cells, row_text = [], b""
        for kind, value in zip(columns.values(), row, strict=True):
            if kind in TEXT_KINDS:
                encoded = value.encode("utf-8", "surrogatepass")
                row_text += encoded
                value = len(encoded)
            cells.append(value)
        if "start" in dtype.names:
            cells.append(len(texts))
        record = np.array([(number, *cells, 0)], dtype).tobytes()[:-8]
        body += record + struct.pack("<q", zlib.crc32(record + row_text))
        texts += row_text
    return check_line({"cox": 2, "columns": columns}) + body, texts


def exact(values):
    """A form of a column in which NaN equals NaN, bit for bit, and 0.0 is not -0.0."""
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return dtype.name, np.asarray(values).tobytes()
    return [(type(value), value) for value in values]


def assert_frame(frame, columns):
    assert list(frame.columns) == list(columns)
    assert frame.index.tolist() == list(range(len(frame)))
    for name, values in columns.items():
        assert exact(frame[name]) == exact(values), name


def exported(run):
    """The frames of store.h5 as pandas reads them."""
    with (
        warnings.catch_warnings(),
        pd.option_context("mode.string_storage", "python"),  # for lone surrogates
        pd.HDFStore(run / "store.h5", mode="r") as h5,
    ):
        warnings.simplefilter("ignore")  # of odd names and pickled text
        return {key[1:]: h5[key] for key in h5}


def digest(run):
    """Of all that holds the tables of a run, whoever wrote them."""
    found = hashlib.sha256()
    for path in [*sorted((run / ".tables").iterdir()), run / "store.h5"]:
        if path.is_file() and path.name not in ("lock", "history.jsonl"):
            found.update(hashlib.sha256(os.fsencode(path.name)).digest())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.digest()


CONSISTENT = set()  # digests: many tests only read, and leave what others left


def assert_consistent(run):
    """Check all that must hold for the files of a run at rest."""
    assert not [p for p in run.rglob("*") if ".new" in p.name]
    if (digest_ := digest(run)) in CONSISTENT:
        return
    frames = exported(run)
    for path in sorted((run / ".tables").glob("*.rows")):
        name = unquote(path.stem, errors="surrogatepass")
        columns = read_rows(path)
        with Store(run.parent, run.name, mode="r") as store:
            assert_frame(store[name].df, columns)
        if name in frames:
            assert_exported(frames[name], columns)
    CONSISTENT.add(digest_)


def assert_exported(frame, columns):
    """It may be behind: then it holds the first rows."""
    for column, values in columns.items():
        if getattr(values, "dtype", None) == np.float16:
            values = values.astype(np.float32)
        assert exact(frame[column]) == exact(values[: len(frame)]), column


@pytest.fixture(scope="session", autouse=True)
def quick_disk():
    """Wait for no disk in this process: programs that tests start in others do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def little_garbage():
    """Look rarely for cycles, and not through what all imports made: a fifth less."""
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Let programs of the tests see what a shell's `&`, or nohup, has them ignore."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, new) for number, new in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def consistent_runs(request, tmp_path, caplog):
    """Ask the oracle about each run that a test leaves behind, warned of by nothing."""
    yield
    if "damage" in request.fixturenames:
        return
    assert [r.getMessage() for r in caplog.get_records("call") if r.name == "cox"] == []
    for path in tmp_path.rglob(".tables"):
        assert_consistent(path.parent)


@pytest.fixture
def quiet(monkeypatch):
    """What cox warns of in this test is not its subject."""
    monkeypatch.setattr(logging.getLogger("cox"), "disabled", True)


@pytest.fixture
def damage():
    """The test leaves broken files behind, on purpose."""


###############################################################################
# Fixtures and helpers
###############################################################################

SCHEMA = {"i": int, "note": str}
# Values that a careless text column loses, changes or takes for something else.
TEXTS = ["", "nan", "NaN", "None", "0", "\0", "end\0", "\0nan", "\ud800", "x\udfff"]
TEXTS += ["é", "日本", "🂡", "\ufeff", "a\r\nb\x85\u2028", " ", "\\", "%s", "é" * 1000]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def store(out):
    with Store(out, "run") as store:
        yield store


def made_once(make):
    """A fixture of what `make(directory)` makes, once per process; to be copied."""

    @pytest.fixture(scope="session")
    def made(tmp_path_factory):
        directory = tmp_path_factory.mktemp("made")
        make(directory)
        return directory

    return made


def copy_made(made, out):
    """Copy it as if it were made now: with times of now."""
    shutil.copytree(made, out, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return out


@made_once
def made_run(out):
    with Store(out, "run") as store:
        log(store, 3)
        for x in (0.5, 1.5):
            store.add_table("other", {"x": float}) if x == 0.5 else None
            store["other"].append_row({"x": x})


@pytest.fixture
def run(made_run, out):
    """A closed run: three rows of `t` (SCHEMA) and two of `other`."""
    return copy_made(made_run, out) / "run"


def some_of(every):
    """Give `every`: to try one case of so many, or under `slow` each of them."""
    slow = pytest.param(1, marks=pytest.mark.slow, id="all")
    return pytest.mark.parametrize("every", [pytest.param(every, id="some"), slow])


def log(store, count, acknowledge=None):
    """Go on logging to `t`: row i holds i and a text that tells it."""
    table = store.add_table("t", SCHEMA)
    for i in range(table.nrows, table.nrows + count):
        table.append_row({"i": i, "note": f"row {i}"})
        if acknowledge is not None:
            acknowledge(i)


def assert_logged(frame, count):
    """The frame of `t` is what `log` made of it."""
    assert frame["i"].tolist() == list(range(count))
    assert frame["note"].tolist() == [f"row {i}" for i in range(count)]


@contextlib.contextmanager
def warns(match):
    """Collect what cox warns of within, and see that it matches."""
    with unittest.TestCase().assertLogs("cox", "WARNING") as logged:
        yield logged.output
    assert any(re.search(match, message) for message in logged.output), logged.output


def tree(directory):
    """Path, kind, time and content of everything below a directory."""
    return {
        path: (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes())
        for path in sorted(directory.rglob("*"))
    }


def make_run(out, exp_id, **tables_):
    """Make a run by hand, as another program would: name=(columns, rows)."""
    directory = out / exp_id / ".tables"
    directory.mkdir(parents=True)
    (out / exp_id / ".table_objects").mkdir()
    for name, (columns, rows) in tables_.items():
        rows_bytes, text = encode_rows(columns, rows)
        if TEXT_KINDS & set(columns.values()):
            (directory / f"{name}.text").write_bytes(text)
        (directory / f"{name}.rows").write_bytes(rows_bytes)
    return out / exp_id


class DillPickler(pickle._Pickler):
    """Pickles types as dill does: by a function of its own and their names."""

    def reducer_override(self, obj):
        if isinstance(obj, type):
            return sys.modules["dill._dill"]._load_type, (obj.__name__,)
        return NotImplemented


def dill_dumps(obj, protocol=0):
    module = types.ModuleType("dill._dill")
    exec("def _load_type(name): raise NotImplementedError", module.__dict__)
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dill", types.ModuleType("dill"))
        patch.setitem(sys.modules, "dill._dill", module)
        DillPickler(buffer, protocol).dump(obj)
    return buffer.getvalue()


def make_original_store(run, with_dill=False, **tables_):
    """Make a run as the original cox leaves it: name=(schema, frame)."""
    for directory in ("save", "tensorboard", ".table_objects"):
        (run / directory).mkdir(parents=True)
    with pd.HDFStore(run / "store.h5", mode="w") as h5:
        for name, (schema, frame) in tables_.items():
            for i in range(len(frame)):
                h5.append(name, frame.iloc[i : i + 1], min_itemsize=40)
            data = {"schema": schema, "name": name}
            # PyTables unpickles bytes that end like a pickle: dill's in disguise
            attrs = h5.get_node(name)._v_attrs
            attrs.COX_DATA = np.bytes_(dill_dumps(data)) if with_dill else data
    return run


def original_t(count):
    notes = [f"row {i}" for i in range(count)]
    return SCHEMA, pd.DataFrame({"i": range(count), "note": notes})


@made_once
def made_original(out):
    make_original_store(
        out / "run",
        t=original_t(3),
        other=({"x": float}, pd.DataFrame({"x": [0.5, 1.5]})),
    )


@pytest.fixture
def original(made_original, out):
    """A run of the original's: what `run` holds, in the original's layout."""
    return copy_made(made_original, out) / "run"


class Proxy:
    """Stands in for a module of cox's: `around(call, name, *args)` makes its changes.

    Calls that change no file, and opening one to read, go straight through.
    """

    CHANGES = re.compile(
        "open|p?writev?|replace|rename|link|symlink|mkdir|makedirs|unlink|remove|rmdir"
        "|f?truncate|fsync|fdatasync|utime|chmod|flock|lockf"
    )

    def __init__(self, module, around):
        self._module, self._around = module, around

    def __getattr__(self, name):
        real = getattr(self._module, name)
        if not self.CHANGES.fullmatch(name):
            return real

        def call(*args, **kwargs):
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return real(*args, **kwargs)
            return self._around(lambda *a: real(*a, **kwargs), name, *args)

        return call


def but(module, **changed):
    """The names of a module, some of them changed, to stand in for it in cox."""
    return types.SimpleNamespace(**vars(module) | changed)


@pytest.fixture
def around(monkeypatch):
    """Put `around(call, name, *args)` between cox and the changes it makes."""

    def install(function):
        monkeypatch.setattr(cox, "os", Proxy(os, function))
        if getattr(cox, "fcntl", None):
            import fcntl

            monkeypatch.setattr(cox, "fcntl", Proxy(fcntl, function))

    return install


def load_again():
    """Import cox once more, with state of its own, as another process has it."""
    spec = importlib.util.spec_from_file_location("another_cox", cox.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look for it there
        patch.setitem(sys.modules, "another_cox", module)
        spec.loader.exec_module(module)
    return module


def die(store, module=cox):
    """Let go of a run as a process that dies does: files are closed, and no more."""

    def refuse(*args):
        raise OSError(errno.EIO, "the process is dead")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("cox"), "disabled", True)
        patch.setattr(module, "os", but(os, open=refuse, listdir=refuse))
        store.__del__()
    vars(store).clear()  # or the next Store of this process would share its state


def is_open_at(descriptor, path):
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def lock_run(out):
    """Lock the run as its writer does; raise BlockingIOError if another has it."""
    with (out / "run" / ".tables" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def assert_locked(out):
    """Some process has the run: another one may not write it."""
    with pytest.raises(BlockingIOError):
        lock_run(out)


def marks(out):
    """The numbers of rows that were synced, by table."""
    state = (out / "run" / ".tables" / "state.json").read_text()
    return json.loads(state)["rows"]


@pytest.fixture
def at_write(around):
    """Let `action(call, descriptor, data)` stand for the first write to a file."""

    def install(path, action):
        hits = []

        def function(call, name, *args):
            if name != "write" or hits or not is_open_at(args[0], path):
                return call(*args)
            hits.append(path)
            return action(call, *args)

        around(function)
        return hits

    return install


MP = multiprocessing.get_context("forkserver")  # forks from a process of one thread
MP.set_forkserver_preload([__name__, "tensorboard.default", "tensorboard.program"])


def _in_child(stderr_path, target, args):
    os.dup2(os.open(stderr_path, os.O_WRONLY | os.O_CREAT), 2)
    warnings.simplefilter("error")
    os.fsync = lambda descriptor: None  # see quick_disk
    target(*args)


def _as_program(args, stdout, stderr, cwd, env):
    for descriptor, path in (1, stdout), (2, stderr):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None
    if args[0] == "-W":
        warnings.simplefilter(args[1])
        args = args[2:]
    for name in [name for name in sys.modules if name.partition(".")[0] == "cox"]:
        del sys.modules[name]  # it is imported afresh, all else is there
    option, program, *sys.argv[1:] = args
    sys.path[:0] = [str(cwd), *env.get("PYTHONPATH", "").split(os.pathsep)]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = "-c"
        exec(program, {"__name__": "__main__"})


class Forked:
    """As `Popen([sys.executable, *args])`, without the second that imports take.

    What counts at an exit, functions of `atexit` among it, needs a real one.
    """

    def __init__(self, args, stdout, stderr, cwd=HERE, **env):
        args = [*map(str, args)], stdout, stderr, cwd, env
        self._process = MP.Process(target=_as_program, args=args)
        self._process.start()

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("", timeout)
        return self.poll()

    def send_signal(self, signum):
        with contextlib.suppress(ProcessLookupError):  # the forkserver waits for it
            os.kill(self._process.pid, signum)

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()


def _at_first(step, action):
    """In a child: do this right before the first time that cox calls `os.<step>`."""
    pending = [action]

    def around(call, name, *args):
        if name == step and pending:
            pending.pop()()
        return call(*args)

    cox.os = Proxy(os, around)


class Child:
    """A process that runs a function of this module; `end` checks how it went."""

    def __init__(self, stderr_path, target, *args):
        self.stderr_path = stderr_path
        self.process = MP.Process(target=_in_child, args=(stderr_path, target, args))
        self.process.start()

    def end(self, *statuses):
        self.process.join(60)
        assert self.stderr_path.read_text() == ""
        assert self.process.exitcode in (statuses or [0])
        return self.process.exitcode


@pytest.fixture(scope="session")
def _forkserver():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)  # for the preload
        from multiprocessing import forkserver

        forkserver.ensure_running()


@pytest.fixture
def child(tmp_path, _forkserver):
    """Start a function of this module in a process of its own."""
    children = []

    def start(target, *args):
        children.append(Child(tmp_path / f"stderr{len(children)}", target, *args))
        return children[-1]

    yield start
    for started in children:
        if started.process.is_alive():
            started.process.kill()
        started.process.join()


def python(*args, status=0, **options):
    """Run Python in a process of its own and return what it printed."""
    command = [sys.executable, "-W", "error", *map(str, args)]
    options = {"cwd": HERE, "capture_output": True, "text": True} | options
    done = subprocess.run(command, timeout=60, check=False, **options)
    assert done.stderr == ""
    assert done.returncode == status
    return done.stdout


@pytest.fixture
def forked(tmp_path_factory, _forkserver):
    """As `python`, but forked."""

    def run(*args, status=0, err="", cwd=HERE, **env):
        directory = tmp_path_factory.mktemp("forked")
        stdout, stderr = directory / "stdout", directory / "stderr"
        program = Forked(["-W", "error", *args], stdout, stderr, cwd, **env)
        try:
            ended = program.wait(60)
        finally:
            program.kill()
        assert re.fullmatch(err, stderr.read_text())
        assert ended == status
        return stdout.read_text()

    return run


###############################################################################
# Errors and on-disk format
###############################################################################


def cox_errors():
    found = [CoxError]
    for error in found:
        found += error.__subclasses__()
    return found


@pytest.mark.parametrize("error", cox_errors(), ids=lambda error: error.__name__)
def test_errors_survive_a_process_pool(error):
    original = error("what happened; where; what to do")
    copied = pickle.loads(pickle.dumps(original))
    assert type(copied) is error
    assert str(copied) == str(original) != ""


def test_a_run_shows_exactly_save_store_and_tensorboard(out):
    with Store(out) as store:
        [exp_id] = os.listdir(out)
        uuid.UUID(exp_id)
        visible = sorted(p.name for p in (out / exp_id).iterdir() if p.name[0] != ".")
        assert visible == ["save", "store.h5", "tensorboard"]
        assert exported(out / exp_id) == {}
        assert (out / exp_id / ".tables").is_dir()
        store.add_table("a/b", SCHEMA)
        store.add_table("numbers", {"x": float})
    files = {p.name for p in (out / exp_id / ".tables").glob("*.[rt]*")}
    assert files == {"a%2Fb.rows", "a%2Fb.text", "numbers.rows"}


def test_no_absolute_path_is_stored(out, tmp_path):
    with Store(out, "run") as store:
        log(store, 2)
        store.add_table("p", {"x": PICKLE}).append_row({"x": [1]})
    for path in (p for p in out.rglob("*") if p.is_file()):
        assert os.fsencode(tmp_path) not in path.read_bytes()
    moved = shutil.move(out / "run", tmp_path / "else where")
    assert_logged(Store(tmp_path, moved.name, mode="r")["t"].df, 2)
    assert CollectionReader(tmp_path).df("p")["x"].tolist() == [[1]]


###############################################################################
# Utilities
###############################################################################


def test_parameters_look_up_without_regard_to_case():
    parameters = cox.Parameters({"a": 1, "B": 3})
    assert (parameters.a, parameters.A, parameters.b, parameters.B) == (1, 1, 3, 3)
    assert parameters.missing is None
    assert "3" in repr(parameters)
    assert cox.Parameters({"a": 1, "b": 3}).as_dict() == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_parameters_can_be_copied(copied):
    parameters = cox.Parameters({"lr": 0.1, "layers": [64, 32]})
    assert copied(parameters).as_dict() == parameters.as_dict()
    with pytest.raises(AttributeError):
        _ = parameters.__array__


def test_parameters_are_a_view_of_their_dictionary():
    given = {"lr": 0.1, "Arch": None}
    parameters = cox.Parameters(given)
    assert vars(parameters) == {"params": given}
    assert parameters.as_dict() is parameters.params is given
    parameters.ARCH, parameters.NewName = "resnet18", 3
    del parameters.LR
    assert given == {"Arch": "resnet18", "newname": 3}
    assert (parameters.arch, parameters.NewName, parameters.lr) == ("resnet18", 3, None)
    assert [*parameters] == ["Arch", "newname"]
    assert len(parameters) == 2
    assert "Arch" in parameters
    assert "lr" not in parameters
    assert json.loads(str(parameters)) == given
    assert "PosixPath" in str(cox.Parameters({"path": pathlib.PosixPath("a")}))
    with pytest.raises(KeyError):
        del parameters.missing
    with pytest.raises(ValueError, match="case"):
        cox.Parameters({"lr": 1, "LR": 2})


def test_parameters_that_the_original_pickled_are_opened():
    # their state is the dictionary itself
    head = b"\x80\x04\x8c\x09cox.utils\x8c\x0aParameters\x93)\x81"
    assert pickle.loads(head + b"}\x8c\x02aBK\x01sb.").as_dict() == {"aB": 1}
    assert pickle.loads(head + b"}\x8c\x06paramsK\x01sb.").as_dict() == {"params": 1}
    assert pickle.loads(head + b"}b.").as_dict() == {}


def test_a_copy_of_parameters_is_its_own():
    parameters = cox.Parameters({"lr": 0.1})
    copied = copy.copy(parameters)
    copied.lr = 1
    assert parameters.lr == 0.1


def test_override_json_makes_parameters_of_parameters(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"lr": 0.5, "arch": "resnet18"}))
    given = {"lr": None, "Arch": "vgg", "config_path": str(path)}
    args = cox.utils.override_json(cox.Parameters(given), str(path))
    assert isinstance(args, cox.Parameters)
    assert args.as_dict() == given | {"lr": 0.5}
    assert given["lr"] is None
    given["arch"] = given.pop("Arch")
    args = cox.utils.override_json(cox.Parameters(given), str(path), True)
    assert args.lr == 0.5
    del given["config_path"]
    path.write_text(json.dumps({"lr": 0.5, "arch": "x", "config_path": "y"}))
    args = cox.utils.override_json(cox.Parameters(given), str(path), True)
    assert args.config_path == "y"


@pytest.mark.parametrize("names", [["lr"], ["lr", "epochs", "new"], ["lr", "epochs"]])
def test_override_json_fills_in_what_is_none(tmp_path, names):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"lr": 0.5, "epochs": 10}))
    given = types.SimpleNamespace(**dict.fromkeys(names, 3) | {"lr": None})
    args = cox.utils.override_json(given, str(path))
    assert (args.lr, given.lr, args.epochs) == (0.5, None, 3 if len(names) > 1 else 10)
    if names == ["lr", "epochs"]:
        assert (
            cox.utils.override_json(given, str(path), check_consistency=True).lr == 0.5
        )
    else:
        with pytest.raises(ValueError, match=r"epochs|new"):
            cox.utils.override_json(given, str(path), check_consistency=True)


def test_consistent_returns_what_is_not_none():
    assert cox.utils.consistent(None, 1) == 1
    assert cox.utils.consistent(1, 1) == 1
    with pytest.raises(AssertionError, match=r"1.*2"):
        cox.utils.consistent(1, 2)


def test_mkdirp_never_complains(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        cox.utils.mkdirp(str(path))
        assert path.is_dir()
    (tmp_path / "file").touch()
    cox.utils.mkdirp(str(tmp_path / "file" / "below"))


def test_has_tensorboard(run, tmp_path):
    assert cox.utils.has_tensorboard(str(run)) is True
    assert cox.utils.has_tensorboard(str(tmp_path)) is False
    assert cox.utils.has_tensorboard(str(tmp_path / "missing")) is False


def test_obj_to_string_and_back():
    value = {"a": [1, 2.5, "é", None], "b": np.arange(3)}
    text = cox.utils.obj_to_string(value)
    assert isinstance(text, str)
    back = cox.utils.string_to_obj(text)
    assert back["a"] == value["a"]
    assert back["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value",
    [None, 3, 1.5, b"gAROLg==", "text", "gA", "gA\xe9", "gAAAAA", [1]],
    ids=repr,
)
def test_what_is_no_string_of_an_object_comes_back_as_it_is(value):
    once = cox.utils.string_to_obj(cox.utils.obj_to_string(value))
    for decode in (cox.utils.string_to_obj, cox.store.Table.get_object):
        assert decode(value) == value == decode(once)
        assert decode("") is None
        assert decode("gAROLg==\n") is None  # the original ends it in a newline


###############################################################################
# Values and schema
###############################################################################


def numbers(dtype):
    if dtype().dtype.kind == "f":
        return st.floats(width=dtype().itemsize * 8).map(dtype)
    if dtype is np.bool_:
        return st.booleans().map(dtype)
    limits = np.iinfo(dtype)
    edges = st.sampled_from([limits.min, limits.max])
    return (edges | st.integers(limits.min, limits.max)).map(dtype)


NUMPY_TYPES = [np.bool_, np.float16, np.float32, np.float64]
NUMPY_TYPES += [np.int8, np.int16, np.int32, np.int64]
NUMPY_TYPES += [np.uint8, np.uint16, np.uint32, np.uint64]
TEXT = st.sampled_from(TEXTS) | st.text(st.characters())
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
OBJECTS = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(TEXT, PLAIN, max_size=3)
KINDS = {
    "int": (int, numbers(np.int64).map(int)),
    "float": (float, st.floats()),
    "bool": (bool, st.booleans()),
    "str": (str, TEXT),
    "OBJECT": (OBJECT, OBJECTS),
    "PICKLE": (PICKLE, OBJECTS),
} | {dtype.__name__: (dtype, numbers(dtype)) for dtype in NUMPY_TYPES}


def frames_of(out, schema, rows):
    """Log rows, then the frames: of the writer, reopened, exported, collected."""
    exp_id = str(uuid.uuid4())
    with Store(out, exp_id) as store:
        table = store.add_table("t", schema)
        for row in rows:
            table.append_row(row)
        live = table.df
    reader = CollectionReader(out, exp_filter=lambda other: other == exp_id)
    reopened, frame = Store(out, exp_id, mode="r")["t"].df, exported(out / exp_id)["t"]
    columns = read_rows(out / exp_id / ".tables" / "t.rows")
    assert_frame(reopened, columns)
    assert_exported(frame, columns)
    CONSISTENT.add(digest(out / exp_id))
    return {
        "live": live,
        "reopened": reopened,
        "exported": frame,
        "collected": reader.df("t", append_exp_id=False, keep_serialized=list(schema)),
        "decoded": reader.df("t", append_exp_id=False),
    }


def as_column(kind, values):
    if kind is str or kind in TEXT_KINDS:
        return list(values)
    return np.array(values, {int: np.int64, float: np.float64}.get(kind, kind))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_values_come_back(tmp_path, kind, data):
    column_type, values = KINDS[kind]
    given_values = data.draw(st.lists(values, max_size=12))
    frames = frames_of(
        tmp_path, {"x": column_type}, [{"x": value} for value in given_values]
    )
    decoded = frames.pop("decoded")["x"].tolist()
    if column_type in (OBJECT, PICKLE):
        assert decoded == given_values
        stored = frames["live"]["x"].tolist()
        assert all(isinstance(value, str) for value in stored)
    else:
        stored = as_column(column_type, given_values)
    for way, frame in frames.items():
        expected = stored
        if way == "exported" and column_type is np.float16:  # HDF5 has no such type
            expected = stored.astype(np.float32)
        assert_frame(frame, {"x": expected})


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:9])
def test_awkward_text_comes_back_alone_and_in_company(out, text):
    for notes in ([text], [text, "plain"]):
        frames = frames_of(out, {"x": str}, [{"x": note} for note in notes])
        assert [frame["x"].tolist() for frame in frames.values()] == [notes] * 5


NAMES = ["mx^2", "index", "a/b", "class", "", "é", "x\0y", "\ud800", "row", "check"]
NAMES += ["values_block_0", "level_0", "c0", ".", "..", "a b", '"', "0", "n" * 300]


@examples(2)
@given(data=st.data())
def test_columns_of_any_name_and_mix_come_back(tmp_path, data):
    plain = [kind for kind in KINDS if kind not in ("OBJECT", "PICKLE", "float16")]
    names = data.draw(
        st.lists(st.sampled_from(NAMES) | TEXT, min_size=1, max_size=6, unique=True)
    )
    kinds = {name: KINDS[data.draw(st.sampled_from(plain))] for name in names}
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries({n: v for n, (_, v) in kinds.items()}), max_size=4
        )
    )
    schema = {name: column_type for name, (column_type, _) in kinds.items()}
    for frame in frames_of(tmp_path, schema, rows).values():
        assert_frame(
            frame,
            {
                n: as_column(kind, [row[n] for row in rows])
                for n, kind in schema.items()
            },
        )


class Scalar0d:
    """What a tensor of one element looks like to a library that imports no torch."""

    def __init__(self, value):
        self.value, self.ndim, self.shape = value, 0, ()

    def item(self):
        return self.value


class Number:
    """A number of someone else's making."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)

    def __int__(self):
        return int(self.value)


TAKEN = {
    "whole-float-into-int": (int, 3.0, 3),
    "whole-float32-into-int": (int, np.float32(3), 3),
    "uint64-into-int": (int, np.uint64(2**63 - 1), 2**63 - 1),
    "0d-array-into-int": (int, np.array(3), 3),
    "0d-tensor-into-int": (int, Scalar0d(3), 3),
    "int-into-float": (float, 3, 3.0),
    "float32": (float, np.float32(0.1), float(np.float32(0.1))),
    "int8-into-float": (float, np.int8(-1), -1.0),
    "0d-array-into-float": (float, np.array(0.5), 0.5),
    "0d-tensor-into-float": (float, Scalar0d(0.5), 0.5),
    "text-into-float": (float, "0.5", 0.5),
    "infinity-as-text-into-float": (float, "-Infinity", -math.inf),
    "Decimal-into-float": (float, Decimal("0.25"), 0.25),
    "infinite-Decimal-into-float": (float, Decimal("inf"), math.inf),
    "Fraction-into-float": (float, Fraction(1, 4), 0.25),
    "__float__-into-float": (float, Number(2.5), 2.5),
    "array-of-one-into-float": (float, np.array([[0.5]]), 0.5),
    "text-into-int": (int, "3", 3),
    "Decimal-into-int": (int, Decimal(3), 3),
    "Fraction-into-int": (int, Fraction(6, 2), 3),
    "array-of-one-into-int": (int, np.array([3]), 3),
    "text-into-float32": (np.float32, "0.1", np.float32(0.1)),
    "unmasked-into-float": (float, np.ma.array([0.5], mask=[False]), 0.5),
    "array-of-one-into-bool": (bool, np.array([True]), True),
    "1-into-bool": (bool, 1, True),
    "0-into-bool": (bool, 0, False),
    "bool_-into-bool": (bool, np.bool_(True), True),
    "0d-tensor-into-bool": (bool, Scalar0d(True), True),
    "int-into-int8": (np.int8, 127, np.int8(127)),
    "float-into-float32": (np.float32, 0.1, np.float32(0.1)),
    "int-into-str": (str, 5, "5"),
    "path-into-str": (str, pathlib.PurePosixPath("a/b"), "a/b"),
    "str_-into-str": (str, np.str_("x"), "x"),
}


@pytest.mark.parametrize(("kind", "value", "stored"), TAKEN.values(), ids=TAKEN)
def test_values_are_taken_where_nothing_is_lost(store, kind, value, stored):
    table = store.add_table("t", {"x": kind})
    table.append_row({"x": value})
    table.update_row({"x": value})
    table.flush_row()
    assert_frame(table.df, {"x": as_column(kind, [stored, stored])})


class Unprintable:
    def __str__(self):
        raise ValueError("no text for this")


def is_number(value):
    return isinstance(value, (int, float, np.number))


REFUSED = {
    "fraction-into-int": (int, 1, 3.7),
    "2**63-into-int": (int, 1, 2**63),
    "below-int64-into-int": (int, 1, -(2**63) - 1),
    "uint64-over-int64-into-int": (int, 1, np.uint64(2**63)),
    "0d-array-over-int64-into-int": (int, 1, np.array(2**63, np.uint64)),
    "2.0**63-into-int": (int, 1, 2.0**63),
    "huge-int-into-int": (int, 1, 10**5000),
    "nan-into-int": (int, 1, float("nan")),
    "inf-into-int": (int, 1, float("inf")),
    "fraction-as-text-into-int": (int, 1, "3.7"),
    "Decimal-into-int": (int, 1, Decimal("3.7")),
    "Fraction-into-int": (int, 1, Fraction(7, 2)),
    "0.5-in-an-array-into-int": (int, 1, np.array([0.5])),
    "truncating-__int__-into-int": (int, 1, Number(3.7)),
    "None-into-int": (int, 1, None),
    "masked-into-int": (int, 1, np.ma.masked),
    "list-into-int": (int, 1, [1]),
    "array-into-int": (int, 1, np.array([1, 2])),
    "complex-into-int": (int, 1, 1 + 0j),
    "words-into-float": (float, 1.0, "one"),
    "no-text-into-float": (float, 1.0, ""),
    "too-big-text-into-float": (float, 1.0, "1e999"),
    "too-big-bytes-into-float": (float, 1.0, b"1e999"),
    "too-big-Decimal-into-float": (float, 1.0, Decimal("1e999")),
    "too-big-longdouble-into-float": (float, 1.0, np.longdouble("1e400")),
    "None-into-float": (float, 1.0, None),
    "complex-into-float": (float, 1.0, 1j),
    "numpy-complex-into-float": (float, 1.0, np.complex128(3 + 4j)),
    "long-complex-into-float": (float, 1.0, np.clongdouble(3 + 4j)),
    "numpy-complex-into-float32": (np.float32, 1.0, np.complex64(3 + 4j)),
    "masked-into-float": (float, 1.0, np.ma.masked),
    "masked-element-into-float": (float, 1.0, np.ma.array([5.0], mask=[True])),
    "array-into-float": (float, 1.0, np.zeros(3)),
    "too-big-int-into-float": (float, 1.0, 10**400),
    "text-into-bool": (bool, True, "False"),
    "2-into-bool": (bool, True, 2),
    "half-into-bool": (bool, True, 0.5),
    "None-into-bool": (bool, True, None),
    "128-into-int8": (np.int8, 1, 128),
    "-1-into-uint8": (np.uint8, 1, -1),
    "2**64-into-uint64": (np.uint64, 1, 2**64),
    "fraction-into-uint16": (np.uint16, 1, np.float64(1.5)),
    "too-big-text-into-float32": (np.float32, 1, "1e40"),
    "2-into-bool_": (np.bool_, True, 2),
    "no-text-into-str": (str, "x", Unprintable()),
    "lock-into-OBJECT": (OBJECT, "x", threading.Lock()),
    "lock-into-PICKLE": (PICKLE, "x", threading.Lock()),
    "lambda-into-OBJECT": (OBJECT, "x", {"f": lambda: 0}),
    "lambda-into-PICKLE": (PICKLE, "x", lambda: 0),
    "local-class-into-PICKLE": (PICKLE, "x", type("Local", (), {})()),
}


@pytest.mark.parametrize(("kind", "good", "bad"), REFUSED.values(), ids=REFUSED)
def test_a_refused_value_changes_nothing(store, out, kind, good, bad):
    table = store.add_table("t", {"a": int, "x": kind, "z": int})
    table.update_row({"a": 1, "x": good})
    before = tree(out)
    for attempt in (table.update_row, table.append_row):
        with pytest.raises(CoxError, match="'x' of table 't'"):
            attempt({"a": 9, "x": bad, "z": 9})
        assert tree(out) == before
    table.update_row({"z": 2})
    table.flush_row()
    assert table.nrows == 1
    assert table.df[["a", "z"]].values.tolist() == [[1, 2]]
    assert pd.notna(table.df["x"][0])
    quick = store.add_table("quick", {"x": kind})  # no row is staged in it
    quick.append_row({"x": good})
    with pytest.raises(CoxError, match="'x' of table 'quick'"):
        quick.append_row({"x": bad})
    for action in "error", "ignore":  # numpy warns of some, and takes them
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            with pytest.raises(CoxError, match="'x' of table 'quick'"):
                quick.append_rows({"x": np.array([bad]) if is_number(bad) else [bad]})
    assert quick.nrows == len(quick.df) == 1


@dataclasses.dataclass(slots=True)
class Loss:
    loss: float = 1.0
    note: str = "x"


REFUSED_ROWS = {
    "unknown-column": (lambda table: table.update_row({"los": 1}), "loss"),
    "append-unknown": (lambda table: table.append_row({"los": 1}), "loss"),
    "append-incomplete": (lambda table: table.append_row({"loss": 9}), "acc"),
    "flush-incomplete": (lambda table: table.flush_row(), "acc"),
    "column-not-text": (lambda table: table.update_row({3: 1}), "3"),
    "a-list": (lambda table: table.update_row([("loss", 1)]), "a row is a dict"),
    "a-type": (lambda table: table.append_row(Loss), "a row is a dict"),
    "append-None": (lambda table: table.append_row(None), "a row is a dict"),
}


@pytest.mark.parametrize(("call", "match"), REFUSED_ROWS.values(), ids=REFUSED_ROWS)
def test_a_refused_row_changes_nothing_and_names_the_column(store, out, call, match):
    table = store.add_table("t", {"loss": float, "acc": float})
    table.update_row({"loss": 1})
    before = tree(out)
    with pytest.raises((ValueError, KeyError), match=match):
        call(table)
    assert tree(out) == before
    table.update_row({"acc": 2})
    table.flush_row()
    assert table.df.values.tolist() == [[1, 2]]


def test_a_dict_that_makes_up_values_gives_none_for_a_misspelt_column(store):
    table = store.add_table("t", {"loss": float})
    table.append_row({"loss": 1})
    with pytest.raises(CoxError, match="did you mean 'loss'"):
        table.append_row(collections.Counter(los=1))
    assert table.df["loss"].tolist() == [1]


def test_a_table_that_was_made_again_with_another_schema_takes_no_more_rows(store):
    before = store.add_table("t", {"x": int})
    table = store.add_table("t", {"x": float})
    table.append_row({"x": 0.5})
    with pytest.raises(CoxError, match="was replaced"):
        before.append_row({"x": 1})
    assert table.df["x"].tolist() == [0.5]


REFUSED_TABLES = {
    "complex": ("t", {"x": complex}),
    "list": ("t", {"x": list}),
    "object": ("t", {"x": object}),
    "None": ("t", {"x": None}),
    "unknown-text": ("t", {"x": "float"}),
    "datetime64": ("t", {"x": np.datetime64}),
    "complex128": ("t", {"x": np.complex128}),
    "value-for-type": ("t", {"x": 3}),
    "column-not-text": ("t", {3: int}),
    "no-columns": ("t", {}),
    "empty-name": ("", {"x": int}),
    "over-long-name": ("n" * 300, {"x": int}),
    "over-long-when-encoded": ("é" * 80, {"x": int}),
    "name-not-text": (3, {"x": int}),
}


@pytest.mark.parametrize(
    ("name", "schema"), REFUSED_TABLES.values(), ids=REFUSED_TABLES
)
def test_a_refused_table_leaves_nothing(store, out, name, schema):
    store.add_table("first", {"x": int})
    before = tree(out)
    with pytest.raises((ValueError, TypeError)):
        store.add_table(name, schema)
    assert tree(out) == before


def test_schema_from_dict_takes_types_from_values(store):
    example = {"i": 1, "f": 0.5, "b": True, "s": "x", "n": np.float32(1), "o": [1, 2]}
    schema = {"i": int, "f": float, "b": bool, "s": str, "n": np.float32, "o": OBJECT}
    assert cox.schema_from_dict(example) == schema
    assert cox.schema_from_dict({"o": np.dtype("f4")}) == {"o": OBJECT}  # of shape ()
    assert cox.schema_from_dict(example, PICKLE) == schema | {"o": PICKLE}
    assert cox.schema_from_dict(example, alternative=PICKLE)["o"] == PICKLE
    table = store.add_table_like_example("t", example, alternative=PICKLE)
    assert table.schema == schema | {"o": PICKLE}
    table.append_row(example)
    assert table.get_pickle(table.df["o"][0]) == [1, 2]


class ConfigDict:  # a dict in all but its class, as that of ml_collections
    keys = {"loss": 1.0, "note": "x"}.keys
    __getitem__ = {"loss": 1.0, "note": "x"}.__getitem__


ROWS = {
    "dict": {"loss": 1.0, "note": "x"},
    "Parameters": cox.Parameters({"loss": 1.0, "note": "x"}),
    "Namespace": argparse.Namespace(loss=1.0, note="x"),
    "dataclass": Loss(),
    "Series": pd.Series({"loss": 1.0, "note": "x"}),
    "ConfigDict": ConfigDict(),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_may_be_whatever_holds_names_and_values(store, row):
    assert cox.schema_from_dict(row) == {"loss": float, "note": str}
    store.add_table_like_example("t", row).append_row(row)
    store["t"].update_row(row)
    store["t"].flush_row()
    store.add_table("u", {"loss": float, "note": str})
    store.log_table_and_tb("u", argparse.Namespace(loss=0.5))
    store["u"].append_row({"note": "y"})
    assert store["t"].df.values.tolist() == [[1.0, "x"]] * 2
    assert [value.tag for value in read_values(store.tb_dir)] == ["u/loss"]


def test_a_table_of_numpy_scalars_begun_on_the_original_goes_on(out):
    frame = pd.DataFrame({"lr": [cox.utils.obj_to_string(np.float32(0.5))]})
    frame["n"] = 1
    make_original_store(out / "run", t=({"lr": OBJECT, "n": int}, frame))
    row = {"lr": np.float32(0.25), "n": 2}
    with Store(out, "run") as store:
        store.add_table_like_example("t", row).append_row(row)
        with pytest.raises(CoxError, match="'t'"):
            store.add_table_like_example("t", row | {"n": "text"})
    assert CollectionReader(out).df("t")["lr"].tolist() == [0.5, 0.25]


def test_kinds_of_serialization_are_known_by_their_documented_names():
    for owner in (cox, cox.store, Store):
        names = owner.OBJECT, owner.PICKLE, owner.PYTORCH_STATE
        assert names == ("__object__", "__pickle__", "__pytorch_state__")


def test_torch_state_and_scalars_come_back(out):
    torch = pytest.importorskip("torch")
    state = torch.nn.Linear(2, 3).state_dict()
    with Store(out, "run") as store:
        table = store.add_table("t", {"x": float, "state": PYTORCH_STATE})
        loss = torch.tensor(0.5, requires_grad=True)
        table.append_row({"x": loss, "state": state})
        [uid] = table.df["state"]
        got = table.get_state_dict(uid, map_location="cpu")
        same = table.get_pytorch_state(uid)
    [collected] = CollectionReader(out).df("t")["state"]
    for loaded in (got, same, collected):
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class Optimizer:
    """As those of PyTorch, which import a compiler for seconds."""

    def __init__(self, parameters, lr):
        self.lr = lr

    def state_dict(self):
        return {"state": {}, "param_groups": [{"lr": self.lr, "params": [0, 1]}]}


@pytest.mark.parametrize(
    "optimizer", ["like-it", pytest.param("SGD", marks=pytest.mark.slow)]
)
def test_a_pytorch_state_may_hold_and_be_more_than_tensors(out, optimizer):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    kind = torch.optim.SGD if optimizer == "SGD" else Optimizer
    optimizer = kind(model.parameters(), lr=0.5)
    args = argparse.Namespace(lr=np.float32(0.5))
    with Store(out, "run") as store:
        table = store.add_table("t", dict.fromkeys("mop", PYTORCH_STATE) | {"x": float})
        row = {"m": model, "o": optimizer, "p": args, "x": torch.tensor([[0.5]])}
        table.append_row(row)
        frame = table.df
        assert torch.equal(table.get_state_dict(frame["m"][0])["bias"], model.bias)
        with pytest.raises(pickle.UnpicklingError):
            table.get_state_dict(frame["p"][0], weights_only=True)
        with pytest.raises(CoxError, match="'m' of table 't'"):
            table.update_row({"m": {"f": lambda: 0}})
    [row] = CollectionReader(out).df("t").to_dict("records")
    assert row["o"]["param_groups"][0]["lr"] == 0.5
    assert (row["p"], row["x"]) == (args, 0.5)


def test_without_torch_the_error_names_the_column_and_both_ways_out(
    out, monkeypatch, quiet
):
    columns = {"state": PYTORCH_STATE}
    uid = str(uuid.uuid4())
    run = make_run(out, "run", t=(columns, [(uid,)]))
    (run / ".table_objects" / uid).write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with Store(out, "new") as store:
        table = store.add_table("t", {"state": PYTORCH_STATE})
        with pytest.raises(CoxError, match="torch"):
            table.append_row({"state": {}})
        assert table.nrows == 0
    reader = CollectionReader(out)
    with pytest.raises(
        CoxError, match=r"(?s)'state'.*install.*torch|torch.*'state'"
    ) as e:
        reader.df("t")
    assert "keep_serialized" in str(e.value)
    assert reader.df("t", keep_serialized=["state"])["state"].tolist() == [uid]
    Store(out, "run").close()  # makes store.h5, which `make_run` did not


OUTSIDE = ["../evil", "../../out/run/evil", "", ".", "..", "a/b", "{evil}", "evil\0"]


@pytest.mark.parametrize("kind", [PICKLE, PYTORCH_STATE])
@pytest.mark.parametrize("uid", OUTSIDE)
def test_a_uid_that_points_elsewhere_is_refused(out, kind, uid, tmp_path, quiet):
    evil = out / "run" / "evil"
    uid = uid.format(evil=evil)
    run = make_run(out, "run", t=({"x": kind}, [(uid,)]))
    evil.write_bytes(pickle.dumps("escaped"))
    table = Store(out, "run")["t"]
    get = table.get_pickle if kind == PICKLE else table.get_state_dict
    with pytest.raises(CoxError):
        get(uid)
    with pytest.raises(CoxError, match="run"):
        CollectionReader(out).df("t")
    Store(run.parent, "run").close()


###############################################################################
# Row files
###############################################################################


@given(
    rows=st.lists(st.tuples(numbers(np.int64), TEXT, st.floats(), TEXT), max_size=10)
)
def test_files_made_by_another_program_are_read_and_continued(quiet, tmp_path, rows):
    columns = {"i": "int", "s": "str", "x": "float", "t": "str"}
    exp_id = str(uuid.uuid4())
    run = make_run(tmp_path, exp_id, t=(columns, rows))
    with Store(tmp_path, exp_id) as store:
        table = store["t"]
        assert table.nrows == len(rows)
        table.append_row({"i": 1, "s": "more", "x": 0.5, "t": ""})
    read = read_rows(run / ".tables" / "t.rows")
    for i, (name, kind) in enumerate(zip(columns, [int, str, float, str], strict=True)):
        expected = [row[i] for row in rows] + [(1, "more", 0.5, "")[i]]
        assert exact(read[name]) == exact(as_column(kind, expected))


@pytest.fixture
def texts_run(out):
    """A closed run whose `t` has texts of 0 and more bytes, the last one empty."""
    rows = [(0, "a"), (1, ""), (2, "é\0"), (3, "ccc"), (4, "\0\0"), (5, "end"), (6, "")]
    with Store(out, "run") as store:
        table = store.add_table("t", SCHEMA)
        for i, note in rows:
            table.append_row({"i": i, "note": note})
    return out / "run"


def _damaged_at_every_byte(run, files, damage, every):
    """Cut or zero-fill at each byte; read, append, and read with the oracle's eyes."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    logging.disable()  # it warns of ends that are longer than a record
    cox.os = types.SimpleNamespace(**vars(os) | {"fsync": lambda fd: None})  # quick
    (run / ".tables" / "state.json").unlink()  # nothing was synced
    whole = {suffix: (run / ".tables" / f"t{suffix}").read_bytes() for suffix in files}
    rows, text = ((run / ".tables" / f"t{s}").read_bytes() for s in (".rows", ".text"))
    header = rows.index(b"\n") + 1
    columns = json.loads(rows[:header])["columns"]
    size = record_dtype(columns).itemsize
    full = read_rows(run / ".tables" / "t.rows")
    ends = [
        r["start"] + r["c1"]
        for r in np.frombuffer(rows[header:], record_dtype(columns))
    ]
    cuts = [
        {files[0]: at}
        for at in range(header if ".rows" in files else 0, len(whole[files[0]]))
    ]
    if len(files) == 2:
        cuts = [
            {".rows": at, ".text": (at - header) * len(text) // (len(rows) - header)}
            for at in range(header, len(rows))
        ]
    stores = []  # kept: none of them exports
    if ".rows" in files:
        cuts = cuts[::every]
    for i, cut in enumerate(cuts):
        copied = shutil.copytree(run, run.parent / f"cut{i}")
        left = {".rows": rows, ".text": text}
        for suffix, at in cut.items():
            left[suffix] = left[suffix][:at]
            if damage == "zeros":
                left[suffix] = left[suffix].ljust(len(whole[suffix]), b"\0")
            (copied / ".tables" / f"t{suffix}").write_bytes(left[suffix])
        count = 0  # the rows before the first that is not as it was
        while (
            count < len(ends)
            and left[".rows"][: header + (count + 1) * size]
            == rows[: header + (count + 1) * size]
            and left[".text"][: ends[count]] == text[: ends[count]]
        ):
            count += 1
        frame = Store(copied.parent, copied.name, mode="r")["t"].df
        assert_frame(frame, {name: values[:count] for name, values in full.items()})
        stores.append(Store(copied.parent, copied.name))
        stores[-1]["t"].append_row({"i": 99, "note": "new"})
        read = read_rows(copied / ".tables" / "t.rows")
        assert read["i"].tolist() == [*full["i"][:count], 99], cut
        assert read["note"] == [*full["note"][:count], "new"], cut
        shutil.rmtree(copied)
    assert len(stores) > 5
    os._exit(0)


@some_of(29)  # at ever other bytes of a record, which has 40 or fewer
@pytest.mark.parametrize("damage", ["cut", "zeros"])
@pytest.mark.parametrize(
    "files", [[".rows"], [".text"], [".rows", ".text"]], ids=["rows", "text", "both"]
)
def test_a_torn_end_at_any_byte_costs_only_its_own_rows(
    texts_run, child, files, damage, every
):
    child(_damaged_at_every_byte, texts_run, files, damage, every).end()


def damaged(run, change, suffix=".rows"):
    """Change the bytes of `t` to `change(header, records, size of a record)`."""
    path = run / ".tables" / f"t{suffix}"
    data = path.read_bytes()
    header = data.index(b"\n") + 1 if suffix == ".rows" else 0
    size = record_dtype(SCHEMA_KINDS).itemsize
    path.write_bytes(change(data[:header], data[header:], size))
    return path


SCHEMA_KINDS = {"i": "int", "note": "str"}


# Header, records and size of a record (for .text: nothing and all of it), changed.
CORRUPT = {
    "first-missing": lambda h, r, n: h + r[n:],
    "missing": lambda h, r, n: h + r[:n] + r[2 * n :],
    "doubled": lambda h, r, n: h + r[:n] + r,
    "swapped": lambda h, r, n: h + r[n : 2 * n] + r[:n] + r[2 * n :],
    "number": lambda h, r, n: h + b"\7" + r[1:],
    "check": lambda h, r, n: h + r[: n - 1] + b"x" + r[n:],
    "check-of-the-last": lambda h, r, n: h + r[:-5] + b"xxxxx",
    "length": lambda h, r, n: h + r[:16] + b"\1" + r[17:],
    "text-start": lambda h, r, n: h + r[:24] + b"\1" + r[25:],
    "length-of-last-but-one": lambda h, r, n: h + r[: n + 16] + b"z" + r[n + 17 :],
    "start-of-last-but-one": lambda h, r, n: h + r[: n + 24] + b"z" + r[n + 25 :],
    "start-of-last": lambda h, r, n: h + r[: 2 * n + 24] + b"z" + r[2 * n + 25 :],
    "start-that-has-no-opposite": lambda h, r, n: (
        h + r[: n + 24] + struct.pack("<q", -(1 << 63)) + r[n + 32 :]
    ),
    "zeros-within": lambda h, r, n: h + bytes(n) + r[n:],
    "last-lost": lambda h, r, n: h + r[: 2 * n] + bytes(n),
    "last-cut": lambda h, r, n: h + r[:-1],
    "header-cut-in-front": lambda h, r, n: h[5:] + r,
    "header-cut": lambda h, r, n: h[:-5],
    "no-newline": lambda h, r, n: h[:-1],
    "no-header": lambda h, r, n: b"",
    "header-a-list": lambda h, r, n: b"[1]\n" + r,
    "no-columns": lambda h, r, n: check_line({"cox": 2}) + r,
    "columns-a-list": lambda h, r, n: check_line({"cox": 2, "columns": []}),
    "columns-empty": lambda h, r, n: check_line({"cox": 2, "columns": {}}),
    "version-a-text": lambda h, r, n: (
        check_line({"cox": "2", "columns": SCHEMA_KINDS}) + r
    ),
    "kind-a-number": lambda h, r, n: check_line({"cox": 2, "columns": {"x": 1}}),
    "kind-an-object": lambda h, r, n: check_line({"cox": 2, "columns": {"x": "O"}}),
    "version-1": lambda h, r, n: b'{"cox": 1, "columns": {"i": "int"}}\n',
    "version-a-float": lambda h, r, n: check_line(
        {"cox": 2.5, "columns": {"i": "int"}}
    ),
    "columns-nested": lambda h, r, n: b'{"cox": ' + b"[" * 100_000,
    "column-renamed": lambda h, r, n: h.replace(b"note", b"Note") + r,
    "no-line": lambda h, r, n: b"x" * 2_000_000,
    "number-changed": lambda h, r, n: h + r[: n + 8] + b"x" + r[n + 9 :],
    "text": lambda h, r, n: b"X" + r[1:],
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corruption_is_an_error_and_nothing_is_touched(run, damage, case):
    path = damaged(run, CORRUPT[case], ".text" if case == "text" else ".rows")
    before = {name: data for name, (_, data) in tree(run).items()}
    place = re.escape(str(path.with_suffix(".rows")))
    with pytest.raises(CoxError, match=rf"(?s){place}.*(byte \d|header)"):
        _ = Store(run.parent, "run", mode="r")["t"].df
    assert {name: data for name, (_, data) in tree(run).items()} == before
    with contextlib.suppress(CoxError):  # of damage far from the end it sees nothing
        Store(run.parent, "run")["t"].append_row({"i": 3, "note": "row 3"})
    for suffix in (".rows", ".text"):
        file = path.with_suffix(suffix)
        assert file.read_bytes().startswith(before[file])
    with pytest.raises(CoxError, match=place):
        _ = Store(run.parent, "run", mode="r")["t"].df


def _at(rng, data, unit):
    """A place in the data, often where a record of so many bytes begins."""
    at = rng.randrange(len(data) + 1)
    return at - at % unit if rng.random() < 0.4 else at


def _span(rng, data, unit):
    a, b = sorted((_at(rng, data, unit), _at(rng, data, unit)))
    return a, min(b, a + rng.choice((unit, 4 * unit, len(data))))


def _replace_span(rng, data, unit, new):
    a, b = _span(rng, data, unit)
    return data[:a] + new(data[a:b]) + data[b:]


def _flip(rng, data, unit):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _swap(rng, data, unit):
    a, b = _span(rng, data, unit)
    c, d = _span(rng, data[b:], unit)
    return data[:a] + data[b + c : b + d] + data[b : b + c] + data[a:b] + data[b + d :]


MUTATIONS = {
    "bit": _flip,
    "byte": lambda rng, data, unit: _replace_span(
        rng, data, unit, lambda old: old[:-1] + rng.randbytes(min(1, len(old)))
    ),
    "block": lambda rng, data, unit: _replace_span(
        rng, data, unit, lambda old: rng.randbytes(len(old))
    ),
    "cut": lambda rng, data, unit: data[: _at(rng, data, unit)],
    "taken-out": lambda rng, data, unit: _replace_span(
        rng, data, unit, lambda old: b""
    ),
    "doubled": lambda rng, data, unit: _replace_span(
        rng, data, unit, lambda old: old + old
    ),
    "swapped": _swap,
    "zeros": lambda rng, data, unit: _replace_span(
        rng, data, unit, lambda old: bytes(len(old))
    ),
    "zeros-behind": lambda rng, data, unit: data.ljust(
        len(data) + rng.choice((1, unit, 3 * unit, 9)), b"\0"
    ),
}


def rows_in(frame):
    return list(zip(*(frame[name].tolist() for name in frame), strict=True))


class Mutants:
    """A table of which mutants are made, one after another, in one place."""

    def __init__(self, directory, columns, rows, is_synced):
        self.run = make_run(directory, "run", t=(columns, rows))
        self.path = str(self.run / ".tables" / "t")
        rows_bytes, text = encode_rows(columns, rows)
        header_size = rows_bytes.index(b"\n") + 1
        self.header, self.body = rows_bytes[:header_size], rows_bytes[header_size:]
        self.dtype, self.text = record_dtype(columns), text
        self.columns, self.logged = columns, rows
        self.starts = [0] * (len(rows) + 1)
        if "start" in self.dtype.names:
            starts = np.frombuffer(self.body, self.dtype)["start"].tolist()
            self.starts = [*starts, len(text)]
        self.files = {".rows": rows_bytes}
        if text:
            self.files[".text"] = text
        if is_synced:
            state = {"rows": {"t": len(rows)}, "stores": []}
            self.files["state.json"] = check_line(state)
        self.errors = self.refusals = 0

    def _file(self, name):
        return self.path + name if name[0] == "." else str(self.run / ".tables" / name)

    def write(self, changed):
        for path in (self.run / ".tables").iterdir():
            path.unlink()
        for name, data in (self.files | changed).items():
            pathlib.Path(self._file(name)).write_bytes(data)

    def mutate(self, rng, name, mutation):
        data, unit = self.files[name], self.dtype.itemsize
        if name == ".rows":
            part = rng.choice((self.header, self.body, self.body, data))
            at = data.index(part)
            changed = MUTATIONS[mutation](rng, part, unit)
            return data[:at] + changed + data[at + len(part) :]
        return MUTATIONS[mutation](rng, data, unit)

    def rows(self, first, end):
        size = self.dtype.itemsize
        text = self.text[self.starts[first] : self.starts[end]]
        return self.body[first * size : end * size], text

    def read(self, everywhere):
        """Read as a reader does: rows are a prefix of those logged, or an error."""
        nrows = None
        with contextlib.suppress(CoxError):
            frame = Store(self.run.parent, "run", mode="r")["t"].df
            nrows = len(frame)
            assert rows_in(frame) == self.logged[:nrows]
        if not everywhere:
            return nrows
        reader = CollectionReader(self.run.parent)
        try:
            frame = reader.df("t", append_exp_id=False)
        except CoxError:
            assert nrows is None
        else:
            assert rows_in(frame) == self.logged[:nrows]
        with contextlib.suppress(CoxError):  # these do not look at the middle
            frame = Store(self.run.parent, "run", mode="r")["t"].tail(3)
            assert rows_in(frame) == self.logged[: frame.index.stop][-3:]
            [row] = reader.runs("t").to_dict("records")
            if "i" in row:
                assert tuple(row[name] for name in self.columns) == self.logged[0]
        return nrows

    def append(self):
        """Append a row as a new writer does; None if it is refused."""
        values, text = [7] * len(self.columns), b""
        row = dict(zip(self.columns, values, strict=True))
        for i, (name, kind) in enumerate(self.columns.items()):
            if kind == "str":
                values[i], row[name], text = 3, "new", text + b"new"
            elif kind == "bool":
                row[name] = values[i] = 1
        try:
            store = Store(self.run.parent, "run", history=False)
            store["t"].append_row(row)
            die(store)
        except CoxError:
            self.refusals += 1
            return None
        number = len(pathlib.Path(self.path + ".rows").read_bytes()) - len(self.header)
        number //= self.dtype.itemsize
        start = [number and self._start_of(number - 1)] if self.text else []
        record = np.array([(number, *values, *start, 0)], self.dtype).tobytes()[:-8]
        return record + zlib.crc32(record + text).to_bytes(8, "little"), text

    def _start_of(self, number):
        data = pathlib.Path(self.path + ".rows").read_bytes()[len(self.header) :]
        size = self.dtype.itemsize
        record = np.frombuffer(data[number * size : (number + 1) * size], self.dtype)
        return int(record["start"][0])

    def check(self, changed, everywhere):
        self.write(changed)
        nrows = self.read(everywhere)
        self.errors += nrows is None
        files = self.files | changed
        new = self.append()
        found = {s: pathlib.Path(self._file(s)).read_bytes() for s in self.files}
        if nrows is None or new is None:  # what is there stays, for whoever mends it
            for name in {".rows", ".text"} & files.keys():
                assert found[name].startswith(files[name])
        if new is None:
            for name in {".rows", ".text"} & files.keys():
                assert found[name] == files[name]
        elif nrows is not None:
            before = self.rows(0, nrows)
            assert found[".rows"] == self.header + before[0] + new[0]
            assert found.get(".text", b"") == before[1] + new[1]


def mutate_all(tmp_path, count, seed):
    """Make mutants of every kind of table, file and change; return what was seen."""
    rng = random.Random(seed)
    seen = {"mutants": 0, "errors": 0, "refusals": 0}
    numbers_ = {"i": "int", "x": "float", "ok": "bool", "h": "int16"}
    texts = {"i": "int", "note": "str", "more": "str"}
    rows = {
        "numbers": (numbers_, [(i, i / 3, i % 2 == 0, -i) for i in range(23)]),
        "text": (texts, [(i, "é" * (i % 5), f"row {i}"[: i % 7]) for i in range(23)]),
        "one": (texts, [(5, "only", "")]),
    }
    tables = [
        Mutants(tmp_path / f"{name}{is_synced}", *rows[name], is_synced)
        for name in rows
        for is_synced in (False, True)
    ]
    kinds = [(t, f, m) for t in tables for f in t.files for m in MUTATIONS]
    for number in range(count):
        table, name, mutation = kinds[number % len(kinds)]
        changed = {name: table.mutate(rng, name, mutation)}
        if number % 3 == 0:  # one error seldom comes alone
            other = rng.choice([*table.files])
            if other != name:
                changed[other] = table.mutate(rng, other, rng.choice([*MUTATIONS]))
        try:
            table.check(changed, everywhere=number % 10 == 0)
        except BaseException as error:
            what = f"{number}: {name} {mutation} of {table.run}: {changed}"
            raise AssertionError(what) from error
    for table in tables:
        seen["errors"] += table.errors
        seen["refusals"] += table.refusals
    return seen | {"mutants": count}


def test_a_mutant_reads_as_a_prefix_or_an_error_and_the_writer_harms_nothing(
    tmp_path, quiet, damage
):
    seen = mutate_all(tmp_path, 200, seed=0)
    assert seen["errors"] > 40
    assert seen["refusals"] > 20


@pytest.mark.slow
def test_50_000_mutants(tmp_path, quiet, damage, capsys):
    seen = mutate_all(tmp_path, 50_000, seed=1)
    with capsys.disabled():
        print(seen)


CODEWORD = 0xEDB88320 << 1 | 1  # a change that no crc32 over all of it sees


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    changes=st.lists(
        st.tuples(
            st.integers(0, 36 * 32 - 1),
            st.integers(1, 2**80) | st.integers(0, 9).map(lambda n: CODEWORD << n),
        ),
        max_size=3,
    ),
)
@example(counts=[2, 1], changes=[(32 + 24, CODEWORD)])  # within a check
@example(counts=[9], changes=[(5 * 32 + 24, 1 << 32)])  # in its upper half
@example(counts=[9], changes=[(8, 1), (32 + 8, 1)])  # the same in two records
def test_records_proven_together_are_those_that_prove_themselves(
    monkeypatch, counts, changes
):
    monkeypatch.setattr(cox, "_CRC_BATCH", 4)
    header = cox._encode_header({"i": int, "x": float})
    tables = [
        cox._encode_rows(header, [np.arange(count), np.arange(count) / 7])
        for count in counts
    ]
    [rows] = cox._merge_rows(tables)
    assert cox._count_good(rows) == sum(counts)
    number = int.from_bytes(rows.records, "little")
    for at, change in changes:
        number ^= change << 8 * (at % (len(rows.records) + 1))
    size = len(rows.records)
    changed = (number % (1 << 8 * size)).to_bytes(size, "little")
    good = [
        record[:8] == (i + 1).to_bytes(8, "little")
        and record[24:] == zlib.crc32(record[:24]).to_bytes(8, "little")
        for i, record in zip(
            itertools.chain(*map(range, counts)),
            (changed[at : at + 32] for at in range(0, size, 32)),
            strict=True,
        )
    ]
    count = cox._count_good(rows._replace(records=changed))
    assert count == [*good, False].index(False)


def test_nothing_is_cut_before_all_rows_were_looked_at(texts_run, damage):
    path = texts_run / ".tables" / "t.text"
    changed = b"more text" + path.read_bytes()  # the last row has none, and is good
    path.write_bytes(changed)
    with pytest.raises(cox.CorruptError):
        Store(texts_run.parent, "run")["t"].append_row({"i": 7, "note": "new"})
    assert path.read_bytes() == changed


def test_a_text_that_lost_its_end_is_damage_though_the_last_row_has_none(
    texts_run, damage
):
    os.truncate(texts_run / ".tables" / "t.text", 3)
    for use in (
        lambda: Store(texts_run.parent, "run", mode="r")["t"].nrows,
        lambda: Store(texts_run.parent, "run")["t"].append_row({"i": 7, "note": "new"}),
    ):
        with pytest.raises(cox.CorruptError, match="keep the first 2 rows"):
            use()


SIZE = record_dtype(SCHEMA_KINDS).itemsize


@pytest.mark.parametrize(
    ("cut", "zeros"), [(1, 0), (SIZE, SIZE)], ids=["being-written", "of-a-dead-machine"]
)
def test_a_row_that_is_repaired_and_synced_while_it_is_read_is_no_damage(
    run, monkeypatch, cut, zeros
):
    rows, text = (run / ".tables" / f"t{suffix}" for suffix in (".rows", ".text"))
    whole = {path: path.read_bytes() for path in (rows, text)}
    rows.write_bytes(whole[rows][:-cut] + bytes(zeros))
    text.write_bytes(whole[text][:-1])

    def repair(path, *args):
        if str(path).endswith("state.json"):
            for file, data in whole.items():
                file.write_bytes(data)
        return os.open(path, *args)

    monkeypatch.setattr(cox, "os", but(os, open=repair))
    assert_logged(Store(run.parent, "run", mode="r")["t"].df, 2)


def test_a_table_without_its_text_is_corruption(run, damage):
    (run / ".tables" / "t.text").unlink()
    with pytest.raises(CoxError, match=r"t\.text"):
        _ = Store(run.parent, "run", mode="r")["t"].df


def test_an_older_format_says_what_reads_it(run, damage):
    damaged(run, CORRUPT["version-1"])
    with pytest.raises(CoxError, match="the cox that wrote it"):
        Store(run.parent, "run", mode="r")["t"].df  # noqa: B018


def test_a_newer_format_says_what_to_upgrade(run, damage):
    newer = check_line({"cox": 3, "columns": SCHEMA_KINDS})
    damaged(run, lambda header, rows, size: newer + rows)
    with pytest.raises(CoxError, match=r"(?i)upgrade|newer"):
        _ = Store(run.parent, "run", mode="r")["t"].df


@pytest.mark.parametrize("torn_file", ["rows", "text"])
def test_a_longer_torn_end_is_told_of_and_kept_aside(run, torn_file):
    directory = run / ".tables"
    (directory / "state.json").unlink()  # nothing was synced
    if torn_file == "rows":
        lost = bytes(3 * record_dtype(SCHEMA_KINDS).itemsize)
        with (directory / "t.rows").open("ab") as file:
            file.write(lost)
    else:
        lost = (directory / "t.rows").read_bytes()[
            -2 * record_dtype(SCHEMA_KINDS).itemsize :
        ]
        (directory / "t.text").write_bytes(b"row 0r")
    names = set(os.listdir(directory))
    rows = 3 if torn_file == "rows" else 1
    with warns(r"t\.rows"):
        assert_logged(Store(run.parent, "run", mode="r")["t"].df, rows)
    with warns(r"t\.rows"), Store(run.parent, "run") as store:
        log(store, 1)
    kept = set(os.listdir(directory)) - names
    assert lost in [(directory / name).read_bytes() for name in kept]
    if torn_file == "text":
        assert b"r" in [(directory / name).read_bytes() for name in kept]
    assert_logged(Store(run.parent, "run", mode="r")["t"].df, rows + 1)


@pytest.mark.parametrize("schema", [SCHEMA, {"i": int}], ids=["text", "no-text"])
def test_a_reader_never_mixes_two_generations_of_a_table(run, monkeypatch, schema):
    table, began = Store(run.parent, "run", mode="r")["t"], []

    def start_afresh(path, *args):
        """Open; but then, for the first file of the table, the run starts afresh."""
        opened = os.open(path, *args)
        if str(path).endswith(("t.rows", "t.text")) and not began:
            began.append(path)
            with Store(run.parent, "run", mode="w") as store:
                for i in range(5):
                    row = {"i": 9 * i, "note": f"other {i}"}
                    store.add_table("t", schema).append_row({c: row[c] for c in schema})
        return opened

    monkeypatch.setattr(cox, "os", but(os, open=start_afresh))
    frame = table.df
    assert began
    if len(frame) == 5:
        rows = {"i": [0, 9, 18, 27, 36], "note": [f"other {i}" for i in range(5)]}
        assert frame.to_dict("list") == {c: rows[c] for c in schema}
    else:
        assert_logged(frame, 3)


def test_a_collection_never_mixes_two_generations_of_a_table(run, monkeypatch):
    began = []

    def start_afresh(path, *args):
        """Open; but first, for the second file of the table, the run starts afresh."""
        if path.endswith("t.text") and not began:
            began.append(path)
            with Store(run.parent, "run", mode="w") as store:
                for i in range(3):
                    row = {"i": 9 * i, "note": f"new {i}"}
                    store.add_table("t", SCHEMA).append_row(row)
        return os.open(path, *args)

    monkeypatch.setattr(cox, "os", but(os, open=start_afresh))
    frame = CollectionReader(run.parent).df("t", append_exp_id=False)
    rows = {"i": [0, 9, 18], "note": ["new 0", "new 1", "new 2"]}
    assert began
    assert frame.to_dict("list") == rows


def test_a_reader_is_not_disturbed_by_tables_that_come_and_go(run, monkeypatch):
    def replace(path, *args):
        """Open; but first, the run starts afresh."""
        monkeypatch.undo()
        with Store(run.parent, "run", mode="w") as store:
            store.add_table("u", {"x": float}).append_row({"x": 1})
        return os.open(path, *args)

    def make(path, *args):
        """Find no file, which is made right afterwards."""
        monkeypatch.undo()
        with Store(run.parent, "run") as store:
            log(store, 2)
        raise FileNotFoundError(path)

    reader = Store(run.parent, "run", mode="r")
    table = reader["t"]
    monkeypatch.setattr(cox, "os", but(os, open=replace))
    assert list(reader.tables) == []  # "u" came after they were listed
    assert list(reader.tables) == ["u"]
    monkeypatch.setattr(cox, "os", but(os, open=make))
    assert_logged(table.df, 2)


def test_a_header_may_be_written_in_another_way(run):
    short = json.dumps({"cox": 2, "columns": SCHEMA_KINDS}, separators=(",", ":"))[:-1]
    line = f'{short}, "check": {zlib.crc32(short.encode())}}}\n'.encode()
    damaged(run, lambda header, rows, size: line + rows)
    with Store(run.parent, "run") as store:
        log(store, 1)
        assert_logged(store["t"].df, 4)


def test_a_text_of_10_mb_among_a_thousand_rows(out):
    big = "".join(random.Random(0).choices("abcdé\0", k=100_003)) * 100
    notes = [big if i == 500 else f"row {i}" for i in range(1000)]
    frames = frames_of(out, {"note": str}, [{"note": note} for note in notes])
    for way, frame in frames.items():
        assert frame["note"].tolist() == notes, way


def test_a_thousand_columns(out):
    schema = {f"column {i}": int if i % 2 else float for i in range(1000)}
    rows = [dict.fromkeys(schema, j) for j in range(3)]
    for way, frame in frames_of(out, schema, rows).items():
        assert list(frame.columns) == list(schema), way
        assert (frame.to_numpy() == [[j] * 1000 for j in range(3)]).all(), way


@pytest.mark.parametrize("when", ["before", "after", "half"])
@pytest.mark.parametrize("suffix", [".text", ".rows"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError], ids=["ctrl-c", "eio"])
def test_an_interrupted_row_is_there_once_or_not_at_all(
    store, out, at_write, when, suffix, error
):
    def interrupt(call, descriptor, data):
        if when != "before":
            call(descriptor, data if when == "after" else data[: len(data) // 2])
        raise error(errno.EIO, "interrupted")

    log(store, 2)
    hits = at_write(out / "run" / ".tables" / f"t{suffix}", interrupt)
    with pytest.raises(error):
        store["t"].append_row({"i": 2, "note": "row 2"})
    assert hits
    assert store["t"].nrows in (2, 3)
    assert_logged(store["t"].df, store["t"].nrows)
    log(store, 2)
    assert store["t"].nrows in (4, 5)
    assert_logged(store["t"].df, store["t"].nrows)


@pytest.mark.parametrize("suffix", [".text", ".rows"])
def test_a_short_write_is_repaired(store, out, at_write, suffix):
    log(store, 2)
    hits = at_write(
        out / "run" / ".tables" / f"t{suffix}",
        lambda call, descriptor, data: call(descriptor, data[: len(data) // 2]),
    )
    log(store, 1)
    assert hits
    assert_logged(read_frame(out / "run" / ".tables" / "t.rows"), 3)
    log(store, 2)
    assert_logged(store["t"].df, 5)


def read_frame(path):
    return pd.DataFrame(read_rows(path))


@pytest.mark.parametrize("suffix", [".text", ".rows"])
def test_a_row_that_fails_leaves_no_file_of_its_objects(store, out, at_write, suffix):
    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    table = store.add_table("t", {"x": PICKLE})
    table.append_row({"x": [0]})
    before = tree(out)
    at_write(out / "run" / ".tables" / f"t{suffix}", fail)
    with pytest.raises(OSError, match="could not write") as e:
        table.append_row({"x": [1]})
    assert "staged" not in str(e.value)
    assert tree(out).keys() == before.keys()
    with pytest.raises(CoxError, match="'x'"):
        table.flush_row()
    table.append_row({"x": [1]})
    assert CollectionReader(out).df("t")["x"].tolist() == [[0], [1]]


def test_a_row_for_a_run_that_was_moved_away_makes_nothing(store, out):
    table = store.add_table("t", {"x": PICKLE})
    table.append_row({"x": [0]})
    (out / "run").rename(out / "moved")
    with pytest.raises(CoxError, match="moved or deleted"):
        table.append_row({"x": [1]})
    assert os.listdir(out) == ["moved"]
    store.close()  # quietly: it was said
    assert CollectionReader(out).df("t")["x"].tolist() == [[0]]


def test_a_run_that_took_anothers_name_gets_nothing_of_it(out):
    old = Store(out, "run")
    log(old, 3)
    shutil.rmtree(out / "run")
    with Store(out, "run") as new:
        log(new, 1)
        row = {"i": 1, "note": "row 1"}
        for write in (
            lambda: old["t"].append_row(row),
            lambda: old["t"].append_rows({"i": [1], "note": ["row 1"]}),
            lambda: old["t"].update_row(row),
            lambda: old.writer.add_scalar("x", 1, 1),
            lambda: old.add_table("u", {"x": int}),
            old.checkpoint,
        ):
            with pytest.raises(CoxError, match=r"moved or deleted.*another run"):
                write()
        old.close()
        assert not list((out / "run" / "tensorboard").iterdir())
        assert_logged(new["t"].df, 1)


def test_mode_w_begins_a_new_event_file_for_each_writer_of_the_process(out):
    with Store(out, "run") as first:
        first.writer.add_scalar("x", 1, 1)
        with Store(out, "run", mode="w"):
            first.writer.add_scalar("x", 2, 2)
        [event] = read_values(out / "run" / "tensorboard")
        assert event.simple_value == 2


def test_a_deleted_object_keeps_no_other_row_from_the_disk(store, out):
    table = store.add_table("t", {"x": PICKLE})
    for x in (0, 1):
        table.append_row({"x": x})
    (out / "run" / ".table_objects" / table.df["x"][0]).unlink()
    store.close()
    assert len(exported(out / "run")["t"]) == 2


def test_a_signal_handler_that_logs_within_a_row_gets_an_error(store, around):
    log(store, 1)
    errors = []

    def handler(*_):
        for attempt in (store["t"].append_row, store["t"].update_row):
            try:
                attempt({"i": 99, "note": "mixed in"})
            except CoxError as error:
                errors.append(str(error))

    def interrupt(call, name, *args):
        if name == "write" and not errors:
            signal.raise_signal(signal.SIGUSR1)
        return call(*args)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        around(interrupt)
        log(store, 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert errors
    assert_logged(store["t"].df, 3)


# Each does two things at once, as threads and signal handlers do, and returns how
# many rows must be there then.


def _close_amid_a_row(store, out, ends):
    def handler():
        store.close()
        assert_locked(out)
        if ends:
            sys.exit(7)

    _at_first("write", handler)
    with contextlib.suppress(SystemExit):
        log(store, 1)
    return 2 if ends else 3


def _close_amid_an_export(store, out):
    def handler():
        with pytest.raises(CoxError, match="signal handler"):
            store.close()
        assert_locked(out)

    _at_first("replace", handler)
    store.checkpoint()
    return 2


def _close_amid_a_row_while_a_thread_exports(store, out):
    def handler():
        exporting.start()
        exporting.join(0.3)  # it waits for the row now
        store.close()

    exporting = threading.Thread(target=store.checkpoint, daemon=True)
    _at_first("write", handler)
    log(store, 1)
    exporting.join()
    return 3


def _close_while_a_thread_exports(store, out):
    def amid_the_export():
        closing.start()
        closing.join(0.3)  # it waits for the export now
        assert_locked(out)

    closing = threading.Thread(target=store.close, daemon=True)
    store.checkpoint()
    _at_first("replace", amid_the_export)
    store.checkpoint()
    closing.join()
    return 2


def _log_while_a_thread_closes(store, out):
    other = threading.Thread(target=log, args=(store, 1))
    _at_first("replace", lambda: (other.start(), other.join()))
    store.close()
    return 3


def _at_once(out, case, *args):
    store = Store(out, "run")
    log(store, 2)
    rows = case(store, out, *args)
    assert_logged(store["t"].df, rows)
    store.close()
    assert_logged(exported(out / "run")["t"], rows)
    with Store(out, "run") as other:
        log(other, 1)


AT_ONCE = {
    "close-amid-a-row": (_close_amid_a_row, False),
    "close-amid-a-row-to-exit": (_close_amid_a_row, True),
    "close-amid-an-export": (_close_amid_an_export,),
    "close-amid-a-row-and-an-export": (_close_amid_a_row_while_a_thread_exports,),
    "close-and-export": (_close_while_a_thread_exports,),
    "log-and-close": (_log_while_a_thread_closes,),
}


@pytest.mark.parametrize("case", AT_ONCE.values(), ids=AT_ONCE)
def test_closing_at_any_moment_neither_hangs_nor_loses_a_row(out, child, case):
    child(_at_once, out, *case).end()


def test_threads_get_one_table(run, monkeypatch):
    both = threading.Barrier(2)

    def open_together(*args, **kwargs):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(5)
        return open(*args, **kwargs)

    monkeypatch.setattr(cox, "open", open_together, raising=False)
    store = Store(run.parent, "run", mode="r")
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(store.get_table, ["t", "t"])
    assert a is b is store["t"]


def test_threads_wait_for_each_other(store):
    table = store.add_table("t", {"thread": int, "i": int, "note": str})

    def work(thread):
        for i in range(100):
            table.append_row({"thread": thread, "i": i, "note": f"{thread} {i}" * i})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    frame = table.df
    for thread, rows in frame.groupby("thread"):
        assert rows["i"].tolist() == list(range(100))
        assert rows["note"].tolist() == [f"{thread} {i}" * i for i in range(100)]


def _log_with_stdout_closed(out):
    os.closerange(0, 3)
    with Store(out, "run") as store:
        log(store, 2)
        store.writer.add_scalar("x", 1)
        for descriptor in range(3):  # as C code prints
            with contextlib.suppress(OSError):
                os.write(descriptor, b"a warning\n")
        log(store, 2)
        store.writer.add_scalar("x", 2)


def test_what_is_printed_where_stdout_is_closed_gets_into_no_file(out, child):
    child(_log_with_stdout_closed, out).end()
    assert_logged(Store(out, "run", mode="r")["t"].df, 4)
    assert len(read_values(out / "run" / "tensorboard")) == 2


###############################################################################
# HDF5
###############################################################################


def test_store_h5_is_small_and_carries_the_schema(run):
    assert (run / "store.h5").stat().st_size < 20_000
    assert_logged(pd.read_hdf(run / "store.h5", "t"), 3)
    with tables.open_file(run / "store.h5") as h5:
        data = h5.root.t._v_attrs.COX_DATA
    assert data == {"schema": SCHEMA, "name": "t"}


def test_an_empty_table_is_exported_with_its_columns(out):
    schema = {"i": int, "x": float, "note": str, "ok": bool}
    with Store(out, "run") as store:
        store.add_table("t", schema)
        assert store["t"].nrows == 0
        assert store["t"].df.empty
    frame = exported(out / "run")["t"]
    assert list(frame.columns) == list(schema)
    assert len(frame) == 0
    assert frame.dtypes.iloc[:2].tolist() == [np.int64, np.float64]


def test_only_checkpoint_and_close_touch_store_h5(store, out):
    for count in (2, 4):
        before = (out / "run" / "store.h5").stat()
        log(store, 2)
        assert (out / "run" / "store.h5").stat() == before
        store.checkpoint()
        assert_logged(exported(out / "run")["t"], count)


def test_checkpoint_syncs_before_it_replaces(store, out, around):
    # What this is for shows only when a machine dies, so the calls are watched.
    log(store, 1)
    names = [".tables/t.text", ".tables/t.rows", ".tables/store.h5.new", ".tables", "."]
    steps = []

    def watch(call, name, *args):
        if name == "fsync":
            paths = [n for n in names if is_open_at(args[0], out / "run" / n)]
            steps.extend(paths)
        elif name == "replace":
            steps.append(name)
        return call(*args)

    around(watch)
    store.checkpoint()
    marked = steps.index("replace")  # of state.json
    assert {*names[:2]} <= {*steps[:marked]}
    replaced = steps.index("replace", marked + 1)
    assert {names[2], ".tables"} <= {*steps[marked:replaced]}
    assert steps[-1] == "."


def _add_a_table_as_the_original(path):
    with pd.HDFStore(path) as h5:
        h5.append("theirs", pd.DataFrame({"q": [1]}))
        data = {"schema": {"q": int}, "name": "theirs"}
        h5.get_node("theirs")._v_attrs.COX_DATA = data


def _add_a_frame(path):
    with pd.HDFStore(path) as h5:
        h5.put("my/frame", pd.DataFrame({"mine": [1.0]}), track_times=False)


NOT_OURS = {
    "junk": lambda path: path.write_bytes(b"x" * 5000),
    "cut-in-the-middle": lambda path: os.truncate(path, 3000),
    "rows-added": lambda path: pd.read_hdf(path, "t").to_hdf(
        path, key="t", format="table", append=True
    ),
    "table-added": _add_a_table_as_the_original,
    "frame-added": _add_a_frame,
}


@pytest.mark.parametrize("change", NOT_OURS.values(), ids=NOT_OURS)
def test_a_store_h5_that_is_not_ours_any_more_is_kept_aside(run, change):
    change(run / "store.h5")
    theirs = (run / "store.h5").read_bytes()
    names = set(os.listdir(run))
    with warns("store.h5"), Store(run.parent, "run") as store:
        log(store, 1)
    [kept] = set(os.listdir(run)) - names
    assert (run / kept).read_bytes() == theirs
    assert_logged(exported(run)["t"], 4)


def test_readers_do_not_open_store_h5_and_a_missing_one_is_made_again(run, quiet):
    (run / "store.h5").write_bytes(b"junk")
    assert_logged(Store(run.parent, "run", mode="r")["t"].df, 3)
    assert_logged(CollectionReader(run.parent).df("t"), 3)
    (run / "store.h5").unlink()
    with Store(run.parent, "run") as store:
        log(store, 1)
    assert_logged(exported(run)["t"], 4)


@pytest.mark.parametrize(
    "name", ["table", "meta", "_i_x", ".", "..", "x/", "a//b", "\0", "a\0", "\ud800"]
)
def test_a_table_that_pandas_cannot_hold_is_left_out_of_store_h5(out, name):
    store = Store(out, "run")
    log(store, 1)
    store.add_table(name, {"x": float}).append_row({"x": 1})
    with warns(re.escape(repr(name))):
        store.close()
    assert set(exported(out / "run")) == {"t"}
    assert Store(out, "run", mode="r")[name].df["x"].tolist() == [1]


def test_a_table_with_more_text_than_hdf5_holds_is_left_out(out, monkeypatch):
    def put(h5, name, frame, put=pd.HDFStore.put, **options):
        put(h5, name, frame, **options)
        raise OverflowError("value too large to convert to int")  # as over 2 GiB

    monkeypatch.setattr(pd.HDFStore, "put", put)
    store = Store(out, "run")
    log(store, 1)
    store.add_table("long", {"s": str}).append_row({"s": "\0"})  # in fixed format
    with warns(r"'long' is left out of store\.h5, and safe in \.tables: .* 2 GiB"):
        store.close()
    assert set(exported(out / "run")) == {"t"}
    assert Store(out, "run", mode="r")["long"].df["s"].tolist() == ["\0"]


@pytest.mark.parametrize("name", ["nul/axis0", "nul/axis0/x"])
@pytest.mark.parametrize("text", ["\0", "x"], ids=["fixed", "table"])
def test_a_table_named_as_a_part_of_another_is_left_out_of_store_h5(out, name, text):
    store = Store(out, "run")
    store.add_table("nul", {"s": str}).append_row({"s": "\0"})  # in fixed format
    store.add_table(name, {"s": str}).append_row({"s": text})
    with warns(repr(name)):
        store.close()
    assert exported(out / "run")["nul"]["s"].tolist() == ["\0"]


@pytest.mark.parametrize(
    "name",
    ["a/b", "é", "x y", "class", "mx^2", "%41", "lock", "cox_rows", "a/cox_rows"],
)
def test_tables_of_any_name_come_back(out, name):
    with Store(out, "run") as store:
        store.add_table(name, {"x": float}).append_row({"x": 1})
    assert exported(out / "run")[name]["x"].tolist() == [1]
    assert Store(out, "run", mode="r")[name].df["x"].tolist() == [1]
    assert CollectionReader(out).df(name)["x"].tolist() == [1]
    shutil.rmtree(out / "run" / ".tables")
    assert Store(out, "run", mode="r")[name].df["x"].tolist() == [1]


LAYOUT = {
    "numbers": pd.DataFrame({"i": [1, -2], "x": [0.5, math.nan], "y": [1.0, 2.0]}),
    "kinds": pd.DataFrame(
        {"b": [True, False], "u": np.array([1, 2], "u1"), "s": ["é", "row 2"]}
    ),
}


def layout(store):
    """What tells pandas how to read `t`; the order of blocks, and `info`, do not."""
    attributes, table = store.root.t._v_attrs, store.root.t.table
    names = "pandas_type table_type index_cols non_index_axes data_columns nan_rep"
    fixed = [
        attributes[name] for name in [*names.split(), "encoding", "errors", "levels"]
    ]
    blocks = [
        (
            table.attrs[f"{field}_kind"],
            str(table.attrs[f"{field}_dtype"]),
            table.dtype[field],
        )
        for field in attributes.values_cols
    ]
    return fixed, sorted(blocks, key=str), table.attrs.index_kind, table.dtype["index"]


@pytest.mark.parametrize("frame", LAYOUT.values(), ids=LAYOUT)
def test_a_table_in_store_h5_is_laid_out_as_pandas_does_it(out, tmp_path, frame):
    types = {"int64": int, "float64": float, "bool": bool, "uint8": np.uint8}
    schema = {c: types.get(str(t), str) for c, t in frame.dtypes.items()}
    with Store(out, "run") as store:
        table = store.add_table("t", schema)
        for row in frame.to_dict("records"):
            table.append_row(row)
    with pd.HDFStore(tmp_path / "theirs.h5") as h5:
        h5.append(
            "t", frame.astype({c: object for c in frame if schema[c] is str}),
            index=False, nan_rep="\0nan", encoding="UTF-8", errors="surrogatepass",
        )  # fmt: skip
    ours = shutil.copy(out / "run" / "store.h5", tmp_path)
    with pd.HDFStore(ours) as mine, pd.HDFStore(tmp_path / "theirs.h5") as theirs:
        assert layout(mine) == layout(theirs)
        mine.append("t", frame.iloc[:1], index=False)  # as the original goes on
        assert len(mine["t"]) == 3


ODD_TABLES = {
    "nul": ({"s": str, "x": float}, [("a\0", 1.0), ("", math.nan)]),
    "in/a/group": ({"i": int}, [(2**63 - 1,)]),
    "half": ({"x": np.float16}, [(0.1,), (65504.0,)]),
    "wide": ({f"column {i}": float for i in range(4000)}, [tuple(range(4000))]),
    "empty": ({"i": int, "s": str}, []),
    "empty nul": ({"\0": str}, []),
    "object": ({"o": OBJECT}, [([1, 2],)]),
}


def test_a_copy_without_the_hidden_directories_reads(out, tmp_path):
    with Store(out, "run") as store:
        for name, (schema, rows) in ODD_TABLES.items():
            table = store.add_table(name, schema)
            for row in rows:
                table.append_row(dict(zip(schema, row, strict=True)))
        store.add_table("files", {"p": PICKLE}).append_row({"p": 1})
    copied = tmp_path / "copies" / "run"
    shutil.copytree(out / "run", copied, ignore=shutil.ignore_patterns(".*"))
    reader = CollectionReader(copied.parent)
    assert set(reader.tables) == {*ODD_TABLES, "files"}
    mine, theirs = (Store(d, "run", mode="r") for d in (out, copied.parent))
    for name in ODD_TABLES:
        assert theirs[name].schema == mine[name].schema
        assert_frame(theirs[name].df, mine[name].df)
    with pytest.raises(CoxError, match=r"\.table_objects lacks"):
        reader.df("files")
    with Store(copied.parent, "run") as store:  # and can be gone on with
        store["nul"].append_row({"s": "\0", "x": 2})
    assert len(exported(copied)["nul"]) == 3


# Runs of the original cox


@pytest.mark.parametrize("with_dill", [False, True], ids=["plain", "dill"])
def test_a_run_of_the_original_is_read_and_continued(out, with_dill):
    schema = {"lr": float, "arch": str, "seed": int, "pre": bool, "layers": OBJECT}
    row = {"lr": 0.1, "arch": "resnet", "seed": 3, "pre": True, "layers": [64, 32]}
    stored = row | {"layers": cox.obj_to_string(row["layers"])}
    run = make_original_store(
        out / "run",
        with_dill,
        metadata=(schema, pd.DataFrame([stored])),
        t=original_t(3),
        ckpt=({"o": PICKLE}, pd.DataFrame({"o": ["some-uid"]})),
    )
    (run / ".table_objects" / "some-uid").write_bytes(pickle.dumps({"a": 1}))
    before = tree(run)
    for mode in ("r", "a"):
        store = Store(out, "run", mode=mode)
        assert store["metadata"].schema == schema
        columns = {n: as_column(kind, [stored[n]]) for n, kind in schema.items()}
        assert_frame(store["metadata"].df, columns)
        assert_logged(store["t"].df, 3)
        assert store["ckpt"].get_pickle(store["ckpt"].df["o"][0]) == {"a": 1}
        store.close()
    assert CollectionReader(out).df("metadata")["layers"].tolist() == [[64, 32]]
    assert CollectionReader(out).df("ckpt")["o"].tolist() == [{"a": 1}]
    assert tree(run) == before
    with Store(out, "run") as store:
        store["t"].append_row({"i": 3, "note": "much longer than the first row"})
        assert store["t"].df["note"][3] == "much longer than the first row"
        assert store["metadata"].df["seed"].tolist() == [3]
    assert {p.name for p in (run / ".tables").glob("*.rows")} == {
        "metadata.rows",
        "t.rows",
        "ckpt.rows",
    }
    assert len(exported(run)["t"]) == 4


def test_a_torn_image_of_a_live_original_is_read_again(original, monkeypatch):
    path = original / "store.h5"
    whole, waits = path.read_bytes(), []

    def write_all_of_it(seconds):
        waits.append(seconds)
        path.write_bytes(whole)
        os.utime(path, (time.time() + 1,) * 2)  # later, whatever the clock's grain

    path.write_bytes(whole[:3000])
    monkeypatch.setattr(cox, "time", but(time, sleep=write_all_of_it))
    assert_logged(Store(original.parent, "run", mode="r")["t"].df, 3)
    assert waits


def test_a_live_run_of_the_original_is_read_but_not_written(original):
    with tables.open_file(original / "store.h5", mode="a"):
        assert_logged(Store(original.parent, "run", mode="r")["t"].df, 3)
        assert_logged(CollectionReader(original.parent).df("t"), 3)
        store = Store(original.parent, "run")
        with pytest.raises(CoxError, match=r"store\.h5"):
            log(store, 1)
        assert not (original / ".tables").exists()
    log(store, 1)
    store.close()


def test_a_broken_run_of_the_original_can_be_begun_afresh(original):
    (original / "store.h5").write_bytes(b"junk")
    with warns(r"store\.h5"), Store(original.parent, "run", mode="w") as store:
        log(store, 2)
    [kept] = original.glob("store.h5.*")
    assert kept.read_bytes() == b"junk"
    assert_logged(exported(original)["t"], 2)


def test_a_run_whose_store_is_a_link_can_be_begun_afresh(original, tmp_path):
    elsewhere = (original / "store.h5").rename(tmp_path / "elsewhere.h5")
    (original / "store.h5").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with warns(r"store\.h5"), Store(original.parent, "run", mode="w") as store:
        log(store, 2)
    [kept] = original.glob("store.h5.*")
    assert kept.is_symlink()
    assert elsewhere.read_bytes() == before
    assert_logged(exported(original)["t"], 2)


def test_two_processes_convert_a_run_once(original, around):
    others = []

    def convert_meanwhile(call, name, *args):
        if name == "flock" and not others:
            others.append(load_again())
            with others[0].Store(original.parent, "run") as other:
                log(other, 1)
        return call(*args)

    around(convert_meanwhile)
    with Store(original.parent, "run") as store:
        log(store, 1)
        assert_logged(store["t"].df, 5)
    assert others


class Bomb:
    """Its pickle makes a directory when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats()
    | st.text(max_size=20) | st.binary(max_size=20),
    lambda values: st.lists(values, max_size=5)
    | st.lists(values, max_size=5).map(tuple)
    | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), values, max_size=5),
    max_leaves=20,
)  # fmt: skip


@examples(4)
@given(value=PLAIN_VALUES, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL))
def test_a_pickle_of_plain_values_is_understood(value, protocol):
    assert repr(cox._load_plain(pickle.dumps(value, protocol))) == repr(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dumps", [pickle.dumps, dill_dumps], ids=["pickle", "dill"])
def test_types_in_a_pickle_are_taken_for_their_names(dumps, protocol):
    schema = {"i": int, "j": int, "x": float, "s": str, "b": bool, "o": OBJECT}
    names = {n: t if t is OBJECT else t.__name__ for n, t in schema.items()}
    assert cox._load_plain(dumps({"schema": schema}, protocol)) == {"schema": names}
    if dumps is pickle.dumps:
        value = [np.float32, np.int64, np.bool_, np.float32]
        names = ["float32", "int64", "bool", "float32"]
        assert cox._load_plain(dumps(value, protocol)) == names


def test_types_of_python_2_are_understood():
    data = b"(lp1\nc__builtin__\nlong\np2\nac__builtin__\nunicode\np3\nag2\na."
    assert cox._load_plain(data) == ["int", "str", "int"]


def nested(value, times, wrap):
    for _ in range(times):
        value = wrap(value)
    return value


tuples = b"".join(b"\x85" for _ in range(10**5))
# Keys and values of a dictionary, which would take a second to make.
equal_hashes = b"".join(
    pickle.dumps(i * (2**61 - 1), 2)[2:-1] + b"K\x01" for i in range(9, 10**4)
)
REFUSED_PICKLES = {
    "call": pickle.dumps(Bomb("bomb")),
    "type-called": b"cbuiltins\nint\n(S'7'\ntR.",
    "new": b"\x80\x02cbuiltins\nint\n)\x81.",
    "new-ex": b"\x80\x04cbuiltins\nint\n)}\x92.",
    "build": b"]}b.",
    "instance": b"(S'7'\nibuiltins\nint\n.",
    "object": b"(cbuiltins\nint\nI7\no.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pname\n.",
    "numpy-function": b"cnumpy\nzeros\n.",
    "dotted": b"\x80\x04\x8c\x08builtins\x8c\x08str.join\x93.",
    "any-type-by-dill": b"cdill._dill\n_load_type\n(S'type'\ntR.",
    "shared": pickle.dumps([[]] * 2),
    "billion-laughs": pickle.dumps(nested(["lol"], 40, lambda x: [x, x])),
    "exponential-hash": b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"K\x01s.",
    "tuples-of-one-hash": pickle.dumps({(i, 0): 1 for i in range(10**4)}),
    "type-built": b"cbuiltins\nint\n}b.",
    "dill-built": b"cdill._dill\n_load_type\n}b.",
    "dill-not-called": b"(cdill._dill\n_load_type\nl.",
    "dill-with-more": b"cdill._dill\n_load_type\n(S'int'\nS'int'\ntR.",
    "deep-tuple": b"\x80\x02)" + tuples + b".",
    "deep-tuple-as-key": b"\x80\x02})" + tuples + b"K\x01s.",
    "deep-list": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "deep-key": b"\x80\x02})" + b"\x85" * 100 + b"K\x01s.",
    "equal-hashes": b"\x80\x02}(" + equal_hashes + b"u.",
    "huge-int": pickle.dumps(10**4300),
    "long-text": pickle.dumps("x" * (1 << 20)),
    "text-often": pickle.dumps(["x" * 1000] * 2000),
    "memo-of-gigabytes": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytes-not-there": b"\x80\x05\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
    "bytearray": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "nothing": b"",
    "no-stop": b"N",
    "no-mark": b"t.",
    "empty-stack": b".",
}


@pytest.mark.parametrize("data", REFUSED_PICKLES.values(), ids=REFUSED_PICKLES)
def test_a_pickle_that_is_not_plain_or_too_much_is_refused(data):
    with pytest.raises((pickle.UnpicklingError, ValueError, LookupError, TypeError)):
        cox._load_plain(data)


@pytest.mark.parametrize("whose", ["run", "original"])
@pytest.mark.parametrize(
    ("node", "attribute"),
    [
        ("/", "anything"),
        ("/", "TITLE"),
        ("/t", "COX_DATA"),
        ("/t", "info"),
        ("/t", "non_index_axes"),
        ("/t", "pandas_type"),
        ("/t/table", "values_block_0_kind"),
        ("/t/table", "anything"),
        ("/other", "cox"),
    ],
    ids=lambda value: value,
)
def test_planted_pickles_do_not_run(request, tmp_path, quiet, whose, node, attribute):
    run, bomb = request.getfixturevalue(whose), tmp_path / "bomb"
    with tables.open_file(run / "store.h5", mode="a") as h5:
        planted = np.bytes_(pickle.dumps(Bomb(bomb), 0))
        h5.get_node(node)._v_attrs[attribute] = planted
    use_in_every_way(run)
    assert not bomb.exists()
    pickle.loads(bytes(planted))
    assert bomb.exists()  # it was live


def use_in_every_way(run):
    for use in (
        lambda: repr(Store(run.parent, "run", mode="r")),
        lambda: Store(run.parent, "run")["other"].df,
        lambda: CollectionReader(run.parent, skip_errs=True).df("other"),
        lambda: Store(run.parent, "run").add_table("new", {"x": float}),
    ):
        with contextlib.suppress(CoxError):
            use()


@pytest.mark.parametrize("path", ["/_p_transactions/x", "/t/table", "/t/cox_rows"])
def test_planted_arrays_of_pickles_do_not_run(original, tmp_path, quiet, path):
    bomb, (parent, _, name) = tmp_path / "bomb", path.rpartition("/")
    with tables.open_file(original / "store.h5", mode="a") as h5:
        if parent not in h5:
            h5.enable_undo()  # makes it, and reads it when it opens a file to write
        if path in h5:
            h5.remove_node(path)
        array = h5.create_vlarray(parent, name, tables.ObjectAtom())
        array.append(Bomb(bomb))
    use_in_every_way(original)
    assert not bomb.exists()


def test_a_link_in_a_store_h5_is_not_followed(original, tmp_path):
    secret = make_original_store(tmp_path / "secret", t=original_t(5)) / "store.h5"
    with tables.open_file(original / "store.h5", mode="a") as h5:
        h5.remove_node("/t", recursive=True)
        h5.create_external_link("/", "t", f"{secret}:/t")
        h5.create_external_link("/other", "deep", f"{secret}:/t")
    assert set(Store(original.parent, "run", mode="r").tables) == {"other"}


def _break_a_name(run):
    """A group whose name is not UTF-8, which crashes some versions of PyTables."""
    path = run / "store.h5"
    path.write_bytes(path.read_bytes().replace(b"other\0", b"\xff\xfeher\0"))


def _claim_much(run):
    """An array that takes no room in the file, and 30 GB in memory."""
    with tables.open_file(run / "store.h5", mode="a") as h5:
        h5.create_carray("/t", "cox_rows", tables.UInt8Atom(), shape=(30 << 30,))
        h5.create_carray("/t", "cox_text", tables.UInt8Atom(), shape=(1,))


HARMFUL = {
    "name": (_break_a_name, "it cannot be read"),
    "memory": (_claim_much, "MemoryError"),
    "junk": (lambda run: (run / "store.h5").write_bytes(b"x" * 5000), "damaged"),
    "empty": (lambda run: (run / "store.h5").write_bytes(b""), "damaged"),
    "fifo": (lambda run: _make_fifo(run / "store.h5"), "no regular file"),
    "link": (lambda run: _make_link(run / "store.h5"), "no regular file"),
}


def _make_fifo(path):
    path.unlink()
    os.mkfifo(path)


def _make_link(path):
    path.rename(path.with_name("real.h5"))
    path.symlink_to("real.h5")


@pytest.mark.parametrize(("harm", "reason"), HARMFUL.values(), ids=HARMFUL)
def test_a_harmful_store_h5_costs_its_own_run_only(out, harm, reason):
    tables_ = {"t": original_t(3), "other": ({"i": int}, pd.DataFrame({"i": [1]}))}
    runs = [make_original_store(out / exp_id, **tables_) for exp_id in "abc"]
    harm(runs[1])
    with warns(f"run b.*b/store\\.h5: .*{reason}"):
        reader = CollectionReader(out, skip_errs=True)
        frame = reader.df("t", skip_errors=True)
    assert frame["exp_id"].tolist() == ["a"] * 3 + ["c"] * 3


def mutate(data, rng):
    """Damage bytes as a disk does, and as one does who knows where to."""
    at = rng.randrange(len(data) if rng.random() < 0.5 else 4096)
    size = rng.choice([1, 8, 64, 512])
    put = rng.choice(
        [bytes(size), rng.randbytes(size), bytes([data[at] ^ 1 << at % 8])]
    )
    return data[:at] if rng.random() < 0.1 else data[:at] + put + data[at + len(put) :]


def test_a_mutated_store_h5_is_read_or_refused(original, tmp_path):
    # several of these would crash this process
    with Store(tmp_path / "own", "run") as store:
        log(store, 3)
        store.add_table("nul", {"s": str}).append_row({"s": "\0"})
    runs = original, tmp_path / "own" / "run"
    sources = [(run / "store.h5").read_bytes() for run in runs]
    rng, mutants = random.Random(0), []
    for i in range(100):
        mutants.append(tmp_path / "mutants" / str(i))
        mutants[-1].mkdir(parents=True)
        path = mutants[-1] / "store.h5"
        path.write_bytes(mutate(sources[i % 2], rng))
        os.utime(path, (0, 0))  # no writer is waited for
    results = [names_of_original(path) for path in mutants]
    assert {type(result) for result in results} == {list, cox.CorruptError}
    assert set(read_original(original)) == {"t", "other"}


def test_frames_of_the_users_own_in_an_original_are_kept_aside(original):
    with pd.HDFStore(original / "store.h5", "a") as file:
        file.append("mine", pd.DataFrame({"a": [1, 2, 3]}))
    with warns(r"kept .*store\.h5"), Store(original.parent, "run") as store:
        log(store, 1)
    [aside] = original.glob("store.h5.*")
    assert pd.read_hdf(aside, "mine")["a"].tolist() == [1, 2, 3]
    assert len(pd.read_hdf(original / "store.h5", "t")) == 4


def names_of_original(run_dir):
    """Return the names of its tables, or the error; all of them are read."""
    try:
        return [*Store(run_dir.parent, run_dir.name, mode="r").tables]
    except cox.CoxError as err:
        return err


def read_original(run_dir, module=cox):
    """Return the frames of a run of the original by table, or the error."""
    try:
        store = module.Store(run_dir.parent, run_dir.name, mode="r")
        return {name: table.df for name, table in store.tables.items()}
    except module.CoxError as err:
        return err


def answering(code):
    """Code of a child that answers any path in this way."""
    return f"import sys\nsys.stdin.readline()\n{code}\nsys.stdout.flush()"


def child_answer(**tables_):
    """What the child answers for a run that holds: name=(columns, rows)."""
    listing, data = [], b""
    for name, (columns, rows) in tables_.items():
        encoded, text = encode_rows(columns, rows)
        header, _, records = encoded.partition(b"\n")
        listing.append([name, f"{header.decode()}\n", (len(records), len(text))])
        data += records + text
    return json.dumps(["", listing, True]).encode() + b"\n" + data


def answer_rows(change=lambda listing, data: (listing, data)):
    """A child's answer of two rows, or one that is not quite that."""
    answer = child_answer(t=({"s": "str"}, [("ab",), ("c",)]))
    line, _, data = answer.partition(b"\n")
    listing, data = change(json.loads(line), data)
    answer = json.dumps(listing).encode() + b"\n" + data
    return answering(f"sys.stdout.buffer.write({answer!r})")


def answer_part(place, value):
    """Its listing says something else of the table: its header or its sizes."""

    def change(listing, data):
        listing[1][0][place] = value
        return listing, data

    return answer_rows(change)


def answer_flipped(at):
    """A byte of its records is another one."""

    def change(listing, data):
        return listing, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return answer_rows(change)


def more_text(listing, data):
    listing[1][0][2][1] += 1
    return listing, data + b"x"


OTHER_HEADER = encode_rows({"s": "str", "x": "float"}, [])[0].decode()
LIES = {
    "silence": answering(""),
    "other-bytes": answering("sys.stdout.buffer.write(bytes(range(256)))"),
    "deep-json": answering("print('[' * 10**6)"),
    "endless-line": answering("while True: sys.stdout.write('[' * 10**6)"),
    "not-a-list": answering("print('7')"),
    "more-than-there-is": answer_part(2, (1 << 40, 1 << 40)),
    "less-than-nothing": answer_part(2, (-1, 3)),
    "part-of-a-record": answer_part(2, (7, 3)),
    "too-much-text": answer_rows(more_text),
    "no-header": answer_part(1, "{}\n"),
    "another-header": answer_part(1, OTHER_HEADER),
    "wrong-number": answer_flipped(0),
    "wrong-check": answer_flipped(63),
}


@pytest.fixture
def ask_child(original, monkeypatch):
    """Have `original` read, as often as is said, by a child that runs other code."""
    fresh = load_again()  # it has no child yet
    started = []

    def ask(change, times=1):
        def start(command, **options):
            *python, code, file = command[:5]
            command[:5] = *python, change(code), file
            started.append(subprocess.Popen(command, **options))
            return started[-1]

        monkeypatch.setattr(fresh, "subprocess", but(subprocess, Popen=start))
        return [read_original(original, fresh) for _ in range(times)]

    yield ask
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize("code", LIES.values(), ids=LIES)
def test_what_the_child_answers_is_not_trusted(ask_child, code):
    [error] = ask_child(lambda _: code)
    assert type(error).__name__ == "CorruptError"
    assert re.search(r"run/store\.h5: it cannot be read", str(error))


def test_answers_of_that_form_are_taken(ask_child):
    [found] = ask_child(lambda _: answer_rows())
    assert found["t"]["s"].tolist() == ["ab", "c"]


HARM = """
import sys
sys.path[:] = sys.argv[2:]
import os, tables
warm = iter([tables.open_file] * 2)  # cox makes a file, and reads it
def open_file(*args, **kwargs):
    for real in warm:
        return real(*args, **kwargs)
    {}
tables.open_file = open_file
"""


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param("open('/dev/null')", "Too many open files", id="files"),
        pytest.param("bytearray(9 << 30)", "MemoryError", id="memory"),
        pytest.param("os.kill(os.getpid(), 9)", "read it: -9", id="kill"),
    ],
)
def test_the_child_has_limits(ask_child, harm, reason):
    results = ask_child(lambda code: HARM.format(harm) + code, times=2)
    assert [reason in str(result) for result in results] == [True, True]


def test_a_child_that_is_gone_is_begun_again(original, monkeypatch):
    fresh, started = load_again(), []

    def start(*args, **options):
        started.append(subprocess.Popen(*args, **options))
        return started[-1]

    def read():
        return read_original(original, fresh).keys() == {"t", "other"}

    monkeypatch.setattr(fresh, "subprocess", but(subprocess, Popen=start))
    assert read()
    os.killpg(started[0].pid, signal.SIGKILL)
    assert read()
    pid = os.fork()  # has a child of its own, and leaves the parent's alone
    if pid == 0:
        os._exit(7 if read() and len(started) == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert read()
    assert len(started) == 2
    with started[1] as process:
        process.kill()


def test_a_vendored_copy_reads_a_run_of_the_original(vendored, original, forked):
    for name in "random", "tables", "sitecustomize":  # its neighbours are none of it
        (vendored / "pkg" / f"{name}.py").write_text("raise SystemExit(1)")
    code = "import sys, pkg.cox; print(pkg.cox.Store(*sys.argv[1:], mode='r'))"
    printed = forked("-c", code, original.parent, "run", cwd=vendored)
    assert "row 2" in printed


def test_pickled_columns_run_only_when_decoded(out, tmp_path):
    bomb = tmp_path / "bomb"
    with Store(out, "run") as store:
        table = store.add_table("t", {"o": OBJECT, "p": PICKLE})
        table.append_row({"o": Bomb(bomb), "p": Bomb(bomb)})
        repr(table), table.df
    _ = Store(out, "run", mode="r")["t"].df
    reader = CollectionReader(out)
    repr(reader)
    assert reader.df("t", keep_serialized=["o", "p"]).shape == (1, 3)
    assert not bomb.exists()
    for kept in ("o", "p"):
        reader.df("t", keep_serialized=[kept])
        bomb.rmdir()  # it went off


###############################################################################
# History
###############################################################################

# Forks once per ending, so that each is that of a process, for the price of one.
ENDINGS = """
import atexit, multiprocessing, os, signal, sys
atexit.register(os._exit, 0)  # comes last: to free all that is imported takes long
late = []
atexit.register(lambda: [table.append_row({"x": 2}) for table in late])
from cox import Store

def log(exp_id, **options):
    store = Store(sys.argv[1], exp_id, **options)
    store.add_table("t", {"x": float}).append_row({"x": 1})
    return store

def log_and_return(exp_id):
    log(exp_id)

def end(name):
    global store
    if name in ("fork", "spawn"):
        start = multiprocessing.get_context(name).Process
        worker = start(target=log_and_return, args=[name])
        worker.start()
        return worker.join()
    if name.endswith("in with"):
        with log(name) as store:
            sys.exit(0 if "0" in name else 3)
    if name == "parent":
        store = log(name)
        if not os.fork():
            sys.exit()
        os.wait()
        store.close()
        os._exit(0)
    if name == "requeue":
        if not os.fork():
            log(name)
            os._exit(1)
        os.wait()
        return log(name).close()
    store = log(name, history=name != "no history")
    if name == "logs at exit":
        late.append(store["t"])
    if name == "raise":
        raise RuntimeError("out\\nof memory")
    if name == "ctrl-c":
        signal.raise_signal(signal.SIGINT)
    if name == "prompt":
        sys.ps1 = ">>> "
        raise RuntimeError
    if name in ("SIGTERM", "SIGKILL"):
        os.kill(os.getpid(), getattr(signal, name))
    if name == "_exit":
        os._exit(0)
    if name == "exit":
        sys.exit(3)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log("closed").close()  # so that those forked find all that takes time to load
    for name in sys.argv[2].split(","):
        if not (pid := os.fork()):
            end(name)
            break
        os.waitpid(pid, 0)
"""
ENDED = {
    "closed": ("done", ""),
    "falls off": ("ended", ""),
    "no history": ("", ""),
    "logs at exit": ("ended", ""),
    "raise": ("failed", "RuntimeError: out of memory"),
    "exit": ("ended", ""),  # it did not say whether that is bad
    "exit in with": ("failed", "SystemExit: 3"),
    "exit 0 in with": ("done", ""),
    "ctrl-c": ("interrupted", "KeyboardInterrupt"),
    "prompt": ("ended", ""),  # the exception was of another cell
    "SIGTERM": ("dead", ""),
    "SIGKILL": ("dead", ""),
    "_exit": ("dead", ""),
    "fork": ("ended", ""),
    "spawn": ("ended", ""),
    "parent": ("done", ""),
}
SECRETS = [
    "--hf-token",
    "S1",
    "--num-tokens",
    "5",
    "db.api_key=S2",
    "--password",
    "-S3",
]
SECRETS += ["--secret=S4=x", "--env=API_KEY=S6", "--credentials", "--verbose"]


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """A directory of runs, each written by a process that ended as its id says."""
    tmp_path = tmp_path_factory.mktemp("endings")
    script = tmp_path / "train.py"
    script.write_text(ENDINGS)
    env = os.environ | {"SLURM_JOB_ID": "77", "HF_TOKEN": "S5", "PYTHONPATH": str(HERE)}
    names = ",".join([*ENDED, "requeue"][1:])
    command = [sys.executable, script, tmp_path / "out", names]
    subprocess.run(
        [*command, *SECRETS], env=env, cwd=tmp_path, capture_output=True, timeout=60
    )
    return tmp_path / "out"


def test_each_end_of_a_process_has_its_word(endings):
    runs = CollectionReader(endings).runs()
    said = {e: (runs.status[e], runs.error[e]) for e in runs.index}
    assert said == ENDED | {"requeue": ("done", "")}
    attempts = runs.attempts.to_dict()
    assert (attempts.pop("requeue"), attempts.pop("no history")) == (2, 0)
    assert set(attempts.values()) == {1}
    assert Store(endings, "logs at exit", mode="r")["t"].nrows == 2


def test_a_history_says_who_wrote_the_run_and_no_secret(endings):
    begun, ended = Store(endings, "raise", mode="r").history
    assert begun.keys() == {
        *("time", "host", "boot", "pid", "user", "cwd", "argv", "python", "versions"),
        *("git", "job"),
    }
    assert begun["host"] == socket.gethostname()
    assert begun["job"] == {"SLURM_JOB_ID": "77"}
    assert begun["versions"].items() >= {
        ("pandas", pd.__version__),
        ("cox", cox.__version__),
    }
    assert not begun["versions"].keys() & sys.stdlib_module_names
    assert begun["argv"][-len(SECRETS) :] == [
        *("--hf-token", "***", "--num-tokens", "5", "db.api_key=***"),
        *("--password", "***", "--secret=***", "--env=API_KEY=***"),
        *("--credentials", "--verbose"),
    ]
    assert ended["trace"].startswith("Traceback")
    assert ended["cpu_s"] > 0
    assert ended["max_rss_mb"] > 10
    for path in endings.glob("*/.tables/history.jsonl"):
        assert not re.search(r"S\d", path.read_text())


def words(out):
    return CollectionReader(out).runs().status.to_dict()


def begin(out, exp_id, **options):
    store = Store(out, exp_id, **options)
    log(store, 1)
    return store


def test_an_exception_on_its_way_makes_the_end_a_failure(out, monkeypatch):
    monkeypatch.delattr(sys, "last_value", raising=False)
    begin(out, "closed").close()
    with begin(out, "with"):
        pass
    with contextlib.suppress(ZeroDivisionError), begin(out, "raise in with"):
        _ = 1 / 0
    with contextlib.suppress(KeyboardInterrupt), begin(out, "ctrl-c in with"):
        raise KeyboardInterrupt

    def steps():
        with begin(out, "generator"):
            yield

    generator = steps()
    next(generator)
    generator.close()
    store = begin(out, "finally")
    with contextlib.suppress(ZeroDivisionError), contextlib.closing(store):
        _ = 1 / 0
    try:
        _ = 1 / 0
    except ZeroDivisionError:  # of something else
        begin(out, "amid an except").close()
    begin(out, "dropped")
    gc.collect()
    assert words(out) == {
        **dict.fromkeys(["closed", "with", "amid an except"], "done"),
        **dict.fromkeys(["raise in with", "finally"], "failed"),
        **dict.fromkeys(["ctrl-c in with", "generator"], "interrupted"),
        "dropped": "ended",
    }


def test_a_run_is_running_until_it_says_otherwise(out, run):
    with begin(out, "run"):
        assert words(out) == {"run": "running"}
        assert CollectionReader(out).runs().seconds["run"] >= 0
    assert words(out) == {"run": "done"}


def test_where_the_lock_is_not_seen_a_run_is_silent(out, run):
    path = run / ".tables" / "history.jsonl"
    begun, _ = path.read_text().splitlines()
    path.write_text(begun + "\n")
    with (path.parent / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # of another that looks
        assert words(out) == {"run": "dead"}
    hour = 3600

    def no_locks(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cox, "fcntl", but(fcntl, flock=no_locks))
        assert words(out) == {"run": "silent 0s"}
    path.write_text(json.dumps(json.loads(begun) | {"boot": "other"}) + "\n")
    for rows in path.parent.glob("*.rows"):
        os.utime(rows, (time.time(), time.time() - 3 * hour))
    assert words(out) == {"run": "silent 3h"}
    for rows in path.parent.glob("*.rows"):  # as mode "w" does
        rows.unlink()
    os.utime(path.parent, (time.time(), time.time() - 5 * hour))
    assert words(out) == {"run": "silent 5h"}


def test_a_writer_that_ends_or_begins_between_two_looks_is_not_called_dead(
    out, run, around
):
    path = run / ".tables" / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    looks = iter([lambda: path.write_text("".join(lines)), lambda: None])

    def look(call, name, *args):
        if name == "flock":
            next(looks)()
        return call(*args)

    around(look)
    assert words(out) == {"run": "done"}
    assert next(looks, None)


def test_nothing_written_leaves_no_line(out, run):
    make_original_store(out / "original", t=original_t(3))
    before = Store(out, "run", mode="r").history
    for use in (
        lambda store: store["t"].df,
        lambda store: store.add_table("t", {"other": float}),
        lambda store: store["t"].append_row({"i": "x"}),
    ):
        with contextlib.suppress(CoxError), Store(out, "run") as store:
            use(store)
    with begin(out, "run"):
        store = Store(out, "run", history=False)
    Store(out, "empty").close()
    assert Store(out, "run", mode="r").history[: len(before)] == before
    assert [Store(out, e, mode="r").history for e in ("empty", "original")] == [[], []]
    assert words(out)["original"] == ""


def test_many_rows_and_tables_make_one_line(store):
    log(store, 100)
    store.add_table("other", {"x": float}).append_row({"x": 1})
    store.checkpoint()
    assert len(store.history) == 1
    store.close()
    assert [line.get("status") for line in store.history] == [None, "done"]


def test_a_torn_last_line_is_passed_over_and_begun_afresh(run):
    path = run / ".tables" / "history.jsonl"
    whole = path.read_bytes()
    for size in range(len(whole) - 2, len(whole) - 20, -6):
        path.write_bytes(whole[:size])
        assert len(Store(run.parent, "run", mode="r").history) == 1
    begin(run.parent, "run").close()
    history = Store(run.parent, "run", mode="r").history
    assert [line.get("status") for line in history] == [None, None, "done"]


NOT_HISTORIES = {
    "a-link": lambda path: path.symlink_to(path.parent.parent / "save" / "elsewhere"),
    "a-link-to-a-file": lambda path: path.symlink_to(path.parent / "lock"),
    "a-fifo": os.mkfifo,
    "a-directory": os.mkdir,
}


@pytest.mark.parametrize("make", NOT_HISTORIES.values(), ids=NOT_HISTORIES)
def test_what_is_no_history_file_is_left_alone_and_stops_no_run(out, run, make):
    path = run / ".tables" / "history.jsonl"
    path.unlink()
    make(path)
    before = (path.parent / "lock").stat().st_size
    begin(out, "run").close()
    assert not os.listdir(run / "save")
    assert (path.parent / "lock").stat().st_size == before
    with warns("run run: .*history.jsonl"):
        assert words(out)["run"] != "done"
    path.rmdir() if path.is_dir() else path.unlink()


def test_a_history_that_cannot_be_written_stops_no_run(store, around, monkeypatch):
    monkeypatch.setattr(cox.getpass, "getuser", lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "odd", None)
    path = pathlib.Path(store.path, ".tables", "history.jsonl")

    def full(call, name, *args):
        if name == "open" and str(args[0]) == str(path):
            raise OSError(errno.ENOSPC, "full")
        return call(*args)

    log(store, 1)
    assert "user" not in store.history[0]
    around(full)
    store.close()


STRANGE = b"""
{"time": 5, "host": ["h"], "boot": {}, "argv": 3, "git": "main", "job": [1]}
[1]
{"a": %s
{"time": "9999-12-31T23:59:59", "status": {"a": "done"}, "error": 7}
{"time": "+1e400", "job": {"SLURM_JOB_ID": 5}, "git": {"commit": 7, "changed": 3}}
{"time": "2026-01-01T00:00:00", "status": "\\u001b[2Jdone\\n", "error": "\\u0007"}
""" % (b"[" * 100_000)


def test_a_strange_history_is_read_without_harm(out, run, monkeypatch, capsys):
    (run / ".tables" / "history.jsonl").write_bytes(STRANGE)
    [row] = CollectionReader(out).runs().to_dict("records")
    assert row["attempts"] == 1
    assert (row["host"], row["job"], row["commit"]) == ("", "5", "7+")
    for command in (
        ["ls", out],
        ["ls", out, "--csv"],
        ["show", run],
        ["ls", out, "-q"],
    ):
        assert cox.main([*map(str, command)]) == 0
    said = capsys.readouterr()
    assert "done" in said.out
    assert not {c for c in said.out + said.err if not c.isprintable()} - {"\n"}


def _look_in_a_loop(out, begun, stop):
    def lock_and_wait(*args):
        fcntl.flock(*args)
        time.sleep(0.003)  # the shared lock is held most of the time

    cox.fcntl = but(fcntl, flock=lock_and_wait)
    while not stop.is_set():
        words(out)
        begun.set()


def test_readers_that_look_at_the_lock_never_stop_a_writer(out, child):
    path = pathlib.Path(begin(out, "run").path, ".tables", "history.jsonl")
    path.write_text(path.read_text().splitlines()[0] + "\n")  # as if it had died
    begun, stop = MP.Event(), MP.Event()
    reader = child(_look_in_a_loop, out, begun, stop)
    assert begun.wait(60)
    for _ in range(50):
        Store(out, "run", mode="w", history=False).close()
    stop.set()
    reader.end()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit, in which the program runs."""
    root = tmp_path / "repo"
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "x")
        monkeypatch.setenv(f"{name}_EMAIL", "x@example.com")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "train.py").write_text("a\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    monkeypatch.chdir(root)
    return root


def git(root, *args):
    done = subprocess.run(["git", "-C", root, *args], capture_output=True, check=True)
    return done.stdout.decode().strip()


def git_of(out, *exp_ids, module=None):
    """What runs of a new process are told of git."""
    module = module or load_again()
    for exp_id in exp_ids or ["run"]:
        with module.Store(out, exp_id) as store:
            log(store, 1)
    return Store(out, exp_id, mode="r").history[-2]["git"]


def test_commit_and_changes_are_those_of_git(repository):
    for option in "color.ui=always", "diff.noprefix=true":  # no patch is like that
        git(repository, "config", *option.split("="))
    out = repository / "out"
    Store(out, "other").close()
    (repository / "train.py").write_text("b\n")
    (repository / "new.py").write_text("c\n")
    found = git_of(out)
    patch = (out / "run" / ".tables" / "1.patch").read_bytes()
    assert found == {
        "root": str(repository),
        "branch": "main",
        "commit": git(repository, "rev-parse", "HEAD"),
        "changed": [" M train.py", "?? new.py"],  # not the runs themselves
        "diff_bytes": len(patch),
    }
    git(repository, "checkout", "-q", "train.py")
    git(repository, "apply", str(out / "run" / ".tables" / "1.patch"))
    assert (repository / "train.py").read_text() == "b\n"
    [row] = CollectionReader(out, exp_filter="run".__eq__).runs().to_dict("records")
    assert row["commit"] == found["commit"][:8] + "+"


def test_a_program_without_a_file_is_of_the_repository_it_runs_in(repository, out):
    inner = repository / "inner"
    inner.mkdir()
    git(inner, "init", "-q", "-b", "other")
    os.chdir(inner)
    assert git_of(out)["root"] == str(inner)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *((code, "done") for code in (None, 0, False)),
        *((code, "failed") for code in (1, True, "", "no", [], 0.0, np.zeros(2))),
    ],
    ids=repr,
)
def test_an_exit_is_a_success_where_the_system_is_told_so(out, code, expected):
    with contextlib.suppress(SystemExit), begin(out, "run"):
        sys.exit(code)
    assert words(out) == {"run": expected}


def test_an_exception_is_not_taken_for_one_of_before(out):
    try:
        raise ValueError("before")
    except ValueError:
        store = begin(out, "run")
    # the other one is gone, and this one takes its place in memory
    with contextlib.suppress(RuntimeError), store:
        raise RuntimeError("within")
    assert words(out) == {"run": "failed"}


def test_an_exception_that_did_not_leave_the_with_is_no_failure(out):
    store = Store(out, "run")
    log(store, 1)
    try:
        raise ValueError("before")
    except ValueError:
        with store:
            pass
    other = Store(out, "other")
    log(other, 1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(other)
        stack.enter_context(contextlib.suppress(ValueError))
        raise ValueError("within")
    assert [*CollectionReader(out).runs()["status"]] == ["done", "done"]


def test_an_installed_tool_is_not_the_program(repository, out, monkeypatch):
    prefix = repository / "versions" / "3.14"  # as pyenv has it
    tool = prefix / "bin" / "pytest"
    tool.parent.mkdir(parents=True)
    tool.touch()
    work = repository.parent / "work"
    work.mkdir()
    git(work, "init", "-q")
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tool), raising=False)
    assert git_of(out)["root"] == str(repository)
    monkeypatch.setattr(sys, "prefix", str(prefix))
    assert git_of(out, "other")["root"] == str(work)


def test_a_clean_repository_has_no_patch(repository, out):
    assert git_of(out)["changed"] == []
    assert not list(out.rglob("*.patch"))


def test_a_huge_patch_is_not_kept(repository, out):
    (repository / "train.py").write_text("b" * (1 << 20))
    assert git_of(out)["diff_bytes"] > 1 << 20
    assert not list(out.rglob("*.patch"))


HEADS = {
    "packed": ["pack-refs", "--all"],
    "detached": ["checkout", "-q", "--detach"],
    "a-branch-of-two-parts": ["checkout", "-qb", "a/b"],
}


@pytest.mark.parametrize("command", HEADS.values(), ids=HEADS)
def test_the_commit_is_found_without_git(repository, out, monkeypatch, command):
    git(repository, *command)
    commit, branch = (
        git(repository, "rev-parse", "HEAD"),
        git(repository, "branch", "--show-current"),
    )
    (repository / "sub").mkdir()
    monkeypatch.chdir(repository / "sub")
    monkeypatch.setenv("PATH", "")
    found = git_of(out)
    assert (found["commit"], found.get("branch", "")) == (commit, branch)
    assert "changed" not in found


def test_a_worktree_has_a_commit_of_its_own(repository, out, monkeypatch):
    tree_ = repository.parent / "tree"
    git(repository, "worktree", "add", "-q", "-b", "b", str(tree_))
    git(tree_, "commit", "-q", "--allow-empty", "-m", "y")
    monkeypatch.chdir(tree_)
    found = git_of(out)
    assert found["commit"] == git(tree_, "rev-parse", "HEAD")
    assert (found["root"], found["branch"]) == (str(tree_), "b")


def test_a_git_that_hangs_is_not_waited_for(repository, out, tmp_path, monkeypatch):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 60")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    fresh, waits = load_again(), []

    def run(*args, timeout, **options):
        waits.append(timeout)
        return subprocess.run(*args, timeout=timeout / 20, **options)

    monkeypatch.setattr(fresh, "subprocess", but(subprocess, run=run))
    found = git_of(out, "run", "other", module=fresh)
    assert found.keys() == {"root", "branch", "commit"}
    [wait] = waits  # it is asked once, not for each run
    assert 0 < wait <= 2


###############################################################################
# Run directory
###############################################################################


def fail_once(around, name, path, number=errno.EIO):
    """Let the first such call on a file fail, after it is done."""
    hits = []

    def function(call, called, *args):
        result = call(*args)
        if called == name and not hits and is_open_at(args[0], path):
            hits.append(path)
            raise OSError(number, os.strerror(number))
        return result

    around(function)
    return hits


def test_a_sync_that_failed_is_not_forgotten(out, around):
    store = Store(out, "run")
    log(store, 2)
    hits = fail_once(around, "fsync", out / "run" / ".tables" / "t.rows")
    for attempt in (store.checkpoint, store.checkpoint, store.close):
        with pytest.raises(cox.StorageError, match="refused to sync"):
            attempt()
    assert hits
    with warns("refused to sync"):
        del store, attempt
    with Store(out, "run") as store:
        log(store, 1)
    assert len(pd.read_hdf(store.path + "/store.h5", "t")) == 3


def test_a_table_whose_directory_was_not_synced_is_in_store_h5_all_the_same(
    out, around
):
    store = Store(out, "run")
    store.add_table("t", SCHEMA)
    store.checkpoint()
    hits = fail_once(around, "fsync", out / "run" / ".tables")
    with pytest.raises(cox.StorageError):
        store.add_table("other", {"x": int})
    assert hits
    store.add_table("other", {"x": int})
    store.close()
    with pd.HDFStore(out / "run" / "store.h5", "r") as h5:
        assert h5.keys() == ["/other", "/t"]


def test_too_many_open_files_are_no_sync_that_failed(out, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Store(out, "run") as store:
        log(store, 2)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(cox.StorageError, match="could not sync: Too many"):
                store.checkpoint(export=False)
        store.checkpoint()
    assert len(pd.read_hdf(store.path + "/store.h5", "t")) == 2


@pytest.fixture
def failing_close(monkeypatch):
    """Let the closing of files fail, once each, as where a full disk shows late."""
    import fcntl

    def install(*paths):
        failed = []

        def close(fd):
            meant = [p for p in paths if is_open_at(fd, p) and p not in failed]
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                meant.clear()
            os.close(fd)
            failed.extend(meant)
            if meant:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(cox, "os", but(os, close=close))
        return failed

    return install


def test_a_file_that_cannot_be_closed_is_told_of_and_the_others_are_closed(
    out, failing_close
):
    store = Store(out, "run")
    log(store, 2)
    store.add_table("other", SCHEMA).append_row({"i": 1, "note": "x"})
    before = set(os.listdir("/proc/self/fd"))
    files = [out / "run" / ".tables" / f"{name}.rows" for name in ("t", "other")]
    store.checkpoint()
    failed = failing_close(*files)
    with pytest.raises(cox.StorageError, match="could not close"):
        store.close()
    assert len(failed) == 2
    assert len(set(os.listdir("/proc/self/fd"))) <= len(before) - 5
    store.close()
    with Store(out, "run") as store:
        log(store, 1)


def interrupted(place, function, *args):
    """Call it, and raise where a signal handler may run the nth time in cox."""
    left = place

    def interrupt(frame, event, arg):
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename == cox.__file__:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sys.setprofile(interrupt)
        function(*args)
        sys.setprofile(None)
    return left < 0


def test_an_event_file_that_cannot_be_closed_keeps_no_run_locked(out, failing_close):
    store = Store(out, "run")
    log(store, 1)
    store.writer.add_scalar("x", 1)
    [event_file] = (out / "run" / "tensorboard").iterdir()
    failing_close(event_file)
    with pytest.raises(cox.StorageError, match="events may be lost"):
        store.close()
    lock_run(out)
    assert len(pd.read_hdf(out / "run" / "store.h5", "t")) == 1
    assert [*CollectionReader(out).runs()["status"]] == ["done"]
    store.close()


def test_an_exception_out_of_a_signal_handler_leaves_no_run_locked(out, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # out of __del__
    places, is_cut_short = 0, True
    while is_cut_short:
        store = Store(out, "run")
        log(store, 1)
        store.checkpoint()
        places += 1
        is_cut_short = interrupted(places, store.close)
        store.close()
        assert Store(out, "run", mode="r").history[-1]["status"] == "done"
        lock_run(out)
    assert places > 20


def test_an_exception_out_of_a_signal_handler_amid_opening_leaves_no_run_locked(
    out, monkeypatch
):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # out of __del__
    kept = Store(out, "run")
    places, is_cut_short = 0, True
    while is_cut_short:
        is_cut_short = interrupted(places, Store, out, "run")
        places += 1
        with Store(out, "run") as store:
            log(store, 1)
        del store
    kept.close()
    lock_run(out)
    assert places > 20


def test_an_exception_out_of_a_signal_handler_lets_no_object_go_unsynced(
    out, around, monkeypatch
):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # a file not closed
    synced = set()

    def note(call, name, *args):
        if name == "fsync":
            synced.add(os.readlink(f"/proc/self/fd/{args[0]}"))
        return call(*args)

    around(note)
    places, is_cut_short = 0, True
    with Store(out, "run", history=False) as store:
        table = store.add_table("t", {"x": PICKLE})
        store.checkpoint(False)
        while is_cut_short:
            table.append_row({"x": places})
            places += 1
            is_cut_short = interrupted(places, store.checkpoint, False)
            store.checkpoint(False)
            objects = {str(p) for p in (out / "run" / ".table_objects").iterdir()}
            assert objects <= synced
    assert places > 20


def test_more_tables_than_files_that_may_be_open(out, failing_close):
    store = Store(out, "run", history=False)
    names = [f"t{i}" for i in range(70)]
    for i in range(2):
        for name in names:
            table = store.add_table(name, SCHEMA)
            table.append_row({"i": i, "note": f"{name} {i}"})
    assert len(os.listdir("/proc/self/fd")) < 200
    for name in names:
        assert store[name].df["note"].tolist() == [f"{name} 0", f"{name} 1"]
    failing_close(*[out / "run" / ".tables" / f"{name}.text" for name in names])
    with pytest.raises(cox.StorageError, match="could not close"):
        store["t0"].append_row({"i": 2, "note": ""})
    store.checkpoint(export=False)
    with contextlib.suppress(cox.StorageError):
        store.close()


@pytest.mark.parametrize("locks", ["none", "not-seen"])
def test_two_writers_are_noticed(out, around, monkeypatch, damage, locks):
    def no_locks(call, name, *args):
        if name == "flock":
            if locks == "none":
                raise OSError(errno.ENOLCK, "no locks")
            return None
        return call(*args)

    around(no_locks)
    first = Store(out, "run")
    log(first, 2)
    another = load_again()
    monkeypatch.setattr(another, "fcntl", cox.fcntl)
    second = another.Store(out, "run")
    log(second, 1)
    if locks == "none":
        with pytest.raises(cox.WriteRefusedError, match="another process"):
            first["t"].append_row({"i": 2, "note": "row 2"})
        assert_logged(second["t"].df, 3)
        log(second, 1)
        assert_logged(Store(out, "run", mode="r")["t"].df, 4)
        second.close()
    else:
        log(first, 1)
    for attempt in (first.checkpoint, first.close):
        with pytest.raises(cox.WriteRefusedError, match="another process"):
            attempt()
    if locks == "not-seen":
        with pytest.raises(cox.CorruptError) as raised:
            _ = first["t"].df
        assert raised.value.nrows == 3
        die(second, another)
    die(first)


class CaselessOs:
    """The calls of os on a file system that takes `T.rows` and `t.rows` for one."""

    def __init__(self):
        self.path = types.SimpleNamespace(**vars(os.path))
        self.path.lexists = lambda path: os.path.lexists(self.found(path))

    def found(self, path):
        folder, name = os.path.split(path)
        with contextlib.suppress(OSError):
            for other in os.listdir(folder):
                if other.lower() == name.lower():
                    return os.path.join(folder, other)
        return path

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in ("open", "lstat", "stat", "unlink"):
            return real
        return lambda path, *args: real(self.found(path), *args)


def test_names_that_differ_in_case_only_are_no_two_tables_where_files_do_not(
    run, monkeypatch
):
    monkeypatch.setattr(cox, "os", CaselessOs())
    with Store(run.parent, "run") as store:
        with pytest.raises(cox.SchemaError, match="another table"):
            store.add_table("T", SCHEMA)
        with pytest.raises(CoxError, match="'T'"):
            store["T"].append_row({"i": 9, "note": "in the other table"})
        log(store, 1)
        assert_logged(store["t"].df, 4)


def test_a_write_that_writes_nothing_is_a_full_disk(store, around):
    log(store, 1)
    around(lambda call, name, *args: 0 if name == "write" else call(*args))
    with pytest.raises(cox.StorageError, match="row 2"):
        store["t"].append_row({"i": 1, "note": "row 1"})
    around(lambda call, name, *args: call(*args))
    log(store, 1)
    assert_logged(store["t"].df, 2)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, cox.StorageError), (errno.EACCES, cox.WriteRefusedError)],
    ids=["full", "denied"],
)
def test_a_lock_file_that_cannot_be_made_is_an_error_at_once(
    out, around, number, error
):
    tries = []

    def refuse(call, name, *args):
        if name == "open" and str(args[0]).endswith("lock"):
            tries.append(args)
            raise OSError(number, os.strerror(number), args[0])
        return call(*args)

    around(refuse)
    with pytest.raises(error) as raised:
        Store(out, "run")
    assert os.strerror(number) in str(raised.value)
    assert len(tries) == 1
    around(lambda call, name, *args: call(*args))
    with Store(out, "run") as store:
        log(store, 1)


@pytest.mark.parametrize("directory", [".tables", "save"])
def test_a_run_that_cannot_be_made_is_a_storage_error(out, around, directory):
    def full(call, name, *args):
        if name in ("mkdir", "makedirs") and str(args[0]).endswith(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])
        return call(*args)

    around(full)
    with pytest.raises(cox.StorageError, match="out/run"):
        Store(out, "run")
    around(lambda call, name, *args: call(*args))
    Store(out, "run").close()


def test_a_full_disk_without_room_for_the_objects_directory_is_a_storage_error(
    store, around
):
    def full(call, name, *args):
        if name == "mkdir":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])
        return call(*args)

    table = store.add_table("t", {"x": cox.PICKLE})
    around(full)
    with pytest.raises(cox.StorageError, match="table_objects"):
        table.append_row({"x": 1})
    around(lambda call, name, *args: call(*args))
    table.append_row({"x": 2})
    assert table.get_pickle(table.df.x[0]) == 2


def test_a_run_that_cannot_be_erased_is_a_storage_error_and_goes_on(out, around):
    def refuse(call, name, *args):
        if name == "unlink" and "tensorboard" in args[0]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), args[0])
        return call(*args)

    with Store(out, "run") as store:
        log(store, 1)
        store.writer.add_scalar("x", 1)
    with Store(out, "run") as store:
        log(store, 1)
        store.checkpoint()
        around(refuse)
        with pytest.raises(cox.StorageError, match="could not erase"):
            Store(out, "run", mode="w")
    with Store(out, "run", mode="r") as store:
        assert not store.tables
    assert exported(out / "run") == {}


def test_a_damaged_table_keeps_no_other_out_of_the_export(run, damage):
    store = Store(run.parent, "run")
    store["other"].append_row({"x": 2.5})
    damaged(run, CORRUPT["missing"])
    for _ in range(3):
        with warns("left out of store.h5"):
            store.checkpoint()
    [aside] = run.glob("store.h5.*")  # it may have rows that are damaged now
    assert len(pd.read_hdf(aside, "t")) == 3
    store.close()
    assert exported(run)["other"]["x"].tolist() == [0.5, 1.5, 2.5]
    second = Store(run.parent, "run")
    second["other"].append_row({"x": 3.5})  # it is free
    die(second)


def test_an_exception_of_the_users_own_amid_a_row_stays_what_it_is(
    store, out, at_write
):
    def too_late(call, descriptor, data):
        raise TimeoutError

    log(store, 1)
    at_write(out / "run" / ".tables" / "t.rows", too_late)
    with pytest.raises(TimeoutError) as raised:
        store["t"].append_row({"i": 1, "note": "row 1"})
    assert not isinstance(raised.value, CoxError)
    log(store, 1)
    assert_logged(store["t"].df, 2)


def test_a_torn_row_that_cannot_be_cut_is_a_storage_error(store, out, around):
    rows_path = out / "run" / ".tables" / "t.rows"

    def fail(call, name, *args):
        if name == "ftruncate":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if name == "write" and is_open_at(args[0], rows_path):
            call(args[0], args[1][:5])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args)

    log(store, 1)
    around(fail)
    for _ in range(2):
        with pytest.raises(cox.StorageError, match=r"t\.rows"):
            store["t"].append_row({"i": 1, "note": "row 1"})
    around(lambda call, name, *args: call(*args))
    log(store, 1)
    assert_logged(store["t"].df, 2)


def test_rows_that_were_refused_and_not_cut_off_are_not_there_after_a_checkpoint(
    store, out, around
):
    rows_path = out / "run" / ".tables" / "t.rows"

    def fail(call, name, *args):
        if name == "ftruncate" or (name == "write" and is_open_at(args[0], rows_path)):
            if name == "write":
                call(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args)

    log(store, 1)
    around(fail)
    with pytest.raises(cox.StorageError, match="no part of it is there"):
        store["t"].append_rows({"i": [1, 2], "note": ["row 1", "row 2"]})
    around(lambda call, name, *args: call(*args))
    store.checkpoint()
    assert_logged(store["t"].df, 1)


@pytest.mark.parametrize("what", ["run", "table"])
def test_what_is_deleted_while_it_is_collected_is_missing(run, what):
    shutil.copytree(run, run.parent / "b")
    reader = CollectionReader(run.parent)
    gone = run if what == "run" else run / ".tables"
    if what == "run":
        shutil.rmtree(gone)
    else:
        (gone / "t.rows").unlink()
    with warns("run"):
        assert_logged(reader.df("t", append_exp_id=False), 3)


def test_text_that_is_not_utf8_is_an_error_that_names_the_run(run, damage):
    shutil.copytree(run, run.parent / "bad")
    _write_text_that_is_none(run.parent / "bad")
    with pytest.raises(cox.CorruptError, match=r"out/bad/\.tables/t\.text: .* 'note' "):
        Store(run.parent, "bad", mode="r")["t"].frame()
    with pytest.raises(cox.CorruptError, match=r"out/bad: .* column 'note' is not UTF"):
        CollectionReader(run.parent).df("t")


@pytest.mark.parametrize("file", ["my table.rows", "%FF.rows"])
def test_a_file_whose_name_cox_gives_to_no_table_is_named(run, damage, file):
    (run / ".tables" / "t.rows").rename(run / ".tables" / file)
    with pytest.raises(
        cox.CorruptError, match=re.escape(f"{file}: its name is not one")
    ):
        Store(run.parent, "run", mode="r").tables["t"]


def test_a_file_in_place_of_the_directory_of_tables_is_named(run, damage):
    shutil.rmtree(run / ".tables")
    (run / ".tables").touch()
    store = Store(run.parent, "run", mode="r")
    with pytest.raises(cox.CorruptError, match="no directory"):
        store["t"]
    assert store.history == []


def test_a_run_that_is_gone_is_said_to_be_gone(run):
    with Store(run.parent, "run", mode="r") as store:
        table = store["t"]
        shutil.rmtree(run)
        with pytest.raises(cox.NotFoundError, match=r"out/run is gone"):
            table.frame()
        with pytest.raises(cox.NotFoundError, match=r"out/run is gone"):
            store["other"]


@pytest.mark.parametrize("call", ["open", "read", "listdir", "lseek"])
def test_a_run_that_the_system_does_not_let_us_read_is_named(
    run, monkeypatch, damage, call
):
    shutil.copytree(run, run.parent / "bad")

    def refuse(where, *args):
        is_fd = isinstance(where, int)
        path = os.readlink(f"/proc/self/fd/{where}") if is_fd else str(where)
        if "/bad/" in path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return getattr(os, call)(where, *args)

    bad = Store(run.parent, "bad", mode="r")
    table = bad["t"]
    monkeypatch.setattr(cox, "os", but(os, **{call: refuse}))
    with pytest.raises(cox.StorageError, match=r"Too many open files.*out/bad/"):
        _ = [*bad.keys] if call == "listdir" else table.df
    with warns("bad") if call == "open" else contextlib.nullcontext():
        reader = CollectionReader(run.parent, skip_errs=True)
        frame = reader.df("t", skip_errors=True)
    assert frame["exp_id"].tolist()[-3:] == ["run"] * 3


def test_a_checkpoint_syncs_new_objects_and_each_once(store, around):
    synced = []

    def note(call, name, *args):
        if name == "fsync":
            synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}")))
        return call(*args)

    around(note)
    table = store.add_table("t", {"x": PICKLE})
    for count in range(20, 80, 20):
        for x in range(20):
            table.append_row({"x": x})
        store.checkpoint(export=False)
        objects = [name for name in synced if name.count("-") == 4]
        assert sorted(objects) == sorted(table.df["x"])
        assert len(objects) == count


def _write_text_that_is_none(run, name="t"):
    """Make a table of one row whose check holds, and whose text is not UTF-8."""
    rows, _ = encode_rows(SCHEMA_KINDS, [(0, "x" * 4)])
    header, record = rows[: rows.index(b"\n") + 1], rows[-40:-8]
    text = b"ab\xff\xfe"
    check = zlib.crc32(record + text).to_bytes(8, "little")
    (run / ".tables" / f"{name}.text").write_bytes(text)
    (run / ".tables" / f"{name}.rows").write_bytes(header + record + check)


def _write_records(run, *lengths, text=b"", size=None):
    """Write a table of records with such lengths of text, each with a right check."""
    header, _ = encode_rows(SCHEMA_KINDS, [])
    body, start = b"", 0
    for i, length in enumerate(lengths):
        record = struct.pack("<qqqq", i + 1, i, length, start)
        own = text[start : start + length] if 0 <= length <= len(text) else b""
        body += record + zlib.crc32(record + own).to_bytes(8, "little")
        start += length if abs(length) < 1 << 40 else 0
    (run / ".tables" / "t.rows").write_bytes(header + body)
    (run / ".tables" / "t.text").write_bytes(text)
    if size is not None:
        os.truncate(run / ".tables" / "t.text", size)


def _put(kind, path, outside):
    """Put what is no file of a run where one is looked for."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        # by its name, as the whole path may be too long for a socket
        with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as s:
            patch.chdir(path.parent)
            s.bind(path.name)
    elif kind == "directory":
        path.mkdir()
        (path / "within").mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(outside / path.name)


NO_FILES = {
    f"{name}-{kind}": lambda run, outside, name=name, kind=kind: _put(
        kind, run / name, outside
    )
    for name in (".tables/t.rows", ".tables/t.text", ".tables/state.json")
    for kind in ("fifo", "socket", "directory", "device", "link")
} | {
    f"{name}-{kind}": lambda run, outside, name=name, kind=kind: _put(
        kind, run / name, outside
    )
    for name in (".tables/lock", "store.h5", ".tables/history.jsonl")
    for kind in ("fifo", "directory", "link")
}
LINKS = {
    f"{name}-link": lambda run, outside, name=name: _put("link", run / name, outside)
    for name in (
        ".tables", ".table_objects", "tensorboard", "save", ".tables.new",
        ".tables/t.rows.new", ".tables/t.text.new", ".tables/state.json.new",
        ".tables/store.h5.new", ".tables/new.rows.new",
    )
}  # fmt: skip
ODD = {
    "sparse-rows": lambda run, outside: (
        (run / ".tables" / "t.rows").write_bytes(b"")
        or os.truncate(run / ".tables" / "t.rows", 1 << 40)
    ),
    "sparse-end": lambda run, outside: os.truncate(run / ".tables" / "t.rows", 1 << 40),
    "sparse-state": lambda run, outside: os.truncate(
        run / ".tables" / "state.json", 1 << 40
    ),
    "sparse-lock": lambda run, outside: os.truncate(run / ".tables" / "lock", 1 << 40),
    "sparse-history": lambda run, outside: os.truncate(
        run / ".tables" / "history.jsonl", 1 << 40
    ),
    "hole-in-text": lambda run, outside: _write_records(run, 3 << 30, size=3 << 30),
    "hole-behind-text": lambda run, outside: os.truncate(
        run / ".tables" / "t.text", 3 << 30
    ),
    "one-text-for-5000": lambda run, outside: _write_records(
        run, *[1 << 20] * 5000, text=bytes(1 << 20)
    ),
    "lengths-that-wrap": lambda run, outside: _write_records(
        run, 5, (1 << 63) - 1, (1 << 63) - 1, 2, text=b"some text"
    ),
    "length-below-zero": lambda run, outside: _write_records(
        run, 5, -4, 5, text=b"some text"
    ),
    "not-utf-8": lambda run, outside: _write_text_that_is_none(run),
    "deep-header": lambda run, outside: (run / ".tables" / "t.rows").write_bytes(
        deep_line(b'{"cox": 2, "columns": ')
    ),
    "deep-state": lambda run, outside: (run / ".tables" / "state.json").write_bytes(
        deep_line(b'{"stores": [], "rows": ')
    ),
    "odd-state": lambda run, outside: (run / ".tables" / "state.json").write_bytes(
        check_line({"rows": {"t": 10**400}, "stores": [{}, None, 1.5]})
    ),
    "state-of-lists": lambda run, outside: (run / ".tables" / "state.json").write_bytes(
        check_line({"rows": [1], "stores": {"a": 1}})
    ),
    "name-not-ours": lambda run, outside: (run / ".tables" / "%ff.rows").touch(),
    "name-not-utf-8": lambda run, outside: open(
        os.fsencode(run / ".tables") + b"/\xff.rows", "wb"
    ).close(),
    "directory-of-rows": lambda run, outside: (run / ".tables" / "x.rows").mkdir(),
    "a-million-columns": lambda run, outside: (run / ".tables" / "t.rows").write_bytes(
        b'{"cox": 2, "columns": {'
        + b", ".join(b'"c%d": "int"' % i for i in range(1_000_000))
        + b'}, "check": 1}'
    ),
}


def deep_line(start):
    checked = start + b"[" * 200_000 + b"]" * 200_000
    return checked + b', "check": %d}\n' % zlib.crc32(checked)


@pytest.fixture
def in_bounds():
    """Stop a test that takes for ever, or all the memory."""

    def stop(*_):
        raise AssertionError("it takes for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert used < 400 << 10  # KB; on macOS, bytes


CRAFTED = NO_FILES | LINKS | ODD


@made_once
def made_neighbours(out):
    rows = [(i, f"row {i}") for i in range(3)]
    for i in range(6, 10):
        make_run(out, f"run{i:02}", t=(SCHEMA_KINDS, rows))
    with Store(out, "run07b") as store:
        log(store, 3)
        store.add_table("objects", {"x": PICKLE}).append_row({"x": [1]})


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_run_harms_no_other_and_nothing_outside(
    made_neighbours, out, tmp_path, quiet, damage, in_bounds, case
):
    copy_made(made_neighbours, out)
    outside = tmp_path / "outside"
    shutil.copytree(out / "run07b", outside)
    for name in (".tables", ".table_objects", "tensorboard"):
        shutil.copytree(out / "run07b" / name, outside / name, dirs_exist_ok=True)
    for path in (outside / ".tables").iterdir():
        shutil.copy(path, outside)
    (outside / "tensorboard" / "events").write_text("precious")
    for name in LINKS:
        (outside / name[: -len("-link")].rpartition("/")[2]).touch()
    CRAFTED[case](out / "run07b", outside)
    before = tree(outside)

    reader = CollectionReader(out, skip_errs=True)
    frame = reader.df("t", skip_errors=True)
    good = frame[frame["exp_id"] != "run07b"]
    assert good["exp_id"].nunique() == 4
    assert good["note"].tolist() == ["row 0", "row 1", "row 2"] * 4
    assert {*frame.loc[frame["exp_id"] == "run07b", "note"]} <= {
        "row 0",
        "row 1",
        "row 2",
    }
    with contextlib.suppress(CoxError):
        reader.df("objects", skip_errors=True)
    store = Store(out, "run07b", mode="r")
    for read in (lambda: store["t"].df, lambda: store["t"].tail(2), lambda: store.keys):
        with contextlib.suppress(CoxError):
            read()
    if case == ".tables-link":
        with pytest.raises(CoxError):
            _ = store["t"].df
    if case == ".table_objects-link":
        objects = store["objects"]
        with pytest.raises(cox.CorruptError, match="link"):
            objects.get_pickle(objects.df["x"][0])
    assert tree(outside) == before

    for mode in ("a", "w"):
        with contextlib.suppress(CoxError):
            store = Store(out, "run07b", mode=mode)
            for name in ("t", "objects", "new"):
                schema = {"x": PICKLE} if name == "objects" else SCHEMA
                with contextlib.suppress(CoxError):
                    row = {"x": 1} if name == "objects" else {"i": 3, "note": "row 3"}
                    store.add_table(name, schema).append_row(row)
            with contextlib.suppress(CoxError):
                store.checkpoint(export=False)
            with contextlib.suppress(CoxError):
                store.close()
            die(store)
        assert tree(outside) == before


def test_a_run_of_60_000_columns_is_an_error_that_can_be_read(run, damage):
    columns = {f"c{i}": "int" for i in range(60_000)}
    make_run(run.parent, "wide", t=(columns, []))
    reader = CollectionReader(run.parent, log_warnings=False)
    with pytest.raises(cox.SchemaError, match=r"wide.*c0.*exp_filter") as raised:
        reader.df("t")
    assert len(str(raised.value)) < 2000
    assert_logged(reader.df("t", append_exp_id=False, exp_filter="run".__eq__), 3)


ESCAPES = "\x1b[31m\x9b2J\r\n\x07\u202e"


def assert_printable(text):
    assert ESCAPES[0] not in text
    assert all(c.isprintable() or c == "\n" for c in text), text


def test_no_name_of_a_stranger_reaches_the_terminal_as_it_is(out, caplog, damage):
    exp_id, table = f"run{ESCAPES}", f"t{ESCAPES}"
    run = make_run(out, exp_id)
    columns = {f"c{ESCAPES}": "int", "note": "str"}
    rows_bytes, text = encode_rows(columns, [(1, ESCAPES)])
    path = run / ".tables" / urllib.parse.quote(table, safe="")
    pathlib.Path(f"{path}.rows").write_bytes(rows_bytes + bytes(99))
    pathlib.Path(f"{path}.text").write_bytes(text)
    reader, store = CollectionReader(out), Store(out, exp_id)
    reader.df(table)
    for shown in (repr(store), str(store), repr(store[table]), str(store[table])):
        assert_printable(shown)
    for shown in (repr(reader), str(reader), repr(reader.stores), repr(store.tables)):
        assert_printable(shown)
    store.save_dir.encode()
    errors = []
    lock = run / ".tables" / "lock"
    with lock.open("r+" if lock.exists() else "w+") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(f"host {ESCAPES}")
        file.flush()
        for refused in (
            lambda: store[table].append_row({f"c{ESCAPES}": 1, "note": ""}),
            lambda: store[table].append_row({f"d{ESCAPES}": 1}),
            lambda: store[f"u{ESCAPES}"],
            lambda: Store(out, exp_id, new=True),
            lambda: Store(out, f"other{ESCAPES}", mode="r"),
            lambda: reader.df(f"u{ESCAPES}"),
            lambda: Store(out, exp_id, mode="w"),
        ):
            with pytest.raises(CoxError) as raised:
                refused()
            errors.append(str(raised.value))
    pathlib.Path(f"{path}.text").unlink()
    with pytest.raises(CoxError) as raised:
        reader.df(table)
    errors.append(str(raised.value))
    for message in errors + [record.getMessage() for record in caplog.records]:
        assert_printable(message)
    assert caplog.records


def in_thread(function, *args):
    """Run a function in a thread; return the thread, and what it raised in a list."""
    errors = []

    def run():
        try:
            function(*args)
        except BaseException as err:
            errors.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_mode_w_lets_no_row_vanish_that_a_thread_logs_meanwhile(out, around):
    store = Store(out, "run")
    log(store, 1)
    threads = []

    def log_and_remove(call, name, *args):
        if name == "unlink" and args[0].endswith("t.rows") and not threads:
            threads.append(in_thread(log, store, 1))
            threads[0][0].join(0.2)  # as much time as it may want
        return call(*args)

    around(log_and_remove)
    Store(out, "run", mode="w").close()
    [(thread, errors)] = threads
    thread.join()
    with Store(out, "run") as again:
        there = len(again["t"].df) if "t" in again else 0
    assert there == 1 - len(errors)
    assert all(isinstance(err, CoxError) for err in errors)


@pytest.mark.parametrize("logs", [True, False])
def test_mode_w_lets_no_row_vanish_after_a_signal_handler_amid_it(out, around, logs):
    store = Store(out, "run")
    log(store, 3)
    row, errors = {"i": 9, "note": "row 9"}, []

    def handler(*_):
        try:
            store["t"].append_row(row) if logs else store.checkpoint(export=False)
        except CoxError as err:
            errors.append(err)

    def interrupt(call, name, *args):
        if name == "unlink" and args[0].endswith("t.rows"):
            signal.raise_signal(signal.SIGUSR1)
        return call(*args)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        around(interrupt)
        again = Store(out, "run", mode="w")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(errors) == 1
    log(again, 2)
    assert_logged(again["t"].df, 2)
    assert marks(out) == {}
    for opened in store, again:
        opened.close()


def test_of_two_threads_that_begin_to_write_none_is_refused(out):
    make_run(out, "run")
    for _ in range(20):
        with Store(out, "run") as store:
            thread, errors = in_thread(store.checkpoint)
            log(store, 1)
            thread.join()
            assert errors == []


def test_who_opens_a_table_and_may_not_write_leaves_no_line_in_the_history(out):
    with Store(out, "run") as store:
        log(store, 1)
        code = f"""
import cox
with cox.Store({str(out)!r}, "run") as store:
    store.add_table("t", {{"i": int, "note": str}})
"""
        python("-c", code)
        assert [line.get("status") for line in store.history] == [None]
        assert [*CollectionReader(out).runs()["status"]] == ["running"]


def test_new_insists_though_the_run_is_created_meanwhile(out, damage, monkeypatch):
    def create_another_first(path, **kwargs):
        pathlib.Path(path, ".tables").mkdir(parents=True)

    monkeypatch.setattr(cox.os, "makedirs", create_another_first)
    with pytest.raises(cox.StoreExistsError, match="was just created"):
        Store(out, "run", new=True)


def test_a_run_at_work_may_be_opened_again_though_its_store_h5_was_removed(out):
    with Store(out, "run") as store:
        log(store, 2)
        os.unlink(store.path + "/store.h5")
        with warns("has no store.h5"):
            again = Store(out, "run")
        again["t"].append_row({"i": 2, "note": "row 2"})
        again.close()
    assert len(pd.read_hdf(store.path + "/store.h5", "t")) == 3


def test_an_event_for_a_run_that_was_moved_waits_for_no_row(store, out, monkeypatch):
    table = store.add_table("t", {"x": int})
    table.append_row({"x": 0})
    write, is_amid, may_go_on = os.write, threading.Event(), threading.Event()

    def wait_and_write(fd, data):
        if threading.current_thread() is not threading.main_thread():
            is_amid.set()
            may_go_on.wait(20)
        return write(fd, data)

    monkeypatch.setattr(cox.os, "write", wait_and_write)
    with ThreadPoolExecutor() as pool:
        row = pool.submit(table.append_row, {"x": 1})
        assert is_amid.wait(20)
        os.rename(store.path, out / "moved")
        event = pool.submit(store.writer.add_scalar, "x", 1.0)
        with pytest.raises(CoxError, match="moved or deleted"):
            event.result(10)
        may_go_on.set()
        row.result(10)
    with pytest.raises(CoxError, match="moved or deleted"):
        table.append_row({"x": 2})
    with Store(out, "moved") as moved:  # whose lock was given up
        moved["t"].append_row({"x": 2})
    assert moved["t"].df["x"].tolist() == [0, 1, 2]


def test_a_writer_whose_run_was_moved_says_nothing_in_the_one_that_took_its_name(out):
    store = Store(out, "run")
    log(store, 1)
    os.rename(out / "run", out / "moved")
    with Store(out, "run") as other:
        log(other, 1)
        with pytest.raises(cox.WriteRefusedError):
            log(store, 1)
        store.close()
        assert [line.get("status") for line in other.history] == [None]
    assert [line.get("status") for line in other.history] == [None, "done"]


@pytest.mark.parametrize("export", [True, False])
def test_a_run_that_took_the_name_amid_a_checkpoint_gets_nothing_of_it(
    out, around, export
):
    store, another_cox = Store(out, "run"), load_again()
    log(store, 3)
    before = []

    def replace_run(call, name, *args):
        if name == "fsync" and not before:
            before.append(True)  # threads sync many files at a time
            os.rename(out / "run", out / "moved")
            with another_cox.Store(out, "run") as other:
                log(other, 1)
            before[:] = [tree(out / "run")]
        return call(*args)

    around(replace_run)
    with pytest.raises(cox.WriteRefusedError, match="moved or deleted"):
        store.checkpoint(export)
    assert before == [tree(out / "run")]


def test_a_reader_that_closes_leaves_the_export_to_the_writer(out):
    with Store(out, "run") as store:
        log(store, 2)
        before = tree(out / "run")
        with Store(out, "run", mode="r") as reader:
            assert_logged(reader["t"].df, 2)
        assert tree(out / "run") == before
    assert len(pd.read_hdf(store.path + "/store.h5", "t")) == 2


def test_a_refused_store_that_its_error_keeps_alive_holds_no_run(out):
    with Store(out, "run") as store:
        log(store, 1)
        with pytest.raises(cox.StoreExistsError) as kept:
            Store(out, "run", new=True)
    assert [*CollectionReader(out).runs()["status"]] == ["done"]
    assert kept


def test_a_close_in_a_signal_handler_amid_a_row_may_be_repeated(out):
    class Closes:
        def __str__(self):
            signal.raise_signal(signal.SIGUSR1)
            return "b"

    store = Store(out, "run")
    log(store, 1)
    before = signal.signal(signal.SIGUSR1, lambda *_: store.close())
    try:
        store["t"].append_row({"i": 1, "note": Closes()})
    finally:
        signal.signal(signal.SIGUSR1, before)
    store.close()
    assert [*CollectionReader(out).runs()["status"]] == ["done"]
    assert len(pd.read_hdf(out / "run" / "store.h5", "t")) == 2


@contextlib.contextmanager
def late_checkpoint(out, export=True):
    """Log a row; a thread's checkpoint waits amid its beginning until this ends."""
    main, real_lock = threading.current_thread(), threading.RLock
    waiting, go = threading.Event(), threading.Event()

    class LateLock:
        """A thread gets the second one that it takes after the main one is through."""

        def __init__(self):
            self.lock = real_lock()

        def __enter__(self):
            if threading.current_thread() is not main:
                taken.add(self)
                if len(taken) == 2:
                    waiting.set()
                    go.wait()
            return self.lock.__enter__()

        def __exit__(self, *exc_info):
            return self.lock.__exit__(*exc_info)

    taken = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cox, "threading", but(threading, RLock=LateLock))
        store = Store(out, "run")
    log(store, 1)
    thread, errors = in_thread(store.checkpoint, export)
    waiting.wait()
    yield store
    go.set()
    thread.join()
    assert errors == []


def test_a_close_beside_a_checkpoint_leaves_no_row_out_of_store_h5(out):
    with late_checkpoint(out) as store:
        store.close()
        assert len(pd.read_hdf(out / "run" / "store.h5", "t")) == 1
        before = tree(out / "run")
    assert tree(out / "run") == before  # the run may be another's by now


@pytest.mark.parametrize("export", [True, False])
def test_mode_w_beside_a_checkpoint_leaves_no_mark_of_an_erased_table(out, export):
    with late_checkpoint(out, export):
        again = Store(out, "run", mode="w")
    # with a mark above its rows, a torn end would be taken for damage
    assert marks(out) == {}
    log(again, 2)


def test_the_exit_waits_for_a_thread_that_exports(out):
    code = f"""
import os, threading, time, cox
store = cox.Store({str(out)!r}, "run")
table = store.add_table("t", {{"x": float}})
real, inside = os.fsync, threading.Event()
def sync(descriptor):
    inside.set()
    time.sleep(0.3)
    real(descriptor)
table.append_row({{"x": 1}})
os.fsync = sync
threading.Thread(target=store.checkpoint, daemon=True).start()
inside.wait()
os.fsync = real
table.append_row({{"x": 2}})
"""
    python("-c", code)
    assert len(pd.read_hdf(out / "run" / "store.h5", "t")) == 2
    assert [*CollectionReader(out).runs()["status"]] == ["ended"]


def test_the_mark_of_a_table_that_was_closed_amid_a_checkpoint_is_what_was_synced(
    out, around
):
    store = Store(out, "run")
    log(store, 1)
    others = [store.add_table(f"other{i}", {"x": float}) for i in range(64)]
    first, amid = iter(["fsync"]), []  # threads sync many files at a time

    def log_more():
        log(store, 9)
        for other in others:  # as many as may be open
            other.append_row({"x": 1})

    def log_meanwhile(call, name, *args):
        if name == "fsync" and next(first, None):
            amid.append(in_thread(log_more))
            amid[0][0].join()
        return call(*args)

    around(log_meanwhile)
    store.checkpoint()
    [(_, errors)] = amid
    assert errors == []
    assert marks(out)["t"] == 1


def test_a_checkpoint_marks_the_rows_of_more_tables_than_may_be_open(out):
    with Store(out, "run") as store:
        tables_ = [store.add_table(f"t{i}", {"x": float}) for i in range(70)]
        for table in tables_:
            table.append_row({"x": 1})
        store.checkpoint(export=False)
        assert marks(out) == {table.name: 1 for table in tables_}


def test_a_close_that_failed_amid_mode_w_leaves_no_closed_file_behind(out, monkeypatch):
    store = Store(out, "run")
    log(store, 1)
    real_close, failed = os.close, []

    def close(descriptor):
        is_rows = os.readlink(f"/proc/self/fd/{descriptor}").endswith("t.rows")
        real_close(descriptor)
        if is_rows and not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(cox.StorageError, match="could not close"):
            Store(out, "run", mode="w")
    log(store, 1)
    assert_logged(store["t"].df, 2)
    store.close()  # the error's traceback may keep it for long


def test_a_close_while_a_thread_opens_a_table_is_no_error(out):
    with Store(out, "run") as store:
        for name in ("t", "other"):
            store.add_table(name, {"x": int})
    store = Store(out, "run")
    store["t"].update_row({"x": 1})
    errors = []

    def open_another(record):  # while close() warns
        thread, more = in_thread(store.get_table, "other")
        thread.join()
        errors.append(more)
        return True

    logging.getLogger("cox").addFilter(open_another)
    try:
        with warns("never flushed"):
            store.close()
    finally:
        logging.getLogger("cox").removeFilter(open_another)
    assert errors == [[]]


def test_a_table_made_again_with_its_columns_in_another_order_is_opened_anew(out):
    with Store(out, "run") as store:
        old = store.add_table("t", {"x": int, "y": float})
        again = Store(out, "run", mode="w")
        again.add_table("t", {"y": float, "x": int})
        table = store.add_table("t", {"x": int, "y": float})
        assert table is not old
        table.append_row({"x": 1, "y": 0.5})
        assert table is store["t"]
        assert rows_in(again["t"].df) == [(0.5, 1)]
        again.close()


def test_a_table_without_its_store_may_be_freed_while_a_thread_opens_the_run(
    run, around
):
    def open_table():
        return Store(run.parent, "run")["t"]

    opened = []

    def open_meanwhile(call, name, *args):
        if name == "replace" and not opened:
            opened.append(None)
            with ThreadPoolExecutor() as pool:
                opened[:] = [pool.submit(open_table).result()]
        return call(*args)

    table = open_table()
    table.append_row({"i": 3, "note": "row 3"})
    around(open_meanwhile)
    del table  # exports
    opened[0].append_row({"i": 4, "note": "row 4"})
    opened.clear()
    lock_run(run.parent)
    assert_logged(exported(run)["t"], 5)
    assert CollectionReader(run.parent).runs()["status"].tolist() == ["ended"]


def test_a_pickled_table_makes_no_run(out):
    store = Store(out, "run")
    log(store, 1)
    store.close()
    pickled = pickle.dumps(store["t"])
    assert_logged(pickle.loads(pickled).df, 1)
    os.rename(out / "run", out / "moved")
    pickle.dumps(store["t"])
    assert os.listdir(out) == ["moved"]


###############################################################################
# Table
###############################################################################


def test_a_row_is_built_up_and_flushed(store):
    table = store.add_table("t", {"a": int, "b": float})
    table.update_row({"a": 1})
    table.update_row({"b": 0.5})
    table.update_row({"a": 2})
    assert table.nrows == 0
    table.flush_row()
    assert table.nrows == len(table.df) == 1
    assert table.df.iloc[0].tolist() == [2, 0.5]
    with pytest.raises((ValueError, KeyError)):
        table.flush_row()  # the new row is empty
    assert store["t"].schema == store.get_table("t").schema == {"a": int, "b": float}


MANY = {
    "i": (int, [1, -(2**63), 3, True]),
    "x": (float, [1, 0.5, math.nan, "2.5"]),
    "ok": (bool, [True, 0, 1, np.bool_(False)]),
    "s": (str, ["", "é", 3, None]),
    "h": (np.int16, np.array([1, 2, 3, -4])),
    "f": (np.float32, np.array([0.1, 2, 3, 4])),
    "o": (OBJECT, [[1], {}, None, "x"]),
    "p": (PICKLE, [[1], {}, 0, "x"]),
}


@pytest.mark.parametrize("as_frame", [False, True], ids=["mapping", "frame"])
def test_append_rows_writes_what_a_loop_of_append_row_does(out, as_frame):
    columns = {name: values for name, (_, values) in MANY.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values())]
    with Store(out, "run") as store:
        for name in ("many", "loop"):
            store.add_table(name, {name: kind for name, (kind, _) in MANY.items()})
        store["many"].update_row({"i": 7})  # stays as it is
        many = store["many"]
        many.append_rows(pd.DataFrame(columns) if as_frame else columns)
        many.append_rows({name: [] for name in columns})
        many.append_row(rows[0])
        for row in [*rows, rows[0]]:
            store["loop"].append_row(row)
    reader = CollectionReader(out)
    frames = [reader.df(name) for name in ("many", "loop")]
    pd.testing.assert_frame_equal(*frames)
    assert len(frames[0]) == 5


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([{"i": 1}], "a frame, or a dict"),
        ({"i": [1]}, "note"),
        ({"i": [1], "note": ["a"], "other": [1]}, "other"),
        ({"i": [1, 2], "note": ["a"]}, "lengths i: 2, note: 1$"),
        ({"i": [1, 2.5], "note": ["a", "b"]}, "'i'.*2.5"),
        ({"i": np.array([1, 2**63], np.uint64), "note": ["a", "b"]}, "'i'"),
        ({"i": [1, None], "note": ["a", "b"]}, "'i'.*None.*use float"),
        ({"i": [1, np.nan], "note": ["a", "b"]}, "'i'.*nan.*use float"),
        ({"i": 1, "note": "a"}, "sequences of one length"),
        ({"i": [1], "note": "a"}, "sequences of one length"),
        ({"i": np.zeros((2, 3)), "note": ["a", "b"]}, "'i'"),
        ({"i": {0: 5, 1: 6}, "note": {0: "a", 1: "b"}}, "sequences of one length"),
        ({"i": {5, 6}, "note": ["a", "b"]}, "sequences of one length"),
        ({"i": np.ma.array([1, 2], mask=[0, 1]), "note": ["a", "b"]}, "'i'.*Masked"),
        (pd.DataFrame([[1, "a", "b"]], columns=["i", "note", "note"]), "different"),
    ],
    ids=[
        *("list", "too-few", "too-many", "lengths", "value", "range", "none", "nan"),
        *("scalar", "str", "two-dimensional", "to_dict", "set", "masked", "names"),
    ],
)
def test_append_rows_refuses_all_or_none(store, out, data, match):
    log(store, 2)
    with pytest.raises(CoxError, match=match):
        store["t"].append_rows(data)
    log(store, 1)
    assert_logged(store["t"].df, 3)


def test_append_rows_takes_tensors_that_numpy_does_not(store):
    torch = pytest.importorskip("torch")
    table = store.add_table("t", {"x": float, "f": np.float32, "i": int})
    losses = torch.tensor([0.5, 2.0], requires_grad=True)
    halves = torch.tensor([0.5, 2.0], dtype=torch.bfloat16)
    table.append_rows({"x": losses, "f": halves, "i": [losses[1], halves[1]]})
    assert table.df.values.tolist() == [[0.5, 0.5, 2], [2, 2, 2]]


def test_append_rows_that_is_cut_short_leaves_none_of_them(store, out, at_write):
    table = store.add_table("t", {"i": int, "p": PICKLE})
    table.append_row({"i": 0, "p": 0})

    def fill(call, descriptor, data):
        call(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "full")

    hits = at_write(out / "run" / ".tables" / "t.rows", fill)
    with pytest.raises(OSError, match="no part of it"):
        table.append_rows({"i": [1, 2, 3], "p": [1, 2, 3]})
    assert hits
    assert len(os.listdir(out / "run" / ".table_objects")) == 1
    table.append_rows({"i": [1, 2], "p": [1, 2]})
    assert CollectionReader(out).df("t")["p"].tolist() == [0, 1, 2]


def test_serialized_columns_hold_what_the_getters_take(out):
    value = {"layers": [64, 32]}
    with Store(out, "run") as store:
        table = store.add_table("t", {"o": OBJECT, "p": PICKLE})
        table.append_row({"o": value, "p": value})
    table = Store(out, "run", mode="r")["t"]
    [(stored, uid)] = table.df.values.tolist()
    assert table.get_object(stored) == cox.utils.string_to_obj(stored) == value
    assert table.get_pickle(uid) == value
    assert (out / "run" / ".table_objects" / uid).is_file()


def test_a_table_keeps_working_without_a_name_for_its_store(out):
    table = Store(out, "run").add_table("t", SCHEMA)
    gc.collect()
    with Store(out, "run") as other:  # the run is free until the table writes
        log(other, 1)
    del other
    table.append_row({"i": 1, "note": "row 1"})
    assert_locked(out)
    assert_logged(table.df, 2)
    del table
    assert_logged(exported(out / "run")["t"], 2)


def test_reprs_say_what_and_where(run):
    store = Store(run.parent, "run", mode="r")
    assert re.search(r"'t'.*out/run.*i: int, note: str", repr(store["t"]))
    assert re.search(r"out/run.*'r'.*other, t", repr(store))
    assert re.search(r"out.*1 run.*other, t", repr(CollectionReader(run.parent)))


###############################################################################
# TensorBoard events
###############################################################################

STEPS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**35 + 1)
FLOATS = st.floats() | st.floats(width=32)
TAGS = st.text(max_size=300)


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def parse_records(data: bytes) -> list:
    """Take whole files apart, checking every length and CRC."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        for part, stored in (data[:8], data[8:12]), (body, data[12 + length :][:4]):
            crc = crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert stored == masked.to_bytes(4, "little")
        found.append(event_pb2.Event.FromString(body))
        data = data[16 + length :]
    return found


def read_events(logdir: str | os.PathLike) -> list:
    """Events of all files of a directory, the file versions checked and left out."""
    found = []
    for path in sorted(pathlib.Path(logdir).glob("*tfevents*")):
        first, *rest = parse_records(path.read_bytes())
        assert first.file_version == "brain.Event:2"
        found += rest
    return found


def read_values(logdir: str | os.PathLike) -> list:
    return [value for event in read_events(logdir) for value in event.summary.value]


def as_float32(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def same(x: float, y: float) -> bool:
    return x == y or (math.isnan(x) and math.isnan(y))


def test_crc_of_the_standard_check_string():
    assert cox._crc32c(b"123456789") == 0xE3069283


@examples(5)
@given(data=st.binary(min_size=4, max_size=1500))
def test_crc_is_right_at_any_length(data):
    assert cox._crc32c(data) == crc32c(data)


def test_crc_of_more_than_a_slab_of_blocks():
    data = np.random.default_rng(0).bytes(70_001)
    assert cox._crc32c(data) == crc32c(data)


def test_golden_bytes_of_a_scalar():
    record = cox._ScalarRecord("a").encode([1.0], 2.0, 3)
    assert record == (
        b"\x1b\0\0\0\0\0\0\0" + record[8:12] + b"*\n\n\x08\n\x01a\x15\0\0\x80?"
        b"\t\0\0\0\0\0\0\0@\x10\x83\x80\x80\x80\0" + record[-4:]
    )


@examples(10)
@given(st.lists(st.tuples(TAGS, FLOATS), min_size=1, max_size=30), st.floats(), STEPS)
def test_scalars_are_what_protobuf_reads(scalars, wall_time, step):
    tags, values = zip(*scalars, strict=True)
    (event,) = parse_records(cox._ScalarRecord(*tags).encode(values, wall_time, step))
    assert same(event.wall_time, wall_time)
    assert event.step == step
    assert [value.tag for value in event.summary.value] == [*tags]
    for value, expected in zip(event.summary.value, values, strict=True):
        assert same(value.simple_value, as_float32(expected))


def test_a_writer_keeps_a_bounded_number_of_encoders():
    writer, counts = cox.EventWriter("unused", write_to_disk=False), []
    for i in range(10_000):
        writer.add_scalar(str(i), 0.0)
        if i % 500 == 0:
            counts.append(len(gc.get_objects()))
    assert max(counts[10:]) < 1.2 * max(counts[:10])


def test_a_writer_keeps_a_bounded_number_of_steps():
    writer, sizes = cox.EventWriter("unused", write_to_disk=False), []
    tracemalloc.start()
    for i in range(2_000):
        writer.add_scalar("x", 0.0, i * 128)
        if i % 1_000 == 999:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[1] < sizes[0] + 20_000


@examples(5)
@given(st.binary(min_size=1, max_size=600), st.integers(1, 2**31 - 1), STEPS)
def test_messages_equal_those_of_protobuf(payload, size, step):
    value = summary_pb2.Summary.Value(tag="t")
    value.image.height, value.image.width, value.image.colorspace = 1, size, 3
    value.image.encoded_image_string = payload
    mine = cox._encode_image("t", (1, size, 3), payload)
    assert mine == cox._pb_bytes(1, value.SerializeToString())
    event = event_pb2.Event.FromString(cox._encode_event(1.5, step, mine))
    assert (event.step, event.wall_time) == (step, 1.5)
    assert event.summary.value[0] == value


def test_hparams_equal_those_of_tensorboard():
    summary_v2 = pytest.importorskip("tensorboard.plugins.hparams.summary_v2")
    plain = {"lr": 0.1, "n": 3, "on": True, "opt": "sgd"}
    odd = {"none": None, "nan": float("nan"), "np_nan": np.float32("nan")}
    mine = cox._encode_hparams({**plain, **odd}, "run", 5.0)
    summary = summary_pb2.Summary.FromString(mine)
    expected = summary_v2.hparams_pb(plain, trial_id="run", start_time_secs=5.0)
    read = summary.value[0]
    assert read.tag == expected.value[0].tag
    assert read.tensor == expected.value[0].tensor
    assert decode_hparams(read) == decode_hparams(expected.value[0])


def decode_hparams(value):
    from tensorboard.plugins.hparams import plugin_data_pb2

    assert value.metadata.plugin_data.plugin_name == "hparams"
    content = value.metadata.plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info


@pytest.mark.parametrize(
    ("given_value", "kind", "expected"),
    [
        pytest.param(np.int64(3), "number_value", 3.0, id="numpy-int"),
        pytest.param(np.float32(0.5), "number_value", 0.5, id="numpy-float"),
        pytest.param(np.bool_(True), "bool_value", True, id="numpy-bool"),
        pytest.param([64, 32], "string_value", "[64, 32]", id="list"),
        pytest.param(
            pathlib.Path("a") / "b", "string_value", str(pathlib.Path("a/b")), id="path"
        ),
        pytest.param(np.arange(2), "string_value", "[0 1]", id="array"),
        pytest.param(np.array(0.5), "number_value", 0.5, id="array-of-one"),
        pytest.param(10**400, "number_value", math.inf, id="huge-int"),
    ],
)
def test_hparams_of_other_types(given_value, kind, expected):
    summary = summary_pb2.Summary.FromString(
        cox._encode_hparams({"x": given_value}, "", 0.0)
    )
    read = decode_hparams(summary.value[0]).hparams["x"]
    assert read.WhichOneof("kind") == kind
    assert getattr(read, kind) == expected


###############################################################################
# Event writer
###############################################################################


def pixels_of(image) -> np.ndarray:
    pil = pytest.importorskip("PIL.Image")
    with pil.open(io.BytesIO(image.encoded_image_string)) as decoded:
        return np.asarray(decoded)


def log_every_kind(writer) -> None:
    """What both tensorboardX and cox can log."""
    rng = np.random.default_rng(0)
    for step in range(5):
        writer.add_scalar("loss/train", 1 / (step + 1), step)
    writer.add_scalar("no_step", 7)
    writer.add_scalar("named", 2.0, 3, 1e9, "Display name", "Description")
    writer.add_scalars("pair", {"x": 1.0, "y": np.float32(2)}, 4)
    writer.add_histogram("normal", rng.normal(size=1000), 1)
    writer.add_histogram("auto", np.arange(10), 1, bins="auto", max_bins=3)
    writer.add_histogram("constant", np.full(5, 2.5), 1)
    writer.add_histogram_raw("raw", 0.0, 2.0, 3, 4.0, 6.0, [1.0, 2.0], [1, 2], 2)
    pixels = rng.integers(0, 256, (3, 8, 12), np.uint8)
    writer.add_image("chw", pixels, 1)
    writer.add_image("hw", pixels[0], 1, dataformats="HW")
    writer.add_images("grid", rng.integers(0, 256, (10, 3, 4, 5), np.uint8), 1)
    writer.add_text("notes", "# Title\n*text*", 2)
    labels, predictions = rng.integers(0, 2, 100), rng.random(100)
    writer.add_pr_curve("curve", labels, predictions, 1, num_thresholds=20)
    writer.add_pr_curve_raw("curve_raw", *rng.random((6, 5)), 1, num_thresholds=5)
    charts = {"both": ["Multiline", ["loss/train", "named"]]}
    charts["band"] = ["Margin", ["named", "loss/train", "pair"]]
    writer.add_custom_scalars({"group": charts})
    writer.add_embedding(rng.random((4, 3)), list("abcd"), rng.random((4, 3, 5, 5)), 1)


def log_own_kinds(writer) -> None:
    """What tensorboardX needs more libraries for, or does otherwise."""
    rng = np.random.default_rng(0)
    writer.add_audio("sound", np.sin(np.arange(4000) / 10), 1, 8000)
    writer.add_video("film", rng.integers(0, 256, (1, 3, 3, 8, 8), np.uint8), 1)
    writer.add_hparams({"lr": 0.1, "layers": [64, 32]}, {"final": 0.5}, global_step=1)
    writer.add_scalar("table/mx", 1.5, 3)
    writer.add_scalar("table/mx^2", 2.25, 3)


def values_by_tag(logdir) -> dict:
    found = {}
    for path in pathlib.Path(logdir).rglob("*tfevents*"):
        for event in parse_records(path.read_bytes())[1:]:
            for value in event.summary.value:
                run = str(path.parent.relative_to(logdir))
                found.setdefault((run, value.tag), []).append((event.step, value))
    return found


@pytest.mark.slow
def test_same_program_gives_what_tensorboardx_gives(tmp_path):
    tensorboardx = pytest.importorskip("tensorboardX")
    with tensorboardx.SummaryWriter(str(tmp_path / "theirs")) as writer:
        log_every_kind(writer)
    with cox.EventWriter(tmp_path / "ours") as writer:
        log_every_kind(writer)
    theirs, ours = values_by_tag(tmp_path / "theirs"), values_by_tag(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for key, points in theirs.items():
        for (step, their), (own_step, own) in zip(points, ours[key], strict=True):
            assert own_step == step
            kind = their.WhichOneof("value")
            assert own.WhichOneof("value") == kind
            assert own.metadata == their.metadata
            if kind == "simple_value":
                assert own.simple_value == their.simple_value
            elif kind == "histo":
                for field in "min", "max", "num", "sum", "sum_squares":
                    assert getattr(own.histo, field) == pytest.approx(
                        getattr(their.histo, field)
                    )
                assert sum(own.histo.bucket) == sum(their.histo.bucket)
            elif kind == "image":
                own_pixels = pixels_of(own.image)
                if own_pixels.ndim == 2:  # tensorboardX makes three equal channels
                    own_pixels = np.stack([own_pixels] * 3, -1)
                np.testing.assert_array_equal(own_pixels, pixels_of(their.image))
            else:
                assert own.tensor.dtype == their.tensor.dtype
                assert own.tensor.tensor_shape == their.tensor.tensor_shape
                assert own.tensor.string_val == their.tensor.string_val
                np.testing.assert_allclose(
                    own.tensor.float_val, their.tensor.float_val, rtol=1e-6
                )
    for name in "00001/default/tensors.tsv", "00001/default/metadata.tsv":
        assert (tmp_path / "ours" / name).read_text() == (
            tmp_path / "theirs" / name
        ).read_text()


def test_projector_reads_the_embedding(tmp_path):
    projector = pytest.importorskip(
        "tensorboard.plugins.projector.projector_config_pb2"
    )
    text_format = pytest.importorskip("google.protobuf.text_format")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
    writer = cox.EventWriter(tmp_path)
    writer.add_embedding(
        np.eye(5), [[1, "é"]] * 5, images, 7, 'a/"b', metadata_header=["n", "name"]
    )
    writer.add_embedding(np.eye(2), tag="second")
    config = projector.ProjectorConfig()
    text_format.Parse((tmp_path / "projector_config.pbtxt").read_text("utf-8"), config)
    first, second = config.embeddings
    assert first.tensor_name == 'a/"b:00007'
    assert second.tensor_path == "00000/second/tensors.tsv"
    metadata = (tmp_path / first.metadata_path).read_text("utf-8")
    assert metadata == "n\tname\n" + "1\té\n" * 5
    assert list(first.sprite.single_image_dim) == [4, 4]
    pil = pytest.importorskip("PIL.Image")
    sprite = np.asarray(pil.open(tmp_path / first.sprite.image_path))
    assert sprite.shape == (12, 12, 3)
    np.testing.assert_array_equal(sprite[4:8, :4], images[3].transpose(1, 2, 0))
    assert not list(tmp_path.glob("*tfevents*"))


@pytest.mark.parametrize(
    ("labels", "header", "expected"),
    [
        pytest.param(["a\tb", "c\r\nd", ""], None, "a b\nc  d\n-\n", id="odd"),
        pytest.param([["a"], ["b"], ["c"]], ["name"], "a\nb\nc\n", id="one-column"),
        pytest.param(
            [["a\n", ""], ["", 1], ["", ""]], ["x\t", "y"], "x \ty\na \t\n\t1\n-\n",
            id="columns",
        ),
    ],
)  # fmt: skip
def test_each_point_of_an_embedding_has_one_line_of_labels(
    tmp_path, labels, header, expected
):
    writer = cox.EventWriter(tmp_path)
    writer.add_embedding(np.eye(3), labels, metadata_header=header)
    with open(tmp_path / "00000/default/metadata.tsv", newline="") as file:
        assert file.read() == expected


# tbparse itself uses what pandas will drop.
@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_readers_of_event_files_agree(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    tbparse = pytest.importorskip("tbparse")
    values = [0.1, -math.inf, math.nan, 1e40, -0.0]
    steps = [-5, 0, 127, 2**35, 2**62]
    with cox.EventWriter(tmp_path) as writer:
        for step, value in zip(steps, values, strict=True):
            writer.add_scalar("tag é", value, step, walltime=step)
    loaded = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("tag é")
    assert [point.step for point in loaded] == steps
    assert [point.wall_time for point in loaded] == steps
    np.testing.assert_array_equal(
        [point.value for point in loaded], [as_float32(value) for value in values]
    )
    frame = tbparse.SummaryReader(str(tmp_path)).scalars
    assert frame["step"].tolist() == steps
    assert set(frame["tag"]) == {"tag é"}


def log_with_restarts(out) -> None:
    """A run that died at step 9, went on at step 5, and was evaluated at the end."""
    for attempt, steps in (1, range(10)), (2, range(5, 8)):
        with Store(out, "restarted") as store:
            store.add_table("t", {"row": float})
            for step in steps:
                store.writer.add_scalar("loss", attempt, step)
                store.writer.add_scalars("both", {"a": attempt}, step)
                store.writer.add_text("note", str(attempt), step)
                store.log_table_and_tb("t", {"row": attempt}, step=step)
                store["t"].flush_row()
            if attempt == 1:
                store.writer.add_scalar("loss/old", 1, 9)
                store.writer.add_scalar("loss/none", 1)
    for value in 1, 2:
        with Store(out, "restarted") as store:
            store.writer.add_scalar("evaluation", value)
    with cox.EventWriter(out / "purged") as writer:
        for step in range(5):
            writer.add_scalar("x", 1, step)
    with cox.EventWriter(out / "purged", purge_step=3) as writer:
        writer.add_scalar("y", 2, 3)


def goes_back(logdir) -> bool:
    """Whether the newest file says first that a step comes again."""
    events = parse_records(max(logdir.glob("*tfevents*")).read_bytes())
    return events[1].step == 2**63 - 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr
)
def test_a_first_event_that_failed_hides_what_it_repeats_when_it_is_logged_again(
    run, monkeypatch, error
):
    def refuse(*args: object) -> None:
        raise error

    for _ in range(2):
        writer = Store(run.parent, "run").writer
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refuse)
            with contextlib.suppress(cox.StorageError, KeyboardInterrupt):
                writer.add_scalar("x", 1)
            with contextlib.suppress(cox.StorageError, KeyboardInterrupt):
                writer.add_scalars("x", {"y": 1})
        with contextlib.suppress(TypeError):
            writer.add_scalars("both", {"a": 1, "b": "text"})
        writer.add_scalar("x", 1)
        writer.add_scalars("x", {"y": 1})
        writer.add_scalars("both", {"a": 1})
        writer.close()
    assert goes_back(run / "tensorboard")
    assert goes_back(run / "tensorboard" / "x" / "y")
    assert goes_back(run / "tensorboard" / "both" / "a")


def test_events_logged_since_a_run_was_opened_are_repeated_too(out):
    store = Store(out, "run")
    cox.EventWriter(store.tb_dir).add_scalar("x", 1)  # as another process would
    store.writer.add_scalar("x", 1)
    assert goes_back(out / "run" / "tensorboard")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("true", id="fast"),
        pytest.param("false", id="slow", marks=pytest.mark.slow),
    ],
)
def tensorboard_url(request, tmp_path_factory, _forkserver):
    """A TensorBoard over every kind, with the fast and with the slow loader."""
    program = pytest.importorskip("tensorboard.program")
    logdir = tmp_path_factory.mktemp("logdir")
    with cox.EventWriter(logdir / "run") as writer:
        log_every_kind(writer)
        log_own_kinds(writer)
    log_with_restarts(logdir)
    command = (
        "import sys; from tensorboard import program; t = program.TensorBoard();"
        "t.configure(argv=['', *sys.argv[1:]]); t.main()"
    )
    arguments = ["--logdir", str(logdir), "--port", "0", "--load_fast", request.param]
    assert program
    log = tmp_path_factory.mktemp("server") / "log"
    log.touch()
    arguments += ["--reload_multifile", "true"]
    process = Forked(["-c", command, *arguments], log, log)
    try:
        yield until(lambda: re.search(r"http://\S+", log.read_text()))[0]
    finally:
        process.kill()
        process.wait()


def fetch(url: str, **query: object) -> bytes:
    if query:
        url += "?" + urllib.parse.urlencode(query)
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def poll(url: str, until, **query: object):
    """Ask until the data are loaded, which TensorBoard does in the background."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(urllib.error.HTTPError):
            answer = json.loads(fetch(url, **query))
            if until(answer) or time.monotonic() > deadline:
                return answer
        assert time.monotonic() < deadline, f"{url} {query} never came"
        time.sleep(0.1)


def test_tensorboard_serves_every_kind(tensorboard_url):
    data = tensorboard_url.rstrip("/") + "/data"
    plugin = data + "/plugin"
    # The last things written: when they are there, all else is.
    tags = poll(f"{plugin}/scalars/tags", lambda a: "table/mx^2" in a.get("run", {}))
    assert {"loss/train", "named", "final", "table/mx"} <= tags["run"].keys()
    poll(f"{plugin}/scalars/tags", lambda a: {"run/pair/x", "run/pair/y"} <= a.keys())
    query = {"run": "run", "tag": "loss/train"}
    points = json.loads(fetch(f"{plugin}/scalars/scalars", **query))
    assert [(step, value) for _, step, value in points] == [
        (step, as_float32(1 / (step + 1))) for step in range(5)
    ]
    for kind, route, tag in [
        ("histograms", "histograms", "normal"),
        ("histograms", "histograms", "constant"),
        ("text", "text", "notes/text_summary"),
        ("images", "images", "grid"),
        ("images", "images", "film"),
        ("audio", "audio", "sound"),
    ]:
        (entry,) = poll(f"{plugin}/{kind}/{route}", bool, run="run", tag=tag)
        if tag == "constant":
            assert entry[2] == [[2.5, 2.5, 5.0]]
        if tag == "normal":
            lefts, rights, counts = zip(*entry[2], strict=True)
            assert sum(counts) == 1000
            assert all(np.array(lefts) < rights)
        if "Audio" in str(entry) or kind == "audio":
            with urllib.request.urlopen(
                f"{plugin}/audio/individualAudio?{entry['query']}"
            ) as answer:
                assert answer.headers["Content-Type"] == "audio/wav"
                with wave.open(io.BytesIO(answer.read())) as sound:
                    assert (sound.getframerate(), sound.getnframes()) == (8000, 4000)
        if tag == "film":
            gif = fetch(f"{plugin}/images/individualImage?{entry['query']}")
            assert gif.startswith(b"GIF")
    curves = poll(f"{plugin}/pr_curves/pr_curves", bool, run="run", tag="curve")
    assert curves["run"][0]["recall"][0] == 1
    layout = poll(f"{plugin}/custom_scalars/layout", bool)
    both, band = layout["category"][0]["chart"]
    assert both["multiline"]["tag"] == ["loss/train", "named"]
    [series] = band["margin"]["series"]
    assert series == {"value": "named", "lower": "loss/train", "upper": "pair"}
    hparams = poll(f"{plugin}/hparams/experiment", bool, request="{}")
    assert {info["name"] for info in hparams["hparamInfos"]} == {"lr", "layers"}


def test_events_of_a_restarted_run_take_the_place_of_those_they_repeat(
    tensorboard_url, request
):
    plugin = tensorboard_url.rstrip("/") + "/data/plugin"

    def points(run, tag, until=bool):
        url = f"{plugin}/scalars/scalars"
        return [point[1:] for point in poll(url, until, run=run, tag=tag)]

    run = "restarted/tensorboard"
    repeated = [[step, 1 + (step > 4)] for step in range(8)]
    assert points(run, "evaluation", lambda p: p and p[-1][2] == 2) == [[0, 2]]
    assert points(run, "loss") == repeated
    assert points(run, "t/row") == repeated
    assert points(f"{run}/both/a", "both") == repeated
    assert points(run, "loss/old") == [[9, 1]]  # no other tag is touched
    assert points(run, "loss/none") == [[0, 1]]
    texts = poll(f"{plugin}/text/text", bool, run=run, tag="note/text_summary")
    assert [text["step"] for text in texts] == [*range(8)]
    if request.node.callspec.params["tensorboard_url"] == "false":
        assert points("purged", "y") == [[3, 2]]
        assert points("purged", "x") == [[step, 1] for step in range(3)]


FORMATS = [
    pytest.param((3, 5, 7), "CHW", id="CHW"),
    pytest.param((5, 7, 3), "HWC", id="HWC"),
    pytest.param((5, 7), "HW", id="HW"),
    pytest.param((1, 5, 7), "chw", id="one-channel"),
    pytest.param((5, 7, 4), "HWC", id="alpha"),
    pytest.param((7, 5), "WH", id="transposed"),
]


@pytest.mark.parametrize(("shape", "dataformats"), FORMATS)
def test_image_decodes_to_the_pixels_given(tmp_path, shape, dataformats):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with cox.EventWriter(tmp_path) as writer:
        for image in (
            pixels,
            pixels / 255,
            (pixels / np.float32(255)),
            pixels.astype(int),
        ):
            writer.add_image("x", image, dataformats=dataformats)
    axes = [
        dataformats.upper().index(axis) for axis in "HWC" if axis in dataformats.upper()
    ]
    expected = np.squeeze(pixels.transpose(axes))
    images = [value.image for value in read_values(tmp_path)]
    for image in images:
        assert (image.height, image.width) == (5, 7)
        np.testing.assert_array_equal(pixels_of(image), expected)
    assert len(images) == 4


def test_pixels_out_of_range_are_clipped(tmp_path):
    with cox.EventWriter(tmp_path) as writer:
        writer.add_image("x", [[-1.0, 0.5], [2.0, math.nan]], dataformats="HW")
        writer.add_image("x", [[-1, 128], [300, 0]], dataformats="HW")
    for value in read_values(tmp_path):
        np.testing.assert_array_equal(pixels_of(value.image), [[0, 128], [255, 0]])


def test_grid_has_eight_columns_in_row_order(tmp_path):
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 3, 1), np.uint8
    )
    with cox.EventWriter(tmp_path) as writer:
        writer.add_images("x", images, dataformats="NHWC")
        writer.add_images("x", list(images), dataformats="HWC")
    for value in read_values(tmp_path):
        grid = pixels_of(value.image)
        assert grid.shape == (4, 24)
        assert grid[::2, ::3].tolist() == [[*range(8)], [8, 9, 0, 0, 0, 0, 0, 0]]


def test_video_frames_are_the_pixels_given(tmp_path):
    sequence = pytest.importorskip("PIL.ImageSequence")
    pil = pytest.importorskip("PIL.Image")
    shades = np.array([0, 100, 200], np.uint8)
    video = shades[None, :, None, None, None] * np.ones((2, 1, 1, 4, 4), np.uint8)
    with cox.EventWriter(tmp_path) as writer:
        writer.add_video("x", video, fps=10)
    (value,) = read_values(tmp_path)
    gif = pil.open(io.BytesIO(value.image.encoded_image_string))
    frames = [frame.convert("L") for frame in sequence.Iterator(gif)]
    assert [np.unique(frame).tolist() for frame in frames] == [[0], [100], [200]]
    assert frames[0].size == (8, 4)
    assert gif.info["duration"] == 100


def test_video_without_pillow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        cox.EventWriter(tmp_path).add_video("x", np.zeros((1, 1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("sound", "channels"),
    [
        pytest.param(np.array([0, 1, -1, 2.0]), 1, id="mono"),
        pytest.param(np.array([[0, 1, -1, 2.0]]), 1, id="torch"),
        pytest.param(np.array([[0, 0], [1, 1], [-1, -1], [2, 2.0]]), 2, id="stereo"),
        pytest.param(np.array([0, 32767, -32767, 32767], np.int16), 1, id="int16"),
    ],
)
def test_audio_decodes_to_the_sound_given(tmp_path, sound, channels):
    with cox.EventWriter(tmp_path) as writer:
        writer.add_audio("x", sound, sample_rate=8000)
    (value,) = read_values(tmp_path)
    with wave.open(io.BytesIO(value.tensor.string_val[0])) as file:
        assert file.getnchannels() == channels
        decoded = np.frombuffer(file.readframes(9), "<i2")[::channels]
    assert decoded.tolist() == [0, 32767, -32767, 32767]


def test_figure_is_rendered_and_closed(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    figures = [pyplot.figure(figsize=(2, 1), dpi=50, facecolor="red") for _ in range(2)]
    canvas = figures[0].canvas
    with cox.EventWriter(tmp_path) as writer:
        writer.add_figure("one", figures[0], close=False)
        assert figures[0].canvas is canvas
        assert pyplot.get_fignums()
        writer.add_figure("both", figures)
    assert not pyplot.get_fignums()
    one, both = (pixels_of(value.image) for value in read_values(tmp_path))
    assert one.shape == (50, 100, 3)
    assert both.shape == (50, 200, 3)
    assert (both == [255, 0, 0]).all()


def test_figure_that_cannot_be_drawn_keeps_its_canvas(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    canvas = figure.canvas
    figure.text(0, 0, r"$\frac{$")
    with pytest.raises(ValueError, match="frac"):
        cox.EventWriter(tmp_path).add_figure("x", figure)
    assert figure.canvas is canvas


def test_figure_needs_no_pyplot(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    with cox.EventWriter(tmp_path) as writer:
        writer.add_figure("x", figure.Figure())
    assert len(read_values(tmp_path)) == 1


def test_histogram_leaves_out_what_is_not_finite(tmp_path):
    with cox.EventWriter(tmp_path) as writer:
        with warns("'x'.* 2 NaN"):
            writer.add_histogram("x", [1.0, 2.0, math.nan, math.inf])
        writer.add_histogram("x", [-1e30, 1e30])
    few, wide = (value.histo for value in read_values(tmp_path))
    assert (few.num, few.min, few.max) == (2, 1, 2)
    assert (sum(wide.bucket), wide.bucket_limit[-1]) == (2, 1e30)


@pytest.mark.parametrize("max_bins", [1, 3, 7])
def test_histogram_joins_bins(tmp_path, max_bins):
    with cox.EventWriter(tmp_path) as writer:
        writer.add_histogram("x", np.arange(100), bins=10, max_bins=max_bins)
    (value,) = read_values(tmp_path)
    assert len(value.histo.bucket) <= max_bins
    assert sum(value.histo.bucket) == 100
    assert value.histo.bucket_limit[-1] == 99


def test_what_is_masked_is_no_number(tmp_path):
    with cox.EventWriter(tmp_path) as writer:
        writer.add_scalar("x", np.ma.masked)
        with warns("'h'.* 1 NaN"):
            writer.add_histogram("h", np.ma.array([1, 9, 2], mask=[0, 1, 0]))
    scalar, histogram = read_values(tmp_path)
    assert math.isnan(scalar.simple_value)
    assert (histogram.histo.num, histogram.histo.max) == (2, 2)


def test_tensors_of_torch_are_taken(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.ones(2, 3, requires_grad=True)
    with cox.EventWriter(tmp_path) as writer:
        writer.add_scalar("x", weight.sum(), torch.tensor(4))
        writer.add_scalar("x", weight.sum().to(torch.bfloat16))
        writer.add_histogram("h", weight)
        writer.add_images("i", [torch.ones(3, 2, 2)] * 2, dataformats="CHW")
    first, second, histogram, images = read_values(tmp_path)
    assert first.simple_value == second.simple_value == 6
    assert histogram.histo.num == 6
    assert images.image.width == 4
    assert read_events(tmp_path)[0].step == 4


def test_types_of_jax_are_taken(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = np.array([[1.5, 2], [-3, 4]], ml_dtypes.bfloat16)
    with cox.EventWriter(tmp_path) as writer:
        writer.add_scalar("x", weight[0, 0])
        writer.add_histogram("h", weight)
        writer.add_image("i", weight, dataformats="HW")
    scalar, histogram, _ = read_values(tmp_path)
    assert scalar.simple_value == 1.5
    assert (histogram.histo.min, histogram.histo.max) == (-3, 4)


def test_use_metadata_gives_step_and_time_and_ends_with_an_exception(tmp_path):
    writer = cox.EventWriter(tmp_path)
    with (  # noqa: PT012 (the block is what is tested)
        pytest.raises(KeyError),
        writer.use_metadata(global_step=5, walltime=0.0),
    ):
        writer.add_scalar("x", 1)
        writer.add_scalars("y", {"a": 1})
        writer.add_text("z", "")
        raise KeyError
    writer.add_scalar("x", 1)
    writer.close()
    *inside, after = read_events(tmp_path) + read_events(tmp_path / "y/a")
    inside, after = [*inside[:2], after], inside[2]
    assert {(event.step, event.wall_time) for event in inside} == {(5, 0.0)}
    assert after.step == 0
    assert after.wall_time > 1e9


def test_purge_step_starts_a_session(tmp_path):
    with cox.EventWriter(tmp_path, purge_step=7) as writer:
        writer.add_scalar("x", 1, 7)
    start, again, _ = read_events(tmp_path)
    assert start == again  # TensorBoard passes over a run's first
    assert start.session_log.status == event_pb2.SessionLog.START
    assert start.step == 7


def test_purge_step_hides_nothing_of_its_own_writer(tmp_path):
    with cox.EventWriter(tmp_path, purge_step=7) as writer:
        writer.add_scalar("x", 1, 7)
        writer.close()
        writer.add_scalar("x", 1, 8)  # in another file
        with pickle.loads(pickle.dumps(writer)) as copy:
            copy.add_scalar("x", 1, 9)
    events = read_events(tmp_path)
    assert [event.step for event in events if event.summary.value] == [7, 8, 9]
    assert sum(event.HasField("session_log") for event in events) == 2


def test_hparams_are_in_the_runs_own_file_or_a_named_sub_run(tmp_path):
    with cox.EventWriter(tmp_path) as writer:
        writer.add_hparams({"lr": 1}, {"loss": 2})
        writer.add_hparams({"lr": 1}, {"loss": 2}, run_name="trial")
    for logdir in tmp_path, tmp_path / "trial":
        hparams, metric = read_values(logdir)
        assert decode_hparams(hparams).hparams["lr"].number_value == 1
        assert (metric.tag, metric.simple_value) == ("loss", 2)


def test_nothing_is_made_before_the_first_event(tmp_path):
    writer = cox.EventWriter(tmp_path / "new")
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())
    assert writer.get_logdir() == str(tmp_path / "new")


def test_write_to_disk_false_writes_nothing(tmp_path):
    with cox.EventWriter(tmp_path, write_to_disk=False) as writer:
        log_every_kind(writer)
        log_own_kinds(writer)
    assert not list(tmp_path.iterdir())


def test_default_logdir_is_named_by_date_host_and_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cox.EventWriter(comment="_mine") as writer:
        writer.add_scalar("x", 1)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("_mine")
    assert len(read_events(run)) == 1


def test_log_dir_and_suffix_and_unknown_arguments_are_taken(tmp_path):
    with cox.EventWriter(log_dir=tmp_path, filename_suffix=".mine", log_to=1) as writer:
        writer.add_scalar("x", 1)
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(".0000.mine")


def test_event_after_close_goes_into_a_new_file_that_sorts_last(tmp_path):
    writer = cox.EventWriter(tmp_path)
    for step in range(12):
        writer.add_scalar("x", step, step)
        writer.close()
    assert len(list(tmp_path.iterdir())) == 12
    assert [event.step for event in read_events(tmp_path)] == [*range(12)]


def test_two_writers_in_the_same_second_get_two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1.5e9)
    with cox.EventWriter(tmp_path) as one, cox.EventWriter(tmp_path) as two:
        one.add_scalar("x", 1)
        two.add_scalar("x", 2)
        one.add_scalar("x", 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["0000", "0001"]
    assert all(name.startswith("events.out.tfevents.1500000000.") for name in names)
    assert [value.simple_value for value in read_values(tmp_path)] == [1, 3, 2]


def test_tags_that_start_with_a_slash_stay_inside(tmp_path):
    with cox.EventWriter(tmp_path / "run") as writer:
        writer.add_scalars("/main", {"/sub": 1})
    (value,) = read_values(tmp_path / "run/main/sub")
    assert value.tag == "/main"


def test_events_stay_where_the_writer_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    writer = cox.EventWriter("logs")
    monkeypatch.chdir("elsewhere")
    writer.add_scalar("x", 1.0)
    writer.add_scalars("pair", {"y": 2.0})
    writer.add_embedding(np.zeros((2, 2)))
    with copy.copy(writer) as other:
        other.add_scalar("x", 2.0)
    assert not os.listdir()
    assert {*values_by_tag(tmp_path / "logs")} == {(".", "x"), ("pair/y", "pair")}
    assert (tmp_path / "logs" / "projector_config.pbtxt").exists()


def test_no_tag_leads_out_of_the_logdir(tmp_path):
    inside = tmp_path / "a" / "b" / "logdir"
    with cox.EventWriter(inside) as writer:
        writer.add_scalars("main", {"../../../x": 1, "..": 2, "/../y": 3, "a/..b": 4})
        writer.add_hparams({"lr": 1}, {}, name="../z")
        for tag in "..", ".", "../..":
            writer.add_embedding([[1.0]], tag=tag)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {path for path in inside.rglob("*") if path.is_file()}
    assert {path.parent.name for path in files} == {
        *("x", "%2e%2e", "y", "..b", "z"),  # of scalars and hparams
        *("logdir", "%2E", "%2E%2E", "%2E%2E%2F%2E%2E"),  # of embeddings
    }
    assert (inside / "main" / "a" / "..b").is_dir()  # an ordinary tag is as it is


def test_a_link_out_of_the_run_is_not_written_through(tmp_path, out):
    (tmp_path / "elsewhere").mkdir()
    with Store(out, "run") as store:
        (out / "run" / "tensorboard").rmdir()
        (out / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(cox.WriteRefusedError, match="leads out of its run"):
            store.writer.add_scalar("x", 1)
        with pytest.raises(cox.WriteRefusedError, match="leads out of its run"):
            store.writer.add_scalars("x", {"y": 1})
        with pytest.raises(cox.WriteRefusedError, match="leads out of its run"):
            store.writer.add_embedding(np.eye(2))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_run_of_events_only_that_was_moved_gets_no_more(out):
    store = Store(out, "run")
    store.writer.add_scalar("x", 1)
    store.writer.close()
    (out / "run").rename(out / "moved")
    with pytest.raises(cox.NotFoundError, match="no run at"):
        store.writer.add_scalar("x", 2)
    assert not (out / "run").exists()


def test_a_run_that_was_moved_gets_no_embedding(run):
    store = Store(run.parent, "run")
    log(store, 1)
    run.rename(run.parent / "moved")
    with pytest.raises(cox.WriteRefusedError, match="moved or deleted"):
        store.writer.add_embedding(np.eye(2))
    assert not run.exists()


def test_pickled_writer_goes_on_in_a_file_of_its_own(tmp_path):
    writer = cox.EventWriter(tmp_path, filename_suffix=".s", purge_step=1)
    writer.add_scalar("x", 1)
    with pickle.loads(pickle.dumps(writer)) as copy:
        copy.add_scalar("x", 2)
    writer.close()
    assert len(list(tmp_path.glob("*.s"))) == 2


REFUSED_EVENTS = [
    pytest.param("add_scalar", ("x", "1.0"), TypeError, id="text"),
    pytest.param("add_scalar", ("x", None), TypeError, id="none"),
    pytest.param("add_scalar", ("x", [1, 2]), ValueError, id="two-numbers"),
    pytest.param("add_scalar", ("x", 1j), TypeError, id="complex"),
    pytest.param("add_scalar", (b"x", 1), TypeError, id="bytes-tag"),
    pytest.param("add_scalar", (["x"], 1), TypeError, id="list-tag"),
    pytest.param("add_scalar", ("\ud800", 1), ValueError, id="surrogate-tag"),
    pytest.param("add_scalar", ("x", 1, 2**63), ValueError, id="step-too-large"),
    pytest.param("add_scalar", ("x", 1, "one"), ValueError, id="text-step"),
    pytest.param("add_scalar", ("x", 1, 1, "now"), ValueError, id="text-time"),
    pytest.param("add_scalar", ("x", 1, 1, 1, True), TypeError, id="display-name"),
    pytest.param(
        "add_scalars", ("x", {"a": 1, "b": "2"}), TypeError, id="second-scalar"
    ),
    pytest.param("add_histogram", ("x", []), ValueError, id="empty-histogram"),
    pytest.param("add_histogram", ("x", ["a"]), TypeError, id="text-histogram"),
    pytest.param("add_histogram", ("x", [1], 0, "no"), ValueError, id="bins"),
    pytest.param(
        "add_histogram_raw", ("x", 0, 1, 1, 1, 1, [1], [1, 2]), ValueError, id="raw"
    ),
    pytest.param("add_image", ("x", np.ones((2, 4, 4))), ValueError, id="channels"),
    pytest.param("add_image", ("x", np.ones((4, 4))), ValueError, id="axes"),
    pytest.param(
        "add_image", ("x", np.ones((3, 4, 4)), 0, 0, "CHX"), ValueError, id="format"
    ),
    pytest.param("add_image", ("x", np.ones((3, 0, 4))), ValueError, id="no-pixel"),
    pytest.param("add_image", ("x", "file.png"), TypeError, id="path"),
    pytest.param("add_video", ("x", np.ones((3, 4, 4))), ValueError, id="video-axes"),
    pytest.param("add_audio", ("x", np.ones((5, 3))), ValueError, id="channels-audio"),
    pytest.param("add_text", ("x", 5), TypeError, id="no-text"),
    pytest.param("add_hparams", ([], {}), TypeError, id="hparams"),
    pytest.param("add_hparams", ({}, {"x": "y"}), TypeError, id="metric"),
    pytest.param("add_pr_curve", ("x", [1], [2.0]), ValueError, id="prediction"),
    pytest.param("add_pr_curve", ("x", [1, 0], [0.5]), ValueError, id="lengths"),
    pytest.param("add_pr_curve_raw", ("x", *[[1]] * 5, [1, 2]), ValueError, id="curve"),
    pytest.param(
        "add_custom_scalars_marginchart", (["a", "b"],), ValueError, id="margin"
    ),
    pytest.param(
        "add_custom_scalars", ({"a": {"b": ["?", []]}},), ValueError, id="kind"
    ),
    pytest.param("add_embedding", ([1, 2],), ValueError, id="points"),
    pytest.param("add_embedding", (np.eye(2), ["a"]), ValueError, id="labels"),
    pytest.param(
        "add_embedding",
        (np.eye(2), None, np.ones((2, 3, 4, 5))),
        ValueError,
        id="square",
    ),
]


@pytest.mark.parametrize(("method", "arguments", "error"), REFUSED_EVENTS)
def test_refused_input_writes_nothing(tmp_path, method, arguments, error):
    writer = cox.EventWriter(tmp_path)
    with pytest.raises(error):
        getattr(writer, method)(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "method",
    [
        "add_graph",
        "add_onnx_graph",
        "add_openvino_graph",
        "add_mesh",
        "add_tensor",
        "add_image_with_boxes",
        "export_scalars_to_json",
    ],
)
def test_kind_that_is_not_written_says_what_to_do(tmp_path, method):
    with pytest.raises(NotImplementedError, match=f"{method} .*(Use|use)"):
        getattr(cox.EventWriter(tmp_path), method)(1, x=2)


def test_every_method_of_tensorboardx_is_there_with_its_arguments():
    tensorboardx = pytest.importorskip("tensorboardX")
    inspect = pytest.importorskip("inspect")
    for name, theirs in vars(tensorboardx.SummaryWriter).items():
        if name.startswith("_") and name != "__init__":
            continue
        own = inspect.signature(getattr(cox.EventWriter, name)).parameters
        if "args" in own:  # not written
            continue
        expected = inspect.signature(theirs).parameters
        assert list(own)[: len(expected) - ("kwargs" in expected)] == [
            name for name in expected if name != "kwargs"
        ]
        for key, parameter in expected.items():
            if key != "comet_config":
                assert own[key].default == parameter.default


def test_killed_process_loses_no_event(tmp_path, forked):
    code = """
        import os, signal, sys, cox
        writer = cox.EventWriter(sys.argv[1])
        for step in range(1000):
            writer.add_scalar("x", step, step)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    forked("-c", textwrap.dedent(code), tmp_path, status=-signal.SIGKILL)
    assert [event.step for event in read_events(tmp_path)] == [*range(1000)]


def test_threads_share_one_file(tmp_path):
    writer = cox.EventWriter(tmp_path)
    barrier = threading.Barrier(8)

    def log(thread: int) -> None:
        barrier.wait()
        for step in range(200):
            writer.add_scalar(f"thread{thread}", step, step)

    threads = [threading.Thread(target=log, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert len(read_events(tmp_path)) == 1600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_is_refused_at_once_even_with_the_lock_held(tmp_path, forked):
    code = """
        import os, sys, threading, cox
        writer = cox.EventWriter(sys.argv[1])
        writer.add_scalar("x", 1)
        write, is_amid, done = os.write, threading.Event(), threading.Event()
        def write_and_wait(*args):
            is_amid.set()
            done.wait()
            return write(*args)
        os.write = write_and_wait
        thread = threading.Thread(target=writer.add_scalar, args=("x", 2))
        thread.start()
        is_amid.wait()
        if not (pid := os.fork()):
            status = 1
            for use in (
                lambda: writer.add_scalar("x", 2),
                lambda: writer.add_scalars("x", {"a": 2}),
                lambda: writer.add_embedding([[1]]),
            ):
                try:
                    use()
                except cox.WriteRefusedError as err:
                    status = 42 if "process" in str(err) else 1
                else:
                    os._exit(2)
            writer.close()
            del writer
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        done.set()
        thread.join()
        writer.add_scalar("x", 3)
    """
    forked("-c", textwrap.dedent(code), tmp_path)
    assert [value.simple_value for value in read_values(tmp_path)] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_raises_keeps_whole_records_and_goes_on(tmp_path, forked):
    pytest.importorskip("resource")
    code = """
        import resource, signal, sys, cox
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = cox.EventWriter(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        for step in range(3):  # not even the first record fits
            try:
                writer.add_scalar("x", step, step)
            except cox.StorageError as err:
                assert "tfevents" in str(err) and isinstance(err, OSError), err
                print("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        for step in range(3, 10):
            try:
                writer.add_scalar("x", step, step)
            except cox.StorageError:
                print("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        writer.add_scalar("x", 99, 99)
    """
    printed = forked("-c", textwrap.dedent(code), tmp_path)
    steps = [event.step for event in read_events(tmp_path)]
    assert steps == [*range(3, 3 + len(steps) - 1), 99]
    assert printed.count("full") == 11 - len(steps)
    assert len(list(tmp_path.iterdir())) == 1


def test_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(cox.StorageError, match="file/run"):
        cox.EventWriter(tmp_path / "file/run").add_scalar("x", 1)
    with pytest.raises(cox.StorageError, match="file/run"):
        cox.EventWriter(tmp_path / "file/run").add_embedding(np.eye(2))


@pytest.mark.parametrize("size", [0, 7])
def test_short_write_is_taken_back(tmp_path, monkeypatch, size):
    writer = cox.EventWriter(tmp_path)
    writer.add_scalar("x", 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:size]))
    with pytest.raises(cox.StorageError) as caught:
        writer.add_scalar("x", 2)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    writer.add_scalar("x", 3)
    writer.close()
    assert [value.simple_value for value in read_values(tmp_path)] == [1, 3]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_torn_end_that_stays_is_followed_by_a_new_file(tmp_path, monkeypatch):
    writer = cox.EventWriter(tmp_path)
    writer.add_scalar("x", 1)
    write = os.write

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(cox.StorageError, match="an event could not be written"):
        writer.add_scalar("x", 2)
    monkeypatch.undo()
    writer.add_scalar("x", 3)
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_cannot_be_closed_is_told_of_and_forgotten(tmp_path, monkeypatch):
    writer = cox.EventWriter(tmp_path)
    writer.add_scalars("x", {"a": 1, "b": 1})
    writer.add_scalar("x", 1)
    close, closed = os.close, []

    def lose(fd: int) -> None:  # as a network file system that has no room
        closed.append(fd)
        close(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", lose)
    with pytest.raises(cox.StorageError, match="events may be lost"):
        writer.close()
    monkeypatch.undo()
    assert len(set(closed)) == 3
    with open(tmp_path / "other", "wb+") as other:
        assert other.fileno() in closed  # the number is another file's now
        writer.add_scalar("x", 2)
        writer.close()
        assert other.read() == b""
    assert len(list(tmp_path.glob("events*"))) == 2


def test_interrupted_write_is_followed_by_a_new_file(tmp_path, monkeypatch):
    writer = cox.EventWriter(tmp_path)
    writer.add_scalar("x", 1)
    (torn,) = tmp_path.iterdir()
    size = torn.stat().st_size
    write = os.write

    def interrupt(fd: int, data: bytes) -> int:
        write(fd, data[:7])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.add_scalar("x", 2)
    monkeypatch.undo()
    writer.add_scalar("x", 3)
    writer.close()
    assert torn.stat().st_size == size + 7
    torn.unlink()
    assert [value.simple_value for value in read_values(tmp_path)] == [3]


def test_signal_handler_amid_a_write_is_refused_and_harms_nothing(
    tmp_path, monkeypatch
):
    writer = cox.EventWriter(tmp_path)
    write, refused = os.write, []

    def handler(*_: object) -> None:
        with pytest.raises(cox.CoxError, match="signal handler"):
            writer.add_scalar("x", 2)
        writer.close()
        refused.append(True)

    def write_and_signal(fd: int, data: bytes) -> int:
        written = write(fd, data)
        signal.raise_signal(signal.SIGINT)
        return written

    before = signal.signal(signal.SIGINT, handler)
    try:
        monkeypatch.setattr(os, "write", write_and_signal)
        writer.add_scalar("x", 1)
        monkeypatch.undo()
    finally:
        signal.signal(signal.SIGINT, before)
    writer.add_scalar("x", 3)
    writer.close()
    assert refused
    assert [value.simple_value for value in read_values(tmp_path)] == [1, 3]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_second_process_does_not_hide_the_events_of_the_one_that_writes(out):
    with Store(out, "run") as store:
        table = store.add_table("t", {"x": float})
        for step in range(3):
            store.log_table_and_tb("t", {"x": step}, step=step)
            table.flush_row()
        code = f"""
import cox
store = cox.Store({str(out)!r}, "run")
for log in (
    lambda: store.log_table_and_tb("t", {{"x": 99}}, step=0),
    lambda: store.writer.add_scalar("t/x", 99, 0),
):
    try:
        log()
    except cox.WriteRefusedError as err:
        print("written by another process" in str(err) or err)
"""
        assert python("-c", code) == "True\nTrue\n"
        assert len(os.listdir(store.tb_dir)) == 1


def test_continued_run_gets_a_new_file(tmp_path, forked):
    code = """
        import sys, cox
        cox.EventWriter(sys.argv[1]).add_scalar("x", float(sys.argv[2]))
    """
    for value in 1, 2:
        forked("-c", textwrap.dedent(code), tmp_path, value)
    assert [value.simple_value for value in read_values(tmp_path)] == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_writer_that_is_dropped_closes_its_file(tmp_path):
    descriptors = pathlib.Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("no /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        cox.EventWriter(tmp_path).add_scalar("x", 1)
    assert len(list(descriptors.iterdir())) == before


def test_ready_made_messages_are_written(tmp_path):
    summary = summary_pb2.Summary(value=[{"tag": "x", "simple_value": 0.5}])
    event = event_pb2.Event(step=4, wall_time=1.0, summary=summary)
    with cox.EventWriter(tmp_path) as writer:
        files = writer.file_writer, writer._get_file_writer()
        files[0].add_summary(summary)
        files[1].add_summary(summary, 3)
        files[0].add_event(event)
        files[1].add_event(event, 5, 2.0)
        for add in (writer.add_summary, writer.add_event):
            with pytest.raises(TypeError, match="protobuf"):
                add("x")
    events = read_events(tmp_path)
    assert [event.step for event in events] == [0, 3, 4, 5]
    assert all(event.summary == summary for event in events)
    assert abs(events[2].wall_time - time.time()) < 60
    assert events[3].wall_time == 2.0


NO_SUCH_VALUES = {
    "figure": (lambda writer: writer.add_figure("x", 3), "figure"),
    "figures": (lambda writer: writer.add_figure("x", [3]), "figure"),
    "scalars": (lambda writer: writer.add_scalars("x", 3), "dict"),
    "hparams": (lambda writer: writer.add_hparams({}, 3), "dict"),
    "layout": (lambda writer: writer.add_custom_scalars(3), "dict"),
    "layout-of-a-number": (lambda writer: writer.add_custom_scalars({"x": 3}), "dict"),
    "tags": (lambda writer: writer.add_custom_scalars_multilinechart(3), "tags"),
}


@pytest.mark.parametrize(
    ("add", "expected"), NO_SUCH_VALUES.values(), ids=NO_SUCH_VALUES
)
def test_a_value_of_another_kind_is_told_what_was_expected(tmp_path, add, expected):
    pytest.importorskip("matplotlib")
    with pytest.raises(TypeError, match=f"expected .*{expected}.*, got 3"):
        add(cox.EventWriter(tmp_path))
    assert os.listdir(tmp_path) == []


###############################################################################
# Store
###############################################################################


# As the original documents it, put together.
WALKTHROUGH_1 = """
from cox.store import Store
from cox.readers import CollectionReader

def f(x):
    return (x - 2.03)**2 + 3

for step in (0.5, 1.5):
    store = Store(OUT_DIR)
    store.add_table('metadata', {
      'step_size': float,
      'tolerance': float,
      'initial_x': float,
      'out_dir': str
    })

    store.add_table('result', {
        'final_x': float,
        'final_opt':float
    })

    x = 0.0
    for _ in range(1000):
        # Take a uniform step in the direction of decrease
        if f(x + step) < f(x - step):
            x += step
        else:
            x -= step

        # If the difference between the directions
        # is less than the tolerance, stop
        if f(x + step) - f(x - step) < 1e-6:
            break

    # This updates the working row, but does not write it permenantly yet!
    store['result'].update_row({
      "final_x": x
    })

    # This updates it again
    store['result'].update_row({
      "final_opt": f(x)
    })

    # Write the row permenantly, and start a new working row!
    store['result'].flush_row()

    # A shortcut for appending a row directly
    store['metadata'].append_row({
      'step_size': step,
      'tolerance': 1e-6,
      'initial_x': 0.0,
      'out_dir': '/tmp/'
    })

EXP_ID = store.exp_id
s = Store(OUT_DIR, EXP_ID)

# Read tables we wrote earlier
metadata = s['metadata'].df
result = s['result'].df

reader = CollectionReader(OUT_DIR)
df = reader.df('result')
m_df = reader.df('metadata')

# Filter by experiments have step_size less than 1.0
exp_ids = set(m_df[m_df['step_size'] < 1.0]['exp_id'].tolist())
filtered = df[df['exp_id'].isin(exp_ids)] # The filtered DataFrame

# Finding which experiment has the lowest final_opt
exp_id = df[df['final_opt'] == min(df['final_opt'].tolist())]['exp_id'].tolist()[0]
best = m_df[m_df['exp_id'] == exp_id] # Metadata of the best experiment
"""


def test_walkthrough_1(out):
    names = {"OUT_DIR": str(out)}
    exec(WALKTHROUGH_1, names)
    for exp_id in os.listdir(out):
        assert uuid.UUID(exp_id).version == 4
        shown = {name for name in os.listdir(out / exp_id) if name[0] != "."}
        assert shown == {"save", "store.h5", "tensorboard"}
    assert_frame(
        names["result"],
        {"final_x": np.array([1.5]), "final_opt": np.array([0.53**2 + 3])},
    )
    assert names["metadata"].values.tolist() == [[1.5, 1e-6, 0.0, "/tmp/"]]
    assert sorted(names["df"]["final_x"]) == [0.5, 1.5]
    assert names["filtered"]["final_x"].tolist() == [0.5]
    assert names["best"]["step_size"].tolist() == [1.5]
    names.clear()  # its Stores close now, not in another test


def test_add_table_again_returns_it_or_refuses(run):
    with Store(run.parent, "run") as store:
        assert store.add_table("t", SCHEMA).nrows == 3
        for other in ({"i": int}, SCHEMA | {"x": int}, {"i": float, "note": str}):
            with pytest.raises(ValueError, match=r"'t'.*, or mode=\"w\""):
                store.add_table("t", other)
        with pytest.raises(cox.NotFoundError, match="no table 'T'") as info:
            store["T"]
        assert info.value.__context__ is None  # a traceback shows nothing else
        assert_logged(store["t"].df, 3)
    with Store(run.parent, "run") as store:
        table = store.add_table("t", dict(reversed(SCHEMA.items())))
        table.append_row({"note": "row 3", "i": 3})
        assert_logged(table.df, 4)


def test_an_empty_table_is_made_again_with_another_schema(out):
    with Store(out, "run") as store:
        first = store.add_table("t", {"x": float})
        second = store.add_table("t", SCHEMA)
        assert store.add_table("t", SCHEMA) is store["t"] is second
        log(store, 2)
        with pytest.raises(CoxError, match="was replaced by a table"):
            first.append_row({"x": 1})
        with pytest.raises(CoxError, match=r"'t'.*has rows"):
            store.add_table("t", {"x": float})
        first = store.add_table("u", {"y": float})
        for _ in range(2):
            store.add_table("u", {"x": float}).append_row({"x": 0.5})
            with pytest.raises(CoxError, match="was replaced by a table"):
                first.append_row({"y": 1.5})  # of the same size
    with Store(out, "run") as store:
        assert_logged(store["t"].df, 2)
        assert store["u"].df["x"].tolist() == [0.5, 0.5]


def _make_again(step, out):
    steps = itertools.count(1)
    store = Store(out, "run")
    store.add_table("t", {"x": float, "s": str})

    def around(call, name, *args):
        if next(steps) == step:
            os._exit(73)
        return call(*args)

    cox.os = Proxy(os, around)
    store.add_table("t", SCHEMA)


@some_of(3)
def test_death_while_an_empty_table_is_made_again_leaves_one_of_the_two(
    tmp_path, child, every
):
    for step in itertools.count(1, every):
        out = tmp_path / f"step{step}"
        status = child(_make_again, step, out).end(0, 73)
        with Store(out, "run") as store:
            assert [*store["t"].schema] in (["x", "s"], ["i", "note"])
            assert store["t"].nrows == 0
            log(store, 2)
        if status == 0:
            break
    assert step > 5


def test_tables_are_a_live_mapping(run):
    with Store(run.parent, "run") as store:
        tables_ = store.tables
        assert [*tables_] == [*store.keys] == [*store] == ["other", "t"]
        assert_logged(tables_["t"].df, 3)
        with Store(run.parent, "run", mode="r") as reader:
            store.add_table("new", {"x": float})
            assert [*reader.tables] == ["new", "other", "t"]
        assert "new" in tables_
        assert "new" in store
        assert tables_["new"] is store["new"] is dict(tables_.items())["new"]
        assert "missing" not in tables_
        assert "missing" not in store
        assert tables_.get("missing") is None
        assert len(tables_) == len(store.keys) == len(store) == 3
        assert "new" in repr(tables_)
        with pytest.raises(TypeError):
            tables_["x"] = 1


def test_a_store_without_tables_is_still_true(store):
    assert len(store) == 0
    assert store


def test_a_store_is_printed_by_its_tables_and_a_table_by_its_first_rows(run):
    with Store(run.parent, "run") as store:
        log(store, 4)
        store.add_table("odd", {"s": str}).append_row({"s": "\x1b[2J"})
        shown = store["t"].df.head(5)
        assert str(store["t"]) == f"{shown}\n ... (2 rows hidden)"
        assert str(store["other"]) == str(store["other"].df)
        for name in store:
            assert f"-- Table: {name} --\n{store[name]}\n" in str(store)
        assert "\x1b" not in str(store)
        assert "run" in repr(store)


def test_a_store_says_where_its_files_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store("~/out", "") as store:
        uuid.UUID(store.exp_id)
        assert store.path == str(tmp_path / "out" / store.exp_id)
        assert store.save_dir == store.path + "/save"
        assert store.tb_dir == store.path + "/tensorboard" == store.writer.logdir
    assert CollectionReader("~/out").exp_ids == [store.exp_id]
    with pytest.raises(ValueError, match=r"'a/b'.*storage_folder"):
        Store(tmp_path, "a/b")
    (tmp_path / "file").write_text("")
    for folder, exp_id in (tmp_path, "file"), (tmp_path / "file", "run"):
        with pytest.raises(cox.StorageError, match=r"could not create .*/file"):
            Store(folder, exp_id)


def test_a_snapshot_is_read_while_the_run_goes_on(store, out):
    log(store, 2)
    path = store.snapshot_copy()
    assert_logged(pd.read_hdf(path, "t"), 2)
    for arguments in ((out, "run"), (store.path,), (store.path + "/",)):
        reader = Store.read_from_running(*arguments)
        assert_logged(reader["t"].df, 2)
        with pytest.raises(CoxError, match="mode"):
            log(reader, 1)


def test_removing_store_h5_removes_no_row_and_says_so(run):
    (run / "store.h5").unlink()
    with warns(r'out/run.*mode="w"'), Store(run.parent, "run") as store:
        log(store, 1)
        assert_logged(store["t"].df, 4)
    (run / "store.h5").unlink()
    Store(run.parent, "run", mode="r")
    Store(run.parent, "run", mode="w").close()


def test_mode_r_has_no_writer_and_hasattr_says_so(run):
    store = Store(run.parent, "run", mode="r")
    assert not hasattr(store, "tensorboard")
    assert not hasattr(store, "writer")
    with pytest.raises(cox.WriteRefusedError, match="mode 'a'"):
        store.tensorboard.add_scalar("x", 1, 1)


def test_another_writer_may_be_assigned(store):
    calls = []
    other = types.SimpleNamespace(add_scalar=lambda *args: calls.append(args))
    store.tensorboard = other
    assert store.writer is other
    store.add_table("t", {"x": float})
    store.log_table_and_tb("t", {"x": 0.5}, step=3)
    store["t"].flush_row()
    assert calls == [("t/x", 0.5, 3)]
    assert read_events(store.tb_dir) == []


def test_another_writer_has_methods_of_its_own(store):
    calls = []

    class Writer(cox.EventWriter):
        def add_scalar(self, *args):
            calls.append(args)
            super().add_scalar(*args)

        def add_mesh(self, *args):
            calls.append(args)

        add_point = add_mesh

    store.writer = Writer(store.tb_dir)
    store.add_table("t", {"x": float, "y": float})
    for kind in "scalar", "mesh", "point":
        store.log_table_and_tb("t", {"x": 0.5, "y": 1.0}, kind, step=3)
        store["t"].flush_row()
    assert calls == [("t/x", 0.5, 3), ("t/y", 1.0, 3)] * 3
    assert [value.tag for value in read_values(store.tb_dir)] == ["t/x", "t/y"]
    with pytest.raises(NotImplementedError, match="add_graph is not built in"):
        store.log_table_and_tb("t", {"x": 0.5, "y": 1.0}, "graph")


def test_a_closed_store_still_writes_events_to_a_new_file(store):
    for step in (1, 2):
        store.tensorboard.add_scalar("x", step, step)
        store.close()
    assert len(os.listdir(store.tb_dir)) == 2
    assert [event.step for event in read_events(store.tb_dir)] == [1, 2]


def test_a_missing_table_is_a_key_error_that_lists_the_others(run):
    store = Store(run.parent, "run", mode="r")
    for look_up in (store.get_table, store.__getitem__):
        with pytest.raises(KeyError, match="other"):
            look_up("missing")


def test_mode_r_creates_nothing_and_refuses_to_write(run, around):
    before = tree(run)

    def read_only_disk(call, name, *args):
        raise OSError(errno.EROFS, f"read-only: {name}")

    around(read_only_disk)
    with Store(run.parent, "run", mode="r") as store:
        assert_logged(store["t"].df, 3)
        for write in (
            lambda: store["t"].append_row({"i": 3, "note": ""}),
            lambda: store["t"].update_row({"i": 3}),
            lambda: store.add_table("new", SCHEMA),
            store.checkpoint,
            lambda: store.writer,
        ):
            with pytest.raises(cox.WriteRefusedError, match="opened with mode 'r'"):
                write()
    assert_logged(CollectionReader(run.parent).df("t"), 3)
    assert tree(run) == before


@pytest.mark.parametrize("layout", ["run", "original"])
def test_a_run_that_one_may_not_write_says_so(request, around, layout):
    def not_mine(call, name, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), *args[:1])

    run = request.getfixturevalue(layout)
    around(not_mine)
    store = Store(run.parent, "run")
    for write in (
        lambda: log(store, 1),
        lambda: store["t"].append_row({"i": 3, "note": "row 3"}),
        store.checkpoint,
        lambda: Store(run.parent, "run", mode="w"),
    ):
        with pytest.raises(cox.WriteRefusedError, match=r"out/run.*denied"):
            write()
    assert_logged(store["t"].df, 3)


@pytest.mark.parametrize("layout", ["run", "original"])
def test_opening_to_read_touches_no_file(request, layout):
    run = request.getfixturevalue(layout)
    before = tree(run)
    with Store(run.parent, "run") as store:
        assert_logged(store["t"].df, 3)
        assert store["t"].nrows == 3
    assert tree(run) == before


@pytest.mark.parametrize("layout", ["run", "original"])
def test_mode_w_starts_the_tables_afresh(request, layout):
    run = request.getfixturevalue(layout)
    (run / "save" / "mine").touch()
    with cox.EventWriter(run / "tensorboard") as writer:
        writer.add_scalars("old", {"a": 1}, 0)
        writer.add_scalar("old", 1, 0)
    with Store(run.parent, "run", mode="w") as store:
        assert os.listdir(run / "tensorboard") == []
        with pytest.raises(KeyError):
            store.get_table("other")
        store.add_table("t", {"x": float}).append_row({"x": 1})
    assert Store(run.parent, "run", mode="r")["t"].df["x"].tolist() == [1]
    assert set(exported(run)) == {"t"}
    assert (run / "save" / "mine").exists()


def test_a_row_that_was_never_flushed_is_told_of(out):
    store = Store(out, "run")
    store.add_table("t", SCHEMA).update_row({"i": 1})
    with warns("'t' was staged and never flushed"):
        store.close()


def test_a_value_replaced_twice_before_a_flush_is_told_of_once(out):
    store = Store(out, "run")
    table = store.add_table("t", {"x": float, "y": float})
    for x in (1, 2):  # to correct a value is common
        table.update_row({"x": x})
    table.append_row({"y": 1})
    for x in (3, 4):
        table.update_row({"y": x})
        table.update_row({"x": x})
    table.flush_row()
    with warns("'t'.*flush_row") as messages:
        for x in range(9):
            store.log_table_and_tb("t", {"x": x})
            table.update_row({"y": x})
    assert len(messages) == 1
    table.flush_row()
    assert table.df.values.tolist() == [[2, 1], [4, 4], [8, 8]]
    store.close()


def test_log_table_and_tb_takes_the_step_of_its_events(store):
    table = store.add_table("t", {"step": int, "x": float})
    for step in (100, 101, 0):
        store.log_table_and_tb("t", {"step": step, "x": 0.5}, step=step)
        table.flush_row()
    store.log_table_and_tb("t", {"x": 0.5}, "histogram", 7)
    table.append_row({"step": 7})
    assert [event.step for event in read_events(store.tb_dir)] == [100, 101, 0, 7]


def test_log_table_and_tb_stages_a_row_and_writes_its_events(store, out):
    table = store.add_table("t", {"x": float, "y": int, "o": OBJECT})
    for step in (0, 1):
        store.log_table_and_tb("t", {"x": 0.5, "y": step})
        assert table.nrows == step
        table.update_row({"o": None})
        table.flush_row()
    store.log_table_and_tb("t", {"o": [1.0, 2.0]}, summary_type="histogram")
    assert table.df[["x", "y"]].values.tolist() == [[0.5, 0], [0.5, 1]]
    *scalars, histogram = read_events(out / "run" / "tensorboard")
    assert [
        (event.step, [(v.tag, v.simple_value) for v in event.summary.value])
        for event in scalars
    ] == [(step, [("t/x", 0.5), ("t/y", step)]) for step in (0, 1)]
    [value] = histogram.summary.value
    assert (histogram.step, value.tag, value.histo.num) == (2, "t/o", 2)


class Once:
    """A number that can be asked for once, as one that is on its way from a GPU."""

    shape = ()
    asked = 0

    def item(self):
        self.asked += 1
        return 0.5


def test_log_table_and_tb_asks_and_encodes_once(store, out, monkeypatch):
    encoded = []

    def compress(data):
        encoded.append(data)
        return zlib.compress(data)

    monkeypatch.setattr(cox, "zlib", but(zlib, compress=compress))
    for name in "tuvw":
        store.add_table(name, {"x": float, "a": OBJECT, "b": OBJECT})
    number, image = Once(), np.zeros((3, 4, 4))
    store.log_table_and_tb("t", {"x": number})
    assert number.asked == 1
    store.log_table_and_tb("u", {"a": image, "b": image}, "image")
    assert len(encoded) == 2
    with pytest.raises(ValueError, match="no image"):
        store.log_table_and_tb("u", {"a": image, "b": np.zeros((3, 0, 4))}, "image")
    store.log_table_and_tb("v", {"a": {"i": 1, "j": 2}, "b": {"k": 3}}, "scalars")
    store.log_table_and_tb("w", {"a": 7})  # a number, though the column holds objects
    logdir = out / "run" / "tensorboard"
    assert [v.tag for v in read_values(logdir)] == ["t/x", "u/a", "u/b", "w/a"]
    assert {p.name for p in logdir.glob("v/*/*")} == {"i", "j", "k"}
    assert [v.simple_value for v in read_values(logdir / "v" / "a" / "j")] == [2]


REFUSED_EVENT_ROWS = {
    "text-as-scalar": ({"x": 1.0, "s": "text"}, "scalar", "'s'"),
    "not-of-the-column": ({"s": 1.0, "x": "1.0"}, "scalar", "'x'"),
    "no-column": ({"x": 1.0, "z": 1.0}, "scalar", "'z'"),
    "text-as-histogram": ({"x": 1.0, "s": "text"}, "histogram", "text"),
    "not-of-the-column-as-histogram": ({"s": 1.0, "x": [1]}, "histogram", "'x'"),
    "unknown-type": ({"x": 1.0}, "nonsense", "nonsense"),
}


@pytest.mark.parametrize(
    ("row", "kind", "match"), REFUSED_EVENT_ROWS.values(), ids=REFUSED_EVENT_ROWS
)
def test_a_row_refused_by_table_or_events_is_in_neither(store, out, row, kind, match):
    table = store.add_table("t", {"x": float, "s": str})
    table.update_row({"s": "before"})
    with pytest.raises((ValueError, TypeError), match=match):
        store.log_table_and_tb("t", row, summary_type=kind)
    assert read_events(out / "run" / "tensorboard") == []
    table.update_row({"x": 2})
    table.flush_row()
    assert table.df.values.tolist() == [[2.0, "before"]]


REFUSED_OPENINGS = {
    "new-of-a-run-that-exists": {"exp_id": "run", "new": True},
    "read-of-a-missing-run": {"exp_id": "missing", "mode": "r"},
    "unknown-mode": {"exp_id": "run", "mode": "x"},
} | {
    repr(exp_id)[:9]: {"exp_id": exp_id}
    for exp_id in (".", "..", "a/b", "/abs", "a\0b", "x" * 256, 3)
}


@pytest.mark.parametrize("arguments", REFUSED_OPENINGS.values(), ids=REFUSED_OPENINGS)
def test_a_refused_opening_makes_and_changes_nothing(run, arguments):
    before = tree(run.parent)
    named = re.escape(repr(arguments["exp_id"]).strip("'"))
    with pytest.raises((ValueError, TypeError, OSError), match=rf"mode|{named}"):
        Store(run.parent, **arguments)
    assert tree(run.parent) == before


def test_new_makes_a_run_that_does_not_exist(run):
    Store(run.parent, "other", new=True).close()
    assert sorted(os.listdir(run.parent)) == ["other", "run"]


def test_a_closed_store_refuses_rows_and_closes_twice(out):
    store = Store(out, "run")
    log(store, 2)
    table = store["t"]
    store.close()
    store.close()
    with pytest.raises(CoxError, match="closed"):
        table.append_row({"i": 2, "note": ""})
    with pytest.raises(CoxError, match="closed"):
        store.log_table_and_tb("t", {"i": 2})
    with pytest.raises(CoxError, match="closed"):
        store.add_table("new", SCHEMA)
    assert [*Store(out, "run", mode="r").tables] == ["t"]
    assert not list((out / "run" / "tensorboard").iterdir())


def holder():
    return rf"(?s){re.escape(socket.gethostname())}.*{os.getpid()}"


def _refused_writer(out, holder, count=2):
    store = Store(out, "run")
    assert_logged(store["t"].df, count)
    with pytest.raises(CoxError, match=holder):
        log(store, 1)


def test_a_second_writer_is_told_who_the_first_is(store, out, child):
    log(store, 2)
    child(_refused_writer, out, holder()).end()
    with Store(out, "run") as second:  # those of one process share the run
        second["t"].append_row({"i": 2, "note": "row 2"})
        log(store, 1)
    with pytest.raises(CoxError, match="closed"):
        log(second, 1)
    child(_refused_writer, out, holder(), 4).end()
    log(store, 1)
    assert_logged(store["t"].df, 5)


def test_a_store_that_is_gone_leaves_the_run_to_others_though_a_table_is_kept(out):
    store = Store(out, "run")
    log(store, 1)
    table = store["t"]
    del store
    with load_again().Store(out, "run") as other:
        log(other, 1)
    table.append_row({"i": 2, "note": "row 2"})
    assert_logged(table.df, 3)
    assert_locked(out)


def test_a_lock_file_that_takes_no_text_is_no_matter(out, around):
    lock = out / "run" / ".tables" / "lock"

    def full(call, name, *args):
        if name == "write" and is_open_at(args[0], lock):
            raise OSError(errno.ENOSPC, "full")
        return call(*args)

    around(full)
    with Store(out, "run") as store:
        log(store, 2)
        assert_locked(out)


@pytest.mark.parametrize(
    "number",
    [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL],
    ids=["nolck", "notsup", "nosys", "inval"],
)
@pytest.mark.parametrize("layout", [None, "run", "original"])
def test_a_filesystem_without_locks_is_logged_to(request, out, around, number, layout):
    if layout:
        request.getfixturevalue(layout)

    def no_locks(call, name, *args):
        if name in ("flock", "lockf"):
            raise OSError(number, os.strerror(number))
        return call(*args)

    around(no_locks)
    with Store(out, "run") as store:
        log(store, 2)
        assert_logged(store["t"].df, 5 if layout else 2)


def test_a_store_no_longer_reachable_exports_and_lets_go(out):
    gc.disable()
    try:
        for count in (1, 2, 3):  # a notebook cell that is run again
            store = Store(out, "run")
            log(store, 1)
            del store
            assert_logged(exported(out / "run")["t"], count)
    finally:
        gc.enable()


def test_a_notebook_cell_runs_twice(out):
    cell = "store = Store(out, 'run'); table = log(store, 1) or store['t']"
    notebook = {"Store": Store, "out": out, "log": log}
    for count in (1, 2):
        exec(cell, notebook)
        assert_logged(notebook["table"].df, count)
    assert_locked(out)


def test_rows_of_a_killed_writer_are_exported_by_the_next(out, quiet):
    make_run(out, "run", t=(SCHEMA_KINDS, [(0, "row 0"), (1, "row 1")]))
    with Store(out, "run") as store:
        log(store, 1)
    assert_logged(exported(out / "run")["t"], 3)


def _continue(store, count):
    log(store, count)
    store.close()


def test_a_store_reopens_in_another_process(out, child):
    with Store(out, "run", mode="w") as store:
        log(store, 2)
    child(_continue, store, 1).end()
    copied = pickle.loads(pickle.dumps(store))
    assert_logged(copied["t"].df, 3)
    table = pickle.loads(pickle.dumps(Store(out, "run", mode="r")))["t"]
    with pytest.raises(CoxError):
        table.append_row({"i": 3, "note": "row 3"})


def test_exit_exports_what_a_store_wrote(tmp_path):
    code = """if True:
        import sys, cox
        store = cox.Store(sys.argv[1], "run")
        table = store.add_table("t", {"i": int, "note": str})
        table.append_row({"i": 0, "note": "row 0"})
        cox.keep = store, table  # something still refers to it at the end
        sys.exit(3)
    """
    python("-c", code, tmp_path, status=3)
    assert_logged(exported(tmp_path / "run")["t"], 1)


EXIT = """if True:
    import gc, os, sys
    if sys.argv[2]:
        __import__(sys.argv[2])
    import cox
    sys.kept = sys.modules["__main__"]  # so that cox's names are gone before ours
    def make(exp_id):
        store = cox.Store(sys.argv[1], exp_id)
        table = store.add_table("t", {"i": int, "note": str})
        for i in range(2):
            store.log_table_and_tb("t", {"i": i})
            table.append_row({"note": f"row {i}"})
        store.writer.add_scalars("x", {"a": 1, "b": 2})
        return store
    with make("closed") as closed:
        pass
    unclosed, table = make("unclosed"), make("of-a-table")["t"]
    cycle = [make("in-a-cycle")]
    cycle.append(cycle)
    gc.disable()
    def make_garbage():
        cycle = [make("garbage")]
        cycle.append(cycle)
    make_garbage()
    collections = iter(range(int(sys.argv[3])))
    def replace(*args, replace=os.replace, collections=collections, collect=gc.collect):
        for _ in collections:
            collect()  # while the export at exit is under way
            break
        replace(*args)
    os.replace = replace
"""


@pytest.mark.parametrize(
    ("first", "collections"),
    [
        ("", 99),
        ("torch", 1),
        pytest.param("torch", 99, marks=pytest.mark.slow),
        pytest.param("tensorboardX", 99, marks=pytest.mark.slow),
    ],
)
def test_an_exit_is_quiet_and_exports_what_was_not_closed(tmp_path, first, collections):
    if first and not importlib.util.find_spec(first):
        pytest.skip(f"needs {first}")
    python("-W", "ignore", "-c", EXIT, tmp_path, first, collections)
    for exp_id in ("closed", "unclosed", "of-a-table", "in-a-cycle", "garbage"):
        assert_logged(exported(tmp_path / exp_id)["t"], 2)


def test_an_export_that_fails_at_exit_is_tried_once(tmp_path):
    code = """if True:
        import logging, resource, signal, sys, cox
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        store = cox.Store(sys.argv[1], "run")
        store.add_table("t", {"i": int}).append_row({"i": 0})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    """
    printed = python("-c", code, tmp_path)
    assert printed.count("could not write") == 1
    assert "Traceback" not in printed
    assert Store(tmp_path, "run", mode="r")["t"].nrows == 1


def test_a_forked_child_neither_writes_nor_exports(tmp_path):
    code = """if True:
        import os, sys, cox
        store = cox.Store(sys.argv[1], "run")
        table = store.add_table("t", {"i": int, "note": str})
        table.append_row({"i": 0, "note": "row 0"})
        before = os.stat(sys.argv[1] + "/run/store.h5")
        child = os.fork()
        if child == 0:
            print(len(table.df), flush=True)
            event = lambda row: store.writer.add_scalar("i", row["i"])
            for attempt in (table.append_row, table.update_row, event):
                try:
                    attempt({"i": 9, "note": "from the child"})
                except cox.CoxError as error:
                    print("fork" in str(error), flush=True)
            sys.exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert os.stat(sys.argv[1] + "/run/store.h5") == before
        import fcntl
        try:
            with open(sys.argv[1] + "/run/.tables/lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("still locked", flush=True)
        table.append_row({"i": 1, "note": "row 1"})
    """
    printed = python("-c", code, tmp_path).splitlines()
    assert printed == ["1", "True", "True", "True", "still locked"]
    assert_logged(exported(tmp_path / "run")["t"], 2)


def test_the_lock_goes_with_the_parent_though_a_child_lives_on(tmp_path):
    code = """if True:
        import os, sys, time, cox
        store = cox.Store(sys.argv[1], "run")
        store.add_table("t", {"i": int, "note": str})
        if os.fork() == 0:
            os.close(1), os.close(2)
            os.read(0, 1)  # until the test closes its end
            os._exit(0)
        os._exit(0)
    """
    reading, writing = os.pipe()
    python("-c", code, tmp_path, stdin=reading)
    with Store(tmp_path, "run") as store:
        log(store, 1)
    os.close(writing)
    os.close(reading)


@some_of(8)
def test_children_of_an_exporting_process_do_not_hang(tmp_path, forked, every):
    code = """if True:
        import os, signal, sys, threading, warnings, pandas as pd, cox
        warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
        inside = []
        class Watched(pd.HDFStore):
            def __init__(self, *args, **kwargs):
                inside.append(self)
                super().__init__(*args, **kwargs)
            def close(self):
                super().close()
                inside.clear()
        pd.HDFStore = Watched
        store = cox.Store(sys.argv[1], "run")
        store.add_table("t", {"i": int, "note": str})
        stop = threading.Event()
        def export():
            i = 0
            while not stop.is_set():
                store["t"].append_row({"i": i, "note": f"row {i}"})
                store.checkpoint()
                i += 1
        thread = threading.Thread(target=export)
        thread.start()
        for n in range(int(sys.argv[2])):
            child = os.fork()
            if child == 0:
                assert not inside, "a thread was in HDF5 and can never leave it here"
                signal.alarm(20)
                with cox.Store(sys.argv[1], f"child{n}") as mine:
                    mine.add_table("t", {"i": int, "note": str})
                    mine["t"].append_row({"i": 0, "note": "row 0"})
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
    """
    forked("-c", code, tmp_path, 40 // every)
    reader = CollectionReader(tmp_path, exp_filter=lambda e: e != "run")
    assert len(reader.df("t")) == 40 // every


###############################################################################
# CollectionReader
###############################################################################


@made_once
def made_runs(out):
    for count, exp_id in enumerate("abc", 1):
        with Store(out, exp_id) as store:
            store.add_table("metadata", {"lr": float}).append_row({"lr": count / 10})
            log(store, count)


@pytest.fixture
def runs(made_runs, out):
    """Three runs, a, b and c: 1, 2 and 3 rows of `t`; one of `metadata`."""
    return copy_made(made_runs, out)


def test_a_collection_joins_the_runs(runs):
    with CollectionReader(runs) as reader:
        frame = reader.df("t")
        assert list(frame.columns) == ["i", "note", "exp_id"]
        assert frame.index.tolist() == [0, 0, 1, 0, 1, 2]  # within their runs
        assert frame["exp_id"].tolist() == list("abbccc")
        assert frame["note"].tolist() == [f"row {i}" for i in frame.index]
        assert frame["i"].dtype == np.int64
        bare = reader.df("t", append_exp_id=False)
        assert bare.equals(frame.drop(columns="exp_id"))
    reader.close()


BIG = 2**60 + 1  # a float would lose its last digit


def test_many_columns_are_joined_without_a_warning(out):
    for exp_id in "ab":
        schema = {f"{exp_id}{i}": float for i in range(100)} | {"note": str}
        with Store(out, exp_id) as store:
            store.add_table("t", schema).append_row(dict.fromkeys(schema, 1))
    joined = CollectionReader(out, log_warnings=False).df("t", union_schemas=True)
    assert joined.shape == (2, 202)
    assert joined.columns[-1] == "exp_id"


def test_a_column_exp_id_that_was_logged_is_replaced_with_a_warning(out, damage):
    with Store(out, "a") as store:
        store.add_table("t", {"exp_id": str}).append_row({"exp_id": "mine"})
    reader = CollectionReader(out)
    with warns("'exp_id' of table 't' is replaced"):
        assert reader.df("t")["exp_id"].tolist() == ["a"]
    kept = reader.df("t", append_exp_id=False)
    assert kept["exp_id"].tolist() == ["mine"]


def test_large_ints_keep_their_digits_where_columns_differ(out):
    schemas = {"int": {"x": int, "big": int}, "lacks": {"x": int}}
    schemas["unsigned"] = {"x": np.uint64, "big": int}
    for exp_id, schema in schemas.items():
        with Store(out, exp_id) as store:
            store.add_table("t", schema).append_row(dict.fromkeys(schema, BIG))
    frame = CollectionReader(out, log_warnings=False).df("t", union_schemas=True)
    assert frame["x"].tolist() == [BIG] * 3
    assert frame["big"].dropna().tolist() == [BIG] * 2
    with Store(out, "seeded") as store:
        store.add_table("metadata", {"seed": int}).append_row({"seed": BIG})
    runs = CollectionReader(out, log_warnings=False).runs()
    assert runs["seed"].dropna().tolist() == [BIG]


def test_a_column_whose_name_is_not_utf8_is_joined(out):
    for exp_id, name in ("a", "x"), ("b", "\udfff"):
        with Store(out, exp_id) as store:
            store.add_table("t", {name: str}).append_row({name: exp_id})
    frame = CollectionReader(out, log_warnings=False).df("t", union_schemas=True)
    assert list(frame) == ["x", "\udfff", "exp_id"]
    assert frame["\udfff"].tolist()[1] == "b"


def test_a_run_whose_name_is_not_utf8_is_left_out_and_named(runs, damage):
    os.rename(os.fsencode(runs / "b"), os.fsencode(runs) + b"/b\xff")
    with warns("not UTF-8: b"):
        reader = CollectionReader(runs)
    assert reader.exp_ids == ["a", "c"]
    assert len(reader.df("t")) == 4


@pytest.mark.parametrize("year", ["0001", "9999"])
def test_a_year_beyond_nanoseconds_is_no_time(runs, year):
    path = runs / "b" / ".tables" / "history.jsonl"
    path.write_text(re.sub(r'"time": "\d{4}', f'"time": "{year}', path.read_text()))
    frame = CollectionReader(runs).runs()
    assert frame["started"].isna().tolist() == [False, True, False]


def test_runs_shows_what_no_frame_holds(runs, damage):
    history = runs / "a" / ".tables" / "history.jsonl"
    history.unlink()
    history.mkdir()  # no file
    with Store(runs, "d") as store:
        parameters = {"exp_id": 7, "x\ud800": "y\udfff"}
        store.add_table_like_example("metadata", parameters).append_row(parameters)
    frame = CollectionReader(runs).runs()
    assert frame["status"].tolist() == ["", "done", "done", "done"]
    assert frame.loc["d", "metadata/exp_id"] == 7
    assert frame.loc["d", "x?"][0] == "y"


def test_text_that_is_not_utf8_keeps_no_run_from_being_listed(runs, quiet, capsys):
    file_name = os.fsdecode(b"caf\xe9.png")  # as os.listdir() gives it
    with contextlib.suppress(RuntimeError), Store(runs, "d") as store:
        store.add_table("metadata", {"path": OBJECT}).append_row({"path": file_name})
        store.add_table("t\ud800", {"x": int}).append_row({"x": 1})
        raise RuntimeError(file_name)
    frame = CollectionReader(runs).runs(last=["t\ud800"])
    assert frame["status"].tolist() == ["done", "done", "done", "failed"]
    assert frame.loc["d", "error"] == "RuntimeError: caf?.png"
    assert frame.loc["d", "path"] == "caf?.png"
    assert frame.loc["d", "t?/x"] == 1
    assert cox.main(["ls", str(runs)]) == 0
    assert "caf?.png" in capsys.readouterr().out


def test_one_column_may_be_asked_for_by_its_name(runs):
    with CollectionReader(runs) as reader:
        assert list(reader.df("t", columns="note")) == ["note", "exp_id"]
        for union_schemas in False, True:
            with pytest.raises(cox.SchemaError, match=r"no column 'los'\. .*note"):
                reader.df("t", columns="los", union_schemas=union_schemas)
        table = reader.get_store("c")["t"]
        assert list(table.frame("note")) == ["note"]
        with pytest.raises(cox.SchemaError, match="no column 'nots'; did you mean 'no"):
            table.frame("nots")
        with pytest.raises(ValueError, match="got -1"):
            table.tail(-1)


@pytest.mark.parametrize("kind", [pd.Index, pd.Series, np.array, iter])
def test_columns_may_be_asked_for_by_those_of_another_frame(runs, kind):
    names = ["i", "note"]
    with CollectionReader(runs) as reader:
        assert list(reader.df("t", columns=kind(names), append_exp_id=False)) == names
        assert list(reader.get_store("c")["t"].frame(kind(names))) == names


def test_names_to_keep_serialized_may_be_those_of_another_frame(out):
    with Store(out, "run") as store:
        store.add_table("t", {"x": OBJECT, "y": OBJECT})
        store["t"].append_row({"x": [1], "y": [1]})
    for kind in pd.Index, iter:
        frame = CollectionReader(out).df("t", keep_serialized=kind(["x", "y"]))
        assert frame["y"].tolist() == frame["x"].tolist()
        assert isinstance(frame.loc[0, "x"], str)


def test_what_is_no_run_is_passed_over_and_what_is_shut_is_named(
    runs, caplog, monkeypatch
):
    (runs / "empty").mkdir()
    (runs / "shut").mkdir()
    (runs / "file").write_bytes(b"")
    (runs / "loop").symlink_to("loop")
    access = os.access  # root may enter everything
    monkeypatch.setattr(
        os, "access", lambda p, mode: "shut" not in p and access(p, mode)
    )
    assert CollectionReader(runs).exp_ids == ["a", "b", "c"]
    [record] = caplog.records
    assert record.getMessage() == f"no permission to read in {runs}: shut"
    caplog.clear()
    assert CollectionReader(runs, log_warnings=False).exp_ids == ["a", "b", "c"]
    assert not caplog.records


@pytest.mark.parametrize("stderr", [None, types.SimpleNamespace(write=len)])
def test_stderr_may_be_closed_or_stood_in_for(runs, monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert len(CollectionReader(runs).df("t")) == 6


def test_runs_are_chosen_by_exp_filter(runs):
    reader = CollectionReader(runs, exp_filter=lambda exp_id: exp_id != "a")
    assert set(reader.df("t")["exp_id"]) == {"b", "c"}
    chosen = reader.df("t", exp_filter=lambda exp_id: exp_id < "c")
    assert set(chosen["exp_id"]) == {"b"}
    with pytest.raises(KeyError, match="no run"):
        reader.df("t", exp_filter=lambda exp_id: False)


def test_a_collection_sees_rows_added_since_it_was_made(runs):
    reader = CollectionReader(runs)
    with Store(runs, "a") as store:
        log(store, 2)
        assert len(reader.df("t", exp_filter=lambda exp_id: exp_id == "a")) == 3


def test_a_directory_that_is_empty_or_missing_or_a_run(tmp_path, run):
    for error in KeyError, ValueError:  # the second is what the original raises
        with pytest.raises(error, match=re.escape(str(tmp_path))):
            CollectionReader(tmp_path).df("t")
    with pytest.raises(FileNotFoundError, match="missing"):
        CollectionReader(tmp_path / "missing")
    with pytest.raises(CoxError, match=r"out/run is a run; give its parent"):
        CollectionReader(run)


def test_a_run_without_rows_leaves_the_dtypes_as_they_are(out):
    for exp_id, kind in (("a", int), ("b", float)):
        with Store(out, exp_id) as store:
            table = store.add_table("t", {"x": kind})
            table.append_row({"x": 1}) if exp_id == "a" else None
    frame = CollectionReader(out, log_warnings=False).df("t")
    assert frame["exp_id"].dtype == pd.Series(["text"]).dtype


def test_what_is_not_a_run_is_passed_over(runs):
    (runs / "notes").mkdir()
    (runs / "notes" / "x.txt").touch()
    (runs / "file").touch()
    (runs / "dangling").symlink_to(runs / "nowhere")
    os.mkfifo(runs / "fifo")
    reader = CollectionReader(runs)
    assert set(reader.df("t")["exp_id"]) == set("abc")


def test_a_missing_table_is_told_of(runs):
    with Store(runs, "b") as store:
        store.add_table("u", {"x": float}).append_row({"x": 1})
    reader = CollectionReader(runs)
    with warns(r"(?s)a.*c") as messages:
        assert reader.df("u")["exp_id"].tolist() == ["b"]
    assert "'u'" in str(messages)
    with pytest.raises(KeyError, match=r"(?s)'v'.*metadata"):
        reader.df("v")


def test_a_run_without_any_table_is_not_warned_of(runs):
    Store(runs, "begun").close()
    assert len(CollectionReader(runs).df("t")) == 6


def test_an_index_that_counts_through_is_had_for_the_asking(differing):
    reader = CollectionReader(differing, log_warnings=False)
    for exp_filter in (None, lambda exp_id: exp_id == "a"):
        arguments = {"union_schemas": True, "exp_filter": exp_filter}
        frame = reader.df("t", **arguments, ignore_index=True)
        assert frame.index.tolist() == list(range(len(frame)))
        expected = reader.df("t", **arguments)
        assert set(expected.index) == {0}
        assert frame.equals(expected.reset_index(drop=True))


def test_stores_and_schemas_are_had_by_name(differing):
    with CollectionReader(differing, log_warnings=False) as reader:
        assert [*reader.stores] == ["a", "b"]
        assert len(reader.stores) == 2
        assert reader.stores["b"]["t"].nrows == 1
        assert reader.stores["b"] is reader.get_store("b")
        assert "c" not in reader.stores
        assert reader.schemas == {"t": {"x": int, "y": float}}
        assert str(reader) == "-- Table: t --\ndict_keys(['x', 'y'])"


def test_a_collection_for_writing_makes_no_run_that_is_asked_for(runs):
    with CollectionReader(runs, mode="a") as reader:
        assert "typo" not in reader.stores
        assert reader.stores.get("") is None
        with pytest.raises(KeyError, match="no run 'typo' in"):
            reader.get_store("typo")
    assert sorted(os.listdir(runs)) == ["a", "b", "c"]


def test_a_collection_opens_a_store_again_that_was_closed(runs):
    with CollectionReader(runs, mode="a") as reader:
        for count in 2, 3:
            with reader.get_store("a") as store:
                log(store, 1)
                assert store is reader.get_store("a")
            assert store["t"].nrows == count


@pytest.fixture
def differing(out):
    for exp_id, schema, row in (
        ("a", {"x": int, "y": float}, {"x": 2**53 - 1, "y": 0.5}),
        ("b", {"x": float, "s": str, "b": bool}, {"x": 1.5, "s": "text", "b": True}),
    ):
        with Store(out, exp_id) as store:
            store.add_table("t", schema).append_row(row)
    return out


def test_differing_columns_are_refused_unless_the_union_is_asked_for(differing):
    with warns("'t'"):
        assert CollectionReader(differing).tables == ["t"]
    reader = CollectionReader(differing, log_warnings=False)
    with pytest.raises(ValueError, match="union_schemas"):
        reader.df("t")
    frame = reader.df("t", union_schemas=True)
    assert set(frame.columns) == {"x", "y", "s", "b", "exp_id"}
    a, b = (frame[frame["exp_id"] == exp_id].iloc[0] for exp_id in "ab")
    assert frame["x"].tolist() == [2**53 - 1, 1.5]
    assert frame["x"].dtype == np.float64
    assert (a["y"], b["s"], b["b"]) == (0.5, "text", True)
    assert pd.isna([b["y"], a["s"], a["b"]]).all()


@pytest.mark.parametrize(
    ("a", "b", "stored"),
    [
        pytest.param(
            {"x": int}, {"x": float}, np.array([3.0, 3.0]), id="int-and-float"
        ),
        pytest.param({"x": np.int8}, {"x": int}, np.array([3, 3]), id="int8-and-int"),
        pytest.param(
            {"x": int, "y": int}, {"y": int, "x": int}, np.array([3, 3]), id="order"
        ),
    ],
)
def test_columns_of_one_name_become_one(out, a, b, stored):
    for exp_id, schema in (("a", a), ("b", b)):
        with Store(out, exp_id) as store:
            store.add_table("t", schema).append_row(dict.fromkeys(schema, 3))
    frame = CollectionReader(out, log_warnings=False).df("t", append_exp_id=False)
    assert list(frame.columns) == list(a)
    for name in a:
        assert exact(frame[name]) == exact(stored)


def test_a_misspelt_name_in_keep_serialized_is_refused(out):
    with Store(out, "run") as store:
        store.add_table("t", {"x": OBJECT}).append_row({"x": [1]})
    with pytest.raises(CoxError, match=r"no column 'y'\. Columns: x"):
        CollectionReader(out).df("t", keep_serialized=["y"])


def test_objects_are_decoded_unless_kept(out):
    for exp_id, value in (("a", [1]), ("b", {"k": None})):
        with Store(out, exp_id) as store:
            table = store.add_table("t", {"op": OBJECT, "p": PICKLE})
            table.append_row({"op": value, "p": value})
    reader = CollectionReader(out)
    assert reader.df("t")["op"].tolist() == [[1], {"k": None}]
    for columns in (["op"], "op"):
        kept = reader.df("t", keep_serialized=columns)
        assert kept["p"].tolist() == [[1], {"k": None}]
        assert [cox.utils.string_to_obj(o) for o in kept["op"]] == [[1], {"k": None}]


def test_what_cannot_be_decoded_names_column_run_and_remedy(out, monkeypatch):
    module = types.ModuleType("gone")
    gone = type("Gone", (), {"__module__": "gone"})
    module.Gone = gone
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gone", module)
        for exp_id, value in (("a", 1), ("b", gone()), ("c", 3)):
            with Store(out, exp_id) as store:
                store.add_table("t", {"x": OBJECT}).append_row({"x": value})
    reader = CollectionReader(out)
    with pytest.raises(CoxError) as raised:
        reader.df("t")
    assert not isinstance(raised.value, cox.CorruptError)
    pattern = r"column 'x' of run b .*keep_serialized=\['x'\].*ModuleNotFound.*'gone'"
    assert re.match(pattern, str(raised.value))
    with warns("skipped run b: column 'x'"):
        assert reader.df("t", skip_errors=True)["x"].tolist() == [1, 3]


BAD_RUNS = {
    "header": lambda run: damaged(run, lambda h, r, n: b"junk\n" + r),
    "rows": lambda run: damaged(run, lambda h, r, n: h + r[n:]),
    "object": lambda run: [p.unlink() for p in (run / ".table_objects").iterdir()],
    "original": lambda run: (
        shutil.rmtree(run / ".tables"),
        (run / "store.h5").write_bytes(b"junk"),
    ),
}


@pytest.mark.parametrize("bad", BAD_RUNS)
@pytest.mark.parametrize("pool", [None, "processes"])
def test_bad_runs_are_skipped_if_asked_and_named_once(out, damage, request, bad, pool):
    for exp_id in ("good1", "bad1", "good2", "bad2"):
        with Store(out, exp_id) as store:
            table = store.add_table("t", {"i": int, "note": PICKLE})
            for i in range(3):
                table.append_row({"i": i, "note": [i]})
        if exp_id.startswith("bad"):
            BAD_RUNS[bad](out / exp_id)
    executor = request.getfixturevalue(pool) if pool else None
    with pytest.raises(CoxError, match="bad1"):
        CollectionReader(out, executor=executor).df("t")
    with warns("bad") as messages:
        reader = CollectionReader(out, skip_errs=True, executor=executor)
        frame = reader.df("t", skip_errors=True)
    assert frame["exp_id"].tolist() == ["good1"] * 3 + ["good2"] * 3
    assert frame["note"].tolist() == [[0], [1], [2]] * 2
    assert [sum(name in text for text in messages) for name in ("bad1", "bad2")] == [
        1,
        1,
    ]


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def processes(_forkserver):
    with ProcessPoolExecutor(2, mp_context=MP) as pool:
        yield pool


@pytest.fixture
def dask():
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(),
        distributed.Client(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as client,
        client.get_executor() as pool,
    ):
        warnings.simplefilter("ignore")
        yield pool


@pytest.mark.parametrize(
    "pool", ["threads", "processes", pytest.param("dask", marks=pytest.mark.slow)]
)
def test_reading_can_be_spread_over_an_executor(runs, request, pool):
    for i in range(40):
        shutil.copytree(runs / "b", runs / f"copy{i:02}")
    expected = CollectionReader(runs).df("t")
    reader = CollectionReader(runs, executor=request.getfixturevalue(pool))
    assert reader.df("t").equals(expected)
    assert len(reader.df("metadata")) == 43


class Remembering(ThreadPoolExecutor):
    """An executor that runs equal tasks only once, as dask does."""

    def __init__(self):
        super().__init__(1)
        self.known = {}

    def map(self, call, tasks):
        for task in tasks:
            if task not in self.known:
                self.known[task] = call(task)
            yield self.known[task]


def test_an_executor_that_runs_equal_tasks_once_reads_new_rows(runs):
    reader = CollectionReader(runs, executor=Remembering())
    assert len(reader.df("t")) == 6
    Store(runs, "a")["t"].append_row({"i": 1, "note": "new"})
    assert len(reader.df("t")) == 7


class Elsewhere(ThreadPoolExecutor):
    """An executor whose workers lack modules of this process."""

    def __init__(self, *missing):
        super().__init__(1)
        self.missing = missing

    def map(self, *args):
        with pytest.MonkeyPatch.context() as patch:
            for name in self.missing:
                patch.setitem(sys.modules, name, None)  # as if it were not there
            yield from list(super().map(*args))


def test_workers_that_cannot_import_cox_say_what_to_do(runs):
    reader = CollectionReader(runs, executor=Elsewhere("cox"))
    with pytest.raises(CoxError, match=r"Elsewhere cannot run cox: .*upload_file"):
        reader.df("t")
    reader = CollectionReader(runs, executor=Elsewhere("tables"))
    assert len(reader.df("t")) == 6


@pytest.mark.slow
def test_a_worker_of_dask_that_cannot_import_cox_says_what_to_do(runs, tmp_path):
    pytest.importorskip("distributed")
    # the workers begin before the program finds cox, or forget where it is installed
    code = f"""
import os, sys
from distributed import Client
def forget():
    sys.path[:] = [p for p in sys.path if not os.path.exists(os.path.join(p, "cox.py"))]
if __name__ == "__main__":
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        client.run(forget)
        sys.path.insert(0, {str(HERE)!r})
        import cox
        executor = client.get_executor()
        try:
            cox.CollectionReader({str(runs)!r}, executor=executor).df("t")
        except cox.CoxError as err:
            print(err)
        client.upload_file(cox.__file__)
        print(len(cox.CollectionReader({str(runs)!r}, executor=executor).df("t")))
"""
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-I", tmp_path / "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said, count = done.stdout.splitlines()
    assert "upload_file" in said
    assert count == "6"


def _collect_with_few_descriptors(out, runs):
    limit = len(os.listdir("/dev/fd")) + 10
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    reader = CollectionReader(out)
    assert len(reader.df("t")) == 3 * runs
    stores = [Store(out, exp_id, mode="r") for exp_id in os.listdir(out)]
    assert sum(store["t"].nrows for store in stores) == 3 * runs


def test_a_collection_of_300_runs_needs_a_handful_of_descriptors(run, child, damage):
    for i in range(299):
        shutil.copytree(run, run.parent / f"run{i}", copy_function=os.link)
    child(_collect_with_few_descriptors, run.parent, 300).end()


def test_a_collection_for_writing_erases_nothing(runs):
    before = tree(runs)
    with CollectionReader(runs, mode="w") as reader:
        assert len(reader.df("t")) == 6
    assert tree(runs) == before


def test_originals_and_new_runs_are_collected_together(run, out):
    make_original_store(out / "older", t=original_t(2))
    frame = CollectionReader(out).df("t")
    assert frame["exp_id"].tolist() == ["older"] * 2 + ["run"] * 3
    assert frame["note"].tolist() == [f"row {i}" for i in frame.index]


@pytest.mark.parametrize("at", [1, 2])
def test_a_run_of_the_original_is_read_though_it_is_converted(out, monkeypatch, at):
    make_original_store(out / "o", t=original_t(2))
    looks = []

    def open_and_convert(path, *args):
        try:
            return os.open(path, *args)
        finally:
            if path.endswith("t.rows"):
                looks.append(path)
                if len(looks) == at:
                    Store(out, "o").add_table("new", {"x": int})

    reader = CollectionReader(out)
    monkeypatch.setattr(cox, "os", but(os, open=open_and_convert))
    assert reader.df("t")["note"].tolist() == ["row 0", "row 1"]
    assert len(looks) > at


def _make_stores(out, number, ready, count):
    ready.wait(30)
    for _ in range(count):
        with Store(out) as store:
            log(store, 3)
            store.add_table("metadata", {"process": int}).append_row(
                {"process": number}
            )


@some_of(6)
def test_eight_processes_make_runs_while_another_collects(out, child, quiet, every):
    out.mkdir()
    ready, count = MP.Barrier(9), 12 // every
    makers = [child(_make_stores, out, number, ready, count) for number in range(8)]
    ready.wait(30)
    while any(maker.process.is_alive() for maker in makers):
        reader = CollectionReader(out, log_warnings=False)
        with contextlib.suppress(KeyError):  # no run has it yet
            for _, frame in reader.df("t").groupby("exp_id"):
                assert_logged(frame, len(frame))
    for maker in makers:
        maker.end()
    reader = CollectionReader(out)
    assert len(reader.df("t")) == 8 * count * 3
    assert sorted(reader.df("metadata")["process"]) == sorted([*range(8)] * count)


def test_runs_has_a_row_per_run_with_parameters_and_last_rows(out, processes):
    for i in range(3):
        with Store(out, f"run{i}") as store:
            params = {
                "lr": i / 10,
                "layers": [1, i],
                "status": "mine",
                "half": np.float32(0.1),
            }
            store.add_table_like_example("metadata", params).append_row(params)
            store.add_table("train", {"epoch": int, "loss": float, "note": str})
            for epoch in range(i):
                row = {"epoch": epoch, "loss": epoch + i, "note": f"é{epoch}"}
                store["train"].append_row(row)
    with Store(out, "run3") as store:
        log(store, 1)
        for reader in (
            CollectionReader(out),
            CollectionReader(out, executor=processes),
        ):
            runs = reader.runs(last=["train", "missing"])
            assert runs.index.tolist() == ["run0", "run1", "run2", "run3"]
            assert runs.index.name == "exp_id"
            assert list(runs) == [
                *("status", "started", "seconds", "attempts", "host", "job", "commit"),
                *("error", "lr", "layers", "metadata/status", "half"),
                *("train/epoch", "train/loss", "train/note"),
            ]
            assert runs.status.tolist() == ["done", "done", "done", "running"]
            assert runs.lr.tolist()[:3] == [0.0, 0.1, 0.2]
            assert runs.half.tolist()[:3] == [0.1] * 3
            assert runs.layers.tolist()[:3] == [[1, 0], [1, 1], [1, 2]]
            assert runs["train/loss"].tolist()[1:3] == [1.0, 3.0]
            assert runs["train/note"].tolist()[1:3] == ["é0", "é1"]
            assert runs[["lr", "train/loss"]].isna().sum().tolist() == [1, 2]
            age = pd.Timestamp.now("UTC") - runs.started
            assert age.between(pd.Timedelta(0), pd.Timedelta(minutes=5)).all()
    frame = reader.df("train", exp_filter=lambda exp_id: exp_id != "run3")
    joined = frame.join(reader.runs()[["lr"]], on="exp_id")
    assert joined.lr.tolist() == [0.1, 0.2, 0.2]


def test_runs_of_no_run_has_the_columns(tmp_path):
    runs = CollectionReader(tmp_path).runs(last="train")
    assert runs.empty
    assert runs[runs.status == "done"].started.max() is pd.NaT


def test_runs_says_what_is_broken_and_goes_on(out, run, damage):
    with Store(out, "good") as store:
        store.add_table("metadata", {"lr": float}).append_row({"lr": 1})
    rows = run / ".tables" / "t.rows"
    rows.write_bytes(rows.read_bytes()[:-30].replace(b"row", b"wor") + bytes(range(30)))
    with warns("run run: .*t.rows"):
        runs = CollectionReader(out).runs(last=["t"])
    assert runs.status.tolist() == ["done", "done"]
    assert runs.lr.tolist()[0] == 1


def test_runs_reads_the_tables_that_are_not_damaged(out, damage):
    with Store(out, "run") as store:
        for name in "metadata", "a", "b":
            store.add_table(name, {"x": int}).append_row({"x": 7})
    for name in "metadata", "a":
        (out / "run" / ".tables" / f"{name}.rows").write_bytes(b"no header")
    with warns("run run: .*metadata.rows"):
        runs = CollectionReader(out, log_warnings=False).runs(last=["a", "b"])
    assert runs.loc["run", "status"] == "done"
    assert runs.loc["run", "b/x"] == 7


def test_runs_runs_no_code_of_a_run(out, tmp_path):
    bomb = tmp_path / "bomb"
    with Store(out, "run") as store:
        table = store.add_table("metadata", {"o": OBJECT, "p": PICKLE, "x": int})
        table.append_row({"o": Bomb(bomb), "p": Bomb(bomb), "x": 1})
    runs = CollectionReader(out).runs(last="metadata")
    assert list(runs)[8:] == ["x", "metadata/x"]
    assert not bomb.exists()


###############################################################################
# TensorBoard view
###############################################################################

LOADERS = pytest.mark.parametrize(
    "load_fast",
    [
        pytest.param("true", id="fast"),
        pytest.param("false", id="slow", marks=pytest.mark.slow),
    ],
)


def until(look, is_right=bool):
    """Look again until it is right; fail with what was seen last."""
    deadline = time.monotonic() + 60
    while True:
        seen = look()
        if is_right(seen):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)


class Server:
    """`cox tb` in a process of its own, with a temporary directory of its own."""

    def __init__(self, directory, tmp, module, args, is_fresh):
        self.tmp, self.log = tmp or directory / "tmp", directory / "log"
        directory.mkdir()
        self.tmp.mkdir(exist_ok=True)
        command = ["-m", *module.split(), "--reload_interval", "1", *args]
        env = {"TMPDIR": str(self.tmp), "PYTHONPATH": str(HERE)}
        self.log.touch()
        if is_fresh:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, *command],
                    stderr=log,
                    stdout=log,
                    env=os.environ | env,
                )
        else:
            self.process = Forked(command, self.log, self.log, **env)
        self.url = ""

    def serve(self):
        """Wait until it serves."""

        def look():
            assert self.process.poll() is None, self.log.read_text()
            return re.search(r"at (http:\S+)/ \(", self.log.read_text())

        self.url = until(look)[1]
        return self

    def get(self, path, body=None, **query):
        url = f"{self.url}/data/{path}?{urllib.parse.urlencode(query)}"
        headers = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def runs(self):
        return sorted(self.get("runs"))

    def wait_for_runs(self, *runs):
        until(self.runs, sorted(runs).__eq__)

    def points(self, run, tag):
        """[step, value] of each; none while the tag is not loaded."""
        with contextlib.suppress(urllib.error.HTTPError):
            points = self.get("plugin/scalars/scalars", run=run, tag=tag)
            return [point[1:] for point in points]
        return []

    def wait_for_points(self, run, tag, points):
        until(lambda: self.points(run, tag), points.__eq__)

    def view(self):
        return sorted(self.tmp.glob("cox-tb-*"))

    def end(self, signum):
        self.process.send_signal(signum)
        return self.process.wait(30)


@pytest.fixture
def tb(tmp_path, _forkserver):
    """Start `cox tb` with a free port and the options given."""
    servers = []

    def start(*args, port="0", module="cox tb", tmp=None, is_fresh=False):
        args = ["--port", port, *map(str, args)]
        directory = tmp_path / f"server{len(servers)}"
        servers.append(Server(directory, tmp, module, args, is_fresh))
        return servers[-1]

    yield start
    for server in servers:
        server.process.terminate()
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(10)
        server.process.kill()
        server.process.wait()


def log_slope(out, slope, exp_id=None):
    """Walkthrough 2 of the documentation for one slope."""
    with Store(out, exp_id or f"exp{slope}") as store:
        store.add_table("line_graphs", {"mx": int, "mx^2": int})
        store.add_table("metadata", {"slope": int})
        store["metadata"].append_row({"slope": slope})
        for x in range(10):
            store.log_table_and_tb(
                "line_graphs", {"mx": slope * x, "mx^2": slope * x**2}
            )
            store["line_graphs"].flush_row()


def log_params(out, exp_id, points=1, **params):
    """A run with these parameters and a scalar `loss`."""
    with Store(out, exp_id) as store:
        kinds = {
            k: OBJECT if isinstance(v, list) else type(v) for k, v in params.items()
        }
        if params:
            store.add_table("metadata", kinds)
            store["metadata"].append_row(params)
        for step in range(points):
            store.writer.add_scalar("loss", 1 / (step + 1), step)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(150, id="some"),
        pytest.param(500, marks=pytest.mark.slow, id="500"),
    ],
)
def many(tmp_path_factory, request):
    """A directory of runs e0, e1, ... of 2,000 points each; not to be changed."""
    out = tmp_path_factory.mktemp("many")
    log_params(out, "e0", points=2000, lr=0.1)
    left_out = shutil.ignore_patterns("store.h5", "save", ".table_objects", "lock")
    for i in range(1, request.param):
        shutil.copytree(out / "e0", out / f"e{i}", False, left_out, os.link)
    return out


@LOADERS
def test_tb_shows_names_values_and_hparams_and_writes_nothing(tb, out, load_fast):
    for i, lr in enumerate([0.1, 0.5, 0.02]):
        log_params(out, f"e{i}", points=3, lr=lr, layers=[64, 32], name="a/b", ok=i > 1)
    with Store(out, "e2") as store:
        store.writer.add_embedding([[1.0, 2.0]], ["label"])
    before = tree(out)
    server = tb(
        *("--logdir", out, "--load_fast", load_fast),
        *("--format-str", "{lr:.0e} {layers} {name}"),
        *("--filter-param", "lr", "0", "--filter-param", "lr", r".*[1-4]$"),
    ).serve()
    runs = ["1e-01 64.32 a_b-e0", "2e-02 64.32 a_b-e2"]
    server.wait_for_runs(*runs)
    for run in runs:
        server.wait_for_points(
            run, "loss", [[0, 1.0], [1, 0.5], [2, pytest.approx(1 / 3)]]
        )
    head = f"cox tb: showing 2 of 3 runs in {out}; left out: 1 (--filter-param)\n"
    until(lambda: head in server.log.read_text())

    experiment = server.get("plugin/hparams/experiment", body={})
    columns = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    kinds = {"lr": "FLOAT64", "layers": "STRING", "name": "STRING", "ok": "BOOL"}
    assert columns == {name: f"DATA_TYPE_{kind}" for name, kind in kinds.items()}
    asked = {
        "colParams": [{"hparam": name} for name in columns]
        + [{"metric": {"tag": "loss"}}],
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.get("plugin/hparams/session_groups", body=asked)["sessionGroups"]
    assert {group["name"]: group["hparams"] for group in groups} == {
        runs[0]: {"lr": 0.1, "layers": "[64, 32]", "name": "a/b", "ok": False},
        runs[1]: {"lr": 0.02, "layers": "[64, 32]", "name": "a/b", "ok": True},
    }
    assert until(lambda: server.get("plugin/projector/runs")) == [runs[1]]
    query = urllib.parse.urlencode({"run": runs[1], "name": "default:00000"})
    labels = fetch(f"{server.url}/data/plugin/projector/metadata?{query}")
    assert labels == b"label\n"
    assert [path.name for path in server.tmp.iterdir()] == [server.view()[0].name]
    (metric,) = {str(group["metricValues"][0]["name"]["tag"]) for group in groups}
    assert metric == "loss"
    assert tree(out) == before


@LOADERS
def test_tb_shows_what_happens_after_its_start(tb, out, load_fast):
    out.mkdir()
    server = tb("--logdir", out, "--load_fast", load_fast).serve()
    assert f"no runs in {out} yet" in server.log.read_text()
    first = Store(out, "first")
    first.add_table("metadata", {"lr": float})
    first["metadata"].append_row({"lr": 0.5})
    first.writer.add_scalar("loss", 1.0, 0)
    server.wait_for_points("first", "loss", [[0, 1.0]])
    first.writer.add_scalar("loss", 2.0, 1)
    server.wait_for_points("first", "loss", [[0, 1.0], [1, 2.0]])
    first.writer.add_scalars("both", {"a": 3.0, "b": 4.0}, 0)
    server.wait_for_points("first/both/b", "both", [[0, 4.0]])
    with cox.EventWriter(out / "first" / "tensorboard") as other:  # a new file
        other.add_scalar("other", 5.0, 2)
        server.wait_for_points("first", "other", [[2, 5.0]])
        first.writer.add_scalar("loss", 6.0, 3)
        server.wait_for_points("first", "loss", [[0, 1.0], [1, 2.0], [3, 6.0]])
    first.close()

    log_params(out, "second", lr=0.1)
    runs = ["first", "first/both/a", "first/both/b", "lr=0.1-second"]
    server.wait_for_runs(*runs)
    asked = server.get("plugin/hparams/experiment", body={})
    assert [info["name"] for info in asked["hparamInfos"]] == ["lr"]
    shutil.rmtree(out / "first")
    server.wait_for_runs("lr=0.1-second")


@LOADERS
def test_tb_shows_how_a_run_ended_and_that_it_goes_on(tb, out, load_fast):
    def run(end=None):
        with Store(out, "run") as store:
            table = store.add_table("metadata", {"lr": float})
            table.append_row({"lr": 0.1})
            store.writer.add_scalar("loss", 1.0, 0)
            if end is not None:
                end()

    def statuses():
        asked = {
            "colParams": [{"hparam": "lr"}],
            "allowedStatuses": [
                f"STATUS_{s}" for s in ("SUCCESS", "FAILURE", "UNKNOWN")
            ],
            "startIndex": 0,
            "sliceSize": 9,
        }
        groups = server.get("plugin/hparams/session_groups", body=asked)
        sessions = [s for g in groups["sessionGroups"] for s in g["sessions"]]
        return {s["name"]: s["status"].removeprefix("STATUS_") for s in sessions}

    out.mkdir()
    server = tb("--logdir", out, "--load_fast", load_fast).serve()
    with pytest.raises(ZeroDivisionError):
        run(lambda: until(statuses, {"run": "UNKNOWN"}.__eq__) and 1 / 0)
    until(statuses, {"run": "FAILURE"}.__eq__)
    run(lambda: until(statuses, {"run": "UNKNOWN"}.__eq__))
    until(statuses, {"run": "SUCCESS"}.__eq__)
    server.wait_for_points("run", "loss", [[0, 1.0]])


@LOADERS
def test_tb_takes_a_run_in_when_its_metadata_arrives(tb, out, load_fast):
    log_params(out, "bare")
    log_params(out, "full", lr=0.1)
    options = "--logdir", out, "--load_fast", load_fast
    named = tb(*options, "--format-str", "lr{lr}").serve()
    plain = tb(*options, "--format-str", "all").serve()
    assert "left out: 1 (no row in table 'metadata')\n" in named.log.read_text()
    named.wait_for_runs("lr0.1-full")
    plain.wait_for_runs("all-bare", "all-full")
    log_params(out, "late")
    plain.wait_for_runs("all-bare", "all-full", "all-late")
    for exp_id in "bare", "late":
        log_params(out, exp_id, lr=0.5)
    named.wait_for_runs("lr0.1-full", "lr0.5-bare", "lr0.5-late")
    plain.wait_for_runs("all-bare", "all-full", "all-late")
    rows = {
        "startIndex": 0,
        "sliceSize": 9,
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"],
    }
    until(
        lambda: plain.get("plugin/hparams/session_groups", body=rows)["totalSize"],
        (3).__eq__,
    )


ODD_IDS = {
    **{
        "hidden": ".x",
        "dashes": "--help",
        "blank": " ",
        "comma": "a,b:c",
        "tab": "a\tb",
    },
    **{
        "percent": "%2f",
        "quote": "'\"<b>",
        "glob": "[*]?",
        "script": "日本 é",
        "at": "@#&=",
    },
    **{"backslash": "\\", "long": "e" * 255, "not-utf8": os.fsdecode(b"\xff")},
}


@LOADERS
def test_tb_shows_odd_names_whole(tb, out, load_fast, damage):  # HDF5 takes only UTF-8
    for exp_id in ODD_IDS.values():
        log_params(out, exp_id, name="..\0/\n" + "é" * 200)
    server = tb("--logdir", out, "--format-str", "{name}", "--load_fast", load_fast)
    shown = []
    for exp_id in ODD_IDS.values():
        shown_id = re.sub("[\t\udcff]", "_", exp_id)
        room = max(0, 254 - len(shown_id.encode()))
        start = ("..___" + "é" * 200).encode()[:room].decode(errors="ignore")
        shown.append(f"{start}-{shown_id}" if start else shown_id)
    server.serve().wait_for_runs(*shown)
    for run in shown:
        server.wait_for_points(run, "loss", [[0, 1.0]])


@pytest.mark.parametrize("formatted", ["lr=0.1", ".", "a/b\0c\x1f", "é" * 200])
def test_run_names_are_file_names_that_keep_the_exp_id(out, damage, formatted, view_of):
    for exp_id in ODD_IDS.values():
        make_run(out, exp_id, metadata=({"x": "str"}, [(formatted,)]))
        (out / exp_id / "tensorboard").mkdir()
        (out / exp_id / "tensorboard" / "events.out.tfevents.1").touch()
    shown = view_of(out, "--format-str", "{x}").shown()
    assert len(shown) == len(ODD_IDS)
    for exp_id in ODD_IDS.values():
        full = re.sub("[/\0\t\x1f\ud800\udcff]", "_", formatted + "-" + exp_id)
        kept = full[len(formatted) :] if len(exp_id) < 255 else exp_id
        [name] = [name for name in shown if name.endswith(kept)]
        assert full.startswith(name.removesuffix(kept))
        assert name == full or len(name.encode()) in (254, 255)


class View:
    """`cox tb` in a thread, which looks for runs when it is told to.

    Its TensorBoard serves nothing: it knows the directory that it was given.
    """

    def __init__(self, patch, capsys, args):
        self.capsys, self.directory, self.at_start, self.said = capsys, None, [], ""
        self._may_end, self._passed, self._next = (
            threading.Semaphore(0) for _ in range(3)
        )
        view = self

        class Event(threading.Event):
            def wait(self, timeout=None):
                if timeout is None:
                    return super().wait()
                view._stopped = self
                view._passed.release()
                view._next.acquire()
                return None

        class Board:
            flags = argparse.Namespace(
                bind_all=False, host=None, port=0, reload_interval=5.0
            )

            def configure(self, argv):
                [logdir] = [arg for arg in argv if arg.startswith("--logdir=")]
                view.directory = pathlib.Path(logdir.removeprefix("--logdir="))

            def main(self):
                view.at_start = view.shown()
                view._may_end.acquire()

        patch.setattr("tensorboard.program.TensorBoard", Board)
        patch.setattr(cox, "threading", but(threading, Event=Event))
        patch.setattr(cox, "signal", but(signal, signal=lambda *args: None))
        args = ["tb", *map(str, args)]
        self._thread = threading.Thread(target=cox.main, args=[args], daemon=True)
        self._thread.start()
        self._wait()

    def _wait(self):
        assert self._passed.acquire(timeout=60)
        self.said += self.capsys.readouterr().err

    def refresh(self):
        """Have it look for runs once more."""
        self._next.release()
        self._wait()

    def shown(self):
        return names(self.directory)

    def begin_to_end(self):
        self._may_end.release()
        self._stopped.wait()

    def end(self):
        self._may_end.release()
        while self._thread.is_alive():
            self._next.release()  # it looks until it has seen that this is the end
            self._thread.join(0.01)
        assert not self.directory.exists()


@pytest.fixture
def view_of(monkeypatch, capsys):
    """Start `cox tb` of a directory, with further arguments; it has looked once."""
    pytest.importorskip("tensorboard.program")
    views = []

    def start(logdir, *args):
        views.append(View(monkeypatch, capsys, ["--logdir", logdir, *args]))
        return views[-1]

    yield start
    for view in views:
        view.end()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        pytest.param([{"lr": 0.1}], ["0"], id="one-run-differs-from-none"),
        pytest.param([{"lr": 0.1}] * 2, ["0", "1"], id="equal-runs"),
        pytest.param(
            [{"a": 1, "lr": 0.1, "seed": s} for s in (1, 2)],
            ["seed=1-0", "seed=2-1"],
            id="only-what-differs",
        ),
        pytest.param(
            [{"lr": 0.1, "x": 1}, {"lr": 0.2}, {}],
            ["2", "lr=0.1,x=1-0", "lr=0.2-1"],
            id="a-parameter-that-not-all-have",
        ),
        pytest.param([{"b": [1, 2]}, {"b": [1]}], ["b=[1,2]-0", "b=[1]-1"], id="lists"),
        pytest.param(
            [{"id": "0", "a": 3}, {"id": "1", "a": 4}],
            ["a=3-0", "a=4-1"],
            id="not-what-is-the-exp-id",
        ),
    ],
)
def test_default_names_are_the_parameters_that_differ(out, runs, shown, view_of):
    for exp_id, params in enumerate(runs):
        log_params(out, str(exp_id), **params)
    view = view_of(out)
    assert view.shown() == shown


def test_names_once_shown_stay_and_later_ones_tell_what_differs_then(out, view_of):
    log_params(out, "a", lr=0.1, seed=1)
    log_params(out, "b", lr=0.2, seed=1)
    view = view_of(out)
    log_params(out, "c", lr=0.2, seed=2)
    view.refresh()
    assert view.shown() == ["lr=0.1-a", "lr=0.2,seed=2-c", "lr=0.2-b"]


def test_runs_that_would_get_one_name_are_both_shown(out, view_of):
    for exp_id, x in ("b", "a"), ("a-b", ""), ("b\t", "a"), ("b_", "a"):
        log_params(out, exp_id, x=x)
    view = view_of(out, "--format-str", "{x}")
    assert view.shown() == ["_a-b", "_a-b_", "a-b", "a-b_"]


def test_a_view_has_the_files_of_a_run_and_follows_no_link(tmp_path, out, view_of):
    secret = tmp_path / "secret" / "events.out.tfevents.1.secret"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    for exp_id in "fifo", "file", "folder", "whole":
        log_params(out, exp_id)
    logdirs = {path.name: path / "tensorboard" for path in out.iterdir()}
    os.mkfifo(logdirs["fifo"] / "events.out.tfevents.9.fifo")
    (logdirs["fifo"] / "profile").mkdir()
    (logdirs["fifo"] / "profile" / "data").write_bytes(b"")
    (logdirs["file"] / secret.name).symlink_to(secret)
    (logdirs["folder"] / "sub").symlink_to(secret.parent)
    shutil.rmtree(logdirs["whole"])
    logdirs["whole"].symlink_to(secret.parent)
    view = view_of(out)
    directory = view.directory
    for _ in range(2):
        assert view.shown() == ["fifo", "file", "folder"]
        for exp_id in "file", "folder":
            [name] = names(directory / exp_id)
            assert (directory / exp_id / name).samefile(logdirs[exp_id] / name)
        [_, profile] = names(directory / "fifo")
        assert names(directory / "fifo" / profile) == ["data"]
        view.refresh()
    assert "3 (with links among its event files, which are not followed)" in view.said
    (logdirs["file"] / secret.name).unlink()
    Store(out, "late").close()
    view.refresh()
    assert ": 1 (no events yet), 2 (with links" in view.said


def test_what_the_projector_reads_is_copied_within_bounds(out, view_of):
    for exp_id in "a", "b":
        with Store(out, exp_id) as store:
            store.writer.add_scalar("x", 1)
            store.writer.add_embedding([[1.0]], tag="t")
        tensors = out / exp_id / "tensorboard" / "00000" / "t" / "tensors.tsv"
        os.truncate(tensors, 150 << 20)  # one of these has room, and not two
    planted = out / "a" / "tensorboard" / "00000" / "t" / "metadata.tsv"
    planted.symlink_to("/etc/passwd")
    view = view_of(out)
    copies = list(view.directory.rglob("tensors.tsv"))
    assert len(copies) == 1
    assert not copies[0].is_symlink()
    assert not list(view.directory.rglob("metadata.tsv"))
    assert view.said.startswith(f"cox tb: showing 2 of 2 runs in {out}")
    with Store(out, copies[0].relative_to(view.directory).parts[0]) as store:
        store.writer.add_embedding([[1.0]], tag="u")
    view.refresh()
    assert len(list(view.directory.rglob("tensors.tsv"))) == 2
    [config] = [
        path.read_text()
        for path in view.directory.rglob("projector_config.pbtxt")
        if path.parent.name == store.exp_id
    ]
    assert config.count("embeddings {") == 2


@made_once
def made_1200(out):
    for i in range(1200):
        (out / f"e{i}" / ".tables").mkdir(parents=True)
        (out / f"e{i}" / "tensorboard").mkdir()
        (out / f"e{i}" / "tensorboard" / "events.out.tfevents.1").touch()
        rows = out / f"e{i}" / ".tables" / "metadata.rows"
        rows.write_bytes(encode_rows({"x": "int"}, [(i % 2,)])[0])
        os.utime(rows, (i, i))


def test_the_newest_of_many_runs_come_first(made_1200, view_of):
    view = view_of(made_1200)
    newest = {f"x={i % 2}-e{i}" for i in range(700, 1200)}
    assert set(view.shown()) == newest
    counts = []
    for _ in range(3):
        view.refresh()
        counts.append(len(view.shown()))
    assert counts == [1000, 1200, 1200]
    assert newest <= set(view.at_start)
    assert view.said == f"cox tb: showing 1200 of 1200 runs in {made_1200}\n"


def test_the_end_waits_for_no_run_that_is_not_shown_yet(
    made_1200, view_of, monkeypatch
):
    linked = []

    def link(*args):
        if len(linked) == 600:
            view.begin_to_end()
        linked.append(args)
        return os.symlink(*args)

    monkeypatch.setattr(cox, "os", but(os, symlink=link))
    view = view_of(made_1200)
    view.refresh()
    assert len(linked) == 601


def test_the_watcher_survives_whatever_goes_wrong(out, view_of, monkeypatch):
    tried = []

    def link(path, target):
        tried.append(path.split("/")[-3])
        if tried[-1] == "a":
            raise RuntimeError("odd\x1b[31m")
        os.symlink(path, target)

    def fail(path):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cox, "os", but(os, symlink=link))
    log_params(out, "a")
    log_params(out, "b\x1b[31m")
    view = view_of(out)
    for _ in range(3):
        view.refresh()
    assert tried.count("a") == 1
    line = f"cox tb: showing 1 of 2 runs in {out}; left out: 1 (odd?[31m)\n"
    assert view.said == line
    monkeypatch.setattr(cox, "os", but(os, scandir=fail))
    for _ in range(3):
        view.refresh()
    assert view.said == line + "cox tb: cannot look for runs: division by zero\n"


def test_a_run_that_goes_on_leaves_the_view_for_a_while(out, view_of, monkeypatch):
    hparams = "events.out.tfevents.0000000000.hparams"
    log_params(out, "a", lr=0.1)
    view = view_of(out)
    assert f"{hparams}.end" in names(view.directory / "a")
    with Store(out, "a") as store:
        store.writer.add_scalar("loss", 0.0, 1)
        store["metadata"].append_row({"lr": 0.1})
        view.refresh()
        began = time.monotonic()
        for seconds in 1, 10:  # TensorBoard looks every 5 s, as Board has it
            later = but(time, monotonic=lambda s=seconds: began + s)
            monkeypatch.setattr(cox, "time", later)
            view.refresh()
            assert view.shown() == []
        monkeypatch.setattr(cox, "time", but(time, monotonic=lambda: began + 20))
        view.refresh()
        assert hparams in names(view.directory / "a")
        assert f"{hparams}.end" not in names(view.directory / "a")


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_run_begun_afresh_shows_under_its_new_parameters(
    out, view_of, monkeypatch, is_deleted
):
    for exp_id, lr in ("a", 0.1), ("b", 0.2):
        log_params(out, exp_id, lr=lr)
    view = view_of(out)
    assert view.shown() == ["lr=0.1-a", "lr=0.2-b"]
    Store(out, "a", mode="w").close()
    if is_deleted:
        shutil.rmtree(out / "a")
    log_params(out, "a", lr=0.3)
    with Store(out, "b") as store:
        store["metadata"].append_row({"lr": 0.4})  # only the first row counts
    view.refresh()
    # it comes back when TensorBoard, which looks every 5 s, has forgotten it
    assert view.shown() == ["lr=0.2-b"]
    later = time.monotonic() + 20
    monkeypatch.setattr(cox, "time", but(time, monotonic=lambda: later))
    view.refresh()
    assert "lr=0.3-a" in view.shown()


def test_values_of_a_stranger_are_bounded(out, view_of):
    log_params(out, "a", n=[10**5000], w=10**9, s="x" * 10_000)
    log_params(out, "b", n=[1], w=3, s="y")
    assert view_of(out).shown()[1] == "w=3,s=y,n=[1]-b"
    view = view_of(out, "--format-str", "{s:{w}}")
    assert "1 (--format-str '{s:{w}}': a width or precision of over 999)" in view.said


def test_a_logdir_without_runs_says_where_they_are(tmp_path, out, view_of):
    log_params(out / "sweep", "a")
    for logdir, where in {
        out: f"; there are in {out}/sweep: try one of these",
        out / "sweep" / "a" / "save": f"part of a run: try {out}/sweep/a",
        tmp_path: f"no runs in {tmp_path} yet; they will show once they start",
    }.items():
        assert where in view_of(logdir).said


def test_files_broken_and_foreign_in_the_directory_do_no_harm(out, view_of, damage):
    log_params(out, "good", lr=0.1)
    log_params(out, "torn", lr=0.1)
    (out / "torn" / ".tables" / "metadata.rows").write_bytes(b"garbage\n")
    log_params(out, "bad-h5")
    shutil.rmtree(out / "bad-h5" / ".tables")
    (out / "bad-h5" / "store.h5").write_bytes(b"garbage")
    (out / "fifo-h5").mkdir()
    for path in out / "fifo", out / "fifo-h5" / "store.h5":
        os.mkfifo(path)
    (out / "dangling").symlink_to("nowhere")
    (out / "file").write_text("")
    (out / "empty").mkdir()
    view = view_of(out)
    view.refresh()
    assert view.shown() == ["bad-h5", "good", "torn"]
    assert [view.said.count(f"run {run!r}") for run in ("bad-h5", "torn")] == [1, 1]


class Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_metadata_column_that_would_run_code_is_left_out(tmp_path, out, view_of):
    log_params(out, "a", x=[Planted(str(tmp_path / "run-by-tb"))], y=1)
    log_params(out, "b", x=[1, 2], y=2)
    view = view_of(out)
    assert view.shown() == ["y=1-a", "y=2,x=[1,2]-b"]
    assert not (tmp_path / "run-by-tb").exists()


def test_metadata_is_read_once(out, monkeypatch, view_of):
    read = []

    def count(path, *args):
        read.append(path)
        return os.open(path, *args)

    log_params(out, "with", lr=0.1)
    log_params(out, "without")
    monkeypatch.setattr(cox, "os", but(os, open=count))
    view = view_of(out)
    path = str(out / "with" / ".tables" / "metadata.rows")
    assert read.count(path) == 1
    read.clear()
    for _ in range(3):
        view.refresh()
    assert read == []


@pytest.mark.parametrize(
    ("columns", "format_str", "shown"),
    [
        ({"lr": 0.00123}, "{lr:.1e}", "1.2e-03-e"),
        ({"n": 7}, "n{n:03d}", "n007-e"),
        ({"n": 7, "w": 4}, "{n:{w}d}", "   7-e"),
        ({"b": True}, "{b!s:>5}", " True-e"),
        ({"a b": 1, "mx^2": 2}, "{a b}{mx^2}", "12-e"),
        ({"a.b": 1}, "{a.b}", "1-e"),
        ({"x": 1}, "{{x}}", "{x}-e"),
        ({"x": "/etc/passwd"}, "{x}", "_etc_passwd-e"),
        ({"x": "."}, "{x}", ".-e"),
        ({"x": ""}, "{x}", "e"),
        ({"x": np.float32(0.1)}, "{x}", "0.1-e"),
    ],
)
def test_format_strings(out, columns, format_str, shown, view_of):
    log_params(out, "e", **columns)
    view = view_of(out, "--format-str", format_str)
    assert view.shown() == [shown]


@pytest.mark.parametrize(
    ("value", "regex", "shown"),
    [
        (0.5, r"0\.5", True),
        (0.5, "5", False),
        (10, "1", True),
        (True, "T", True),
        ([64, 32], r"\[64, 32\]", True),
        ("adam", "(?!adam)", False),
        ("", "", True),
        ("a\nb", "a$", False),
    ],
)
def test_a_filter_matches_the_start_of_the_text_of_a_value(
    out, value, regex, shown, view_of
):
    log_params(out, "e", x=value)
    view = view_of(out, "--filter-param", "x", regex)
    assert view.shown() == ["e"] * shown


def test_event_files_made_within_one_tick_of_the_clock_are_all_linked(out, view_of):
    log_params(out, "e")
    logdir = out / "e" / "tensorboard"
    view = view_of(out)
    mtime_ns = logdir.stat().st_mtime_ns
    (logdir / "tfevents").write_bytes(b"")
    os.utime(logdir, ns=(mtime_ns, mtime_ns))
    view.refresh()
    assert names(view.directory / "e") == names(logdir)


def test_runs_at_rest_are_not_listed_again(out, monkeypatch, view_of):
    log_params(out, "e", lr=0.1)
    os.utime(out / "e" / "tensorboard", (1, 1))
    view = view_of(out)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda p: listed.append(p) or scandir(p))
    view.refresh()
    assert listed == [str(out)]
    assert view.shown() == ["e"]


def test_a_view_that_has_no_room_leaves_out_what_does_not_fit(
    out, monkeypatch, view_of
):
    log_params(out, "a")
    log_params(out, "b")

    def full(path, *args):
        if path.endswith("/b"):
            raise OSError(28, "No space left on device")
        os.mkdir(path, *args)

    monkeypatch.setattr(cox, "os", but(os, mkdir=full))
    view = view_of(out)
    assert view.shown() == ["a"]
    line = f"showing 1 of 2 runs in {out}; left out: 1 (No space left on device)"
    assert view.said == f"cox tb: {line}\n"


ERRORS = {
    "no-logdir": ([], "the following arguments are required: --logdir .*"),
    "no-directory": (["--logdir", "nowhere"], "no such directory: nowhere"),
    "a-file": (
        ["--logdir", "{out}/exp0/store.h5"],
        "no such directory: {out}/exp0/store.h5",
    ),
    "no-port": (["--port", "x"], "argument --port: invalid int value: 'x' .*"),
    "port-too-high": (
        ["--port", "70000"],
        "--port 70000 is not between 0 and 65535 .*",
    ),
    "regex": (
        ["--filter-param", "slope", "["],
        r"--filter-param '\[': unterminated .*",
    ),
    "half-a-filter": (
        ["--filter-param", "x"],
        "argument --filter-param: expected 2 .*",
    ),
    "unclosed-format": (
        ["--format-str", "{{slope"],
        "--format-str '{{slope': expected '}}'.*",
    ),
    "format-spec": (
        ["--format-str", "{{slope:q}}"],
        "--format-str '{{slope:q}}': .* 'q' .*",
    ),
    "unknown-in-filter": (
        ["--filter-param", "lr", "."],
        "no parameter 'lr'; table 'metadata' has: slope",
    ),
    "unknown-in-format": (
        ["--format-str", "{{lr}}"],
        "no parameter 'lr'; table 'metadata' has: slope",
    ),
    "attribute": (
        ["--format-str", "{{slope.__class__}}"],
        "no parameter 'slope.__class__'; .* has: slope",
    ),
    "index": (["--format-str", "{{slope[0]}}"], r"no parameter 'slope\[0\]'; .*"),
    "unnamed": (["--format-str", "{{}}"], "no parameter '0'; .*"),
    "unknown-option": (["--bogus", "1"], "TensorBoard refuses --bogus 1: .*"),
    "bad-value": (
        ["--reload_interval", "x"],
        "TensorBoard refuses --reload_interval x: argument .*",
    ),
    "conflict": (
        ["--host", "::1", "--bind_all"],
        "Must not specify both --host and .*",
    ),
    "foreign-host": (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1:0: .*"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's imports
@pytest.mark.parametrize(("args", "message"), ERRORS.values(), ids=ERRORS)
def test_tb_refuses_in_one_line(out, tmp_path, monkeypatch, capfd, args, message):
    log_slope(out, 0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(cox.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(cox.signal, "signal", lambda *args: None)
    args = [arg.format(out=out) for arg in args]
    if args and "--logdir" not in args:
        args += ["--logdir", str(out)]
    if "--port" not in args:
        args += ["--port", "0"]
    assert cox.main(["tb", *args]) == 2
    said = capfd.readouterr()
    assert re.fullmatch(f"cox tb: {message.format(out=out)}\n", said.err)
    assert said.out == ""
    assert not list(tmp_path.glob("tmp/*"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "bind_all"])
def test_a_busy_port_is_one_line(tb, out, host):
    out.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        where = ["--bind_all"] if host == "bind_all" else ["--host", host]
        server = tb("--logdir", out, *where, port=port)
        assert server.process.wait(30) == 2
    host = "*" if host == "bind_all" else host
    assert re.fullmatch(
        rf"cox tb: cannot listen on {re.escape(host)}:{port}: .* in use.* --port 0.*\n",
        server.log.read_text(),
    )


def test_tb_without_tensorboard_says_how_to_install_it(out, monkeypatch, capsys):
    out.mkdir()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cox.main(["tb", "--logdir", str(out)]) == 2
    assert capsys.readouterr().err.endswith(": pip install tensorboard\n")


SIGNALS = {"SIGINT": 0, "SIGTERM": 128 + 15, "SIGHUP": 128 + 1}


@pytest.mark.parametrize(("name", "status"), SIGNALS.items(), ids=SIGNALS)
def test_a_signal_ends_tb_and_removes_the_view(tb, out, name, status):
    log_slope(out, 1)
    server = tb("--logdir", out, is_fresh=name == "SIGTERM").serve()
    assert len(server.view()) == 1
    assert server.end(getattr(signal, name)) == status
    assert server.view() == []
    assert "Traceback" not in server.log.read_text()


def test_a_second_signal_does_not_stop_the_removal(tb, many):
    server = tb("--logdir", many).serve()
    while server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.003)
    assert server.view() == []


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_while_the_view_is_made_removes_it(tb, many, name):
    server = tb("--logdir", many)
    until(lambda: server.view() and names(server.view()[0]))
    assert server.end(getattr(signal, name)) in (SIGNALS[name], 130)
    assert server.view() == []
    assert "Traceback" not in server.log.read_text()


def test_a_runs_own_directory_is_a_logdir(tb, out):
    log_slope(out, 1)
    log_slope(out, 2)
    server = tb("--logdir", out / "exp1", "--format-str", "slope-{slope}").serve()
    server.wait_for_runs("slope-1-exp1")


@pytest.mark.parametrize(
    "logdir", ["out", "./out/", "~/out", "link", "exp/..", "odd [dir] %é,:"]
)
def test_a_logdir_may_be_relative_linked_or_odd(
    tmp_path, out, monkeypatch, logdir, view_of
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    log_slope(out, 1)
    pathlib.Path("link").symlink_to("out")
    pathlib.Path("odd [dir] %é,:").symlink_to("out")
    view = view_of(logdir.replace("exp", "out/exp1"))
    monkeypatch.chdir("/")
    log_slope(out, 2)
    view.refresh()
    for run in view.shown():
        (link,) = (view.directory / run).glob("events*.0000")
        assert link.read_bytes()
    assert len(view.shown()) == 2


def test_hundreds_of_runs_of_2000_points_show(tb, many):
    count = len(list(many.iterdir()))
    server = tb("--logdir", many).serve()
    some = 0, count // 2, count - 1
    until(lambda: [len(server.points(f"e{i}", "loss")) for i in some], all)
    tags = until(
        lambda: server.get("plugin/scalars/tags"), lambda tags: len(tags) == count
    )
    assert all("loss" in of_run for of_run in tags.values())


WALKTHROUGH_2 = """
import sys
from cox.store import Store

OUT_DIR = sys.argv[1]
for slope in range(5):
    s = Store(OUT_DIR) # Create OUT_DIR/RANDOM_UUID
    s.add_table('line_graphs', {'mx': int, 'mx^2': int})
    s.add_table('metadata', {'slope': int})
    s['metadata'].append_row({'slope': slope})

    for x in range(10):
        s.writer.add_scalar('line', slope*x, x)
        s.writer.add_scalar('parabola', slope*(x**2), x)

    for x in range(10):
        s.log_table_and_tb('line_graphs', {'mx': slope*x, 'mx^2': slope*(x**2)})
        s['line_graphs'].flush_row()
"""
AS_DOCUMENTED = ["--format-str", "slope-{slope}", "--filter-param", "slope", "[1-3]"]
AS_DOCUMENTED += ["--metadata-table", "metadata"]


@pytest.mark.parametrize("status", [0, 2], ids=["help", "error"])
@pytest.mark.parametrize(
    "command",
    ["cox tb", "cox.tensorboard_view", "pkg.cox tb", "pkg.cox.tensorboard_view"],
)
def test_the_command_has_several_names(tmp_path, forked, command, status):
    (tmp_path / "pkg").mkdir()
    shutil.copy(cox.__file__, tmp_path / "pkg")
    err = "cox tb: the following.*\n" if status else ""
    args, path = ["--help"][status:], f"{HERE}{os.pathsep}{tmp_path}"
    said = forked(
        "-m", *command.split(), *args, status=status, err=err, PYTHONPATH=path
    )
    assert said.partition("[")[0] == ("" if status else "usage: cox tb ")


def test_runs_of_the_original_show_under_their_parameters(out, view_of):
    for exp_id, lr in ("a", 0.1), ("b", 0.2):
        metadata = (
            {"lr": float, "layers": OBJECT},
            pd.DataFrame({"lr": [lr], "layers": [cox.obj_to_string([64, 32])]}),
        )
        run = make_original_store(out / exp_id, metadata=metadata)
        (run / "tensorboard" / "events.out.tfevents.1.x").write_bytes(b"")
    before = tree(out)
    view = view_of(out, "--format-str", "{lr}-{layers}")
    assert view.shown() == ["0.1-64.32-a", "0.2-64.32-b"]
    assert tree(out) == before


def test_walkthrough_2(tb, out, tmp_path):
    python("-c", WALKTHROUGH_2, out)
    before = tree(out)
    slopes = {
        path.name: int(Store(out, path.name, mode="r")["metadata"].df["slope"].iloc[0])
        for path in out.iterdir()
    }
    assert sorted(slopes.values()) == [0, 1, 2, 3, 4]
    shown = {
        f"slope-{slope}-{e}": slope for e, slope in slopes.items() if 1 <= slope <= 3
    }
    server = tb("--logdir", out, *AS_DOCUMENTED, module="cox.tensorboard_view").serve()
    server.wait_for_runs(*shown)
    for run, slope in shown.items():
        line = [[x, slope * x] for x in range(10)]
        parabola = [[x, slope * x**2] for x in range(10)]
        for tag, points in {
            **{"line": line, "parabola": parabola},
            **{"line_graphs/mx": line, "line_graphs/mx^2": parabola},
        }.items():
            server.wait_for_points(run, tag, points)
    assert tree(out) == before


class Browser:
    """Headless Chromium, driven over its DevTools protocol."""

    # Text of a page, and the stroke of each curve, through all shadow roots
    COLLECT = """(() => {
        const texts = [], strokes = new Set();
        const walk = node => {
            if (node.shadowRoot) walk(node.shadowRoot);
            if (node.nodeType === Node.TEXT_NODE && node.parentNode.checkVisibility?.())
                texts.push(node.textContent.trim());
            if (node.nodeName === 'path' && node.getTotalLength() > 100)
                strokes.add(getComputedStyle(node).stroke);
            node.childNodes.forEach(walk);
        };
        walk(document.body);
        return {texts: texts.filter(text => text), strokes: [...strokes]};
    })()"""

    def __init__(self, directory):
        self.websocket = pytest.importorskip("websocket")
        binary = shutil.which("chromium") or pytest.skip("needs Chromium")
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
        flags += " disable-background-networking disable-component-update"
        flags += " remote-allow-origins=* remote-debugging-port=0"
        flags += f" user-data-dir={directory}"
        command = [binary, *(f"--{flag}" for flag in flags.split())]
        log = directory.with_suffix(".log")
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr)
        listening = until(lambda: re.search(r"ws://(\S+?)/", log.read_text()))
        with urllib.request.urlopen(
            f"http://{listening[1]}/json", timeout=30
        ) as response:
            pages = json.load(response)
        (url,) = (
            page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"
        )
        self.page = self.websocket.create_connection(url, timeout=60)

    def call(self, method, **params):
        self.page.send(json.dumps({"id": 1, "method": method, "params": params}))
        return json.loads(self.page.recv())["result"]

    def visit(self, url):
        size = {"width": 1040, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=url)

    def collect(self):
        result = self.call(
            "Runtime.evaluate", expression=self.COLLECT, returnByValue=True
        )
        return result["result"].get("value", {"texts": [], "strokes": []})

    def picture(self):
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def close(self):
        if hasattr(self, "page"):
            self.page.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "chromium")
    yield browser
    browser.close()


def save_picture(png):
    """Keep README's picture, in few colours, where COX_PICTURE_DIR says."""
    if directory := os.environ.get("COX_PICTURE_DIR"):
        image = pytest.importorskip("PIL.Image").open(io.BytesIO(png))
        small = image.convert("RGB").quantize(64, dither=0)
        small.save(pathlib.Path(directory) / "tensorboard.png", optimize=True)


def test_a_browser_shows_curves_and_the_hparams_table(tb, out, browser):
    for slope in range(5):
        log_slope(out, slope, str(uuid.uuid4()))
    tmp = pathlib.Path(tempfile.gettempdir())  # it is in the picture
    server = tb("--logdir", out, *AS_DOCUMENTED, tmp=tmp).serve()
    until(server.runs, lambda runs: len(runs) == 3)
    runs = server.runs()
    for run in runs:
        until(lambda run=run: server.points(run, "line_graphs/mx^2"))

    browser.visit(f"{server.url}/#scalars&_smoothingWeight=0")
    page = until(browser.collect, lambda page: len(page["strokes"]) >= 4)
    assert set(runs) | {"line_graphs/mx", "line_graphs/mx^2"} <= set(page["texts"])
    save_picture(browser.picture())

    browser.visit(f"{server.url}/#hparams")
    table = [
        *["slope", "line_graphs/mx", "line_graphs/mx^2"],
        *[runs[0], "1.0000", "9.0000", "81.000"],
        *[runs[1], "2.0000", "18.000", "162.00"],
        *[runs[2], "3.0000", "27.000", "243.00"],
    ]
    until(browser.collect, lambda page: str(table)[1:-1] in str(page["texts"]))


###############################################################################
# Commands
###############################################################################


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `cox` in a terminal of a given width; return what it prints."""

    def run(*args, status=0, width=80, err=""):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cox.main([*map(str, args)]) == status
        said = capsys.readouterr()
        assert re.fullmatch(err, said.err), said.err
        return said.out

    return run


@made_once
def made_sweep(out):
    """Four runs of two parameters, begun a minute apart."""
    for i, exp_id in enumerate(["a1", "a2", "b1", "b2"]):
        with contextlib.suppress(RuntimeError), Store(out, exp_id) as store:
            params = {"lr": i / 10, "seed": i % 2, "arch": "resnet"}
            store.add_table_like_example("metadata", params).append_row(params)
            store.add_table("train", {"epoch": int, "loss": float})
            for epoch in range(i + 1):
                store["train"].append_row({"epoch": epoch, "loss": 1 / (epoch + 3)})
            store.add_table("test", {"loss": float}).append_row({"loss": i})
            if exp_id == "a2":
                raise RuntimeError("CUDA out of memory")
        path = out / exp_id / ".tables" / "history.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line, second in zip(lines, (0, 7), strict=False):
            line["time"] = f"2026-01-01T00:0{i}:0{second}+00:00"
            line["git"] = {"commit": "0123456789", "changed": [i]}
        begun_only = lines[:1] if exp_id == "b2" else lines
        path.write_text("".join(json.dumps(line) + "\n" for line in begun_only))


@pytest.fixture
def sweep(made_sweep, out, monkeypatch):
    """Four runs of two parameters, begun a minute apart, the last one running."""
    copy_made(made_sweep, out)
    now = pd.Timestamp("2026-01-01T00:05:00+00:00").timestamp()
    monkeypatch.setattr(cox.time, "time", lambda: now)
    with (out / "b2" / ".tables" / "lock").open() as lock:  # as its writer has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield out


def test_ls_shows_what_tells_runs_apart_newest_first(sweep, cli):
    error, none = "RuntimeError: CUDA out of memory", " " * 32
    head = f"run  status   started  took  {'error':32}   lr  seed  test/loss  epoch  "
    assert cli("ls", sweep, width=200).splitlines() == [
        head + "train/loss",
        f"b2   running  2m       2m    {none}  0.3     1          3      3      0.1667",
        f"b1   done     3m       7s    {none}  0.2     0          2      2         0.2",
        f"a2   failed   4m       7s    {error}  0.1     1          1      1"
        + "        0.25",
        f"a1   done     5m       7s    {none}    0     0          0      0      0.3333",
        "4 runs: 2 done, 1 running, 1 failed",
    ]


def test_ls_names_what_a_terminal_has_no_room_for(sweep, cli):
    said = cli("ls", sweep, err="cox ls: no room for train/loss\n")
    head, *_, failed, _, _ = said.splitlines()
    shown = "run status started took error lr seed test/loss epoch"
    assert head.split() == shown.split()
    assert "  RuntimeError: CUD...  " in failed
    assert max(map(len, said.splitlines())) <= 80


def test_ls_shows_the_names_that_other_commands_ask_for(out, cli, damage):
    names = [f"resnet18,lr=0.1,wd=0.0001,seed={seed}" for seed in range(2)]
    for name in names:
        make_run(out, name, t=({"x": "int"}, [[1]]))
    assert [line.split()[0] for line in cli("ls", out).splitlines()[1:3]] == names
    make_run(out, "n" * 100, t=({"x": "int"}, [[1]]))
    assert f"\n{'n' * 37}...\n" in cli("ls", out)


def test_ls_queries_sorts_chooses_and_limits(sweep, cli):
    assert cli(
        *("ls", sweep, "-w", 'lr < 0.3 and status == "done"'),
        *("-s", "-test/loss", "-c", "seed,test/loss"),
    ).splitlines() == [
        "run  seed  test/loss",
        "b1      0          2",
        "a1      0          0",
        "2 runs: 2 done",
    ]
    args = "ls", sweep, "-s", "lr", "-n", "2", "-q"
    some = "cox ls: 2 of 4 runs are shown; see -n\n"
    assert cli(*args, err=some) == f"{sweep}/a1\n{sweep}/a2\n"
    assert cli("ls", sweep / "a2", "-q") == f"{sweep}/a2\n"
    assert cli("ls", sweep, "--sort", "-lr", "-q").endswith("/a1\n")
    assert cli("ls", sweep, "-w", "lr > 1", "-q") == ""
    assert cli("ls", sweep, "-w", "lr > 1").endswith("0 runs\n")


def test_ls_for_programs_has_all_columns_and_full_values(sweep, cli):
    table = list(csv.DictReader(io.StringIO(cli("ls", sweep, "--csv"))))
    rows = [json.loads(line) for line in cli("ls", sweep, "--json").splitlines()]
    assert (
        [row["exp_id"] for row in table]
        == [row["exp_id"] for row in rows]
        == ["b2", "b1", "a2", "a1"]
    )
    for listed in table, rows:
        losses = [float(row["train/loss"]) for row in listed]
        assert losses == [1 / 6, 1 / 5, 1 / 4, 1 / 3]
    assert rows[0]["arch"] == table[0]["arch"] == "resnet"
    begin(sweep, long := "n" * 255).close()
    line = cli("ls", sweep, "--csv", "-c", "exp_id,lr", "-w", "exp_id > 'n'")
    assert line == f"exp_id,lr\n{long},\n"
    assert [row["commit"] for row in table] == ["01234567+"] * 4


def test_ls_of_none_one_and_a_hundred_runs(out, cli, damage):
    out.mkdir()
    hint = f"cox ls: no runs in {out.parent}; there are in {out}: try one of these\n"
    assert cli("ls", out) == "run  status  started  took\n0 runs\n"
    for i in range(100):
        make_run(out, f"{i:08}-0000-4000-8000-000000000000", t=({"x": "int"}, [[i]]))
        if i == 0:
            assert cli("ls", out).splitlines() == [
                *(
                    "run       status  started  took  x",
                    "00000000                         0",
                ),
                "1 run: 1 unknown",
            ]
    assert cli("ls", out.parent, "-q", err=hint) == ""
    lines = cli("ls", out).splitlines()
    assert len(lines) == 102
    assert lines[0] == "run       status  started  took   x"


def test_names_and_values_of_strangers_do_no_harm(out, cli):
    evil = "\x1b[2J\n'; rm -r .."
    with Store(out, f"run {evil.replace('/', '')}") as store:
        row = {f"a{evil}": evil, "b": "é", "c": [evil], "x": math.inf}
        store.add_table_like_example("metadata", row).append_row(row)
        store.add_table_like_example(f"t{evil}", row).append_row(row)
    run = store.path
    for args in (
        ["ls", out, "--csv"], ["ls", out], ["show", run],
        ["ls", out, "--json"], ["tail", run, "-t", f"t{evil}"],
    ):  # fmt: skip
        said = cli(*args, width=1000)
        assert not {c for c in said if not c.isprintable()} - {"\n"}
        assert "é" in said or "\\u00e9" in said
    # NaN and Infinity are none of JSON's
    row = json.loads(cli("ls", out, "--json"), parse_constant=pytest.fail)
    assert row[f"a{evil}"] == evil
    assert "x" not in row
    said = cli("ls", out, "-q", err=r".*cannot be printed.*\n")
    assert said == ""
    assert cli("diff", run, run) == ""
    cli("show", "x", "-d", out, status=2, err=".*\n")


def test_broken_runs_are_named_and_the_others_listed(out, run, cli, damage):
    shutil.copytree(run, out / "good")
    (run / ".tables" / "t.rows").write_bytes(b"no header")
    with warns("run run"):
        listed = cli("ls", out, "-q").splitlines()
    assert sorted(listed) == [f"{out}/good", f"{out}/run"]
    said = cli("show", "run", "-d", out, status=2, err=r".*move it out of the run.*\n")
    assert said.splitlines()[1:3] == ["status      done", "attempt 1"]


def test_show_tells_all_of_a_run(sweep, cli):
    said = cli("show", "a2", "-d", sweep)
    assert said == cli("show", sweep / "a2")
    for line in (
        rf"run +{sweep}/a2", "status +failed", "attempt 1", "  argv +.*", "  git",
        "    commit +0123456789", "  error +RuntimeError: CUDA out of memory",
        "  trace +Traceback.*", " +RuntimeError: CUDA out of memory", "  lr +0.1",
        "  train", "    loss +0.25", "    rows +2",
    ):  # fmt: skip
        assert re.search(f"^{line}$", said, re.MULTILINE), line


def test_an_id_that_begins_another_is_that_run(run, cli):
    Store(run.parent, "run2").close()
    assert cli("show", "run", "-d", run.parent).splitlines()[0].endswith(f" {run}")
    assert cli("show", "run2", "-d", run.parent).splitlines()[0].endswith(f" {run}2")


def test_a_run_is_looked_for_in_dir_first(out, cli, tmp_path, monkeypatch):
    for directory in out, tmp_path:
        for exp_id in "1", "a":
            Store(directory, exp_id).close()
    Store(out, "a2").close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(out.parent))
    for directory in out, f"~/{out.name}":
        for run, found in {"1": out, "a": out, tmp_path / "1": tmp_path}.items():
            said = cli("show", run, f"--dir={directory}").splitlines()[0]
            assert said.endswith(f" {found / pathlib.Path(run).name}")


def test_diff_shows_what_differs(sweep, cli):
    said = cli("diff", "a1", "b1", "-d", sweep, status=1).splitlines()
    assert [line for line in said if line[0] != " "] == [
        *("git changed", "lr", "test/loss", "train/epoch", "train/loss", "train/rows"),
    ]
    at = said.index("lr")
    assert said[at : at + 3] == ["lr", "  a1          0.0", "  b1          0.2"]
    assert cli("diff", "a1", sweep / "a1", "-d", sweep) == ""


def test_tail_shows_the_last_rows_and_follows(store, cli, monkeypatch):
    table = store.add_table("train", {"epoch": int, "loss": float})
    store.add_table("test", {"loss": float}).append_row({"loss": 3})
    rows = [f"{epoch:10}  {1 / (epoch + 3):10.4g}" for epoch in range(3000)]

    def log_more(count):
        for epoch in range(table.nrows, table.nrows + count):
            table.append_row({"epoch": epoch, "loss": 1 / (epoch + 3)})

    def log_or_stop(seconds):
        if table.nrows > 2000:
            raise KeyboardInterrupt
        log_more(1200)

    log_more(15)
    head = "     epoch        loss"
    assert cli("tail", store.path).splitlines() == [head, *rows[5:15]]
    assert cli("tail", store.path, "-n", "-3").splitlines() == [head, *rows[12:15]]
    args = "tail", "r", "-d", pathlib.Path(store.path).parent, "-n", "1"
    assert cli(*args, "-t", "test").splitlines() == ["      loss", "         3"]

    def log_and_open(path, *args):
        if path.endswith("train.rows"):
            log_more(3)
        return os.open(path, *args)

    monkeypatch.setattr(cox.time, "sleep", log_or_stop)
    monkeypatch.setattr(cox, "os", but(os, open=log_and_open))
    said = cli(*args, "-f", status=130).splitlines()
    first = rows.index(said[1])
    assert first in range(14, 30)
    assert said == [head, *rows[first : first + len(said) - 1]]
    assert len(said) > 2000


def test_tail_goes_on_with_a_table_that_was_begun_afresh(out, cli, monkeypatch):
    schema = {"epoch": int}
    with Store(out, "r") as store:
        assert (
            cli("tail", store.path, status=2, err="cox tail: .*r has no table yet\n")
            == ""
        )
        store.add_table("t", schema).append_rows({"epoch": range(9)})

    def begin_afresh(seconds):
        Store(out, "r", mode="w").add_table("t", schema).append_row({"epoch": 77})
        monkeypatch.setattr(cox.time, "sleep", lambda _: signal.raise_signal(2))

    monkeypatch.setattr(cox.time, "sleep", begin_afresh)
    said = cli("tail", "r", "-d", out, "-f", status=130).split()
    assert said == ["epoch", *map(str, range(9)), "77"]


@pytest.fixture
def follow(cli, monkeypatch):
    """Run `cox tail -f` of run r; do one thing at each of its pauses, then stop it."""

    def run(out, *things, **expected):
        stop = itertools.repeat(lambda: signal.raise_signal(signal.SIGINT))
        left = itertools.chain(things, stop)
        monkeypatch.setattr(cox.time, "sleep", lambda _: next(left)())
        args = "tail", "r", "-d", out, "-f"
        return cli(*args, **{"status": 130} | expected).splitlines()

    return run


def test_tail_names_the_columns_again_when_others_are_shown(out, follow):
    def begin_afresh():
        store = Store(out, "r", mode="w")
        store.add_table("t", {"acc": float, "a": str, "b": str, "epoch": int})
        log("short")

    def log(text):
        store = Store(out, "r")
        store["t"].append_row({"acc": 0.5, "a": text, "b": text, "epoch": 1})

    with Store(out, "r") as store:
        store.add_table("t", {"epoch": int}).append_rows({"epoch": [7, 8]})
    things = begin_afresh, lambda: log("a long text"), lambda: log("another text")
    lines = follow(out, *things, width=46, err="cox tail: no room for epoch\n")
    assert [" ".join(line.split()) for line in lines] == [
        *("epoch", "7", "8", "acc a b epoch", "0.5 short short 1"),
        *("acc a b", "0.5 a long text a long text"),
        "0.5 another text another text",
    ]


def test_tail_waits_for_a_table_that_was_erased_but_not_for_a_deleted_run(out, follow):
    def log(value):
        with Store(out, "r") as store:
            store.add_table("t", {"x": int}).append_row({"x": value})

    log(1)
    lines = follow(out, lambda: Store(out, "r", mode="w").close(), lambda: log(2))
    assert [*map(str.strip, lines)] == ["x", "1", "2"]
    gone = r"cox tail: the run .*/r is gone: .*\n"
    lines = follow(out, lambda: shutil.rmtree(out / "r"), status=2, err=gone)
    assert [*map(str.strip, lines)] == ["x", "2"]


@pytest.mark.parametrize("at", range(1, 7))
def test_tail_misses_no_row_however_many_come_at_once(store, cli, monkeypatch, at):
    table = store.add_table("t", {"x": int})
    table.append_rows({"x": range(3)})
    opened = []

    def open_and_log(path, *args):
        if path.endswith("t.rows"):
            opened.append(path)
            if len(opened) == at:
                table.append_rows({"x": range(3, 5000)})
        return os.open(path, *args)

    monkeypatch.setattr(cox, "os", but(os, open=open_and_log))
    shown = [int(line) for line in cli("tail", store.path).splitlines()[1:]]
    assert shown == [*range(shown[0], table.nrows)]
    assert shown[0] in (0, 4990)


def test_a_damaged_table_keeps_no_other_from_being_shown(out, cli, damage):
    with Store(out, "r") as store:
        store.add_table("t", {"x": int}).append_row({"x": 7})
        store.add_table("u", {"x": int})
    (out / "r" / ".tables" / "u.rows").write_bytes(b"no header")
    assert cli("tail", "r", "-d", out, "-t", "t").split() == ["x", "7"]


def test_version_is_that_of_the_file(cli):
    assert cli("--version") == f"cox {cox.__version__}\n"


REFUSED_COMMANDS = {
    "no-command": ([], "cox no command: not one of ls, show, diff, tail, tb .*"),
    "no-such-command": (["nonsense"], "cox nonsense: not one of ls, show, .*"),
    "no-such-directory": (["ls", "{out}/x"], "cox ls: .*no directory.*"),
    "no-such-option": (["ls", "--nope"], "cox ls: unrecognized arguments: --nope .*"),
    "a-bad-query": (
        ["ls", "{out}", "-w", "lr <"],
        r"cox ls: .*columns: exp_id \(run\), status, .*, seconds \(took\), .*, lr.*",
    ),
    "no-such-column": (
        ["ls", "{out}", "-c", "z"],
        "cox ls: .*z.*; columns: exp_id .*",
    ),
    "nor-to-sort-by": (["ls", "{out}", "-s", "-z"], "cox ls: .*'z'.*columns: exp_id.*"),
    "no-such-run": (
        ["show", "x", "-d", "{out}"],
        "cox show: no single run .* 'x': none",
    ),
    "two-such-runs": (["show", "a", "-d", "{out}"], "cox show: .* with 'a': a1, a2"),
    "no-such-table": (
        ["tail", "a1", "-d", "{out}", "-t", "x"],
        "cox tail: no table 'x'.*",
    ),
}


@pytest.mark.parametrize(
    ("args", "message"), REFUSED_COMMANDS.values(), ids=REFUSED_COMMANDS
)
def test_commands_refuse_in_one_line(sweep, cli, args, message):
    args = [arg.format(out=sweep) for arg in args]
    assert cli(*args, status=2, err=f"{message}\n") == ""


def test_help_lists_the_commands(cli):
    said = cli("--help")
    for name in ("ls", "show", "diff", "tail", "tb"):
        assert re.search(rf"^  {name} +\w.*\.$", said, re.MULTILINE)
        with pytest.raises(SystemExit, match="0"):
            cox.main([name, "--help"])


def test_what_is_said_beside_a_listing_is_not_in_it(sweep, cli, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as of `2>&-`
    assert cli("ls", sweep, "-q", "-n", "1") == f"{sweep}/b2\n"


def test_a_closed_pipe_ends_quietly_and_tensorboard_is_not_imported(out, damage):
    make_run(out, "run", t=({"x": "int"}, [[1]]))
    script = """
        import os, sys, cox
        assert cox.main(["ls", sys.argv[1]]) == 0
        assert "tensorboard" not in sys.modules
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        sys.exit(cox.main(["ls", sys.argv[1]]))
    """
    assert "1 run:" in python("-c", textwrap.dedent(script), out)


def test_ls_q_prints_no_path_that_is_another_run(out, cli):
    for exp_id in "x\ny", "x y", "k\1", "k?":
        begin(out, exp_id).close()
    shown = cli("ls", out, "-q", err=r"(?s).*left out.*left out.*")
    assert sorted(shlex.split(shown)) == [f"{out}/k?", f"{out}/x y"]


def test_ls_json_is_json_whatever_the_parameters_are(out, cli):
    parameters = {"exp_id": 7, "run": 8, "took": 9, "by": {(1, 2): 3}}
    parameters |= {"nan": [float("nan")], "seed": BIG}
    with Store(out, "a") as store:
        store.add_table_like_example("metadata", parameters).append_row(parameters)
    begin(out, "b").close()

    def refuse(constant):
        raise AssertionError(constant)

    lines = cli("ls", out, "--json").splitlines()
    a, b = sorted((json.loads(x, parse_constant=refuse) for x in lines), key=str)
    assert (a["exp_id"], a["metadata/exp_id"], a["seed"]) == ("a", 7, BIG)
    assert b["exp_id"] == "b"
    head, *shown = cli("ls", out, width=200).splitlines()
    assert re.match(r"run +status", head)
    assert {line.split()[0] for line in shown[:2]} == {"a", "b"}
    assert str(BIG) in "".join(shown)


def test_ls_takes_a_table_with_a_column_exp_id(out, cli):
    with Store(out, "a") as store:
        table = store.add_table("train", {"exp_id": str, "loss": float})
        table.append_row({"exp_id": "mine", "loss": 0.5})
    row = json.loads(cli("ls", out, "--json"))
    assert (row["exp_id"], row["train/exp_id"], row["loss"]) == ("a", "mine", 0.5)
    assert cli("ls", out, "-w", "exp_id == 'a'", "-s", "exp_id", "-q") == f"{out}/a\n"


def test_seeds_are_told_apart_where_a_run_has_none(out, cli):
    for exp_id, seed in ("a", 123456), ("b", 123457):
        with Store(out, exp_id) as store:
            store.add_table("metadata", {"seed": int}).append_row({"seed": seed})
    begin(out, "c").close()
    assert {"123456", "123457"} < {*cli("ls", out).split()}


def test_show_and_diff_show_empty_values_and_a_column_called_rows(out, cli):
    for exp_id, value in ("a", ""), ("b", "text"):
        with Store(out, exp_id) as store:
            parameters = {"note": value, "sizes": []}
            store.add_table_like_example("metadata", parameters).append_row(parameters)
            store.add_table("t", {"rows": int}).append_row({"rows": 777})
    shown = cli("show", "a", "-d", out)
    assert re.search(r"^  note *$", shown, re.MULTILINE)
    assert re.search(r"^  sizes *(\[\])?$", shown, re.MULTILINE)
    assert re.search(r"^    rows +777$", shown, re.MULTILINE)
    shown = cli("diff", "a", "b", "-d", out, status=1)
    assert re.search(r"^note\n  a *\n  b +text$", shown, re.MULTILINE)


def test_tail_shows_a_column_whose_first_object_is_not_plain(out, cli):
    with Store(out, "run") as store:
        table = store.add_table("t", {"x": int, "o": OBJECT})
        for x, value in enumerate([Decimal(1), [2, 3]]):
            table.append_row({"x": x, "o": value})
    assert "[2, 3]" in cli("tail", "run", "-d", out)


###############################################################################
# Import names and vendoring
###############################################################################

IMPORTS = """if True:
    import sys, os, logging, signal, threading, warnings, numpy, pandas, tables
    sys.path[:0] = [sys.argv[1]]
    def state():
        handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
        return (list(warnings.filters), logging.root.handlers, logging.root.level,
                handlers, dict(os.environ), numpy.geterr(), threading.enumerate(),
                sys.excepthook, pandas.get_option("display.max_rows"),
                dict(tables.parameters.__dict__), tables.attributeset.pickle,
                os.listdir("."), os.getcwd(), sorted(pandas.DataFrame.__dict__))
    before = state()
    import PACKAGE as cox
    assert state() == before
    heavy = {"torch", "tensorboard", "matplotlib", "tensorboardX", "tqdm", "dill"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
    from PACKAGE.store import OBJECT, PICKLE, PYTORCH_STATE, Store, Table
    from PACKAGE.store import schema_from_dict
    from PACKAGE.readers import CollectionReader
    from PACKAGE.utils import Parameters, override_json, consistent, mkdirp
    from PACKAGE.utils import has_tensorboard, obj_to_string, string_to_obj
    from PACKAGE.tensorboard_view import main
    import PACKAGE.store, PACKAGE.utils
    assert PACKAGE.store.Store is Store is cox.Store
    assert PACKAGE.utils.Parameters is cox.Parameters
    assert Store.__module__ == "PACKAGE"
    print(cox.__file__)
"""


@pytest.fixture
def vendored(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    shutil.copy(cox.__file__, tmp_path / "pkg" / "cox.py")
    return tmp_path


@pytest.mark.parametrize("package", ["cox", "pkg.cox"])
def test_old_names_work_and_importing_changes_nothing(vendored, package):
    where = vendored if package == "pkg.cox" else pathlib.Path(cox.__file__).parent
    code = IMPORTS.replace("PACKAGE", package)
    printed = python("-c", code, where, cwd=vendored)
    assert pathlib.Path(printed.strip()) == where / (package.replace(".", "/") + ".py")


# What the original documents, and what programs use beyond it: module, object and
# how to call it, or an attribute of what a program has made.
PUBLIC = """
cox.store.Store(storage_folder, exp_id=None, new=False, mode='a')
cox.store.Store.add_table(table_name, schema)
cox.store.Store.add_table_like_example(table_name, example, alternative='__object__')
cox.store.Store.get_table(table_id)
cox.store.Store.__getitem__(table_id)
cox.store.Store.log_table_and_tb(table_name, update_dict, summary_type='scalar')
cox.store.Store.close()
cox.store.Store.snapshot_copy()
cox.store.Store.read_from_running(storage_folder, exp_id=None)
cox.store.Table(name, schema, table_obj_dir, store, has_initialized=False)
cox.store.Table.update_row(data)
cox.store.Table.flush_row()
cox.store.Table.append_row(data)
cox.store.Table.get_object(s)
cox.store.Table.get_pickle(uid)
cox.store.Table.get_state_dict(uid, **kwargs)
cox.store.schema_from_dict(d, alternative='__object__')
cox.store._clean_dict(d, schema)
cox.store.has_tensorboard(dirname)
cox.store.obj_to_string(obj)
cox.readers.CollectionReader(directory, log_warnings=True, mode='r', exp_filter=None, \
skip_errs=False)
cox.readers.CollectionReader.df(key, append_exp_id=True, keep_serialized=[], \
union_schemas=False, exp_filter=None, skip_errors=False)
cox.readers.CollectionReader.close()
cox.tensorboard_view.main()
cox.utils.Parameters(params)
cox.utils.Parameters.as_dict()
cox.utils.consistent(old, new)
cox.utils.has_tensorboard(dirname)
cox.utils.mkdirp(x, should_msg=False)
cox.utils.obj_to_string(obj)
cox.utils.override_json(args, json_path, check_consistency=False)
cox.utils.string_to_obj(s)
""".replace("\\\n", "")
CONSTANTS = {
    "OBJECT": "__object__",
    "PICKLE": "__pickle__",
    "PYTORCH_STATE": "__pytorch_state__",
    "STORE_BASENAME": "store.h5",
    "SAVE_DIR": "save",
    "TENSORBOARD_DIR": "tensorboard",
    "TABLE_OBJECT_DIR": ".table_objects",
    "COX_DATA_KEY": "COX_DATA",
}
ATTRIBUTES = {
    "store": "path exp_id save_dir tb_dir tables keys tensorboard OBJECT PICKLE "
    "PYTORCH_STATE",
    "table": "df nrows schema",
    "reader": "directory stores schemas tables",
    "writer": "file_writer _get_file_writer logdir",
}


def test_the_whole_public_surface_of_the_original_is_there(run):
    for line in PUBLIC.split("\n")[1:-1]:
        path, _, arguments = line[:-1].partition("(")
        _, module, *names = path.split(".")
        found = sys.modules[f"cox.{module}"]
        for name in names:
            found = getattr(found, name)
        parameters = inspect.signature(found).parameters
        wanted = [a.partition("=")[0].strip(" *") for a in arguments.split(",") if a]
        has_self = "self" in parameters
        assert [*parameters][has_self : has_self + len(wanted)] == wanted, path
        for name, default in re.findall(r"(\w+)=([^,]+)", arguments):
            value, expected = parameters[name].default, ast.literal_eval(default)
            assert value == (() if expected == [] else expected), path
        for name in [*parameters][has_self + len(wanted) :]:
            assert parameters[name].default is not inspect.Parameter.empty, path
    for name, value in CONSTANTS.items():
        assert getattr(cox.store, name) == value
    with Store(run.parent, "run") as store, CollectionReader(run.parent) as reader:
        made = {"store": store, "table": store["t"], "reader": reader}
        made["writer"] = store.tensorboard
        for owner, names in ATTRIBUTES.items():
            assert [n for n in names.split() if not hasattr(made[owner], n)] == []


def test_clean_dict_makes_numbers_of_0d_tensors():
    row = {"x": Scalar0d(0.5), "o": Scalar0d(1), "s": "text"}
    cleaned = cox.store._clean_dict(row, {"x": float, "o": OBJECT, "s": str})
    assert cleaned == row | {"x": 0.5}


@pytest.mark.parametrize("module", ["cox", "cox.tensorboard_view", "pkg.cox"])
def test_modules_run_as_programs_without_a_warning(vendored, forked, module):
    cwd = vendored if module == "pkg.cox" else HERE
    run = python if module == "cox" else forked
    assert "--help" in run("-m", module, "--help", cwd=cwd)


###############################################################################
# Crashes
###############################################################################

# Where the first process finds the run, and how it opens it.
CRASHES = {
    "creating": (None, "a"),
    "continuing": ("run", "a"),
    "continuing-a-torn-end": ("torn", "a"),
    "starting-afresh": ("run", "w"),
    "converting": ("original", "a"),
    "converting-to-start-afresh": ("original", "w"),
}


@pytest.fixture
def torn(run):
    with (run / ".tables" / "t.rows").open("ab") as file:
        file.write(struct.pack("<qq", 4, 3))
    yield run
    shutil.rmtree(run)


def _die_before(step, out, mode, acknowledged, answer):
    def start(command, **options):  # not the child, which takes long to start
        answering = ["sh", "-c", f"read path; cat {shlex.quote(str(answer))}"]
        return subprocess.Popen(answering, **options)

    cox.subprocess = but(subprocess, Popen=start)
    steps = itertools.count(1)

    def around(call, name, *args):
        if next(steps) == step:
            os._exit(73)
        return call(*args)

    cox.os = Proxy(os, around)
    cox.fcntl = Proxy(cox.fcntl, around)
    acks = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
    with Store(out, "run", mode=mode) as store:
        log(store, 2, lambda i: os.write(acks, b"."))
        store.add_table("new", {"x": float}).append_row({"x": 1})


@some_of(19)
@pytest.mark.parametrize(("template", "mode"), CRASHES.values(), ids=CRASHES)
def test_death_between_any_two_steps_loses_no_row(
    request, tmp_path, child, template, mode, every
):
    if template:
        template = request.getfixturevalue(template).parent
    before = 3 if template else 0
    answer = tmp_path / "answer"
    t = SCHEMA_KINDS, [(i, f"row {i}") for i in range(3)]
    answer.write_bytes(child_answer(t=t, other=({"x": "float"}, [(0.5,), (1.5,)])))
    for step in itertools.count(1, every):
        out, acks = tmp_path / f"step{step}", tmp_path / f"acks{step}"
        shutil.copytree(template, out) if template else out.mkdir()
        status = child(_die_before, step, out, mode, acks, answer).end(0, 73)
        acknowledged = acks.stat().st_size
        CollectionReader(out)  # whatever the death left can be listed
        count = before + acknowledged
        if mode == "w" and (acknowledged or status == 0):
            count = acknowledged
        with Store(out, "run") as store:
            try:
                rows = store["t"].nrows
            except KeyError:
                assert mode == "w" or not before
                rows = 0
            else:
                assert_logged(store["t"].df, rows)
            if mode == "w" and not acknowledged:
                assert rows in (0, 1, 3)
            else:
                assert rows in (count, count + 1)
            if template and mode == "a":
                assert store["other"].df["x"].tolist() == [0.5, 1.5]
            log(store, 1)
        shown = {p.name for p in (out / "run").iterdir() if p.name[0] != "."}
        assert shown == {"save", "store.h5", "tensorboard"}
        assert_consistent(out / "run")
        shutil.rmtree(out)
        if status == 0:
            break
    assert step > 10


def _log_until_killed(out, pipe):
    store = Store(out, "run")
    while True:
        log(store, 50, lambda i: pipe.send_bytes(struct.pack("<q", i)))
        store.checkpoint()


def _read_until_told(out, stop):
    seen = reads = 0
    while not stop.is_set() or not reads:
        frame = Store(out, "run", mode="r")["t"].df
        assert_logged(frame, len(frame))
        assert len(frame) >= seen, "a row that was read is gone"
        seen, reads = len(frame), reads + 1
        assert len(CollectionReader(out).df("t")) >= seen


@some_of(3)
def test_kill_9_loses_no_acknowledged_row_and_readers_see_prefixes(out, child, every):
    stop, rows = MP.Event(), 0
    readers = []
    for round_ in range(12 // every):
        receiving, sending = MP.Pipe(duplex=False)
        writer = child(_log_until_killed, out, sending)
        sending.close()
        target = rows + random.randrange(1, 400)
        last = rows - 1
        with contextlib.suppress(EOFError, OSError):
            while True:
                [last] = struct.unpack("<q", receiving.recv_bytes())
                if last == target:
                    writer.process.kill()
        assert writer.end(-signal.SIGKILL)
        frame = Store(out, "run", mode="r")["t"].df
        assert_logged(frame, len(frame))
        assert last + 1 <= len(frame) <= last + 2
        rows = len(frame)
        if round_ == 0:
            readers = [child(_read_until_told, out, stop) for _ in range(2)]
    stop.set()
    for reader in readers:
        reader.end()
    with Store(out, "run") as store:
        log(store, 1)


class Disk:
    """Records what cox does to files, to say what a machine that dies may leave."""

    def __init__(self, root, around, monkeypatch):
        self.root = root
        self.events = []
        self.acknowledged = []  # how many events there were, and what was synced then
        self._nodes, self._contents, self._kept_open = {}, {}, []
        self._files = set()
        self._top = self._node(root)
        self._tree = {}
        self._initial = {}
        for folder, folders, files in os.walk(root):
            node = self._known(folder)
            for name in folders + files:
                path = pathlib.Path(folder, name)
                self._tree.setdefault(node, {})[name] = child = self._node(path)
                if name in files:
                    self._files.add(child)
                    self._contents[child] = path.read_bytes()
        self._initial = dict(self._contents)
        around(self._record)
        remove = but(shutil, rmtree=lambda path, **_: self._remove(path))
        monkeypatch.setattr(cox, "shutil", remove)

    def _node(self, path):
        fd = os.open(path, os.O_RDONLY)
        self._kept_open.append(fd)  # or the number of its inode would be given again
        status = os.fstat(fd)
        return self._nodes.setdefault((status.st_dev, status.st_ino), len(self._nodes))

    def _known(self, path):
        status = os.stat(path)
        return self._nodes[status.st_dev, status.st_ino]

    def _place(self, path):
        folder, name = os.path.split(path)
        return self._known(folder), name

    def _remove(self, path):
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                self._remove(os.path.join(path, name))
            cox.os.rmdir(path)
        elif os.path.lexists(path):
            cox.os.unlink(path)

    def _record(self, call, name, *args):
        if name == "makedirs":
            return self._makedirs(args[0])
        if name == "open" and args[1] & os.O_CREAT and not os.path.lexists(args[0]):
            fd = call(*args)
            node = self._node(args[0])
            self._files.add(node)
            self.events.append(("link", *self._place(args[0]), node))
            return fd
        node = None
        if name in ("replace", "rename"):
            node = self._known(args[0])
            event = ("rename", *self._place(args[0]), *self._place(args[1]), node)
        elif name in ("unlink", "rmdir"):
            event = ("unlink", *self._place(args[0]))
        elif name in ("fsync", "write", "ftruncate"):
            status = os.fstat(args[0])
            node = self._nodes[status.st_dev, status.st_ino]
        result = call(*args)
        if name in ("write", "ftruncate"):
            content = self._contents.get(node, b"")
            content = content + args[1] if name == "write" else content[: args[1]]
            self._contents[node] = content
            event = ("data", node, content)
        elif name == "fsync":
            event = ("sync", node)
        elif name == "mkdir":
            event = ("link", *self._place(args[0]), self._node(args[0]))
        elif name in ("flock", "open"):
            return result
        self.events.append(event)
        return result

    def _makedirs(self, path):
        if not os.path.isdir(path):
            self._makedirs(os.path.dirname(path))
            cox.os.mkdir(path)

    def acknowledge(self, **tables_):
        """From here on these rows must outlive the machine."""
        self.acknowledged.append((len(self.events), tables_))

    def close(self):
        for fd in self._kept_open:
            os.close(fd)

    def die(self, rng, count, target):
        """Make what may be left after so many events; return what must be there."""
        loss = rng.choice((0, 0.2, 0.5, 0.9, 1))
        synced = {}  # by node: index of its last sync
        for i, (kind, node, *_) in enumerate(self.events[:count]):
            if kind == "sync":
                synced[node] = i
        tree = self._names_left(rng, count, synced, loss)
        page = rng.choice((512, 4096))

        def build(node, path):
            if node in self._files:
                seen = self._versions(node, count, synced)
                path.write_bytes(_mix_pages(rng, seen, page, loss))
                return
            path.mkdir()
            for name, child in tree.get(node, {}).items():
                build(child, path / name)

        build(self._top, target)
        must = {}
        for at, tables_ in self.acknowledged:
            must = tables_ if at <= count else must
        return must

    def _names_left(self, rng, count, synced, loss):
        """The directories: of what was not synced, some is lost."""
        tree = {node: dict(names) for node, names in self._tree.items()}
        is_ordered, is_over = rng.random() < 0.4, False
        for i, (kind, node, *more) in enumerate(self.events[:count]):
            if kind in ("data", "sync"):
                continue
            dirs = (node, more[1]) if kind == "rename" else (node,)
            if not any(i < synced.get(d, -1) for d in dirs):
                is_over |= is_ordered and rng.random() < loss / 4
                if is_over or (not is_ordered and rng.random() < loss):
                    continue
            names = tree.setdefault(node, {})
            if kind == "unlink":
                names.pop(more[0], None)
            elif kind == "link":
                names[more[0]] = more[1]
            else:
                name, to_node, to_name, moved = more
                if names.get(name) == moved:
                    del names[name]
                tree.setdefault(to_node, {})[to_name] = moved
        return tree

    def _versions(self, node, count, synced):
        """What a file held when it was last synced, and after each change since."""
        seen = [self._initial.get(node, b"")]
        for i, (kind, changed, *more) in enumerate(self.events[:count]):
            if kind == "data" and changed == node:
                seen = [] if i < synced.get(node, -1) else seen
                seen.append(more[0])
        return seen


def _mix_pages(rng, seen, page, loss):
    """A file of which some pages were not written, or not the last time."""
    size = len(rng.choice(seen) if rng.random() < loss else seen[-1])
    content = b""
    for at in range(0, size, page):
        version = rng.choice(seen) if rng.random() < loss else seen[-1]
        content += version[at : at + page].ljust(page, b"\0")
    return content[:size]


@pytest.fixture
def disk(tmp_path, around, monkeypatch):
    disks = []

    def install():
        (tmp_path / "disk").mkdir(exist_ok=True)
        disks.append(Disk(tmp_path / "disk", around, monkeypatch))
        return disks[-1]

    yield install
    for one in disks:
        one.close()


WIDE = {f"c{i}": float for i in range(60)}  # 500 bytes: a page has 8 rows


def _row_of(name, i):
    """The row of that index, whatever the table: all that is logged is known."""
    if name == "wide":
        return {column: i + j / 100 for j, column in enumerate(WIDE)}
    if name == "objects":
        return {"i": i, "x": ["object", i] * (i % 4)}
    return {"i": i, "note": f"{name} {i} " * (i % 7 if i < 12 else i % 40)}


SCHEMAS = {"wide": WIDE, "objects": {"i": int, "x": PICKLE}}


def _log_more(store, **counts):
    for name, count in counts.items():
        table = store.add_table(name, SCHEMAS.get(name, SCHEMA))
        for i in range(table.nrows, table.nrows + count):
            table.append_row(_row_of(name, i))


def _open(out, mode="a"):
    return Store(out, "run", mode=mode, history=False)


def _scene_text(disk, out):
    store = _open(out)
    _log_more(store, t=25)
    store.checkpoint()
    disk.acknowledge(t=25)
    _log_more(store, t=30)
    store.close()
    disk.acknowledge(t=55)
    store = _open(out)
    _log_more(store, t=20)
    store.checkpoint(export=False)
    disk.acknowledge(t=75)
    _log_more(store, t=10)
    die(store)


def _scene_objects(disk, out):
    store = _open(out)
    _log_more(store, objects=4)
    store.checkpoint()
    disk.acknowledge(objects=4)
    _log_more(store, objects=4)
    store.checkpoint(export=False)
    disk.acknowledge(objects=8)
    _log_more(store, objects=3)
    die(store)


def _scene_tables(disk, out):
    store = _open(out)
    for n in range(1, 4):
        _log_more(store, wide=9, t=7, u=1)
        _log_more(store, wide=4, u=3)
        store.checkpoint(export=n == 2)
        disk.acknowledge(wide=13 * n, t=7 * n, u=4 * n)
    _log_more(store, wide=9, t=7, late=3)
    die(store)


def _scene_killed(disk, out):
    for n in range(1, 4):
        store = _open(out)
        _log_more(store, wide=9, t=11, objects=2)
        for name in ("wide", "t", "objects"):
            path = out / "run" / ".tables" / f"{name}.rows"
            fd = cox.os.open(path, os.O_WRONLY | os.O_APPEND)
            cox.os.write(fd, b"half a record")
            os.close(fd)
        die(store)
        store = _open(out)
        if n > 1:
            _log_more(store, t=n)
        store.checkpoint(export=False)
        disk.acknowledge(wide=9 * n, t=11 * n + (n * n + n) // 2 - 1, objects=2 * n)
        _log_more(store, late=1)
        die(store)


def _scene_afresh(disk, out):
    store = _open(out)
    _log_more(store, t=9, objects=2, wide=9)
    store.close()
    disk.acknowledge(t=9, objects=2, wide=9)
    for n in (12, 3):
        disk.acknowledge()
        store = _open(out, "w")
        _log_more(store, t=n, objects=3, wide=2)
        store.checkpoint()
        disk.acknowledge(t=n, objects=3, wide=2)
        _log_more(store, t=5)
        die(store)


def _scene_conversion(disk, out):
    disk.acknowledge(t=12, other=2)
    store = _open(out)
    store["t"].append_row(_row_of("t", 12))
    store.checkpoint()
    disk.acknowledge(t=13, other=2)
    _log_more(store, t=5)
    die(store)


SCENES = {
    "text": _scene_text,
    "objects": _scene_objects,
    "tables": _scene_tables,
    "killed": _scene_killed,
    "afresh": _scene_afresh,
    "conversion": _scene_conversion,
}


def _rows_left(out, name, expected={}):  # noqa: B006 - they are kept, on purpose
    """The number of rows that are readable, each of them right; None for an error."""
    try:
        frame = Store(out, "run", mode="r")[name].df
    except CoxError:
        return None
    if name not in expected:
        rows = [_row_of(name, i) for i in range(100)]
        expected[name] = [tuple(row.values()) for row in rows]
    if name == "other":
        assert frame["x"].tolist() == [0.5, 1.5][: len(frame)]
    elif name == "objects":  # of the objects see _objects_left
        assert frame["i"].tolist() == list(range(len(frame)))
    else:
        assert rows_in(frame) == expected[name][: len(frame)]
    return len(frame)


def _objects_left(out, count):
    table = Store(out, "run", mode="r")["objects"]
    left = 0
    for i, uid in enumerate(table.df["x"]):
        try:
            value = table.get_pickle(uid)
        except (CoxError, FileNotFoundError):
            assert i >= count, "an object that was synced is gone"
            continue
        assert value == _row_of("objects", i)["x"]
        left += 1
    return left


def check_what_is_left(out, must, closes):
    """All that was synced reads back, nothing is wrong, and a Store goes on."""
    names = set(must)
    if any((out / "run" / name).exists() for name in (".tables", "store.h5")):
        names |= set(Store(out, "run", mode="r").keys)
    left = {name: _rows_left(out, name) for name in names}
    for name, count in must.items():
        assert left[name] is not None, f"{name} cannot be read"
        assert left[name] >= count, f"{name} lost rows"
    if left.get("objects"):
        _objects_left(out, must.get("objects", 0))
    store = _open(out)
    for name in names - {"other"} or {"t"}:
        if left.setdefault(name, 0) is not None:
            table = store.add_table(name, SCHEMAS.get(name, SCHEMA))
            table.append_row(_row_of(name, left[name]))
    store.close() if closes else store.checkpoint(export=False)
    for name in left.keys() - {"other"}:
        if left[name] is not None:
            assert _rows_left(out, name) == left[name] + 1
    die(store)


def replay(scene, disk, count, seed, tmp_path, monkeypatch):
    """Let the machine die at `count` moments of a scene; look at what is left."""
    if scene == "conversion":
        notes = [_row_of("t", i)["note"] for i in range(12)]
        make_original_store(
            tmp_path / "disk" / "out" / "run",
            t=(SCHEMA, pd.DataFrame({"i": range(12), "note": notes})),
            other=({"x": float}, pd.DataFrame({"x": [0.5, 1.5]})),
        )
    recorded = disk()
    SCENES[scene](recorded, tmp_path / "disk" / "out")
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(logging.getLogger("cox"), "disabled", True)
    rng = random.Random(seed)
    for number in range(count):
        at = rng.randrange(len(recorded.events) + 1)
        target = tmp_path / f"left{number}"
        must = recorded.die(random.Random(f"{seed} {number}"), at, target)
        try:
            check_what_is_left(target / "out", must, closes=number % 25 == 0)
        except BaseException as error:
            raise AssertionError(f"{scene} {number} at {at}: {error!r}") from error
        shutil.rmtree(target)
    return len(recorded.events)


@pytest.mark.parametrize("scene", SCENES)
def test_a_machine_that_dies_takes_nothing_that_was_synced(
    scene, disk, tmp_path, monkeypatch, quiet, damage
):
    count = 2 if scene == "conversion" else 9
    assert replay(scene, disk, count, 0, tmp_path, monkeypatch) > 30


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_a_machine_that_dies_a_thousand_times(
    scene, disk, tmp_path, monkeypatch, quiet, damage
):
    replay(scene, disk, 1500, 1, tmp_path, monkeypatch)


@pytest.fixture(params=["rlimit", "tmpfs"])
def small_disk(request, tmp_path):
    """A directory on a disk of 300 kB, or None where only a limit can be had."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if request.param == "rlimit" or shutil.which("mount") is None:
        yield None
    elif subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None  # not allowed here
    else:
        (disk / "ballast").write_bytes(bytes(200_000))
        yield disk
        for path in disk.rglob(".tables"):
            assert_consistent(path.parent)
        subprocess.run(["umount", str(disk)], check=True)


def _fill_the_disk(out, ballast):
    def limit(size):
        if not ballast.exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def log_until_full(table):
        for i in itertools.count(table.nrows):
            row = {"i": i, "note": f"row {i}", "more": os.urandom(99).hex()}
            try:
                table.append_row(row)
            except OSError:
                return i

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = Store(out, "run", history=False)  # else a patch may fill it first
    table = store.add_table("t", SCHEMA | {"more": str})
    table.append_row({"i": 0, "note": "row 0", "more": ""})
    store.checkpoint()
    path = out / "run" / "store.h5"
    old = path.read_bytes()
    limit(50_001)
    count = log_until_full(table)
    assert count > 50
    for _ in range(2):  # the second meets a disk that is full from the start
        assert_logged(table.df, count)
        assert_logged(read_frame(out / "run" / ".tables" / "t.rows"), count)
        count = log_until_full(table)
    limit(1000)
    for export in (store.checkpoint, store.close):
        with pytest.raises(OSError, match=r"\[Errno"):
            export()
        assert path.read_bytes() == old
        assert not list(out.rglob("*.new"))
    with pytest.raises(OSError, match=r"\[Errno"):
        store.add_table("big", {f"column {i}": float for i in range(2000)})
    with pytest.raises(KeyError):
        store.get_table("big")
    assert not list(out.rglob("*big*"))
    assert_logged(store["t"].df, count)
    limit(resource.RLIM_INFINITY)
    ballast.unlink(missing_ok=True)
    for i in range(count, count + 10):
        store["t"].append_row({"i": i, "note": f"row {i}", "more": ""})
    store.close()
    assert_logged(exported(out / "run")["t"], count + 10)


def test_a_full_disk_raises_loses_nothing_and_logging_goes_on(
    tmp_path, child, small_disk
):
    disk = small_disk or tmp_path
    child(_fill_the_disk, disk / "out", disk / "ballast").end()


###############################################################################
# Golden bytes
###############################################################################

GOLDEN_SCHEMA = {"i": int, "x": float, "ok": bool, "s": str, "t": str, "h": np.int16}
GOLDEN_ROWS = [
    {"i": -2, "x": 0.5, "ok": True, "s": "é", "t": "\ud800", "h": -3},
    {"i": 1, "x": -0.0, "ok": False, "s": "", "t": "", "h": 258},
]
GOLDEN_TEXT = b"\xc3\xa9\xed\xa0\x80"
GOLDEN = (
    b'{"cox": 2, "columns": {"i": "int", "x": "float", "ok": "bool", "s": "str", '
    b'"t": "str", "h": "int16"}, "check": 279191581}\n'
    b"\1\0\0\0\0\0\0\0"  # row 1
    b"\xfe\xff\xff\xff\xff\xff\xff\xff"  # i
    b"\0\0\0\0\0\0\xe0\x3f"  # x
    b"\1"  # ok
    b"\2\0\0\0\0\0\0\0"  # s: two bytes
    b"\3\0\0\0\0\0\0\0"  # t: three
    b"\xfd\xff"  # h
    b"\0\0\0\0\0\0\0\0"  # where the text starts
    b"\x0e\x85\xdf\x99\0\0\0\0"  # crc32 of the record so far, and its text
    b"\2\0\0\0\0\0\0\0"  # row 2
    b"\1\0\0\0\0\0\0\0"
    b"\0\0\0\0\0\0\0\x80"
    b"\0"
    b"\0\0\0\0\0\0\0\0"
    b"\0\0\0\0\0\0\0\0"
    b"\2\1"
    b"\5\0\0\0\0\0\0\0"
    b"\x94\x06\x9d\xa1\0\0\0\0"
)


def test_the_format_is_what_it_was(out, quiet):
    with Store(out, "run") as store:
        table = store.add_table("t", GOLDEN_SCHEMA)
        for row in GOLDEN_ROWS:
            table.append_row(row)
    directory = out / "run" / ".tables"
    assert (directory / "t.text").read_bytes() == GOLDEN_TEXT
    assert (directory / "t.rows").read_bytes() == GOLDEN
    older = make_run(out, "older") / ".tables"
    (older / "t.rows").write_bytes(GOLDEN)
    (older / "t.text").write_bytes(GOLDEN_TEXT)
    frame = Store(out, "older", mode="r")["t"].df
    for name, kind in GOLDEN_SCHEMA.items():
        values = as_column(kind, [row[name] for row in GOLDEN_ROWS])
        assert exact(frame[name]) == exact(values), name
    Store(out, "older").close()


def test_a_header_tells_every_kind_of_column(out):
    with Store(out, "run") as store:
        store.add_table("t", {name: kind for name, (kind, _) in KINDS.items()})
        store.add_table("s", {"é\ud800": PYTORCH_STATE})
    directory = out / "run" / ".tables"
    header = json.loads((directory / "t.rows").read_bytes())
    python_kinds = {k: k for k in ("int", "float", "bool", "str")}
    assert header["columns"] == python_kinds | {"OBJECT": OBJECT, "PICKLE": PICKLE} | {
        dtype.__name__: np.dtype(dtype).name for dtype in NUMPY_TYPES
    }
    assert (directory / "s.rows").read_bytes() == (
        check_line({"cox": 2, "columns": {"é\ud800": PYTORCH_STATE}})
    )


###############################################################################
# README and example
###############################################################################


def readme_blocks():
    """Language and text of each fenced block of README."""
    text = (HERE / "README.md").read_text()
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


# Programs of their own: see "Programs of others". The other blocks continue each other.
PROGRAMS = ("# train.py", "# With ")


def test_readme_shows_what_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed, shown = {}, "", 0
    for language, block in readme_blocks():
        if block.startswith(PROGRAMS):
            continue
        if language == "text":
            assert printed == block
            shown += 1
        elif language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, "README.md", "exec"), namespace)
            printed = output.getvalue()
    assert shown > 3


def test_readme_has_every_command_and_no_other(capsys):
    assert cox.main(["--help"]) == 0
    commands = set(re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M))
    lines = [
        line
        for language, block in readme_blocks()
        if language == "console"
        for line in re.findall(r"^\$ cox (.*)", block, re.M)
    ]
    assert {line.split()[0] for line in lines} == commands
    for line in lines:
        command, *args = shlex.split(line)
        options = {arg.split("=")[0] for arg in args if re.match("--?[a-z]", arg)}
        with pytest.raises(SystemExit):
            cox.main([command, "--help"])
        assert options <= set(re.findall(r"--?[a-z][a-z-]*", capsys.readouterr().out))


def test_the_example_runs_and_runs_again_beside_its_results(tmp_path, forked):
    code = (
        "import example_quadratic as e; e.STARTS = e.STARTS[:1]; "
        "e.TOLERANCES = e.TOLERANCES[:1]; e.main()"
    )
    for times in (1, 2):
        printed = forked("-c", code, "--out", tmp_path / "runs")
        assert f"({times * 5} runs" in printed  # of the 100 that it makes
        assert "python -m cox tb --logdir" in printed
    assert len(CollectionReader(tmp_path / "runs").df("metadata")) == 2 * 5


###############################################################################
# Programs of others
#
# Each runs in a process of its own, with what README shows of it in the middle.
# They need the dependency group `consumers`, and robustness without its own.
###############################################################################

# Warnings of cox, and those whose line is in cox.py, then show as "cox" on stderr.
LOUD = "import logging\nlogging.basicConfig()\n"


def readme_block(start):
    [block] = [text for _, text in readme_blocks() if text.startswith(start)]
    return block


def run_program(directory, *parts, args=(), needs=(), status=0):
    """Run the parts as one program, and see that cox has nothing to say of it."""
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    settings = {"KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    directory.mkdir(exist_ok=True)
    (directory / "program.py").write_text("\n".join((LOUD, *parts)))
    done = subprocess.run(
        [sys.executable, "program.py", *map(str, args)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(HERE)} | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert not re.search(r"Traceback|Exception ignored|\bcox\b", done.stderr), (
        done.stderr
    )
    return done.stdout


def collected(directory, table):
    return CollectionReader(directory / "runs").df(table)


def logged_values(directory):
    """What the event files of all runs hold: the values of each tag, in order."""
    found = {}
    for path in sorted((directory / "runs").glob("*/tensorboard/*")):
        for event in parse_records(path.read_bytes()):
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found.setdefault(value.tag, []).append(
                    value.simple_value if kind == "simple_value" else kind
                )
    return found


# torchvision does not import beside the CPU build of torch, and there is no GPU. Of
# the first it takes make_grid only; the rest is for data sets, which are not needed.
ROBUSTNESS = """
import sys, types
from unittest.mock import MagicMock
import torch

for name in ("", ".models", ".models.utils", ".transforms"):
    sys.modules[f"torchvision{name}"] = MagicMock()
sys.modules["torchvision.utils"] = types.SimpleNamespace(
    make_grid=lambda images: torch.cat(list(images), dim=2)
)
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self

import cox.utils
from robustness import main, train
from robustness.datasets import DataSet
from robustness.model_utils import make_and_restore_model

args = main.parser.parse_args([
    *"--out-dir runs --exp-name run --dataset cifar --arch none --log-iters 1".split(),
    *"--adv-train 1 --adv-eval 1 --constraint 2 --eps 0.5 --attack-lr 0.1".split(),
    *("--epochs", sys.argv[1]),
])
args = main.setup_args(cox.utils.Parameters(args.__dict__))
store = main.setup_store_with_metadata(args)

inputs = torch.utils.data.TensorDataset(torch.rand(16, 3, 4, 4), torch.arange(16) % 3)
loaders = [torch.utils.data.DataLoader(inputs, 8)] * 2
mean, std = torch.zeros(3), torch.ones(3)
shape = {"num_classes": 3, "transform_train": None, "transform_test": None}
dataset = DataSet("tiny", None, mean=mean, std=std, **shape)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
model, _ = make_and_restore_model(arch=net, dataset=dataset, add_custom_forward=True)
checkpoint = None
if sys.argv[2:]:
    checkpoint = torch.load(sys.argv[2], weights_only=False)
    weights = checkpoint["model"].items()
    model.load_state_dict({key.removeprefix("module."): w for key, w in weights})
train.train_model(args, model, loaders, store=store, checkpoint=checkpoint)
train.eval_model(args, model, loaders[1], store=store)
"""


@pytest.mark.consumer
def test_robustness_trains_and_goes_on_with_this_file_in_place_of_the_original(
    tmp_path,
):
    run = tmp_path / "runs" / "run"
    needs = ("torch", "robustness", "dill", "git")
    run_program(tmp_path, ROBUSTNESS, args=[2], needs=needs)
    run_program(tmp_path, ROBUSTNESS, args=[3, run / "checkpoint.pt.latest"])
    logs = collected(tmp_path, "logs").drop(columns="exp_id")
    assert logs["epoch"].tolist() == [1, 2, 0, 3, 0]  # 0: what eval_model logs
    assert logs["adv_prec1"].between(0, 100).all()
    assert logs["adv_loss"].gt(logs["nat_loss"]).all()  # it is what an attack is for
    pd.testing.assert_frame_equal(pd.read_hdf(run / "store.h5", "logs"), logs)
    for parameters in collected(tmp_path, "metadata")["params"]:
        assert parameters["eps"] == "0.5"
    values = logged_values(tmp_path)
    losses = logs["nat_loss"].astype(np.float32).tolist()
    assert sorted(values["nat_val_loss"]) == sorted(losses)
    assert len(values["adv_train_top1"]) == 3
    assert values["Adv input"] == ["image"] * 5


# How a process ends once it has logged so many rows of `train`.
KILLED = """
import os, signal, torch, cox
flush_row = cox.Table.flush_row

def flush_row_and_die(table):
    flush_row(table)
    if table.nrows == {}:
        os.kill(os.getpid(), signal.SIGKILL)

cox.Table.flush_row = flush_row_and_die
"""


@pytest.mark.consumer
def test_a_job_that_is_killed_and_requeued_ends_as_if_it_had_not_been(tmp_path):
    train = readme_block("# train.py")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for nrows in (7, 13):
        die = KILLED.format(nrows)
        run_program(killed, die, train, args=[3], needs=["torch"], status=-9)
    whole.mkdir()
    others = "train(*GRID[3]); train(*GRID[0])"  # of which one is finished
    others += "; os.chdir('../whole'); train(*GRID[3])"
    run_program(killed, "import os", train, others, args=[3])
    rows = collected(killed, "train").groupby("exp_id").get_group("lr=0.01,seed=1")
    assert rows["step"].tolist() == [*range(1, 8), *range(6, 12), *range(11, 21)]
    rows = rows.drop_duplicates("step", keep="last").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, collected(whole, "train"))
    for name, expected in ("metadata", [1, 1]), ("checkpoints", [4, 4]):
        assert collected(killed, name)["exp_id"].value_counts().tolist() == expected

    collect = "from cox import CollectionReader; reader = CollectionReader('runs')"
    show = "print('|', *best['exp_id'], *curves, '|', *curves.index)"
    parts = collect, readme_block("rows = reader"), show
    shown, found, steps = run_program(killed, train, *parts).split("|")
    ids = re.findall(r"lr=\S+$", shown, re.M)
    assert ids == ["lr=0.01,seed=1", "lr=0.003,seed=0", "lr=0.01,seed=1"]  # best first
    assert found.split() == [*ids[:2], "0.003", "0.01"]
    assert steps.split() == [*map(str, range(1, 21))]


@pytest.mark.consumer
def test_transformers_logs_through_its_tensorboard_callback(tmp_path):
    model = """
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers import Trainer, TrainingArguments

sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
config = BertConfig(num_hidden_layers=1, num_attention_heads=1, **sizes)
model = BertForSequenceClassification(config)
data = [{"input_ids": torch.arange(5), "labels": torch.tensor(i % 2)} for i in range(8)]
args = TrainingArguments("out", num_train_epochs=2, logging_steps=1, report_to="none")
"""
    recipe = readme_block("# With transformers")
    run_program(tmp_path, model, recipe, needs=["transformers", "accelerate"])
    values = logged_values(tmp_path)
    assert len(values["train/loss"]) == 2
    assert all(value > 0 for value in values["train/loss"])
    assert (
        values["args/text_summary"] == values["model_config/text_summary"] == ["tensor"]
    )
    [run] = CollectionReader(tmp_path / "runs").runs().to_dict("records")
    assert (run["status"], run["lr"], run["seed"]) == ("done", 5e-05, 42)


@pytest.mark.consumer
def test_keras_logs_a_row_for_each_epoch(tmp_path):
    model = """
import numpy as np
import keras

model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", metrics=["mae"])
x, y = np.ones((8, 3)), np.zeros(8)
"""
    check = """
for name, values in model.history.history.items():
    assert store["train"].df[name].tolist() == values
"""
    recipe = readme_block("# With keras")
    run_program(tmp_path, model, recipe, check, needs=["keras", "torch"])
    train = collected(tmp_path, "train")
    assert train["epoch"].tolist() == [0, 1, 2]
    assert [*train] == ["epoch", "loss", "mae", "val_loss", "val_mae", "exp_id"]


LIGHTNING = """
import lightning, torch

class Model(lightning.LightningModule):
    def __init__(self, lr, layers):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)

def fit(logger):
    data = torch.utils.data.DataLoader(torch.ones(8, 3), 4)
    cpu = {"accelerator": "cpu", "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=2, log_every_n_steps=1, logger=logger, **cpu)
    trainer.fit(Model(0.1, [64, 32]), data, data)
    trainer.validate(dataloaders=data)  # logs on, after finalize()
"""


@pytest.mark.consumer
def test_lightning_logs_by_a_logger_of_ours_and_by_its_own_on_our_writer(tmp_path):
    own = """
from lightning.pytorch.loggers import TensorBoardLogger

fit(CoxLogger("runs", "by-ours"))
with cox.Store("runs", "by-its-own") as store:
    logger = TensorBoardLogger("lightning")
    logger._experiment = store.writer
    fit(logger)
"""
    logger = readme_block("# With lightning")
    run_program(tmp_path, LIGHTNING, logger, own, needs=["lightning", "tensorboard"])
    [metadata] = collected(tmp_path, "metadata").to_numpy().tolist()
    assert metadata == [0.1, [64, 32], "by-ours"]
    log = collected(tmp_path, "log")
    curve = log[log["name"] == "loss"]
    assert curve["step"].tolist() == [0, 1, 2, 3]
    assert log["name"].tolist().count("val_loss") == 3
    values = logged_values(tmp_path)
    assert len(values["loss"]) == 2 * 4
    assert set(curve["value"].astype(np.float32)) <= set(values["loss"])
    assert "_hparams_/session_start_info" in values  # of save_hyperparameters()
    assert list((tmp_path / "runs" / "by-ours" / "save" / "checkpoints").iterdir())


@pytest.mark.consumer
def test_stable_baselines3_logs_by_an_output_of_ours_and_by_its_own_on_our_writer(
    tmp_path,
):
    model = """
from stable_baselines3 import A2C
model = A2C("MlpPolicy", "CartPole-v1", device="cpu")
"""
    own = """
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat

with cox.Store("runs", "by-its-own") as store:
    output = TensorBoardOutputFormat("sb3")
    output.writer = store.writer
    logger = Logger(folder=None, output_formats=[output, CoxOutput(store)])
    logger.record("hparams", HParam({"lr": 0.1}, {"reward": 0}))
    logger.record("phase", "warm-up", exclude="tensorboard")
    logger.record("reward", 3.0)
    logger.dump(1)
"""
    recipe = readme_block("# With stable_baselines3")
    run_program(
        tmp_path, model, recipe, own, needs=["stable_baselines3", "tensorboard"]
    )
    log = collected(tmp_path, "log")
    assert {"rollout/ep_rew_mean", "train/value_loss"} <= set(log["name"])
    own = log[log["exp_id"] == "by-its-own"].drop(columns="exp_id").to_numpy()
    assert own.tolist() == [[1, "reward", 3.0]]
    values = logged_values(tmp_path)
    assert values["reward"] == [3.0]
    assert "_hparams_/session_start_info" in values


@pytest.mark.consumer
def test_hydra_gives_its_configuration_as_metadata(tmp_path):
    config = "lr: 0.1\noptimizer:\n  name: sgd\n  betas: [0.9, 0.95]\n"
    (tmp_path / "config.yaml").write_text(config)
    arguments = ["lr=0.3"]
    run_program(tmp_path, readme_block("# With hydra"), args=arguments, needs=["hydra"])
    metadata = collected(tmp_path, "metadata").drop(columns="exp_id").iloc[0].to_dict()
    parameters = {"lr": 0.3, "optimizer.name": "sgd", "optimizer.betas": [0.9, 0.95]}
    assert metadata == parameters
