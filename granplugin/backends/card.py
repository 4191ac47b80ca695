"""An engine's folder: its files, and a card that says what they were made of and that they are whole.

The card is written last and the folder renamed into place, so files without it are no engine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from granplugin.backends.base import Engine
from granplugin.errors import EngineError
from granplugin.store.keys import file_sha256

CARD = "engine.json"
_FORM = 4
Card = dict[str, Any]


def kept(
    out: Path,
    onnx: Path,
    made_of: Mapping[str, Any],
    make: Callable[[Path], tuple[Mapping[str, Any], Sequence[str]]],
) -> Card:
    """The card of the engine in `out`: of the one that is there, where it is intact and of the same
    ONNX and `made_of` (the library, its version, and what else makes it another), or else of what
    `make` leaves in the folder it is given. It returns what else the card says, and the files that
    are the engine. Where it raises, what is in `out` stays.
    """
    made_of = {"form": _FORM, "onnx_sha256": file_sha256(onnx), **made_of}
    card = _intact(out)
    if card is not None and {key: card.get(key) for key in made_of} == made_of:
        return card
    out.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(mkdtemp(dir=out.parent, prefix=".making-"))
    scratch = outer / out.name
    scratch.mkdir()
    try:
        said, files = make(scratch)
        hashes = {file: file_sha256(scratch / file) for file in files}
        card = {**made_of, **said, "files_sha256": hashes}
        (scratch / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(outer, ignore_errors=True)
    return card


def card_of(engine: Engine) -> Card:
    """Raises EngineError where the engine's files are not those its card was written for."""
    card = _intact(engine.path)
    if card is None:
        raise EngineError(
            f"{engine.path}: the engine's files are not as they were built; delete the folder "
            "and build it again"
        )
    return card


def _intact(folder: Path) -> Card | None:
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        hashes = card["files_sha256"]
        intact = bool(hashes) and hashes == {file: file_sha256(folder / file) for file in hashes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return card if intact else None
