"""What every schema is made of: strict frozen parts, numbers that JSON can hold, the machine."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

# JSON has no infinity; an SQNR of equal outputs is one.
Number = Annotated[
    float,
    BeforeValidator(lambda x: float(x) if x in ("inf", "-inf", "nan") else x),
    PlainSerializer(lambda x: x if math.isfinite(x) else str(x), return_type=float | str),
]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Machine(Part):
    """Where it was measured."""

    system: str
    processor: str
    cores: int = Field(description="Cores this process may use.")
    python: str
    packages: dict[str, str] = Field(description="Name -> version.")
