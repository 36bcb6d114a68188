"""`python -m actors.gpu_check` checks the model's results on a device and compares its speed with the limits.

Open `__main__.py` first: it runs the comparisons, then the timings.
"""
