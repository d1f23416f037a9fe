"""Text in, batches out: sources of documents, packing into rows, the pretraining loader, mixtures of conversations.

`sources` reads documents, `packing` makes rows of them, `loader` puts both together in the background and `mixtures`
shuffles conversation tasks. `microworld` is the built-in data.
"""
