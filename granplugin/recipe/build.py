"""The section `build`: how engines are built."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from granplugin.engines import TARGETS
from granplugin.recipe.strict import File, OneOf, OrAlone, Positive, Strict, at_key


class Shapes(Strict):
    """The shapes of one input that an engine is built for."""

    min: list[Positive] = Field(
        min_length=1, description="The smallest; axis 0 is the batch.", examples=[[1, 3, 224, 224]]
    )
    opt: list[Positive] = Field(
        min_length=1, description="The one it is tuned for.", examples=[[8, 3, 224, 224]]
    )
    max: list[Positive] = Field(
        min_length=1, description="The largest.", examples=[[32, 3, 224, 224]]
    )

    @model_validator(mode="after")
    def _ordered(self) -> Shapes:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max have one number per axis of the input")
        for low, high in (("min", "opt"), ("opt", "max")):
            if any(a > b for a, b in zip(getattr(self, low), getattr(self, high), strict=True)):
                raise at_key(
                    high, f"{high} {getattr(self, high)} is below {low} {getattr(self, low)}"
                )
        return self


class Build(Strict):
    """How TensorRT and TensorRT-RTX build; other engines take no notice."""

    targets: Annotated[list[Annotated[str, OneOf("target", TARGETS)]], OrAlone(least=0)] = Field(
        default=[],
        description="GPUs to build for, TensorRT-RTX only; default: all it can (sm80 and newer). "
        "TensorRT builds for the GPU it runs on.",
        examples=[["sm86", "sm89"]],
    )
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None,
        description="0 builds fast, 5 looks longest; default: the library's own, 3.",
        examples=[5],
    )
    workspace_mb: Positive | None = Field(
        default=None, description="Most scratch memory of a layer.", examples=[1024]
    )
    timing_cache: File | None = Field(
        default=None,
        description="File of kernel timings to use and extend, TensorRT only.",
        examples=["timing.bin"],
    )
    shapes: dict[str, Shapes] = Field(
        default={},
        description="Input -> {min, opt, max}; default: any batch up to data.batch_size where it "
        "can run, else that batch size alone.",
        examples=[
            {"image": {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [32, 3, 224, 224]}}
        ],
    )
    seconds: float = Field(
        default=600.0, gt=0, description="A build that takes longer is ended.", examples=[1800.0]
    )
    memory_mb: Positive | None = Field(
        default=None,
        description="One that takes more is ended; default: 0.9 of what is free.",
        examples=[8192],
    )
