"""Engines of processes that are not there."""

from common.training.engine import Engine, start_engine


def pretended(rank: int, count: int) -> Engine:
    """One that takes its process for number `rank` of `count`; it cannot talk to the others."""
    engine = start_engine("cpu")
    engine.rank, engine.count = rank, count
    return engine
