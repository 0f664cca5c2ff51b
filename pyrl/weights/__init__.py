"""Weights: one table per model family maps Hugging Face <-> Megatron and serves load, export and sync."""
