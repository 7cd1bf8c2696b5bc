"""Trained models outside of Paddle's layers: exported in a process of their own, and run by an inference engine."""
