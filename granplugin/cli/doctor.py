"""`granplugin doctor`."""

from __future__ import annotations

from granplugin.cli import Json


def doctor(json_: Json = False) -> int:
    """What is installed, which engines work, and why the others do not."""
    from granplugin.pipelines.doctor import examine, lines

    found = examine()
    print(found.model_dump_json(indent=1) if json_ else "\n".join(lines(found)))
    return 0 if not found.missing else 2
