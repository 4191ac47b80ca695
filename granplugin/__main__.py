"""The command: one call, and the exit code of what came of it.

0 done; 1 a limit missed; 2 the user must change something; 3 an override not honoured; 4 cannot
tell; 70 our bug; 130 interrupted.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence

import granplugin
from granplugin.engines import ENGINES
from granplugin.errors import Unhonoured, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never raises."""
    from granplugin import cli

    try:
        code = cli.call(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as err:
        print(err, file=sys.stderr)
        return 2
    except Unhonoured as err:
        print(f"not honoured: {err}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted; the next run resumes here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone, as `head` does; Python would complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as err:
        print(f"{_crashed(err)}", file=sys.stderr)
        return 70


def run() -> None:
    """The installed command."""
    sys.exit(main())


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
