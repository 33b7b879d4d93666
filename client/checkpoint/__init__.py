"""Checkpoints as files: docs/checkpoint-format.md. Servers write them, and anybody reads them."""
