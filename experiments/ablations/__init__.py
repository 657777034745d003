"""Ablations of the paper, and of choices that it leaves open.

Each module here defines one ablation: its question, the paper's finding, the runs to compare, and
the verdict on them. `table.py` lists them all; add a new ablation there. `harness/` has the code
that they share. `__main__.py` and `key_frames_clips.py` are programs.
"""
