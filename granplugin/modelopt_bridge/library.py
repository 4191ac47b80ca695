"""What granplugin takes from modelopt; nothing else imports modelopt.

Much of it is no public interface, and a release may drop it. So all of it stands here, what is
imported and which members of that are used, and is looked at when this is imported.
"""

import re
from collections.abc import Mapping
from importlib import metadata

from granplugin.errors import UserError
from granplugin.modelopt_bridge.chatter import quiet
from granplugin.modelopt_bridge.late import compiled_late


def _gone(what: str) -> UserError:
    try:
        installed = metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        installed = "of an unknown version"
    needed = metadata.requires("granplugin") or []
    known = next((each for each in needed if each.startswith("nvidia-modelopt")), "nvidia-modelopt")
    return UserError(
        f"modelopt {installed} has no {what}, which granplugin uses; install a version that it was "
        f"tried with: pip install {known!r}"
    )


with quiet(), compiled_late():
    try:
        import modelopt.torch.opt as mto
        import modelopt.torch.quantization as mtq
        from modelopt.torch.opt.config import ModeloptField
        from modelopt.torch.opt.conversion import ModeloptStateManager
        from modelopt.torch.quantization.config import (
            QuantizeAlgorithmConfig,
            QuantizerAttributeConfig,
        )
        from modelopt.torch.quantization.conversion import restore_quantizer_state
        from modelopt.torch.quantization.mode import (
            BaseCalibrateModeDescriptor,
            CalibrateModeRegistry,
        )
        from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry, TensorQuantizer
        from modelopt.torch.quantization.nn.modules.tensor_quantizer import register_quant_backend
        from modelopt.torch.quantization.plugins.custom import (
            CUSTOM_MODEL_PLUGINS,
            CUSTOM_POST_CONVERSION_PLUGINS,
        )
        from modelopt.torch.quantization.tensor_quant import fake_tensor_quant, scaled_e4m3
    except ImportError as err:
        if not (err.name or "").startswith("modelopt"):  # a library that modelopt needs
            raise
        name = re.search(r"cannot import name '(\w+)'", str(err))
        raise _gone(f"{err.name}.{name[1]}" if name else str(err.name)) from err


MEMBERS: Mapping[object, tuple[str, ...]] = {
    TensorQuantizer: (
        "amax", "disable", "enable", "get_modelopt_state", "is_enabled",
        "set_from_attribute_config",
    ),
    QuantModule: ("export",),
    type(QuantModuleRegistry): ("__contains__", "__getitem__"),
    ModeloptStateManager: ("is_converted", "state_dict"),
    BaseCalibrateModeDescriptor: ("_calib_func", "config_class"),
    CalibrateModeRegistry: ("register_mode",),
    type(CUSTOM_MODEL_PLUGINS): ("add", "difference_update"),
    mtq: ("quantize",),
    mto: ("save", "restore"),
}  # fmt: skip
"""Of what is imported, the members that are used or replaced here; a quantizer's amax is its buffer
`_amax`, which is deleted for one of another shape."""


def check(members: Mapping[object, tuple[str, ...]]) -> None:
    """Raises UserError, one sentence, for the first of these members that is gone."""
    for of, names in members.items():
        for name in names:
            if not hasattr(of, name) and name not in vars(of).get("__annotations__", {}):
                raise _gone(f"{getattr(of, '__name__', of)}.{name}")


check(MEMBERS)

__all__ = [
    "CUSTOM_MODEL_PLUGINS",
    "CUSTOM_POST_CONVERSION_PLUGINS",
    "BaseCalibrateModeDescriptor",
    "CalibrateModeRegistry",
    "ModeloptField",
    "ModeloptStateManager",
    "QuantModule",
    "QuantModuleRegistry",
    "QuantizeAlgorithmConfig",
    "QuantizerAttributeConfig",
    "TensorQuantizer",
    "fake_tensor_quant",
    "mto",
    "mtq",
    "register_quant_backend",
    "restore_quantizer_state",
    "scaled_e4m3",
]
