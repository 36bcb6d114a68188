"""The operations of a layer, one file each. The variant for the device is chosen once, at load.

Open `layer.py` first for a layer's weights, then `attention.py`.
"""
