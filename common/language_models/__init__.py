"""Pretrained language models: loading them, and what every task does with them."""
