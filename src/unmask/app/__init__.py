"""The web page of `unmask app`: watch a model sample, compare settings, paint over an image, infill a text.

`models` finds models and keeps one in memory, `watching` runs a sampler and remembers what it saw, `page` and the
files named after its tabs draw the page, and `server` keeps it closed to strangers. Needs gradio (the extra `app`).
"""
