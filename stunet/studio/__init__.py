"""`stunet studio`: a web page with a tab for each application.

`page` builds the tabs from `stunet.engine.applications` and is the only module that imports Gradio.
`requests` parses the components' values into an engine `Request` and runs it; `uploads` checks
files; `jobs` queues jobs; `results` writes result files and HTML; `access` refuses requests from
other sites; `storage` bounds and removes temporary files; `server` serves the page.
"""
