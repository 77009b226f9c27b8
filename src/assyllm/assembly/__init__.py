"""Chains of blocks: search, recipe, assembled model and its scoring head."""
