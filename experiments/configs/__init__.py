"""Configs: each a file with `get_config()`, its docstring says what it is and costs."""
