"""What stages made, in a folder, named by the content they depend on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from granplugin.errors import RunError
from granplugin.store.companions import companions

log = logging.getLogger(__name__)


class Cache:
    """A folder of files that are complete, because they were renamed into place; `used` are those
    that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[Path] = set()

    def path(self, name: str) -> Path:
        """Where a stage keeps what it makes itself."""
        path = self.folder / name
        self.used.add(path)
        return path

    def made(self, stage: str, key: str, suffix: str, make: Callable[[Path], None]) -> Path:
        """The file or folder `make` writes for this key; made only if it is not there."""
        path = self.path(f"{stage}-{key}{suffix}")
        if path.exists():
            log.debug("%s is reused: %s", stage, path.name)
            self.used.update(companions(path))
            return path
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".making-"))
        try:
            target = scratch / path.name
            make(target)
            for other in companions(target):
                os.replace(other, self.path(other.name))
            os.replace(target, path)
        except OSError as err:
            raise RunError(f"{path}: cannot be written: {err.strerror or err}") from err
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return path

    def made_json(self, stage: str, key: str, make: Callable[[], Any]) -> Any:
        """As `made`, for a JSON value."""

        def write(path: Path) -> None:
            path.write_text(json.dumps(make()))

        path = self.made(stage, key, ".json", write)
        return json.loads(path.read_text())
