"""The learner: a Megatron-Core model, its optimizer, and the passes that score and update it."""
