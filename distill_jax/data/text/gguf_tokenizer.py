"""The tokenizer in a GGUF file -> the files it had: tokenizer.json, tokenizer_config.json, generation_config.json.

Byte-level BPE (`gpt2`) is there with its merges; how text is cut before them only by a name, of those in CUTS.
SentencePiece's BPE (`llama`) is there with scores, from which the merges follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from distill_jax.config import check
from distill_jax.io.gguf_header import read_header
from distill_jax.types import JsonObject

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "▁"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _regex(pattern: str) -> list[JsonObject]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]


_GPT2: JsonObject = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# tokenizer.ggml.pre -> how text is cut before its merges.
CUTS: dict[str, list[JsonObject]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    "llama-bpe": _regex(_WORDS + r"\p{N}{1,3}" + _REST),
    "qwen2": _regex(_WORDS + r"\p{N}" + _REST),
}
LLAMA3, QWEN = "llama-bpe", "qwen2"
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # here -> in the file
JSON, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"


def tokenizer_files(path: Path) -> dict[str, JsonObject]:
    """Return the files of a GGUF file's tokenizer, by their names, as JSON objects.

    Raises:
      ConfigError: if the file has no tokenizer, or one that is not supported, naming it.
    """
    metadata = read_header(path).metadata
    kind = str(metadata.get("tokenizer.ggml.model", ""))
    check(bool(kind), f"{path}: has no tokenizer, for tokenizer.ggml.model is missing; convert it with its tokenizer")
    known = f"{path}: tokenizer.ggml.model = {kind!r}: only {', '.join(_BUILDERS)} are supported"
    check(kind in _BUILDERS and "tokenizer.ggml.tokens" in metadata, known)
    tokens = GgmlTokens(path, metadata)
    special = {f"{name}_token": tokens.content(key) for name, key in SPECIAL.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokens.begins,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in special.items() if token is not None},
    }
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    ends = [tokens.id(key) for key in ("eos", "eot", "eom")]
    generation = {
        "bos_token_id": tokens.id("bos"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": tokens.id("padding"),
    }
    generation = {name: ids for name, ids in generation.items() if ids not in (None, [])}
    return {JSON: tokens.definition(**_BUILDERS[kind](tokens)), SETTINGS: settings, GENERATION: generation}


class GgmlTokens:
    """The entries of a vocabulary in a GGUF file.

    Attributes:
      tokens: the entries in order; types: the type of each.
      begins: whether every text begins with the token `bos`; prefixed: whether with a space, behind special tokens too.
    """

    def __init__(self, path: Path, metadata: JsonObject):
        self.path, self.metadata = path, metadata
        self.tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        self.types: list[int] = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(self.tokens)
        check(len(self.types) == len(self.tokens), f"{path}: tokenizer.ggml.token_type: one a token is needed")
        pieces = metadata["tokenizer.ggml.model"] == SENTENCEPIECE
        usual = pieces or metadata.get("tokenizer.ggml.pre") == LLAMA3
        self.prefixed = pieces and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        self.begins = bool(metadata.get("tokenizer.ggml.add_bos_token", usual)) and self.id("bos") is not None

    def id(self, name: str) -> int | None:
        """Return the id of a special token, or None."""
        key = f"tokenizer.ggml.{name}_token_id"
        token = self.metadata.get(key)
        if token is None:
            return None
        inside = isinstance(token, int) and 0 <= token < len(self.tokens)
        check(inside, f"{self.path}: {key} = {token!r}: there are {len(self.tokens)} tokens")
        return int(token)

    def content(self, name: str) -> str | None:
        """Return how a special token is written, or None."""
        token = self.id(name)
        return None if token is None else self.tokens[token]

    def definition(self, **parts: object) -> JsonObject:
        """Return the tokenizer.json: what is shared by all, and these parts."""
        added = [i for i, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED)]
        user, spelled = USER_DEFINED, not self.prefixed  # several spaces, say, which are ▁▁▁ by then
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                _added(i, self.tokens[i], self.types[i] == CONTROL, spelled and self.types[i] == user) for i in added
            ],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": self._begin() if self.begins else None,
            **parts,
        }

    def _begin(self) -> JsonObject:
        """Return what puts `<bos>` before every text."""
        token, number = self.content("bos"), self.id("bos")
        begin, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        second = {"Sequence": {"id": "B", "type_id": 1}}
        return {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, second],
            "special_tokens": {str(token): {"id": token, "ids": [number], "tokens": [token]}},
        }


def _added(number: int, token: str, special: bool, normalized: bool) -> JsonObject:
    """Return a token that is found in text before anything is cut."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": number, "content": token, **flags, "normalized": normalized, "special": special}


def _bpe(tokens: GgmlTokens, merges: Sequence[Sequence[str]], **settings: object) -> JsonObject:
    defaults = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "unk_token": None}
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    vocabulary = {token: i for i, token in enumerate(tokens.tokens)}
    return {"type": "BPE", **defaults, **flags, **settings, "vocab": vocabulary, "merges": merges}


def _byte_level(tokens: GgmlTokens) -> JsonObject:
    """Return the parts of a tokenizer on bytes, with the merges that the file lists."""
    pre, key = tokens.metadata.get("tokenizer.ggml.pre", "default"), "tokenizer.ggml.merges"
    known = f"only {', '.join(CUTS)} are supported"
    check(pre in CUTS, f"{tokens.path}: tokenizer.ggml.pre = {pre!r}: {known}")
    check(key in tokens.metadata, f"{tokens.path}: {key} is missing; convert the model again")
    merges = [merge.split(" ") for merge in tokens.metadata[key]]
    return {
        "normalizer": {"type": "NFC"} if pre == QWEN else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=pre == LLAMA3),
    }


def _sentencepiece(tokens: GgmlTokens) -> JsonObject:
    """Return the parts of SentencePiece's BPE: spaces are a letter, and what has no piece is spelled in bytes."""
    key = "tokenizer.ggml.scores"
    scores = tokens.metadata.get(key, [])
    check(len(scores) == len(tokens.tokens), f"{tokens.path}: {key}: one a token is needed; convert the model again")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: list[JsonObject] = [{"type": "Prepend", "prepend": SPACE}] if tokens.prefixed else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[JsonObject] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokens.prefixed else []
    unknown = next((token for token, kind in zip(tokens.tokens, tokens.types, strict=True) if kind == UNKNOWN), None)
    spelled = BYTE in tokens.types
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, replace]},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, merges_of(tokens, scores), unk_token=unknown, fuse_unk=True, byte_fallback=spelled),
    }


def merges_of(tokens: GgmlTokens, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that make SentencePiece's choices: the pair whose piece has the highest score comes first.

    A piece that several pairs make comes from the one whose parts were made first.
    """
    parts = {token: i for i, token in enumerate(tokens.tokens) if tokens.types[i] in (NORMAL, USER_DEFINED)}
    found = []
    for token, i in parts.items():
        if tokens.types[i] == NORMAL:
            pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            found += [(-scores[i], parts[a], parts[b], a, b) for a, b in pairs if a in parts and b in parts]
    return [(a, b) for *_, a, b in sorted(found)]


SENTENCEPIECE = "llama"
_BUILDERS: dict[str, Callable[[GgmlTokens], JsonObject]] = {"gpt2": _byte_level, SENTENCEPIECE: _sentencepiece}
