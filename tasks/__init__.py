"""What goes into and comes out of each task, free of torch and transformers.

The same `encode`, `collate` and `decode` run in training, in the parity check, in calibration and behind HTTP, so
training and serving cannot drift apart.
"""

from tasks.base import Answer, Task, TaskSpec
from tasks.catalogue import load_task
from tasks.encoding import TextInput, Tokenizer, Window, collate
from tasks.errors import ParitybitError

__all__ = [
    "Answer",
    "ParitybitError",
    "Task",
    "TaskSpec",
    "TextInput",
    "Tokenizer",
    "Window",
    "collate",
    "load_task",
]
