"""Data sets, the sampler that can resume, and the loader."""
