"""Marks of names and figures in tables: each has one meaning, in the terminal, in reports and in plots.

A table that uses one says below what it means. All of them are in the code page of western Windows terminals.
"""

BEST = "•"
"""Before the best figure of a column, where bold type is not possible."""
TRANSDUCTIVE = "*"
"""After a head that uses the unlabelled test pictures when it is fitted."""
NOT_AS_PUBLISHED = "‡"
"""After a head that is not the published method, by `heads.Fidelity`."""
UNVERIFIED = "?"
"""After a data set whose numbers of pictures were not verified."""
