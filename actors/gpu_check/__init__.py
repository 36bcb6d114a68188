"""`python -m actors.gpu_check`: is it right on this device, and how far from the device's limits?"""
