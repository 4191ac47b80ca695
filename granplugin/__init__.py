"""granplugin: quantization granularity, layer by layer, for NVIDIA modelopt and TensorRT."""
