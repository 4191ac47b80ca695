"""What a value that is also JSON is made of."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

# JSON has no infinity; an SQNR of equal outputs is one.
Number = Annotated[
    float,
    BeforeValidator(lambda x: float(x) if x in ("inf", "-inf", "nan") else x),
    PlainSerializer(lambda x: x if math.isfinite(x) else str(x), return_type=float | str),
]


class Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True
    )
