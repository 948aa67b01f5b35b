"""Runs behind an address: requests and uploads in, answers out, whole or token by token.

`serve` starts it, `replica` is the process that has the models, `app` the requests it takes, `engine` the thread that
answers them together. `client` is how `ask` talks to it.
"""
