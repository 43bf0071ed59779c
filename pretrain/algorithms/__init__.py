"""What is computed, on tensors and numbers alone."""
