"""One-line use from Python, which is also what the command line tools call.

Import what is needed from the modules: the command line's own module must not load torch.
"""
