"""text-generation-inference's own Python client against a running server.

python -m venv CLIENT && CLIENT/bin/pip install text-generation    # it needs another huggingface_hub than we do
nanochat-hf serve runs/quickstart/rl --port 8000
CLIENT/bin/python tests/serving/by_hand/text_generation_client.py http://localhost:8000
"""

import json
import sys

from text_generation import Client
from text_generation.errors import ValidationError

client, asked = Client(sys.argv[1]), "The mill is"
whole = client.generate(asked, max_new_tokens=6, decoder_input_details=True, top_n_tokens=2)
print(repr(whole.generated_text), [(token.id, round(token.logprob, 3)) for token in whole.details.tokens])
assert len(whole.details.tokens) == whole.details.generated_tokens == 6 and whole.details.prefill[0].logprob is None
events = list(client.generate_stream(asked, max_new_tokens=6))
assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
assert "".join(event.token.text for event in events) == events[-1].generated_text == whole.generated_text
stop = whole.generated_text[2:5]
stopped = client.generate(asked, max_new_tokens=6, stop_sequences=[stop])
assert stopped.generated_text == whole.generated_text.split(stop)[0], stopped
assert client.generate(asked, max_new_tokens=6, do_sample=True, best_of=2).details.best_of_sequences
assert client.generate(asked, max_new_tokens=1, return_full_text=True).generated_text.startswith(asked)
try:
    client.generate("x " * 5000, max_new_tokens=1)
except ValidationError as error:
    print("refused:", error)
else:
    raise SystemExit("a prompt that is too long was not refused")
messages = [{"role": "user", "content": "Who are you?"}]
answer = client.chat(messages=messages, max_tokens=8, temperature=0).choices[0].message.content
pieces = []
try:
    for chunk in client.chat(messages=messages, max_tokens=8, temperature=0, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
except json.JSONDecodeError:
    pass  # release 0.7.0 stumbles over the last event, [DONE], of every OpenAI server
assert "".join(pieces) == answer, pieces
print(repr(answer))
print("ok")
