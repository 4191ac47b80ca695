"""NNCF's nncf.quantize of an OpenVINO model, by its defaults; run in an environment of its own."""

import sys
import time

import nncf
import numpy as np
import openvino as ov

onnx, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    model = ov.Core().read_model(onnx)
    (name,) = samples.files
    dataset = nncf.Dataset([{name: sample[None]} for sample in samples[name]])
    quantized = nncf.quantize(model, dataset, subset_size=len(samples[name]))
    ov.save_model(quantized, out, compress_to_fp16=False)


start = time.perf_counter()
quantize()
print("seconds", time.perf_counter() - start)
