"""What a graph no longer needs once nodes were replaced."""

import onnx

__all__ = ["drop_unread"]


def drop_unread(graph: onnx.GraphProto) -> None:
    """Removes nodes that nothing reads any more, and the constants that only they read; changes the graph in place."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)
