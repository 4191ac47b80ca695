"""granplugin: quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT.

For scripts: prepare, modelopt_config and export_onnx (see granplugin.api). Nothing heavy is
imported until one of them is used.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("granplugin")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0"

__all__ = ["__version__", "export_onnx", "modelopt_config", "prepare"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from granplugin import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
