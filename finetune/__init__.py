"""Data and recipe to a checkpoint directory: reading, reporting, training. Needs the `finetune` extra."""
