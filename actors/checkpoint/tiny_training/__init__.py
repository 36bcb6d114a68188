"""Makes the checkpoint that ships with the package: text, tokenizer, model and training loop of the tiny PhiMoE."""
