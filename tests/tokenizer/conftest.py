"""A small tokenizer trained on the built-in data and some multilingual text."""

from itertools import islice
from pathlib import Path

import pytest

from nanochat_hf.data import microworld
from nanochat_hf.tokenizer import train

MIXED = [
    "한국어 텍스트도 있습니다. 日本語の文章もここにあります。 Ελληνικά, русский, العربية, हिन्दी 😀👩‍👩‍👧‍👦 naïve café",
    "x = [i**2 for i in range(1000)]\r\n\tif x[12] >= 3.14159:\r\n        print('it''s', \"we'll\", \"DON'T\")\n\n\n",
    "aaaaaaaaaaaaaaaa aaaa aaa   \n \n\t\t  ------======------ 1234567890 12 3 ½ ⅷ ٣٤",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    return list(islice(microworld.documents("train"), 300)) + MIXED + code


@pytest.fixture(scope="session")
def tokenizer(texts):
    return train(texts, 1024, num_threads=2)
