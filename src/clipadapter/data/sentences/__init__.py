"""Sentences about classes from a bank of templates."""
