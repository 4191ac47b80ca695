"""Keys of content: equal content, equal key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def content_key(*parts: Any) -> str:
    """A hash of JSON-able parts: equal content, equal key."""
    return text_sha256(json.dumps(parts, sort_keys=True, default=str))[:20]


def file_key(path: Path) -> str:
    """A file's bytes, as a key."""
    return file_sha256(path)[:20]


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
