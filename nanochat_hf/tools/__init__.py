"""The tools of a model: what it can call, such as the calculator, and the sandbox for the programs that it writes."""
