"""AssyLLM: federated fine-tuning of large language models by assembling pre-trained blocks.

Importing the package costs nothing heavy; torch and transformers load with the component that needs them.
"""

__version__ = "0.1.0"
