"""NNCF's nncf.quantize of an ONNX model, by its defaults; run in an environment of its own."""

import sys

import nncf
import numpy as np
import onnx

path, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    dataset = nncf.Dataset([{name: samples[name] for name in samples.files}])
    onnx.save(nncf.quantize(onnx.load(path), dataset, subset_size=1), out)


quantize()
