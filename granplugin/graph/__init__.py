"""ONNX graphs: export once with markers, then markers + plan + amax -> Q/DQ, read back."""
