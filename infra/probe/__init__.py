"""What infra/smoke_test.py asks a deployed broker, and how it judges the answers.

It runs with the Python 3.9 of a Mac or a build agent, without packages.
"""
