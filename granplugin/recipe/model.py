"""The section `model`: where the network comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from granplugin.recipe.strict import (
    Callable,
    File,
    OneOf,
    Strict,
    Target,
    at_key,
    unknown_key,
)

BATCH = "batch"
"""The name of axis 0 of every input in a file."""


def _axis(value: Any) -> Any:
    """The number that a key of YAML, which is a text, stands for."""
    if not str(value).isdecimal() or not int(value):
        raise ValueError(f"an axis is a number from 1, as the batch is axis 0; not {value!r}")
    return int(value)


Axis = Annotated[int, BeforeValidator(_axis, json_schema_input_type=int)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]


@dataclass(frozen=True)
class FileForm:
    """How a network's file is written: which sizes of its inputs it leaves open, the `dynamic` axes of
    an input, by name, and the batch, axis 0, where that is not static; and the domains of operators
    that are in it as they are."""

    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    static_batch: bool = False
    custom_ops: tuple[str, ...] = ()

    def of(self, name: str) -> dict[int, str]:
        """The open axes of an input, each with its name."""
        return {**({} if self.static_batch else {0: BATCH}), **self.dynamic.get(name, {})}

    def __str__(self) -> str:
        """What is open, in words.

        >>> str(FileForm({"image": {2: "height"}}))
        'a dynamic batch and axis 2 of image dynamic'
        """
        batch = "a batch of one size" if self.static_batch else "a dynamic batch"
        axes = [f"axis {axis} of {name}" for name in self.dynamic for axis in self.dynamic[name]]
        return f"{batch} and {', '.join(axes)} dynamic" if axes else batch


def _check_named(dynamic: Mapping[str, Mapping[int, str]]) -> None:
    for axes in dynamic.values():
        if BATCH in axes.values():
            raise at_key("dynamic", f"{BATCH!r} is the name of axis 0; give another axis another")


class CallableModel(Strict):
    """A torch model: what a callable returns, with weights of a file if there is one."""

    opened_by: ClassVar[str] = "granplugin.sources.torch_network:TorchNetwork"
    reads_data: ClassVar[bool] = True
    small_batches_differ: ClassVar[bool] = True
    """Whether what runs it gives a sample other last bits in a batch of fewer than
    data.batches.SAME_BITS."""

    callable: Callable = Field(
        description="Returns the torch.nn.Module.", examples=["nets.py:tiny"]
    )
    args: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the callable.", examples=[{"classes": 10}]
    )
    weights: File | None = Field(
        default=None,
        description="A safetensors file, or a torch file (weights only).",
        examples=["tiny.safetensors"],
    )
    state_dict_key: str | None = Field(
        default=None,
        description="Of a torch file with several sets of weights: which, as ema.shadow.",
        examples=["ema.shadow"],
    )
    strip_prefix: str | None = Field(
        default=None,
        description="What the weights' names begin with and the model's do not: module.",
        examples=["module."],
    )
    dynamic: dict[str, dict[Axis, Identifier]] = Field(
        default={},
        description="Input -> axis -> its name, of axes that may have any size, as the batch "
        "may. Axes of one name have one size.",
        examples=[{"image": {2: "height", 3: "width"}}],
    )
    static_batch: bool = Field(
        default=False,
        description="Files take data.batch_size samples, no more and no fewer: for a network that "
        "can only be exported so.",
        examples=[True],
    )

    custom_ops: list[Identifier] = Field(
        default=[],
        description="Domains of operators of one's own (torch.library), which files have as they "
        "are: left float, and refused by engines that do not know them.",
        examples=[["mylib"]],
    )

    @model_validator(mode="after")
    def _named_axes(self) -> CallableModel:
        _check_named(self.dynamic)
        return self

    quantized: Annotated[str, OneOf("choice", ("refuse", "keep"))] = Field(
        default="refuse",
        description="What becomes of a model, or of weights saved with mto.save, that modelopt has "
        "quantized: keep takes over formats, granularities and ranges, and rules change what they "
        "name.",
        examples=["keep"],
    )

    @model_validator(mode="after")
    def _of_weights(self) -> CallableModel:
        for key in ("state_dict_key", "strip_prefix"):
            if getattr(self, key) is not None and self.weights is None:
                raise at_key(key, f"{key} is of weights, and there are none")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the text names, but for code."""
        return (self.weights,) if self.weights else ()

    @property
    def code(self) -> tuple[Target, ...]:
        """The callables that the text names."""
        return (self.callable,)

    @property
    def text(self) -> tuple[Any, ...]:
        """What the text says, but for where the files are."""
        chosen = [self.state_dict_key, self.strip_prefix]
        axes = [self.dynamic] if self.dynamic else []
        kept = ["quantized"] if self.quantized == "keep" else []
        told = *([chosen] if any(chosen) else []), *axes, *kept
        return str(self.callable), self.args, *told

    @property
    def form(self) -> FileForm:
        """How files are written."""
        return FileForm(self.dynamic, self.static_batch, tuple(self.custom_ops))


class OnnxModel(Strict):
    """A float ONNX file, whose nodes are the layers; plan and inspect of it need no data."""

    opened_by: ClassVar[str] = "granplugin.sources.onnx_network:OnnxNetwork"
    reads_data: ClassVar[bool] = False
    # ONNX Runtime does not: 45 products in batches of 1 to 36, one thread and two.
    small_batches_differ: ClassVar[bool] = False

    onnx: File = Field(
        description="The file; weights in other files lie beside it.", examples=["net.onnx"]
    )
    strip: bool = Field(
        default=False,
        description="Take the Q/DQ of a quantized file out, which is refused otherwise.",
        examples=[True],
    )
    dynamic: dict[str, dict[Axis, Identifier]] = Field(
        default={},
        description="Input -> axis -> its name, of axes that the file leaves open and that stay "
        "open in those that are written; the others have the data's sizes.",
        examples=[{"image": {2: "height", 3: "width"}}],
    )

    @model_validator(mode="after")
    def _named_axes(self) -> OnnxModel:
        _check_named(self.dynamic)
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the text names, but for code."""
        return (self.onnx,)

    @property
    def code(self) -> tuple[Target, ...]:
        """The callables that the text names."""
        return ()

    @property
    def text(self) -> tuple[Any, ...]:
        """What the text says, but for where the files are."""
        return *(["strip"] if self.strip else []), *([self.dynamic] if self.dynamic else [])

    @property
    def form(self) -> FileForm:
        """How files are written."""
        return FileForm(self.dynamic)


Model = CallableModel | OnnxModel
MODELS: dict[str, type[Model]] = {"callable": CallableModel, "onnx": OnnxModel}
"""The key that says which kind of source it is -> what may stand beside it. `opened_by` is the class
of its networks (granplugin.sources.protocol.Network), as module:name."""


def _model(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kinds = [kind for kind in MODELS if kind in value]
    if len(kinds) == 1:
        return MODELS[kinds[0]].model_validate(value)
    if kinds:
        raise at_key(kinds[-1], f"a model is {' or '.join(MODELS)}, not both")
    known = [key for kind in MODELS.values() for key in kind.model_fields]
    for key in value:
        if key not in known:
            raise unknown_key(key, known)
    raise ValueError(f"a model has one of the keys {' and '.join(MODELS)}")


def kind_of(model: Model) -> str:
    """The key that says which kind of source it is."""
    return next(kind for kind, section in MODELS.items() if isinstance(model, section))


ModelKey = Annotated[Model, BeforeValidator(_model)]
