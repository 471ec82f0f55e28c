"""Vocabularies of text encoders, and captions as token ids.

Shapes: B texts, L tokens, C captions, N images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, parse_json
from ssl_bench.utils.rng import SampleRng

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OF_PAIRS = ("fusion_depth", "embed_dim", "matches")
_WIDTH = 128
_TOKENS = 8
"""Texts are padded to a multiple of so many tokens."""
_MOST = 2**20
"""More words, tokens, layers or features than any text encoder has."""


@dataclass(frozen=True)
class TextSpec:
    """Everything needed to build a text encoder again, and to turn texts into its ids.

    Attributes:
        vocabulary: WordPiece's words, one a line, as in BERT's ``vocab.txt``.
        lowercase: whether texts are lower-cased and stripped of accents first.
        max_tokens: where longer texts are cut, [CLS] and [SEP] included.
        width, depth, num_heads: of the layers that read text alone.
        fusion_depth: layers after those that attend to an image, too.
        image_width: of the image's tokens; 0 without such layers.
        embed_dim: of the space that images and texts are compared in; 0 for none.
        dropout: probability, in training.
        matches: whether a head tells if a text and an image belong together.
    """

    vocabulary: str
    lowercase: bool
    max_tokens: int
    width: int
    depth: int
    num_heads: int
    fusion_depth: int = 0
    image_width: int = 0
    embed_dim: int = 0
    dropout: float = 0.0
    matches: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> TextSpec:
        """Restore a spec from its ``asdict`` as JSON.

        Raises:
            UserError: no text encoder has such values.
            KeyError, TypeError: an entry is missing or has the wrong type.
        """
        spec = cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})
        counts = (spec.max_tokens, spec.width, spec.depth, spec.num_heads)
        more = (spec.fusion_depth, spec.image_width, spec.embed_dim)
        require(
            all(type(each) is int and 0 <= each <= _MOST for each in (*counts, *more))
            and min(counts) > 0
            and type(spec.vocabulary) is str
            and 0 <= spec.dropout < 1,
            "it has no sizes of a text encoder",
        )
        check_vocabulary(spec.words, "its vocabulary")
        return spec

    @property
    def words(self) -> list[str]:
        """The vocabulary, by id."""
        return self.vocabulary.split("\n")

    def id(self, word: str) -> int:
        """The id of a word of the vocabulary."""
        return _ids(self.vocabulary)[word]


@lru_cache(maxsize=8)
def _ids(vocabulary: str) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary.split("\n"))}


def check_vocabulary(words: Sequence[str], where: str) -> None:
    """Require the special tokens, and each word once.

    Raises:
        UserError: they are not there.
    """
    lacking = [each for each in SPECIAL if each not in set(words)]
    require(
        not lacking,
        f"{where} has no {', '.join(lacking)}; one of BERT's, with {', '.join(SPECIAL)}, would do",
    )
    [(word, count)] = Counter(words).most_common(1)
    require(count == 1, f"{where} has {word!r:.40} {count} times; each word once would do")


def learn_vocabulary(texts: Iterable[str], size: int) -> str:
    """A vocabulary of the texts, in lower case: a function of the texts and the size alone.

    BERT's special tokens, then every letter, alone and as the continuation of a word, then whole
    words, the most frequent first. WordPiece spells a rarer word in letters. (`tokenizers`' own
    trainer of WordPiece chooses among pairs of equal counts by chance, so that no two trainings
    would have the same ids.)
    """
    normalize, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(w for w, _ in split.pre_tokenize_str(normalize.normalize_str(text)))
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        letters.update({letter: count for letter in (word[0], *(f"##{each}" for each in word[1:]))})
    ranked = [
        *sorted(letters, key=lambda letter: (-letters[letter], letter)),
        *sorted(counts, key=lambda word: (-counts[word], word)),
    ]
    words = dict.fromkeys([*SPECIAL, *(word for word in ranked if "\n" not in word)])
    return "\n".join(list(words)[: max(size, len(SPECIAL))])


def read_vocabulary(path: Path) -> tuple[str, bool]:
    """The vocabulary in BERT's ``vocab.txt``, or in a ``tokenizer.json`` of WordPiece.

    Returns:
        The words, one a line, and whether texts are lower-cased; a list of words says so by having
        no capitals but in special tokens.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    where = f"tokenizer {str(path)!r}"
    try:
        content = load_bytes(path)
        text = content.decode()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    if not text.lstrip().startswith("{"):
        words = text.removesuffix("\n").split("\n")
        words = [word.removesuffix("\r") for word in words]
        lowercase = not any(w != w.lower() for w in words if not w.startswith("["))
    else:
        try:
            found = parse_json(content)
            model, normalizer = found["model"], found.get("normalizer") or {}
            require(
                model.get("type") == "WordPiece",
                f"{where} is a {model.get('type')}; a WordPiece such as BERT's would work",
            )
            ids = {int(number): str(word) for word, number in model["vocab"].items()}
            words = [ids[number] for number in range(len(ids))]
            lowercase = bool(normalizer.get("lowercase", True))
        except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} is no tokenizer.json of WordPiece; BERT's, or its vocab.txt, would work"
            ) from error
    check_vocabulary(words, where)
    return "\n".join(words), lowercase


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: str, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(_ids(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def tokenize(texts: Sequence[str], spec: TextSpec) -> Tensor:
    """The ids of texts: int64 ``(B, max_tokens)``, [CLS] first, [SEP] last, then [PAD].

    Longer ones are cut.
    """
    first, last, pad = map(spec.id, (CLS, SEP, PAD))
    ids_BL = torch.full((len(texts), spec.max_tokens), pad)
    for row_L, inner in zip(ids_BL, _encoded(texts, spec.vocabulary, spec.lowercase), strict=True):
        row = torch.tensor([first, *inner[: spec.max_tokens - 2], last])
        row_L[: len(row)] = row
    return ids_BL


def _encoded(texts: Iterable[str], vocabulary: str, lowercase: bool) -> Iterator[list[int]]:
    tokenizer = _tokenizer(vocabulary, lowercase)
    return (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)


def spec_of(config: Any, texts: Sequence[str], image_width: int = 0) -> TextSpec:
    """The text encoder that a method's `recipes.TextConfig` describes, for these training texts.

    Args:
        image_width: of the tokens of the image encoder beside it, if there is one, which is the
            default width, too.

    Raises:
        UserError: the tokenizer cannot be read, or the texts hold no word.
    """
    if config.tokenizer:
        vocabulary, lowercase = read_vocabulary(Path(config.tokenizer).expanduser())
    else:
        vocabulary, lowercase = learn_vocabulary(texts, config.vocabulary_size), True
    longest = 2 + max(map(len, _encoded(texts, vocabulary, lowercase)), default=0)
    require(longest > 2, "the training captions hold no words")
    return TextSpec(
        vocabulary,
        lowercase,
        min(config.max_tokens, math.ceil(longest / _TOKENS) * _TOKENS),
        config.text_width or image_width or _WIDTH,
        config.text_depth,
        config.text_heads,
        image_width=image_width,
        dropout=config.text_dropout,
        **{name: getattr(config, name) for name in _OF_PAIRS if hasattr(config, name)},
    )


def noise(spec: TextSpec, rng: SampleRng) -> Tensor:
    """Ids drawn at random, as many as the longest texts have: int64 ``(B, max_tokens)``."""
    ids_BL = (rng.uniform("text", spec.max_tokens) * len(spec.words)).long()
    pad = spec.id(PAD)
    return ids_BL.where(ids_BL != pad, spec.id(SEP))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The captions of all images of a split.

    Attributes:
        ids_CL: int64, those of each image one after another.
        first_N: int64, where each image's begin.
        count_N: int64, how many it has.
    """

    ids_CL: Tensor
    first_N: Tensor
    count_N: Tensor

    def draw(self, rng: SampleRng) -> Tensor:
        """One caption of each sample, by chance: int64 ``(B, L)``."""
        count_B = self.count_N[rng.samples_B]
        drawn_B = (rng.uniform("caption", 1)[:, 0] * count_B).long()
        return self.ids_CL[self.first_N[rng.samples_B] + drawn_B]

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(*(each.to(device) for each in (self.ids_CL, self.first_N, self.count_N)))


@lru_cache(maxsize=8)
def tokens_of(captions: Sequence[Sequence[str]], spec: TextSpec, device: torch.device) -> Tokens:
    """The tokens of the captions of a split, made once for each vocabulary and device."""
    counts_N = torch.tensor([len(each) for each in captions])
    ids_CL = tokenize([text for each in captions for text in each], spec)
    return Tokens(ids_CL, counts_N.cumsum(0) - counts_N, counts_N).to(device)
