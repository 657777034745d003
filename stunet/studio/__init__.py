"""`stunet studio`: a web page for what a trained model can do.

`page` lays it out and is all that knows Gradio; below it are `inputs` (uploads, masks), `making`
(a request to a video), `jobs` (one at a time) and `results` (files, and what the page says).
"""
