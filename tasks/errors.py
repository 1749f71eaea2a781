"""The one exception tree of paritybit. The command line turns each into a single line and an exit code.

ParitybitError            1  anything that a user can mend
├── RecipeError           2  a recipe that cannot be read or does not make sense
├── DataError             3  a data file that is missing, unreadable or holds bad rows
├── CheckpointError       4  a checkpoint directory that is missing, unfinished or not usable
├── BundleError           5  a bundle that is missing, damaged or not certified
├── GateError             6  a certified limit that was not met
├── InputError            7  a text or parameter that a model cannot take
├── MissingExtraError     8  an optional dependency that is not installed
├── DivergenceError       9  a training whose loss is no longer a number
└── InterruptionError   130  a stage stopped by Ctrl-C (143: by SIGTERM) that kept its progress
"""

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "GateError",
    "InputError",
    "InterruptionError",
    "MissingExtraError",
    "ParitybitError",
    "RecipeError",
]


class ParitybitError(Exception):
    """Something that a user can mend; the message says what is wrong, where, and what was expected."""

    exit_code = 1


class RecipeError(ParitybitError):
    """A recipe that cannot be read or does not make sense."""

    exit_code = 2


class DataError(ParitybitError):
    """A data file that is missing, unreadable or holds bad rows."""

    exit_code = 3


class CheckpointError(ParitybitError):
    """A checkpoint directory that is missing, unfinished or not usable."""

    exit_code = 4


class BundleError(ParitybitError):
    """A bundle that is missing, damaged or not certified."""

    exit_code = 5


class GateError(ParitybitError):
    """A certified limit that was not met."""

    exit_code = 6


class InputError(ParitybitError):
    """A text or parameter that a model cannot take; serving answers it with a 400."""

    exit_code = 7


class MissingExtraError(ParitybitError):
    """An optional dependency that is not installed."""

    exit_code = 8

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'paritybit[{extra}]'")


class DivergenceError(ParitybitError):
    """A training whose loss is no longer a number."""

    exit_code = 9


class InterruptionError(ParitybitError):
    """A stage stopped by a signal that kept its progress; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
