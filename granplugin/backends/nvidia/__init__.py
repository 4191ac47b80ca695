"""TensorRT and TensorRT-RTX: one code path, since their Python APIs are the same."""
