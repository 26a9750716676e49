"""Tasks that run in child processes (`server.children`): the only modules of the server that reach torch.

Parameters and results are JSON; large things travel through the blob store by hash.
"""
