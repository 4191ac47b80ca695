"""How far three computations of a variant's numbers agree."""

from __future__ import annotations

from pydantic import Field

from granplugin.results.parts import Number, Part


class Agreement(Part):
    """How far the oracle, ONNX Runtime (optimizations off) and, where the source is a torch model,
    modelopt's fake-quant agree, on the values of every activation site and every weight."""

    sites: int
    values: int
    oracle_differs: int = Field(description="Values where ONNX Runtime is not the oracle's: 0.")
    modelopt_differs: int | None = Field(
        description="Values where modelopt rounds a tie the other way; null where it was not asked."
    )
    modelopt_worst_steps: float | None = Field(description="Largest such difference, in steps.")
    network_samples: int = Field(description="Samples for the two figures below.")
    network_agreement: float | None = Field(
        description="Percent of samples that ONNX Runtime and the other computation class the "
        "same: modelopt's network of a torch model, the oracle's arithmetic of an ONNX file."
    )
    network_sqnr_db: Number | None = Field(
        description="Of ONNX Runtime's outputs against the other's; null where none is a float."
    )
