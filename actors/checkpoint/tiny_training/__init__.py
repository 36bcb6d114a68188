"""Makes the checkpoint in the package: text, tokenizer, model and training of the tiny PhiMoE.

Open `__main__.py` first: `python -m actors.checkpoint.tiny_training OUT` trains the model and writes it.
"""
