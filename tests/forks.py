"""Processes of their own for tests, without the seconds that torch and modelopt take to import.

A server has imported torch, modelopt and the package, and has run none of it: on one thread, so it
may fork (which is why the engines, whose imports start threads, are not among them). Each of its children is a process as `python -c` or the installed command would be - arguments,
environment, folder, signals, exit code -, begun in milliseconds. All workers share one server.

    forks.run(["granplugin", "plan", recipe])       # the installed command
    forks.run(["-c", "import torch; print(1)"])     # python -c
    with forks.start([...]) as process:             # to kill, or to wait for

What a child cannot show is how an import fails, or what one prints: see `Forks.said`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter import share_what_exports_have_in_common

from granplugin import progress

# -- the server ------------------------------------------------------------------------------------


IMPORTED = (
    "onnxscript",
    "torch.onnx._internal.exporter._core",
    "granplugin.audits.audit",
    "granplugin.graph.edit.qdq",
    "granplugin.measures.intervals",
    "granplugin.modelopt_bridge.library",
    "granplugin.network.export",
    "granplugin.report.build.run",
    "granplugin.runs.session",
    "granplugin.sources.torch_network",
)


def import_all() -> None:
    for name in IMPORTED:
        importlib.import_module(name)


def serve(path: str) -> dict[str, Any]:
    """What a child was asked for; only children return, each once."""
    import_all()
    share_what_exports_have_in_common()
    progress.SECONDS = 3600.0  # as conftest does
    threads = os.listdir("/proc/self/task") if os.path.exists("/proc/self/task") else [""]
    assert len(threads) == 1, f"{len(threads)} threads: a child would have one of them"
    gc.collect()
    gc.freeze()  # a child that looked at all of it would copy it
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen(64)
    os.rename(path + ".new", path)  # it is there when it answers
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    clients: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(listening, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listening:
                    client, _ = listening.accept()
                    clients.add(client)
                    selector.register(client, selectors.EVENT_READ)
                elif key.fileobj == ended:
                    os.read(ended, 4096)
                    while children:
                        pid, status = os.waitpid(-1, os.WNOHANG)
                        if not pid:
                            break
                        with contextlib.suppress(OSError):
                            code = os.waitstatus_to_exitcode(status)
                            children.pop(pid).sendall(f"{code}\n".encode())
                else:
                    client = key.fileobj
                    text, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
                    if not text:  # it went away
                        selector.unregister(client)
                        clients.discard(client)
                        client.close()
                        if not clients:
                            shutil.rmtree(os.path.dirname(path))
                            os._exit(0)
                        continue
                    asked = json.loads(text)
                    pid = os.fork()
                    if not pid:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        for each in (listening, *clients):
                            each.close()
                        os.close(ended), os.close(ending)
                        for number, file in enumerate(files):
                            os.dup2(file, number)
                            os.close(file)
                        return asked
                    for file in files:
                        os.close(file)
                    children[pid] = client
                    client.sendall(f"{pid}\n".encode())


def become(asked: Mapping[str, Any]) -> None:
    """The process that was asked for, to its end. It ends as Python does, but for taking down each
    module: that takes a second, for as much as is imported."""
    code = 0
    try:
        _run(asked)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except OSError:
            code = 120
    os._exit(code)


def _run(asked: Mapping[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    for name, limit in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    # ruff: noqa: SIM115 - as long as the process
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1 if os.isatty(1) else -1)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    program, *words = asked["argv"]
    if program == "-c":
        code, *words = words
        sys.argv, sys.path[0] = ["-c", *words], ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        from granplugin.__main__ import run

        sys.argv, sys.path[0] = [program, *words], os.path.dirname(sys.executable)
        run()


# -- its clients -----------------------------------------------------------------------------------

BEGUN = "GRANPLUGIN_FORKS"


class Process:
    """A child of the server: as subprocess.Popen, as far as that goes."""

    def __init__(self, server: socket.socket, stdout: Any, stderr: Any) -> None:
        self._server, self._lines = server, server.makefile()
        self.stdout, self.stderr = stdout, stderr
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._lines.readline())
            self._server.close()
        return self.returncode

    def poll(self) -> int | None:
        with selectors.DefaultSelector() as selector:
            if self.returncode is None:
                selector.register(self._server, selectors.EVENT_READ)
                return self.wait() if selector.select(0) else None
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *raised: object) -> None:
        self.wait()


class Forks:
    """The server that all workers of one test run share; it ends with the last of them."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the same for all of them."""
        from filelock import FileLock

        with FileLock(folder / "forks.lock"):
            at = folder / "forks.txt"
            try:
                self._place = Path(at.read_text())
                self._open = self._connected()
            except OSError:
                if not self._begun():
                    # A socket's path is short, and a worker's folder may be none.
                    self._place = Path(tempfile.mkdtemp(prefix="forks-")) / "socket"
                    self._begin()
                    self._open = self._connected()
                at.write_text(str(self._place))

    def _begun(self) -> bool:
        """Whether there is one already, which whoever began the tests told as its process and
        socket: it has imported while they were not installed yet."""
        pid, _, place = os.environ.get(BEGUN, "").partition(" ")
        self._place, end = Path(place), time.monotonic() + 60
        try:
            while not self._place.exists():
                os.kill(int(pid), 0)
                if time.monotonic() > end:
                    return False
                time.sleep(0.02)
            self._open = self._connected()
        except (OSError, ValueError):
            return False
        return True

    def _begin(self) -> None:
        with open(self._place.with_name("said"), "w") as said:
            command = [sys.executable, __file__, self._place]
            server = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        while not self._place.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.05)
                raise RuntimeError(f"no process can be forked: {self.said}")

    @property
    def said(self) -> str:
        """What the imports printed: nothing."""
        return self._place.with_name("said").read_text()

    def _connected(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._place))
        return server

    def start(
        self,
        argv: Sequence[object],
        *,
        stdout: Any = None,
        stderr: Any = None,
        cwd: object = ".",
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Process:
        """`["-c", code, ...]`, or `["granplugin", ...]`; `limits` by names as RLIMIT_FSIZE.
        Without stdout and stderr, files both, what it prints is nowhere."""
        asked = {
            "argv": [str(word) for word in argv],
            "cwd": os.path.abspath(str(cwd)),
            "env": dict(os.environ if env is None else env),
            "limits": dict(limits or {}),
        }
        server = self._connected()
        with open(os.devnull, "r+") as nowhere:
            files = [each or nowhere for each in (None, stdout, stderr)]
            socket.send_fds(server, [json.dumps(asked).encode()], [f.fileno() for f in files])
        return Process(server, stdout, stderr)

    def run(self, argv: Sequence[object], **more: Any) -> subprocess.CompletedProcess[str]:
        """As subprocess.run(..., capture_output=True, text=True)."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            code = self.start(argv, stdout=stdout, stderr=stderr, **more).wait()
            for file in (stdout, stderr):
                file.seek(0)
            return subprocess.CompletedProcess(argv, code, stdout.read(), stderr.read())

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Forks]:
    forks = Forks(folder)
    try:
        yield forks
    finally:
        forks.close()


if __name__ == "__main__":
    become(serve(sys.argv[1]))
