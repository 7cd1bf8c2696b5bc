"""Teachers on other machines: server, client, pipeline, reader, registry and balance. NumPy in, NumPy out; no Paddle here."""
