"""Scores on held-out questions and how sure they are."""
