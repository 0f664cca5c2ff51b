"""What turns rewards and log-probs into a loss: advantages, token selection, policy losses, global sums."""
