"""The metrics that sum up an evaluation: their keys in `eval/*.json` and their titles in tables."""

# In the order in which tables show them. "core" is the bundle of CORE alone; bundles made here have other keys.
HEADLINE_TITLES = {
    "bits_per_byte": "bits per byte (lower is better)",
    "core": "CORE",
    "core_corrected": "CORE, corrected chance",
    "microworld_completion": "microworld completion tasks",
    "text_completion": "text completion tasks",
    "chatcore": "ChatCORE",
    "strangers": "sensible answers to the stranger's list",
}
