"""Text to training batches, in the order in which data flows.

- `decoding`: a file → decoded text; `rows`: a table → the text of its rows; `documents`: long text → documents.
- `files`: one file → documents, in groups.
- `hub_files`: a data set of the Hub → files that are fetched when they are read.
- `splits`: names of files → which are for training and which for validation.
- `found`: a source's name → its files of each split.
- `sources`: a source's name → the documents of one process, with a position that can be saved.
- `packing`: documents as token ids → rows of one length; conversations likewise.
- `row_stream`: documents → tokenized, packed rows, with a state that is exact to the row.
- `loader`: a source and a tokenizer → batches, made in the background.
- `overview`: what a run reads, said before it starts.
- `microworld`: the built-in data.

Conversations and their mixtures are in `nanochat_hf.tasks`.
"""
