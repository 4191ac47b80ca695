"""What several schemas have: the machine, and how much is quantized."""

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


class MovedBytes(Part):
    """Bytes that kernels read and write for one batch, by the engine's plan; null where it leaves
    sizes open or does not tell constants."""

    activations: int | None
    weights: int | None = Field(
        description="Read; where a kernel dequantizes them at run time, also written and read again."
    )
    scales: int | None = Field(
        description="What has a value for each channel or one at all; biases are among them."
    )
    other: int | None = Field(description="Other constants: zeros to pad with, tables.")
    total: int | None


class FloatProducts(Part):
    """Products that stay float for one reason."""

    what: str = Field(description="The module's class, or the function and the class it is in.")
    reason: str
    products: int
    macs: int = Field(description="Multiply-accumulates for one sample; 0: not known.")
    places: list[str] = Field(description="The modules, each once.")


class Coverage(Part):
    """How much of what the network multiplies is quantized."""

    products: int = Field(description="Of the whole network, in layers with sites or not.")
    quantized: int = Field(description="Of these, with an operand in fewer bits.")
    half: int = Field(description="Of the quantized, with only one operand in fewer bits.")
    macs: int = Field(description="Multiply-accumulates for one sample.")
    quantized_macs: int
    weights: int = Field(description="Values of stored tensors that are multiplied.")
    quantized_weights: int
    floats: list[FloatProducts] = Field(description="Most multiply-accumulates first.")
