"""Config files. Each defines `get_config()`; its docstring has purpose, command and cost."""
