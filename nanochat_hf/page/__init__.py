"""The chat page: a Gradio application for one's own machine and for a Hugging Face Space.

The files, from the entry point down:

    command         the command line of `nanochat-hf space`, and its settings from the environment
    app             the page: its parts, and which event calls what
    visits          what a visitor's message goes through: checks, limits, the answer
    views           a conversation as Chatbot messages
    safe_text       text of models and visitors as Markdown that cannot fetch, run or navigate
    token_view      an answer as tiles of tokens with their probabilities
    report_view     a run's report with its plots
    deploy          the folder of a Space
    static/         style, script and the mark
"""
