"""Text to tokens and back: tokenizers, chat templates, and streams of text.

Knows nothing of engines or HTTP. `tokenizers` and `jinja2` are imported when first used.
"""

from trimtab.tokenization.chat_template import ChatTemplate
from trimtab.tokenization.loading import load_tokenizer
from trimtab.tokenization.text_stream import TextStream
from trimtab.tokenization.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "TextStream", "Tokenizer", "load_tokenizer"]
