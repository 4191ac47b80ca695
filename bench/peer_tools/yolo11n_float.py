"""YOLO11n as ultralytics exports it, batch norms folded, with random values: float ONNX and inputs.

Its batch norms have seen the calibration's images, so activations stay in an ordinary range.
"""

import sys

import numpy as np
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

CALIBRATION, EVALUATION, SIZE = 32, 16, 320
onnx, inputs = sys.argv[1:]

torch.manual_seed(0)
images = torch.randn(CALIBRATION, 3, SIZE, SIZE)
model = DetectionModel("yolo11n.yaml", ch=3, verbose=False)
norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
for norm in norms:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.5)
    norm.momentum = None  # the mean and variance of all batches so far
    norm.reset_running_stats()
with torch.no_grad():
    for chunk in images.split(8):
        model.train()(chunk)
model = model.eval().fuse(verbose=False)
model.model[-1].export, model.model[-1].format = True, "onnx"
batch = torch.export.Dim("batch", min=1)
torch.onnx.export(
    model,
    (images[:2],),
    onnx,
    input_names=["images"],
    output_names=["detections"],
    dynamic_shapes=({0: batch},),
    opset_version=21,
    dynamo=True,
    verbose=False,
)
others = torch.randn(EVALUATION, 3, SIZE, SIZE)
np.savez(inputs, images=images.numpy(), others=others.numpy())
