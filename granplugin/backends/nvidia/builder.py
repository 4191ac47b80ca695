"""Many small builds, one after another in one process, which is started again behind a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Self

import onnx

from granplugin.backends.engine_plan import EnginePlan
from granplugin.backends.nvidia import build as building
from granplugin.backends.nvidia.plan_reader import read_plan
from granplugin.crashes import die_with_parent
from granplugin.errors import EngineError

_DONE = "done"


class Builder:
    """Builds in another process, which lives as long as nothing goes wrong in it."""

    def __init__(self, library: str, folder: Path, seconds: float = 60) -> None:
        self.library, self.folder, self.seconds = library, folder, seconds
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def build(self, model: onnx.ModelProto) -> EnginePlan:
        """Raises EngineError where the library refuses it, crashes or takes too long."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            return self._build(model, Path(name))

    def _build(self, model: onnx.ModelProto, folder: Path) -> EnginePlan:
        onnx.save(model, folder / "cell.onnx")
        request = {
            "library": self.library,
            "onnx": str(folder / "cell.onnx"),
            "folder": str(folder),
            **asdict(building.Options(seconds=self.seconds)),
        }
        process = self.process = self.process or _started()
        with suppress(BrokenPipeError):  # if it has ended, the wait says how
            _pipe(process).write(json.dumps(request).encode() + b"\n")
            _pipe(process).flush()
        self._wait(process, folder / _DONE)
        answer = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        if "refused" in answer:
            raise EngineError(answer["refused"])
        written = next(path for file in building.LAYERS if (path := folder / file).exists())
        return read_plan(written.read_text(encoding="utf-8"))

    def _wait(self, process: subprocess.Popen[bytes], done: Path) -> None:
        end = monotonic() + self.seconds
        while not done.exists():
            code = process.poll()
            if code is not None or monotonic() > end:
                self._end()
                if code is None:
                    raise EngineError(f"it took more than {self.seconds:g} s")
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise EngineError(f"the compiler crashed ({name})")
            sleep(0.002)

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with suppress(BrokenPipeError):
                _pipe(self.process).close()
            self.process = None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None, "it was started with one"
    return process.stdin


def main() -> None:
    """Builds what each line of the standard input says, and marks its folder when that is done."""
    die_with_parent(int(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        building.answer(request)
        (Path(request["folder"]) / _DONE).touch()


if __name__ == "__main__":
    main()
