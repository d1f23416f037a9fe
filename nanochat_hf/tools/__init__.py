"""The tools of a model: the calculator that it calls, and the sandbox that runs the code which it writes."""
