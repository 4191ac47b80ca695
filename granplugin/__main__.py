"""The command: one call, and the exit code of what came of it, whatever becomes of stdout.

0 done; 1 a limit missed; 2 the user must change something; 3 an override not honoured; 4 cannot
tell; 70 our bug; 128 + the signal's number, so 130 of ^C, interrupted.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from time import monotonic
from types import FrameType

import granplugin
from granplugin.engines import ENGINES
from granplugin.errors import Unhonoured, UserError
from granplugin.machine import lacking, said_of
from granplugin.stdout import Results, own_streams, results_to
from granplugin.visible import visible_lines


def main(argv: Sequence[str] | None = None, stdout: Results | None = None) -> int:
    """Run the command line; returns the exit code and never raises. Results go to `stdout`, by
    default the current one."""
    from granplugin import cli

    results = Results(sys.stdout) if stdout is None else stdout
    try:
        with results_to(results):
            _check_names(sys.argv[1:] if argv is None else argv)
            code = cli.call(sys.argv[1:] if argv is None else argv)
    except UserError as err:
        return _refused(str(err))
    except Unhonoured as err:
        _tell(f"not honoured: {err}")
        return 3
    except KeyboardInterrupt:
        _tell("interrupted; the next run resumes here")
        return 130
    except Exception as err:
        if said := lacking(err):
            return _refused(said)
        if isinstance(err, OSError) and err.errno is not None:
            return _refused(said_of(err))
        _tell(_crashed(err))
        return 70
    if results.lost is not None and not isinstance(results.lost, BrokenPipeError):
        _tell(f"the result could not be written to stdout: {results.lost}")
    return code


def run() -> None:
    """The installed command."""
    if sys.getfilesystemencoding() != "utf-8":
        # Names of files and what is printed are UTF-8, whatever the locale can spell.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    # By default it looks through what torch and modelopt are for a sixth of the time they load in.
    gc.set_threshold(10_000)
    results = own_streams()
    if _verb(sys.argv[1:]) not in _ALONE:
        from granplugin.crashes import outlived

        outlived(_tell)
    ended: list[tuple[int, float]] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append((number, monotonic()))
        if len(ended) == 1:
            raise KeyboardInterrupt
        if ended[-1][1] - ended[0][1] > _SAME_SECONDS:  # from who cannot wait
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)  # but nohup's, which is to be ignored
    code = main(stdout=results)
    sys.exit(128 + ended[0][0] if ended else code)


_SAME_SECONDS = 1.0
"""Within them, a signal is the one that was sent before: it comes from a terminal or to a group of
processes, and once more from the parent that hands it on (crashes)."""


_ALONE = {None, "check", "explain", "report", "runs", "clean", "schema"}
"""Verbs that run nothing of the user's or of an engine."""


def _verb(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _check_names(argv: Sequence[str]) -> None:
    """Reports are UTF-8 and name files; and relative names need a folder they start from."""
    try:
        places = [os.getcwd(), *argv]
    except FileNotFoundError:
        raise UserError("the current folder does not exist any more; change to another") from None
    for place in places:
        try:
            place.encode()
        except UnicodeEncodeError:
            raise UserError(f"{place}: its name is not UTF-8; rename it") from None


def _refused(said: str) -> int:
    _tell(said)
    return 2


def _tell(said: str) -> None:
    print(visible_lines(said), file=sys.stderr)


def _crashed(err: Exception) -> str:
    told = "".join(traceback.format_exception(err))
    head = f"granplugin {granplugin.__version__}, Python {platform.python_version()}\n"
    for name in ("torch", "modelopt", "onnx", *ENGINES, "numpy"):
        module = sys.modules.get(name)
        if module is not None:
            head += f"{name} {getattr(module, '__version__', '?')}\n"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="granplugin-", suffix=".log", delete=False
        ) as file:
            file.write(head + told)
    except OSError:  # a full disk; stderr is what is left
        return head + told
    said = (str(err).splitlines() or [""])[0]
    return (
        f"granplugin failed, which is a bug of granplugin: {type(err).__name__}: {said}; "
        f"please report it with {file.name}"
    )


if __name__ == "__main__":
    run()
