"""AIMET's QuantizationSimModel on ONNX, exported as Q/DQ, by its defaults."""

import sys
import time

import numpy as np
import onnx as onnx_package
from aimet_onnx.quantsim import QuantizationSimModel

onnx, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    sim = QuantizationSimModel(onnx_package.load(onnx), param_type="int8", activation_type="int8")
    (name,) = samples.files
    sim.compute_encodings([{name: sample[None]} for sample in samples[name]])
    onnx_package.save(sim.to_onnx_qdq(), out)


start = time.perf_counter()
quantize()
print("seconds", time.perf_counter() - start)
