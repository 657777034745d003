"""Exit codes of the programs in `experiments`. Imports nothing, so it loads fast.

    0        finished
    2        invalid input, a diverged loss, or a full or read-only disk; one line on stderr
    75       a signal stopped training after saving; the same command resumes it
    128 + N  signal N ended the program, such as 130 for Ctrl-C (SIGINT) and 143 for SIGTERM

Signals are SIGINT, SIGTERM, SIGHUP and SIGQUIT. `stunet` uses the same codes, except 75.
"""

PREEMPTED = 75  # EX_TEMPFAIL
