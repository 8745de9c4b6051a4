"""The client's sub-commands: each reads its options, calls a library module and reports.

At module level they import the standard library and typer only, so that listing them is quick.
"""
