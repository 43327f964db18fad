"""What the docs claim about speed and memory, as programs that anyone can run: ``python -m benchmarks``."""
