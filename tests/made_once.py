"""What several tests make of the same content is made once, whichever of them is first: the float
ONNX of a network, and TensorRT-RTX's engine of a file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from granplugin.store.companions import companions


@contextmanager
def sharing(pool: Path) -> Iterator[None]:
    """`pool` is a folder, which all workers may share."""
    pool.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        _share_exports(pool, patched)
        _share_engines(pool, patched)
        yield


def _share_exports(pool: Path, patched: pytest.MonkeyPatch) -> None:
    """A run's export is named by all that it depends on."""
    from granplugin.store.cache import Cache

    made = Cache.made

    def shared(
        cache: Cache, stage: str, key: str, suffix: str, make: Callable[[Path], None]
    ) -> Path:
        kept = pool / f"{stage}-{key}{suffix}"

        def lent(path: Path) -> None:
            if kept.exists():
                shutil.copy(kept, path)
                return
            make(path)
            if not companions(path):
                os.replace(shutil.copy(path, f"{kept}.{os.getpid()}"), kept)

        return made(cache, stage, key, suffix, lent if stage == "float" else make)

    patched.setattr(Cache, "made", shared)


def _share_engines(pool: Path, patched: pytest.MonkeyPatch) -> None:
    """A build is asked for with all that it depends on, but for a cache of timings."""
    from granplugin.backends.nvidia import build

    run_build = build.run_build

    def shared(library: str, onnx: Path, folder: Path, options: build.Options) -> dict[str, Any]:
        if options.timing_cache or companions(onnx):
            return run_build(library, onnx, folder, options)
        asked = json.dumps([library, asdict(options)], sort_keys=True).encode()
        kept = pool / sha256(asked + onnx.read_bytes()).hexdigest()
        if not kept.exists():
            told = run_build(library, onnx, folder, options)
            making = Path(tempfile.mkdtemp(dir=pool))
            shutil.copytree(folder, making, dirs_exist_ok=True)
            (making / TOLD).write_text(json.dumps(told))
            try:
                making.rename(kept)
            except OSError:  # the other worker was first
                shutil.rmtree(making)
            return told
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        (folder / TOLD).unlink()
        return json.loads((kept / TOLD).read_text())

    patched.setattr(build, "run_build", shared)


TOLD = "told.json"
