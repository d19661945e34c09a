from __future__ import annotations

import pytest
from model_directories import KINDS, make_backend, write_model

from trimtab.tokenization import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizers_by_kind(tmp_path_factory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("models")
    return {kind: load_tokenizer(write_model(root / kind, make_backend(kind))) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request, tokenizers_by_kind) -> Tokenizer:
    return tokenizers_by_kind[request.param]
