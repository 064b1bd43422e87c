"""LoRA for causal language models: trained by transformers' Trainer with peft, from the same settings files and by the same command."""
