"""Models of the Hugging Face hub: what they need, and how they come here, pinned, checked and without their code."""
