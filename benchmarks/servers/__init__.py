"""The servers that are measured, each a program: Crossband and its peers on the same work.

All of them print `{"port", "control"}` when they answer, and publish n messages to everybody
when a line "n" arrives on the control port. The message is argv[1].
"""
