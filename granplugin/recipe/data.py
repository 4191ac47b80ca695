"""The section `data`: where samples come from, what for, and how many."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from granplugin.recipe.strict import Callable, File, OrAlone, Strict, at_key
from granplugin.suggest import did_you_mean

Samples = Annotated[
    int | None,
    Field(
        default=None,
        ge=1,
        description="How many samples to use: of a callable the first, else drawn with data.seed; default: all.",
        examples=[256],
    ),
]


class NpzSource(Strict):
    """Arrays of a NumPy .npz file; axis 0 counts the samples."""

    npz: File = Field(description="The file.", examples=["data.npz"])
    inputs: dict[str, str] = Field(
        min_length=1,
        description="Argument of forward -> array name.",
        examples=[{"image": "images"}],
    )
    labels: str | None = Field(
        default=None, description="Array of class numbers.", examples=["labels"]
    )
    samples: Samples


class CallableSource(Strict):
    """A callable that returns an iterable of batches, anew at each call."""

    callable: Callable = Field(
        description="Called before each pass over the data.", examples=["data.py:batches"]
    )
    args: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the callable.", examples=[{"split": "val"}]
    )
    samples: Samples


class FolderSource(Strict):
    """A folder of images, with one subfolder per class or a label file."""

    folder: File = Field(description="The folder.", examples=["pictures"])
    labels: File | None = Field(
        default=None, description="A CSV file of `file,label` lines.", examples=["labels.csv"]
    )
    input: str = Field(
        description="The argument of forward that takes the images.", examples=["image"]
    )
    resize: int | None = Field(
        default=None, ge=1, description="Length of the shorter side.", examples=[256]
    )
    crop: int | None = Field(
        default=None, ge=1, description="Side of the centre crop.", examples=[224]
    )
    mean: list[float] = Field(
        default=[0.0, 0.0, 0.0],
        description="Subtracted, per channel.",
        examples=[[0.485, 0.456, 0.406]],
    )
    std: list[float] = Field(
        default=[1.0, 1.0, 1.0],
        description="Divided by, per channel.",
        examples=[[0.229, 0.224, 0.225]],
    )
    grayscale: bool = Field(
        default=False, description="One channel instead of three.", examples=[True]
    )
    samples: Samples

    @model_validator(mode="after")
    def _channels(self) -> FolderSource:
        channels = 1 if self.grayscale else 3
        for name in ("mean", "std"):
            if name in self.model_fields_set and len(getattr(self, name)) != channels:
                raise at_key(name, f"{name} needs {channels} numbers")
        return self


SOURCES: dict[str, type[Strict]] = {
    "npz": NpzSource,
    "callable": CallableSource,
    "folder": FolderSource,
}
"""The key that says which kind of source it is -> what may stand beside it."""


def _source(value: Any) -> Any:
    if isinstance(value, dict):
        kinds = [kind for kind in SOURCES if kind in value]
        if len(kinds) == 1:
            return SOURCES[kinds[0]].model_validate(value)
        if not kinds and value:
            near = [message for key in value if "did" in (message := did_you_mean(key, SOURCES))]
            if near:
                raise ValueError(f"a data source is an npz, a callable or a folder{near[0]}")
    elif isinstance(value, tuple(SOURCES.values())):
        return value
    raise ValueError("a data source is one of npz:, callable: or folder:, with its keys")


Source = Annotated[NpzSource | CallableSource | FolderSource, BeforeValidator(_source)]


class DataSpec(Strict):
    """What the network is calibrated on and measured with."""

    calibration: Source = Field(
        description="What ranges are found on; labels are not needed.",
        examples=[{"npz": "data.npz", "inputs": {"image": "images"}}],
    )
    evaluation: Source | None = Field(
        default=None,
        description="Default: no accuracy is measured, only agreement on calibration.",
        examples=[{"npz": "data.npz", "inputs": {"image": "images"}, "labels": "labels"}],
    )
    analysis: Source | None = Field(
        default=None,
        description="What `granplugin analyze` measures on; default: the calibration data. "
        "Suggestions are chosen by it, so it must not be the evaluation data.",
        examples=[{"npz": "more.npz", "inputs": {"image": "images"}}],
    )
    mask: Annotated[list[str], OrAlone(least=0)] = Field(
        default=[],
        description="Inputs that say of each position, by 1 or 0, whether it is real or padding: "
        "ranges are of samples that are cut to what is real.",
        examples=["attention_mask"],
    )
    batch_size: int = Field(default=32, ge=1, description="Samples in a batch.", examples=[16])
    seed: int = Field(default=0, ge=0, description="Decides which samples are drawn.", examples=[7])
