"""What goes into and comes out of each task, free of torch and transformers.

The same `encode`, `collate` and `decode` run in training, in the parity check, in calibration and behind HTTP, so
training and serving cannot drift apart.
"""

from tasks.base import Answer, Encoded, Task, TaskSpec
from tasks.catalogue import load_task
from tasks.encoding import Tokenizer, Window, collate
from tasks.errors import ParitybitError
from tasks.inputs import Input, QuestionInput, TextInput, WordsInput

__all__ = [
    "Answer",
    "Encoded",
    "Input",
    "ParitybitError",
    "QuestionInput",
    "Task",
    "TaskSpec",
    "TextInput",
    "Tokenizer",
    "Window",
    "WordsInput",
    "collate",
    "load_task",
]
