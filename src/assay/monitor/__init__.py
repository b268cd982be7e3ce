"""Monitors: a score for every token, a threshold for the unit that alerts, and when not to believe either."""
