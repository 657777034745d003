"""The paper's ablations, and questions that it left open: lists of runs that differ in one field.

Each module here is one of them: its question, the paper's finding, its variants, and what of our
runs decides it. A new one is a new module, named in `__main__.py`.
"""
