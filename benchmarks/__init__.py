"""Speed, memory and agreement of the ops against PyTorch and against other trainers' kernels: `make bench`."""
