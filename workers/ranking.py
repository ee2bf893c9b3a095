"""How a question and a text are put together for a model that ranks."""

from __future__ import annotations

from workers.binding import Model, api


def ranking_prompt(model: Model, query: str, document: str) -> list[int]:
    """Question and text as tokens: by the model's own template for it, if it has one, else
    `<start>query<end><separator>document<end>`, of the marks that it uses. As llama-server does."""
    template: bytes | None = api.llama_model_chat_template(model.handle, b"rerank")
    if template is not None:
        pieces = template.decode("utf-8", "replace").split("{query}")
        text = query.join(piece.replace("{document}", document) for piece in pieces)
        return model.tokenize(text, add_special=True, parse_special=True)
    vocab = model.vocab
    end = [model.eos] if api.llama_vocab_get_add_eos(vocab) else []
    between = [api.llama_vocab_sep(vocab)] if api.llama_vocab_get_add_sep(vocab) else []
    start = [model.bos] if model.adds_bos else []
    asked = model.tokenize(query, add_special=False, parse_special=False)
    text_tokens = model.tokenize(document, add_special=False, parse_special=False)
    return [*start, *asked, *end, *between, *text_tokens, *end]
