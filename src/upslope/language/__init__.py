"""Language models: log-probabilities, generation, rewards, DPO and GRPO with their relatives.

Needs the extra `language` (transformers, peft, datasets); nothing else in Upslope imports it.
"""
