"""What is installed, which engines work, why others do not."""

from __future__ import annotations

from granplugin.cli import Json, show


def doctor(json_: Json = False) -> int:
    """What is installed, which engines work, and why the others do not."""
    from granplugin.pipelines.doctor import examine

    examined = examine()
    show(examined, json_)
    return 0 if not examined.missing else 2
