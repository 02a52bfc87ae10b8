"""One file per analysis of ``analyze.py``: iterate over data, call the science, return a ``Result``."""
