"""What granplugin takes from modelopt; nothing else imports modelopt."""

from granplugin.modelopt_bridge.chatter import quiet

with quiet():
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
