"""Operators of the user's own (torch.library), exported as they are: a node of their domain each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import onnx
import onnxscript
import torch
from onnxscript.values import Op, Opset

from granplugin.errors import ModelError
from granplugin.suggest import did_you_mean

_ATTRIBUTES: dict[str, tuple[type, onnx.defs.OpSchema.AttrType]] = {
    "float": (float, onnx.defs.OpSchema.AttrType.FLOAT),
    "int": (int, onnx.defs.OpSchema.AttrType.INT),
    "bool": (bool, onnx.defs.OpSchema.AttrType.INT),
    "str": (str, onnx.defs.OpSchema.AttrType.STRING),
    "List[float]": (Sequence[float], onnx.defs.OpSchema.AttrType.FLOATS),
    "List[int]": (Sequence[int], onnx.defs.OpSchema.AttrType.INTS),
}
"""What torch calls the type of an argument that is no tensor -> Python's and ONNX's."""
_TENSORS = ("Tensor", "Optional[Tensor]")


def translations(domains: Collection[str]) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Each operator of these domains -> what the exporter writes of it: a node of its name, in its
    domain, with its tensors as inputs and its numbers as attributes. Raises ModelError for a domain
    without operators, and for an operator with arguments that no node can have."""
    found: dict[Callable[..., Any], Callable[..., Any]] = {}
    schemas = torch._C._jit_get_all_schemas() if domains else []
    known = {schema.name.partition("::")[0] for schema in schemas}
    for domain in domains:
        if domain not in known:
            raise ModelError(
                f"custom_ops: no operator of torch is of the domain {domain!r}"
                f"{did_you_mean(domain, known)}; register them (torch.library) where the model's "
                "callable is"
            )
    for schema in schemas:
        domain, _, name = schema.name.partition("::")
        if domain in domains:
            packet = getattr(getattr(torch.ops, domain), name)
            operator = getattr(packet, schema.overload_name or "default")
            found[operator] = _translation(schema, domain, name)
    return found


def _translation(schema: torch.FunctionSchema, domain: str, name: str) -> Callable[..., Any]:
    inputs = [arg for arg in schema.arguments if str(arg.type) in _TENSORS]
    rest = [arg for arg in schema.arguments if str(arg.type) not in _TENSORS]
    for arg in rest:
        if str(arg.type) not in _ATTRIBUTES:
            raise ModelError(
                f"custom_ops: {schema.name} takes {arg.name!r}, a {arg.type}, which no node of a "
                "file can have; give it tensors and numbers"
            )
    op = Op(Opset(domain, 1), name, _schema(domain, name, inputs, rest, len(schema.returns)))

    def translate(*values: Any, **named: Any) -> Any:
        given = dict(zip([arg.name for arg in schema.arguments], values, strict=False)) | named
        attributes = {
            arg.name: given.get(arg.name, arg.default_value)
            for arg in rest
            if given.get(arg.name, arg.default_value) is not None
        }
        return op(*[given.get(arg.name) for arg in inputs], **attributes)

    kinds = {arg.name: onnxscript.FLOAT for arg in inputs}
    kinds |= {arg.name: _ATTRIBUTES[str(arg.type)][0] for arg in rest}
    # The exporter reads these to tell tensors from numbers.
    translate.__annotations__ = kinds
    translate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(arg, kinds[arg.name]) for arg in schema.arguments]
    )
    translate.__name__ = name
    return translate


def _parameter(arg: Any, kind: Any) -> inspect.Parameter:
    default = arg.default_value if arg.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(
        arg.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default
    )


def _schema(
    domain: str, name: str, inputs: Sequence[Any], rest: Sequence[Any], outputs: int
) -> onnx.defs.OpSchema:
    """ONNX's, in which every tensor may be of any type."""
    schema = onnx.defs.OpSchema
    any_type = sorted({"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"})
    any_type += [f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    any_type += ["tensor(bool)"]
    optional = schema.FormalParameterOption.Optional
    single = schema.FormalParameterOption.Single
    takes = [
        schema.FormalParameter(
            arg.name, f"T{at}", param_option=single if str(arg.type) == "Tensor" else optional
        )
        for at, arg in enumerate(inputs)
    ]
    gives = [schema.FormalParameter(f"output_{at}", f"U{at}") for at in range(outputs)]
    return schema(
        name,
        domain,
        1,
        inputs=takes,
        outputs=gives,
        type_constraints=[(each.type_str, any_type, "") for each in (*takes, *gives)],
        attributes=[
            schema.Attribute(arg.name, _ATTRIBUTES[str(arg.type)][1], required=False)
            for arg in rest
        ],
    )
