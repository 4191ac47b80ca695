"""ONNX Runtime's quantize_static: symmetric int8 Q/DQ, weights per channel; preprocessed first."""

import sys
import time

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

onnx, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    class Reader(CalibrationDataReader):
        def __init__(self):
            (name,) = samples.files
            self.left = iter([{name: sample[None]} for sample in samples[name]])

        def get_next(self):
            return next(self.left, None)

    quant_pre_process(onnx, out, skip_symbolic_shape=True)
    quantize_static(
        out,
        out,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )


start = time.perf_counter()
quantize()
print("seconds", time.perf_counter() - start)
