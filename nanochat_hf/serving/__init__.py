"""The server of `nanochat-hf serve`: transformers' request handlers over one checkpoint, with additions.

    command          the command and its options
    app              the web application: routes, and the loaded model
    handlers         transformers' handlers: requests are checked, and chats get the calculator
    engine           this project's generation, with the interface that transformers' handlers expect
    requests         what a request may contain, and what it asks for
    text_generation  the routes of text-generation-inference

docs/serving.md says what the server adds to transformers' own.
"""
