"""Olive's pass OnnxStaticQuantization, as it is for QDQ files; run in an environment of its own."""

import shutil
import sys
from pathlib import Path

import numpy as np
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization

onnx, calibration, out, *SAID = sys.argv[1:]
samples = np.load(calibration)


class Samples:
    """Each the feeds, and a label that nothing reads."""

    def __iter__(self):
        yield {name: samples[name] for name in samples.files}, 0

    def __len__(self):
        return 1


@Registry.register_dataloader("samples")
def loader(dataset, **_):
    return Samples()


@Registry.register_dataset("nothing")
def nothing(**_):
    return None


def quantize():
    data = DataConfig(
        name="calibration",
        type="DataContainer",
        load_dataset_config=DataComponentConfig(type="nothing"),
        dataloader_config=DataComponentConfig(type="samples"),
    )
    config = {"quant_format": "QDQ", "data_config": data}
    if "--symmetric" in SAID:
        config |= {
            "activation_type": "int8",
            "precision": "int8",
            "activation_symmetric": True,
            "weight_symmetric": True,
            "extra_options": {"QuantizeBias": False},
        }
    work = Path(out).with_suffix("")
    create_pass_from_dict(
        OnnxStaticQuantization,
        config,
        disable_search=True,
        accelerator_spec=AcceleratorSpec("cpu", "CPUExecutionProvider"),
    ).run(ONNXModelHandler(onnx), str(work))
    shutil.copyfile(next(work.parent.rglob(f"{work.name}*/*.onnx"), work.with_suffix(".onnx")), out)


quantize()
