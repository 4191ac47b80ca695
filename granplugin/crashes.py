"""Calls that may take the whole process with them: a parent that outlives it says which call it was,
and has the verb done again without that one.

An engine's library runs in the process of the verb, where it can crash (SIGSEGV, SIGABRT). Such a
call is marked in memory that a parent shares, which does nothing but wait: it costs a fork of a
process that has nothing loaded. What was made until then is kept by content, so that the second time
is short; and there, the call is refused as if the engine had refused it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import mmap
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from granplugin.errors import EngineError
from granplugin.machine import memory_limit

_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
    if hasattr(signal, name)
}
_HANDED = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
}
"""Signals that are handed on to the child, which may have got them too: it takes two for one."""
_OF_ONE_ENGINE = 3
"""Crashes of an engine, after which nothing more is asked of it."""
_ROOM = 2**16
LACKING = 74
"""The exit code (sysexits' EX_IOERR) of a process that the machine lacks something for."""


@dataclass(frozen=True)
class Call:
    """A call of an engine's library: `act` in words, of a file or a folder, if it is of one, with
    what else it was asked for. Two calls are the same where these and what is in `path` are."""

    engine: str
    act: str
    path: str = ""
    asked: str = ""

    @property
    def said(self) -> str:
        return " ".join(filter(None, [self.act, Path(self.path).name]))


@dataclass(frozen=True)
class Crash:
    """What a process died of, in which call; `content` is the hash of what its path had."""

    call: Call
    content: str | None
    signal: str

    def again(self, call: Call) -> bool:
        """Whether this call is the same once more."""
        ours, theirs = ((each.engine, each.act, each.asked) for each in (self.call, call))
        return ours == theirs and self.content == _content(call.path)


_shared: mmap.mmap | None = None
"""Where the parent reads the calls that are going on; None without one."""
_running: list[Call] = []
_known: list[Crash] = []


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Around a call that may crash. Raises EngineError where it did, or its engine did so often."""
    for crash in _known:
        if crash.again(call):
            raise EngineError(f"{call.engine} crashed ({crash.signal}) {call.said}")
    own = [crash for crash in _known if crash.call.engine == call.engine]
    if len(own) >= _OF_ONE_ENGINE:
        raise EngineError(
            f"{call.engine} crashed {len(own)} times ({own[-1].signal}), last {own[-1].call.said}; "
            "nothing more was asked of it"
        )
    _running.append(call)
    _mark()
    try:
        yield
    finally:
        _running.remove(call)
        _mark()


def _mark() -> None:
    if _shared is None:
        return
    calls = json.dumps([vars(call) for call in _running[-8:]]).encode()
    if len(calls) < _ROOM - 8:
        _shared[8 : 8 + len(calls)] = calls
        _shared[:8] = len(calls).to_bytes(8, "little")


def outlived(tell: Callable[[str], None]) -> None:
    """From here on in a child of this process, which ends as its child does. It waits, hands on what
    it is sent, and starts another where a marked call took the first with it; `tell` gets the
    sentences. Where no process can be forked or none would end with its parent, there is none."""
    global _shared
    if sys.platform != "linux":
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nothing could be waited for
    while True:
        parent = os.getpid()
        try:
            _shared = mmap.mmap(-1, _ROOM)
            places = os.fdopen(os.memfd_create("places"), "w+b")
            signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED)
            child = os.fork()
        except OSError:  # nothing is left for it: what lacks is told where it is needed
            _shared = None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED)
            return
        if not child:
            die_with_parent(parent)
            faulthandler.enable(places, all_threads=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED)
            return
        status = _waited(child)
        if not os.WIFSIGNALED(status):
            _end(os.WEXITSTATUS(status))
        said, again = _told(signal.Signals(os.WTERMSIG(status)), places)
        places.close()
        if said is None:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        else:
            tell(said)
        if not again:
            _end(2)


def _waited(child: int) -> int:
    """The status that the child ends with; what this process is told to end by, the child is."""
    before = {}
    for number in _HANDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED)
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(code: int) -> None:
    """At once: what a process does at its end, the child has done."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    os._exit(code)


def _told(number: signal.Signals, places: IO[bytes]) -> tuple[str | None, bool]:
    """What there is to say of a child that a signal ended, and whether the verb is done again."""
    assert _shared is not None
    calls = json.loads(_shared[8 : 8 + int.from_bytes(_shared[:8], "little")] or b"[]")
    call = Call(**calls[-1]) if calls else None
    where = f" while {call.engine} was {call.said}" if call else ""
    if number == signal.SIGKILL:
        return f"the process was killed{where}, most likely for want of memory", False
    if number not in _CRASHES:
        return None, False
    if limit := memory_limit():
        return (
            f"the process ended with {number.name}{where}, most likely for want of memory: "
            f"ulimit -v allows it {limit // 2**20} MB",
            False,
        )
    if call is None:
        return (
            f"the process crashed ({number.name}) {_place(places)}; what was made before is kept, "
            "and the next run goes on from there",
            False,
        )
    _known.append(Crash(call, _content(call.path), number.name))
    return f"{call.engine} crashed ({number.name}) {call.said}; going on without that", True


def _place(places: IO[bytes]) -> str:
    """Where Python was, of what faulthandler wrote: the innermost call, and the innermost of the
    user's or of ours, if that is another."""
    places.seek(0)
    text = places.read().decode(errors="replace")
    frames = re.findall(r'File "(.*)", line (\d+) in (\S+)', text)
    if not frames:
        return "outside of Python"
    libraries = (sys.base_prefix, sys.prefix)
    own = next((each for each in frames if not each[0].startswith(libraries)), frames[0])
    names = ["{}:{}, in {}".format(*each) for each in dict.fromkeys([frames[0], own])]
    return f"in {', called by '.join(names)}"


def _content(path: str) -> str | None:
    """What is in a file or a folder, but for cards, which say when it was made; None where there is
    none."""
    if not path:
        return None
    top = Path(path)
    files = [top] if top.is_file() else sorted(top.rglob("*")) if top.is_dir() else []
    digest = hashlib.sha256()
    try:
        for file in files:
            if file.is_file() and file.name != "engine.json":
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError:
        return None
    return digest.hexdigest() if files else None


def die_with_parent(parent: int) -> None:
    """Have the system end this process with the one that started it, whatever that dies of."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before this was said
        sys.exit(LACKING)
