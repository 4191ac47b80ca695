"""modelopt's own ONNX path, modelopt.onnx.quantization.quantize, to int8 by its defaults."""

import sys
import time

import numpy as np
from modelopt.onnx.quantization import quantize as modelopt_quantize

onnx, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    modelopt_quantize(
        onnx_path=onnx,
        quantize_mode="int8",
        calibration_data=dict(samples),
        calibration_method="max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )


start = time.perf_counter()
quantize()
print("seconds", time.perf_counter() - start)
