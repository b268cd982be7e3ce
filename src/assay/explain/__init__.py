"""What features respond to, in words that can be checked: contexts, explanations, scores."""
