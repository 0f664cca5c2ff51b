"""From prompt files to packed batches: reading, templates, the order of prompts, token-budget packing."""
