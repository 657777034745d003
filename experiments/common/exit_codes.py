"""Exit codes that several programs in `experiments` use. Imports nothing, so it loads fast."""

PREEMPTED = 75  # EX_TEMPFAIL: training saved after SIGTERM; run the same command again to resume
