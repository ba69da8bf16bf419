"""The HTTP faces, one blueprint per module.

- An endpoint knows no dialect, and a dialect knows no endpoint.
"""
