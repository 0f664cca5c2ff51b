"""Speed, memory and agreement of the ops against PyTorch and against other trainers' kernels: `make bench`.

Gradings a second beside math-verify: `python -m benchmarks.grading`.
"""
