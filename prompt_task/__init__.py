"""Few-shot prompt generation: a policy learns to write the prompt with which a frozen language model classifies."""
