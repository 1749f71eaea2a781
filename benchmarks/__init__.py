"""PyTorch and ONNX Runtime behind one callable, timed side by side; the report; and the log of what was tried.

An engine is `Callable[[batch], object]`, made in a process of its own from a `module:function` name (`export.timing`),
so a peer is one more function in a module of this folder.
"""
