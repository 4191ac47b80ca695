"""What TensorRT and TensorRT-RTX do each in its own way; all else is one code path."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """One of the two. `logs_plan`: a build's verbose log has the plan, which the engine inspector
    would tell only on a GPU. Versions before `typed_from` are strongly typed only when told so.
    `compiles_at_run_time`: kernels for dynamic shapes are compiled while an engine runs, unless
    told otherwise, and a context says whether it can be captured. `runtime_fusion`: what a kernel
    of that kind multiplies in that reads 8 bits, None where that is not known.

    `scales_in_second_kernel`: a convolution whose weight has several scales writes FP32, and a
    kernel behind it scales; `reads_any_skip`: the kernel that adds reads a skip input in 8 bits
    whatever else reads it; `vector_scale_is_float`: a convolution whose input's scale has shape
    [1] runs in float; `moves_not`: operators that move values, in front of which Q/DQ stays where it
    is, so that what is behind them gets float. `operators_not` are operators of ONNX that it does not build;
    `has_plugins`: it has operators of its own for what comes behind a network (..._TRT);
    `compiler_tried`: what its compiler refuses behind the parser was tried, and is told.
    """

    title: str
    logs_plan: bool
    typed_from: int
    compiles_at_run_time: bool
    runtime_fusion: str | None
    scales_in_second_kernel: bool
    reads_any_skip: bool
    vector_scale_is_float: bool
    moves_not: frozenset[str]
    operators_not: frozenset[str]
    has_plugins: bool
    compiler_tried: bool


# onnx-tensorrt has no importer for them.
_WITHOUT = frozenset(
    [
        "Bernoulli",
        "BitShift",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "DFT",
        "DeformConv",
        "Det",
        "MaxRoiPool",
        "MaxUnpool",
        "Multinomial",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SplitToSequence",
        "StringNormalizer",
        "TfIdfVectorizer",
        "Unique",
    ]
)

LIBRARIES = {
    "tensorrt": Library(
        title="TensorRT",
        logs_plan=False,
        typed_from=11,
        compiles_at_run_time=False,
        runtime_fusion=None,
        scales_in_second_kernel=False,
        reads_any_skip=True,
        vector_scale_is_float=False,
        moves_not=frozenset(),
        operators_not=_WITHOUT - {"DeformConv"},
        has_plugins=True,
        compiler_tried=False,
    ),
    "tensorrt_rtx": Library(
        title="TensorRT-RTX",
        logs_plan=True,
        typed_from=0,
        compiles_at_run_time=True,
        runtime_fusion="float",
        scales_in_second_kernel=True,
        reads_any_skip=False,
        vector_scale_is_float=True,
        moves_not=frozenset({"Resize", "Upsample"}),
        # It comes without TensorRT's plugins, which compute these.
        operators_not=_WITHOUT | {"NonMaxSuppression", "NonZero", "RoiAlign"},
        has_plugins=False,
        compiler_tried=True,
    ),
}
