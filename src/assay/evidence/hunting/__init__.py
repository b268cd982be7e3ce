"""What search methods share: reading any text with a claim's score, labels, showing and shortening hits."""
