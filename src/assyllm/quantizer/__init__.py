"""Low-precision storage of the pool, and layers that compute from it (the paper's "Quanter")."""
