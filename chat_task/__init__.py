"""Replies of language models: token, segment and sequence rewards from a file of preferences."""
