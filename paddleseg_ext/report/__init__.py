"""Runs of training side by side, as one page for people."""
