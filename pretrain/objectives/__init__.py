"""What is learned: an objective is a sum of named terms, each in a small file of its own."""
