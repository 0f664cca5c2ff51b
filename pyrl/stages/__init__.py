"""The stages of one training step that join several parts: collect (prompts to graded groups), improve (log-probs,
selection, loss, updates), validate, and the supervised phase that may come before."""
