"""Token rewards in trainers that other people wrote."""
