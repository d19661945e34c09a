import re

import pytest

from trimtab import builtin
from trimtab.tokenization.loading import load_tokenizer
from trimtab.workloads.make import make_workload
from trimtab.workloads.requests import Piece
from trimtab.workloads.texts import PieceTexts, builtin_corpus, corpus_of


class Words:
    """A tokenizer of whole words and white space, whose decoding loses where text was."""

    def encode(self, text, add_special_tokens=True):
        return [hash(part) for part in re.findall(r"\w+|\s+|[^\w\s]", text)]

    def decode(self, token_ids, skip_special_tokens=True):
        return "?" * len(token_ids)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(builtin.target_path())


def texts_with(kind, tokenizer):
    return PieceTexts({"builtin": tokenizer, "words": Words(), "none": None}[kind])


@pytest.mark.parametrize("kind", ["builtin", "words"])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 15, 16, 17, 100, 1777])
def test_a_piece_has_its_tokens_or_one_off_and_says_which(kind, length, tokenizer):
    texts = texts_with(kind, tokenizer)
    exact = 0
    for number in range(12):
        for on_new_line in (False, True):
            found = texts.sized(Piece(f"key {number}", length), on_new_line)
            count = len(texts.tokenizer.encode(found.text, add_special_tokens=False))
            assert found.num_tokens == count
            assert abs(count - length) <= 1
            assert found.is_exact == (count == length)
            exact += found.is_exact
    assert exact >= 20 or length < 4


def test_a_prompt_of_pieces_is_the_sum_of_them(tokenizer):
    texts = PieceTexts(tokenizer)
    workload = make_workload("rag", rate=1, count=40, max_context=2048)
    exact = 0
    for request in workload.requests:
        found = texts.prompt(request.pieces)
        assert found.num_tokens == len(tokenizer.encode(found.text, add_special_tokens=False))
        assert abs(found.num_tokens - request.num_prompt_tokens) <= len(request.pieces)
        exact += found.is_exact
    assert exact >= 35


@pytest.mark.parametrize("kind", ["builtin", "none"])
def test_shared_pieces_are_the_same_tokens_and_others_share_nothing(kind, tokenizer):
    texts = texts_with(kind, tokenizer)
    system = Piece("system", 60)
    first, second = (texts.prompt([system, Piece(key, 50)]).text for key in ("a", "b"))
    shared = texts.text(system)
    assert first.startswith(shared)
    assert second.startswith(shared)
    assert first[len(shared) :][:6] != second[len(shared) :][:6]
    assert PieceTexts(texts.tokenizer).prompt([system, Piece("a", 50)]).text == first


def test_keys_give_different_beginnings():
    texts = PieceTexts()
    beginnings = {texts.text(Piece(f"chat/0/{number}", 40))[:24] for number in range(5000)}
    assert len(beginnings) == 5000


def test_without_a_tokenizer_it_is_about_four_characters_a_token():
    found = PieceTexts().prompt([Piece("a", 500), Piece("b", 500)])
    assert len(found.text) == pytest.approx(4000, rel=0.01)
    assert found.num_tokens == 1000
    assert not found.is_exact
    assert PieceTexts().prompt([]).text == ""


def test_a_piece_longer_than_the_corpus_goes_on():
    corpus = corpus_of("one line\nanother line\n")
    text = PieceTexts(corpus=corpus).text(Piece("a", 1000))
    assert 3990 <= len(text) <= 4000
    assert text.count("another line") > 100


def test_the_text_is_real_and_has_no_special_tokens(tokenizer):
    corpus = builtin_corpus()
    assert len(corpus.text) > 500_000
    assert corpus.text.isascii()
    for special in ("<|", "<s>", "</s>", "[INST]", "<unk>", "<pad>", "<start_of_turn>"):
        assert special not in corpus.text
    assert not set(tokenizer.encode(corpus.text, add_special_tokens=False)) & tokenizer.special_ids
    kept = corpus_of("a line\n<|im_end|> is not\nthe ñ neither\n[INST] no\nthe last\n")
    assert kept.text == "a line\nthe last\n"
