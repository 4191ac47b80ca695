"""What several schemas have: the machine."""

from __future__ import annotations

from pydantic import Field

from granplugin.results.parts import Part


class Machine(Part):
    """Where it was measured."""

    system: str
    processor: str
    cores: int = Field(description="Cores this process may use.")
    python: str
    packages: dict[str, str] = Field(description="Name -> version.")
