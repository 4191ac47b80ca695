"""modelopt's own ONNX path, modelopt.onnx.quantization.quantize, by its defaults; to int8, or as said."""

import sys
import time

import numpy as np
from modelopt.onnx.quantization import quantize as modelopt_quantize

onnx, calibration, out, mode = [*sys.argv[1:], "int8"][:4]
samples = np.load(calibration)


def quantize():
    modelopt_quantize(
        onnx_path=onnx,
        quantize_mode=mode,
        calibration_data=dict(samples),
        calibration_method="awq_lite" if mode == "int4" else "max",
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=out,
    )


start = time.perf_counter()
quantize()
print("seconds", time.perf_counter() - start)
