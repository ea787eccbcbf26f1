"""What was published, done again: the same question, our figure, their ratio, and why they differ."""
