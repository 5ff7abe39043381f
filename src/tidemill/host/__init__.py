"""The engine host: a loaded engine in a process of its own, and the clients that share it."""
