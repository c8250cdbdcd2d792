"""Continual learning: tasks that come one after the other, and what is known of each task after each."""
