"""The engine: a `Request` goes in, a `Result` comes out.

`stunet.api`, `stunet.cli` and `stunet.studio` parse, call `stunet.engine.run.run`, and display.
"""
