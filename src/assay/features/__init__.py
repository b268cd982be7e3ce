"""Features: activations gathered from a corpus, dictionaries trained on them, and what those dictionaries are worth."""
