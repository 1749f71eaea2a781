"""The published bundle beside other ways to int8, each made in an environment of its own; see `__main__`."""
