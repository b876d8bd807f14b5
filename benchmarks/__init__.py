"""Speed, posterior quality and density benchmarks; not part of the wheel.

Run a script from the root of the repository, as ``python -m benchmarks.NAME``.
"""
