"""The core: granularity, formats and their oracle, calibrators, layers. No torch, no onnx."""
