"""Keys of content: equal content, equal key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def content_key(*parts: Any) -> str:
    """A hash of JSON-able parts: equal content, equal key."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_key(path: Path) -> str:
    """A file's bytes, as a key."""
    return file_sha256(path)[:20]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
