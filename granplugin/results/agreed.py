"""How far three computations of a variant's numbers agree."""

from __future__ import annotations

from pydantic import Field

from granplugin.results.parts import Number, Part


class Agreement(Part):
    """How far the oracle, ONNX Runtime (optimizations off) and modelopt's fake-quant agree, on
    the values of every activation site and every weight."""

    sites: int
    values: int
    oracle_differs: int = Field(description="Values where ONNX Runtime is not the oracle's: 0.")
    modelopt_differs: int = Field(description="Values where modelopt rounds a tie the other way.")
    modelopt_worst_steps: float = Field(description="Largest such difference, in steps.")
    network_samples: int = Field(description="Samples for the two figures below.")
    network_agreement: float | None = Field(
        description="Percent of samples that modelopt's network and ONNX Runtime class the same."
    )
    network_sqnr_db: Number | None = Field(
        description="Of ONNX Runtime's outputs against modelopt's; null where none is a float."
    )
