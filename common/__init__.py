"""Learning token-level rewards from sequence-level preferences, and training language models with them.

Nothing in this package knows a task: the functions take tensors, the models take token ids.
"""
