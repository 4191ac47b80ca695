"""granplugin inside modelopt: config, calibration mode, fake-quant, markers.

The only package that imports modelopt. Importing it registers the calibration mode, without which
`mto.restore` cannot read a model that granplugin calibrated.
"""

from granplugin.modelopt_bridge.apart import take_apart
from granplugin.modelopt_bridge.marker import marked
from granplugin.modelopt_bridge.mode import convert, quantize
from granplugin.modelopt_bridge.places import want_quantizers
from granplugin.modelopt_bridge.quantizers import fake_quantize, is_ours, load_amax, sites_of
from granplugin.planning.quantize_config import config

__all__ = [
    "config",
    "convert",
    "fake_quantize",
    "is_ours",
    "load_amax",
    "marked",
    "quantize",
    "sites_of",
    "take_apart",
    "want_quantizers",
]
