"""The metrics: their formulas, and one folder per metric as a module of the `evaluate` library.

`formulas` is the only place where a metric is computed. The evaluations, the trainers and the report import it, which
takes no time. Each folder wraps one formula for `evaluate.load`, and can be uploaded to the Hub as it stands: its
`formulas.py`, `app.py` and `requirements.txt` are links to the files here.
"""
