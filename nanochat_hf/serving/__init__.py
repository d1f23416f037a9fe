"""The server of `nanochat-hf serve`: one checkpoint for OpenAI clients and for clients of text-generation-inference.

    command          the command and its options
    app              the web application: its routes
    web              HTTP around the routes: bodies, errors, streams, keys, origins, clients that go away
    openai_api       chats, completions, models, tokens
    responses_api    /v1/responses
    text_generation  the routes of text-generation-inference
    requests         what a request may contain, and what it asks for
    fields           reads fields: each is honoured, or refused by name
    prompts          prompts as token ids, away from the event loop
    engine           the thread that writes all answers in one batch
    metrics          what /metrics shows

docs/serving.md says what each route takes.
"""
