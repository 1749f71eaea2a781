"""Checkpoint → ONNX → quantized variants → measured and judged → a certified bundle."""
