"""What belongs to a file and lies beside it: the weights that an ONNX file is too small for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SUFFIX = ".weights"


def companions(path: Path) -> list[Path]:
    """The files of weights that a file names; their names are their content, so the file's bytes
    tell these too."""
    there = sorted(path.parent.glob(f"*{SUFFIX}")) if path.is_file() else []
    content = path.read_bytes() if there else b""
    return [each for each in there if each.name.encode() in content]


def whole_bytes(path: Path) -> int:
    """How large a file is with what belongs to it. Raises OSError."""
    return sum(each.stat().st_size for each in (path, *companions(path)))


def put_beside(path: Path, target: Path) -> list[Path]:
    """Copy the companions of `path` beside `target`, where they are not there already: as no links,
    which readers of ONNX refuse for the weights of a file. Returns the new ones; raises OSError."""
    made = []
    for each in companions(path):
        beside = target.parent / each.name
        if not beside.exists():
            scratch = beside.with_name(f".{beside.name}.new")
            shutil.copyfile(each, scratch)
            os.replace(scratch, beside)
            made.append(beside)
    return made
