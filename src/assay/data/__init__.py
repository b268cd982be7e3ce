"""Tasks: minimal pairs of prompts, and what to measure on them."""
