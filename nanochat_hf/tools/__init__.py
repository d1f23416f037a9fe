"""The tools of a model: what it can call, such as the calculator, and the sandbox that runs the code which it writes."""
