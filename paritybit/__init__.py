"""The command line of paritybit."""

__all__: list[str] = []
