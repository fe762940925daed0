"""A web page on this machine: images in, what inversion finds of them out. `invfast app`.

gradio is imported in `page` and `server` alone, and comes with `pip install "invfast[app]"`.
"""
