"""`python -m actors.gpu_check`: is the model right on a device, and how close is it to its limits?

Open `__main__.py` first: it runs the comparisons, then the timings.
"""
