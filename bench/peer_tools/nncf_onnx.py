"""NNCF's nncf.quantize of an ONNX model, by its defaults but for the device that the file is for; run in
an environment of its own."""

import sys

import nncf
import numpy as np
import onnx

path, calibration, out = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    dataset = nncf.Dataset([{name: samples[name] for name in samples.files}])
    model = onnx.load(path)
    onnx.save(
        nncf.quantize(model, dataset, subset_size=1, preset=nncf.QuantizationPreset.PERFORMANCE),
        out,
    )


quantize()
