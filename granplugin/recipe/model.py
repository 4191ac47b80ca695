"""The section `model`: where the network comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from granplugin.recipe.strict import Callable, File, Strict, Target, at_key, unknown_key


class CallableModel(Strict):
    """A torch model: what a callable returns, with weights of a file if there is one."""

    reads_data: ClassVar[bool] = True

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
        return str(self.callable), self.args, *([chosen] if any(chosen) else [])


class OnnxModel(Strict):
    """A float ONNX file, whose nodes are the layers: for plan and inspect, which need no data."""

    reads_data: ClassVar[bool] = False

    onnx: File = Field(
        description="The file; weights in other files lie beside it.", examples=["net.onnx"]
    )

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
        return ()


MODELS: dict[str, type[CallableModel | OnnxModel]] = {"callable": CallableModel, "onnx": OnnxModel}
"""The key that says which kind of source it is -> what may stand beside it."""


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


def kind_of(model: CallableModel | OnnxModel) -> str:
    """The key that says which kind of source it is."""
    return next(kind for kind, section in MODELS.items() if isinstance(model, section))


ModelKey = Annotated[CallableModel | OnnxModel, BeforeValidator(_model)]
