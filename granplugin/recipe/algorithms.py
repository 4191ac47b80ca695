"""modelopt's algorithms that change weights, as a rule names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from granplugin.suggest import did_you_mean

SVDQUANT = "svdquant"
MOVING = {"smoothquant": "alpha", "awq_lite": "alpha_step", SVDQUANT: "lowrank"}
"""Those that multiply an input by a scale for each channel and divide the weight by it, with the
parameter of each. svdquant then keeps the part of the weight that is of rank `lowrank` in float, as
two products beside the layer's. (awq_clip changes ranges alone.)"""
_LOWRANK = 32
"""modelopt's own (SVDQuantConfig)."""
NONE = "none"
"""Takes back what an earlier rule says."""
_ELSE = {
    "awq_full": "its second half, awq_clip, changes ranges alone; take awq_lite and calibrator: mse",
    "awq_clip": "it changes ranges alone; say calibrator: mse of the weight",
    "gptq": "it rounds the weights it finds itself, and what is exported here is rounded again",
}
"""What modelopt has besides, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One of MOVING, or NONE; `parameter` is its one number, modelopt's own default where None,
    which it never is for svdquant."""

    method: str
    parameter: float | None = None

    @property
    def told(self) -> dict[str, Any]:
        """As modelopt takes it: {"method": "smoothquant", "alpha": 0.5}."""
        more = {} if self.parameter is None else {MOVING[self.method]: self.parameter}
        return {"method": self.method, **more}

    def __str__(self) -> str:
        number = "" if self.parameter is None else f" {MOVING[self.method]} {self.parameter:g}"
        return f"{self.method}{number}"


def parse_algorithm(value: Any) -> Algorithm:
    """`smoothquant`, `{method: awq_lite, alpha_step: 0.05}`, `none`; ValueError, in one sentence,
    for others.

    >>> str(parse_algorithm({"method": "smoothquant", "alpha": 0.5}))
    'smoothquant alpha 0.5'
    """
    if isinstance(value, Algorithm):
        return value
    told = {"method": value} if isinstance(value, str) else value
    if not isinstance(told, dict) or not isinstance(told.get("method"), str):
        raise ValueError(f"an algorithm is {', '.join(MOVING)} or {{method: ..., alpha: ...}}")
    method = told["method"]
    if method == NONE and len(told) == 1:
        return Algorithm(NONE)
    if method in _ELSE:
        raise ValueError(f"{method} is not run: {_ELSE[method]}")
    if method not in MOVING:
        raise ValueError(f"unknown algorithm {method!r}{did_you_mean(method, [*MOVING, NONE])}")
    others = [key for key in told if key not in ("method", MOVING[method])]
    if others:
        raise ValueError(f"{method} has the parameter {MOVING[method]}, and no {others[0]!r}")
    number = told.get(MOVING[method])
    if method == SVDQUANT:
        return Algorithm(method, _rank(number))
    numeric = isinstance(number, (int, float)) and not isinstance(number, bool)
    if number is not None and not (numeric and 0 < number <= 1):
        raise ValueError(f"{MOVING[method]} is a number above 0 and at most 1, not {number!r}")
    return Algorithm(method, None if number is None else float(number))


def _rank(number: Any) -> int:
    if number is None:
        return _LOWRANK
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"lowrank is a whole number of at least 1, not {number!r}")
    return number


def _schema_of(method: str) -> dict[str, Any]:
    if method == SVDQUANT:
        return {"type": "integer", "minimum": 1}
    return {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


AlgorithmKey = Annotated[
    Algorithm,
    BeforeValidator(parse_algorithm),
    WithJsonSchema(
        {
            "description": "An algorithm of modelopt's that changes weights.",
            "oneOf": [
                {"enum": [*MOVING, NONE]},
                *(
                    {
                        "type": "object",
                        "properties": {
                            "method": {"const": method},
                            parameter: _schema_of(method),
                        },
                        "required": ["method"],
                        "additionalProperties": False,
                    }
                    for method, parameter in MOVING.items()
                ),
            ],
        }
    ),
]
