"""What the machine lacks - room, memory, rights, descriptors - told apart from what a file, a
compiler or this package gets wrong."""

from __future__ import annotations

import errno
import os

_LACKS = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EMFILE", "ENFILE", "EIO", "ENAMETOOLONG",
        "EACCES", "EPERM", "ELOOP", "EAGAIN", "ESTALE", "ETXTBSY", "ENXIO", "ENODEV",
    )
)  # fmt: skip
_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE)
_MEMORY = (
    os.strerror(errno.ENOMEM), "bad_alloc", "can't allocate memory", "Unable to allocate",
    "out of memory",
)  # fmt: skip
"""As libraries say it whose error is of no class of its own, and the system: whichever file was
opened, listed or mapped when there was none left is not to blame."""


def lacking(err: BaseException) -> str | None:
    """What the machine lacks, in words, where that is what an error or one of its causes is about;
    None where it is about something else.

    >>> lacking(OSError(errno.ENOSPC, "No space left on device", "runs/a"))
    'runs/a: No space left on device'
    >>> lacking(OSError(errno.ENOMEM, "Cannot allocate memory", "granplugin/cli"))
    'there is not enough memory'
    >>> lacking(ValueError("no number")) is None
    True
    """
    seen: set[int] = set()
    each: BaseException | None = err
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, MemoryError) or (isinstance(each, SystemError) and memory_limit()):
            return "there is not enough memory"  # a SystemError: of a module in C that got none
        if isinstance(each, OSError) and each.errno in _LACKS:
            return said_of(each)
        told = str(each)
        for number in _ROOM:  # a library that writes files itself has only the system's words
            if os.strerror(number) in told:
                return os.strerror(number)
        if any(words in told for words in _MEMORY):
            return "there is not enough memory"
        each = each.__cause__ or each.__context__
    return None


def memory_limit() -> int | None:
    """What this process may have, in bytes, where that is limited (ulimit -v)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def said_of(err: OSError) -> str:
    """The file, where the error has it, and the system's words.

    >>> said_of(OSError(errno.ENOENT, "No such file or directory", "a.yaml"))
    'a.yaml: No such file or directory'
    """
    said = err.strerror or str(err) or type(err).__name__
    return said if err.filename is None else f"{os.fsdecode(err.filename)}: {said}"
