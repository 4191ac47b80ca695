"""NNCF's nncf.quantize of an ONNX model, by its defaults, or to signed integers alone; run in an
environment of its own."""

import sys

import nncf
import numpy as np
import onnx
from nncf.common.quantization.structs import QuantizationScheme
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)

path, calibration, out, *said = sys.argv[1:]
samples = np.load(calibration)


def quantize():
    dataset = nncf.Dataset([{name: samples[name] for name in samples.files}])
    model = onnx.load(path)
    advanced = None
    if "--signed" in said:  # what only ever is positive, too
        signed = QuantizationParameters(mode=QuantizationScheme.SYMMETRIC, signedness_to_force=True)
        advanced = AdvancedQuantizationParameters(activations_quantization_params=signed)
    onnx.save(nncf.quantize(model, dataset, subset_size=1, advanced_parameters=advanced), out)


quantize()
