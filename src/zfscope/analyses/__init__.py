"""Questions to trained networks: one module for each, all of one shape (``question.py``), run by ``run.py``."""
