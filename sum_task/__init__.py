"""Summarization with token-level guidance."""
