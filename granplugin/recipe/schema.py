"""The recipe's keys: strict, frozen, versioned. Every key says here what it means.

`granplugin schema` prints this module as JSON Schema; nothing else validates a recipe's text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from granplugin.quant.calibrators import Calibrator
from granplugin.quant.formats import FORMATS
from granplugin.quant.granularity import (
    GRANULARITIES,
    PARAMETERS,
    ROLES,
    Granularity,
    PerTensor,
    PerToken,
)
from granplugin.quant.layers import PASSIVE, TRAITS, WEIGHTED
from granplugin.suggest import did_you_mean

VERSION = 1
FLOAT = "float"
PRESETS = ("tensorrt@11", "modelopt@0.47")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "bf16")
METRICS = ("top1", "top5", "agreement", "sqnr_db")
WAYS = ("error", "lower", "coarsen", "simulate", "float")
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120")
"""What TensorRT-RTX builds for; TensorRT builds for the GPU it runs on."""
BUILDERS = ("tensorrt", "tensorrt_rtx")
"""The engines that `build` is about."""
BUILDS_WITH = {"targets": ("tensorrt_rtx",), "timing_cache": ("tensorrt",)}
"""Key of `build` -> the engines that have it, where not all of BUILDERS do."""


class Strict(BaseModel):
    """Frozen, no coercion, and an unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise _unknown_key(key, known)
        return data


def _at_key(key: str, message: str) -> PydanticCustomError:
    """An error at one key of the mapping that is being validated."""
    return PydanticCustomError("at_key", "{message}", {"key": key, "message": message})


def _unknown_key(key: str, known: list[str]) -> PydanticCustomError:
    return _at_key(key, f"unknown key {key!r}{did_you_mean(key, known)}")


def one_of(what: str, names: tuple[str, ...] | list[str]) -> Any:
    """A word out of a list; a wrong one names the nearest."""

    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"unknown {what} {value!r}{did_you_mean(str(value), names)}")
        return value

    return Annotated[str, BeforeValidator(check), WithJsonSchema({"enum": list(names)})]


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"a file name is expected, not {value!r}")
    return Path(value)


File = Annotated[
    Path,
    BeforeValidator(_path),
    WithJsonSchema({"type": "string", "description": "A path; relative ones start at the recipe."}),
]


class Target(Strict):
    """A callable: `file.py:name` beside the recipe, or `installed.module:name`."""

    path: Path | None = None
    module: str | None = None
    name: str

    def __str__(self) -> str:
        return f"{self.path.name if self.path else self.module}:{self.name}"


def _target(value: Any) -> Target:
    if isinstance(value, Target):
        return value
    place, _, name = str(value).rpartition(":")
    if not isinstance(value, str) or not place or not name.isidentifier():
        raise ValueError(f"a callable is written file.py:name or module:name, not {value!r}")
    if place.endswith(".py"):
        return Target(path=Path(place), name=name)
    if not all(part.isidentifier() for part in place.split(".")):
        raise ValueError(f"{place!r} is neither a file ending in .py nor a module's name")
    return Target(module=place, name=name)


Callable = Annotated[
    Target,
    BeforeValidator(_target),
    WithJsonSchema({"type": "string", "description": "file.py:name or installed.module:name"}),
]


class ModelSpec(Strict):
    """Where the network comes from."""

    callable: Callable = Field(description="Returns the torch.nn.Module.")
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the callable.")
    weights: File | None = Field(
        default=None, description="A safetensors file, or a torch file (weights only)."
    )


Samples = Annotated[
    int | None, Field(default=None, ge=1, description="How many samples to use; default: all.")
]


class NpzSource(Strict):
    """Arrays of a NumPy .npz file; axis 0 counts the samples."""

    npz: File
    inputs: dict[str, str] = Field(min_length=1, description="Argument of forward -> array name.")
    labels: str | None = Field(default=None, description="Array of class numbers.")
    samples: Samples


class CallableSource(Strict):
    """A callable that returns an iterable of batches, anew at each call."""

    callable: Callable = Field(description="Called before each pass over the data.")
    args: dict[str, Any] = Field(default={}, description="Keyword arguments of the callable.")
    samples: Samples


class FolderSource(Strict):
    """A folder of images, with one subfolder per class or a label file."""

    folder: File
    labels: File | None = Field(default=None, description="A CSV file of `file,label` lines.")
    input: str = Field(description="The argument of forward that takes the images.")
    resize: int | None = Field(default=None, ge=1, description="Length of the shorter side.")
    crop: int | None = Field(default=None, ge=1, description="Side of the centre crop.")
    mean: list[float] = Field(default=[0.0, 0.0, 0.0], description="Subtracted, per channel.")
    std: list[float] = Field(default=[1.0, 1.0, 1.0], description="Divided by, per channel.")
    grayscale: bool = Field(default=False, description="One channel instead of three.")
    samples: Samples

    @model_validator(mode="after")
    def _channels(self) -> FolderSource:
        channels = 1 if self.grayscale else 3
        for name in ("mean", "std"):
            if name in self.model_fields_set and len(getattr(self, name)) != channels:
                raise _at_key(name, f"{name} needs {channels} numbers")
        return self


_SOURCES = {"npz": NpzSource, "callable": CallableSource, "folder": FolderSource}


def _source(value: Any) -> Any:
    if isinstance(value, dict):
        kinds = [kind for kind in _SOURCES if kind in value]
        if len(kinds) == 1:
            return _SOURCES[kinds[0]].model_validate(value)
        if not kinds and value:
            near = [message for key in value if "did" in (message := did_you_mean(key, _SOURCES))]
            if near:
                raise ValueError(f"a data source is an npz, a callable or a folder{near[0]}")
    elif isinstance(value, tuple(_SOURCES.values())):
        return value
    raise ValueError("a data source is one of npz:, callable: or folder:, with its keys")


Source = Annotated[NpzSource | CallableSource | FolderSource, BeforeValidator(_source)]


class DataSpec(Strict):
    """What the network is calibrated on and measured with."""

    calibration: Source = Field(description="What ranges are found on; labels are not needed.")
    evaluation: Source | None = Field(
        default=None, description="Default: no accuracy is measured, only agreement on calibration."
    )
    analysis: Source | None = Field(
        default=None,
        description="What `granplugin analyze` measures on; default: the calibration data. "
        "Suggestions are chosen by it, so it must not be the evaluation data.",
    )
    batch_size: int = Field(default=32, ge=1, description="Samples in a batch.")
    seed: int = Field(default=0, ge=0, description="Decides which samples are drawn.")


def _calibrator(value: Any) -> Calibrator:
    if isinstance(value, Calibrator):
        return value
    if isinstance(value, str):
        if value == "percentile":
            raise ValueError("percentile needs its number: {percentile: 99.99}")
        if value in ("max", "entropy", "mse"):
            return Calibrator(value)
        known = ["max", "percentile", "entropy", "mse"]
        raise ValueError(f"unknown calibrator {value!r}{did_you_mean(value, known)}")
    if isinstance(value, dict) and list(value) == ["percentile"]:
        number = value["percentile"]
        if isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number <= 100:
            return Calibrator("percentile", float(number))
        raise ValueError(f"percentile is a number above 0 and at most 100, not {number!r}")
    raise ValueError("a calibrator is max, entropy, mse or {percentile: 99.99}")


CalibratorKey = Annotated[
    Calibrator,
    BeforeValidator(_calibrator),
    WithJsonSchema(
        {
            "description": "How amax is found.",
            "oneOf": [
                {"enum": ["max", "entropy", "mse"]},
                {
                    "type": "object",
                    "properties": {
                        "percentile": {"type": "number", "exclusiveMinimum": 0, "maximum": 100}
                    },
                    "required": ["percentile"],
                    "additionalProperties": False,
                },
            ],
        }
    ),
]
FormatKey = one_of("format", [*FORMATS, FLOAT])


def _short_forms(schema: dict[str, Any]) -> None:
    for name, parameters in PARAMETERS.items():
        short = {"description": f"Short for granularity: {{{name}: ...}}.", **parameters}
        schema["properties"][name] = short


class Settings(Strict):
    """What one site gets; keys that are not given keep what earlier rules said."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    format: FormatKey | None = Field(
        default=None, description="int8, int4, fp8, or float: left alone."
    )
    granularity: Granularity | None = Field(
        default=None, description="Which values share one scale; its parameters are part of it."
    )
    calibrator: CalibratorKey | None = Field(
        default=None, description="How amax, the largest value that fits, is found."
    )
    amax: float | None = Field(default=None, gt=0, description="Pins the range: no calibration.")

    @model_validator(mode="after")
    def _nothing_to_calibrate(self) -> Settings:
        if self.granularity is not None and self.granularity.at_run_time:
            for key in ("calibrator", "amax"):
                if getattr(self, key) is not None:
                    raise _at_key(key, f"{self.granularity} has its ranges at run time: no {key}")
        return self


def spelt_out(value: Any) -> Any:
    """The keys behind a short form: `per_tensor` is {granularity: per_tensor}, and
    {per_block: {size: 16}, calibrator: mse} has its granularity's name as a key."""
    if isinstance(value, str):
        if value == FLOAT or value in FORMATS:
            return {"format": value}
        if value in GRANULARITIES:
            return {"granularity": value}
        known = [*GRANULARITIES, *FORMATS, FLOAT]
        raise ValueError(f"unknown granularity or format {value!r}{did_you_mean(value, known)}")
    if not isinstance(value, dict):
        return value
    keys = list(Settings.model_fields)
    for key in value:
        if key not in keys and key not in GRANULARITIES:
            raise _unknown_key(key, [*keys, *GRANULARITIES])
    named = [key for key in value if key in GRANULARITIES]
    if len(named) + ("granularity" in value) > 1:
        raise _at_key(named[-1], "a site has one granularity, and this is a second")
    rest = {key: given for key, given in value.items() if key in keys}
    return {**rest, "granularity": {named[0]: value[named[0]]}} if named else rest


_Word = Annotated[
    str, WithJsonSchema({"enum": sorted({*GRANULARITIES, *FORMATS, FLOAT} - {"per_block"})})
]
SettingsKey = Annotated[
    Settings, BeforeValidator(spelt_out, json_schema_input_type=Settings | _Word)
]


def _of(role: str) -> Any:
    return Field(default=None, description=f"The {role}: granularity, format, or keys one by one.")


_BOUND = re.compile(r"(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)")


def _bound(value: Any) -> str:
    if not isinstance(value, str) or not _BOUND.fullmatch(value):
        raise ValueError(f"a bound is written like '>= 100', not {value!r}")
    return value


Bound = Annotated[
    str, BeforeValidator(_bound), WithJsonSchema({"type": "string", "pattern": _BOUND.pattern})
]


def within(bound: str, number: float | None) -> bool:
    """Whether a number satisfies a bound such as '>= 100'; nothing does without a number."""
    sign, limit = _BOUND.fullmatch(bound).groups()
    if number is None:
        return False
    limit = float(limit)
    return {">=": number >= limit, "<=": number <= limit, ">": number > limit, "<": number < limit}[
        sign
    ]


def _words(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _names(value: Any) -> Any:
    for name in _words(value) if isinstance(_words(value), list) else []:
        if isinstance(name, str) and name.startswith("re:"):
            try:
                re.compile(name[3:])
            except (re.error, OverflowError, RecursionError) as err:
                raise ValueError(f"not a regular expression: {name[3:]!r}: {err}") from None
    return _words(value)


def list_of(item: Any, validator: Any = _words, least: int = 1) -> Any:
    """A list, or one item alone."""
    return Annotated[
        list[item],
        Field(min_length=least),
        BeforeValidator(validator, json_schema_input_type=list[item] | item),
    ]


class Match(Strict):
    """Which layers a rule is about: all that satisfy every key."""

    name: list_of(str, _names) | None = Field(
        default=None, description="Globs (* one level, ** many), or re: and a regular expression."
    )
    type: list_of(one_of("layer type", sorted(WEIGHTED | PASSIVE))) | None = Field(
        default=None, description="One of these module types, such as Conv2d or Linear."
    )
    trait: list_of(one_of("trait", TRAITS)) | None = Field(
        default=None, description="All of: depthwise, grouped, pointwise, first, last."
    )
    size: Bound | None = Field(default=None, description="Values in the weight, as '>= 1000'.")
    spread: Bound | None = Field(
        default=None,
        description="Largest over median output-channel range, BN folded, as '>= 100'.",
    )
    exclude: list_of(str, _names) | None = Field(default=None, description="Names to leave out.")

    @model_validator(mode="after")
    def _says_something(self) -> Match:
        if all(given is None for key, given in self if key != "exclude"):
            raise ValueError("match needs a name, type, trait, size or spread")
        return self


def _match(value: Any) -> Any:
    return {"name": value} if isinstance(value, (str, list)) else value


OnUnsupported = Annotated[list_of(one_of("choice", WAYS)), AfterValidator(tuple)]
"""The first of these that can be done is."""


class Decision(Strict):
    """What a rule, or spelt-out defaults, decide for a layer."""

    weight: SettingsKey | None = _of("weight")
    input: SettingsKey | None = _of("input")
    output: SettingsKey | None = _of("output")
    skip: SettingsKey | None = _of("skip input (what a residual add adds the output to)")
    format: FormatKey | None = Field(
        default=None, description="Of weight and input together; float leaves the layer alone."
    )
    half: Literal["allow"] | None = Field(
        default=None, description="Allows quantizing only one of a layer's weight and input."
    )
    bn: one_of("bn", ("fold", "keep")) | None = Field(
        default=None, description="Fold the batch norm behind the layer into it before quantizing."
    )
    on_unsupported: OnUnsupported | None = Field(
        default=None, description="As the recipe's, for these layers."
    )


class Rule(Decision):
    """One override; the last rule that matches decides, key by key."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] | None = Field(
        default=None, description="What variants and reports call this rule."
    )
    match: Annotated[
        Match, BeforeValidator(_match, json_schema_input_type=Match | str | list[str])
    ] = Field(description="Which layers: names, or keys that must all hold.")
    optional: bool = Field(default=False, description="The rule may match nothing.")


class Share(Strict):
    """Sites that have one scale: the largest of theirs."""

    match: Annotated[
        Match, BeforeValidator(_match, json_schema_input_type=Match | str | list[str])
    ] = Field(description="Which layers: names, or keys that must all hold.")
    role: one_of("role", ROLES) = Field(default="input", description="Which site of each layer.")


CONCAT = "concat"


def _share(value: Any) -> Any:
    if isinstance(value, str) and value != CONCAT:
        raise ValueError(f"share takes concat, or match: and role:, not {value!r}")
    return value if isinstance(value, (str, Share)) else Share.model_validate(value)


def _shares(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict, Share)) else value


ShareKey = Annotated[
    str | Share, BeforeValidator(_share, json_schema_input_type=Literal["concat"] | Share)
]


_Size = Annotated[int, Field(ge=1)]


def _at(granularity: str, calibrator: str) -> Settings:
    return Settings(granularity=granularity, calibrator=Calibrator(calibrator))


class Analyze(Strict):
    """What `granplugin analyze` asks about, and how much it may take."""

    weights: list_of(SettingsKey) = Field(
        default=[_at("per_tensor", "max"), _at("per_channel", "max")],
        description="What to try for weights; an entry without a calibrator is tried with each of "
        "`calibrators`.",
    )
    inputs: list_of(SettingsKey) = Field(
        default=[
            Settings(granularity=PerTensor()),
            _at("per_channel", "max"),
            Settings(granularity=PerToken(dynamic=True)),
        ],
        description="What to try for inputs; likewise.",
    )
    calibrators: list_of(CalibratorKey) = Field(
        default=[
            Calibrator("max"),
            Calibrator("percentile", 99.9),
            Calibrator("percentile", 99.99),
            Calibrator("entropy"),
            Calibrator("mse"),
        ],
        description="What entries without a calibrator are tried with.",
    )
    bn: list_of(one_of("choice", ("fold", "keep"))) = Field(
        default=["fold", "keep"], description="What to try where a batch norm can be folded."
    )
    exact: bool = Field(
        default=False,
        description="Measure local errors on every sample; default: on a random quarter of them.",
    )
    top: int = Field(
        default=15,
        ge=0,
        description="How many of the worst layers to measure at the network's output.",
    )
    effects: one_of("choice", ("own", "all")) = Field(
        default="own",
        description="What is measured there: the recipe's own setting of each of them, or all.",
    )
    tolerance: float = Field(
        default=1.0,
        ge=0,
        description="Loss that is accepted, in points above that of the finest settings: of the "
        "metric, of decisions that differ from fp32, or of the outputs' relative error.",
    )
    memory_mb: _Size = Field(
        default=256, description="For histograms; what does not fit is left out, and listed."
    )


class Limits(Strict):
    """What must hold, else the exit code is 1."""

    top1_drop: float | None = Field(
        default=None, ge=0, description="Points against fp32, at the interval's unfavourable end."
    )
    latency_vs: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="Baseline -> largest allowed ratio of median latencies."
    )
    unhonoured: int | None = Field(
        default=None, ge=0, description="Rows that an engine may compute otherwise than asked."
    )


class Latency(Strict):
    """How latency is measured."""

    rounds: int = Field(default=20, ge=6, description="Interleaved rounds.")
    seconds: float = Field(default=3.0, gt=0, description="At most so long for each variant.")


class Shapes(Strict):
    """The shapes of one input that an engine is built for."""

    min: list[_Size] = Field(min_length=1, description="The smallest; axis 0 is the batch.")
    opt: list[_Size] = Field(min_length=1, description="The one it is tuned for.")
    max: list[_Size] = Field(min_length=1, description="The largest.")

    @model_validator(mode="after")
    def _ordered(self) -> Shapes:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max have one number per axis of the input")
        for low, high in (("min", "opt"), ("opt", "max")):
            if any(a > b for a, b in zip(getattr(self, low), getattr(self, high), strict=True)):
                raise _at_key(
                    high, f"{high} {getattr(self, high)} is below {low} {getattr(self, low)}"
                )
        return self


class Build(Strict):
    """How TensorRT and TensorRT-RTX build; other engines take no notice."""

    targets: list_of(one_of("target", TARGETS), least=0) = Field(
        default=[],
        description="GPUs to build for, TensorRT-RTX only; default: all it can (sm80 and newer). "
        "TensorRT builds for the GPU it runs on.",
    )
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = Field(
        default=None, description="0 builds fast, 5 looks longest; default: the library's own, 3."
    )
    workspace_mb: _Size | None = Field(default=None, description="Most scratch memory of a layer.")
    timing_cache: File | None = Field(
        default=None, description="File of kernel timings to use and extend, TensorRT only."
    )
    shapes: dict[str, Shapes] = Field(
        default={},
        description="Input -> {min, opt, max}; default: any batch up to data.batch_size where it "
        "can run, else that batch size alone.",
    )
    seconds: float = Field(default=600.0, gt=0, description="A build that takes longer is ended.")
    memory_mb: _Size | None = Field(
        default=None, description="One that takes more is ended; default: 0.9 of what is free."
    )


class StatisticsSpec(Strict):
    """Ranges from and to a file."""

    import_: File | None = Field(
        default=None, alias="import", description="JSON file of amax to use."
    )
    export: File | None = Field(default=None, description="Where to write this run's amax.")


class Variant(Strict):
    """What one variant changes."""

    drop: list_of(str, least=0) = Field(default=[], description="Rules to leave out, by id.")
    set: dict[str, Any] = Field(
        default={}, description="Keys to change: `rules.<id>.weight: per_tensor`, `defaults: ...`."
    )
    rules: list[Rule] = Field(default=[], description="Rules to add behind the others.")


def _defaults(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise ValueError(f"unknown defaults {value!r}{did_you_mean(value, PRESETS)}")
    if not isinstance(value, (str, dict, Decision)):
        raise ValueError(
            f"defaults are a preset ({', '.join(PRESETS)}) or weight:, input: ... keys"
        )
    return value if isinstance(value, (str, Decision)) else Decision.model_validate(value)


class Recipe(Strict):
    """A recipe: one model, its data, and what is quantized how."""

    version: int = Field(description="Of this schema: 1.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        default="", description="Names the run folder runs/<name>; default: the file's name."
    )
    extends: list_of(File, least=0) = Field(
        default=[], description="Recipes whose keys and rules come before this one's, in order."
    )
    model: ModelSpec = Field(description="Where the network comes from.")
    device: one_of("device", ("cpu", "cuda", "auto")) = Field(
        default="cpu", description="Where the model runs for calibration; auto: cuda if there."
    )
    data: DataSpec = Field(description="What it is calibrated on and measured with.")
    metrics: list[one_of("metric", METRICS)] = Field(
        default=["agreement", "sqnr_db"],
        min_length=1,
        description="What is measured on the evaluation data.",
    )
    evaluate: Callable | None = Field(
        default=None,
        description="fn(predict, data) -> {metric: value, per_sample: {metric: [..]}, "
        "lower_is_better: [metric]}.",
    )
    defaults: Annotated[
        str | Decision,
        BeforeValidator(
            _defaults,
            json_schema_input_type=Annotated[str, WithJsonSchema({"enum": list(PRESETS)})]
            | Decision,
        ),
    ] = Field(default="tensorrt@11", description="What a layer gets before any rule.")
    rules: list[Rule] = Field(
        default=[], description="Overrides, in order: the last that matches decides, key by key."
    )
    share: list_of(ShareKey, _shares, least=0) = Field(
        default=[],
        description="Sites with one scale, the largest of theirs: layers and a role, or concat - "
        "around each concatenation, all that reads one of its inputs or its result.",
    )
    variants: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Variant] = Field(
        default={}, description="Name -> what to change; built and compared in the same run."
    )
    statistics: StatisticsSpec = Field(
        default=StatisticsSpec(), description="Ranges (amax) from and to a JSON file."
    )
    optional_engines: list[one_of("engine", ENGINES)] = Field(
        default=[],
        description="Engines to use where they are installed, and else to leave out; default: "
        "openvino where no engines are named.",
    )
    engines: list[one_of("engine", ENGINES)] = Field(
        default=["onnxruntime"],
        min_length=1,
        description="What variants are built and measured with.",
    )
    precision: one_of("precision", PRECISIONS) = Field(
        default="fp32",
        description="What everything that is not quantized is computed in; also where a preset is "
        "a baseline.",
    )
    baselines: list[one_of("baseline", ("fp32", "fp16", *PRESETS))] = Field(
        default=["fp32", "tensorrt@11"],
        description="What the recipe is compared with; fp16: nothing quantized, all in float16.",
    )
    on_unsupported: OnUnsupported = Field(
        default=("error",),
        description="Where TensorRT or TensorRT-RTX has no kernel for a granularity: an error at "
        "the rule's line; lower: made exactly from what there is, where that can be; coarsen: the "
        "finest coarser granularity it has (block, channel, tensor); simulate: float on the "
        "device, for accuracy only; float: the layer is not quantized. Of a list, the first that "
        "can be done. Each engine has its own; model.onnx keeps what the rules say.",
    )
    build: Build = Field(default=Build(), description="How TensorRT and TensorRT-RTX build.")
    latency: Latency = Field(default=Latency(), description="How latency is measured.")
    analyze: Analyze = Field(
        default=Analyze(), description="What `granplugin analyze` asks about, and on how much."
    )
    limits: Limits = Field(default=Limits(), description="What must hold, else exit code 1.")

    @model_validator(mode="before")
    @classmethod
    def _version(cls, data: Any) -> Any:
        if isinstance(data, dict) and "version" in data and data["version"] != VERSION:
            raise _at_key(
                "version", f"version {data['version']!r} is not known; this is version {VERSION}"
            )
        if isinstance(data, dict) and not {"engines", "optional_engines"} & data.keys():
            return {**data, "optional_engines": ["openvino"]}
        return data


def json_schema() -> dict[str, Any]:
    """The recipe's JSON Schema (2020-12), for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
