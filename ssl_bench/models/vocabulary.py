"""Vocabularies of text encoders, and captions as token ids.

Shapes: B texts, L tokens, C captions, N images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, parse_json
from ssl_bench.utils.formatting import many
from ssl_bench.utils.rng import SampleRng

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_OF_METHOD = ("fusion_depth", "embed_dim", "matches", "next_sentence", "predicts")
_WIDTH = 128
_TOKENS = 8
"""Texts are padded to a multiple of so many tokens."""
_FEW = 0.1
"""A vocabulary that lacks more of the words than this does not fit the texts."""
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
        next_sentence: whether texts are pairs in training, and a head tells if the second one
            comes after the first.
        predicts: whether a head predicts hidden tokens.
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
    next_sentence: bool = False
    predicts: bool = True

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

    @property
    def size(self) -> int:
        """The number of words."""
        return len(_ids(self.vocabulary))

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
    for between, count in Counter(chain.from_iterable(map(_between_spaces, texts))).items():
        for word, _ in split.pre_tokenize_str(normalize.normalize_str(between)):
            counts[word] += count
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
        The words, one a line, and whether texts are lower-cased: as BERT's normaliser says, or
        where there is none, if the words have no capitals but in special tokens.

    Raises:
        UserError: it cannot be read, is something else, or normalises texts in another way.
    """
    where = f"tokenizer {str(path)!r}"
    try:
        content = load_bytes(path)
        text = content.decode()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    told: dict[str, Any] = {}
    if not text.lstrip().startswith("{"):
        words = text.removesuffix("\n").split("\n")
        words = [word.removesuffix("\r") for word in words]
    else:
        try:
            found = parse_json(content)
            model, normalizer = found["model"], found.get("normalizer") or {}
            told = normalizer if normalizer.get("type") == "BertNormalizer" else {}
            require(
                model.get("type") == "WordPiece",
                f"{where} is a {model.get('type')}; a WordPiece such as BERT's would work",
            )
            ids = {int(number): str(word) for word, number in model["vocab"].items()}
            words = [ids[number] for number in range(len(ids))]
        except (Unreadable, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} is no tokenizer.json of WordPiece; BERT's, or its vocab.txt, would work"
            ) from error
    check_vocabulary(words, where)
    is_lower = not any(w != w.lower() for w in words if not w.startswith("["))
    lowercase = bool(told.get("lowercase", is_lower))
    usual = {"strip_accents": (None, lowercase), "handle_chinese_chars": (True,)}
    for name, known in {**usual, "clean_text": (True,)}.items():
        has = told.get(name, known[0])
        require(has in known, f"{where} has {name} {has!r}; {known[0]!r}, as in BERT's, would work")
    return "\n".join(words), lowercase


def given_vocabulary(config: Any) -> tuple[str, bool] | None:
    """What `read_vocabulary` finds where a method's `recipes.TextConfig` names a tokenizer."""
    path = config.tokenizer and Path(config.tokenizer).expanduser()
    return read_vocabulary(path) if path else None


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: str, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(_ids(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def tokenize(texts: Sequence[str], spec: TextSpec) -> Tensor:
    """The ids of texts: int64 ``(B, L)``, [CLS] first, [SEP] last, then [PAD].

    L is the longest's length, rounded up to a multiple of 8; texts that are longer than
    ``max_tokens`` are cut.
    """
    first, last, pad = map(spec.id, (CLS, SEP, PAD))
    room = spec.max_tokens - 2
    inner = _encoded(texts, spec.vocabulary, spec.lowercase)
    rows = [[first, *each[:room], last] for each in inner]
    length = min(spec.max_tokens, _rounded(max(map(len, rows), default=2)))
    padded = [row + [pad] * (length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(-1, length)


def _rounded(length: int) -> int:
    return math.ceil(length / _TOKENS) * _TOKENS


def _between_spaces(text: str) -> list[str]:
    """Parts of a text that BERT's tokenizer reads each by itself."""
    return text.split(" ")


def _encoded(texts: Iterable[str], vocabulary: str, lowercase: bool) -> Iterator[list[int]]:
    """The ids of each text, for which each different part is tokenized once."""
    tokenizer = _tokenizer(vocabulary, lowercase)

    @cache
    def ids(part: str) -> list[int]:
        return tokenizer.encode(part, add_special_tokens=False).ids

    return (list(chain.from_iterable(map(ids, _between_spaces(text)))) for text in texts)


def spec_of(config: Any, texts: Sequence[str], image_width: int = 0) -> TextSpec:
    """The text encoder that a method's `recipes.TextConfig` describes, for these training texts.

    Args:
        image_width: of the tokens of the image encoder beside it, if there is one, which is the
            default width, too.

    Raises:
        UserError: the tokenizer cannot be read, or the texts hold no word.
    """
    vocabulary, lowercase = given_vocabulary(config) or (
        learn_vocabulary(texts, config.vocabulary_size),
        True,
    )
    longest = max(map(len, _encoded(texts, vocabulary, lowercase)), default=0)
    require(longest > 0, "the training texts hold no words")
    is_pair = getattr(config, "next_sentence", False)
    longest = 3 + 2 * longest if is_pair else 2 + longest
    return TextSpec(
        vocabulary,
        lowercase,
        min(config.max_tokens, _rounded(longest)),
        config.text_width or image_width or _WIDTH,
        config.text_depth,
        config.text_heads,
        image_width=image_width,
        dropout=config.text_dropout,
        **{name: getattr(config, name) for name in _OF_METHOD if hasattr(config, name)},
    )


def caveats(config: Any, texts: Iterable[str], spec: TextSpec) -> Iterator[str]:
    """What of the training texts does not reach the encoder that `spec_of` made for them."""
    if spec.max_tokens < config.max_tokens and not config.tokenizer:
        return  # whole texts, of words that were learned from them
    rows = list(_encoded(texts, spec.vocabulary, spec.lowercase))
    lengths, unknown = [len(row) for row in rows], spec.id(UNKNOWN)
    cut = sum(length + 2 > spec.max_tokens for length in lengths)
    if cut and not spec.next_sentence:
        yield (
            f"{cut:,} of {many(len(rows), 'training text')} are longer than {spec.max_tokens} "
            f"tokens, and cut; --max-tokens {max(lengths) + 2} would take all of them"
        )
    strange, all_words = sum(row.count(unknown) for row in rows), sum(lengths)
    if strange > _FEW * all_words:
        yield (
            f"{100 * strange / all_words:.0f} % of the words in the training texts are not in the "
            "vocabulary, and read as one unknown word"
        )


def noise(spec: TextSpec, rng: SampleRng) -> Tensor:
    """Ids drawn at random, as many as the longest texts have: int64 ``(B, max_tokens)``."""
    ids_BL = (rng.uniform("text", spec.max_tokens) * spec.size).long()
    pad = spec.id(PAD)
    return ids_BL.where(ids_BL != pad, spec.id(SEP))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The captions of all images of a split.

    Attributes:
        ids_CL: int64, those of each image one after another.
        first_N: int64, where each image's begin.
        count_N: int64, how many it has.
        begin_C, end_C: int64, where the document of each text begins and ends.
    """

    ids_CL: Tensor
    first_N: Tensor
    count_N: Tensor
    begin_C: Tensor
    end_C: Tensor

    def draw(self, rng: SampleRng) -> Tensor:
        """One caption of each sample, by chance: int64 ``(B, L)``."""
        return self.ids_CL[self._drawn(rng)]

    def draw_pairs(self, rng: SampleRng, spec: TextSpec) -> tuple[Tensor, Tensor]:
        """One text of each sample, and with an even chance the next one or another document's.

        Where the drawn one is its document's last, the one before it takes its place. A document
        of one text has no next one: it always gets another document's.

        Returns:
            The ids of both as one text, int64 ``(B, L)``, and whether the second is the next one,
            bool ``(B,)``.
        """
        first_B = self._drawn(rng)
        begin_B, end_B = self.begin_C[first_B], self.end_C[first_B]
        first_B = torch.minimum(first_B, torch.maximum(end_B - 2, begin_B))
        is_next_B = (rng.uniform("next", 1)[:, 0] < 0.5) & (first_B + 1 < end_B)
        elsewhere_B = len(self.ids_CL) - (end_B - begin_B)
        other_B = (rng.uniform("other", 1)[:, 0].double() * elsewhere_B).long()
        other_B = other_B + (end_B - begin_B) * (other_B >= begin_B)
        second_B = torch.where(is_next_B, first_B + 1, other_B)
        return joined(self.ids_CL[first_B], self.ids_CL[second_B], spec), is_next_B

    def _drawn(self, rng: SampleRng) -> Tensor:
        count_B = self.count_N[rng.samples_B]
        drawn_B = (rng.uniform("caption", 1)[:, 0] * count_B).long()
        return self.first_N[rng.samples_B] + drawn_B


@lru_cache(maxsize=8)
def tokens_of(
    captions: Sequence[Sequence[str]],
    documents: Sequence[int] | None,
    spec: TextSpec,
    device: torch.device,
) -> Tokens:
    """The tokens of the captions of a split, made once for each vocabulary and device.

    Args:
        documents: the number of each sample's document, equal ones side by side; None where each
            sample is one.
    """
    counts_N = torch.tensor([len(each) for each in captions])
    of_sample_N = torch.tensor(documents) if documents else torch.arange(len(captions))
    document_C = of_sample_N.repeat_interleave(counts_N)
    _, place_C, size_D = document_C.unique_consecutive(return_inverse=True, return_counts=True)
    end_D = size_D.cumsum(0)
    ids_CL = tokenize([text for each in captions for text in each], spec)
    first_N, ends = counts_N.cumsum(0) - counts_N, ((end_D - size_D)[place_C], end_D[place_C])
    return Tokens(*(each.to(device) for each in (ids_CL, first_N, counts_N, *ends)))


def check_documents(captions: Sequence[Sequence[str]], documents: Sequence[int] | None) -> None:
    """Require what pairs of sentences are drawn from.

    Raises:
        UserError: there is only one document, or no text with a next one.
    """
    counts: Counter[int] = Counter()
    for document, own in zip(documents or range(len(captions)), captions, strict=True):
        counts[document] += len(own)
    require(
        len(counts) > 1 and max(counts.values()) > 1,
        f"the next sentence is told from another document's, and {sum(counts.values()):,} training "
        f"texts make {len(counts):,} documents; two or more, one of them of two texts or more, "
        "would work (in a text file, an empty line ends a document), and so would --loss mlm",
    )


def joined(first_BL: Tensor, second_BL: Tensor, spec: TextSpec) -> Tensor:
    """Pairs of texts as one, [CLS] first [SEP] second [SEP]: int64 ``(B, max_tokens)``.

    Where both are too long for that, the longer one is cut, or both to the same length.
    """
    pad, last, length = spec.id(PAD), spec.id(SEP), spec.max_tokens
    first_BL, second_BL = (
        F.pad(each_BL, (0, length - each_BL.shape[1]), value=pad)
        for each_BL in (first_BL, second_BL)
    )
    room = length - 3
    own_B, other_B = ((each_BL != pad).sum(dim=1) - 2 for each_BL in (first_BL, second_BL))
    own_B = torch.minimum(own_B, (room - other_B).clamp_min(room // 2))
    other_B = torch.minimum(other_B, room - own_B)
    place_L = torch.arange(length, device=first_BL.device)
    middle_B1, end_B1 = (own_B + 1)[:, None], (own_B + other_B + 2)[:, None]
    from_second_BL = second_BL.gather(1, (place_L - middle_B1).clamp_min(0))
    ids_BL = torch.where(place_L < middle_B1, first_BL, from_second_BL)
    ids_BL = ids_BL.where((place_L != middle_B1) & (place_L != end_B1), last)
    return ids_BL.where(place_L <= end_B1, pad)


def segments(ids_BL: Tensor, spec: TextSpec) -> Tensor:
    """1 for the tokens of a pair's second text and its [SEP], else 0: int64 ``(B, L)``."""
    is_end_BL = ids_BL == spec.id(SEP)
    is_second_BL = (is_end_BL.cumsum(dim=1) - is_end_BL.long()) > 0
    return (is_second_BL & (ids_BL != spec.id(PAD))).long()
